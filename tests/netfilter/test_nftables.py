# SPDX-License-Identifier: Apache-2.0
"""What the nftables back-end leaves in the kernel: timeouts, reloads, refused batches, and the objects of fw4."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv6Address
from typing import Any

import pytest

from igdpcp import option_values
from igdpcp.errors import OurFault, RulesetError
from igdpcp.model import Endpoint, Protocol
from igdpcp.netfilter import detect, layout, libnftables
from igdpcp.netfilter.libnftables import Nft
from igdpcp.netfilter.nftables import NftablesBackend
from igdpcp.openings import PcpPeer, Surroundings
from tests.lab.namespaces import poll
from tests.netfilter import firewalls
from tests.netfilter.topology import (
    CARRIER,
    SERVER,
    SERVER6,
    SURROUNDINGS,
    WAN,
    A,
    B,
    Instance,
    command,
    inside,
    namespace,
    opening,
    pinhole,
)

pytestmark = pytest.mark.lab


@pytest.fixture
def router() -> Iterator[str]:
    with namespace() as name:
        yield name


@pytest.fixture
def fw4(router: str) -> Iterator[Instance]:
    firewalls.load_nft(router, firewalls.fw4())
    instance = Instance(router, NftablesBackend("fw4"))
    instance.surroundings()
    yield instance
    instance.vanish()


def elements(router: str, table: str = "fw4") -> dict[str, list[Any]]:
    """The elements of all sets and maps of ours that are not empty."""
    listing = json.loads(command("nft", "-j", "list", "table", "inet", table, namespace=router))["nftables"]
    found = {}
    for entry in listing:
        held = entry.get("set") or entry.get("map") or {}
        if held.get("elem"):
            found[held["name"].removeprefix(layout.PREFIX)] = held["elem"]
    return found


def mapping_elements(router: str, table: str = "fw4") -> dict[str, list[Any]]:
    """The same without the surroundings."""
    return {name: held for name, held in elements(router, table).items() if name not in layout.SURROUNDINGS}


def wait_for_expiry(router: str) -> None:
    poll(lambda: not mapping_elements(router), 10.0, "the end of every element")


def timeouts(router: str, name: str) -> list[int]:
    held = elements(router)[name]
    return [(element[0] if isinstance(element, list) else element)["elem"]["timeout"] for element in held]


def test_a_cascaded_mapping_is_one_element_of_each_kind(router: str, fw4: Instance) -> None:
    fw4.put(opening())
    counts = {name: len(held) for name, held in mapping_elements(router).items()}
    assert counts == {"dnat4": 1, "snat4": 1, "own4": 1, "pass4": 1, "hair4": 2, "hsrc4": 1}


def test_a_change_does_not_wait_while_another_thread_lists_rules(router: str, fw4: Instance) -> None:
    with libnftables._one_thread:
        fw4.put(opening())
        assert "dnat4" in mapping_elements(router)


@pytest.mark.parametrize(
    ("restriction", "name"),
    [
        ({}, "pass6"),
        ({"remote_host": SERVER6}, "pass6_rh"),
        ({"remote_port": 7}, "pass6_rp"),
        ({"remote_host": SERVER6, "remote_port": 7}, "pass6_rhp"),
    ],
)
def test_a_pinhole_is_one_element_with_its_lease_as_timeout(
    router: str, fw4: Instance, restriction: dict[str, Any], name: str
) -> None:
    assert fw4.put(pinhole(lifetime=600, **restriction)) == [None]
    assert {found: len(held) for found, held in mapping_elements(router).items()} == {name: 1}
    assert timeouts(router, name) == [600]
    fw4.put(pinhole(lifetime=700, **restriction))
    assert timeouts(router, name) == [700]
    fw4.remove("pinhole-1")
    assert mapping_elements(router) == {}


def test_a_pinhole_that_has_expired_can_be_put_again_and_has_counted_nothing(router: str, fw4: Instance) -> None:
    fw4.put(pinhole(lifetime=1))
    wait_for_expiry(router)
    assert fw4.packets() == 0
    assert fw4.put(pinhole()) == [None]
    assert len(elements(router)["pass6"]) == 1


def test_drop_ins_that_lack_a_chain_are_said_to_be_missing(router: str) -> None:
    firewalls.load_nft(router, firewalls.fw4().replace("igdpcp1_fwd6", "igdpcp1_old"))
    with pytest.raises(RulesetError, match="drop-ins not loaded"):
        Instance(router, NftablesBackend("fw4"))


def test_every_element_of_a_mapping_has_its_lifetime_as_timeout(router: str, fw4: Instance) -> None:
    fw4.put(opening(lifetime=600))
    assert {timeout for name in mapping_elements(router) for timeout in timeouts(router, name)} == {600}


def test_a_lifetime_of_more_than_a_day_is_cut_to_a_day(router: str, fw4: Instance) -> None:
    fw4.put(opening(lifetime=604800))
    assert timeouts(router, "dnat4") == [86400]


def test_elements_expire_by_themselves(router: str, fw4: Instance) -> None:
    fw4.put(opening(lifetime=1))
    assert mapping_elements(router)
    wait_for_expiry(router)


def test_putting_a_mapping_again_rearms_its_elements(router: str, fw4: Instance) -> None:
    fw4.put(opening(lifetime=1))
    assert fw4.put(opening(lifetime=900)) == [None]
    assert timeouts(router, "dnat4") == [900]


def test_a_mapping_whose_elements_expired_can_be_put_again_and_removed(router: str, fw4: Instance) -> None:
    fw4.put(opening(lifetime=1))
    wait_for_expiry(router)
    assert fw4.put(opening()) == [None]
    assert "dnat4" in elements(router)
    fw4.put(opening(lifetime=1))
    wait_for_expiry(router)
    fw4.remove("m1")
    assert mapping_elements(router) == {}


def test_putting_again_what_expired_is_a_change_of_that_mapping_alone(router: str, fw4: Instance) -> None:
    fw4.put(opening(lifetime=1))
    wait_for_expiry(router)
    command("nft", "add element inet fw4 igdpcp1_own4 { wan9 . udp . 9 }", namespace=router)
    assert fw4.put(opening()) == [None]
    assert len(elements(router)["own4"]) == 2


def test_removing_the_last_of_two_that_share_an_element_takes_it_away(router: str, fw4: Instance) -> None:
    fw4.put(opening("m1", remote_hosts=(WAN,)), opening("m2", serial=2, remote_hosts=(CARRIER,)))
    fw4.remove("m1")
    assert len(elements(router)["pass4"]) == 1
    fw4.remove("m2")
    assert mapping_elements(router) == {}


def test_a_shared_element_lives_as_long_as_the_longest_that_needs_it(router: str, fw4: Instance) -> None:
    fw4.put(
        opening("m1", remote_hosts=(WAN,), lifetime=60), opening("m2", serial=2, remote_hosts=(CARRIER,), lifetime=600)
    )
    assert timeouts(router, "own4") == [600]


def test_the_operators_mappings_of_tcp_and_udp_are_independent(router: str, fw4: Instance) -> None:
    fw4.put(opening("m1"), opening("m2", serial=2, protocol=Protocol.UDP))
    fw4.remove("m1")
    assert len(elements(router)["dnat4"]) == 1


def test_elements_survive_a_reload_of_the_firewall(router: str, fw4: Instance) -> None:
    fw4.put(opening())
    before = set(elements(router))
    firewalls.load_nft(router, firewalls.fw4())
    assert set(elements(router)) == before


def test_sync_restores_everything_after_the_firewall_was_restarted(router: str, fw4: Instance) -> None:
    fw4.put(opening())
    before = set(elements(router))
    command("nft", "delete", "table", "inet", "fw4", namespace=router)
    firewalls.load_nft(router, firewalls.fw4())
    assert elements(router) == {}
    fw4.sync(opening())
    assert set(elements(router)) == before


def restart(router: str) -> None:
    """Delete fw4's table and load it again, as ``/etc/init.d/firewall restart`` does: the objects come back empty."""
    command("nft", "delete", "table", "inet", "fw4", namespace=router)
    firewalls.load_nft(router, firewalls.fw4())


