# SPDX-License-Identifier: Apache-2.0
"""The nftables back-end: facts become elements of the static sets and maps (``layout.py``), one transaction each time.

Inside fw4's table the objects come from drop-ins and are never made here: a table ``inet fw4`` of ours would look like
a firewall that is up. An own table is declared by the daemon, again at each sync, since anybody may flush the ruleset.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Any

from igdpcp import option_values
from igdpcp.errors import OurFault, RulesetError
from igdpcp.model import Endpoint, Protocol, Surroundings
from igdpcp.netfilter import foreign, layout
from igdpcp.netfilter.base import NOWHERE
from igdpcp.netfilter.desired import (
    Admit,
    Change,
    Fact,
    Hairpin,
    HairpinSender,
    HairpinTarget,
    Key,
    OwnPort,
    Pass,
    Pinhole,
    Redirect,
    SourcePort,
    Value,
    device_name,
)
from igdpcp.netfilter.libnftables import Nft

Counted = tuple[int, int]  # packets, bytes
_COUNTER = re.compile(r"counter packets (\d+) bytes (\d+)")
_PROTOCOLS: dict[str | int, str] = {protocol.name.lower(): f"{protocol:d}" for protocol in Protocol}

_PINHOLE_SETS = {  # by whether the remote host and the remote port are given
    (False, False): "pass6",
    (True, False): "pass6_rh",
    (False, True): "pass6_rp",
    (True, True): "pass6_rhp",
}


class NftablesBackend:
    """Facts as elements with timeouts, in table ``inet fw4`` or in an own table of another name."""

    name = "nftables"
    pinholes = True
    prompt = True

    def __init__(self, table: str) -> None:
        try:
            self._table = option_values.nft_name(table)
        except ValueError as error:
            raise OurFault(f"{table!r} {error}") from error
        self._shared = table == layout.FW4_TABLE
        self._surroundings = NOWHERE
        self._nft: Nft | None = None

    def open(self) -> None:
        """Make the own table, or see that fw4 has loaded the drop-ins; raises RulesetError when it has not.

        An own table that cannot be made raises OurFault: it will not be possible later either.
        """
        self._nft = Nft()
        if self._shared:
            if not self._drop_ins_loaded():
                raise RulesetError(self._missing())
            return
        try:
            self._check_owner()
            self._run(layout.own_table(self._table))
        except RulesetError as error:
            raise OurFault(f"option nft_table: {error}") from error

    def surroundings(self, surroundings: Surroundings) -> None:
        """Replace the device names and PCP servers, also when that cannot be told to the kernel now."""
        self._contents(surroundings)  # a bad name is refused before it is kept
        self._surroundings = surroundings
        self._lay()

    def apply(self, changes: list[Change], now: float) -> None:
        """Commit the changes in one transaction, whatever of them has expired meanwhile.

        Deleting an element that is gone fails and takes the transaction with it, so it is added first. Adding an
        element that is there does not re-arm its timeout on every kernel, so it is deleted first. Where the sets of
        the surroundings were emptied, by a restart of the firewall, the transaction must fail: no rule would apply.
        """
        gone = [(change.key, change.before) for change in changes if change.before]
        come = [(change.key, change.after) for change in changes if change.after]
        rearmed = (change.key for change in changes if change.before and change.after)
        counted = {_match(key): self._count(key) for key in rearmed if isinstance(key, Pinhole)}
        parts = [
            self._guard(),
            self._elements("add", ((key, _element(_match(key), fact.value)) for key, fact in gone)),
            self._elements("delete", ((key, _match(key)) for key, _ in gone)),
            self._elements("add", ((key, _timed(key, fact, now, counted)) for key, fact in come)),
        ]
        self._run("".join(parts))

    def sync(self, facts: dict[Key, Fact], now: float) -> None:
        """Rewrite everything, one transaction for each set or map: packets see its old elements or the new ones.

        One for all of them would be ten times as large, and it is memory that a router is short of. What elements have
        counted is kept.
        """
        self._lay()
        counted = self._counts()
        by_object: dict[str, list[Key]] = {}
        for key in facts:
            by_object.setdefault(_object(key), []).append(key)
        for kind, names in (("map", layout.MAPS), ("set", layout.SETS), ("set", layout.COUNTED_SETS)):
            for name in names:
                held = ((key, _timed(key, facts[key], now, counted)) for key in by_object.get(name, ()))
                self._run(self._flush(kind, name) + self._elements("add", held))

    def release(self) -> None:
        """Empty fw4's sets and maps, or delete the own table; nothing to do when they are gone already."""
        table = f"inet {self._table}"
        if not self._shared:
            self._check_owner()
            self._run(f"add table {table}\ndelete table {table}\n")
        elif self._drop_ins_loaded():
            self._surroundings = NOWHERE
            self.sync({}, 0.0)

    def close(self, keep_rules: bool) -> None:
        """Give the context back; the elements stay in any case, and expire."""
        if self._nft is not None:
            self._nft.close()
            self._nft = None

    def intact(self) -> bool:
        """Whether the surroundings are in their sets: whatever empties those, empties or deletes the others too."""
        try:
            return all(
                len(self._held(name)) == len(elements) for name, elements in self._contents(self._surroundings).items()
            )
        except RulesetError:
            return False

    def foreign_drop(self) -> str | None:
        """Name a forward chain of somebody else that refuses what no rule of it accepts."""
        if self._shared and not self._drop_ins_loaded():
            return self._missing()
        return foreign.forward_drop(self._context(), own=self._table)

    def packets(self, key: Pinhole) -> int:
        """What the element of this pinhole has counted; 0 when it has expired."""
        return self._count(key)[0]

    def _context(self) -> Nft:
        if self._nft is None:
            raise RulesetError("the nftables back-end is not open")
        return self._nft

    def _run(self, script: str) -> None:
        try:
            self._context().run(script)
        except RulesetError as error:
            if self._shared and not self._drop_ins_loaded():
                raise RulesetError(self._missing()) from error
            raise

    def _drop_ins_loaded(self) -> bool:
        """Listing one chain would read every element of the table; listing the names of all chains does not."""
        chains = [entry["chain"] for entry in self._context().query("list chains") if "chain" in entry]
        loaded = {chain["name"] for chain in chains if (chain["family"], chain["table"]) == ("inet", self._table)}
        return loaded.issuperset(layout.PREFIX + chain for chain in layout.CHAINS)

    def _check_owner(self) -> None:
        """Raises RulesetError when the table holds anything that is not named as ours is."""
        for entry in self._context().query("list ruleset", elements=False):
            for kind, found in entry.items():
                here = (found.get("family"), found.get("table")) == ("inet", self._table)
                if here and not found.get("name", layout.PREFIX).startswith(layout.ANY_GENERATION):
                    raise RulesetError(
                        f"table inet {self._table} belongs to somebody else: it has the {kind} {found['name']!r}; "
                        "choose a name that no table has"
                    )

    def _lay(self) -> None:
        """Bring everything there that mappings do not change; an own table may have been flushed away."""
        script = self._surroundings_script()
        if not self._shared:
            self._check_owner()
            script = layout.own_table(self._table) + script
        self._run(script)

    def _guard(self) -> str:
        """Commands that change nothing, and fail where the sets of the surroundings are empty or gone."""
        contents = self._contents(self._surroundings)
        for name in ("wan4", "lan"):
            if contents[name]:
                return "".join(self._command(verb, name, contents[name][:1]) for verb in ("delete", "add"))
        return ""

    def _held(self, name: str) -> list[Any]:
        [found] = self._context().query(f"list set inet {self._table} {layout.PREFIX}{name}")[-1].values()
        elements: list[Any] = found.get("elem", [])
        return elements

    def _count(self, key: Pinhole) -> Counted:
        """What one element has counted. Listing its set would take as long as the set is large."""
        place = f"inet {self._table} {layout.PREFIX}{_object(key)}"
        try:
            found = self._context().text(f"get element {place} {{ {_match(key)} }}")
        except RulesetError:
            return 0, 0
        counter = _COUNTER.search(found)
        return (int(counter[1]), int(counter[2])) if counter else (0, 0)

    def _counts(self) -> dict[str, Counted]:
        """What all elements that count have counted."""
        counted: dict[str, Counted] = {}
        for name in layout.COUNTED_SETS:
            for held in self._held(name):
                element = held.get("elem", {})
                if counter := element.get("counter"):
                    match = " . ".join(map(_as_written, element["val"]["concat"]))
                    counted[match] = counter["packets"], counter["bytes"]
        return counted

    def _missing(self) -> str:
        return (
            f"firewall not active, or its drop-ins not loaded: table inet {self._table} has not all "
            f"chains {layout.PREFIX}* (see 'fw4 check' and option auto_includes of /etc/config/firewall)"
        )

    def _elements(self, verb: str, elements: Iterable[tuple[Key, str]]) -> str:
        """One command for each set or map that the elements belong to."""
        by_object: dict[str, list[str]] = {}
        for key, element in elements:
            by_object.setdefault(_object(key), []).append(element)
        return "".join(self._command(verb, name, texts) for name, texts in by_object.items())

    def _command(self, verb: str, name: str, elements: list[str]) -> str:
        return f"{verb} element inet {self._table} {layout.PREFIX}{name} {{ {', '.join(elements)} }}\n"

    def _flush(self, kind: str, name: str) -> str:
        return f"flush {kind} inet {self._table} {layout.PREFIX}{name}\n"

    def _surroundings_script(self) -> str:
        script = ""
        for name, elements in self._contents(self._surroundings).items():
            script += self._flush("set", name)
            script += self._command("add", name, elements) if elements else ""
        return script

    @staticmethod
    def _contents(surroundings: Surroundings) -> dict[str, list[str]]:
        """The elements of each set of ``layout.SURROUNDINGS``; raises RulesetError for what is no device name."""
        peers = [(str(peer.server).partition("%")[0], peer) for peer in surroundings.pcp_peers]
        contents = {
            "wan4": {_device(name) for name in surroundings.wan_devices},
            "wan6": {_device(name) for name in surroundings.wan6_devices},
            "lan": {_device(name) for name in surroundings.lan_devices},
            "pcp4": {f"{address} . {peer.port:d}" for address, peer in peers if peer.server.version == 4},
            "pcp6": {f"{address} . {peer.port:d}" for address, peer in peers if peer.server.version == 6},
            "server4": {address for address, peer in peers if peer.server.version == 4},
            "server6": {address for address, peer in peers if peer.server.version == 6},
        }
        return {name: sorted(elements) for name, elements in contents.items()}


