# SPDX-License-Identifier: Apache-2.0
"""No host is kept from its first mapping by those who hold many, whatever the others do."""

from __future__ import annotations

from ipaddress import IPv4Address

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from igdpcp.errors import Refusal
from igdpcp.iwf.fair_share import LAST_PART, WANTING_LIMIT, FairShare
from igdpcp.iwf.table import MappingTable
from igdpcp.model import Endpoint, Mapping, MappingRequest, Mode, Owner, Protocol, Requester

HOSTS = [IPv4Address(f"192.168.1.{n}") for n in range(2, 14)]


class Household:
    """Hosts that ask for mappings and give them back."""

    def __init__(self, total: int) -> None:
        self.total, self.port = total, 1024
        self.table = MappingTable()
        self.shares = FairShare(total, self.table, lambda: 0.0)
        self.held: dict[IPv4Address, list[Mapping]] = {host: [] for host in HOSTS}
        self.refused: set[IPv4Address] = set()

    @property
    def free(self) -> int:
        return self.total - self.table.counted

    def ask(self, host: IPv4Address) -> bool:
        """Whether it gets one."""
        try:
            self.shares.admit(host)
        except Refusal:
            self.refused.add(host)
            return False
        self.refused.discard(host)
        self.port += 1
        request = MappingRequest(Requester(host, Owner.UPNP1), Protocol.TCP, self.port, Endpoint(host, self.port))
        self.held[host].append(self.table.plan(request, Mode.CASCADED, 0.0, lambda *_: False))
        return True

    def give_back(self, host: IPv4Address) -> None:
        self.table.forget([self.held[host].pop().id], 0.0)

    def alone(self, host: IPv4Address) -> bool:
        """Whether no other one holds any, or waits for one."""
        return not any(self.held[other] or other in self.refused for other in HOSTS if other != host)

    def greediest_first(self) -> list[IPv4Address]:
        return sorted(HOSTS, key=lambda host: -len(self.held[host]))


@st.composite
def households(draw: st.DrawFn) -> Household:
    """After any history."""
    household = Household(draw(st.integers(len(HOSTS), 64)))
    for host, wanted, given_back in draw(
        st.lists(st.tuples(st.sampled_from(HOSTS), st.integers(0, 64), st.integers(0, 8)), max_size=20)
    ):
        before = household.free
        for _ in range(wanted):
            few = household.alone(host) or len(household.held[host]) < max(1, before)
            scarce = household.free <= max(1, household.total // LAST_PART)
            if household.ask(host) and scarce:
                assert few, "one of the last went to a host that holds more than are free"
            before = household.free
        for _ in range(min(given_back, len(household.held[host]))):
            household.give_back(host)
    return household


@settings(deadline=None)
@given(households())
def test_iwf_184_a_host_that_holds_none_gets_one_whenever_one_is_free(household: Household) -> None:
    for host in HOSTS:
        if not household.held[host]:
            free = household.free
            assert household.ask(host) is (free > 0)


@settings(deadline=None)
@given(households(), st.data())
def test_iwf_184_no_host_is_starved_while_mappings_are_given_back(household: Household, data: st.DataObject) -> None:
    """All hosts want more all the time, the greediest one asks first each time, and those with many end now and then.

    Whoever has more than one may be the one whose mapping ends, as it is with leases of the same length.
    """
    for _ in range(2 * len(HOSTS)):
        for host in household.greediest_first():
            while household.ask(host):
                pass
        starving = [host for host in HOSTS if not household.held[host]]
        assert not starving or household.free == 0
        if not starving:
            break
        household.give_back(data.draw(st.sampled_from([host for host in HOSTS if len(household.held[host]) > 1])))
    assert all(household.held[host] for host in HOSTS)


@settings(deadline=None)
@given(st.integers(3, 64), st.integers(1, 10))
def test_iwf_184_a_host_that_takes_all_it_can_leaves_room_for_others(total: int, others: int) -> None:
    household = Household(total)
    assert household.ask(HOSTS[1])
    while household.ask(HOSTS[0]):
        pass
    assert 0 < household.free <= max(1, total // LAST_PART)
    left = household.free
    served = [household.ask(host) for host in HOSTS[2 : 2 + others]]
    assert served == [number < left for number in range(len(served))]


@pytest.mark.parametrize("missing", [0, 1])
def test_iwf_184_of_the_hosts_that_wait_no_more_count_than_are_remembered(missing: int) -> None:
    """With them and the two that hold some, a second one for each is just what the carrier's quota gives."""
    household, quota = Household(10_000), 2 * (WANTING_LIMIT + 2) - missing
    few, many = HOSTS[:2]
    household.ask(few)
    for _ in range(quota - 5):
        household.ask(many)
    for number in range(WANTING_LIMIT + 50):
        household.shares.quota_met(IPv4Address("192.168.2.0") + number, coming=quota)
    assert household.ask(few) == (not missing)
