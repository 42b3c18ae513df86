# SPDX-License-Identifier: Apache-2.0
"""Rules as libiptc takes and gives them: entries, bytes in the layout of the kernel and of the extensions at hand.

python-iptables lays out the first rule of each shape, twice and with different addresses and ports; where the two
differ is where a rule's own have to go. From then on a rule is a copy with a few bytes put in, which takes some
microseconds, not half a millisecond, and the extensions' layouts stay python-iptables' business.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Literal

from igdpcp.errors import RulesetError
from igdpcp.netfilter.iptables_shapes import Rule, Shape, Values
from igdpcp.values import dataclass

_STENCILS = 512  # remembered: shapes of mappings and of the static rules

# Names of chains and of extensions in struct xt_entry_match and xt_entry_target (linux/netfilter/x_tables.h)
_NAME_AT, _NAME_SIZE = 2, 29

_WORDS = re.compile(r"\{(\w+)\}")
_PORTS = {"port", "low", "high", "new_port", "remote_port"}

ByteOrder = Literal["little", "big"]
Fingerprint = tuple[int, int, str]  # everything that a rule says


@dataclass(frozen=True, slots=True)
class Stencil:
    """The entry of a shape, where a rule's values go in it, and which of its bytes make two rules the same."""

    entry: bytes
    mask: bytearray
    places: dict[str, tuple[tuple[int, ByteOrder], ...]]
    target_at: int
    said: int

    def filled(self, rule: Rule) -> bytearray:
        """The entry of this rule."""
        entry = bytearray(self.entry)
        _put(entry, self.places, rule.values)
        if rule.to:
            name_at = self.target_at + _NAME_AT
            entry[name_at : name_at + _NAME_SIZE] = rule.to.encode().ljust(_NAME_SIZE, b"\0")
        return entry

    def fingerprint(self, entry: bytes | bytearray, target: str) -> Fingerprint:
        """What the entry, which has this target, says if it is of this shape."""
        return len(entry), int.from_bytes(entry, "little") & self.said, target


class Stencils:
    """The stencil of each shape, made when it is first needed. Raises RulesetError where an extension is missing."""

    def __init__(self, iptc: Any) -> None:
        self._iptc = iptc
        self.of = lru_cache(_STENCILS)(self._made)

    def _made(self, shape: Shape) -> Stencil:
        words = list(dict.fromkeys(_words(shape)))
        one, two = (_markers(words, set_, shape.ipv6) for set_ in (0, 1))
        try:
            rule = self._built(shape, one)
            first, second = bytearray(rule.rule), bytearray(self._built(shape, two).rule)
        except (self._iptc.IPTCError, self._iptc.XTablesError, ValueError, AttributeError) as error:
            raise RulesetError(f"iptables cannot express {shape}: {error}") from error
        places = {name: tuple(_places(first, second, dict(one)[name], dict(two)[name])) for name in words}
        tried = bytearray(first)
        _put(tried, places, two)
        if tried != second:
            raise RulesetError(f"python-iptables lays out {shape} in a way that is not understood")
        mask, target_at = bytearray(rule.mask), rule.entry.target_offset
        return Stencil(bytes(first), mask, places, target_at, _said(shape, rule, first, mask))

    def _built(self, shape: Shape, values: Values) -> Any:
        """python-iptables' rule. Its final check comes while the extension still knows what it parsed."""
        texts = dict(values)
        rule = self._iptc.Rule6() if shape.ipv6 else self._iptc.Rule()
        for name, value in (("protocol", shape.protocol), ("src", shape.source), ("dst", shape.destination)):
            if value:
                setattr(rule, name, value.format(**texts))
        head = rule.get_ip()
        # not by python-iptables, whose mask for IPv6 compares one bit of each letter
        head.iniface, head.iniface_mask = _device(shape.in_device)
        head.outiface, head.outiface_mask = _device(shape.out_device)
        for name, parameters in shape.matches:
            match = rule.create_match(name)
            for parameter, value in parameters:
                match.set_parameter(parameter, value.format(**texts))
            match._final_check()
        target = rule.create_target(shape.target or "ACCEPT", goto=shape.goto)
        for option, value in shape.options:
            target.set_parameter(option, value.format(**texts))
        target._final_check()
        return rule


def _said(shape: Shape, rule: Any, entry: bytearray, mask: bytearray) -> int:
    """The bits by which rules of one shape differ, and which the kernel gives back as it was given them."""
    said = bytearray(mask)

    def ignore(begin: int, end: int) -> None:
        said[begin:end] = bytes(end - begin)

    extensions, target_at = rule._entry_size(), rule.entry.target_offset
    ignore(type(rule.entry).nfcache.offset, extensions)
    while extensions <= target_at:  # matches, and the target
        name_at = extensions + _NAME_AT
        ignore(entry.index(0, name_at), name_at + _NAME_SIZE)
        extensions += int.from_bytes(entry[extensions:name_at], sys.byteorder)
    if shape.target in ("", "ACCEPT", "DROP"):  # libiptc gives the name, and an offset of its own
        ignore(target_at, len(said))
    return int.from_bytes(said, "little")


def _device(name: str) -> tuple[bytes, bytes]:
    """The name, and the mask that compares all of it with its end."""
    return name.encode(), b"\xff" * (len(name) + 1) if name else b""


def _words(shape: Shape) -> Iterator[str]:
    for field in fields(shape):
        yield from _WORDS.findall(str(getattr(shape, field.name)))


def _markers(words: list[str], set_: int, ipv6: bool) -> Values:
    """Values that are found again: no byte of one is that of another, and those of the two sets differ in each."""
    values: list[tuple[str, IPv4Address | IPv6Address | int]] = []
    for at, word in enumerate(words, start=1):
        byte = 0x20 + 0x60 * set_ + 0x10 * at
        if word in _PORTS:
            values.append((word, byte << 8 | byte + 1))
        elif ipv6:
            values.append((word, IPv6Address(bytes(byte + each for each in range(16)))))
        else:
            values.append((word, IPv4Address(bytes(byte + each for each in range(4)))))
    return tuple(values)


def _places(
    one: bytearray, two: bytearray, value: IPv4Address | IPv6Address | int, other: IPv4Address | IPv6Address | int
) -> Iterator[tuple[int, ByteOrder]]:
    """Where the first entry has the one value, and the second the other."""
    orders: tuple[ByteOrder, ...] = ("little", "big") if isinstance(value, int) else ("big",)
    for order in orders:
        needle, counterpart = _packed("", value, order), _packed("", other, order)
        at = one.find(needle)
        while at >= 0:
            if two.startswith(counterpart, at):
                yield at, order
            at = one.find(needle, at + 1)


def _put(entry: bytearray, places: dict[str, tuple[tuple[int, ByteOrder], ...]], values: Values) -> None:
    for name, value in values:
        address = b"" if isinstance(value, int) else value.packed
        for at, order in places[name]:
            packed = address or _packed(name, value, order)
            entry[at : at + len(packed)] = packed


def _packed(name: str, value: IPv4Address | IPv6Address | int, order: ByteOrder) -> bytes:
    if not isinstance(value, int):
        return value.packed
    try:
        return value.to_bytes(2, order)
    except OverflowError as error:
        raise RulesetError(f"{name} {value} is not a port") from error
