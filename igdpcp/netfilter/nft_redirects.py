# SPDX-License-Identifier: Apache-2.0
"""Which ports nftables rules of others redirect, from libnftables' JSON (libnftables-json(5)).

Ports are known where a rule compares the destination port with a number, a range, a set, or looks it up in a map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from typing import Any

from igdpcp.model import Protocol
from igdpcp.netfilter import layout
from igdpcp.netfilter.foreign import JUMP_DEPTH, RULES_LIMIT, Chains
from igdpcp.netfilter.taken_ports import BOTH, TakenPorts
from igdpcp.values import dataclass

ELEMENTS_LIMIT = 4096  # of one set or map
_PORTS = range(1, 65536)
_PROTOCOLS = {
    "tcp": frozenset({Protocol.TCP}),
    "udp": frozenset({Protocol.UDP}),
    6: frozenset({Protocol.TCP}),
    17: frozenset({Protocol.UDP}),
    "th": BOTH,
}
_TRANSLATING = {"dnat", "redirect"}
_TRANSLATING_TARGETS = ("DNAT", "REDIRECT")
Place = tuple[str, str, str]  # family, table, chain


@dataclass(frozen=True, slots=True)
class _Scope:
    """Of which packets a rule, or a chain by the rule that leads to it, is; ``ports`` None: of all."""

    protocols: frozenset[Protocol] = BOTH
    ports: tuple[range, ...] | None = None


def nft_redirects(chains: Chains, device: str, address: IPv4Address | None) -> list[TakenPorts]:
    """What is redirected of what comes by this device for this address; raises RulesetError."""
    walk = _Walk(chains, device, address)
    bases = [(base["family"], base["table"], base["name"]) for base in chains.bases("nat", "prerouting")]
    theirs = [place for place in bases if not place[2].startswith(layout.ANY_GENERATION)]
    return [taken for place in theirs for taken in walk.through(place, _Scope(), JUMP_DEPTH)]


class _Walk:
    def __init__(self, chains: Chains, device: str, address: IPv4Address | None) -> None:
        self._chains = chains
        self._device = device
        self._address = address
        self._left = RULES_LIMIT
        self._elements: dict[tuple[str, ...], list[Any]] = {}

    def through(self, place: Place, outer: _Scope, depth: int) -> Iterator[TakenPorts]:
        for rule in self._chains.rules(*place) if depth else ():
            self._left -= 1
            if self._left < 0:
                return
            scope = self._narrowed(rule, outer, place)
            if scope is None:
                continue
            for expression in rule:
                if isinstance(expression, dict):
                    yield from self._of(expression, scope, place, depth)

    def _of(self, expression: dict[str, Any], scope: _Scope, place: Place, depth: int) -> Iterator[TakenPorts]:
        for verb in ("jump", "goto"):
            target = (expression.get(verb) or {}).get("target", layout.ANY_GENERATION)
            if not target.startswith(layout.ANY_GENERATION):
                yield from self.through((place[0], place[1], target), scope, depth - 1)
        compat = (expression.get("xt") or {}).get("name")
        if not (expression.keys() & _TRANSLATING or compat in _TRANSLATING_TARGETS):
            return
        translation = expression.get("dnat") or expression.get("redirect") or {}
        if translation.get("family") != "ip6":
            scope = self._looked_up(translation, scope, place)
            for ports in scope.ports or ():
                yield TakenPorts(scope.protocols, ports, f"a rule of nftables chain {' '.join(place)}")

    def _narrowed(self, rule: list[Any], scope: _Scope, place: Place) -> _Scope | None:
        """For which of these packets the rule is, None: for none that come to our address by our device."""
        for expression in rule:
            match = expression.get("match") if isinstance(expression, dict) else None
            if match is None:
                continue
            if not self._chains.comes_by(expression, self._device, place[0], place[1]):
                return None
            left, right, equal = match.get("left"), match.get("right"), match.get("op") in ("==", "in")
            header, field = _field(left)
            if header == "ip6" or ((header, field) == ("ip", "daddr") and not self._for_us(right, equal)):
                return None
            if equal and field in ("l4proto", "protocol"):
                scope = replace(scope, protocols=scope.protocols & _protocols(right))
            elif field == "dport":
                scope = replace(scope, protocols=scope.protocols & _PROTOCOLS.get(header, frozenset()))
                if equal:
                    scope = replace(scope, ports=tuple(self._ranges(right, place)))
            if not scope.protocols:
                return None
        return scope

    def _for_us(self, right: Any, equal: bool) -> bool:
        """Whether a comparison of the destination with one address or network lets our address through."""
        if isinstance(right, dict) and "prefix" in right:
            right = f"{right['prefix']['addr']}/{right['prefix']['len']}"
        if self._address is None or not isinstance(right, str) or right.startswith("@"):
            return True
        return (self._address in ip_network(right, strict=False)) is equal

    def _looked_up(self, translation: dict[str, Any], scope: _Scope, place: Place) -> _Scope:
        """Of the ports in the map where the translation looks its address or port up; as before when there is none."""
        for part in translation.values():
            lookup = part.get("map") if isinstance(part, dict) else None
            if lookup is None:
                continue
            fields = lookup["key"].get("concat", [lookup["key"]]) if isinstance(lookup["key"], dict) else []
            for at, (header, field) in enumerate(map(_field, fields)):
                if field == "dport":
                    keys = [_part(pair[0], at) for pair in self._content(lookup["data"], "map", place)]
                    protocols = scope.protocols & _PROTOCOLS.get(header, frozenset())
                    return _Scope(protocols, tuple(_range(key) for key in keys if _range(key)))
        return scope

    def _ranges(self, right: Any, place: Place) -> Iterator[range]:
        values = [right] if isinstance(right, int) or "range" in right else self._content(right, "set", place)
        return (found for found in map(_range, values) if found)

    def _content(self, source: Any, kind: str, place: Place) -> list[Any]:
        """The elements of an anonymous or a named set or map."""
        if isinstance(source, dict):
            content: list[Any] = source.get("set", [])
        elif isinstance(source, str) and source.startswith("@"):
            key = (kind, place[0], place[1], source[1:])
            if key not in self._elements:
                self._elements[key] = self._chains.elements(*key)
            content = self._elements[key]
        else:
            content = []
        return content[:ELEMENTS_LIMIT] if isinstance(content, list) else []


def _field(left: Any) -> tuple[str, str]:
    """The header and the field that are compared, or "meta" and its key; two empty strings for anything else."""
    if not isinstance(left, dict):
        return "", ""
    if payload := left.get("payload"):
        return str(payload.get("protocol", "")), str(payload.get("field", ""))
    if meta := left.get("meta"):
        return "meta", str(meta.get("key", ""))
    return "", ""


def _protocols(right: Any) -> frozenset[Protocol]:
    values = right.get("set", []) if isinstance(right, dict) else [right]
    return frozenset().union(*(_PROTOCOLS.get(value, frozenset()) for value in values if isinstance(value, str | int)))


def _part(element: Any, at: int) -> Any:
    """One field of a key that has several; an element with a comment or a timeout is wrapped."""
    if isinstance(element, dict) and "elem" in element:
        element = element["elem"].get("val")
    concat = element.get("concat") if isinstance(element, dict) else None
    return concat[at] if isinstance(concat, list) and at < len(concat) else element


def _range(value: Any) -> range:
    """One port or a range of them; empty for anything else."""
    if isinstance(value, dict) and "elem" in value:
        value = value["elem"].get("val")
    bounds = value.get("range") if isinstance(value, dict) else [value, value]
    if not isinstance(bounds, list) or not all(bound in _PORTS for bound in bounds):
        return range(0)
    return range(bounds[0], bounds[1] + 1)
