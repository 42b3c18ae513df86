# SPDX-License-Identifier: Apache-2.0
"""What the carrier says is looked at twice: a grant must be a way in, and every packet can be shown."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv4Address

import pytest

from igdpcp.iwf.interfaces import Granted, Refused
from igdpcp.log import LINES_BURST
from igdpcp.pcp.message import ResultCode
from tests.support.pcp_script import answer, mapped
from tests.support.virtual_time import virtual
from tests.upstreams.line import ANSWERED, Line, request


@pytest.mark.parametrize("address", ["192.168.1.1", "192.168.1.77", "127.0.0.1", "224.0.0.1", "169.254.1.1"])
def test_a_grant_that_is_no_way_in_is_refused_and_given_back(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    @virtual
    async def run() -> None:
        with Line(monkeypatch, external_ip_probe="startup") as line:
            line.carrier.script.address = mapped(address)
            await line.up()
            line.upstream.map(request())
            await asyncio.sleep(ANSWERED)
            assert line.of(Granted) == []
            assert [(event.id, event.result) for event in line.of(Refused)] == [("1", ResultCode.NETWORK_FAILURE)]
            assert (line.upstream.external_address, line.upstream.grants("1")) == (None, False)
            line.upstream.unmap("1")
            await asyncio.sleep(1)
            assert [sent.internal_port for sent in line.carrier.maps if not sent.lifetime] == [8080]

    run()


@virtual
async def test_log_wire_shows_every_packet_of_both_directions(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "igdpcp.upstream")
    with Line(monkeypatch, log_wire=True) as line:
        answers: list[bytes] = []
        receive = line.carrier.script.receive
        monkeypatch.setattr(line.carrier.script, "receive", lambda sent: _kept(receive(sent), answers))
        await line.up()
        line.upstream.map(request(description="d" * 200, remote_hosts=(IPv4Address("198.51.100.9"),)))
        await asyncio.sleep(ANSWERED)
        sent = [packet.octets for packet in line.carrier.sent]
    assert _shown(caplog, "pcp_sent") == sent
    assert _shown(caplog, "pcp_received") == answers
    assert len(answers) == 2


@virtual
async def test_without_log_wire_no_packet_is_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "igdpcp.upstream")
    with Line(monkeypatch) as line:
        await line.up()
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
    assert _shown(caplog, "pcp_sent") == _shown(caplog, "pcp_received") == []


@virtual
async def test_many_updates_that_name_no_way_in_write_few_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        assert line.upstream.peer is not None
        (sent,), port = line.carrier.maps, line.upstream.peer.port
        octets = answer(sent.octets, epoch=line.carrier.script.epoch(sent.at), address=mapped("127.0.0.1"))
        for _ in range(100):
            line.carrier.socket.sendto(octets, (str(line.own), port))
            await asyncio.sleep(0)
        await asyncio.sleep(ANSWERED)
        assert (len(line.of(Refused)), line.upstream.grants("1")) == (100, False)
        assert 1 <= len(_events(caplog, "grant_is_no_way_in")) <= LINES_BURST


def _kept(packets: list[bytes], where: list[bytes]) -> list[bytes]:
    where += packets
    return packets


def _shown(caplog: pytest.LogCaptureFixture, event: str) -> list[bytes]:
    return [bytes.fromhex(text.partition("bytes=")[2]) for text in _events(caplog, event)]


def _events(caplog: pytest.LogCaptureFixture, event: str) -> list[str]:
    return [text for text in caplog.messages if text.startswith(f"event={event} ")]
