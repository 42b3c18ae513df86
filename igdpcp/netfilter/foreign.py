# SPDX-License-Identifier: Apache-2.0
"""What other people's nftables rules do to our packets: who masquerades, and who drops what is forwarded.

Read from libnftables' JSON (libnftables-json(5)). Objects of ours have a prefix and do not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from igdpcp.netfilter import layout
from igdpcp.netfilter.libnftables import Nft

Object = dict[str, Any]
_JUMPS = ("jump", "goto")
_TRANSLATING_TARGETS = ("MASQUERADE", "SNAT")
JUMP_DEPTH = 16  # NFT_JUMP_STACK_SIZE: the kernel follows no deeper
RULES_LIMIT = 20000  # that are looked at: a chain may be reached in many ways


class Chains:
    """All chains and their rules, as one reading of the ruleset found them. Raises RulesetError.

    The whole ruleset without elements is read at once: listing a single chain makes libnftables read every element of
    its table.
    """

    def __init__(self, nft: Nft) -> None:
        self._nft = nft
        self._bases: list[Object] = []
        self._rules: dict[tuple[str, str, str], list[list[Any]]] = {}
        for entry in nft.query("list ruleset", elements=False):
            if chain := entry.get("chain"):
                self._rules.setdefault((chain["family"], chain["table"], chain["name"]), [])
                if "hook" in chain:
                    self._bases.append(chain)
            elif rule := entry.get("rule"):
                place = (rule["family"], rule["table"], rule["chain"])
                self._rules.setdefault(place, []).append(rule.get("expr", []))

    def bases(self, type_: str, hook: str) -> Iterator[Object]:
        """Base chains of this type and hook that see IPv4 packets and are not ours."""
        for chain in self._bases:
            wanted = chain.get("type") == type_ and chain.get("hook") == hook and chain["family"] in ("ip", "inet")
            if wanted and not chain["name"].startswith(layout.PREFIX):
                yield chain

    def rules(self, family: str, table: str, chain: str) -> list[list[Any]]:
        """The expressions of each rule of a chain; none when the chain does not exist."""
        return self._rules.get((family, table, chain), [])

    def leaves_by(self, expression: Any, device: str, family: str, table: str) -> bool:
        """Whether a match lets packets through that leave by this device; True for what is not about devices."""
        return self._is_for(expression, ("oifname", "oif"), device, family, table)

    def comes_by(self, expression: Any, device: str, family: str, table: str) -> bool:
        """The same for packets that come by it."""
        return self._is_for(expression, ("iifname", "iif"), device, family, table)

    def elements(self, kind: str, family: str, table: str, name: str) -> list[Any]:
        """What the named set or map (``kind``) of a table holds."""
        found = self._nft.query(f"list {kind} {family} {table} {name}")
        return [element for entry in found for element in entry.get(kind, {}).get("elem", [])]

    def _is_for(self, expression: Any, keys: tuple[str, ...], device: str, family: str, table: str) -> bool:
        match = expression.get("match") if isinstance(expression, dict) else None
        if match is None:
            return True
        left = match.get("left", {})
        key = left.get("meta", {}).get("key") if isinstance(left, dict) else None
        if key == "nfproto":
            return str(match.get("right")) != "ipv6"
        if key not in keys:
            return True
        named = any(_fits(name, device) for name in self._names(match["right"], family, table))
        return named == (str(match.get("op")) != "!=")

    def _names(self, right: Any, family: str, table: str) -> list[str]:
        """The device names on the right side of a match: one, an anonymous set, or a named set's elements."""
        if isinstance(right, dict):
            right = right.get("set", [])
        if isinstance(right, str) and right.startswith("@"):
            right = self.elements("set", family, table, right[1:])
        names = right if isinstance(right, list) else [right]
        return [name for name in names if isinstance(name, str)]


def _fits(pattern: str, device: str) -> bool:
    return device.startswith(pattern[:-1]) if pattern.endswith("*") else device == pattern


def translates(chains: Chains, device: str) -> bool:
    """Whether a masquerade or snat rule may apply to IPv4 packets that leave by this device."""

    def in_chain(family: str, table: str, chain: str, depth: int) -> bool:
        return depth < JUMP_DEPTH and any(
            in_rule(rule, family, table, depth) for rule in chains.rules(family, table, chain)
        )

    def in_rule(rule: list[Any], family: str, table: str, depth: int) -> bool:
        if not all(chains.leaves_by(expression, device, family, table) for expression in rule):
            return False
        for expression in rule:
            if not isinstance(expression, dict):
                continue
            if "masquerade" in expression or "snat" in expression:
                return True
            if expression.get("xt", {}).get("name") in _TRANSLATING_TARGETS:
                return True
            for verb in _JUMPS:
                target = (expression.get(verb) or {}).get("target", layout.PREFIX)
                if not target.startswith(layout.PREFIX) and in_chain(family, table, target, depth + 1):
                    return True
        return False

    return any(in_chain(base["family"], base["table"], base["name"], 0) for base in chains.bases("nat", "postrouting"))


def forward_drop(nft: Nft, own: str = "") -> str | None:
    """Which forward chain refuses what it does not accept, where our accept is not final; None: none known to.

    ``own`` is the inet table in which our rules stand: where it is a firewall's, its chain has to lead to ours.
    """
    chains = Chains(nft)
    for base in chains.bases("filter", "forward"):
        place = (base["family"], base["table"], base["name"])
        rules = chains.rules(*place)
        if base.get("policy") != "drop" and not (rules and _refuses_all(rules[-1])):
            continue
        refusing = f"nftables chain {' '.join(place)} refuses what it does not accept itself"
        if place[:2] != ("inet", own):
            return f"{refusing}; it must accept our packets"
        if not _leads_to(layout.FORWARD_JUMP, chains, *place):
            return f"{refusing}; it must 'jump {layout.FORWARD_JUMP}'"
    return None


def _leads_to(wanted: str, chains: Chains, family: str, table: str, chain: str) -> bool:
    """Whether a rule of the chain, or of one that it leads to, jumps to the wanted one."""
    reached, pending = {chain}, [chain]
    while pending:
        for rule in chains.rules(family, table, pending.pop()):
            new = set(_targets(rule)) - reached
            reached |= new
            pending += new
    return wanted in reached


def _targets(rule: list[Any]) -> list[str]:
    """The chains that the rule leads to."""
    verdicts = [expression for expression in rule if isinstance(expression, dict)]
    return [(expression.get(verb) or {}).get("target", "") for expression in verdicts for verb in _JUMPS]


def _refuses_all(rule: list[Any]) -> bool:
    """Whether a rule without any match drops, rejects, or jumps away to something that is named so."""
    verdicts = [expression for expression in rule if isinstance(expression, dict)]
    if any("match" in expression for expression in verdicts):
        return False
    refusing = any("drop" in expression or "reject" in expression for expression in verdicts)
    return refusing or any("reject" in target or "drop" in target for target in _targets(rule))