def test_a_mapping_after_a_restart_of_the_firewall_brings_everything_back(router: str, fw4: Instance) -> None:
    fw4.put(opening())
    surroundings = {name: held for name, held in elements(router).items() if name in layout.SURROUNDINGS}
    restart(router)
    assert fw4.put(opening("m2", serial=2, wan_port=4001, client=Endpoint(A, 4001))) == [None]
    found = elements(router)
    assert {name: found.get(name) for name in surroundings} == surroundings
    assert len(found["dnat4"]) == 2


def test_a_pinhole_after_a_restart_of_the_firewall_brings_the_lan_back_where_no_wan_has_ipv4(
    router: str, fw4: Instance
) -> None:
    fw4.surroundings(replace(SURROUNDINGS, wan_devices=frozenset()))
    restart(router)
    assert fw4.put(pinhole()) == [None]
    assert elements(router)["lan"] == ["br-lan"]


def test_a_mapping_that_goes_after_a_restart_of_the_firewall_brings_the_others_back(router: str, fw4: Instance) -> None:
    fw4.put(opening(), opening("m2", serial=2, wan_port=4001, client=Endpoint(A, 4001)))
    restart(router)
    fw4.remove("m2")
    found = elements(router)
    assert found["wan4"] == ["wan0"]
    assert len(found["dnat4"]) == 1


