# SPDX-License-Identifier: Apache-2.0
"""What the iptables back-end leaves in the legacy tables, read by iptables-legacy-save."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from igdpcp.errors import RulesetBusy, RulesetError
from igdpcp.model import Endpoint, Mode, Protocol
from igdpcp.netfilter import iptables_table
from igdpcp.netfilter.desired import Desired, difference
from igdpcp.netfilter.iptables import IptablesBackend
from igdpcp.netfilter.iptables_table import Edit
from igdpcp.openings import PcpPeer, Surroundings
from tests.netfilter import firewalls
from tests.netfilter.topology import CARRIER, SERVER, SURROUNDINGS, A, B, Instance, command, inside, namespace, opening

pytestmark = pytest.mark.lab


@pytest.fixture
def router() -> Iterator[str]:
    with namespace() as name:
        firewalls.load_legacy(name)
        yield name


@pytest.fixture
def instance(router: str) -> Iterator[Instance]:
    made = Instance(router, IptablesBackend())
    made.surroundings()
    yield made
    made.vanish()


def rules(router: str, program: str = "iptables-legacy-save") -> list[str]:
    """Every rule of both tables, in order."""
    saved = [command(program, "-t", table, namespace=router) for table in ("nat", "filter")]
    return [line for text in saved for line in text.splitlines() if line.startswith("-A ")]


def saved(router: str) -> list[str]:
    """Chains and rules, without counters and times."""
    texts = [command("iptables-legacy-save", "-t", table, namespace=router) for table in ("nat", "filter")]
    return [line.partition(" [")[0] for text in texts for line in text.splitlines() if not line.startswith("#")]


def added_by(router: str, instance: Instance, *openings: object) -> set[str]:
    before = set(rules(router))
    assert instance.put(*openings) == [None] * len(openings)  # type: ignore[arg-type]
    return set(rules(router)) - before


STATIC = [
    "-A IGDPCP-DST -i wan0 -m addrtype --dst-type LOCAL -j IGDPCP-D-wan0",
    "-A IGDPCP-DST -i br-lan -j IGDPCP-LOOP",
    "-A IGDPCP-DST -i br-lan -m mark --mark 0x40000000/0x40000000 -j IGDPCP-ALIAS",
    "-A IGDPCP-DST -i br-lan -m mark --mark 0x40000000/0x40000000 -j IGDPCP-REACH",
    "-A IGDPCP-DST -i br-lan -m mark --mark 0x40000000/0x40000000 -j MARK --set-xmark 0x0/0x40000000",
    "-A IGDPCP-SRC -o wan0 -m addrtype ! --src-type LOCAL -j IGDPCP-S-wan0",
    "-A IGDPCP-SRC -o br-lan -m mark --mark 0x40000000/0x40000000 -m conntrack --ctstate DNAT -j IGDPCP-SENDER",
    "-A IGDPCP-SRC -o br-lan -m mark --mark 0x40000000/0x40000000 -m conntrack --ctstate DNAT -j IGDPCP-SHOWN",
    "-A IGDPCP-FWD -m conntrack --ctstate DNAT -j IGDPCP-PASS",
    "-A IGDPCP-FWD -j IGDPCP-ADMIT",
    "-A IGDPCP-IN -s 198.51.100.1/32 -i wan0 -p udp -m udp --sport 5351 --dport 40000 -j ACCEPT",
    "-A IGDPCP-IN -s 198.51.100.1/32 -d 224.0.0.1/32 -i wan0 -p udp -m udp --sport 5351 --dport 5350 -j ACCEPT",
]


def test_the_surroundings_are_written_once_however_often_they_are_told(router: str, instance: Instance) -> None:
    instance.surroundings()
    assert [rule for rule in rules(router) if rule.startswith("-A IGDPCP-")] == STATIC


OF_THE_FIRST = {  # its own three, and what the ports of its block share
    "-A IGDPCP-D-wan0/t0f -p tcp -m tcp --dport 4000 -j DNAT --to-destination 192.168.1.5:4000",
    "-A IGDPCP-S-wan0/t0f -s 192.168.1.5/32 -p tcp -m tcp --sport 4000 -j MASQUERADE --to-ports 4000",
    "-A IGDPCP-PASS/t0f -d 192.168.1.5/32 -p tcp -m tcp --dport 4000 -j ACCEPT",
    "-A IGDPCP-S-wan0/t0f -p tcp -j MASQUERADE --to-ports 49152-65535",
}
WAYS = {
    "-A IGDPCP-D-wan0 -p tcp -m tcp --dport 0:4095 -g IGDPCP-D-wan0/t0",
    "-A IGDPCP-D-wan0/t0 -p tcp -m tcp --dport 3840:4095 -g IGDPCP-D-wan0/t0f",
    "-A IGDPCP-S-wan0 -p tcp -m tcp --sport 0:4095 -g IGDPCP-S-wan0/t0",
    "-A IGDPCP-S-wan0/t0 -p tcp -m tcp --sport 3840:4095 -g IGDPCP-S-wan0/t0f",
    "-A IGDPCP-PASS -p tcp -m conntrack --ctorigdstport 0:4095 -g IGDPCP-PASS/t0",
    "-A IGDPCP-PASS/t0 -p tcp -m conntrack --ctorigdstport 3840:4095 -g IGDPCP-PASS/t0f",
}
HAIRPINS = {
    "-A IGDPCP-LOOP -d 198.51.100.2/32 -j MARK --set-xmark 0x40000000/0x40000000",
    "-A IGDPCP-LOOP -d 203.0.113.9/32 -j MARK --set-xmark 0x40000000/0x40000000",
    "-A IGDPCP-REACH -d 198.51.100.2/32 -j IGDPCP-D-wan0",
    "-A IGDPCP-REACH -d 203.0.113.9/32 -j IGDPCP-D-wan0",
    "-A IGDPCP-SHOWN -m conntrack --ctorigdst 198.51.100.2 -j SNAT --to-source 198.51.100.2",
    "-A IGDPCP-SHOWN -m conntrack --ctorigdst 203.0.113.9 -j SNAT --to-source 203.0.113.9",
}
FIRST = OF_THE_FIRST | WAYS | HAIRPINS


def test_the_first_mapping_brings_its_rules_and_the_shared_ones(router: str, instance: Instance) -> None:
    assert added_by(router, instance, opening()) == FIRST


def test_a_further_mapping_costs_three_rules(router: str, instance: Instance) -> None:
    instance.put(opening())
    further = opening("m2", serial=2, wan_port=4001, client=Endpoint(B, 4001), external=Endpoint(CARRIER, 4001))
    assert len(added_by(router, instance, further)) == 3


def test_a_routed_mapping_is_an_accept_and_its_short_cut(router: str, instance: Instance) -> None:
    routed = opening(mode=Mode.ROUTED, protocol=Protocol.UDP, remote_hosts=(SERVER,))
    assert added_by(router, instance, routed) == {
        "-A IGDPCP-ADMIT -p udp -m udp --dport 0:4095 -g IGDPCP-ADMIT/u0",
        "-A IGDPCP-ADMIT/u0 -p udp -m udp --dport 3840:4095 -g IGDPCP-ADMIT/u0f",
        "-A IGDPCP-ADMIT/u0f -s 198.51.100.1/32 -d 192.168.1.5/32 -i wan0 -p udp -m udp --dport 4000 -j ACCEPT",
    }


def test_removing_mappings_takes_away_exactly_what_they_brought_and_no_empty_chain_stays(
    router: str, instance: Instance
) -> None:
    before = saved(router)
    instance.put(opening(), opening("m2", serial=2, wan_port=4001, client=Endpoint(B, 6), remote_hosts=(SERVER,)))
    instance.remove("m1")
    assert not FIRST.issubset(rules(router))
    assert ":IGDPCP-S-wan0/t00 -" in saved(router)
    instance.remove("m2")
    assert saved(router) == before


def test_mappings_of_many_ports_are_spread_so_that_no_chain_grows_with_them(router: str, instance: Instance) -> None:
    ports = range(1024, 65536, 129)
    spread = [
        opening(f"m{port}", serial=port, wan_port=port, client=Endpoint(A, port), external=Endpoint(CARRIER, port))
        for port in ports
    ]
    instance.sync(*spread)
    lengths = Counter(rule.split()[1] for rule in rules(router))
    assert lengths["IGDPCP-D-wan0"] == lengths["IGDPCP-S-wan0"] == lengths["IGDPCP-PASS"] == 16
    assert max(lengths.values()) == 16
    assert sum(lengths.values()) < 6 * len(ports)


def test_a_device_of_the_longest_name_has_its_chains(router: str, instance: Instance) -> None:
    device = "x" * 15
    assert instance.put(opening(wan_device=device, wan_port=65535)) == [None]
    rule = f"-A IGDPCP-D-{device}/tff -p tcp -m tcp --dport 65535 -j DNAT --to-destination 192.168.1.5:4000"
    assert rule in rules(router)


def test_the_jumps_stand_before_the_routers_refusals_and_its_redirects_win(router: str, instance: Instance) -> None:
    command("iptables-legacy", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-j", "ACCEPT", namespace=router)
    instance.surroundings()
    found = rules(router)
    for chain, ours in (("POSTROUTING", "SRC"), ("INPUT", "IN")):
        assert next(rule for rule in found if rule.startswith(f"-A {chain} ")) == f"-A {chain} -j IGDPCP-{ours}"
    prerouting = [rule for rule in found if rule.startswith("-A PREROUTING ")]
    assert prerouting[-2:] == ["-A PREROUTING -p tcp -j ACCEPT", "-A PREROUTING -j IGDPCP-DST"]
    assert len(prerouting) == 3
    forward = [rule for rule in found if rule.startswith("-A FORWARD ")]
    assert forward[-3:] == [
        "-A FORWARD -j IGDPCP-FWD",
        "-A FORWARD -p tcp -j REJECT --reject-with tcp-reset",
        "-A FORWARD -j REJECT --reject-with icmp-port-unreachable",
    ]


JUMP = "-j IGDPCP-FWD"
BAN = "-s 192.0.2.66/32 -j DROP"


@pytest.mark.parametrize(
    ("chains", "forward", "position"),
    [
        ("", [], 0),
        ("", [BAN], 1),
        ("", [BAN, "-i wan0 -j DROP", BAN], 1),
        ("", [BAN, "! -i br-lan -j DROP"], 1),
        ("", ["-i wan+ -o br+ -j DROP"], 0),
        ("", ["-i guest -j DROP", "! -i wan0 -j DROP"], 2),
        ("", ["-i br-lan -o br-lan -j DROP", "-o wan0 -j REJECT --reject-with icmp-port-unreachable"], 2),
        ("", ["-d 192.168.1.7/32 -j DROP", "-p tcp -m tcp --dport 25 -j DROP", "-p icmp -j DROP"], 3),
        ("", ["-m conntrack --ctstate INVALID -j DROP", "-p udp -j DROP"], 1),
        ("", ["! -p icmp -j DROP"], 0),
        ("", ["-i wan0 -j ACCEPT", "-j DROP"], 1),
        (":reject -\n-A reject -p tcp -j REJECT\n-A reject -j REJECT\n", [BAN, "-m comment --comment x -j reject"], 1),
        (":bans -\n-A bans -s 192.0.2.66 -j DROP\n", ["-j bans"], 1),
        (":only -\n-A only -s 192.0.2.0/24 -j RETURN\n-A only -j DROP\n", ["-j only"], 1),
        (":log -\n-A log -j DROP\n", ["-s 192.0.2.66/32 -j log", "-j log"], 1),
    ],
)  # fmt: skip
def test_the_forward_jump_stands_behind_bans_and_before_the_general_refusal(
    router: str, chains: str, forward: list[str], position: int
) -> None:
    lines = "".join(f"-A FORWARD {rule}\n" for rule in forward)
    firewalls.load_legacy(router, f"*filter\n:FORWARD DROP\n{chains}{lines}COMMIT\n")
    instance = Instance(router, IptablesBackend())
    for _ in range(2):  # telling the surroundings again puts the jumps up again
        instance.surroundings()
        found = [rule.removeprefix("-A FORWARD ") for rule in rules(router) if rule.startswith("-A FORWARD ")]
        assert found == ["-j IGDPCP-GUARD", *forward[:position], JUMP, *forward[position:]]
    assert instance.call(instance.commits.intact)
    instance.vanish()


def restart(router: str) -> None:
    """Load the administrator's rules anew, as a service that saves and restores them does."""
    firewalls.load_legacy(router)


