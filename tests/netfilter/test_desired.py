# SPDX-License-Identifier: Apache-2.0
"""What follows from a set of openings, whatever their history was."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from hypothesis import given, settings
from hypothesis import strategies as st

from igdpcp.model import Endpoint, Mode, Protocol
from igdpcp.netfilter.desired import (
    Desired,
    Fact,
    Hairpin,
    HairpinSender,
    HairpinTarget,
    Key,
    OwnPort,
    Pass,
    Redirect,
    SourcePort,
    contributions,
    difference,
)
from igdpcp.openings import Opening
from tests.netfilter.topology import CARRIER, SERVER, WAN, A, B, opening

TCP = Protocol.TCP


def facts(*openings: Opening) -> dict[Key, Fact]:
    desired = Desired()
    for at, one in enumerate(openings):
        desired.set(one.id, replace(one, ends=100.0 + at))
    return desired.all_facts(0.0)


def test_a_local_mapping_has_one_hairpin_since_its_external_address_is_the_wans() -> None:
    local = opening(mode=Mode.LOCAL, external=Endpoint(WAN, 4000))
    hairpins = [key for key, _ in contributions(local) if isinstance(key, Hairpin)]
    assert hairpins == [Hairpin(WAN, TCP, 4000)]


def test_the_port_before_translation_is_let_through_for_both_ways_in() -> None:
    passed = [key for key, _ in contributions(opening(external=Endpoint(CARRIER, 5000))) if isinstance(key, Pass)]
    assert passed == [Pass(TCP, 4000, Endpoint(A, 4000)), Pass(TCP, 5000, Endpoint(A, 4000))]


def test_a_restricted_mapping_has_no_hairpin() -> None:
    for restricted in opening(remote_hosts=(SERVER,)), opening(hairpins=False):
        assert not [key for key, _ in contributions(restricted) if isinstance(key, Hairpin)]


def test_a_routed_mapping_translates_only_short_cuts() -> None:
    kinds = [type(key) for key, _ in contributions(opening(mode=Mode.ROUTED))]
    assert not {Redirect, SourcePort, OwnPort} & set(kinds)
    held = facts(opening(mode=Mode.ROUTED))
    assert held[Hairpin(CARRIER, TCP, 4000)].value == HairpinTarget(Endpoint(A, 4000), "")


def test_the_oldest_of_several_decides_however_they_came() -> None:
    young = opening("young", serial=9, wan_port=5000, external=Endpoint(CARRIER, 5000))
    old = opening("old", serial=3)
    for order in ((young, old), (old, young)):
        held = facts(*order)
        assert held[SourcePort("wan0", TCP, Endpoint(A, 4000))].value == 4000
        assert held[HairpinSender(TCP, Endpoint(A, 4000))].value == Endpoint(CARRIER, 4000)


def test_a_shown_port_is_a_hairpin_unless_somebody_really_has_it() -> None:
    alias = opening(wan_port=5000, external=Endpoint(CARRIER, 6000), shown_port=5000)
    held = facts(alias)
    for port, via in ((5000, "wan0"), (6000, "")):
        assert held[Hairpin(CARRIER, TCP, port)].value == HairpinTarget(Endpoint(A, 4000), via)
        assert Pass(TCP, port, Endpoint(A, 4000)) in held
    theirs = opening("m2", serial=2, wan_port=7000, client=Endpoint(B, 4000), external=Endpoint(CARRIER, 5000))
    for order in ((alias, theirs), (theirs, alias)):
        held = facts(*order)
        assert held[Hairpin(CARRIER, TCP, 5000)].value == HairpinTarget(Endpoint(B, 4000), "")
        assert held[Hairpin(CARRIER, TCP, 6000)].value == HairpinTarget(Endpoint(A, 4000), "")


def test_a_restricted_mapping_has_no_hairpin_by_its_shown_port() -> None:
    held = facts(opening(remote_hosts=(SERVER,), external=Endpoint(CARRIER, 6000), shown_port=5000))
    assert not [key for key in held if isinstance(key, Hairpin)]


def test_an_opening_that_has_ended_wants_nothing() -> None:
    desired = Desired()
    desired.set("m1", opening(ends=50.0))
    assert desired.all_facts(50.0) == {}


_addresses = st.sampled_from([A, B])
_ports = st.integers(1, 3)
_openings = st.builds(
    opening,
    id=st.sampled_from(["m1", "m2", "m3", "m4"]),
    serial=st.integers(1, 4),
    mode=st.sampled_from(list(Mode)),
    protocol=st.sampled_from(list(Protocol)),
    wan_port=_ports,
    client=st.builds(Endpoint, _addresses, _ports),
    external=st.builds(Endpoint, st.sampled_from([WAN, CARRIER]), _ports),
    remote_hosts=st.sampled_from([(), (SERVER,), (SERVER, IPv4Address("192.0.2.7"))]),
    shown_port=st.sampled_from([0, 1, 2, 3]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(_openings, st.booleans()), max_size=20))
def test_the_changes_of_any_history_add_up_to_what_is_wanted_at_its_end(history: list[tuple[Opening, bool]]) -> None:
    desired = Desired()
    kernel: dict[Key, object] = {}
    serials: dict[int, str] = {}
    for at, (one, wanted) in enumerate(history):
        if serials.setdefault(one.serial, one.id) != one.id:
            continue  # a serial belongs to one mapping
        earlier = desired.get(one.id)
        one = replace(one, ends=1000.0 + at)
        touched = [one, *([earlier] if earlier else [])]
        before = desired.facts(touched)
        desired.set(one.id, one if wanted else None)
        for change in difference(before, desired.facts(touched)):
            assert kernel.get(change.key) == change.before
            if change.after is None:
                del kernel[change.key]
            else:
                kernel[change.key] = change.after
    assert kernel == desired.all_facts(0.0)
