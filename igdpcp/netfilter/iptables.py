# SPDX-License-Identifier: Apache-2.0
"""The iptables back-end: python-iptables on the legacy tables, own chains, one commit per table and change set.

Every commit rewrites a whole table, and fails when anybody else changed it since it was read; so each change reads the
table again, changes and commits. Each table is a commit of its own: what lets packets through is there before the
packets are redirected, and is taken away after it. The xtables lock is held over all of them: whoever does not get it
has changed nothing.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar

from igdpcp.errors import OurFault, RulesetError
from igdpcp.netfilter import foreign, iptables_library
from igdpcp.netfilter import iptables_audit as audit
from igdpcp.netfilter import iptables_chains as chains
from igdpcp.netfilter import iptables_rules as rules
from igdpcp.netfilter.base import NOWHERE
from igdpcp.netfilter.desired import Change, Fact, Key, Pinhole
from igdpcp.netfilter.iptables_chains import Part
from igdpcp.netfilter.iptables_entries import Stencils
from igdpcp.netfilter.iptables_shapes import Rule
from igdpcp.netfilter.iptables_table import Counted, Edit, xtables_lock
from igdpcp.netfilter.libnftables import Nft
from igdpcp.openings import Discrepancy, Surroundings

T = TypeVar("T")

PROMPT_UP_TO = 128  # mappings and pinholes; every change writes the whole table
COMMIT_TRIES = 5  # a program that takes no lock may get between; it seldom does so twice
_NOTHING: Counted = (0, 0)
_NOT_OPEN = "the iptables back-end is not open"


class IptablesBackend:
    """Facts as rules in chains ``IGDPCP-*`` of the tables nat and filter; pinholes in IPv6's filter.

    ``only``: the table to which it confines itself, where something else does the rest.
    """

    name = "iptables"
    prompt_up_to: float = PROMPT_UP_TO
    in_fw4 = False

    def __init__(self, only: str = "") -> None:
        iptables_library.must_be_installed()
        self._only = only
        self._iptc: Any = None
        self._stencils: Any = None
        self._surroundings = NOWHERE
        self._shared: dict[Rule, int] = {}  # by how many facts it is needed, one at least
        self._locked = False

    def open(self) -> None:
        """Load the library and put the chains in; what an earlier process left in them stays until ``sync``."""
        self._iptc = iptables_library.load()
        self._stencils = Stencils(self._iptc)
        with xtables_lock():
            for part in self._parts(self._surroundings):
                self._change(part, chains.frame)

    def surroundings(self, surroundings: Surroundings) -> None:
        """Write the chains that mappings do not change anew; they are kept to also when that fails now."""
        parts = self._parts(surroundings)
        self._surroundings = surroundings
        with xtables_lock():
            for part in parts:
                self._change(part, chains.lay)

    @contextmanager
    def locked(self, *, wait: bool = True) -> Iterator[None]:
        """Hold the lock of xtables meanwhile, also over ``apply``. Raises RulesetBusy when it is not to be had."""
        if self._locked:
            yield
            return
        with xtables_lock(wait=wait):
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    def apply(self, changes: list[Change], now: float, *, wait: bool = True) -> None:
        """Add and delete the rules in which the changes differ; none when only ends do."""
        needed: dict[Rule, int] = {}  # by how many facts then
        gone: list[Rule] = []
        come: list[Rule] = []
        for change in changes:
            before, after = change.before, change.after
            if before and after and before.value == after.value:
                continue
            if before:
                gone += rules.rules_of(change.key, before.value)
                self._need(needed, -1, rules.shared_rules_of(change.key, before.value))
            if after:
                come += rules.rules_of(change.key, after.value)
                self._need(needed, 1, rules.shared_rules_of(change.key, after.value))
        for rule, count in needed.items():
            if (rule in self._shared) is not (count > 0):
                (come if count else gone).append(rule)
        if gone or come:
            with self.locked(wait=wait):
                self._exchange(gone, come)
        for rule, count in needed.items():
            if count:
                self._shared[rule] = count
            else:
                self._shared.pop(rule, None)

    def sync(self, facts: dict[Key, Fact], now: float) -> None:
        """Empty our chains and write everything into them; what pinholes have counted is kept."""
        shared = Counter(rule for key, fact in facts.items() for rule in rules.shared_rules_of(key, fact.value))
        pinholes = any(isinstance(key, Pinhole) for key in facts)
        with xtables_lock():
            for part in self._parts(self._surroundings, ipv6=pinholes):
                self._change(part, self._rewrite, facts, shared)
        self._shared = shared

    def release(self) -> None:
        """Take our chains and the jumps to them out of all tables."""
        with xtables_lock():
            for part in reversed(self._parts(self._surroundings)):
                self._change(part, chains.remove)
        self._shared = {}
        self._surroundings = NOWHERE

    def close(self, keep_rules: bool) -> None:
        """Rules without a timeout may not outlive the daemon, so without a successor they go."""
        if self._iptc is not None and not keep_rules:
            self.release()

    def intact(self, sample: Mapping[Key, Fact]) -> bool:
        """Whether our jumps stand where they take effect, what mappings do not change is there, and these facts."""
        try:
            return all(self._look(part, audit.holds, mine) for part, mine in self._divided(sample))
        except RulesetError:
            return False

    def audit(self, facts: Mapping[Key, Fact], now: float) -> Discrepancy:
        """How the kernel differs from these facts; raises RulesetError when it cannot be read."""
        found = Discrepancy()
        for part, mine in self._divided(facts):
            more = self._look(part, audit.audit, mine)
            found = Discrepancy(found.missing + more.missing, found.surplus + more.surplus)
        return found

    def foreign_drop(self) -> str | None:
        """Name an nftables forward chain that refuses what it does not accept: it decides beside iptables."""
        try:
            nft = Nft()
        except OurFault:
            return None
        try:
            return foreign.forward_drop(nft)
        finally:
            nft.close()

    def packets(self, key: Pinhole) -> int:
        """What the rule of this pinhole has counted; 0 when it is not there."""
        part = Part("filter", True, self._surroundings)
        counted: dict[Rule, Counted] = self._look(part, lambda edit, _: audit.counts(edit, rules.rules_of(key, None)))
        return sum(packets for packets, _ in counted.values())

    def _parts(self, surroundings: Surroundings, *, ipv6: bool = False) -> list[Part]:
        parts = chains.parts(surroundings, ipv6=ipv6)
        return [part for part in parts if part.table == self._only] if self._only else parts

    def _divided(self, facts: Mapping[Key, Fact]) -> Iterator[tuple[Part, dict[Key, Fact]]]:
        """The tables, and which of the facts are of each."""
        for part in self._parts(self._surroundings, ipv6=any(isinstance(key, Pinhole) for key in facts)):
            place = part.table, part.ipv6
            yield part, {key: fact for key, fact in facts.items() if rules.place_of(key) == place}

    def _need(self, needed: dict[Rule, int], more: int, shared: Iterable[Rule]) -> None:
        for rule in shared:
            count = needed.get(rule)
            needed[rule] = (self._shared.get(rule, 0) if count is None else count) + more

    def _exchange(self, gone: list[Rule], come: list[Rule]) -> None:
        """Accept before redirecting, and the other way round when taking away; a refused part is taken back."""
        nat, *filters = (Part(*place, self._surroundings) for place in rules.CHAINS)
        done: list[tuple[Part, list[Rule]]] = []
        try:
            for part in filters:
                if new := list(filter(part.holds, come)):
                    self._change(part, chains.amend, [], new)
                    done.append((part, new))
            old, new = list(filter(nat.holds, gone)), list(filter(nat.holds, come))
            if old or new:
                self._change(nat, chains.amend, old, new)
        except RulesetError:
            for part, new in done:
                with suppress(RulesetError):
                    self._change(part, _replace, new, [])
            raise
        for part in filters:
            if old := list(filter(part.holds, gone)):
                self._change(part, _replace, old, [])

    def _rewrite(self, edit: Edit, part: Part, facts: dict[Key, Fact], shared: Iterable[Rule]) -> None:
        wanted: Iterable[Rule] = _rules_in(part, facts, shared)
        counted: dict[Rule, Counted] = {}
        if part.ipv6:
            wanted = list(wanted)
            counted = audit.counts(edit, wanted)
        chains.rewrite(edit, part, ((rule, counted.get(rule, _NOTHING)) for rule in wanted))

    def _change(self, part: Part, edit: Callable[..., None], *what: Any) -> None:
        """Read the table, edit it, commit; once more when a program that takes no lock changed it meanwhile."""
        if self._iptc is None:
            raise RulesetError(_NOT_OPEN)
        for left in reversed(range(COMMIT_TRIES)):
            try:
                with closing(self._read(part)) as table:
                    edit(table, part, *what)
                    table.commit()
                return
            except self._iptc.IPTCError as error:
                if not left or os.strerror(errno.EAGAIN) not in str(error):
                    raise RulesetError(f"iptables table {part.table}: {error}") from error

    def _look(self, part: Part, look: Callable[..., T], *what: Any) -> T:
        with closing(self._read(part)) as table:
            return look(table, part, *what)

    def _read(self, part: Part) -> Edit:
        if self._iptc is None:
            raise RulesetError(_NOT_OPEN)
        try:
            return Edit(self._iptc, self._stencils, part.table, part.ipv6)
        except self._iptc.IPTCError as error:
            raise RulesetError(f"iptables table {part.table}: {error}") from error


def _rules_in(part: Part, facts: dict[Key, Fact], shared: Iterable[Rule]) -> Iterator[Rule]:
    """The rules of one table, one at a time: all of them together would be larger than the table."""
    for key, fact in facts.items():
        if rules.place_of(key) == (part.table, part.ipv6):
            yield from rules.rules_of(key, fact.value)
    yield from filter(part.holds, shared)


def _replace(edit: Edit, _: Part, gone: Iterable[Rule], come: Iterable[Rule]) -> None:
    chains.replace(edit, gone, come)