def flush_forward(router: str) -> None:
    command("iptables-legacy", "-F", "FORWARD", namespace=router)


def refuse_first(router: str) -> None:
    command("iptables-legacy", "-I", "FORWARD", "-j", "REJECT", namespace=router)


def flush_ours(router: str) -> None:
    command("iptables-legacy", "-F", "IGDPCP-IN", namespace=router)


@pytest.mark.parametrize("harm", [restart, flush_forward, refuse_first, flush_ours])
def test_what_somebody_else_took_away_is_noticed_and_brought_back_by_sync(
    router: str, instance: Instance, harm: Callable[[str], None]
) -> None:
    instance.put(opening())
    assert instance.call(instance.commits.intact)
    harm(router)
    assert not instance.call(instance.commits.intact)
    instance.sync(opening())
    assert instance.call(instance.commits.intact)
    assert set(rules(router)) >= FIRST | set(STATIC)


def test_a_mapping_after_a_restart_of_the_firewall_brings_everything_back(router: str, instance: Instance) -> None:
    instance.put(opening())
    restart(router)
    assert instance.put(opening("m2", serial=2, client=Endpoint(B, 4001), wan_port=4001)) == [None]
    assert set(rules(router)) >= FIRST | set(STATIC)
    assert instance.call(instance.commits.intact)


