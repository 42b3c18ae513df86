# SPDX-License-Identifier: Apache-2.0
"""The iptables back-end: python-iptables on the legacy tables, own chains, one commit per table and change set.

Every commit rewrites a whole table, and fails when anybody else changed it since it was read; so each change takes the
xtables lock, reads the table again, changes and commits. The two tables are two commits: what lets packets through is
there before the packets are redirected, and is taken away after it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import importlib
import importlib.util
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from igdpcp.errors import OurFault, RulesetError
from igdpcp.model import Surroundings
from igdpcp.netfilter import foreign
from igdpcp.netfilter import iptables_rules as rules
from igdpcp.netfilter.base import NOWHERE
from igdpcp.netfilter.desired import Change, Fact, Key
from igdpcp.netfilter.iptables_rules import Rule
from igdpcp.netfilter.libnftables import Nft

LOCK_FILE = "/run/xtables.lock"  # iptables(8): shared by all programs and all network namespaces
LOCK_WAIT = 10.0  # seconds
LOCK_POLL = 0.02  # seconds
COMMIT_TRIES = 5  # a program that takes no lock may get between; it seldom does so twice

_OPENWRT_EXTENSIONS = "/usr/lib/iptables"
_OPENWRT_BUILT_IN = (
    ("libiptext.so", "init_extensions"),
    ("libiptext4.so", "init_extensions4"),
    ("libiptext6.so", "init_extensions6"),
)
_IPV6_TABLES = Path("/proc/thread-self/net/ip6_tables_names")  # the tables that this network namespace uses


class _Edit:
    """One table as it was just read; its changes are seen by nobody before the commit.

    Rules go to the table as entries, not through iptc.Chain: that one puts a pipe in place of the process's standard
    output and has every extension print itself into it, each time a rule is used, only to set the extension's state
    again before its final check. Here the final check comes while that state is still set.
    """

    def __init__(self, iptc: Any, table: Any) -> None:
        self._iptc = iptc
        self._table = table
        self._ipv6 = isinstance(table, iptc.Table6)

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

    def drop(self, chain: str) -> None:
        """Delete the chain, which must be empty and without jumps to it."""
        self._table.delete_chain(chain)

    def add(self, rule: Rule) -> None:
        """Add the rule, and the chain that it leads to."""
        for chain in (rule.chain, rule.target):
            if chain.startswith(rules.PREFIX):
                self.need(chain)
        if rule.first:
            self._table.insert_entry(rule.chain, self._built(rule).rule, 0)
        else:
            self._table.append_entry(rule.chain, self._built(rule).rule)

    def delete(self, rule: Rule) -> bool:
        """Delete one such rule; False when there is none, or no such chain."""
        try:
            built = self._built(rule)
            self._table.delete_entry(rule.chain, built.rule, built.mask)
        except (self._iptc.IPTCError, self._iptc.XTablesError):
            return False
        return True

    def _built(self, rule: Rule) -> Any:
        built = self._iptc.Rule6() if self._ipv6 else self._iptc.Rule()
        for name, value in (
            ("protocol", rule.protocol),
            ("src", rule.source),
            ("dst", rule.destination),
            ("in_interface", rule.in_device),
            ("out_interface", rule.out_device),
        ):
            if value:
                setattr(built, name, value)
        for name, parameters in rule.matches:
            match = built.create_match(name)
            for parameter, value in parameters:
                match.set_parameter(parameter, value)
            match._final_check()
        target = built.create_target(rule.target)
        for option, value in rule.options:
            target.set_parameter(option, value)
        target._final_check()
        return built


class IptablesBackend:
    """Facts as rules in chains ``IGDPCP-*`` of the tables nat and filter."""

    name = "iptables"

    def __init__(self) -> None:
        if importlib.util.find_spec("iptc") is None:
            raise OurFault("python-iptables is missing: install igdpcp-iptables (OpenWrt) or igdpcp[iptables] (pip)")
        self._iptc: Any = None
        self._surroundings = NOWHERE
        self._shared: Counter[Rule] = Counter()

    def open(self) -> None:
        """Load the library and put the chains in; what an earlier process left in them stays until ``sync``."""
        self._iptc = _import_iptc()
        for table in ("filter", "nat"):
            self._change(table, _frame, table)

    def surroundings(self, surroundings: Surroundings) -> None:
        """Write the chains that mappings do not change anew."""
        static = list(rules.static_rules(surroundings))
        for table, ipv6 in self._tables(surroundings):
            self._change(table, _static, table, ipv6, static, ipv6=ipv6)
        self._surroundings = surroundings

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
        static = list(rules.static_rules(self._surroundings))
        for table, ipv6 in self._tables(self._surroundings):
            mine = [] if ipv6 else [rule for rule in (*wanted, *shared) if rule.table == table]
            self._change(table, _everything, table, ipv6, static, mine, ipv6=ipv6)
        self._shared = shared

    def release(self) -> None:
        """Take our chains and the jumps to them out of all tables."""
        for table, ipv6 in reversed(self._tables(self._surroundings)):
            self._change(table, _nothing, table, ipv6, ipv6=ipv6)
        self._shared = Counter()
        self._surroundings = NOWHERE

    def close(self, keep_rules: bool) -> None:
        """Rules without a timeout may not outlive the daemon, so without a successor they go."""
        if self._iptc is not None and not keep_rules:
            self.release()

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

    def _tables(self, surroundings: Surroundings) -> list[tuple[str, bool]]:
        """Table and whether it is IPv6's: that one only where it is in use or needed."""
        tables = [("filter", False), ("nat", False)]
        servers = any(server.version == 6 for server in surroundings.pcp_servers)
        with suppress(OSError):
            if servers or "filter" in _IPV6_TABLES.read_text().split():
                tables.append(("filter", True))
        return tables

    def _exchange(self, gone: list[Rule], come: list[Rule]) -> None:
        """Accept before redirecting, and the other way round when taking away; a refused part is taken back."""
        accepts = [rule for rule in come if rule.table == "filter"]
        if accepts:
            self._change("filter", _replace, [], accepts)
        try:
            old, new = ([rule for rule in part if rule.table == "nat"] for part in (gone, come))
            if old or new:
                self._change("nat", _replace, old, new)
        except RulesetError:
            with suppress(RulesetError):
                self._change("filter", _replace, accepts, [])
            raise
        stale = [rule for rule in gone if rule.table == "filter"]
        if stale:
            self._change("filter", _replace, stale, [])

    def _change(self, name: str, edit: Callable[..., None], *what: Any, ipv6: bool = False) -> None:
        """Read the table, edit it, commit; once more when another program changed it meanwhile."""
        if self._iptc is None:
            raise RulesetError("the iptables back-end is not open")
        kind = self._iptc.Table6 if ipv6 else self._iptc.Table
        with _xtables_lock():
            for left in reversed(range(COMMIT_TRIES)):
                try:
                    table = kind(name, autocommit=False)
                    table.refresh()
                    edit(_Edit(self._iptc, table), *what)
                    table.commit()
                    return
                except (self._iptc.IPTCError, self._iptc.XTablesError, ValueError) as error:
                    if not left or os.strerror(errno.EAGAIN) not in str(error):
                        raise RulesetError(f"iptables table {name}: {error}") from error


