# SPDX-License-Identifier: Apache-2.0
"""One legacy table through libiptc: read, look at, edit, commit; and the lock that programs take for it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from igdpcp.errors import RulesetBusy, RulesetError
from igdpcp.netfilter import iptables_place as place
from igdpcp.netfilter import iptables_rules as rules
from igdpcp.netfilter.iptables_entries import Fingerprint, Stencil, Stencils
from igdpcp.netfilter.iptables_shapes import Branch, Rule

LOCK_FILE = "/run/xtables.lock"  # iptables(8): shared by all programs and all network namespaces
LOCK_WAIT = 5.0  # seconds; a daemon that ends has to take its rules away in less than procd gives it
LOCK_POLL = 0.02  # seconds

Counted = tuple[int, int]  # packets, bytes


class Edit:
    """One table as it was just read; its changes are seen by nobody before the commit.

    Rules go to the table as entries, not through iptc.Chain: that one puts a pipe in place of the process's standard
    output and has every extension print itself into it, each time a rule is used.
    """

    def __init__(self, iptc: Any, stencils: Stencils, name: str, ipv6: bool) -> None:
        """Read the table; raises IPTCError."""
        self._iptc = iptc
        self._stencils = stencils
        self._table = (iptc.Table6 if ipv6 else iptc.Table)(name, autocommit=False)
        self._table.refresh()

    def commit(self) -> None:
        """Put the table as it is now in force."""
        self._table.commit()

    def close(self) -> None:
        """Free what was read, which is as large as the table. Nothing may be called after it."""
        self._table.close()

    def own_chains(self) -> list[str]:
        """The chains in the table that carry our prefix."""
        return [chain.name for chain in self._table.chains if chain.name.startswith(rules.PREFIX)]

    def need(self, chain: str) -> None:
        """Make the chain if it is not there."""
        if not self._table.is_chain(chain):
            self._table.create_chain(chain)

    def flush(self, chain: str) -> None:
        """Take all rules out of the chain."""
        self._table.flush_entries(chain)

    def drop_unless_used(self, chain: str) -> None:
        """Delete the chain, which must be empty; where a rule leads to it, it stays."""
        with suppress(self._iptc.IPTCError):
            self._table.delete_chain(chain)

    def targets(self, chain: str) -> list[str]:
        """Where the rules of the chain lead, in their order; nowhere when there is no such chain."""
        return [target for _, target in self._entries(chain)]

    def is_empty(self, chain: str) -> bool:
        """Whether the chain has no rule, or there is none of this name."""
        return not self._table.first_rule(chain)

    def standing(self, chain: str) -> list[place.Standing]:
        """The rules of a chain, whoever made them; none when there is no such chain."""
        return [place.standing(entry, target) for entry, target in self._entries(chain)]

    def found(self, chain: str) -> Iterator[tuple[bytes, str, Counted]]:
        """The rules of a chain: entry, target, and what they have counted."""
        for entry, target in self._entries(chain):
            read = ctypes.string_at(ctypes.addressof(entry), entry.next_offset)
            yield read, target, (entry.counters.pcnt, entry.counters.bcnt)

    def add(self, rule: Rule, counted: Counted = (0, 0)) -> None:
        """Add the rule, and what it needs: the way to its chain, and the chain that it leads to."""
        if rule.branch:
            self._need_branch(rule.branch)
        else:
            self.need(rule.chain)
        if rule.to.startswith(rules.PREFIX):
            self.need(rule.to)
        if rule.first:
            self.insert(rule, 0, counted)
        else:
            self._append(rule, counted)

    def insert(self, rule: Rule, position: int, counted: Counted = (0, 0)) -> None:
        """Add the rule at this position of its chain, counted from 0."""
        self._table.insert_entry(rule.chain, self._entry(rule, counted), position)

    def delete(self, rule: Rule) -> bool:
        """Delete one such rule, and its branch with the last; False when there is none, or no such chain."""
        deleted = self._delete(rule)
        branch = rule.branch
        if branch and self.is_empty(branch.leaf):
            self._cut(branch.to_leaf)
            if self.is_empty(branch.node):
                self._cut(branch.to_node)
        return deleted

    def stencil(self, rule: Rule) -> Stencil:
        """That of the rule's shape."""
        return self._stencils.of(rule.shape)

    def fingerprint(self, rule: Rule) -> Fingerprint:
        """What is read of this rule when it is in the table."""
        stencil = self._stencils.of(rule.shape)
        return stencil.fingerprint(stencil.filled(rule), rule.to or rule.shape.target)

    def _append(self, rule: Rule, counted: Counted = (0, 0)) -> None:
        self._table.append_entry(rule.chain, self._entry(rule, counted))

    def _delete(self, rule: Rule) -> bool:
        stencil = self._stencils.of(rule.shape)
        try:
            self._table.delete_entry(rule.chain, _octets(stencil.filled(rule)), _octets(stencil.mask))
        except self._iptc.IPTCError:
            return False
        return True

    def _need_branch(self, branch: Branch) -> None:
        if self._table.is_chain(branch.leaf):
            return
        if not self._table.is_chain(branch.node):
            self.need(branch.base)
            self._table.create_chain(branch.node)
            self._append(branch.to_node)
        self._table.create_chain(branch.leaf)
        self._append(branch.to_leaf)

    def _cut(self, way: Rule) -> None:
        """Delete the rule that leads to an empty chain, and the chain unless somebody else leads there too."""
        self._delete(way)
        self.drop_unless_used(way.to)

    def _entries(self, chain: str) -> Iterator[tuple[Any, str]]:
        for entry in self._rules(chain):
            yield entry, (self._table.get_target(entry) or b"").decode()

    def _rules(self, chain: str) -> Iterator[Any]:
        entry = self._table.first_rule(chain)  # libiptc goes on in that chain which was begun last
        while entry:
            yield entry
            entry = self._table.next_rule(entry)

    def _entry(self, rule: Rule, counted: Counted = (0, 0)) -> Any:
        filled = self._stencils.of(rule.shape).filled(rule)
        if counted != (0, 0):
            kind = self._iptc.ip6tc.ip6t_entry if rule.shape.ipv6 else self._iptc.ip4tc.ipt_entry
            counters = kind.from_buffer(filled).counters
            counters.pcnt, counters.bcnt = counted
        return _octets(filled)


def _octets(data: bytearray) -> Any:
    """The same memory, for libiptc."""
    return (ctypes.c_ubyte * len(data)).from_buffer(data)


@contextmanager
def xtables_lock(*, wait: bool = True) -> Iterator[None]:
    """Hold the lock that iptables itself takes; libiptc takes none. Raises RulesetBusy when it is not to be had."""
    seconds = LOCK_WAIT if wait else 0.0
    path = os.environ.get("XTABLES_LOCKFILE", LOCK_FILE)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RulesetError(f"xtables lock {path}: {error.strerror}") from error
    try:
        deadline = time.monotonic() + seconds
        while not _locked(descriptor):
            if time.monotonic() >= deadline:
                raise RulesetBusy(f"another program holds {path} for more than {seconds:.0f} s")
            time.sleep(LOCK_POLL)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
