# SPDX-License-Identifier: Apache-2.0
"""Objects of another release: what is left of them is taken away, and translates nothing while it is still loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from igdpcp.errors import RulesetError
from igdpcp.model import Endpoint, Protocol
from igdpcp.netfilter import layout
from igdpcp.netfilter.nftables import NftablesBackend
from tests.netfilter import firewalls
from tests.netfilter.topology import (
    SERVER,
    SURROUNDINGS,
    WAN,
    A,
    B,
    Instance,
    Network,
    command,
    namespace,
    network,
    opening,
    tcp,
    udp,
)

pytestmark = pytest.mark.lab

OLD = "igdpcp0_"
ORPHAN = '{ "wan0" . tcp . 4444 : 192.168.1.6 . 4444 }'


@pytest.fixture
def router() -> Iterator[str]:
    with namespace() as name:
        yield name


def nft(router: str, script: str) -> str:
    return command("nft", "-f", "-", namespace=router, stdin=script)


def listed(router: str) -> str:
    return command("nft", "-s", "list", "ruleset", namespace=router)


def old_release(text: str) -> str:
    """The same objects as a release of another generation has them."""
    return text.replace(layout.PREFIX, OLD)


def with_old_drop_ins() -> str:
    """fw4's ruleset with the drop-ins of both generations, those of the other one first."""
    text = firewalls.fw4()
    jump = re.compile(rf"^\s*(jump {layout.PREFIX}\w+) comment .*$", re.MULTILINE)
    text = jump.sub(lambda found: f"{old_release(found[0])}\n{found[0]}", text)
    head, brace, tail = text.rpartition("}")
    return head + old_release(layout.objects()) + brace + tail


def made(router: str, table: str) -> Instance:
    instance = Instance(router, NftablesBackend(table))
    instance.surroundings()
    instance.sync(opening())
    return instance


def fresh_table(router: str) -> str:
    """What an own table with that mapping looks like where nothing was left."""
    made(router, "igdpcp").vanish()
    fresh = listed(router)
    command("nft", "flush", "ruleset", namespace=router)
    return fresh


def test_an_own_table_of_another_generation_is_cleaned_at_start(router: str) -> None:
    fresh = fresh_table(router)
    nft(router, old_release(layout.own_table("igdpcp")))
    nft(router, f"add element inet igdpcp {OLD}dnat4 {ORPHAN}\nadd counter inet igdpcp {OLD}hits")
    instance = Instance(router, NftablesBackend("igdpcp"))
    assert OLD not in listed(router)
    instance.surroundings()
    instance.sync(opening())
    instance.vanish()
    assert listed(router) == fresh


def test_a_release_that_follows_a_newer_one_cleans_up_as_well(router: str) -> None:
    fresh = fresh_table(router)
    nft(router, layout.own_table("igdpcp").replace(layout.PREFIX, "igdpcp27_"))
    made(router, "igdpcp").vanish()
    assert listed(router) == fresh


OUTDATED_MAP = (
    "add table inet igdpcp\n"
    "add map inet igdpcp igdpcp1_dnat4 { type inet_service : ipv4_addr; }\n"
    "add chain inet igdpcp igdpcp1_dst_wan\n"
    "add rule inet igdpcp igdpcp1_dst_wan dnat ip to tcp dport map @igdpcp1_dnat4\n"
)


@pytest.mark.parametrize(
    "outdated",
    [
        OUTDATED_MAP,
        layout.own_table("igdpcp").replace("wan4 {\n\ttype ifname;", "wan4 {\n\ttype ifname;\n\tflags interval;"),
        layout.own_table("igdpcp").replace("dstnat + 5", "dstnat + 7"),
    ],
    ids=["map", "flags", "priority"],
)
def test_an_object_of_an_own_table_that_is_outdated_is_made_anew(router: str, outdated: str) -> None:
    assert outdated != layout.own_table("igdpcp")
    fresh = fresh_table(router)
    nft(router, outdated)
    made(router, "igdpcp").vanish()
    assert listed(router) == fresh


def test_an_object_that_becomes_outdated_while_we_run_is_made_anew_by_the_next_sync(router: str) -> None:
    instance = made(router, "igdpcp")
    fresh = listed(router)
    nft(router, f"delete table inet igdpcp\n{OUTDATED_MAP}")
    with pytest.raises(RulesetError):
        instance.surroundings()  # elements would be lost, and nobody would put them back
    instance.sync(opening())
    instance.vanish()
    assert listed(router) == fresh


def test_what_the_user_named_like_us_stays(router: str) -> None:
    nft(router, "table inet igdpcp {\nset igdpcp_friends {\ntype ipv4_addr\nelements = { 192.0.2.1 }\n}\n}")
    made(router, "igdpcp").vanish()
    assert "192.0.2.1" in command("nft", "list", "set", "inet", "igdpcp", "igdpcp_friends", namespace=router)


