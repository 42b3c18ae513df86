# SPDX-License-Identifier: Apache-2.0
"""What the audit of the iptables back-end finds when somebody was at the tables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from igdpcp.errors import RulesetError
from igdpcp.model import Endpoint, Mode
from igdpcp.netfilter.desired import Desired
from igdpcp.netfilter.iptables import IptablesBackend
from igdpcp.openings import Discrepancy
from tests.netfilter import firewalls
from tests.netfilter.topology import (
    CARRIER,
    SERVER,
    SERVER6,
    SURROUNDINGS,
    B,
    command,
    inside,
    namespace,
    opening,
    pinhole,
)

pytestmark = pytest.mark.lab

OPENINGS = [
    opening(),
    opening("m2", serial=2, wan_port=4001, client=Endpoint(B, 81), external=Endpoint(CARRIER, 5001)),
    opening("m3", serial=3, mode=Mode.ROUTED, client=Endpoint(B, 82), remote_hosts=(SERVER,)),
    pinhole("pinhole-4", serial=4),
    pinhole("pinhole-5", serial=5, remote_host=SERVER6, remote_port=9),
]


class Router:
    """A router whose tables hold the openings, as one process after another left them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._backend = IptablesBackend()
        desired = Desired()
        for one in OPENINGS:
            desired.set(one.id, one)
        self._facts = desired.all_facts(0.0)
        inside(name, self._begin)

    def _begin(self) -> None:
        self._backend.open()
        self._backend.surroundings(SURROUNDINGS)
        self.sync()

    def sync(self) -> None:
        self._backend.sync(self._facts, 0.0)

    @property
    def facts(self) -> int:
        return len(self._facts)

    def audited(self) -> tuple[int, int]:
        found: Discrepancy = inside(self._name, lambda: self._backend.audit(self._facts, 0.0))
        return found.missing, found.surplus

    def intact(self) -> bool:
        return inside(self._name, lambda: self._backend.intact(self._facts))

    def iptables(self, words: str, program: str = "iptables-legacy") -> None:
        command(program, *words.split(), namespace=self._name)

    def mended(self) -> tuple[int, int]:
        inside(self._name, self.sync)
        return self.audited()


@pytest.fixture
def router() -> Iterator[Router]:
    with namespace() as name:
        firewalls.load_legacy(name)
        firewalls.load_legacy6(name)
        yield Router(name)


def test_tables_that_are_as_they_must_be_agree(router: Router) -> None:
    assert router.audited() == (0, 0)
    assert router.intact()


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        ("-t nat -D IGDPCP-D-wan0/t0f 1", (1, 0)),
        ("-t nat -R IGDPCP-D-wan0/t0f 1 -p tcp -m tcp --dport 4000 -j DNAT --to-destination 192.168.1.9:4000", (1, 1)),
        ("-D IGDPCP-PASS/t0f 1", (1, 0)),
        ("-t nat -F IGDPCP-S-wan0/t0f", (3, 0)),  # a source port, and that both ports are ours
        ("-t nat -A IGDPCP-D-wan0/t0f -p tcp -j ACCEPT", (0, 1)),
        ("-t nat -A IGDPCP-LOOP -j RETURN", (0, 1)),
    ],
)
def test_what_was_changed_by_hand_is_counted_and_mended(router: Router, harm: str, found: tuple[int, int]) -> None:
    router.iptables(harm)
    assert router.audited() == found
    assert router.intact() is (found[0] == 0)
    assert router.mended() == (0, 0)


def test_rules_in_a_chain_of_ours_that_nothing_needs_are_surplus(router: Router) -> None:
    router.iptables("-N IGDPCP-old")
    router.iptables("-A IGDPCP-old -j ACCEPT")
    assert router.audited() == (0, 1)
    assert router.mended() == (0, 0)


def test_behind_a_way_that_is_gone_everything_is_missing(router: Router) -> None:
    router.iptables("-t nat -F IGDPCP-D-wan0")
    assert router.audited() == (2, 0)
    assert router.mended() == (0, 0)


def test_behind_a_jump_that_is_gone_everything_of_its_table_is_missing(router: Router) -> None:
    router.iptables("-D FORWARD -j IGDPCP-FWD")
    passes = 4  # the two mappings that are redirected, one of them for its other port too, and the one that is not
    assert router.audited() == (passes, 0)
    assert router.mended() == (0, 0)


def test_pinholes_are_audited_in_the_tables_of_ipv6(router: Router) -> None:
    router.iptables("-F IGDPCP-HOLES/t0f", "ip6tables-legacy")
    assert router.audited() == (2, 0)
    router.iptables("-A IGDPCP-HOLES/t0f -j ACCEPT", "ip6tables-legacy")
    assert router.audited() == (2, 1)
    assert router.mended() == (0, 0)


def test_a_table_that_cannot_be_read_is_no_finding() -> None:
    with pytest.raises(RulesetError, match="not open"):
        IptablesBackend().audit({}, 0.0)
