# SPDX-License-Identifier: Apache-2.0
"""PCP against anything: codecs round-trip, any bytes parse or raise the peer's error, no bytes upset a client."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st

from igdpcp.errors import MalformedPcp
from igdpcp.model import IPAddress
from igdpcp.pcp.client import MappingGranted, MappingReleased
from igdpcp.pcp.message import (
    AnnounceRequest,
    AnnounceResponse,
    MapRequest,
    MapResponse,
    decode_request,
    decode_response,
    encode,
)
from igdpcp.pcp.natpmp import is_natpmp_refusal
from igdpcp.pcp.options import Description, Filter, OptionCode, PreferFailure, ThirdParty, Unknown
from tests.support.pcp_script import EXTERNAL, SERVER, Dialogue, answer
from tests.vectors.pcp_vectors import VECTORS


def canonical(address: IPAddress) -> IPAddress:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


ADDRESSES = (st.ip_addresses(v=4) | st.ip_addresses(v=6)).map(canonical)
PORTS = st.integers(0, 0xFFFF)
SECONDS = st.integers(0, 0xFFFFFFFF)
OCTET = st.integers(0, 0xFF)
NONCES = st.binary(min_size=12, max_size=12)
KNOWN = {int(code) for code in OptionCode}
OPTIONS = st.lists(
    st.builds(ThirdParty, ADDRESSES)
    | st.just(PreferFailure())
    | st.builds(Filter, OCTET, ADDRESSES, PORTS)
    | st.builds(Description, st.text(st.characters(codec="utf-8"), max_size=40))
    | st.builds(Unknown, OCTET.filter(lambda code: code not in KNOWN), st.binary(max_size=30)),
    max_size=5,
).map(tuple)
REQUESTS = st.builds(AnnounceRequest, ADDRESSES, OPTIONS) | st.builds(
    MapRequest, ADDRESSES, NONCES, OCTET, PORTS, SECONDS, PORTS, ADDRESSES, OPTIONS
)
RESPONSES = st.builds(AnnounceResponse, OCTET, SECONDS, SECONDS, OPTIONS) | st.builds(
    MapResponse, OCTET, SECONDS, SECONDS, NONCES, OCTET, PORTS, PORTS, ADDRESSES, OPTIONS
)


@st.composite
def damaged_packets(draw: st.DrawFn) -> bytes:
    """A vector with some octets changed and its end moved: most of it still looks like PCP."""
    octets = bytearray(draw(st.sampled_from(list(VECTORS.values()))))
    for at, value in draw(st.lists(st.tuples(st.integers(0, len(octets) - 1), OCTET), max_size=6)):
        octets[at] = value
    octets += draw(st.binary(max_size=12))
    return bytes(octets[: draw(st.integers(0, len(octets)))]) if draw(st.booleans()) else bytes(octets)


PACKETS = st.binary(max_size=80) | damaged_packets()


@given(REQUESTS)
def test_a_request_reads_as_it_was_written(request: AnnounceRequest | MapRequest) -> None:
    assert decode_request(encode(request)) == request


@given(RESPONSES)
def test_a_response_reads_as_it_was_written(response: AnnounceResponse | MapResponse) -> None:
    assert decode_response(encode(response)) == response


@given(PACKETS)
def test_any_bytes_parse_or_raise_the_peer_error(octets: bytes) -> None:
    for decode in (decode_request, decode_response):
        with contextlib.suppress(MalformedPcp):
            decode(octets)
    is_natpmp_refusal(octets)


MOMENTS = st.lists(st.tuples(st.sampled_from(["want", "drop", "run", "announce", "off", "on"]), PACKETS), max_size=12)


@given(MOMENTS, st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_bytes_without_its_nonce_never_change_a_mapping(moments: list[tuple[str, bytes]], silent_after: int) -> None:
    talk = Dialogue()
    talk.want(lease=None)
    talk.run(1)
    before = talk.client.grant("web")
    assert before is not None
    for number, (move, octets) in enumerate(moments):
        talk.server.silent = number > silent_after
        match move:
            case "want":
                talk.want("other", internal_port=81, external_port=81)
            case "drop":
                talk.drop("other")
            case "announce":
                talk.client.announce(talk.now)
            case "off" | "on":
                talk.client.address_changed(None if move == "off" else talk.client.address, talk.now)
        granted = len(talk.of(MappingGranted))
        if before.nonce not in octets:
            talk.client.receive_datagram(octets, SERVER, talk.now)
            while (event := talk.client.next_event()) is not None:
                assert not isinstance(event, MappingGranted | MappingReleased)
            assert talk.client.grant("web") is not None
            assert len(talk.of(MappingGranted)) == granted
        talk.run(2)


class Replay:
    """Answers to what the client really sent, made of drawn fields: right nonce, anything else."""

    def __init__(self, draw: st.DataObject) -> None:
        self.draw = draw

    def __call__(self, request: bytes) -> bytes:
        draw = self.draw.draw
        octets = answer(
            request,
            epoch=draw(SECONDS),
            result=draw(st.integers(0, 14) | OCTET),
            lifetime=draw(st.sampled_from([0, 1, 120, 7200, 0xFFFFFFFF])),
            port=draw(st.sampled_from([None, 1, 8080])),
            address=draw(st.sampled_from([EXTERNAL, bytes(16), bytes(10) + b"\xff\xff" + bytes(4)])),
        )
        return octets if draw(st.booleans()) else octets[:60]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_server_may_answer_anything_and_the_client_goes_on(data: st.DataObject) -> None:
    talk = Dialogue(seed=data.draw(st.integers(0, 9)))
    replay = Replay(data)
    talk.server.scripted = lambda sent: [replay(sent.octets)] if data.draw(st.booleans()) else []
    for _ in range(data.draw(st.integers(1, 8))):
        port = data.draw(st.sampled_from([80, 81]))
        match data.draw(st.sampled_from(["want", "drop", "run", "move"])):
            case "want":
                talk.want(
                    str(port), internal_port=port, external_port=data.draw(st.sampled_from([0, 8080, 9090])),
                    exact=data.draw(st.booleans()), lease=data.draw(st.sampled_from([None, 0, 60, 3600])),
                    description="x", remote_hosts=(IPv4Address("198.51.100.9"),) * data.draw(st.integers(0, 1)),
                )  # fmt: skip
            case "drop":
                talk.drop(str(port))
            case "move":
                talk.client.address_changed(data.draw(st.ip_addresses(v=4)), talk.now)
        talk.run(data.draw(st.sampled_from([0.5, 3, 60])))
    talk.server.scripted = None
    for port in ("80", "81"):
        talk.drop(port)
    talk.run(2 * 86400)
    released = [event.key for event in talk.of(MappingReleased)]
    assert {"80", "81"} <= set(released)
    assert talk.client.grant("80") is None
