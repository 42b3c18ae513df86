# SPDX-License-Identifier: Apache-2.0
"""Ends of the process: stop, kill at any moment, power cut; what the next start finds and does."""

from __future__ import annotations

import asyncio
import json
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igdpcp.iwf import upstream_leg
from igdpcp.iwf.interfaces import Released
from igdpcp.model import Activation, Endpoint, MappingRequest, MappingState, Owner, Protocol, Requester
from igdpcp.pcp.message import ResultCode
from tests.support.hall import WAN, A, B, Hall, settle
from tests.support.virtual_time import virtual


async def _started(directory: Path, **options: object) -> Hall:
    hall = Hall(directory, **options)  # type: ignore[arg-type]
    await hall.restart.restore()
    return hall


@virtual
async def test_iwf_042_043_047_after_a_kill_all_entries_are_listed_and_asked_for_as_they_were(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    for n in range(20):
        await first.add(8080 + n)
    first.kill()
    second = await _started(tmp_path)
    assert await second.ports() == [8080 + n for n in range(20)]
    assert len(second.ruleset.rules) == 20
    await asyncio.sleep(10)
    assert [asked.external_port for asked in second.carrier.asked] == [8080 + n for n in range(20)]
    assert {asked.grant and asked.grant.nonce for asked in second.carrier.asked} == {b"n"}
    assert {asked.internal for asked in second.carrier.asked} == {asked.internal for asked in first.carrier.asked}


@virtual
async def test_iwf_042_a_kill_during_the_start_loses_nothing(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    await first.add(8080)
    await first.add(8081)
    first.kill()
    second = Hall(tmp_path)
    left = second.journal.load().mappings
    second.lifecycle.adopt(left[0])
    second.kill()
    third = await _started(tmp_path)
    assert await third.ports() == [8080, 8081]


@virtual
async def test_iwf_042_what_waited_at_a_reload_does_not_write_over_what_came_after_it(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    first.carrier.silent = True
    waiting = asyncio.create_task(first.add(8080))
    await settle()
    await first.stop()
    assert (await waiting).code == 501
    second = await _started(tmp_path)
    await second.add(8081)
    await asyncio.sleep(60)
    second.kill()
    third = await _started(tmp_path)
    assert await third.ports() == [8081]


@virtual
async def test_iwf_042_after_a_reboot_the_flash_copy_serves(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    await first.add(8080)
    await first.stop()
    (tmp_path / "run" / "journal").unlink()
    second = await _started(tmp_path)
    assert await second.ports() == [8080]
    assert 3590 <= int((await second.specific(8080))["LeaseDuration"]) <= 3600


@virtual
async def test_iwf_042_an_entry_whose_grant_ran_out_meanwhile_is_asked_for_again(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    first.carrier.longest = 120
    await first.add(8080)
    first.kill()
    await asyncio.sleep(200)
    second = Hall(tmp_path)
    second.carrier.silent = True
    await second.restart.restore()
    await settle()
    assert (await second.listed(), second.ruleset.rules) == ([], {})
    second.carrier.grant(second.only.id)
    await settle()
    assert await second.ports() == [8080]


@virtual
async def test_iwf_042_an_adopted_entry_that_the_carrier_does_not_renew_ends(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    first.carrier.longest = 120
    await first.add(8080)
    first.kill()
    second = Hall(tmp_path)
    second.carrier.silent = True
    await second.restart.restore()
    await asyncio.sleep(60)
    assert await second.ports() == [8080]
    await asyncio.sleep(61)
    assert (await second.listed(), second.ruleset.rules) == ([], {})


@virtual
async def test_iwf_042_196_an_entry_that_waits_for_another_port_goes_on_waiting(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    await first.add(8080, any_port=True)
    first.carrier.silent = True
    first.carrier.refuse(first.only.id, ResultCode.CANNOT_PROVIDE_EXTERNAL)
    await settle()
    waiting = first.only
    await first.stop()
    second = Hall(tmp_path)
    second.carrier.answer = lambda request: second.carrier.grant(request.id, 40001)
    await second.restart.restore()
    await settle()
    assert ((await second.ports()), second.only.id, second.carrier.given_back) == ([40001], waiting.id, [])
    assert (second.carrier.asked[0].external_port, second.carrier.asked[0].exact) == (0, False)


@virtual
async def test_a_lease_that_ended_meanwhile_is_given_back(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    await first.add(8080, LeaseDuration=100)
    first.kill()
    await asyncio.sleep(101)
    second = await _started(tmp_path)
    assert len(second.table) == 0
    assert [request.internal for request in second.carrier.given_back] == [Endpoint(WAN, 8080)]


@virtual
async def test_a_new_mapping_never_gets_the_id_of_one_that_is_being_given_back(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    first.carrier.silent = True
    adding = asyncio.ensure_future(first.add(8080))
    await settle()
    first.kill()
    adding.cancel()
    second = Hall(tmp_path)
    second.carrier.releases = None
    await second.restart.restore()
    await second.add(9090)
    assert second.only.id != second.carrier.given_back[0].id


@virtual
async def test_what_was_deleted_is_not_adopted_but_told_again_until_confirmed(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    await first.add(8080)
    first.carrier.releases = None
    await first.delete(8080)
    first.kill()
    for releases in (None, 0):
        hall = Hall(tmp_path)
        hall.carrier.releases = releases
        await hall.restart.restore()
        await settle()
        assert await hall.listed() == []
        assert [request.external_port for request in hall.carrier.given_back] == [8080]
        hall.kill()
    assert (await _started(tmp_path)).carrier.given_back == []


@virtual
async def test_a_deletion_that_an_adopted_entry_shares_its_port_with_is_not_told(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    await first.add(8080)
    first.carrier.releases = None
    await first.delete(8080)
    await first.add(8080)
    first.kill()
    second = await _started(tmp_path)
    assert second.carrier.given_back == []
    assert await second.ports() == [8080]
    second.kill()
    assert [mapping.id for mapping in Hall(tmp_path).journal.load().mappings] == [second.only.id]


@virtual
async def test_two_entries_of_one_port_are_one_adopted_and_one_given_back(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    await first.add(8080)
    await first.add(8081)
    run = tmp_path / "run" / "journal"
    run.write_text(run.read_text().replace('"external_port":8081', '"external_port":8080'))
    first.kill()
    second = await _started(tmp_path)
    assert await second.ports() == [8080]
    assert [request.internal.port for request in second.carrier.given_back] == [8081]


def _grown(directory: Path) -> bytes:
    """The run-time journal of a short life: created, deleted, created again and refreshed, one on its way."""
    written: list[bytes] = []

    @virtual
    async def live() -> None:
        hall = Hall(directory)
        await hall.add(8080)
        await hall.add(8081, any_port=True, InternalPort=9000)
        await hall.delete(8080)
        await hall.add(8080, LeaseDuration=0)
        await hall.add(8080, PortMappingDescription="Größe")
        hall.carrier.silent = True
        adding = asyncio.ensure_future(hall.add(8085))
        await settle()
        written.append((directory / "run" / "journal").read_bytes())
        hall.kill()
        adding.cancel()

    live()
    return written[0]


def test_a_kill_after_any_byte_of_the_journal_leaves_everything_adopted_or_given_back(tmp_path: Path) -> None:
    octets = _grown(tmp_path / "first")
    lines = octets.splitlines(keepends=True)
    ends = [sum(map(len, lines[:n])) for n in range(1, len(lines) + 1)]
    cuts = set(ends) | {end - 1 for end in ends[1:]} | set(range(ends[-2], ends[-1] + 1))

    @virtual
    async def check() -> None:
        for cut in sorted(cuts):
            entries = octets[:cut].count(b"\n") - 1
            await _check_start(tmp_path / str(cut), octets[:cut], entries)

    check()


async def _check_start(directory: Path, octets: bytes, entries: int) -> None:
    (directory / "run").mkdir(parents=True)
    (directory / "run" / "journal").write_bytes(octets)
    hall = Hall(directory)
    known = {mapping.id for mapping in hall.journal.load().mappings}
    await hall.restart.restore()
    await asyncio.sleep(0.5)
    adopted = {mapping.id for mapping in hall.table}
    given_back = {request.id for request in hall.carrier.given_back}
    assert adopted | given_back == known
    assert bool(known) is (entries > 0)
    assert {asked.id for asked in hall.carrier.asked} == adopted
    assert set(hall.ruleset.rules) == adopted
    assert all(mapping.state is MappingState.ACTIVE for mapping in hall.table)
    await hall.stop()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]\n", "{}\n", '{"igdpcp":1}\n', '{"igdpcp":1,"boot":"","at":0}', '{"igdpcp":1,"boot":"x","at":0}\n5\n',
     '{"igdpcp":1,"boot":"x","at":0}\n{"id":"1"}\n', '{"igdpcp":9}\n', "\udcff", '{"igdpcp":1,"boot":"x","at":"?"}\n'],
)  # fmt: skip
def test_iwf_044_a_damaged_journal_is_set_aside_and_the_start_is_clean(tmp_path: Path, text: str) -> None:
    @virtual
    async def run() -> None:
        for name in ("run/journal", "state/mappings"):
            path = tmp_path / name
            path.parent.mkdir()
            path.write_bytes(text.encode(errors="surrogateescape"))
        hall = await _started(tmp_path)
        assert await hall.listed() == []
        assert (await hall.add(8080)).code == 0
        await hall.stop()

    run()


@virtual
async def test_iwf_044_without_any_storage_the_start_is_clean(tmp_path: Path) -> None:
    hall = await _started(tmp_path)
    assert await hall.listed() == []
    assert (await hall.add(8080)).code == 0


@virtual
async def test_a_stop_leaves_rules_and_grants_to_the_next_start(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    await first.add(8080)
    await first.stop()
    assert (len(first.ruleset.rules), first.carrier.returned) == (1, [])


@virtual
async def test_a_mapping_made_by_the_router_alone_goes_upstream_after_a_restart(tmp_path: Path) -> None:
    first = Hall(tmp_path, carrier=False)
    await first.add(8080)
    await first.stop()
    second = await _started(tmp_path)
    await settle()
    assert second.carrier.asked[0].grant is None
    assert second.only_rule.external.address != WAN


@virtual
async def test_a_router_that_does_nat_no_more_gives_back_what_was_made_with_it(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    await first.add(8080)
    await first.stop()
    second = await _started(tmp_path, routed=True)
    assert [request.internal for request in second.carrier.given_back] == [Endpoint(WAN, 8080)]
    assert (await second.listed(), second.ruleset.rules) == ([], {})


@virtual
async def test_an_adopted_entry_is_asked_for_by_its_nonce_and_can_be_deleted_at_once(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    for n in range(50):
        await first.add(8080 + n)
    first.kill()
    second = await _started(tmp_path)
    assert (await second.delete(8129)).code == 0
    (asked,) = (request for request in second.carrier.asked if request.external_port == 8129)
    assert asked.grant
    assert asked.grant.nonce == b"n"
    assert second.carrier.returned == [asked.id]


@virtual
async def test_a_start_without_a_wan_keeps_the_entries_for_when_it_comes(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    await first.add(8080)
    first.kill()
    second = Hall(tmp_path)
    second.router.wan_address, second.carrier.state, second.carrier.silent = None, Activation.NO_WAN, True
    await second.restart.restore()
    await asyncio.sleep(5)
    assert second.ruleset.rules == {}
    second.router.wan_address = IPv4Address("100.64.12.34")
    second.lifecycle.wan_changed()
    await settle()
    assert second.only_rule.client.address == IPv4Address(A)


@virtual
async def test_what_one_host_calls_its_mapping_costs_no_other_host_its_own(tmp_path: Path) -> None:
    first = Hall(tmp_path, agent="x\x85y")
    await first.add(8080)
    for n, character in enumerate("\u2028\u2029\x85\x1c\r\n"):
        host = Requester(IPv4Address(B), Owner.UPNP1, f"x{character}y")
        request = MappingRequest(
            host, Protocol.TCP, 9090 + n, Endpoint(IPv4Address(B), 9000), None, 0, f"a{character}b"
        )
        await first.interworking.add_port_mapping(request)
    first.kill()
    second = await _started(tmp_path)
    assert (await second.ports(), len(second.ruleset.rules)) == ([8080, *range(9090, 9096)], 7)
    assert second.table.find(Protocol.TCP, 9090).request.description == "a\u2028b"  # type: ignore[union-attr]
    await second.stop()
    (tmp_path / "run" / "journal").unlink()
    assert len(await (await _started(tmp_path)).ports()) == 7


@pytest.mark.parametrize(
    ("field", "value"),
    [("client", "nobody"), ("client", 1), ("id", 7), ("serial", "7"), ("wanted", []), ("wan_port", {}), ("lease", -1),
     ("external_port", 65536), ("client_port", True), ("grant", []), ("grant", {}), ("agent", None)],
)  # fmt: skip
def test_an_entry_that_cannot_be_read_costs_no_other_one(tmp_path: Path, field: str, value: object) -> None:
    @virtual
    async def test() -> None:
        first = Hall(tmp_path)
        for n in range(3):
            await first.add(8080 + n)
        first.kill()
        run = tmp_path / "run" / "journal"
        lines = [json.loads(text) for text in run.read_text().splitlines()]
        changed = [line | {field: value} if line.get("wanted") == 8081 else line for line in lines]
        run.write_text("".join(json.dumps(line) + "\n" for line in changed))
        second = await _started(tmp_path)
        assert await second.ports() == [8080, 8082]

    test()


@virtual
async def test_what_the_carrier_could_not_be_told_is_told_at_the_next_start(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    await first.add(8080)
    await first.add(8081, LeaseDuration=60, InternalPort=8001)
    first.carrier.releases = ResultCode.NETWORK_FAILURE
    assert (await first.delete(8080)).code == 0
    await asyncio.sleep(61)
    assert len(first.table) == 0
    await first.stop()
    second = await _started(tmp_path)
    assert [left.external_port for left in second.carrier.given_back] == [8080, 8081]


@virtual
async def test_what_the_carrier_is_told_after_all_is_not_told_again_at_the_next_start(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    await first.add(8080)
    await first.add(8081, LeaseDuration=60, InternalPort=8001)
    first.carrier.releases = ResultCode.NETWORK_FAILURE
    assert (await first.delete(8080)).code == 0
    await asyncio.sleep(61)
    for id in first.carrier.returned:
        first.carrier.emit(Released(id, 0))
    await settle()
    await first.stop()
    assert (await _started(tmp_path)).carrier.given_back == []


@virtual
async def test_of_what_the_carrier_could_not_be_told_only_so_much_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_leg, "UNTOLD_MAX", 2)
    first = Hall(tmp_path)
    first.carrier.releases = ResultCode.NETWORK_FAILURE
    for port in (8080, 8081, 8082):
        await first.add(port)
        assert (await first.delete(port)).code == 0
    await first.stop()
    second = await _started(tmp_path)
    assert [left.external_port for left in second.carrier.given_back] == [8081, 8082]


@virtual
async def test_iwf_052_the_upstream_is_asked_for_the_routers_own_address_whichever_the_server_sees(
    tmp_path: Path,
) -> None:
    hall = Hall(tmp_path)
    hall.carrier.own = lambda: None
    await hall.add(8080)
    assert hall.carrier.asked[0].internal == 8080
