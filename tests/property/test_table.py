# SPDX-License-Identifier: Apache-2.0
"""What holds in the mapping table after any history."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from igdpcp.errors import Refusal
from igdpcp.iwf.table import REST_SECONDS, SYSTEM_UPDATE_IDS, MappingTable
from igdpcp.model import Endpoint, Entry, Grant, Mapping, MappingRequest, MappingState, Mode, Owner, Protocol, Requester

HOSTS = [IPv4Address(f"192.168.1.{n}") for n in (50, 60, 70)]
CARRIERS = [IPv4Address(f"62.0.0.{n}") for n in (1, 2)]
REMOTES = st.sampled_from([None, IPv4Address("198.51.100.9"), IPv4Address("198.51.100.10")])
PORTS = st.sampled_from([8080, 8081, 8082, 9000])
SHOWN = (MappingState.ACTIVE, MappingState.ENDING)


class Histories(RuleBasedStateMachine):
    """Plans, grants, hides, ends and forgets, with few ports, so that everything collides."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.table = MappingTable()
        self.now = 1000.0
        self.used: set[int] = set()
        self.shown: dict[str, object] = {}
        self.update_id = 0

    @rule(
        target=ids,
        host=st.sampled_from(HOSTS),
        protocol=st.sampled_from(Protocol),
        port=PORTS,
        client_port=PORTS,
        any_port=st.booleans(),
        mode=st.sampled_from(Mode),
        contends=st.booleans(),
    )
    def plan(
        self,
        host: IPv4Address,
        protocol: Protocol,
        port: int,
        client_port: int,
        any_port: bool,
        mode: Mode,
        contends: bool,
    ) -> str:
        request = MappingRequest(
            Requester(host, Owner.UPNP1), protocol, port, Endpoint(host, client_port), any_port=any_port
        )
        try:
            mapping = self.table.plan(
                request, mode, self.now, lambda _, wan_port: wan_port in self.used, contends=contends
            )
        except Refusal as refusal:
            return refusal.reason.value
        assert mapping.wan_port not in self.used or mode is Mode.ROUTED
        return mapping.id

    @rule(id=ids, port=PORTS, state=st.sampled_from(MappingState), address=st.sampled_from(CARRIERS))
    def grant(self, id: str, port: int, state: MappingState, address: IPv4Address) -> None:
        mapping = self.table.get(id)
        if mapping is None:
            return
        external = port if mapping.request.any_port else mapping.external_port
        grant = Grant("pcp", mapping.request.client.address, Endpoint(address, external), 600, self.now + 600)
        try:
            self.table.update(replace(mapping, state=state, grant=grant, external_port=external))
        except Refusal:
            unchanged = self.table.get(id) == mapping
            assert unchanged, "a refused update changes nothing"

    @rule(id=ids, client_port=PORTS)
    def repoint(self, id: str, client_port: int) -> None:
        mapping = self.table.get(id)
        if mapping is not None and mapping.mode is not Mode.ROUTED:
            client = Endpoint(mapping.request.client.address, client_port)
            self.table.update(mapping.with_entry(Entry(replace(mapping.request, client=client), None)))

    @rule(id=ids, host=REMOTES)
    def join(self, id: str, host: IPv4Address | None) -> None:
        if mapping := self.table.get(id):
            self.table.update(mapping.with_entry(Entry(replace(mapping.request, remote_host=host), None)))

    @rule(id=ids, host=REMOTES)
    def part(self, id: str, host: IPv4Address | None) -> None:
        mapping = self.table.get(id)
        if mapping and (left := mapping.keeping(lambda entry: entry.request.remote_host != host)):
            self.table.update(left)

    @rule(id=ids)
    def lose(self, id: str) -> None:
        mapping = self.table.get(id)
        if mapping is not None and mapping.request.any_port:
            self.table.update(replace(mapping, state=MappingState.RETRYING, grant=None, external_port=0))

    @rule(id=consumes(ids))
    def forget(self, id: str) -> None:
        if self.table.get(id) is not None:
            self.table.forget([id], self.now)

    @rule(seconds=st.floats(0, 2 * REST_SECONDS))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(ports=st.sets(PORTS))
    def use(self, ports: set[int]) -> None:
        self.used = ports

    @invariant()
    def no_two_mappings_have_the_same_external_port(self) -> None:
        keys = [(m.request.protocol, m.external_port) for m in self.table if m.visible]
        assert len(keys) == len(set(keys))

    @invariant()
    def no_two_mappings_have_the_same_internal_tuple_upstream(self) -> None:
        tuples = [_internal(mapping) for mapping in self.table]
        assert len(tuples) == len(set(tuples))

    @invariant()
    def the_listing_is_what_is_shown_in_any_order_of_index(self) -> None:
        listed = [self.table.at(index) for index in range(self.table.listed)]
        assert listed == list(self.table.listing())
        names = [(entry.id, entry.request.remote_host) for entry in listed]
        shown = {(entry.id, entry.request.remote_host) for entry in self._entries() if entry.state in SHOWN}
        assert (len(names), set(names)) == (len(shown), shown)
        with pytest.raises(Refusal):
            self.table.at(self.table.listed)

    @invariant()
    def what_is_shown_is_found_by_its_port(self) -> None:
        for mapping in self.table:
            if mapping.visible:
                found = self.table.find(mapping.request.protocol, mapping.external_port)
                assert found is mapping

    @invariant()
    def who_contends_for_a_port_has_no_grant_and_is_the_only_one(self) -> None:
        for mapping in self.table:
            contender = self.table.find_contender(mapping.request.protocol, mapping.external_port)
            assert contender is None or contender.grant is None
            if not mapping.request.any_port:
                assert mapping in (contender, self.table.find(mapping.request.protocol, mapping.external_port))

    @invariant()
    def each_host_holds_what_leads_to_it(self) -> None:
        for host in HOSTS:
            assert self.table.held_by(host) == sum(each.request.client.address == host for each in self._entries())
        assert self.table.counted == len(self._entries())

    @invariant()
    def each_host_comes_out_where_its_youngest_mapping_does(self) -> None:
        usual = CARRIERS[0]
        for host in HOSTS:
            own = [each.grant for each in self.table.listing() if each.request.client.address == host]
            addresses = [usual] + [grant.external.address for grant in own if grant]
            assert self.table.external_address_of(host, usual) == addresses[-1]

    @invariant()
    def the_update_id_grows_with_each_change_that_is_shown(self) -> None:
        shown = {(m.id, m.request.remote_host): (m.request, m.external_port) for m in self._entries() if m.visible}
        if shown != self.shown:
            assert self.table.system_update_id == (self.update_id + 1) % SYSTEM_UPDATE_IDS
        else:
            assert self.table.system_update_id == self.update_id
        self.shown, self.update_id = shown, self.table.system_update_id  # type: ignore[assignment]

    def _entries(self) -> list[Mapping]:
        return [entry for mapping in self.table for entry in mapping.entries]


def _internal(mapping: Mapping) -> tuple[object, ...]:
    client = mapping.request.client
    if mapping.mode is Mode.ROUTED:
        return mapping.request.protocol, client.address, client.port
    return mapping.request.protocol, None, mapping.wan_port


Histories.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAfterAnyHistory = Histories.TestCase
