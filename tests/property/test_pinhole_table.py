# SPDX-License-Identifier: Apache-2.0
"""What holds in the table of pinholes after any history."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from igdpcp.iwf.pinhole_table import PinholeTable
from igdpcp.model import UNIQUE_IDS, Owner, Pinhole, PinholeRequest, Protocol, Requester

HOSTS = [IPv6Address("2600:1::5"), IPv6Address("2600:1::6")]
REQUESTS = st.builds(
    PinholeRequest,
    requester=st.just(Requester(HOSTS[0], Owner.UPNP1)),
    protocol=st.sampled_from(Protocol),
    client=st.sampled_from(HOSTS),
    client_port=st.sampled_from([4000, 4001]),
    remote_host=st.sampled_from([None, IPv6Address("2600:9::1")]),
    remote_port=st.sampled_from([0, 5000]),
    lease=st.just(100),
)


def test_each_id_is_given_once_before_one_is_given_again() -> None:
    table, given = PinholeTable(), list[int]()
    wish = PinholeRequest(Requester(HOSTS[0], Owner.UPNP1), Protocol.TCP, HOSTS[0], 4000, None, 0, 100)
    for _ in UNIQUE_IDS:
        given.append(table.add(wish, 100.0).id)
        table.forget(given[-1])
    assert sorted(given) == list(UNIQUE_IDS)
    assert table.add(wish, 100.0).id == given[0]


class Histories(RuleBasedStateMachine):
    """Adds, refreshes and forgets around the end of the numbers, with few addresses and ports."""

    def __init__(self) -> None:
        super().__init__()
        self.table = PinholeTable()
        self.table._last = UNIQUE_IDS[-5]
        self.held: dict[int, Pinhole] = {}
        self.given: list[int] = []

    @rule(request=REQUESTS)
    def add(self, request: PinholeRequest) -> None:
        if held := self.table.find(request):
            renewed = replace(held, lease_ends=held.lease_ends + 1)
            self.table.update(renewed)
            self.held[held.id] = renewed
            return
        pinhole = self.table.add(request, 100.0)
        assert pinhole.id in UNIQUE_IDS
        assert pinhole.id not in self.held
        assert pinhole.id not in self.given[-1000:]
        self.given.append(pinhole.id)
        self.held[pinhole.id] = pinhole

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.held)))
        del self.held[id]
        self.table.forget(id)

    @invariant()
    def it_holds_what_was_added_and_not_forgotten(self) -> None:
        assert {pinhole.id: pinhole for pinhole in self.table} == self.held
        assert len(self.table) == len(self.held)

    @invariant()
    def each_is_found_by_its_id_and_by_what_it_lets_in(self) -> None:
        for pinhole in self.held.values():
            assert self.table.get(pinhole.id) == self.table.find(pinhole.request) == pinhole

    @invariant()
    def each_address_holds_what_leads_to_it(self) -> None:
        for host in HOSTS:
            assert self.table.held_by(host) == sum(pinhole.request.client == host for pinhole in self.held.values())


Histories.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAfterAnyHistory = Histories.TestCase


def test_an_id_that_is_held_is_passed_over_and_after_the_last_comes_the_first() -> None:
    table = PinholeTable()
    request = PinholeRequest(Requester(HOSTS[0], Owner.UPNP1), Protocol.TCP, HOSTS[0], 4000, None, 0, 100)
    table.restore(Pinhole(UNIQUE_IDS[-1], request, 100.0))
    table.restore(Pinhole(UNIQUE_IDS[0], replace(request, client_port=4001), 100.0))
    table._last = UNIQUE_IDS[-2]
    assert table.add(replace(request, client_port=4002), 100.0).id == UNIQUE_IDS[1]
