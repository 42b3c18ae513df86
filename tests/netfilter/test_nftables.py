# SPDX-License-Identifier: Apache-2.0
"""What the nftables back-end leaves in the kernel: timeouts, reloads, refused batches, and the objects of fw4."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from igdpcp.errors import RulesetError
from igdpcp.model import Endpoint, Protocol, Surroundings
from igdpcp.netfilter import layout
from igdpcp.netfilter.nftables import NftablesBackend
from tests.netfilter import firewalls
from tests.netfilter.topology import CARRIER, WAN, A, B, Instance, command, namespace, opening

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


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def timeouts(router: str, name: str) -> list[int]:
    held = elements(router)[name]
    return [(element[0] if isinstance(element, list) else element)["elem"]["timeout"] for element in held]


def test_a_cascaded_mapping_is_one_element_of_each_kind(router: str, fw4: Instance) -> None:
    fw4.put(opening())
    counts = {name: len(held) for name, held in mapping_elements(router).items()}
    assert counts == {"dnat4": 1, "snat4": 1, "own4": 1, "pass4": 1, "hair4": 2, "hsrc4": 1}


def test_every_element_of_a_mapping_has_its_lifetime_as_timeout(router: str, fw4: Instance) -> None:
    fw4.put(opening(lifetime=600))
    assert {timeout for name in mapping_elements(router) for timeout in timeouts(router, name)} == {600}


def test_a_lifetime_of_more_than_a_day_is_cut_to_a_day(router: str, fw4: Instance) -> None:
    fw4.put(opening(lifetime=604800))
    assert timeouts(router, "dnat4") == [86400]


def test_elements_expire_by_themselves(router: str, fw4: Instance) -> None:
    fw4.put(opening(lifetime=1))
    assert mapping_elements(router)
    wait_until(lambda: not mapping_elements(router))


def test_putting_a_mapping_again_rearms_its_elements(router: str, fw4: Instance) -> None:
    fw4.put(opening(lifetime=1))
    assert fw4.put(opening(lifetime=900)) == [None]
    assert timeouts(router, "dnat4") == [900]


def test_a_mapping_whose_elements_expired_can_be_put_again_and_removed(router: str, fw4: Instance) -> None:
    fw4.put(opening(lifetime=1))
    wait_until(lambda: not mapping_elements(router))
    assert fw4.put(opening()) == [None]
    assert "dnat4" in elements(router)
    fw4.put(opening(lifetime=1))
    wait_until(lambda: not mapping_elements(router))
    fw4.remove("m1")
    assert mapping_elements(router) == {}


def test_putting_again_what_expired_is_a_change_of_that_mapping_alone(router: str, fw4: Instance) -> None:
    fw4.put(opening(lifetime=1))
    wait_until(lambda: not mapping_elements(router))
    command("nft", "add element inet fw4 igdpcp1_own4 { wan9 . udp . 9 }", namespace=router)
    assert fw4.put(opening()) == [None]
    assert len(elements(router)["own4"]) == 2


def test_removing_the_last_of_two_that_share_an_element_takes_it_away(router: str, fw4: Instance) -> None:
    fw4.put(opening("m1", remote_host=WAN), opening("m2", serial=2, remote_host=CARRIER))
    fw4.remove("m1")
    assert len(elements(router)["pass4"]) == 1
    fw4.remove("m2")
    assert mapping_elements(router) == {}


def test_a_shared_element_lives_as_long_as_the_longest_that_needs_it(router: str, fw4: Instance) -> None:
    fw4.put(opening("m1", remote_host=WAN, lifetime=60), opening("m2", serial=2, remote_host=CARRIER, lifetime=600))
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


def test_one_bad_mapping_of_a_batch_fails_alone(router: str, fw4: Instance) -> None:
    good = [opening(f"m{port}", serial=port, wan_port=port, client=Endpoint(A, port)) for port in range(5000, 5010)]
    results = fw4.put(*good[:5], opening("bad", wan_port=70000), *good[5:])
    assert [str(result) for result in results if result] == [str(results[5])]
    assert isinstance(results[5], RulesetError)
    assert "mapping bad: " in str(results[5])
    assert "out of range" in str(results[5])
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


@pytest.mark.parametrize("name", ['x" accept', "wan0; drop", "", "a" * 16, "wan*", "wan0\n"])
def test_a_device_name_that_is_none_never_reaches_nftables(router: str, fw4: Instance, name: str) -> None:
    [error] = fw4.put(opening(wan_device=name))
    assert isinstance(error, RulesetError)
    assert "not a device name" in str(error)
    with pytest.raises(RulesetError, match="not a device name"):
        fw4.surroundings(Surroundings(frozenset({name}), frozenset(), frozenset()))


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
    instance.sync(opening())
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


def test_the_drop_ins_are_what_the_layout_says() -> None:
    shipped = {
        str(file.relative_to(firewalls.DROP_INS)): file.read_text() for file in firewalls.DROP_INS.rglob("*.nft")
    }
    assert shipped == layout.drop_ins()


def test_nft_accepts_the_drop_ins_inside_fw4(router: str) -> None:
    command("nft", "-c", "-f", "-", namespace=router, stdin=firewalls.fw4())
