# SPDX-License-Identifier: Apache-2.0
"""Ports of the WAN address that somebody else redirects, and what the kernel's rules say of that.

A rule of which it cannot be told which ports it redirects is passed over, and so is one that redirects all of them: it
takes none in particular. A rule with other conditions, on the sender for example, takes its ports for those at least.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from igdpcp.model import Protocol
from igdpcp.netfilter import detect, foreign
from igdpcp.netfilter.nft_redirects import nft_redirects
from igdpcp.netfilter.taken_ports import BOTH, TakenPorts, port_range
from igdpcp.values import dataclass

_OURS = detect.LEGACY_OURS
_TARGETS = ("DNAT", "REDIRECT")
_PROTOCOLS = {"tcp": frozenset({Protocol.TCP}), "udp": frozenset({Protocol.UDP})}
_ONE_VALUE = ("--comment",)  # whatever that looks like


def redirects_by_rules(device: str, address: IPv4Address | None) -> list[TakenPorts]:
    """What rules of others redirect of what comes by this device for this address.

    Blocks for some milliseconds; raises RulesetError when the rules cannot be read.
    """
    with detect.nft_chains() as chains:
        found = nft_redirects(chains, device, address) if chains else []
    return found + legacy_redirects(detect.legacy_nat_rules(), device, address)


def legacy_redirects(rules: Iterable[str], device: str, address: IPv4Address | None) -> list[TakenPorts]:
    """The same of the lines of iptables-save."""
    by_chain: dict[str, list[str]] = {}
    for text in rules:
        if text.startswith("-A ") and not text.startswith(f"-A {_OURS}"):
            chain, _, rule = text[3:].partition(" ")
            by_chain.setdefault(chain, []).append(rule)
    return list(_Walk(by_chain, device, address).through("PREROUTING", _Rule(BOTH, ()), foreign.JUMP_DEPTH))


@dataclass(frozen=True, slots=True)
class _Rule:
    """Of which packets a rule, or a chain by the rule that leads to it, is; without ports: of all."""

    protocols: frozenset[Protocol]
    ports: tuple[range, ...]
    target: str = ""


class _Walk:
    def __init__(self, by_chain: dict[str, list[str]], device: str, address: IPv4Address | None) -> None:
        self._by_chain = by_chain
        self._device = device
        self._address = address
        self._left = foreign.RULES_LIMIT

    def through(self, chain: str, outer: _Rule, depth: int) -> Iterator[TakenPorts]:
        for text in self._by_chain.get(chain, ()) if depth else ():
            self._left -= 1
            if self._left < 0:
                return
            rule = self._narrowed(text, outer)
            if rule is None:
                continue
            if rule.target in _TARGETS:
                for ports in rule.ports:
                    yield TakenPorts(rule.protocols, ports, f"a rule of iptables chain {chain}")
            elif not rule.target.startswith(_OURS):
                yield from self.through(rule.target, rule, depth - 1)

    def _narrowed(self, text: str, outer: _Rule) -> _Rule | None:
        """The rule, None when nothing that comes to our address by our device gets to it."""
        rule = replace(outer, target="")
        for option, value, negated in _options(text):
            if option == "-i" and detect.fits(value, self._device) == negated:
                return None
            if option == "-d" and self._address and (self._address in IPv4Network(value, strict=False)) == negated:
                return None
            if option == "-p" and not negated:
                rule = replace(rule, protocols=rule.protocols & _PROTOCOLS.get(value, frozenset()))
            elif option in ("--dport", "--dports") and not negated:
                rule = replace(rule, ports=tuple(filter(None, map(port_range, value.split(",")))))
            elif option in ("-j", "-g"):
                rule = replace(rule, target=value)
        return rule if rule.protocols else None


def _options(text: str) -> Iterator[tuple[str, str, bool]]:
    """Each option of a rule, its value ("": none), and whether it is negated."""
    words = shlex.split(text)
    at = 0
    while at < len(words):
        negated = words[at - 1] == "!" if at else False
        option, value = words[at], words[at + 1] if at + 1 < len(words) else ""
        at += 1
        if option.startswith("-"):
            if option not in _ONE_VALUE and (value == "!" or value.startswith("-")):
                value = ""
            elif value:
                at += 1
            yield option, value, negated
