# SPDX-License-Identifier: Apache-2.0
"""Breaks on the way to the server: errors that may be forged, no route, no WAN; what is said until it answers again."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from ipaddress import IPv4Address, IPv6Address

import pytest

from igdpcp.errors import OurFault
from igdpcp.iwf.interfaces import Granted, StateChanged
from igdpcp.model import Activation, Endpoint
from igdpcp.pcp.discovery import ROUND_INTERVAL, Origin, Server
from igdpcp.pcp.message import ResultCode
from igdpcp.upstreams import pcp_sockets
from tests.support.pcp_script import THIRD_PARTY, Sent, answer, mapped
from tests.support.virtual_time import virtual
from tests.upstreams.line import (
    ANSWERED,
    EXTERNAL,
    NET,
    OTHER,
    OTHER_SERVER,
    OWN,
    SERVER,
    Carrier,
    Line,
    request,
)

GIVEN_UP = 47.0  # four transmissions and the last timeout (RFC 7488 section 3)
BOTH = Server("isp", (SERVER, OTHER_SERVER), Origin.CONFIGURED)
LOOPBACK6 = IPv6Address("::1")
CLIENT = Endpoint(IPv4Address("192.168.1.50"), 81)


def refusing(line: Line, result: ResultCode) -> None:
    """The first carrier refuses everything in this way."""
    loop = asyncio.get_running_loop()

    def refuse(sent: Sent) -> list[bytes]:
        return [answer(sent.octets, epoch=int(loop.time()), result=result, lifetime=1800)]

    line.carrier.script.scripted = refuse


# -- errors ------------------------------------------------------------------------------------------------------


@virtual
async def test_an_icmp_error_costs_no_server_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        line.servers(BOTH)
        await asyncio.sleep(ANSWERED)
        script = line.carrier.script
        line.carrier.close()
        line.upstream.map(request())
        await asyncio.sleep(1)
        line.carriers[0] = Carrier(SERVER)
        line.carrier.script = script
        await asyncio.sleep(100)
        assert line.upstream.counters["refused"] > 0
        assert not all(sent.is_map for sent in line.carrier.sent)  # we asked whether it is there
        assert (line.upstream.address, line.carriers[1].sent) == (SERVER, [])
        assert [event.id for event in line.of(Granted)] == ["1"]


@virtual
async def test_a_server_where_nobody_listens_any_more_is_left_when_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        line.servers(BOTH)
        await asyncio.sleep(100)
        line.carrier.close()
        line.upstream.map(request())
        await asyncio.sleep(GIVEN_UP)
        assert line.upstream.address == OTHER_SERVER
        assert [event.id for event in line.of(Granted)] == ["1"]


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.EPERM, errno.ENETUNREACH])
def test_an_error_of_our_own_says_nothing_of_a_server_that_was_not_heard_yet(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    @virtual
    async def run() -> None:
        with Line(monkeypatch) as line:
            connected, failures = pcp_sockets.udp_connected, [number] * 2

            class Hindered(socket.socket):
                def send(self, *data: object) -> int:  # type: ignore[override]
                    if failures:
                        raise OSError(failures.pop(), "hindered")
                    return super().send(*data)  # type: ignore[arg-type]

            def hindered(device: str, address: IPv4Address, port: int) -> socket.socket:
                with connected(device, address, port) as sock:
                    return Hindered(fileno=sock.detach())

            monkeypatch.setattr(pcp_sockets, "udp_connected", hindered)
            line.servers(BOTH)
            await asyncio.sleep(20)
            assert (failures, line.upstream.address, line.upstream.state) == ([], SERVER, Activation.ACTIVE)
            assert line.carriers[1].sent == []

    run()


# -- no way ------------------------------------------------------------------------------------------------------


@virtual
async def test_a_round_that_finds_no_route_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        for carrier in line.carriers:
            carrier.script.silent = True
        line.servers(BOTH)
        await asyncio.sleep(2 * GIVEN_UP)
        assert line.upstream.state is Activation.LOST
        line.down = True
        await asyncio.sleep(ROUND_INTERVAL)
        assert line.upstream.peer is None
        line.down, line.carrier.script.silent = False, False
        await asyncio.sleep(ROUND_INTERVAL)
        assert (line.upstream.state, line.upstream.address) == (Activation.ACTIVE, SERVER)


@virtual
async def test_looking_again_finds_a_route_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        line.down = True
        line.servers(BOTH)
        assert (line.upstream.state, line.upstream.peer) == (Activation.NO_WAN, None)
        line.servers(BOTH)
        line.down = False
        line.servers(BOTH)
        await asyncio.sleep(ANSWERED)
        assert (line.upstream.state, line.upstream.address) == (Activation.ACTIVE, SERVER)
        assert line.upstream.peer is not None


@virtual
async def test_iwf_003_a_wan_that_is_down_stays_so_however_long_nothing_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        carrier6 = line.listen_at(LOOPBACK6)
        server = Server("isp", (SERVER, LOOPBACK6), Origin.CONFIGURED)
        line.servers(server)
        await asyncio.sleep(ANSWERED)
        for carrier in line.carriers:
            carrier.script.silent = True
        line.upstream.map(request())
        await asyncio.sleep(25)
        line.upstream.network_changed("wan0", None, [server])
        sent = len(line.carrier.sent), len(carrier6.sent)
        await asyncio.sleep(2 * ROUND_INTERVAL)
        assert (len(line.carrier.sent), len(carrier6.sent)) == sent
        assert (line.upstream.state, line.upstream.reason) == (Activation.NO_WAN, "the WAN has no IPv4 address")


@virtual
async def test_iwf_003_no_later_round_begins_while_the_wan_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        for carrier in line.carriers:
            carrier.script.silent = True
        line.servers(BOTH)
        await asyncio.sleep(2 * GIVEN_UP)
        line.upstream.network_changed("wan0", None, [BOTH])
        sent = [len(carrier.sent) for carrier in line.carriers]
        await asyncio.sleep(2 * ROUND_INTERVAL)
        assert [len(carrier.sent) for carrier in line.carriers] == sent
        assert line.upstream.state is Activation.NO_WAN


# -- until it answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [OWN, OTHER], ids=["same address", "another address"])
def test_iwf_016_021_after_a_break_nothing_is_active_and_no_session_runs_before_an_answer(
    monkeypatch: pytest.MonkeyPatch, own: IPv4Address
) -> None:
    @virtual
    async def run() -> None:
        with Line(monkeypatch, str(SERVER)) as line:
            await line.up()
            line.carrier.script.silent = True
            line.change(None, None)
            await asyncio.sleep(100)
            await line.up(own=own)
            assert (line.upstream.state, line.upstream.up_since) == (Activation.PROBING, None)
            await asyncio.sleep(GIVEN_UP)
            assert (line.upstream.state, line.upstream.up_since) == (Activation.LOST, None)
            line.carrier.script.silent = False
            await asyncio.sleep(1000)
            assert line.upstream.state is Activation.ACTIVE
            assert line.upstream.up_since == line.upstream.state_since

    run()


@virtual
async def test_iwf_021_another_address_without_a_break_begins_another_session(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch, str(SERVER)) as line:
        await line.up()
        before = line.upstream.up_since
        await asyncio.sleep(100)
        line.carrier.script.silent = True
        await line.up(own=OTHER)
        assert (line.upstream.state, line.upstream.up_since) == (Activation.PROBING, None)
        line.carrier.script.silent = False
        await asyncio.sleep(10)
        assert line.upstream.up_since != before


@virtual
async def test_after_a_break_the_external_address_is_that_of_the_grants_that_still_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        line.change(None, None)
        assert line.upstream.external_address is None
        await line.up()
        await asyncio.sleep(1)
        assert line.upstream.external_address == EXTERNAL


# -- what is kept ------------------------------------------------------------------------------------------------


@virtual
async def test_mapping_updates_find_us_at_the_port_that_we_asked_from_whatever_else_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch, str(SERVER)) as line:
        await line.up()
        peer, sent = line.upstream.peer, len(line.carrier.sent)
        for _ in range(3):
            line.change(OWN, OTHER_SERVER)  # another default router; the server is configured
            await asyncio.sleep(1)
        assert (line.upstream.peer, len(line.carrier.sent)) == (peer, sent)


@virtual
async def test_iwf_192_another_source_address_of_the_kernels_choice_is_asked_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch, str(SERVER)) as line:
        await line.up()
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        line.own = OTHER
        line.change(OWN, SERVER)
        await asyncio.sleep(1)
        assert line.carrier.maps[-1].octets[8:24] == mapped(str(OTHER))
        assert [event.grant.internal for event in line.of(Granted)] == [OWN, OTHER]


@virtual
async def test_iwf_052_an_ipv4_server_is_asked_for_the_address_that_it_sees_and_never_for_a_third_party(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch, str(SERVER)) as line:
        line.own = OWN
        line.change(OTHER, SERVER)
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        assert [THIRD_PARTY in sent.codes for sent in line.carrier.maps] == [False]
        assert [event.grant.internal for event in line.of(Granted)] == [OWN]


@pytest.mark.parametrize("wan", ["wan0", "lo"])
def test_announcements_of_an_ipv6_server_are_heard_on_the_device_that_leads_to_it(
    monkeypatch: pytest.MonkeyPatch, wan: str
) -> None:
    @virtual
    async def run() -> None:
        with Line(monkeypatch) as line:
            line.listen_at(LOOPBACK6)
            connected, heard_on = pcp_sockets.udp_connected, list[str]()

            def routed(device: str, address: IPv6Address, port: int) -> socket.socket:
                if device == "wan0":
                    raise OurFault("no route through wan0")
                return connected(device, address, port)

            def listener(device: str, version: int) -> socket.socket:
                heard_on.append(device)
                raise OurFault("the port is taken")

            monkeypatch.setattr(pcp_sockets, "udp_connected", routed)
            monkeypatch.setattr(pcp_sockets, "pcp_announce_listener", listener)
            line.upstream.network_changed(wan, OWN, [Server("isp", (LOOPBACK6,), Origin.CONFIGURED)])
            assert heard_on == ["lo"]

    run()


# -- guesses and refusals ----------------------------------------------------------------------------------------


@virtual
async def test_iwf_054_183_no_mapping_of_others_and_nothing_over_ipv6_is_asked_of_a_guess(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        carrier6 = line.listen_at(LOOPBACK6)
        line.servers(Server("wan0/anycast", (LOOPBACK6,), Origin.ANYCAST))
        line.upstream.map(request())
        await asyncio.sleep(1)
        assert (carrier6.sent, line.upstream.state) == ([], Activation.NO_WAN)
        await line.up()
        line.upstream.map(request("2", internal=CLIENT))
        await asyncio.sleep(1)
        assert [sent.internal_port for sent in line.carrier.maps] == [8080]


@virtual
async def test_iwf_054_what_waits_for_a_trusted_server_is_asked_when_dhcp_names_the_same_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.upstream.map(request(internal=CLIENT))
        await asyncio.sleep(1)
        assert line.carrier.maps == []
        line.servers(Server(str(SERVER), (SERVER,), Origin.DHCPV4))
        await asyncio.sleep(1)
        assert [event.grant.internal for event in line.of(Granted)] == [CLIENT.address]


@virtual
async def test_an_anycast_address_is_asked_for_mappings_when_somebody_has_answered_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch, external_ip_probe="startup") as line:
        line.carrier.script.silent, line.carrier.script.longest = True, 600
        line.servers(Server("wan0/anycast", (SERVER,), Origin.ANYCAST))
        line.upstream.map(request())
        await asyncio.sleep(20)
        assert line.carrier.sent
        assert line.carrier.maps == []
        line.carrier.script.silent = False
        await asyncio.sleep(30)
        assert [event.id for event in line.of(Granted)] == ["1"]
        line.carrier.script.silent = True
        line.upstream.announce()
        await asyncio.sleep(GIVEN_UP)
        line.upstream.map(request(until=asyncio.get_running_loop().time() + 7200))
        line.carrier.script.silent = False
        await asyncio.sleep(2000)
        assert line.carrier.maps[-1].lifetime < 7200  # what the engine has is changed at any time
        line.carrier.script.silent, asked = True, len(line.carrier.maps)
        line.own = OTHER
        line.servers(Server("wan0/anycast", (SERVER,), Origin.ANYCAST))
        await asyncio.sleep(20)
        assert line.upstream.state is Activation.PROBING
        assert len(line.carrier.maps) == asked


@virtual
async def test_iwf_005_a_default_router_that_refuses_everything_is_there_and_its_reason_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        refusing(line, ResultCode.ADDRESS_MISMATCH)
        await line.up()
        assert (line.upstream.state, line.upstream.usable) == (Activation.LOST, False)
        assert line.upstream.reason == "ADDRESS_MISMATCH"


@virtual
async def test_a_server_that_takes_no_third_party_is_left_for_one_that_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with Line(monkeypatch) as line:
        line.carrier.script.refuse = {THIRD_PARTY: (ResultCode.UNSUPP_OPTION, 1800)}
        line.servers(Server("a", (SERVER,), Origin.CONFIGURED), Server("b", (OTHER_SERVER,), Origin.CONFIGURED))
        await asyncio.sleep(ANSWERED)
        line.upstream.map(request(internal=CLIENT))
        await asyncio.sleep(5)
        assert (line.upstream.address, line.upstream.state) == (OTHER_SERVER, Activation.ACTIVE)
        assert [event.id for event in line.of(Granted)] == ["1"]
        assert "does not take THIRD_PARTY" in caplog.text


@pytest.mark.parametrize("silent_first", [False, True], ids=["after an answer", "as its first word"])
def test_a_server_that_takes_no_third_party_is_not_shown_as_active_when_there_is_no_way_to_the_next(
    monkeypatch: pytest.MonkeyPatch, silent_first: bool
) -> None:
    @virtual
    async def run() -> None:
        with Line(monkeypatch) as line:
            line.carrier.script.refuse = {THIRD_PARTY: (ResultCode.UNSUPP_OPTION, 1800)}
            line.carrier.script.drop = 1 if silent_first else 0
            line.servers(Server("a", (SERVER,), Origin.CONFIGURED), Server("b", (OTHER_SERVER,), Origin.CONFIGURED))
            await asyncio.sleep(ANSWERED)
            line.down = True
            line.upstream.map(request(internal=CLIENT, exact=False))
            await asyncio.sleep(1)
            assert (line.upstream.state, line.upstream.reason) == (Activation.LOST, "no route")

    run()


@virtual
async def test_when_no_server_takes_third_party_each_is_asked_once_in_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        for carrier in line.carriers:
            carrier.script.refuse = {THIRD_PARTY: (ResultCode.UNSUPP_OPTION, 1800)}
        line.servers(Server("a", (SERVER,), Origin.CONFIGURED), Server("b", (OTHER_SERVER,), Origin.CONFIGURED))
        await asyncio.sleep(ANSWERED)
        line.upstream.map(request(internal=CLIENT))
        await asyncio.sleep(5)
        asked = [len(carrier.maps) for carrier in line.carriers]
        await asyncio.sleep(ROUND_INTERVAL / 2)
        assert [len(carrier.maps) for carrier in line.carriers] == asked == [2, 2]  # with PREFER_FAILURE, and without
        assert (line.upstream.state, line.upstream.usable) == (Activation.ACTIVE, False)
        line.carrier.script.refuse = {}
        await asyncio.sleep(ROUND_INTERVAL)
        assert (line.upstream.address, line.upstream.usable) == (SERVER, True)
        assert [event.id for event in line.of(Granted)] == ["1"]


@virtual
async def test_a_server_that_is_added_while_the_other_is_lost_is_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        line.carrier.script.silent = True
        one = Server("one", (SERVER,), Origin.DHCPV4)
        line.servers(one)
        await asyncio.sleep(GIVEN_UP)
        assert line.of(StateChanged)[-1] == StateChanged(Activation.LOST)
        line.servers(Server("other", (OTHER_SERVER,), Origin.DHCPV4), one)
        await asyncio.sleep(1)
        assert (line.upstream.address, line.upstream.state) == (OTHER_SERVER, Activation.ACTIVE)
        line.carriers[1].script.silent = True
        line.upstream.announce()
        await asyncio.sleep(GIVEN_UP)
        line.carriers[1].script.silent = False
        await asyncio.sleep(GIVEN_UP)
        assert line.upstream.state is Activation.LOST
        line.servers(one, Server("other", (OTHER_SERVER,), Origin.DHCPV4))
        await asyncio.sleep(GIVEN_UP + 1)
        assert (line.upstream.address, line.upstream.state) == (OTHER_SERVER, Activation.ACTIVE)


@virtual
async def test_a_server_that_is_added_while_all_refuse_is_asked_in_the_next_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        for carrier in line.carriers:
            carrier.script.refuse = {THIRD_PARTY: (ResultCode.UNSUPP_OPTION, 1800)}
        added = IPv4Address(f"{NET}.3")
        carrier = line.listen_at(added)
        servers = Server("a", (SERVER,), Origin.CONFIGURED), Server("b", (OTHER_SERVER,), Origin.CONFIGURED)
        line.servers(*servers)
        await asyncio.sleep(ANSWERED)
        line.upstream.map(request(internal=CLIENT))
        await asyncio.sleep(5)
        line.servers(Server("c", (added,), Origin.CONFIGURED), *servers)
        await asyncio.sleep(ROUND_INTERVAL)
        assert (line.upstream.address, line.upstream.usable, len(carrier.maps)) == (added, True, 1)


@virtual
async def test_an_error_from_an_address_that_was_left_says_nothing_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        line.servers(Server("isp", (IPv4Address(f"{NET}.77"), SERVER, OTHER_SERVER), Origin.CONFIGURED))
        for n in range(4):  # every other one is refused at once, by what was heard of the one before
            line.upstream.map(request(str(n), 8080 + n))
        assert line.upstream.counters["refused"] > 1
        await asyncio.sleep(1)
        assert (line.upstream.address, line.carriers[1].sent) == (SERVER, [])


# -- what is shown -----------------------------------------------------------------------------------------------


@virtual
async def test_a_route_that_returns_after_all_have_failed_is_shown_to_be_asked_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        for carrier in line.carriers:
            carrier.script.silent = True
        line.servers(BOTH)
        await asyncio.sleep(2 * GIVEN_UP)
        line.down = True
        line.servers(BOTH)
        shown = [(line.upstream.state, line.upstream.reason)]
        line.down = False
        line.servers(BOTH)
        shown.append((line.upstream.state, line.upstream.reason))
        assert shown == [(Activation.NO_WAN, "no route"), (Activation.PROBING, f"asking {SERVER}")]
        await asyncio.sleep(2 * GIVEN_UP)
        assert line.upstream.state is Activation.LOST
        assert line.upstream.reason != "no route"


@virtual
async def test_the_round_of_a_route_that_went_away_does_not_disturb_what_is_asked_when_it_returns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        for carrier in line.carriers:
            carrier.script.silent = True
        line.servers(BOTH)
        await asyncio.sleep(2 * GIVEN_UP)
        line.down = True
        line.servers(BOTH)
        await asyncio.sleep(ROUND_INTERVAL - GIVEN_UP / 2)
        line.down = False
        line.servers(BOTH)
        peer = line.upstream.peer
        await asyncio.sleep(GIVEN_UP - 10)
        assert line.upstream.peer == peer


@virtual
async def test_iwf_021_a_round_after_one_in_which_all_refused_begins_another_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch, external_ip_probe="startup") as line:
        for carrier in line.carriers:
            carrier.script.refuse = {THIRD_PARTY: (ResultCode.UNSUPP_OPTION, 1800)}
        line.servers(Server("a", (SERVER,), Origin.CONFIGURED), Server("b", (OTHER_SERVER,), Origin.CONFIGURED))
        await asyncio.sleep(ANSWERED)
        line.upstream.map(request(internal=CLIENT))
        await asyncio.sleep(5)
        line.upstream.unmap("1")
        line.carrier.script.refuse = {}
        await asyncio.sleep(ROUND_INTERVAL + 10)
        assert (line.upstream.address, line.upstream.state, line.upstream.usable) == (SERVER, Activation.ACTIVE, True)
        assert (line.upstream.up_since, line.upstream.external_address) == (line.upstream.state_since, EXTERNAL)


@virtual
async def test_who_may_send_to_us_is_told_when_another_address_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        line.carrier.script.silent = True
        line.servers(BOTH)
        await asyncio.sleep(GIVEN_UP)
        assert line.peers == [line.upstream.peer]
        assert line.upstream.peer is not None
        assert line.upstream.peer.server == OTHER_SERVER
