# SPDX-License-Identifier: Apache-2.0
"""Comparing a table with what it must hold: which rules are there, what they have counted, and what nobody asked for.

An entry that is read says nothing of the shape that it was made from. So it is looked at as one of each shape that its
chain is to hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from igdpcp.errors import RulesetError
from igdpcp.netfilter import iptables_chains as chains
from igdpcp.netfilter.desired import Fact, Key
from igdpcp.netfilter.iptables_entries import Fingerprint, Stencil
from igdpcp.netfilter.iptables_rules import rules_of, shared_rules_of
from igdpcp.netfilter.iptables_shapes import Branch, Rule, Shape
from igdpcp.netfilter.iptables_table import Counted, Edit
from igdpcp.openings import Discrepancy

T = TypeVar("T")


class Expected(Generic[T]):
    """Rules that are looked for in a table, each with something that it stands for."""

    def __init__(self, edit: Edit) -> None:
        self._edit = edit
        self._rules: dict[str, dict[Fingerprint, T]] = {}
        self._stencils: dict[str, dict[Shape, Stencil]] = {}

    def add(self, rule: Rule, what: T) -> None:
        """Look for this rule, once however often it is added."""
        self._stencils.setdefault(rule.chain, {})[rule.shape] = self._edit.stencil(rule)
        self._rules.setdefault(rule.chain, {}).setdefault(self._edit.fingerprint(rule), what)

    def find(self, chain: str) -> Iterator[tuple[T | None, Counted]]:
        """For each rule of the chain what it stands for, None for one that is not looked for (any more)."""
        wanted, stencils = self._rules.get(chain, {}), self._stencils.get(chain, {}).values()
        for entry, target, counted in self._edit.found(chain):
            said = (stencil.fingerprint(entry, target) for stencil in stencils)
            yield next((wanted.pop(each) for each in said if each in wanted), None), counted

    @property
    def chains(self) -> list[str]:
        """Where rules are looked for."""
        return list(self._rules)

    def left(self) -> Iterator[T]:
        """What the rules stand for that were not found."""
        for rules in self._rules.values():
            yield from rules.values()


def counts(edit: Edit, wanted: Iterable[Rule]) -> dict[Rule, Counted]:
    """What those of the rules that are there have counted."""
    expected = Expected[Rule](edit)
    for rule in wanted:
        expected.add(rule, rule)
    found = ((rule, counted) for chain in expected.chains for rule, counted in expected.find(chain))
    return {rule: counted for rule, counted in found if rule}


def holds(edit: Edit, part: chains.Part, facts: Mapping[Key, Fact]) -> bool:
    """Whether these facts are in the table and packets get to them; costs little where they are few."""
    expected = _expected(edit, part, facts)
    for chain in expected.chains:
        for _ in expected.find(chain):
            pass
    return next(expected.left(), None) is None and _leads_to_ours(edit, part)


def audit(edit: Edit, part: chains.Part, facts: Mapping[Key, Fact]) -> Discrepancy:
    """How the table differs from the facts, which are all of this table.

    A fact is missing when one of its rules is, or when no packet gets there.
    """
    expected = _expected(edit, part, facts)
    surplus = sum(what is None for chain in edit.own_chains() for what, _ in expected.find(chain))
    left = list(expected.left())
    lost = {what for what in left if isinstance(what, Rule)}
    if not lost.isdisjoint(part.rules) or not _leads_to_ours(edit, part):
        return Discrepancy(len(facts), surplus)
    keys = {what for what in left if not isinstance(what, Rule)}
    if lost:
        keys |= {key for key, fact in facts.items() if not lost.isdisjoint(_common(key, fact))}
    return Discrepancy(len(keys), surplus)


def _expected(edit: Edit, part: chains.Part, facts: Mapping[Key, Fact]) -> Expected[Key | Rule]:
    """The rules of these facts, which stand for them, and those that others need too, which stand for themselves."""
    expected = Expected[Key | Rule](edit)
    for static in part.rules:
        expected.add(static, static)
    common: set[Rule] = set()
    branches: set[Branch | None] = set()
    for key, fact in facts.items():
        for rule in rules_of(key, fact.value):
            expected.add(rule, key)
            branches.add(rule.branch)
        common.update(shared_rules_of(key, fact.value))
    branches.update(rule.branch for rule in common)
    common.update(way for branch in branches if branch for way in (branch.to_node, branch.to_leaf))
    for rule in common:
        expected.add(rule, rule)
    return expected


def _leads_to_ours(edit: Edit, part: chains.Part) -> bool:
    try:
        chains.check(edit, part)
    except RulesetError:
        return False
    return True


def _common(key: Key, fact: Fact) -> Iterator[Rule]:
    """The rules without which this fact has no effect, and which others need too."""
    shared = list(shared_rules_of(key, fact.value))
    yield from shared
    for rule in (*rules_of(key, fact.value), *shared):
        if rule.branch:
            yield rule.branch.to_node
            yield rule.branch.to_leaf