def _device(name: str) -> str:
    return f'"{device_name(name)}"'


def _timed(key: Key, fact: Fact, now: float, counted: dict[str, Counted]) -> str:
    """The element that expires with its fact; it goes on counting from what one like it has counted."""
    match = _match(key)
    return _element(match, fact.value, max(1, round(fact.ends - now)), counted.get(match))


def _object(key: Key) -> str:
    """The set or map that a fact lives in."""
    match key:
        case Redirect():
            return "dnat4" if key.remote_host is None else "dnat4_rh"
        case SourcePort():
            return "snat4"
        case OwnPort():
            return "own4"
        case Hairpin():
            return "hair4"
        case HairpinSender():
            return "hsrc4"
        case Pass():
            return "pass4"
        case Admit():
            return "open4" if key.remote_host is None else "open4_rh"
        case Pinhole():
            return _PINHOLE_SETS[key.remote_host is not None, key.remote_port != 0]


def _match(key: Key) -> str:
    """The key as nft writes it; the order of fields is that of the type in ``layout.py``."""
    match key:
        case Redirect(device, protocol, wan_port, remote_host):
            return f"{_device(device)}{_optional(remote_host)} . {protocol:d} . {wan_port:d}"
        case SourcePort(device, protocol, client):
            return f"{_device(device)} . {protocol:d} . {_endpoint(client)}"
        case OwnPort(device, protocol, wan_port):
            return f"{_device(device)} . {protocol:d} . {wan_port:d}"
        case Hairpin(address, protocol, port):
            return f"{address} . {protocol:d} . {port:d}"
        case HairpinSender(protocol, client):
            return f"{protocol:d} . {_endpoint(client)}"
        case Pass(protocol, port, client):
            return f"{protocol:d} . {port:d} . {_endpoint(client)}"
        case Admit(device, protocol, client, remote_host):
            return f"{_device(device)}{_optional(remote_host)} . {protocol:d} . {_endpoint(client)}"
        case Pinhole(protocol, host, port, remote_address, remote_port):
            source = f"{remote_address} . " if remote_address else ""
            source += f"{remote_port:d} . " if remote_port else ""
            return f"{source}{host} . {protocol:d} . {port:d}"


def _as_written(field: str | int) -> str:
    """A part of a pinhole's element in libnftables' JSON, as ``_match`` writes it."""
    return _PROTOCOLS.get(field) or str(field)


def _element(text: str, value: Value, timeout: int | None = None, counted: Counted | None = None) -> str:
    """The element that begins with what it matches."""
    if counted is not None:
        text += f" counter packets {counted[0]:d} bytes {counted[1]:d}"
    if timeout is not None:
        text += f" timeout {timeout:d}s"
    match value:
        case HairpinTarget(client):
            return f"{text} : {_endpoint(client)}"
        case Endpoint():
            return f"{text} : {_endpoint(value)}"
        case int():
            return f"{text} : {value:d}"
        case None:
            return text


def _endpoint(endpoint: Endpoint) -> str:
    return f"{endpoint.address} . {endpoint.port:d}"


def _optional(address: IPv4Address | None) -> str:
    return f" . {address}" if address else ""
