# SPDX-License-Identifier: Apache-2.0
"""The iptables back-end: python-iptables on the legacy tables, own chains, one commit per table and change set.

Every commit rewrites a whole table, and fails when anybody else changed it since it was read; so each change takes the
xtables lock, reads the table again, changes and commits. The two tables are two commits: what lets packets through is
there before the packets are redirected, and is taken away after it.
"""

from __future__ import annotations

import errno
import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igdpcp.errors import OurFault, RulesetError
from igdpcp.model import Discrepancy, Surroundings
from igdpcp.netfilter import foreign
from igdpcp.netfilter import iptables_place as place
from igdpcp.netfilter import iptables_rules as rules
from igdpcp.netfilter.base import NOWHERE
from igdpcp.netfilter.desired import Change, Fact, Key, Pinhole
from igdpcp.netfilter.iptables_rules import Rule
from igdpcp.netfilter.iptables_table import Edit, load, xtables_lock
from igdpcp.netfilter.libnftables import Nft

COMMIT_TRIES = 5  # a program that takes no lock may get between; it seldom does so twice

_IPV6_TABLES = Path("/proc/thread-self/net/ip6_tables_names")  # the tables that this network namespace uses


class IptablesBackend:
    """Facts as rules in chains ``IGDPCP-*`` of the tables nat and filter."""

    name = "iptables"
    pinholes = False
    prompt = False

    def __init__(self) -> None:
        if importlib.util.find_spec("iptc") is None:
            raise OurFault("python-iptables is missing: install igdpcp-iptables (OpenWrt) or igdpcp[iptables] (pip)")
        self._iptc: Any = None
        self._surroundings = NOWHERE
        self._shared: Counter[Rule] = Counter()

    def open(self) -> None:
        """Load the library and put the chains in; what an earlier process left in them stays until ``sync``."""
        self._iptc = load()
        for table in ("filter", "nat"):
            self._change(table, _frame, _Static(table, False, self._surroundings))

    def surroundings(self, surroundings: Surroundings) -> None:
        """Write the chains that mappings do not change anew; they are kept to also when that fails now."""
        static = _statics(surroundings)
        self._surroundings = surroundings
        for part in static:
            self._change(part.table, _static, part, ipv6=part.ipv6)

    def apply(self, changes: list[Change], now: float) -> None:
        """Add and delete the rules in which the changes differ; none when only ends do."""
        shared = self._shared.copy()
        gone: list[Rule] = []
        come: list[Rule] = []
        for change in changes:
            before, after = change.before, change.after
            if before and after and before.value == after.value:
                continue
            if before:
                gone += rules.rules_of(change.key, before.value)
                shared.subtract(rules.shared_rules_of(change.key, before.value))
            if after:
                come += rules.rules_of(change.key, after.value)
                shared.update(rules.shared_rules_of(change.key, after.value))
        gone += [rule for rule in self._shared if shared[rule] <= 0]
        come += [rule for rule in shared if shared[rule] > 0 and rule not in self._shared]
        self._exchange(gone, come)
        self._shared = +shared

    def sync(self, facts: dict[Key, Fact], now: float) -> None:
        """Empty our chains and write everything into them."""
        shared = Counter(rule for key, fact in facts.items() for rule in rules.shared_rules_of(key, fact.value))
        wanted = [rule for key, fact in facts.items() for rule in rules.rules_of(key, fact.value)]
        for part in _statics(self._surroundings):
            mine = [] if part.ipv6 else [rule for rule in (*wanted, *shared) if rule.table == part.table]
            self._change(part.table, _everything, part, mine, ipv6=part.ipv6)
        self._shared = shared

    def release(self) -> None:
        """Take our chains and the jumps to them out of all tables."""
        for part in reversed(_statics(self._surroundings)):
            self._change(part.table, _nothing, part, ipv6=part.ipv6)
        self._shared = Counter()
        self._surroundings = NOWHERE

    def close(self, keep_rules: bool) -> None:
        """Rules without a timeout may not outlive the daemon, so without a successor they go."""
        if self._iptc is not None and not keep_rules:
            self.release()

    def audit(self, facts: Mapping[Key, Fact], now: float) -> Discrepancy:
        """Everything is there or nothing, as far as ``intact`` can tell."""
        return Discrepancy() if self.intact(facts) else Discrepancy(missing=len(facts))

    def intact(self, sample: Mapping[Key, Fact]) -> bool:
        """Whether our jumps stand where they take effect, and the chains that mappings do not change are filled."""
        try:
            for part in _statics(self._surroundings):
                _check(self._read(part.table, part.ipv6), part)
        except RulesetError:
            return False
        return True

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
        """There are no pinholes here."""
        return 0

    def _exchange(self, gone: list[Rule], come: list[Rule]) -> None:
        """Accept before redirecting, and the other way round when taking away; a refused part is taken back."""
        filter_part, nat_part = (_Static(table, False, self._surroundings) for table in ("filter", "nat"))
        accepts = [rule for rule in come if rule.table == "filter"]
        if accepts:
            self._change("filter", _amend, filter_part, [], accepts)
        try:
            old, new = ([rule for rule in part if rule.table == "nat"] for part in (gone, come))
            if old or new:
                self._change("nat", _amend, nat_part, old, new)
        except RulesetError:
            with suppress(RulesetError):
                self._change("filter", _replace, accepts, [])
            raise
        stale = [rule for rule in gone if rule.table == "filter"]
        if stale:
            self._change("filter", _replace, stale, [])

    def _change(self, name: str, edit: Callable[..., None], *what: Any, ipv6: bool = False) -> None:
        """Read the table, edit it, commit; once more when another program changed it meanwhile."""
        with xtables_lock():
            for left in reversed(range(COMMIT_TRIES)):
                try:
                    table = self._read(name, ipv6)
                    edit(table, *what)
                    table.commit()
                    return
                except (self._iptc.IPTCError, self._iptc.XTablesError, ValueError) as error:
                    if not left or os.strerror(errno.EAGAIN) not in str(error):
                        raise RulesetError(f"iptables table {name}: {error}") from error

    def _read(self, name: str, ipv6: bool) -> Edit:
        if self._iptc is None:
            raise RulesetError("the iptables back-end is not open")
        try:
            table = (self._iptc.Table6 if ipv6 else self._iptc.Table)(name, autocommit=False)
            table.refresh()
        except self._iptc.IPTCError as error:
            raise RulesetError(f"iptables table {name}: {error}") from error
        return Edit(self._iptc, table)


