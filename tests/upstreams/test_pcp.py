# SPDX-License-Identifier: Apache-2.0
"""The carrier as an upstream: the real engine over real datagrams on the loopback device, in virtual time."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

import pytest

from igdpcp.iwf.interfaces import AddressChanged, Granted, Lost, Refused, Released, StateChanged
from igdpcp.model import Activation, Endpoint, Protocol
from tests.support.pcp_script import DESCRIPTION, FILTER, PREFER_FAILURE, THIRD_PARTY
from tests.support.virtual_time import virtual
from tests.upstreams.line import ANSWERED, EXTERNAL, NONCE, OTHER, OTHER_SERVER, SERVER, Carrier, Line, granted, request


@virtual
async def test_iwf_002_080_a_wish_becomes_a_map_request_and_its_answer_a_grant(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.upstream.map(request(description="abc", remote_hosts=(IPv4Address("198.51.100.9"),)))
        await asyncio.sleep(ANSWERED)
        (sent,) = line.carrier.maps
        assert (sent.internal_port, sent.suggested_port) == (8080, 8080)
        assert {PREFER_FAILURE, FILTER, DESCRIPTION} <= set(sent.codes)
        assert THIRD_PARTY not in sent.codes
        (granted,) = line.of(Granted)
        assert granted.grant.external == Endpoint(EXTERNAL, 8080)
        assert granted.grant.nonce == sent.nonce
        assert line.upstream.external_address == EXTERNAL


@virtual
async def test_iwf_051_a_clients_address_is_asked_for_as_a_third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch, str(SERVER)) as line:
        await line.up(router=None)
        line.upstream.map(request(internal=Endpoint(IPv4Address("192.168.1.50"), 81)))
        await asyncio.sleep(ANSWERED)
        (sent,) = line.carrier.maps
        assert (sent.internal_port, dict(sent.options)[THIRD_PARTY][-4:]) == (81, bytes([192, 168, 1, 50]))
        assert line.upstream.trusted


@virtual
async def test_iwf_003_nothing_is_sent_without_a_wan_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        for router in (SERVER, None):
            await line.up(router=router, own=None)
            line.upstream.map(request())
            line.upstream.unmap("1")
        await asyncio.sleep(60)
        assert line.carrier.sent == []
        assert line.upstream.state is Activation.NO_WAN
        assert line.of(Released) == [Released("1", 0), Released("1", 0)]


@virtual
async def test_iwf_004_a_default_router_that_never_answers_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        line.carrier.script.silent = True
        await line.up()
        assert line.upstream.state is Activation.PROBING
        await asyncio.sleep(60)
        assert line.upstream.state is Activation.NO_SERVER
        line.carrier.script.silent = False
        await asyncio.sleep(1000)
        assert line.upstream.state is Activation.ACTIVE


@virtual
async def test_iwf_005_a_configured_server_that_never_answers_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch, str(SERVER)) as line:
        line.carrier.script.silent = True
        await line.up(router=None)
        await asyncio.sleep(60)
        assert line.upstream.state is Activation.LOST


@virtual
async def test_iwf_021_the_session_begins_with_the_first_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        assert line.upstream.up_since is None
        await line.up()
        assert line.upstream.up_since is not None
        await line.up(own=None)
        assert line.upstream.up_since is None


@virtual
async def test_iwf_025_026_the_external_address_is_probed_once_and_the_probe_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch, external_ip_probe="startup") as line:
        await line.up()
        (probe,) = line.carrier.maps
        assert (probe.internal_port, probe.octets[36]) == (9, Protocol.UDP)
        assert probe.lifetime <= 120
        assert line.of(AddressChanged) == [AddressChanged(EXTERNAL)]
        line.upstream.map(request())
        await asyncio.sleep(10)
        assert [(sent.internal_port, sent.lifetime == 0) for sent in line.carrier.maps[1:]] == [
            (8080, False), (9, True),
        ]  # fmt: skip
        assert line.of(Released) == []


@virtual
async def test_iwf_025_a_refused_probe_hurts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch, external_ip_probe="startup") as line:
        line.carrier.script.refuse = {0: (10, 30)}
        await line.up()
        line.carrier.script.refuse = {}
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        assert len(line.of(Granted)) == 1
        assert line.of(Refused) == []


@virtual
async def test_iwf_084_a_refusal_is_passed_on_with_its_result_and_lifetime(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.carrier.script.refuse = {0: (11, 600)}
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        assert line.of(Refused) == [Refused("1", 11, 600)]


@virtual
async def test_iwf_132_a_deletion_names_the_mapping_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.upstream.map(request(description="abc"))
        await asyncio.sleep(ANSWERED)
        assert line.upstream.grants("1")
        line.upstream.unmap("1")
        await asyncio.sleep(ANSWERED)
        create, delete = line.carrier.maps
        assert (delete.lifetime, delete.internal_port, delete.suggested_port) == (0, 8080, 0)
        assert (delete.nonce, delete.codes) == (create.nonce, [])
        assert line.of(Released) == [Released("1", 0)]
        assert not line.upstream.grants("1")


@virtual
async def test_iwf_043_what_an_earlier_process_left_is_deleted_under_its_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.upstream.give_back(request(grant=granted(line.upstream.identity)))
        line.upstream.give_back(request("2", 8081))
        await asyncio.sleep(1)
        assert [(sent.lifetime, sent.internal_port) for sent in line.carrier.maps] == [(0, 8080), (0, 8081)]
        assert line.carrier.maps[0].nonce == NONCE
        assert line.of(Released) == [Released("1", 0), Released("2", 0)]


@virtual
async def test_iwf_163_short_leases_that_are_refreshed_cost_no_packets_but_renewals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        loop = asyncio.get_running_loop()
        for _ in range(3):
            line.upstream.map(request(until=loop.time() + 60))
            await asyncio.sleep(20)
        assert len(line.carrier.maps) == 1
        assert line.of(Lost) == []


@virtual
async def test_iwf_192_another_wan_address_asks_for_every_mapping_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        await line.up(own=OTHER)
        await asyncio.sleep(1)
        assert line.carrier.maps[-1].internal_port == 8080
        assert line.carrier.maps[-1].codes == [PREFER_FAILURE]
        assert len(line.of(Granted)) == 2


@virtual
async def test_another_default_router_and_address_ask_that_router_for_ourselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        await line.up(router=OTHER_SERVER, own=OTHER)
        await asyncio.sleep(1)
        (sent,) = line.carriers[1].maps
        assert sent.codes == [PREFER_FAILURE]
        assert sent.octets[20:24] == OTHER.packed
        line.upstream.unmap("1")
        await asyncio.sleep(1)
        assert line.of(Released) == [Released("1", 0)]


@virtual
async def test_a_deletion_on_its_way_to_a_router_that_is_gone_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        line.carrier.script.silent = True
        line.upstream.unmap("1")
        await asyncio.sleep(1)
        assert line.of(Released) == []
        await line.up(router=OTHER_SERVER)
        assert [event.id for event in line.of(Released)] == ["1"]


@virtual
async def test_a_socket_that_cannot_be_made_pauses_and_the_next_change_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        line.down = True
        line.upstream.map(request())
        await line.up()
        assert (line.upstream.state, line.upstream.reason) == (Activation.NO_WAN, "no route")
        line.down = False
        await line.up()
        await asyncio.sleep(1)
        assert len(line.of(Granted)) == 1


@virtual
async def test_a_port_that_nobody_listens_on_is_counted_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        line.carrier.close()
        await line.up()
        await asyncio.sleep(4)
        assert line.upstream.counters["refused"] > 0
        line.carriers[0] = Carrier(SERVER)
        await asyncio.sleep(1000)
        assert line.upstream.state is Activation.ACTIVE


@virtual
async def test_nonsense_from_the_server_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        line.carrier.script.scripted = lambda sent: [b"", b"\0" * 24, bytes(range(256)) * 8]
        await line.up()
        line.upstream.map(request())
        await asyncio.sleep(2)
        assert line.of(Granted) == []
        line.carrier.script.scripted = None
        await asyncio.sleep(10)
        assert len(line.of(Granted)) == 1


@virtual
async def test_a_silent_server_is_lost_and_its_return_asks_for_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.carrier.script.silent = True
        line.upstream.map(request())
        await asyncio.sleep(100)
        assert line.of(StateChanged)[-1] == StateChanged(Activation.LOST)
        line.carrier.script.silent = False
        await asyncio.sleep(1000)
        assert line.of(StateChanged)[-1] == StateChanged(Activation.ACTIVE)
        assert len(line.of(Granted)) >= 1


@virtual
async def test_what_is_wanted_again_during_its_deletion_is_not_released(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        line.carrier.script.silent = True
        line.upstream.unmap("1")
        await asyncio.sleep(1)
        line.upstream.map(request())
        await line.up(router=OTHER_SERVER)
        await asyncio.sleep(1)
        assert line.of(Released) == []
        assert len(line.of(Granted)) == 2


@virtual
async def test_what_is_asked_for_behind_the_end_sets_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    with Line(monkeypatch) as line:
        await line.up()
        line.upstream.map(request())
        await asyncio.sleep(ANSWERED)
        line.upstream.close()
        line.upstream.map(request(id="2"))
        line.upstream.unmap("1")
        scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        assert [handle for handle in scheduled if not handle.cancelled()] == []
