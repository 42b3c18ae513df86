# SPDX-License-Identifier: Apache-2.0
"""Where our jumps belong among other people's iptables rules.

FORWARD: behind the administrator's bans, in front of the first rule that refuses whatever was not accepted before it.
A refusal counts as that when it depends on nothing but the devices that mapped packets pass and on their protocol, or
when it leads to a chain that holds such a one before any way back; every other one is a ban. The other built-in chains
need no look at their rules.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from igdpcp.model import Protocol
from igdpcp.netfilter.iptables_rules import PREFIX
from igdpcp.values import dataclass

_REFUSING = ("DROP", "REJECT")
_CHAIN_DEPTH = 16  # chains that lead to chains; what lies deeper is not taken for a refusal


@dataclass(frozen=True, slots=True)
class Device:
    """What a rule says of one side's device: a name, "" for any, ``+`` at its end for every longer name."""

    pattern: str
    inverted: bool = False

    def admits_one_of(self, devices: Collection[str]) -> bool:
        """Whether packets of one of these devices at least are meant."""
        return not self.pattern or any(self._names(device) is not self.inverted for device in devices)

    def _names(self, device: str) -> bool:
        prefix = self.pattern.removesuffix("+")
        return device == prefix if prefix == self.pattern else device.startswith(prefix)


@dataclass(frozen=True, slots=True)
class Standing:
    """A rule that stands in a chain: where it leads, and from which device to which.

    ``narrow``: it is for some of the packets between those devices only.
    """

    target: str
    incoming: Device = Device("")
    outgoing: Device = Device("")
    narrow: bool = False


# linux/netfilter_ipv4/ip_tables.h and linux/netfilter_ipv6/ip6_tables.h
_F_FRAG, _F_TOS = 0x01, 0x02
_INV_VIA_IN, _INV_VIA_OUT, _INV_PROTO = 0x01, 0x02, 0x40

Way = tuple[Collection[str], Collection[str]]  # the devices by which packets come, and those by which they leave
Chain = Callable[[str], Sequence[Standing]]  # the rules of a chain by its name; none of what is not a chain


def before_refusal(rules: Sequence[Standing], chain: Chain, wan: Collection[str], lan: Collection[str]) -> int:
    """The position of the first of these rules that refuses all packets that are let in by mappings or pinholes.

    Those are what comes by a device of ``wan`` and leaves by one of ``lan``. With no such rule: behind the last one.
    ``chain`` tells what stands in those that they lead to.
    """
    refusals = (at for at, rule in enumerate(rules) if _refuses(rule, chain, (wan, lan), _CHAIN_DEPTH))
    return next(refusals, len(rules))


def _refuses(rule: Standing, chain: Chain, way: Way, depth: int) -> bool:
    wan, lan = way
    if rule.narrow or not rule.incoming.admits_one_of(wan) or not rule.outgoing.admits_one_of(lan):
        return False
    if rule.target in _REFUSING:
        return True
    if depth == 0 or rule.target.startswith(PREFIX):
        return False
    for inner in chain(rule.target):
        if inner.target == "RETURN":
            return False
        if _refuses(inner, chain, way, depth - 1):
            return True
    return False


def standing(entry: Any, target: str) -> Standing:
    """Read libiptc's entry (struct ipt_entry or ip6t_entry), whose target libiptc has named."""
    ipv6 = hasattr(entry, "ipv6")
    ip = entry.ipv6 if ipv6 else entry.ip
    return Standing(
        target=target,
        incoming=Device(ip.iniface.decode(), bool(ip.invflags & _INV_VIA_IN)),
        outgoing=Device(ip.outiface.decode(), bool(ip.invflags & _INV_VIA_OUT)),
        narrow=bool(
            any(bytes(ip.smsk))
            or any(bytes(ip.dmsk))
            or (ip.flags & _F_TOS if ipv6 else ip.flags & _F_FRAG)
            or not _protocol_is_mapped(ip)
            or any(name != "comment" for name in _matches(entry))
        ),
    )


def _protocol_is_mapped(ip: Any) -> bool:
    return not ip.proto or bool(ip.invflags & _INV_PROTO) or ip.proto in list(Protocol)


class _MatchHead(ctypes.Structure):
    """The beginning of struct xt_entry_match (linux/netfilter/x_tables.h)."""

    _fields_ = (("size", ctypes.c_uint16), ("name", ctypes.c_char * 29), ("revision", ctypes.c_uint8))


def _matches(entry: Any) -> Iterator[str]:
    """The names of the entry's matches, which lie one behind the other between its head and its target."""
    offset = ctypes.sizeof(entry)
    while offset < entry.target_offset:
        head = _MatchHead.from_address(ctypes.addressof(entry) + offset)
        yield head.name.decode()
        offset += head.size