def test_a_restart_of_the_firewall_is_noticed_and_mended_by_sync(router: str, fw4: Instance) -> None:
    fw4.put(opening())
    assert fw4.call(fw4.commits.intact)
    restart(router)
    assert not fw4.call(fw4.commits.intact)
    fw4.sync(opening())
    assert fw4.call(fw4.commits.intact)


def test_a_reload_of_the_firewall_leaves_everything_intact(router: str, fw4: Instance) -> None:
    firewalls.load_nft(router, firewalls.fw4())
    assert fw4.call(fw4.commits.intact)


def test_a_firewall_that_was_stopped_is_not_intact(router: str, fw4: Instance) -> None:
    command("nft", "flush", "ruleset", namespace=router)
    assert not fw4.call(fw4.commits.intact)


def test_surroundings_that_could_not_be_told_come_with_the_next_sync(router: str, fw4: Instance) -> None:
    command("nft", "delete", "table", "inet", "fw4", namespace=router)
    with pytest.raises(RulesetError, match="firewall not active"):
        fw4.surroundings(Surroundings(frozenset({"ppp0"}), frozenset(), frozenset()))
    firewalls.load_nft(router, firewalls.fw4())
    fw4.sync()
    assert elements(router) == {"wan4": ["ppp0"]}


def test_all_of_a_large_table_is_written(router: str, fw4: Instance) -> None:
    ports = range(5000, 9000)
    fw4.sync(
        *(
            opening(f"m{port}", serial=port, wan_port=port, client=Endpoint(A, port), external=Endpoint(CARRIER, port))
            for port in ports
        )
    )
    assert {name: len(held) for name, held in mapping_elements(router).items()} == {
        **dict.fromkeys(("dnat4", "snat4", "own4", "pass4", "hsrc4"), len(ports)), "hair4": 2 * len(ports),
    }  # fmt: skip


def test_each_peers_packets_are_named_by_address_and_port(router: str, fw4: Instance) -> None:
    server = IPv6Address("fe80::1%wan0")
    peers = {PcpPeer(SERVER, 40001), PcpPeer(SERVER, 40002), PcpPeer(server, 40003)}
    fw4.surroundings(replace(SURROUNDINGS, pcp_peers=frozenset(peers)))
    found = elements(router)
    assert found["pcp4"] == [{"concat": [str(SERVER), 40001]}, {"concat": [str(SERVER), 40002]}]
    assert found["pcp6"] == [{"concat": ["fe80::1", 40003]}]
    assert found["server4"] == [str(SERVER)]
    assert found["server6"] == ["fe80::1"]


def test_one_bad_mapping_of_a_batch_fails_alone(router: str, fw4: Instance) -> None:
    good = [opening(f"m{port}", serial=port, wan_port=port, client=Endpoint(A, port)) for port in range(5000, 5010)]
    results = fw4.put(*good[:5], opening("bad", wan_port=70000), *good[5:])
    assert [str(result) for result in results if result] == [str(results[5])]
    assert isinstance(results[5], RulesetError)
    assert "rules of bad: " in str(results[5])
    assert "70000 is not a port" in str(results[5])
    assert len(elements(router)["dnat4"]) == 10


def test_a_refused_change_leaves_what_the_mapping_was_before(router: str, fw4: Instance) -> None:
    fw4.put(opening())
    before = mapping_elements(router)["dnat4"][0][1]
    assert fw4.put(opening(wan_port=70000)) != [None]
    assert mapping_elements(router)["dnat4"][0][1] == before
    fw4.remove("m1")
    assert mapping_elements(router) == {}


def test_an_element_that_somebody_else_put_in_the_way_is_replaced(router: str, fw4: Instance) -> None:
    element = '{ "wan0" . tcp . 4000 : 192.168.1.66 . 1 }'
    command("nft", f"add element inet fw4 igdpcp1_dnat4 {element}", namespace=router)
    assert fw4.put(opening()) == [None]
    assert elements(router)["dnat4"][0][1] == {"concat": [str(A), 4000]}


NO_DEVICE_NAMES = [
    'x" accept',
    "wan0; drop",
    "",
    "a" * 16,
    "wan*",
    "wan+",
    "wan0\n",
    "w\u00e4n0",
    ".",
    "wan:1",
    "wan\\0",
]