def test_a_mapped_port_of_the_range_that_others_are_moved_to_moves_them_to_the_other_half(
    router: str, instance: Instance
) -> None:
    high = opening(wan_port=51820), opening("m2", serial=2, wan_port=60000, client=Endpoint(B, 4001))
    added = added_by(router, instance, *high)
    assert "-A IGDPCP-S-wan0/tca -p tcp -j MASQUERADE --to-ports 57344-65535" in added
    assert "-A IGDPCP-S-wan0/tea -p tcp -j MASQUERADE --to-ports 49152-57343" in added


def test_release_leaves_the_tables_as_they_were(router: str) -> None:
    before = saved(router)
    instance = Instance(router, IptablesBackend())
    instance.surroundings()
    instance.put(opening())
    instance.release()
    instance.vanish()
    assert saved(router) == before


def test_closing_takes_the_rules_away_since_they_cannot_expire(router: str) -> None:
    before = saved(router)
    instance = Instance(router, IptablesBackend())
    instance.surroundings()
    instance.put(opening())
    instance.call(instance.commits.close)
    instance.vanish()
    assert saved(router) == before


def test_sync_clears_what_an_earlier_process_left(router: str, instance: Instance) -> None:
    instance.sync(opening())
    wanted = saved(router)
    left = Instance(router, IptablesBackend())
    left.surroundings(Surroundings(frozenset({"ppp9"}), frozenset({"br-old"}), frozenset()))
    left.put(opening("x", wan_device="ppp9", wan_port=9))
    left.vanish()
    instance.sync(opening())
    assert saved(router) == wanted


