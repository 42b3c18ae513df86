# SPDX-License-Identifier: Apache-2.0
"""The nftables back-end: facts become elements of the static sets and maps (``layout.py``), one transaction each time.

Inside fw4's table the objects come from drop-ins and are never made here: a table ``inet fw4`` of ours would look like
a firewall that is up. The same holds for a table in which an administrator has included them. An own table is declared
by the daemon, again at each sync, since anybody may flush the ruleset.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from igdpcp import option_values
from igdpcp.errors import OurFault, RulesetError
from igdpcp.netfilter import foreign, layout, nftables_table
from igdpcp.netfilter.base import NOWHERE
from igdpcp.netfilter.desired import Change, Fact, Key, Pinhole, device_name
from igdpcp.netfilter.libnftables import Nft
from igdpcp.netfilter.nftables_audit import compare, leads
from igdpcp.netfilter.nftables_elements import by_object, device_key, element_data, element_key, object_name
from igdpcp.netfilter.nftables_netlink import Connection, Counted
from igdpcp.netfilter.nftables_reader import Element, NftablesReader
from igdpcp.netfilter.nftables_table import Survey
from igdpcp.netfilter.nftables_writer import NftablesWriter, element
from igdpcp.openings import Discrepancy, Surroundings

COMPARE_TRIES = 5  # others' changes disturb a reading, and may make it differ


class NftablesBackend:
    """Facts as elements with timeouts, in table ``inet fw4`` or in an own table of another name."""

    name = "nftables"
    prompt_up_to = math.inf

    def __init__(self, table: str) -> None:
        try:
            self._table = option_values.nft_name(table)
        except ValueError as error:
            raise OurFault(f"{table!r} {error}") from error
        self._shared = self.in_fw4 = table == layout.FW4_TABLE
        self._surroundings = NOWHERE
        self._guard: list[bytes] = []  # in front of every change
        self._nft: Nft | None = None
        self._connection = Connection()
        self._reader = NftablesReader(self._table, self._connection)
        self._writer = NftablesWriter(self._table, self._connection)

    def open(self) -> None:
        """Make the own table, or see that the firewall has our objects; raises RulesetError when it has not.

        An own table that cannot be made raises OurFault: it will not be possible later either.
        """
        self._nft = Nft()
        try:
            self._lay("")
        except RulesetError as error:
            if self._shared:
                raise
            raise OurFault(f"option nft_table: {error}") from error

    def surroundings(self, surroundings: Surroundings) -> None:
        """Replace the device names and PCP servers, also when that cannot be told to the kernel now."""
        self._contents(surroundings)  # a bad name is refused before it is kept
        self._keep_to(surroundings)
        self._lay(self._surroundings_script(), keep=True)

    def apply(self, changes: list[Change], now: float, *, wait: bool = True) -> None:
        """Commit the changes in one transaction, whatever of them has expired meanwhile.

        Deleting an element that is gone fails and takes the transaction with it, so it is added first. Adding an
        element that is there does not re-arm its timeout on every kernel, so it is deleted first. Where the sets of
        the surroundings were emptied, by a restart of the firewall, the transaction must fail: no rule would apply.
        There is nobody to wait for. Raises RulesetError when the back-end is not open.
        """
        self._context()
        keyed = [(change, element_key(change.key)) for change in changes]
        gone = [(change.key, octets, change.before) for change, octets in keyed if change.before]
        come = [(change.key, octets, change.after) for change, octets in keyed if change.after]
        rearmed = ((change.key, octets) for change, octets in keyed if change.before and change.after)
        counted = {octets: self._count(key) for key, octets in rearmed if isinstance(key, Pinhole)}
        there = ((key, element(octets, element_data(fact.value))) for key, octets, fact in gone)
        deleted = ((key, element(octets)) for key, octets, _ in gone)
        added = ((key, _timed(octets, fact, now, counted)) for key, octets, fact in come)
        self._writer.commit(
            chain(
                self._guard,
                self._messages(self._writer.add, there),
                self._messages(self._writer.delete, deleted),
                self._messages(self._writer.add, added),
            )
        )

    def sync(self, facts: dict[Key, Fact], now: float) -> None:
        """Rewrite everything, one transaction for each set or map: packets see its old elements or the new ones.

        One for all of them would be ten times as large, and it is memory that a router is short of. What elements have
        counted is kept. A table that we used before this one goes then.
        """
        ahead = now - time.monotonic()  # all of it may take a slow router seconds
        abandoned = self._lay(self._surroundings_script()).abandoned
        keys = by_object(facts)
        for name in (*layout.MAPS, *layout.SETS, *layout.COUNTED_SETS):
            counted = self._counts(name) if name in layout.COUNTED_SETS else {}
            now = time.monotonic() + ahead
            held = (_timed(element_key(key), facts[key], now, counted) for key in keys.get(name, ()))
            there = layout.PREFIX + name
            self._writer.commit(chain((self._writer.flush(there),), self._writer.add(there, held)))
        for table in abandoned:
            self._run(_deletion(table))

    def release(self) -> None:
        """Empty our sets and maps where somebody else has something in the table, too, or delete the own table."""
        survey = self._survey()
        self._keep_to(NOWHERE)
        script = "".join(map(_deletion, survey.abandoned))
        if self._shared or survey.stranger:
            script += survey.emptied + (survey.clearance(ours=False) if survey.complete else "")
        else:
            script += _deletion(self._table)
        if script:
            self._run(script)

    def close(self, keep_rules: bool) -> None:
        """Give the context and the connection back; the elements stay in any case, and expire."""
        self._connection.close()
        if self._nft is not None:
            self._nft.close()
            self._nft = None

    def intact(self, sample: Mapping[Key, Fact]) -> bool:
        """Whether the surroundings and these facts are in their sets, and our chains hold what they shall.

        What empties a set empties it whole; so a few facts stand for all that are in it.
        """
        try:
            contents = self._contents(self._surroundings)
            if not all(len(self._held(name)) == len(elements) for name, elements in contents.items()):
                return False
            if self._rules_missing():
                return False
            return all(leads(self._find(key), fact) for key, fact in sample.items())
        except RulesetError:
            return False

    def audit(self, facts: Mapping[Key, Fact], now: float) -> Discrepancy:
        """Compare every element, set by set; raises RulesetError where that cannot be done."""
        offset = now - time.monotonic()
        try:
            found = [self._surroundings_differ(), *self._elements_differ(facts, offset)]
            missing = self._rules_missing()
        except RulesetError as error:
            raise self._explained(error) from error
        return Discrepancy(missing + sum(each.missing for each in found), sum(each.surplus for each in found))

    def foreign_drop(self) -> str | None:
        """Name a forward chain of somebody else that refuses what no rule of it accepts."""
        if self._shared and not self._survey().complete:
            return self._missing()
        return foreign.forward_drop(self._context(), own=self._table)

    def packets(self, key: Pinhole) -> int:
        """What the element of this pinhole has counted; 0 when it has expired."""
        return self._count(key)[0]

    def _surroundings_differ(self) -> Discrepancy:
        missing = surplus = 0
        for name, elements in self._contents(self._surroundings).items():
            wanted, held = {text.replace('"', "") for text in elements}, set(map(_as_written, self._held(name)))
            missing, surplus = missing + len(wanted - held), surplus + len(held - wanted)
        return Discrepancy(missing, surplus)

    def _elements_differ(self, facts: Mapping[Key, Fact], offset: float) -> Iterator[Discrepancy]:
        """Of each set and map; ``offset`` leads from the system's clock to that of the facts."""
        keys = by_object(facts)
        for name in (*layout.MAPS, *layout.SETS, *layout.COUNTED_SETS):
            part = {key: facts[key] for key in keys.get(name, ())}
            for _ in range(COMPARE_TRIES):
                generation = self._reader.generation()
                found = compare(self._reader.elements(layout.PREFIX + name), part, time.monotonic() + offset)
                if found == Discrepancy() or self._reader.generation() == generation:
                    break
            else:
                raise RulesetError("somebody changes the ruleset all the time, so it cannot be compared")
            yield found

    def _rules_missing(self) -> int:
        """How many rules of ours the table lacks: fw4 empties the chains whose drop-ins it does not load."""
        held = self._reader.rules()
        return sum(max(0, len(rules) - held[layout.PREFIX + chain]) for chain, rules in layout.CHAINS.items())

    def _context(self) -> Nft:
        if self._nft is None:
            raise RulesetError("the nftables back-end is not open")
        return self._nft

    def _run(self, script: str) -> None:
        self._context().run(script)

    def _explained(self, error: RulesetError) -> RulesetError:
        return RulesetError(self._missing()) if self._shared and not self._survey().complete else error

    def _survey(self) -> Survey:
        return nftables_table.survey(self._context(), self._table)

    def _is_shared(self, survey: Survey) -> bool:
        """Whether our objects come with somebody's firewall; raises RulesetError when the table is not for us."""
        self._shared = self._shared or survey.is_administrators
        if survey.stranger and not self._shared:
            raise RulesetError(
                f"table inet {self._table} belongs to somebody else: it has the {survey.stranger}; "
                f"choose a name that no table has, or include {nftables_table.INCLUDE_FILE} in it"
            )
        return self._shared

    def _lay(self, surroundings: str, *, keep: bool = False) -> Survey:
        """Bring everything there that mappings do not change; an own table may have been flushed away.

        ``surroundings``: the commands that fill their sets. ``keep``: the elements must stay. Returns what was found.
        """
        survey = self._survey()
        if self._is_shared(survey):
            if not survey.complete:
                raise RulesetError(self._missing())
            if script := survey.clearance(ours=False) + surroundings:
                self._run(script)
            return survey
        try:
            self._run(layout.own_table(self._table, survey.clearance(ours=True)) + surroundings)
        except RulesetError:
            if keep:
                raise
            # An object of ours with another type, left by a half-done upgrade, goes with what refers to it only.
            self._run(_deletion(self._table) + layout.own_table(self._table) + surroundings)
        return survey

    def _keep_to(self, surroundings: Surroundings) -> None:
        """Messages that change nothing and fail where the sets of the surroundings are empty or gone guard changes."""
        self._surroundings = surroundings
        self._guard = []
        for name, devices in (("wan4", surroundings.wan_devices), ("lan", surroundings.lan_devices)):
            if devices:
                one, there = [element(device_key(min(devices)))], layout.PREFIX + name
                self._guard = [*self._writer.delete(there, one), *self._writer.add(there, one)]
                return

    def _held(self, name: str) -> list[Any]:
        [found] = self._context().query(f"list set inet {self._table} {layout.PREFIX}{name}")[-1].values()
        elements: list[Any] = found.get("elem", [])
        return elements

    def _find(self, key: Key) -> Element | None:
        """The element of this key, at the same cost however large its set is."""
        return self._reader.element(layout.PREFIX + object_name(key), element_key(key))

    def _count(self, key: Pinhole) -> Counted:
        """What one element has counted."""
        element = self._find(key)
        return element.counted if element else (0, 0)

    def _counts(self, name: str) -> dict[bytes, Counted]:
        """What all elements of a set have counted."""
        return {element.key: element.counted for element in self._reader.elements(layout.PREFIX + name)}

    def _missing(self) -> str:
        lacking = f"table inet {self._table} has not all chains {layout.PREFIX}* with their rules"
        if self._table != layout.FW4_TABLE:
            return f"firewall not active, or without its include of {nftables_table.INCLUDE_FILE}: {lacking}"
        return (
            f"firewall not active, or its drop-ins not loaded: {lacking} "
            "(see 'fw4 check' and option auto_includes of /etc/config/firewall)"
        )

    @staticmethod
    def _messages(
        write: Callable[[str, Iterable[bytes]], Iterator[bytes]], elements: Iterable[tuple[Key, bytes]]
    ) -> Iterator[bytes]:
        """The messages for each set or map that the elements belong to."""
        grouped: dict[str, list[bytes]] = {}
        for key, each in elements:
            grouped.setdefault(object_name(key), []).append(each)
        for name, held in grouped.items():
            yield from write(layout.PREFIX + name, held)

    def _surroundings_script(self) -> str:
        script = ""
        for name, elements in self._contents(self._surroundings).items():
            there = f"inet {self._table} {layout.PREFIX}{name}"
            script += f"flush set {there}\n"
            script += f"add element {there} {{ {', '.join(elements)} }}\n" if elements else ""
        return script

    @staticmethod
    def _contents(surroundings: Surroundings) -> dict[str, list[str]]:
        """The elements of each set of ``layout.SURROUNDINGS``; raises RulesetError for what is no device name."""
        peers = [(str(peer.server).partition("%")[0], peer) for peer in surroundings.pcp_peers]
        contents = {
            "wan4": {_quoted(name) for name in surroundings.wan_devices},
            "wan6": {_quoted(name) for name in surroundings.wan6_devices},
            "lan": {_quoted(name) for name in surroundings.lan_devices},
            "pcp4": {f"{address} . {peer.port:d}" for address, peer in peers if peer.server.version == 4},
            "pcp6": {f"{address} . {peer.port:d}" for address, peer in peers if peer.server.version == 6},
            "server4": {address for address, peer in peers if peer.server.version == 4},
            "server6": {address for address, peer in peers if peer.server.version == 6},
            "shut": {_quoted(name) for name in surroundings.shut_devices},
        }
        return {name: sorted(elements) for name, elements in contents.items()}


def _quoted(device: str) -> str:
    """The name as nft writes it; raises RulesetError for what is none."""
    return f'"{device_name(device)}"'


def _timed(key: bytes, fact: Fact, now: float, counted: Mapping[bytes, Counted]) -> bytes:
    """The element that expires with its fact; it goes on counting from what one like it has counted."""
    timeout = max(1, round(fact.ends - now))
    return element(key, element_data(fact.value), timeout=timeout, counted=counted.get(key))


def _deletion(table: str) -> str:
    """Commands that delete the table, whether it is there or not."""
    return f"add table inet {table}\ndelete table inet {table}\n"


def _as_written(element: Any) -> str:
    """An element of the surroundings in libnftables' JSON, as ``_contents`` writes it, without quotes."""
    return " . ".join(map(str, element["concat"])) if isinstance(element, dict) else str(element)