@pytest.mark.parametrize("name", NO_DEVICE_NAMES)
def test_a_device_name_that_nftables_would_not_get_is_refused_with_the_configuration(name: str) -> None:
    with pytest.raises(ValueError, match="is not a device name"):
        option_values.interface(name)


@pytest.mark.parametrize("name", NO_DEVICE_NAMES)
def test_a_device_name_that_is_none_never_reaches_nftables(router: str, fw4: Instance, name: str) -> None:
    [error] = fw4.put(opening(wan_device=name))
    assert isinstance(error, RulesetError)
    assert "not a device name" in str(error)
    with pytest.raises(RulesetError, match="is not a device name"):
        fw4.surroundings(Surroundings(frozenset({name}), frozenset(), frozenset()))


@pytest.mark.parametrize("name", ["pppoe-wan", "eth0.7", "br-lan", "wg0", "6in4-wan6", "eth0@if7", "-x", "..."])
def test_a_device_name_that_the_configuration_takes_is_taken_here(router: str, fw4: Instance, name: str) -> None:
    assert fw4.put(opening(wan_device=option_values.interface(name))) == [None]


@pytest.mark.parametrize("name", ["1x", "a-b", "a" * 32, "x; flush ruleset", "", "x\n"])
def test_a_table_name_that_the_configuration_refuses_is_refused_here(name: str) -> None:
    with pytest.raises(ValueError, match="is not a table name"):
        option_values.nft_name(name)
    with pytest.raises(OurFault, match="is not a table name"):
        NftablesBackend(name)


def test_a_table_name_that_nftables_reads_as_a_command_ends_the_start(router: str) -> None:
    with pytest.raises(OurFault, match=r"option nft_table: .*syntax error") as refused:
        Instance(router, NftablesBackend(option_values.nft_name("map")))
    assert not isinstance(refused.value, RulesetError)  # which would be tried again


@pytest.mark.parametrize(
    "content",
    [
        "chain input {\ntype filter hook input priority 0; policy drop;\n}",
        "set s {\ntype ipv4_addr\n}",
        "counter c {\n}",
    ],
)
def test_a_table_of_somebody_else_is_neither_taken_nor_touched(router: str, content: str) -> None:
    firewalls.load_nft(router, f"table inet filter {{\n{content}\n}}")
    before = command("nft", "list", "ruleset", namespace=router)
    with pytest.raises(OurFault, match="table inet filter belongs to somebody else") as refused:
        Instance(router, NftablesBackend("filter"))
    assert not isinstance(refused.value, RulesetError)
    assert command("nft", "list", "ruleset", namespace=router) == before


def test_an_own_table_in_which_somebody_else_made_chains_is_not_deleted(router: str) -> None:
    instance = Instance(router, NftablesBackend("igdpcp"))
    instance.surroundings()
    instance.put(opening())
    firewalls.load_nft(router, "table inet igdpcp {\nchain mine {\naccept\n}\n}")
    with pytest.raises(RulesetError, match="chain 'mine'"):
        instance.sync(opening())
    instance.release()
    assert elements(router, "igdpcp") == {}
    instance.vanish()
    assert "accept" in command("nft", "list", "chain", "inet", "igdpcp", "mine", namespace=router)


def test_an_own_table_of_an_earlier_process_is_taken_over(router: str) -> None:
    for _ in range(2):
        instance = Instance(router, NftablesBackend("filter"))
        instance.surroundings()
        assert instance.put(opening()) == [None]
        instance.vanish()


def test_without_the_drop_ins_the_error_says_so(router: str) -> None:
    firewalls.load_nft(router, firewalls.fw4(drop_ins=False))
    with pytest.raises(RulesetError, match="drop-ins not loaded"):
        Instance(router, NftablesBackend("fw4"))


def test_a_firewall_that_was_stopped_is_reported_and_never_made_by_us(router: str, fw4: Instance) -> None:
    command("nft", "flush", "ruleset", namespace=router)
    [error] = fw4.put(opening())
    assert "firewall not active" in str(error)
    assert command("nft", "list", "tables", namespace=router) == ""


def test_release_leaves_fw4_as_the_drop_ins_made_it(router: str, fw4: Instance) -> None:
    pristine = firewalls.fw4()
    fw4.put(opening(), opening("m2", serial=2, client=Endpoint(B, 7), wan_port=7))
    fw4.release()
    assert elements(router) == {}
    listed = command("nft", "-s", "list", "ruleset", namespace=router)
    command("nft", "flush", "ruleset", namespace=router)
    firewalls.load_nft(router, pristine)
    assert command("nft", "-s", "list", "ruleset", namespace=router) == listed


