# SPDX-License-Identifier: Apache-2.0
"""Hosts that ask in PCP and NAT-PMP share the table with control points: one mapping of a port for all of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from igdpcp.config import StaticMappingConfig
from igdpcp.errors import Reason, Refusal, RulesetError
from igdpcp.iwf import translate
from igdpcp.iwf.internal_tuples import FOR_EVER, Opened
from igdpcp.model import Activation, Endpoint, MappingRequest, MappingState, Owner, Protocol, Requester
from igdpcp.pcp.message import ResultCode
from tests.support.hall import CARRIER, A, B, Hall, settle
from tests.support.virtual_time import virtual

NONCE, OTHER_NONCE = b"n" * 12, b"o" * 12
HOME = IPv4Address("192.168.1.10")
STATIC = StaticMappingConfig(
    name="web", client=Endpoint(IPv4Address(A), 8000), external_port=8080, protocols=(Protocol.TCP,)
)


def request(port: int = 8000, suggested: int = 8080, host: str = A, *, exact: bool = False, lease: int = 3600,
            nonce: bytes = NONCE, owner: Owner = Owner.PCP) -> MappingRequest:  # fmt: skip
    """A MAP of tcp ``port``."""
    address = IPv4Address(host)
    return MappingRequest(
        requester=Requester(address, owner),
        protocol=Protocol.TCP,
        external_port=suggested,
        client=Endpoint(address, port),
        lease=lease,
        description="pcp",
        any_port=not exact,
        nonce=nonce,
    )


async def unmap(hall: Hall, port: int = 8000, host: str = A, *, nonce: bytes = NONCE, owner: Owner = Owner.PCP) -> None:
    await hall.tuples.unmap(Requester(IPv4Address(host), owner), Protocol.TCP, port, nonce)


async def refused(work: object) -> tuple[int, int]:
    """What a PCP host is told."""
    with pytest.raises(Refusal) as caught:
        await work  # type: ignore[misc]
    return translate.pcp_refusal(caught.value)


def held_for_us(hall: Hall) -> int:
    """At the carrier."""
    return len(hall.carrier.wanted)


def test_iwf_013_a_hosts_map_for_what_a_control_point_has_open_shares_its_mapping(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        assert (await hall.add(6881, InternalPort=6881)).code == 0
        asked = len(hall.carrier.asked)
        opened = await hall.tuples.map(request(6881, 0))
        assert opened == Opened(Endpoint(CARRIER, 6881), 3600)
        assert {each.id for each in hall.carrier.asked} == {hall.only.id}
        assert held_for_us(hall) == 1
        assert len(hall.carrier.asked) <= asked + 1  # perhaps its lease was to be longer
        assert await hall.ports() == [6881]

    run()


def test_iwf_013_a_shared_mapping_is_deleted_upstream_when_the_last_one_leaves(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        for first in "control point", "host":
            hall = Hall(tmp_path / first)
            await hall.add()
            await hall.tuples.map(request())
            if first == "host":
                await unmap(hall)
                assert [row["PortMappingDescription"] for row in await hall.listed()] == ["test"]
            else:
                assert (await hall.delete()).code == 0
                assert [row["PortMappingDescription"] for row in await hall.listed()] == ["pcp"]
            assert held_for_us(hall) == 1
            assert hall.only_rule.client == Endpoint(IPv4Address(A), 8000)
            if first == "host":
                assert (await hall.delete()).code == 0
            else:
                await unmap(hall)
            await settle()
            assert held_for_us(hall) == 0
            assert hall.ruleset.rules == {}
            assert list(hall.table) == []

    run()


def test_iwf_013_a_control_point_finds_what_a_host_has_open_and_shares_it(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        await hall.tuples.map(request())
        assert (await hall.add(LeaseDuration=600)).code == 0
        assert held_for_us(hall) == 1
        assert [row["PortMappingDescription"] for row in await hall.listed()] == ["test"]
        await asyncio.sleep(601)
        assert [row["PortMappingDescription"] for row in await hall.listed()] == ["pcp"]
        await asyncio.sleep(3000)
        assert await hall.listed() == []
        assert held_for_us(hall) == 0

    run()


def test_iwf_013_the_lease_of_a_shared_mapping_is_the_longest_of_both(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        await hall.add(LeaseDuration=7200)
        await hall.tuples.map(request(lease=600))
        await asyncio.sleep(601)
        assert hall.only.tuple_owner is None
        assert await hall.ports() == [8080]
        with pytest.raises(Refusal):  # whoever comes next is its owner
            await hall.tuples.map(request(suggested=9000, exact=True, nonce=OTHER_NONCE))
        await asyncio.sleep(6600)
        assert list(hall.table) == []

    run()


def test_iwf_013_what_a_host_asks_for_first_is_asked_upstream_with_its_own_nonce(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        assert (await hall.tuples.map(request())).external == Endpoint(CARRIER, 8080)
        assert hall.carrier.asked[0].nonce == NONCE
        assert not hall.carrier.asked[0].exact
        await hall.add(8081, InternalPort=8001)
        assert hall.carrier.asked[-1].nonce == b""

    run()


def test_iwf_013_another_nonce_may_change_nothing(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        await hall.add()
        await hall.tuples.map(request())
        told = await refused(hall.tuples.map(request(nonce=OTHER_NONCE)))
        assert told == (ResultCode.NOT_AUTHORIZED, 3600)  # as long as that mapping
        assert (await refused(unmap(hall, nonce=OTHER_NONCE)))[0] == ResultCode.NOT_AUTHORIZED
        assert hall.only.tuple_owner is not None
        await hall.delete()  # then it is the host's alone
        assert (await refused(hall.tuples.map(request(nonce=OTHER_NONCE))))[0] == ResultCode.NOT_AUTHORIZED
        assert (await hall.tuples.map(request())).external.port == 8080
        without = {"nonce": b"", "owner": Owner.NATPMP}
        assert (await refused(hall.tuples.map(request(**without))))[0] == ResultCode.NOT_AUTHORIZED
        assert (await refused(unmap(hall, 0, **without)))[0] == ResultCode.NOT_AUTHORIZED
        assert await hall.ports() == [8080]

    run()


def test_what_was_asked_for_in_nat_pmp_may_go_on_in_pcp(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        await hall.tuples.map(request(nonce=b"", owner=Owner.NATPMP))
        await hall.tuples.map(request())
        assert (await refused(hall.tuples.map(request(nonce=OTHER_NONCE))))[0] == ResultCode.NOT_AUTHORIZED
        await unmap(hall)
        assert held_for_us(hall) == 0

    run()


def test_a_wish_for_another_port_changes_nothing_of_what_is_open(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        await hall.tuples.map(request())
        assert (await hall.tuples.map(request(suggested=9000))).external.port == 8080
        told = await refused(hall.tuples.map(request(suggested=9000, exact=True)))
        assert told == (ResultCode.CANNOT_PROVIDE_EXTERNAL, 30)
        assert (await hall.tuples.map(request(exact=True))).external.port == 8080

    run()


def test_a_port_of_another_host_is_not_had_but_another_one_is(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        await hall.add(host=B)
        told = await refused(hall.tuples.map(request(exact=True)))
        assert told[0] == ResultCode.CANNOT_PROVIDE_EXTERNAL
        assert (await hall.tuples.map(request())).external.port not in (0, 8080)
        assert (await hall.add(8090, InternalPort=8001)).code == 0
        assert (await hall.tuples.map(request(8080, 8090, B))).external.port != 8090
        port = next(port for port in await hall.ports() if port not in (8080, 8090))
        assert (await hall.add(port, host=B)).code == 718

    run()


def test_a_control_point_cannot_lead_a_hosts_own_mapping_elsewhere(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        await hall.tuples.map(request())
        assert (await hall.add(InternalPort=8001)).code == 718
        await hall.add()
        assert (await hall.add(InternalPort=8001)).code == 718
        assert hall.only_rule.client.port == 8000

    run()


def test_several_at_once_for_one_port_make_one_mapping(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        hall.carrier.silent = True
        tasks = [
            asyncio.ensure_future(hall.tuples.map(request())),
            asyncio.ensure_future(hall.tuples.map(request())),
            asyncio.ensure_future(hall.add()),
        ]
        await settle()
        assert held_for_us(hall) <= 2
        for id in list(hall.carrier.wanted):
            hall.carrier.grant(id)
        hall.carrier.silent = False
        opened = await asyncio.gather(*tasks[:2])
        assert [each.external.port for each in opened] == [8080, 8080]
        assert (await tasks[2]).code == 0
        assert await hall.ports() == [8080]

    run()


def test_a_retrying_mapping_is_waited_for(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        await hall.add(LeaseDuration=0, any_port=True)
        mapping = hall.only
        hall.carrier.silent = True
        hall.carrier.refuse(mapping.id, ResultCode.CANNOT_PROVIDE_EXTERNAL)
        await settle()
        assert hall.only.state is MappingState.RETRYING
        task = asyncio.ensure_future(hall.tuples.map(request()))
        await settle()
        hall.carrier.silent = False
        hall.carrier.grant(mapping.id, 9999)
        assert (await task).external.port == 9999
        assert hall.only.id == mapping.id

    run()


def test_nat_pmp_ends_all_of_a_hosts_mappings_of_a_protocol_and_no_control_points(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        for port in 8000, 8001:
            await hall.tuples.map(request(port, port, nonce=b"", owner=Owner.NATPMP))
        await hall.add(8090, InternalPort=8090)
        await hall.tuples.map(request(8000, 8000, B, nonce=b"", owner=Owner.NATPMP))
        await unmap(hall, 0, nonce=b"", owner=Owner.NATPMP)
        left = {(str(each.request.client.address), each.request.client.port) for each in hall.table}
        assert left == {(A, 8090), (B, 8000)}
        await unmap(hall, 0, nonce=b"", owner=Owner.NATPMP)
        await unmap(hall, 4711)

    run()


def test_what_the_operator_holds_open_is_told_and_not_changed(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, static=[STATIC])
        hall.static.start()
        await settle()
        assert await hall.tuples.map(request(suggested=0)) == Opened(Endpoint(CARRIER, 8080), FOR_EVER)
        assert hall.only.tuple_owner is None
        assert (await refused(hall.tuples.map(request(suggested=1, exact=True))))[
            0
        ] == ResultCode.CANNOT_PROVIDE_EXTERNAL
        assert (await refused(unmap(hall)))[0] == ResultCode.NOT_AUTHORIZED
        assert held_for_us(hall) == 1
        hall.carrier.silent = True
        hall.carrier.lose(hall.only.id)
        await settle()
        assert (await refused(hall.tuples.map(request(suggested=0))))[0] == ResultCode.NETWORK_FAILURE

    run()


def test_lifetimes_are_cut_to_what_is_given(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        assert (await hall.tuples.map(request(lease=5))).lifetime == 120
        assert (await hall.tuples.map(request(lease=2**32 - 1))).lifetime == 86400
        assert (await hall.tuples.map(request(8001, 0, lease=5, nonce=b"", owner=Owner.NATPMP))).lifetime == 5

    run()


def test_without_a_public_address_nothing_is_opened(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, carrier=False)
        assert await refused(hall.tuples.map(request())) == (ResultCode.NETWORK_FAILURE, 30)
        assert hall.tuples.address(HOME) is None
        assert list(hall.table) == []
        hall.router.wan_address = IPv4Address("62.0.0.77")
        assert (await hall.tuples.map(request())).external == Endpoint(IPv4Address("62.0.0.77"), 8080)

    run()


def test_a_carrier_that_turns_out_to_be_silent_leaves_nothing_open(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        hall.carrier.state, hall.carrier.silent, hall.carrier.external_address = Activation.PROBING, True, None
        assert (await refused(hall.tuples.map(request())))[0] == ResultCode.NETWORK_FAILURE
        await settle()
        assert list(hall.table) == []
        assert hall.ruleset.rules == {}

    run()


def test_a_host_that_renews_while_the_carrier_is_lost_hears_how_long_its_grant_runs(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        hall.carrier.longest = 600
        assert (await hall.tuples.map(request())).lifetime == 3600
        hall.carrier.become(Activation.LOST)
        hall.carrier.silent = True
        await asyncio.sleep(100)
        assert (await hall.tuples.map(request())).lifetime == 500
        hall.carrier.lose(hall.only.id)
        await settle()
        assert await refused(hall.tuples.map(request())) == (ResultCode.NETWORK_FAILURE, 30)
        hall.carrier.become(Activation.ACTIVE)
        hall.carrier.grant(hall.only.id, 8080)
        await settle()
        assert (await hall.tuples.map(request())).external == Endpoint(CARRIER, 8080)

    run()


def test_the_carriers_refusals_are_the_hosts(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        for result, told in (
            (ResultCode.USER_EX_QUOTA, (ResultCode.USER_EX_QUOTA, 30)),
            (ResultCode.CANNOT_PROVIDE_EXTERNAL, (ResultCode.CANNOT_PROVIDE_EXTERNAL, 30)),
            (ResultCode.NOT_AUTHORIZED, (ResultCode.NOT_AUTHORIZED, 1800)),
            (ResultCode.UNSUPP_OPCODE, (ResultCode.NETWORK_FAILURE, 30)),
        ):
            hall.carrier.refuses(result)
            assert await refused(hall.tuples.map(request(exact=True))) == told
            await settle()
            assert list(hall.table) == []

    run()


def test_a_ruleset_that_fails_is_no_resources(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        hall.ruleset.fails = 1
        assert await refused(hall.tuples.map(request())) == (ResultCode.NO_RESOURCES, 30)
        await settle()
        assert held_for_us(hall) == 0

    run()


def test_aliases_are_for_control_points_only(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, port_policy="alias")
        hall.carrier.answer = lambda asked: hall.carrier.grant(asked.id, 40001)
        assert (await hall.add()).code == 0
        assert await hall.ports() == [8080]
        assert (await hall.tuples.map(request())).external.port == 40001
        assert (await hall.tuples.map(request(suggested=40001, exact=True))).external.port == 40001
        assert (await refused(hall.tuples.map(request(exact=True))))[0] == ResultCode.CANNOT_PROVIDE_EXTERNAL

    run()


def test_a_mapping_for_one_remote_host_becomes_open_for_all_beside_it(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        await hall.add(RemoteHost="198.51.100.9")
        assert (await hall.tuples.map(request())).external.port == 8080
        assert hall.only_rule.remote_hosts == ()
        await unmap(hall)
        assert [str(host) for host in hall.only_rule.remote_hosts] == ["198.51.100.9"]
        assert held_for_us(hall) == 1

    run()


def test_quotas_count_a_shared_mapping_once(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, max_mappings_per_host=1)
        await hall.add()
        await hall.tuples.map(request())
        assert hall.table.held_by(IPv4Address(A)) == 1
        assert (await refused(hall.tuples.map(request(8001))))[0] == ResultCode.USER_EX_QUOTA
        await hall.delete()
        assert hall.table.held_by(IPv4Address(A)) == 1
        await unmap(hall)
        assert (await hall.tuples.map(request(8001))).external.port == 8080

    run()


def test_iwf_013_both_owners_are_there_after_a_restart(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        first = Hall(tmp_path)
        await first.add()
        await first.tuples.map(request())
        await first.tuples.map(request(8001, 8081))
        before = sorted((replace(each, grant=None) for each in first.table), key=lambda each: each.serial)
        first.kill()
        second = Hall(tmp_path)
        await second.restart.restore()
        after = sorted((replace(each, grant=None) for each in second.table), key=lambda each: each.serial)
        assert after == before
        assert (await refused(second.tuples.map(request(nonce=OTHER_NONCE))))[0] == ResultCode.NOT_AUTHORIZED
        await second.delete()
        assert sorted(await second.ports()) == [8080, 8081]
        assert held_for_us(second) == 2

    run()


def test_without_nat_a_hosts_port_has_one_mapping_for_all(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, routed=True)
        assert not hall.tuples.does_nat
        await hall.add()
        opened = await hall.tuples.map(request())
        assert opened.external.port == 8080
        assert held_for_us(hall) == 1
        await hall.delete()
        assert held_for_us(hall) == 1

    run()


def test_what_the_ruleset_raises_while_sharing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)

        async def fails(_: MappingRequest) -> None:
            raise RulesetError("no such table")

        monkeypatch.setattr(hall.interworking, "add_any_port_mapping", fails)
        with pytest.raises(Refusal) as caught:
            await hall.tuples.map(request())
        assert caught.value.reason is Reason.RULESET

    run()


def test_a_port_that_leads_to_another_port_of_the_host_is_not_its_to_share(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        await hall.add()
        told = await refused(hall.tuples.map(request(7000, 8080, exact=True)))
        assert told == (ResultCode.CANNOT_PROVIDE_EXTERNAL, 30)
        assert hall.only_rule.client.port == 8000
        assert hall.only.sharer is None
        assert (await hall.tuples.map(request(7000, 8080))).external.port != 8080

    run()


@pytest.mark.parametrize("late", [False, True])
def test_what_a_control_point_was_refused_is_not_opened_for_it_by_a_hosts_request(tmp_path: Path, late: bool) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        hall.carrier.silent = True
        assert (await hall.add(LeaseDuration=0)).code == 501
        if late:
            hall.carrier.grant(hall.only.id)
            await settle()
            assert hall.only.state is MappingState.HIDDEN
        hall.carrier.silent = False
        assert (await hall.tuples.map(request())).external.port == 8080
        assert hall.only.sharer is None
        await unmap(hall)
        await settle()
        assert list(hall.table) == []

    run()


def test_what_nobody_waits_for_is_given_back_for_a_host_that_wants_only_another_port(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        hall.carrier.silent = True
        assert (await hall.add()).code == 501
        hall.carrier.silent = False
        assert (await hall.tuples.map(request(suggested=9000, exact=True))).external.port == 9000
        assert [each.external_port for each in hall.table] == [9000]

    run()


def test_a_lifetime_is_what_is_left_of_the_lease_when_the_carrier_was_slow(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        hall.carrier.silent = True
        mapping = asyncio.ensure_future(hall.tuples.map(request(lease=600)))
        await asyncio.sleep(3)
        hall.carrier.grant(hall.only.id)
        assert (await mapping).lifetime == 597
        await asyncio.sleep(598)
        assert list(hall.table) == []
        assert hall.tuples.broken_promises() == 0

    run()


def test_all_that_a_host_ends_at_once_is_told_upstream_at_once(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, unreachable_policy="error")
        without = {"nonce": b"", "owner": Owner.NATPMP}
        for port in range(8000, 8008):
            await hall.tuples.map(request(port, port, **without))
        hall.carrier.releases = None
        began = hall.loop.time()
        with pytest.raises(Refusal):
            await unmap(hall, 0, **without)
        assert hall.loop.time() - began < 5
        assert len(hall.carrier.returned) == 8

    run()


def test_a_deletion_that_fails_is_told_to_whoever_asks_for_it_again(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, unreachable_policy="error")
        await hall.tuples.map(request())
        hall.carrier.releases = None
        outcomes = await asyncio.gather(unmap(hall), unmap(hall), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Refusal, Refusal]
        assert hall.only.state is MappingState.ACTIVE

    run()


def test_of_two_nonces_at_once_one_owns_the_mapping(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        await hall.add(RemoteHost="198.51.100.9")
        hall.ruleset.slow = 0.01
        both = (hall.tuples.map(request()), hall.tuples.map(request(nonce=OTHER_NONCE)))
        first, second = await asyncio.gather(*both, return_exceptions=True)
        assert isinstance(first, Opened)
        assert isinstance(second, Refusal)
        assert translate.pcp_refusal(second)[0] == ResultCode.NOT_AUTHORIZED
        assert (await hall.tuples.map(request())).external == first.external

    run()


def test_pcps_own_ports_are_nobodys(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        for port in 5350, 5351:
            assert (await hall.add(port, Protocol="UDP")).code == 718
            assert (await hall.add(port)).code == 0
            udp = replace(request(suggested=port), protocol=Protocol.UDP)
            assert (await hall.tuples.map(udp)).external.port not in (0, 5350, 5351)
            assert (await refused(hall.tuples.map(replace(udp, client=Endpoint(IPv4Address(A), 9), any_port=False))))[
                0
            ] == ResultCode.NOT_AUTHORIZED

    run()


def test_what_the_operator_holds_open_for_some_is_not_told_as_open_to_all(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, static=[replace(STATIC, remote_host=IPv4Address("198.51.100.9"))])
        hall.static.start()
        await settle()
        assert (await refused(hall.tuples.map(request())))[0] == ResultCode.NOT_AUTHORIZED

    run()


def test_what_the_router_opened_alone_is_not_shared_without_a_public_address(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, carrier=False)
        assert (await hall.add()).code == 0
        assert (await refused(hall.tuples.map(request())))[0] == ResultCode.NETWORK_FAILURE
        assert hall.only.sharer is None

    run()


def test_hosts_ask_and_leave_no_faster_than_control_points(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, adds_per_second=1)
        for _ in range(10):
            await unmap(hall)
        assert (await refused(unmap(hall)))[0] == ResultCode.NO_RESOURCES
        assert (await refused(hall.tuples.map(request())))[0] == ResultCode.NO_RESOURCES

    run()


def test_promises_that_are_broken_are_counted_once(tmp_path: Path) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        for port in 8000, 8001, 8002:
            await hall.tuples.map(request(port, port))
        await unmap(hall, 8002)
        assert hall.tuples.broken_promises() == 0
        assert (await hall.delete(8000)).code == 0
        hall.carrier.grant(hall.only.id, 9001)
        await settle()
        assert hall.tuples.broken_promises() == 2
        assert not hall.tuples.promises
        await hall.tuples.map(request(8001, lease=120))
        await asyncio.sleep(121)
        assert hall.tuples.broken_promises() == 0

    run()