@pytest.mark.parametrize("earlier", [layout.own_table("igdpcp"), old_release(layout.own_table("mine"))])
def test_a_table_that_was_ours_before_another_was_chosen_goes(router: str, earlier: str) -> None:
    firewalls.load_nft(router, firewalls.fw4())
    made(router, "fw4").vanish()
    fresh = listed(router)
    nft(router, earlier)
    assert listed(router) != fresh
    made(router, "fw4").vanish()
    assert listed(router) == fresh


def test_an_own_table_in_which_somebody_made_chains_stays_when_another_is_chosen(router: str) -> None:
    made(router, "igdpcp").vanish()
    nft(router, "add chain inet igdpcp mine")
    before = listed(router)
    made(router, "other").vanish()
    assert listed(router).startswith(before)


def test_what_old_drop_ins_left_in_fw4s_table_goes_once_they_are_not_loaded_any_more(router: str) -> None:
    firewalls.load_nft(router, firewalls.fw4())
    made(router, "fw4").vanish()
    fresh = listed(router)
    command("nft", "flush", "ruleset", namespace=router)

    firewalls.load_nft(router, with_old_drop_ins())
    nft(router, f"add element inet fw4 {OLD}dnat4 {ORPHAN}")
    firewalls.load_nft(router, firewalls.fw4())  # the reload after the upgrade: objects stay, rules go
    assert "4444" in listed(router)
    made(router, "fw4").vanish()
    assert listed(router) == fresh


def test_release_takes_what_another_generation_left_along(router: str) -> None:
    firewalls.load_nft(router, with_old_drop_ins())
    instance = made(router, "fw4")
    nft(router, f"add element inet fw4 {OLD}dnat4 {ORPHAN}")
    instance.release()
    instance.vanish()
    assert "4444" not in listed(router)


def test_a_reload_that_leaves_the_drop_ins_out_is_noticed(router: str) -> None:
    firewalls.load_nft(router, firewalls.fw4())
    running = made(router, "fw4")
    firewalls.load_nft(router, firewalls.fw4(drop_ins=False))  # option auto_includes '0': the chains stay, empty
    assert not running.call(running.commits.intact)
    for act in (running.sync, lambda: Instance(router, NftablesBackend("fw4"))):
        with pytest.raises(RulesetError, match="drop-ins not loaded"):
            act()
    firewalls.load_nft(router, firewalls.fw4())
    running.sync(opening())
    assert running.call(running.commits.intact)
    running.vanish()


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network("G") as made:
        yield made


@pytest.fixture
def both(net: Network) -> Iterator[Instance]:
    """An instance beside the loaded drop-ins of another generation, whose sets hold a mapping that is no more."""
    command("nft", "flush", "ruleset", namespace=net.router)
    firewalls.load_nft(net.router, with_old_drop_ins())
    devices = "".join(
        f"add element inet fw4 {OLD}{name} {{ {device} }}\n"
        for name, device in (("wan4", "wan0"), ("wan6", "wan0"), ("lan", "br-lan"))
    )
    elements = {
        "dnat4": "wan0 . tcp . 4000 : 192.168.1.6 . 4000",
        "snat4": "wan0 . udp . 192.168.1.5 . 4000 : 4777",
        "pass4": "tcp . 4000 . 192.168.1.6 . 4000",
    }
    orphans = "".join(f"add element inet fw4 {OLD}{name} {{ {one} }}\n" for name, one in elements.items())
    command("nft", "-f", "-", namespace=net.router, stdin=devices + orphans)
    assert tcp(net.outside, (WAN, 4000), net.b, Endpoint(B, 4000)) is not None
    instance = Instance(net.router, NftablesBackend("fw4"))
    instance.surroundings(SURROUNDINGS)
    yield instance
    instance.call(instance.commits.close)
    instance.vanish()


def test_beside_loaded_drop_ins_of_another_generation_ours_alone_translate(net: Network, both: Instance) -> None:
    both.sync(opening(), opening("m2", serial=2, protocol=Protocol.UDP, wan_port=4005))
    assert tcp(net.outside, (WAN, 4000), net.a, Endpoint(A, 4000)) is not None
    seen = udp(net.a, (SERVER, 7000), net.outside, Endpoint(SERVER, 7000), (A, 4000))
    assert seen == (str(WAN), 4005)


def test_beside_loaded_drop_ins_of_another_generation_nothing_is_open_that_we_do_not_know(
    net: Network, both: Instance
) -> None:
    both.sync()
    assert tcp(net.outside, (WAN, 4000), net.b, Endpoint(B, 4000)) is None
