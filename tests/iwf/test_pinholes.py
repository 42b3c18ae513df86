# SPDX-License-Identifier: Apache-2.0
"""IPv6 pinholes: what control points are answered, and what stands in the ruleset meanwhile."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from igdpcp.config import PermissionConfig
from igdpcp.errors import Refusal
from igdpcp.model import UNIQUE_IDS, Owner, PinholeRequest, Protocol, Requester
from igdpcp.openings import PinholeOpening
from tests.support.hall import A6, B6, A, Hall, Reply, seconds_left, settle
from tests.support.virtual_time import virtual

FLOW = {"RemoteHost": "", "RemotePort": 0, "InternalClient": A6, "InternalPort": 4000, "Protocol": 6}


async def add(hall: Hall, host: str = A6, **changes: object) -> Reply:
    """AddPinhole for TCP port 4000 of the host, from anywhere, for an hour, with changed arguments."""
    return await hall.firewall("AddPinhole", host, **(FLOW | {"InternalClient": host, "LeaseTime": 3600} | changes))


async def code_of(hall: Hall, action: str, id: int | str, host: str = A6, **more: object) -> int:
    return (await hall.firewall(action, host, UniqueID=id, **more)).code


def only_rule(hall: Hall) -> PinholeOpening:
    (rule,) = hall.ruleset.pinhole_rules.values()
    return rule


@virtual
async def test_iwf_008_009_a_pinhole_is_in_the_ruleset_when_it_is_promised_and_no_packet_is_sent(
    tmp_path: Path,
) -> None:
    hall = Hall(tmp_path)
    hall.ruleset.slow = 0.1
    began = hall.loop.time()
    reply = await add(hall, RemoteHost="2600:9::1", RemotePort=5000)
    assert int(reply["UniqueID"]) in UNIQUE_IDS
    assert hall.loop.time() >= began + 0.1
    rule = only_rule(hall)
    assert (rule.protocol, rule.client, rule.client_port) == (Protocol.TCP, IPv6Address(A6), 4000)
    assert (rule.remote_host, rule.remote_port, seconds_left(rule)) == (IPv6Address("2600:9::1"), 5000, 3600)
    assert (hall.carrier.asked, hall.ruleset.rules) == ([], {})
    assert (await hall.firewall("DeletePinhole", UniqueID=reply["UniqueID"])).code == 0
    assert (hall.ruleset.pinhole_rules, hall.carrier.returned) == ({}, [])


@virtual
async def test_the_firewall_is_on_and_lets_pinholes_be_made(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    assert (await hall.firewall("GetFirewallStatus")).outputs == {"FirewallEnabled": "1", "InboundPinholeAllowed": "1"}


@virtual
async def test_where_pinholes_are_not_to_be_every_action_says_so_before_all_else(tmp_path: Path) -> None:
    hall = Hall(tmp_path, max_pinholes=0)
    assert (await hall.firewall("GetFirewallStatus"))["InboundPinholeAllowed"] == "0"
    assert (await add(hall)).code == 703
    assert (await add(hall, Protocol=65535, InternalPort=0, LeaseTime=0)).code == 703
    assert await code_of(hall, "UpdatePinhole", 1, NewLeaseTime=0) == 703
    for action in ("DeletePinhole", "GetPinholePackets", "CheckPinholeWorking"):
        assert await code_of(hall, action, 1) == 703
    assert hall.ruleset.pinhole_rules == {}


WRONG = {
    706: {"InternalPort": 0, "InternalClient": "", "Protocol": 65535, "LeaseTime": 0},
    708: {"InternalClient": "", "Protocol": 65535, "LeaseTime": 0},
    707: {"Protocol": 65535, "LeaseTime": 0},
    705: {"Protocol": 136, "LeaseTime": 0},
}


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        *WRONG.items(),
        (402, {"LeaseTime": 0, "InternalClient": B6}),
        (402, {"LeaseTime": 86401}),
        (402, {"InternalClient": "192.168.1.50"}),
        (402, {"InternalClient": f"{A6}%eth0"}),
        (402, {"InternalClient": "somebody"}),
        (402, {"RemoteHost": "192.0.2.1"}),
        (606, {"InternalClient": B6}),
        (606, {"InternalPort": 1023}),
        (606, {"InternalClient": f"::ffff:{A}"}),
    ],
)
def test_what_is_wrong_with_a_request_is_told_in_miniupnpds_order(
    tmp_path: Path, code: int, wrong: dict[str, object]
) -> None:
    @virtual
    async def test() -> None:
        hall = Hall(tmp_path)
        assert (await add(hall, **wrong)).code == code
        assert (hall.ruleset.pinhole_rules, len(hall.pinhole_table)) == ({}, 0)

    test()


@virtual
async def test_iwf_185_a_pinhole_leads_to_the_asking_address_only_and_that_is_public_and_on_a_lan(
    tmp_path: Path,
) -> None:
    hall = Hall(tmp_path)
    assert (await add(hall, A, InternalClient=A6)).code == 606
    assert (await add(hall, B6, InternalClient=A6)).code == 606
    assert (await add(hall, "2600:2::50")).code == 606
    assert (await add(hall, "2600:1::1")).code == 606
    hall.router.lan6 = IPv6Network("fd00::/64")
    assert (await add(hall, "fd00::50")).code == 606
    assert hall.ruleset.pinhole_rules == {}


@virtual
async def test_without_secure_mode_a_host_opens_and_closes_pinholes_of_others_on_the_lan_only(tmp_path: Path) -> None:
    hall = Hall(tmp_path, secure_mode=False)
    reply = await add(hall, A, InternalClient=B6)
    assert reply.code == 0
    assert (await add(hall, A, InternalClient="2600:2::50")).code == 606
    assert (await add(hall, A, InternalClient="2600:1::1")).code == 606
    assert await code_of(hall, "DeletePinhole", reply["UniqueID"], A6) == 0


RULES = [
    PermissionConfig(name="one host", action="deny", internal_addresses=IPv4Network("192.168.1.50/32")),
    PermissionConfig(name="no", action="deny", internal_ports=range(4000, 4001)),
    PermissionConfig(name="half", action="allow", external_ports=range(5000, 5001), internal_ports=range(6000, 6001)),
    PermissionConfig(name="low", action="allow", external_ports=range(22, 23), internal_ports=range(22, 23)),
]


@virtual
async def test_iwf_185_the_ports_of_the_permission_rules_for_all_hosts_decide(tmp_path: Path) -> None:
    hall = Hall(tmp_path, permissions=RULES)
    assert (await add(hall, InternalPort=22)).code == 0
    for port in (4000, 5000, 6000, 7000):
        assert (await add(hall, InternalPort=port)).code == 606


@virtual
async def test_the_same_request_again_has_the_same_id_and_begins_the_lease_anew(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    first = await add(hall, LeaseTime=100)
    await asyncio.sleep(60)
    assert (await add(hall, LeaseTime=100))["UniqueID"] == first["UniqueID"]
    await asyncio.sleep(99)
    assert seconds_left(only_rule(hall)) == 1
    await asyncio.sleep(1.1)
    assert hall.ruleset.pinhole_rules == {}
    for other in ({"RemotePort": 1}, {"RemoteHost": "2600:9::1"}, {"Protocol": 17}, {"InternalPort": 4001}):
        assert (await add(hall, **other))["UniqueID"] != first["UniqueID"]
    assert len(hall.ruleset.pinhole_rules) == 4


@virtual
async def test_a_pinhole_ends_with_its_lease_and_is_unknown_then(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    id = (await add(hall, LeaseTime=100))["UniqueID"]
    await asyncio.sleep(99)
    assert await code_of(hall, "UpdatePinhole", id, NewLeaseTime=200) == 0
    assert seconds_left(only_rule(hall)) == 200
    await asyncio.sleep(199)
    assert await code_of(hall, "GetPinholePackets", id) == 0
    await asyncio.sleep(1.1)
    assert hall.ruleset.pinhole_rules == {}
    for action in ("DeletePinhole", "GetPinholePackets", "CheckPinholeWorking"):
        assert await code_of(hall, action, id) == 704
    assert await code_of(hall, "UpdatePinhole", id, NewLeaseTime=200) == 704


@virtual
async def test_an_unallowed_lease_changes_nothing(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    id = (await add(hall))["UniqueID"]
    for lease in (0, 86401):
        assert await code_of(hall, "UpdatePinhole", id, NewLeaseTime=lease) == 402
    assert seconds_left(only_rule(hall)) == 3600


@virtual
async def test_another_hosts_pinhole_is_not_to_be_touched_or_looked_at(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    id = (await add(hall))["UniqueID"]
    for host in (B6, A):
        assert await code_of(hall, "UpdatePinhole", id, host, NewLeaseTime=200) == 606
        for action in ("DeletePinhole", "GetPinholePackets", "CheckPinholeWorking"):
            assert await code_of(hall, action, id, host) == 606
    assert seconds_left(only_rule(hall)) == 3600


@virtual
async def test_packets_are_the_rulesets_and_a_pinhole_works_once_there_were_some(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    id = (await add(hall))["UniqueID"]
    assert (await hall.firewall("GetPinholePackets", UniqueID=id))["PinholePackets"] == "0"
    assert await code_of(hall, "CheckPinholeWorking", id) == 709
    hall.ruleset.packets[only_rule(hall).id] = 3
    assert (await hall.firewall("GetPinholePackets", UniqueID=id))["PinholePackets"] == "3"
    assert (await hall.firewall("CheckPinholeWorking", UniqueID=id))["IsWorking"] == "1"
    hall.ruleset.fails = 1
    assert await code_of(hall, "GetPinholePackets", id) == 501


@virtual
async def test_no_more_pinholes_are_open_than_one_address_and_all_together_may_have(tmp_path: Path) -> None:
    hall = Hall(tmp_path, max_pinholes=3, max_pinholes_per_host=2)
    ids = [(await add(hall, InternalPort=port))["UniqueID"] for port in (4000, 4001)]
    assert (await add(hall, InternalPort=4002)).code == 701
    assert (await add(hall, InternalPort=4001)).code == 0
    assert (await add(hall, B6, InternalPort=4000)).code == 0
    assert (await add(hall, B6, InternalPort=4001)).code == 701
    assert await code_of(hall, "DeletePinhole", ids[0]) == 0
    assert (await add(hall, B6, InternalPort=4001)).code == 0
    assert len(hall.ruleset.pinhole_rules) == 3


@virtual
async def test_an_id_that_is_free_again_is_not_given_before_all_others_were(tmp_path: Path) -> None:
    hall = Hall(tmp_path, max_pinholes=2)
    kept = int((await add(hall, InternalPort=5000))["UniqueID"])
    seen = []
    for _ in range(300):
        seen.append(int((await add(hall))["UniqueID"]))
        assert await code_of(hall, "DeletePinhole", seen[-1]) == 0
    assert len({kept, *seen}) == 301


# -- the kernel refuses, and what happens at the same time --------------------------------------------------------


@virtual
async def test_a_pinhole_whose_rules_the_kernel_refuses_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.ruleset.fails = 1
    assert (await add(hall)).code == 501
    assert (len(hall.pinhole_table), hall.journal.load().pinholes) == (0, ())
    await asyncio.sleep(30)
    assert hall.ruleset.pinhole_rules == {}


@virtual
async def test_a_lease_that_the_kernel_does_not_take_leaves_the_old_one(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    id = (await add(hall, LeaseTime=100))["UniqueID"]
    hall.ruleset.fails = 1
    assert await code_of(hall, "UpdatePinhole", id, NewLeaseTime=500) == 501
    await asyncio.sleep(50)
    assert seconds_left(only_rule(hall)) == 50
    await asyncio.sleep(51)
    assert (hall.ruleset.pinhole_rules, len(hall.pinhole_table)) == ({}, 0)


@virtual
async def test_two_requests_at_once_for_one_pinhole_are_one(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.ruleset.slow = 0.1
    replies = await asyncio.gather(add(hall), add(hall, LeaseTime=100))
    assert len({reply["UniqueID"] for reply in replies}) == 1
    assert seconds_left(only_rule(hall)) == 100


@pytest.mark.parametrize("fails", [1, 2])
def test_of_two_requests_at_once_the_later_one_decides_what_is_left(tmp_path: Path, fails: int) -> None:
    @virtual
    async def test() -> None:
        hall = Hall(tmp_path)
        hall.ruleset.slow, hall.ruleset.fails = 0.1, fails
        first, second = await asyncio.gather(add(hall), add(hall, LeaseTime=100))
        assert (first.code, second.code) == (501, 0 if fails == 1 else 501)
        await asyncio.sleep(30)
        assert len(hall.pinhole_table) == len(hall.ruleset.pinhole_rules) == (1 if fails == 1 else 0)

    test()


@virtual
async def test_a_pinhole_that_is_deleted_while_it_is_opened_is_not_promised_and_not_open(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.ruleset.slow = 0.1
    adding = asyncio.ensure_future(add(hall))
    await settle()
    (pinhole,) = hall.pinhole_table
    assert await code_of(hall, "DeletePinhole", pinhole.id) == 0
    assert (await adding).code == 501
    await asyncio.sleep(1)
    assert (hall.ruleset.pinhole_rules, len(hall.pinhole_table)) == ({}, 0)


@virtual
async def test_a_pinhole_that_is_given_up_before_its_rules_are_laid_gets_none(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    client = IPv6Address(A6)
    request = PinholeRequest(Requester(client, Owner.UPNP2), Protocol.TCP, client, 4000, None, 0, lease=3600)
    adding = asyncio.ensure_future(hall.pinholes.add(request))
    await asyncio.sleep(0)
    hall.pinholes.close_all()
    with pytest.raises(Refusal):
        await adding
    await settle()
    assert (hall.ruleset.pinhole_rules, len(hall.pinhole_table)) == ({}, 0)


@virtual
async def test_a_control_point_that_hangs_up_leaves_a_pinhole_that_its_retry_finds(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.ruleset.slow = 0.1
    adding = asyncio.ensure_future(add(hall))
    await settle()
    (pinhole,) = hall.pinhole_table
    adding.cancel()
    await asyncio.sleep(1)
    assert list(hall.ruleset.pinhole_rules) == [pinhole.name]
    assert (await add(hall))["UniqueID"] == str(pinhole.id)


@virtual
async def test_rules_that_were_taken_away_come_back_with_those_of_mappings(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await hall.add(8080)
    await add(hall)
    hall.ruleset.rules, hall.ruleset.pinhole_rules, hall.ruleset.whole = {}, {}, False
    await hall.leg.audit()
    assert (len(hall.ruleset.rules), len(hall.ruleset.pinhole_rules)) == (1, 1)


@virtual
async def test_pinholes_stand_without_an_ipv4_address_on_the_wan(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    hall.router.wan_address = None
    assert (await add(hall)).code == 0
    await hall.leg.sync()
    assert len(hall.ruleset.pinhole_rules) == 1


# -- other ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_pinholes_survive_a_restart_with_their_leases(tmp_path: Path, end: str) -> None:
    @virtual
    async def test() -> None:
        first = Hall(tmp_path)
        id = (await add(first, LeaseTime=100, RemoteHost="2600:9::1", RemotePort=7))["UniqueID"]
        await add(first, InternalPort=4001, LeaseTime=10)
        gone = (await add(first, InternalPort=4002))["UniqueID"]
        await code_of(first, "DeletePinhole", gone)
        await asyncio.sleep(50)
        first.kill() if end == "kill" else await first.stop()
        second = Hall(tmp_path)
        second.ruleset.pinhole_rules = dict(first.ruleset.pinhole_rules)
        await second.restart.restore()
        rule = only_rule(second)
        assert (seconds_left(rule), rule.remote_port, rule.remote_host) == (50, 7, IPv6Address("2600:9::1"))
        assert await code_of(second, "UpdatePinhole", id, NewLeaseTime=60) == 0
        await asyncio.sleep(61)
        assert second.ruleset.pinhole_rules == {}

    test()


@pytest.mark.parametrize("why", ["lease", "permission", "option"])
def test_a_pinhole_that_may_not_be_any_more_is_not_restored(
    tmp_path: Path, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    @virtual
    async def test() -> None:
        caplog.set_level(logging.INFO)
        first = Hall(tmp_path)
        await add(first)
        first.kill()
        await asyncio.sleep(3601 if why == "lease" else 0)
        rules = [PermissionConfig("none", "deny")] if why == "permission" else []
        second = Hall(tmp_path, permissions=rules, max_pinholes=0 if why == "option" else 1)
        await second.restart.restore()
        assert "event=pinhole_not_adopted" in caplog.text
        assert (second.ruleset.pinhole_rules, len(second.pinhole_table)) == ({}, 0)
        second.kill()
        assert Hall(tmp_path).journal.load().pinholes == ()

    test()


@virtual
async def test_of_two_pinholes_for_the_same_that_a_full_disk_left_one_is_restored(tmp_path: Path) -> None:
    first = Hall(tmp_path)
    await add(first)
    (made,) = first.pinhole_table
    first.journal.record(replace(made, id=made.id % 65535 + 1))
    first.kill()
    second = Hall(tmp_path)
    await second.restart.restore()
    assert (len(second.pinhole_table), len(second.ruleset.pinhole_rules)) == (1, 1)


@virtual
async def test_a_release_closes_pinholes_too(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    await add(hall)
    await hall.restart.release()
    assert (hall.ruleset.pinhole_rules, len(hall.pinhole_table)) == ({}, 0)
    await hall.stop()
    assert Hall(tmp_path).journal.load().pinholes == ()


@virtual
async def test_a_journal_that_cannot_be_written_is_an_error_and_leaves_no_pinhole(tmp_path: Path) -> None:
    hall = Hall(tmp_path)
    (tmp_path / "run").write_text("in the way")
    assert (await add(hall)).code == 501
    assert (hall.ruleset.pinhole_rules, len(hall.pinhole_table)) == ({}, 0)
