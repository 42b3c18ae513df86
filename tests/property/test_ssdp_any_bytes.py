# SPDX-License-Identifier: Apache-2.0
"""Any datagram of a LAN host is a search, another message or malformed; no search is answered with anything new."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from igdpcp.errors import MalformedRequest
from igdpcp.upnp.description import DeviceIdentity, udns_from, with_config_id
from igdpcp.upnp.ssdp import (
    TEXT_LIMIT,
    Presence,
    Search,
    alive,
    answers,
    parse_announcement,
    parse_answer,
    parse_search,
)

IDENTITY = with_config_id(DeviceIdentity("igdpcp", "1", udns_from("machine"), 7, "", "1.2.3"))
PRESENCE = Presence(IDENTITY, "http://192.168.1.1:5000", "auto", "239.255.255.250:1900")
SEARCH = b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 2\r\nST: ssdp:all\r\n\r\n'
MESSAGES = [SEARCH, alive(PRESENCE)[0], answers(Search("upnp:rootdevice", 1), PRESENCE)[0]]


@st.composite
def damaged(draw):
    """A valid message with a piece replaced by any bytes."""
    valid = draw(st.sampled_from(MESSAGES))
    start = draw(st.integers(0, len(valid)))
    end = draw(st.integers(start, min(len(valid), start + 12)))
    return valid[:start] + draw(st.binary(max_size=12)) + valid[end:]


@given(st.one_of(st.binary(max_size=300), damaged()))
def test_any_bytes_as_a_search(data):
    with suppress(MalformedRequest):
        search = parse_search(data)
        assert search is None or search.target.isprintable()


@given(st.one_of(st.binary(max_size=300), damaged()))
def test_any_bytes_as_what_another_gateway_says(data):
    for sighting in (parse_answer(data), parse_announcement(data)):
        if sighting is not None:
            assert len(sighting.location) <= TEXT_LIMIT
            assert sighting.location.isprintable()
            assert sighting.endpoint is None or 0 < sighting.endpoint[1] < 65536
            assert not sighting.belongs_to(IDENTITY) or any(udn.lower() in sighting.usn.lower() for udn in OWN)


@given(st.text(max_size=60), st.one_of(st.none(), st.integers(0, 99999)))
def test_whatever_is_searched_for_only_what_is_here_is_answered(target, mx):
    found = answers(Search(target, mx), PRESENCE)
    if target == "ssdp:all":
        assert found
    else:
        assert all(f"ST: {target}\r\n".encode() in answer for answer in found)


OWN = {IDENTITY.udn(level, version) for level in range(3) for version in (1, 2)}
