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
from dataclasses import dataclass
from typing import Any

from igdpcp.model import Protocol, Surroundings
from igdpcp.netfilter.iptables_rules import PREFIX

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
    """A rule that stands in an IPv4 chain: where it leads, and from which device to which.

    ``narrow``: it is for some of the packets between those devices only.
    """

    target: str
    incoming: Device = Device("")
    outgoing: Device = Device("")
    narrow: bool = False


Chain = Callable[[str], Sequence[Standing]]  # the rules of a chain by its name; none of what is not a chain


def before_refusal(chain: Chain, name: str, surroundings: Surroundings) -> int:
    """The position of the chain's first rule that refuses all mapped packets; behind its last when there is none."""
    rules = chain(name)
    refusals = (at for at, rule in enumerate(rules) if _refuses(rule, chain, surroundings, _CHAIN_DEPTH))
    return next(refusals, len(rules))


def _refuses(rule: Standing, chain: Chain, surroundings: Surroundings, depth: int) -> bool:
    if rule.narrow or not _is_passed(rule, surroundings):
        return False
    if rule.target in _REFUSING:
        return True
    if depth == 0 or rule.target.startswith(PREFIX):
        return False
    for inner in chain(rule.target):
        if inner.target == "RETURN":
            return False
        if _refuses(inner, chain, surroundings, depth - 1):
            return True
    return False


def _is_passed(rule: Standing, surroundings: Surroundings) -> bool:
    """Whether packets from a WAN device to a LAN device are meant."""
    return rule.incoming.admits_one_of(surroundings.wan_devices) and rule.outgoing.admits_one_of(
        surroundings.lan_devices
    )


def standing(entry: Any, target: str) -> Standing:
    """Read libiptc's entry (struct ipt_entry), whose target libiptc has named."""
    ip = entry.ip
    return Standing(
        target=target,
        incoming=Device(ip.iniface.decode(), bool(ip.invflags & ip.IPT_INV_VIA_IN)),
        outgoing=Device(ip.outiface.decode(), bool(ip.invflags & ip.IPT_INV_VIA_OUT)),
        narrow=bool(
            ip.smsk.s_addr
            or ip.dmsk.s_addr
            or ip.flags & ip.IPT_F_FRAG
            or not _protocol_is_mapped(ip)
            or any(name != "comment" for name in _matches(entry))
        ),
    )


def _protocol_is_mapped(ip: Any) -> bool:
    return not ip.proto or bool(ip.invflags & ip.IPT_INV_PROTO) or ip.proto in list(Protocol)


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