def _frame(edit: _Edit, table: str, ipv6: bool = False) -> None:
    """Our fixed chains, and the one jump to each at its place, wherever an older one stood."""
    for chain in rules.CHAINS[table]:
        edit.need(chain)
    for jump in _jumps(table, ipv6):
        while edit.delete(jump):
            pass
        edit.add(jump)


def _static(edit: _Edit, table: str, ipv6: bool, static: Iterable[Rule]) -> None:
    _frame(edit, table, ipv6)
    for chain in rules.STATIC_CHAINS[table]:
        edit.flush(chain)
    _replace(edit, [], [rule for rule in static if (rule.table, rule.ipv6) == (table, ipv6)])


def _everything(edit: _Edit, table: str, ipv6: bool, static: Iterable[Rule], wanted: Iterable[Rule]) -> None:
    _clear(edit, keep=rules.CHAINS[table])
    _static(edit, table, ipv6, static)
    _replace(edit, [], wanted)


def _nothing(edit: _Edit, table: str, ipv6: bool) -> None:
    for jump in _jumps(table, ipv6):
        while edit.delete(jump):
            pass
    _clear(edit, keep=())


def _clear(edit: _Edit, keep: Iterable[str]) -> None:
    chains = edit.own_chains()
    for chain in chains:
        edit.flush(chain)
    for chain in set(chains).difference(keep):
        edit.drop(chain)


def _replace(edit: _Edit, gone: Iterable[Rule], come: Iterable[Rule]) -> None:
    """A rule to delete may be missing: somebody flushed it, and it shall not be there anyway."""
    for rule in gone:
        edit.delete(rule)
    for rule in come:
        edit.add(rule)


def _jumps(table: str, ipv6: bool) -> list[Rule]:
    return [jump for jump in rules.JUMPS if (jump.table, jump.ipv6) == (table, ipv6)]


def _import_iptc() -> Any:
    """Import python-iptables where it finds its extensions, also on OpenWrt.

    There is no ldconfig to ask there, and the extensions that are linked into libiptext must be registered by hand.
    """
    if Path(_OPENWRT_EXTENSIONS).is_dir():
        os.environ.setdefault("XTABLES_LIBDIR", _OPENWRT_EXTENSIONS)
    try:
        iptc = importlib.import_module("iptc")
    except Exception as error:  # it raises plain Exception when its libraries are missing
        raise OurFault(f"python-iptables cannot be loaded: {error}") from error
    for library, register in _OPENWRT_BUILT_IN:
        with suppress(OSError, AttributeError):
            getattr(ctypes.CDLL(library, ctypes.RTLD_GLOBAL), register)()
    return iptc


@contextmanager
def _xtables_lock() -> Iterator[None]:
    """Hold the lock that iptables itself takes; libiptc takes none. Raises RulesetError when it is not to be had."""
    path = os.environ.get("XTABLES_LOCKFILE", LOCK_FILE)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RulesetError(f"xtables lock {path}: {error.strerror}") from error
    try:
        deadline = time.monotonic() + LOCK_WAIT
        while not _locked(descriptor):
            if time.monotonic() > deadline:
                raise RulesetError(f"another program holds {path} for more than {LOCK_WAIT:.0f} s")
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
