# SPDX-License-Identifier: Apache-2.0
"""Which back-end a router gets, and whether its own rules translate addresses already."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from igdpcp.errors import OurFault, RulesetError
from igdpcp.netfilter import detect, libnftables
from igdpcp.netfilter.iptables import IptablesBackend
from igdpcp.netfilter.nftables import NftablesBackend
from tests.netfilter import firewalls
from tests.netfilter.topology import Instance, command, inside, namespace, opening

pytestmark = pytest.mark.lab


@pytest.fixture
def router() -> Iterator[str]:
    with namespace() as name:
        yield name


def masquerades(router: str, device: str) -> bool:
    return inside(router, lambda: detect.masquerades(device))


def srcnat(rule: str, more: str = "") -> str:
    hook = "type nat hook postrouting priority srcnat; policy accept;"
    return f"table inet t {{\n{more}\nchain out {{\n{hook}\n{rule}\n}}\n}}"


def tables_after_start(router: str, setting: str, nft_table: str) -> str:
    instance = Instance(router, inside(router, lambda: detect.choose_backend(setting, nft_table)))
    instance.vanish()
    return command("nft", "list", "tables", namespace=router)


def test_auto_takes_fw4s_table_where_there_is_one(router: str) -> None:
    firewalls.load_nft(router, firewalls.fw4())
    assert tables_after_start(router, "auto", "auto") == "table inet fw4\n"


def test_auto_makes_an_own_table_elsewhere(router: str) -> None:
    assert tables_after_start(router, "auto", "auto") == "table inet igdpcp\n"


def test_a_table_can_be_named(router: str) -> None:
    firewalls.load_nft(router, firewalls.fw4())
    assert tables_after_start(router, "nftables", "mine") == "table inet fw4\ntable inet mine\n"


def test_a_table_name_that_is_none_is_refused(router: str) -> None:
    with pytest.raises(OurFault, match="is not a table name"):
        inside(router, lambda: detect.choose_backend("nftables", "x; flush ruleset"))


def test_iptables_is_taken_when_it_is_asked_for(router: str) -> None:
    assert isinstance(inside(router, lambda: detect.choose_backend("iptables", "auto")), IptablesBackend)


def test_auto_takes_iptables_where_libnftables_is_missing(router: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libnftables, "LIBRARY", "libnftables.so.none")
    assert isinstance(inside(router, lambda: detect.choose_backend("auto", "auto")), IptablesBackend)
    with pytest.raises(OurFault, match="install nftables-json"):
        inside(router, lambda: detect.choose_backend("nftables", "auto"))


def test_auto_takes_iptables_where_the_kernel_has_no_nftables(router: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RulesetError("Operation not supported")

    monkeypatch.setattr(libnftables.Nft, "query", refuse)
    assert isinstance(inside(router, lambda: detect.choose_backend("auto", "auto")), IptablesBackend)


def test_with_neither_library_the_error_names_both_packages(router: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libnftables, "LIBRARY", "libnftables.so.none")
    monkeypatch.setitem(sys.modules, "iptc", None)
    with pytest.raises(OurFault, match=r"install nftables-json.*install igdpcp-iptables"):
        inside(router, lambda: detect.choose_backend("auto", "auto"))


def test_choosing_nftables_does_not_load_python_iptables(router: str) -> None:
    code = (
        "import sys; from igdpcp.netfilter.detect import choose_backend; choose_backend('nftables', 'auto');"
        "sys.exit('iptc' in sys.modules)"
    )
    command(sys.executable, "-c", code, namespace=router)


def test_an_empty_router_does_not_masquerade(router: str) -> None:
    assert not masquerades(router, "wan0")


def test_fw4s_masquerade_counts_for_its_wan_device_only(router: str) -> None:
    firewalls.load_nft(router, firewalls.fw4())
    assert masquerades(router, "wan0")
    assert not masquerades(router, "br-lan")


@pytest.mark.parametrize(
    ("rule", "translated"),
    [
        ("masquerade", True),
        ("snat ip to 192.0.2.1", True),
        ('oifname "wan0" masquerade', True),
        ('oifname { "wan0", "wan1" } masquerade', True),
        ('oifname "wan*" ip saddr 10.0.0.0/8 masquerade', True),
        ('oifname != "br-lan" masquerade', True),
        ('oif "lo" masquerade', False),
        ('oifname "ppp0" masquerade', False),
        ('oifname != "wan0" masquerade', False),
        ("meta nfproto ipv6 masquerade", False),
        ('oifname "wan0" accept', False),
    ],
)
def test_a_masquerade_counts_where_it_lets_the_device_through(router: str, rule: str, translated: bool) -> None:
    firewalls.load_nft(router, srcnat(rule))
    assert masquerades(router, "wan0") is translated


def test_a_masquerade_for_a_named_set_of_devices_counts_for_its_elements(router: str) -> None:
    devices = 'set outer {\ntype ifname\nelements = { "wan0" }\n}'
    firewalls.load_nft(router, srcnat("oifname @outer masquerade", devices))
    assert masquerades(router, "wan0")
    assert not masquerades(router, "wan1")


def test_a_masquerade_in_a_chain_that_nothing_reaches_does_not_count(router: str) -> None:
    firewalls.load_nft(router, "table inet t {\nchain lost {\nmasquerade\n}\n}")
    assert not masquerades(router, "wan0")


def test_rules_that_cannot_be_read_are_not_taken_for_none(router: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = libnftables.Nft.query

    def refuse(nft: libnftables.Nft, command: str, *, elements: bool = True) -> list[dict[str, Any]]:
        if command == "list ruleset":
            raise RulesetError("Interrupted system call")
        return real(nft, command, elements=elements)

    monkeypatch.setattr(libnftables.Nft, "query", refuse)
    with pytest.raises(RulesetError, match="Interrupted"):
        masquerades(router, "wan0")


def test_legacy_rules_that_no_program_can_read_are_not_taken_for_none(
    router: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    firewalls.load_legacy(router)
    monkeypatch.setattr(detect, "_LEGACY_SAVE", ("iptables-none-save",))
    with pytest.raises(RulesetError, match="iptables-none-save"):
        masquerades(router, "wan0")


def test_a_kernel_without_nftables_is_asked_for_legacy_rules_alone(
    router: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RulesetError("Operation not supported")

    monkeypatch.setattr(libnftables.Nft, "query", refuse)
    assert not masquerades(router, "wan0")
    firewalls.load_legacy(router)
    assert masquerades(router, "wan0")


def test_our_own_nftables_rules_do_not_count(router: str) -> None:
    instance = Instance(router, NftablesBackend("igdpcp"))
    instance.surroundings()
    instance.put(opening())
    instance.vanish()
    assert not masquerades(router, "wan0")


@pytest.mark.parametrize(
    ("rules", "translated"),
    [
        ("-A POSTROUTING -o wan0 -j MASQUERADE", True),
        ("-A POSTROUTING -j SNAT --to-source 192.0.2.1", True),
        (":zone -\n-A POSTROUTING -o wan+ -j zone\n-A zone -j MASQUERADE", True),
        ("-A POSTROUTING ! -o br-lan -j MASQUERADE", True),
        ("-A POSTROUTING ! -o wan0 -j MASQUERADE", False),
        ("-A POSTROUTING -o ppp0 -j MASQUERADE", False),
        (":zone -\n-A zone -j MASQUERADE", False),
    ],
)
def test_legacy_iptables_rules_count_in_the_same_way(router: str, rules: str, translated: bool) -> None:
    firewalls.load_legacy(router, f"*nat\n{rules}\nCOMMIT\n")
    assert masquerades(router, "wan0") is translated


def test_our_own_iptables_rules_do_not_count(router: str) -> None:
    instance = Instance(router, IptablesBackend())
    instance.surroundings()
    instance.put(opening())
    instance.vanish()
    assert not masquerades(router, "wan0")
