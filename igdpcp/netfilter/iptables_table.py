# SPDX-License-Identifier: Apache-2.0
"""One legacy table through python-iptables: read, look at, edit, commit; the library and the lock that it takes."""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from igdpcp.errors import OurFault, RulesetError
from igdpcp.netfilter import iptables_place as place
from igdpcp.netfilter import iptables_rules as rules
from igdpcp.netfilter.iptables_rules import Rule

LOCK_FILE = "/run/xtables.lock"  # iptables(8): shared by all programs and all network namespaces
LOCK_WAIT = 10.0  # seconds
LOCK_POLL = 0.02  # seconds

_OPENWRT_EXTENSIONS = "/usr/lib/iptables"
_OPENWRT_BUILT_IN = (
    ("libiptext.so", "init_extensions"),
    ("libiptext4.so", "init_extensions4"),
    ("libiptext6.so", "init_extensions6"),
)


class Edit:
    """One table as it was just read; its changes are seen by nobody before the commit.

    Rules go to the table as entries, not through iptc.Chain: that one puts a pipe in place of the process's standard
    output and has every extension print itself into it, each time a rule is used, only to set the extension's state
    again before its final check. Here the final check comes while that state is still set.
    """

    def __init__(self, iptc: Any, table: Any) -> None:
        self._iptc = iptc
        self._table = table
        self._ipv6 = isinstance(table, iptc.Table6)

    def commit(self) -> None:
        """Put the table as it is now in force."""
        self._table.commit()

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

    def targets(self, chain: str) -> list[str]:
        """Where the rules of the chain lead, in their order; nowhere when there is no such chain."""
        return [target for _, target in self._entries(chain)]

    def standing(self, chain: str) -> list[place.Standing]:
        """The rules of an IPv4 chain, whoever made them; none when there is no such chain."""
        return [place.standing(entry, target) for entry, target in self._entries(chain)]

    def add(self, rule: Rule) -> None:
        """Add the rule, and the chain that it leads to."""
        for chain in (rule.chain, rule.target):
            if chain.startswith(rules.PREFIX):
                self.need(chain)
        if rule.first:
            self.insert(rule, 0)
        else:
            self._table.append_entry(rule.chain, self._built(rule).rule)

    def insert(self, rule: Rule, position: int) -> None:
        """Add the rule at this position of its chain, counted from 0."""
        self._table.insert_entry(rule.chain, self._built(rule).rule, position)

    def delete(self, rule: Rule) -> bool:
        """Delete one such rule; False when there is none, or no such chain."""
        try:
            built = self._built(rule)
            self._table.delete_entry(rule.chain, built.rule, built.mask)
        except (self._iptc.IPTCError, self._iptc.XTablesError):
            return False
        return True

    def _entries(self, chain: str) -> Iterator[tuple[Any, str]]:
        if not self._table.is_chain(chain):
            return
        entry = self._table.first_rule(chain)
        while entry:
            yield entry, (self._table.get_target(entry) or b"").decode()
            entry = self._table.next_rule(entry)

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


def load() -> Any:
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
def xtables_lock() -> Iterator[None]:
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
