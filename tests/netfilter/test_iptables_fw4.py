# SPDX-License-Identifier: Apache-2.0
"""iptables beside fw4: which of the two holds what, and that a refused change is in neither."""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from igdpcp.errors import OurFault, RulesetError
from igdpcp.model import Endpoint
from igdpcp.netfilter import detect, iptables_table
from igdpcp.netfilter.desired import Fact, Key, contributions
from igdpcp.netfilter.iptables_fw4 import Fw4IptablesBackend
from igdpcp.openings import Discrepancy
from tests.netfilter import firewalls
from tests.netfilter.topology import SURROUNDINGS, B, Instance, command, inside, namespace, opening, pinhole

pytestmark = pytest.mark.lab


@pytest.fixture
def router() -> Iterator[str]:
    with namespace() as name:
        firewalls.load_nft(name, firewalls.fw4())
        yield name


def start(router: str, nft_table: str = "auto") -> Instance:
    instance = Instance(router, inside(router, lambda: detect.choose_backend("iptables", nft_table)))
    instance.surroundings()
    return instance


def elements(router: str) -> str:
    listed = command("nft", "list", "table", "inet", "fw4", namespace=router)
    return "\n".join(line for line in listed.splitlines() if "timeout" in line and "expires" in line)


def legacy(router: str) -> list[str]:
    saved = command("iptables-legacy-save", namespace=router).splitlines()
    return [line for line in saved if line.startswith("-A")]


def test_iptables_translates_and_fw4s_sets_let_through(router: str) -> None:
    instance = start(router)
    instance.put(opening(), pinhole())
    held = legacy(router)
    assert "-A IGDPCP-D-wan0/t0f -p tcp -m tcp --dport 4000 -j DNAT --to-destination 192.168.1.5:4000" in held
    assert not [rule for rule in held if "ACCEPT" in rule]
    assert "tcp . 4000 . 192.168.1.5 . 4000" in elements(router)
    assert "2600:1::5 . tcp . 4000" in elements(router)
    instance.vanish()


def test_where_the_drop_ins_are_not_loaded_or_another_table_is_named_iptables_stands_alone(router: str) -> None:
    assert not isinstance(inside(router, lambda: detect.choose_backend("iptables", "mine")), Fw4IptablesBackend)
    command("nft", "flush", "ruleset", namespace=router)
    firewalls.load_nft(router, firewalls.fw4(drop_ins=False))
    assert not isinstance(inside(router, lambda: detect.choose_backend("iptables", "auto")), Fw4IptablesBackend)


def test_a_mapping_that_iptables_refuses_is_not_in_fw4_either(router: str) -> None:
    instance = start(router)
    [error] = instance.put(opening(client=Endpoint(B, 70000)))
    assert isinstance(error, RulesetError)
    assert elements(router) == ""
    instance.vanish()


def test_a_mapping_for_which_iptables_is_locked_is_not_in_fw4_either(
    router: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    instance = start(router)
    lock = tmp_path / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    monkeypatch.setattr(iptables_table, "LOCK_WAIT", 0.1)
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        [error] = instance.put(opening())
    assert isinstance(error, RulesetError)
    assert elements(router) == ""
    instance.vanish()


def test_while_fw4_is_stopped_a_mapping_fails_and_iptables_does_not_redirect(router: str) -> None:
    instance = start(router)
    command("nft", "delete", "table", "inet", "fw4", namespace=router)
    [error] = instance.put(opening())
    assert "firewall not active" in str(error)
    assert not [rule for rule in legacy(router) if "DNAT --to-destination" in rule]
    instance.vanish()


def test_what_either_loses_is_missing_and_what_either_has_too_much_is_surplus(router: str) -> None:
    def audited() -> Discrepancy:
        facts: dict[Key, Fact] = {key: Fact(value, 600.0) for key, value in contributions(opening())}
        return backend.audit(facts, 0.0)

    def begin() -> None:
        backend.open()
        backend.surroundings(SURROUNDINGS)
        backend.sync({key: Fact(value, 600.0) for key, value in contributions(opening())}, 0.0)

    backend = Fw4IptablesBackend()
    inside(router, begin)
    assert inside(router, audited) == Discrepancy()
    command("iptables-legacy", "-t", "nat", "-F", "IGDPCP-D-wan0/t0f", namespace=router)
    command("iptables-legacy", "-t", "nat", "-A", "IGDPCP-D-wan0/t0f", "-j", "RETURN", namespace=router)
    assert inside(router, audited) == Discrepancy(missing=1, surplus=1)


def test_choosing_iptables_where_python_iptables_is_missing_names_the_package(
    router: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "iptc", None)
    with pytest.raises(OurFault, match=r"^python-iptables is missing: install igdpcp-iptables"):
        inside(router, lambda: detect.choose_backend("iptables", "auto"))