def test_release_closes_every_port_also_where_a_chain_of_ours_has_lost_its_rules(router: str, fw4: Instance) -> None:
    fw4.put(opening())
    command("nft", "flush", "chain", "inet", "fw4", f"{layout.PREFIX}guard", namespace=router)
    fw4.release()
    assert elements(router) == {}


def test_release_while_the_firewall_is_stopped_succeeds(router: str, fw4: Instance) -> None:
    fw4.put(opening())
    command("nft", "flush", "ruleset", namespace=router)
    fw4.release()
    assert command("nft", "list", "ruleset", namespace=router) == ""


def test_release_of_an_own_table_leaves_nothing(router: str) -> None:
    instance = Instance(router, NftablesBackend("igdpcp"))
    instance.surroundings()
    instance.put(opening())
    instance.release()
    instance.vanish()
    assert command("nft", "list", "ruleset", namespace=router) == ""


def test_sync_makes_an_own_table_that_somebody_flushed_away_again(router: str) -> None:
    instance = Instance(router, NftablesBackend("igdpcp"))
    instance.surroundings()
    instance.put(opening())
    before = command("nft", "-s", "list", "ruleset", namespace=router)
    command("nft", "flush", "ruleset", namespace=router)
    assert not instance.call(instance.commits.intact)
    instance.surroundings()
    instance.sync(opening())
    assert instance.call(instance.commits.intact)
    instance.vanish()
    assert command("nft", "-s", "list", "ruleset", namespace=router) == before


def test_elements_outlive_a_closed_instance(router: str, fw4: Instance) -> None:
    fw4.put(opening())
    before = set(elements(router))
    fw4.call(fw4.commits.close)
    assert set(elements(router)) == before


@pytest.mark.parametrize(
    ("policy", "last_rule", "drops"),
    [
        ("drop", "", True),
        ("accept", "reject", True),
        ("accept", "counter drop", True),
        ("accept", "jump reject_all", True),
        ("accept", "", False),
        ("accept", "tcp dport 25 reject", False),
    ],
)
def test_a_foreign_chain_that_drops_beside_an_own_table_is_named(
    router: str, policy: str, last_rule: str, drops: bool
) -> None:
    hook = f"type filter hook forward priority 0; policy {policy};"
    chains = f"chain reject_all {{\nreject\n}}\nchain ward {{\n{hook}\nct state established accept\n{last_rule}\n}}"
    firewalls.load_nft(router, f"table inet guard {{\n{chains}\n}}")
    instance = Instance(router, NftablesBackend("igdpcp"))
    reason = instance.call(instance.commits.foreign_drop)
    instance.vanish()
    assert ("inet guard ward" in (reason or "")) is drops


def test_inside_fw4_its_own_reject_is_no_obstacle(fw4: Instance) -> None:
    assert fw4.call(fw4.commits.foreign_drop) is None


def test_looking_at_the_ruleset_does_not_read_the_elements_of_thousands_of_mappings(router: str, fw4: Instance) -> None:
    """It takes a small part of the processor time that reading them takes."""
    ports = range(1024, 6024)
    fw4.sync(
        *(
            opening(f"m{port}", serial=port, wan_port=port, client=Endpoint(A, port), external=Endpoint(CARRIER, port))
            for port in ports
        )
    )

    def fresh_foreign_drop() -> None:
        another = Instance(router, NftablesBackend("fw4"))
        another.call(another.commits.foreign_drop)
        another.vanish()

    def read_all() -> None:
        nft = Nft()
        nft.query("list table inet fw4")
        nft.close()

    def took(look: Callable[[], Any]) -> float:
        began = time.process_time()
        look()
        return time.process_time() - began

    looks: list[Callable[[], Any]] = [
        lambda: inside(router, lambda: detect.masquerades("wan0")),
        lambda: inside(router, lambda: detect.choose_backend("auto", "auto")),
        lambda: fw4.call(fw4.commits.intact),
        fresh_foreign_drop,
    ]
    reading = min(took(lambda: inside(router, read_all)) for _ in range(3))
    for look in looks:
        assert min(took(look) for _ in range(3)) < reading / 4


def test_the_drop_ins_are_what_the_layout_says() -> None:
    shipped = {
        str(file.relative_to(firewalls.DROP_INS)): file.read_text() for file in firewalls.DROP_INS.rglob("*.nft")
    }
    assert shipped == layout.drop_ins()


def test_nft_accepts_the_drop_ins_inside_fw4(router: str) -> None:
    command("nft", "-c", "-f", "-", namespace=router, stdin=firewalls.fw4())