def test_rules_that_somebody_flushed_do_not_hinder_changes(router: str, instance: Instance) -> None:
    instance.put(opening())
    command("iptables-legacy", "-t", "nat", "-F", "IGDPCP-D-wan0/t0f", namespace=router)
    instance.remove("m1")
    assert instance.put(opening("m2")) == [None]
    assert set(rules(router)) >= FIRST


def test_chains_that_somebody_deleted_do_not_hinder_release(router: str, instance: Instance) -> None:
    command("iptables-legacy", "-D", "FORWARD", "-j", "IGDPCP-FWD", namespace=router)
    command("iptables-legacy", "-F", "IGDPCP-FWD", namespace=router)
    command("iptables-legacy", "-X", "IGDPCP-FWD", namespace=router)
    instance.release()
    assert "IGDPCP" not in "\n".join(saved(router))


def test_a_change_of_somebody_else_between_two_of_ours_is_kept(router: str, instance: Instance) -> None:
    instance.put(opening())
    command("iptables-legacy", "-A", "FORWARD", "-s", "10.9.8.7", "-j", "ACCEPT", namespace=router)
    instance.remove("m1")
    assert "-A FORWARD -s 10.9.8.7/32 -j ACCEPT" in rules(router)


def test_putting_a_mapping_again_for_longer_commits_nothing(router: str, instance: Instance) -> None:
    instance.put(opening())
    command("iptables-legacy", "-t", "nat", "-F", "IGDPCP-D-wan0/t0f", namespace=router)
    flushed = rules(router)
    assert instance.put(opening(lifetime=7200)) == [None]
    assert rules(router) == flushed


def test_one_bad_mapping_of_a_batch_fails_alone(router: str, instance: Instance) -> None:
    good = opening("m2", serial=2, wan_port=4001, client=Endpoint(B, 4001))
    results = instance.put(opening(), opening("bad", serial=3, wan_port=70000, client=Endpoint(A, 7)), good)
    assert [result is None for result in results] == [True, False, True]
    assert "rules of bad: " in str(results[1])
    found = "\n".join(rules(router))
    assert "--to-destination 192.168.1.5:4000" in found
    assert "--to-destination 192.168.1.6:4001" in found
    assert "--dport 7 " not in found