@dataclass(frozen=True, slots=True)
class _Static:
    """What of one table no mapping changes."""

    table: str
    ipv6: bool
    surroundings: Surroundings

    @property
    def jumps(self) -> list[Rule]:
        return [jump for jump in rules.JUMPS if (jump.table, jump.ipv6) == (self.table, self.ipv6)]

    @property
    def rules(self) -> list[Rule]:
        static = rules.static_rules(self.surroundings)
        return [rule for rule in static if (rule.table, rule.ipv6) == (self.table, self.ipv6)]


def _statics(surroundings: Surroundings) -> list[_Static]:
    """One for each table; IPv6's only where it is in use or needed. Raises RulesetError for what is no device name."""
    list(rules.static_rules(surroundings))  # a bad name is refused before anything is written
    parts = [_Static("filter", False, surroundings), _Static("nat", False, surroundings)]
    needed = any(peer.server.version == 6 for peer in surroundings.pcp_peers) or surroundings.shut_devices
    with suppress(OSError):
        if needed or "filter" in _IPV6_TABLES.read_text().split():
            parts.append(_Static("filter", True, surroundings))
    return parts


def _frame(edit: Edit, part: _Static) -> None:
    """Our fixed chains, and the one jump to each at its place, wherever an older one stood."""
    for chain in rules.CHAINS[part.table]:
        edit.need(chain)
    for jump in part.jumps:
        while edit.delete(jump):
            pass
        if jump.target == rules.BEHIND_BANS:
            edit.insert(jump, place.before_refusal(edit.standing, jump.chain, part.surroundings))
        else:
            edit.add(jump)


def _check(edit: Edit, part: _Static) -> None:
    """Raises RulesetError when mappings' rules would not take effect: somebody loaded or flushed the table."""
    for jump in part.jumps:
        targets = edit.targets(jump.chain)
        end = len(targets)
        if jump.target == rules.BEHIND_BANS:
            end = place.before_refusal(edit.standing, jump.chain, part.surroundings)
        if jump.target not in targets[:end]:
            raise RulesetError(f"iptables table {part.table}: {jump.chain} does not lead to {jump.target}")
    filled = sum(len(edit.targets(chain)) for chain in rules.STATIC_CHAINS[part.table])
    if filled != len(part.rules):
        raise RulesetError(f"iptables table {part.table}: our chains hold {filled} rules of {len(part.rules)}")


def _static(edit: Edit, part: _Static) -> None:
    _frame(edit, part)
    for chain in rules.STATIC_CHAINS[part.table]:
        edit.flush(chain)
    _replace(edit, [], part.rules)


def _everything(edit: Edit, part: _Static, wanted: Iterable[Rule]) -> None:
    _clear(edit, part, keep=rules.CHAINS[part.table])
    _static(edit, part)
    _replace(edit, [], wanted)


def _nothing(edit: Edit, part: _Static) -> None:
    _clear(edit, part, keep=())


def _clear(edit: Edit, part: _Static, keep: Collection[str]) -> None:
    """Our chains without any rule, and none but those to keep; another release may have had others and led to them."""
    for chain in rules.BUILT_IN[part.table]:
        for target in edit.targets(chain):
            if target.startswith(rules.PREFIX) and target not in keep:
                edit.delete(Rule(part.table, chain, target, ipv6=part.ipv6))
    chains = edit.own_chains()
    for chain in chains:
        edit.flush(chain)
    for chain in set(chains).difference(keep):
        edit.drop(chain)


def _amend(edit: Edit, part: _Static, gone: Iterable[Rule], come: Iterable[Rule]) -> None:
    _check(edit, part)
    _replace(edit, gone, come)


def _replace(edit: Edit, gone: Iterable[Rule], come: Iterable[Rule]) -> None:
    """A rule to delete may be missing: somebody flushed it, and it shall not be there anyway."""
    for rule in gone:
        edit.delete(rule)
    for rule in come:
        edit.add(rule)