def test_a_lock_that_another_program_keeps_ends_in_an_error(
    instance: Instance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock = tmp_path / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    monkeypatch.setattr(iptables_table, "LOCK_WAIT", 0.1)
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        [error] = instance.put(opening())
    assert isinstance(error, RulesetError)
    assert "xtables.lock" in str(error)
    assert instance.put(opening()) == [None]


def test_a_lock_that_another_program_takes_for_a_moment_is_waited_for(
    instance: Instance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock = tmp_path / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        threading.Timer(0.2, lambda: fcntl.flock(other, fcntl.LOCK_UN)).start()
        assert instance.put(opening()) == [None]


def test_a_change_that_may_not_wait_says_at_once_that_the_lock_is_taken(
    router: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock = tmp_path / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    monkeypatch.setattr(iptables_table, "LOCK_WAIT", 30.0)
    wanted = Desired()
    wanted.set("m1", opening())

    def work() -> float:
        backend = IptablesBackend()
        backend.open()
        backend.surroundings(SURROUNDINGS)
        with lock.open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            began = time.monotonic()
            with pytest.raises(RulesetBusy):
                backend.apply(difference({}, wanted.all_facts(0.0)), 0.0, wait=False)
            return time.monotonic() - began

    assert inside(router, work) < 10
    assert not any("192.168.1.5:4000" in rule for rule in rules(router))


def test_the_tables_of_a_change_are_locked_together(
    instance: Instance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock = str(tmp_path / "xtables.lock")
    monkeypatch.setenv("XTABLES_LOCKFILE", lock)
    opened, made = [], os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: (opened.append(path), made(path, *rest))[1])
    instance.put(opening())
    assert opened.count(lock) == 1


def test_a_program_that_takes_no_lock_and_gets_between_does_not_fail_a_change(
    router: str, instance: Instance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit, first = Edit.commit, iter([True])
    rude = ("env", f"XTABLES_LOCKFILE={tmp_path}/other", "iptables-legacy", "-A", "INPUT", "-i", "lo", "-j", "RETURN")

    def late(edit: Edit) -> None:
        if next(first, False):
            command(*rude, namespace=router)
        commit(edit)

    rewrites: list[object] = []
    monkeypatch.setattr(Edit, "commit", late)
    monkeypatch.setattr(IptablesBackend, "sync", lambda *_: rewrites.append(_))
    assert instance.put(opening()) == [None]
    assert "-A INPUT -i lo -j RETURN" in rules(router)
    assert rewrites == []


def test_a_change_that_one_table_refuses_is_in_none(router: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, wanted, commits = IptablesBackend(), Desired(), iter([True, False])
    wanted.set("m1", opening())

    def refuse_the_second(edit: Edit, commit: Callable[[Edit], None] = Edit.commit) -> None:
        if not next(commits, True):
            raise sys.modules["iptc"].IPTCError("no")
        commit(edit)

    def work() -> tuple[list[str], list[str]]:
        backend.open()
        backend.surroundings(SURROUNDINGS)
        before = rules(router)
        monkeypatch.setattr(Edit, "commit", refuse_the_second)
        with pytest.raises(RulesetError, match="nat: no"):
            backend.apply(difference({}, wanted.all_facts(0.0)), 0.0)
        return before, rules(router)

    before, after = inside(router, work)
    assert after == before


def test_of_a_change_that_ended_half_way_nothing_stays(
    router: str, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rules(router)
    instance.put(opening())
    once = sum("--to-destination" in rule for rule in rules(router))
    commits = iter([True, True, False])  # the last takes the old client's rules out of the filter

    def refuse_the_third(edit: Edit, commit: Callable[[Edit], None] = Edit.commit) -> None:
        if not next(commits, True):
            raise sys.modules["iptc"].IPTCError("no")
        commit(edit)

    monkeypatch.setattr(Edit, "commit", refuse_the_third)
    assert instance.put(opening(client=Endpoint(B, 4000))) == [None]
    assert list(commits) == []
    assert sum("--to-destination" in rule for rule in rules(router)) == once
    instance.remove("m1")
    assert rules(router) == before


def test_an_ipv6_pcp_server_is_let_in_by_ip6tables(router: str, instance: Instance) -> None:
    instance.surroundings(replace(SURROUNDINGS, pcp_peers=frozenset({PcpPeer(IPv6Address("2001:db8::5351"), 40000)})))
    found = command("ip6tables-legacy-save", "-t", "filter", namespace=router)
    assert "-A INPUT -j IGDPCP-IN" in found
    assert "-A IGDPCP-IN -s 2001:db8::5351/128 -i wan0 -p udp -m udp --sport 5351 --dport 40000 -j ACCEPT" in found
    instance.release()
    assert "IGDPCP" not in command("ip6tables-legacy-save", "-t", "filter", namespace=router)
