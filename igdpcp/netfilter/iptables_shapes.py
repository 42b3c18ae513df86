# SPDX-License-Identifier: Apache-2.0
"""Rules as values: the shape that many of them share, and the branches over which they are spread.

A packet must not walk along all mappings. So their rules stand in leaves, one for each block of ports, to which two
levels of ``goto`` lead: from the base (16 nodes of 4096 ports) and from a node (16 leaves of 256 ports). A leaf and the
way to it are there while it holds a rule. Finer leaves would be walked through faster, but each is as large as two
rules, and every change writes the whole table.
"""

from __future__ import annotations

from dataclasses import field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from igdpcp.values import dataclass

BLOCK = 256  # ports of a leaf
_NODE = 16 * BLOCK  # ports of a node
_KEPT = 4096  # branches remembered: more than the mappings of a full table make in all tables together

Options = tuple[tuple[str, str], ...]
Matches = tuple[tuple[str, Options], ...]
Values = tuple[tuple[str, IPv4Address | IPv6Address | int], ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """What rules have in common that differ in addresses and ports only; those are words in braces here.

    ``matches`` and ``options``: names and values of parameters. ``target``: an extension, ACCEPT or DROP; empty: a
    chain of ours, which the rule names.
    """

    target: str = ""
    goto: bool = False
    in_device: str = ""
    out_device: str = ""
    source: str = ""
    destination: str = ""
    protocol: str = ""
    matches: Matches = ()
    options: Options = ()
    ipv6: bool = False

    def __hash__(self) -> int:
        return hash((self.target, self.protocol, self.matches))  # of all fields it would take several times as long


@dataclass(frozen=True, slots=True)
class Branch:
    """A leaf, and the two rules that lead there, by what ``side`` names of a packet of this protocol.

    ``side``: ``dport``, ``sport``, or ``ctorigdstport``: the destination port before a translation.
    """

    table: str
    base: str
    side: str
    protocol: str
    block: int
    ipv6: bool = False
    leaf: str = field(init=False)
    node: str = field(init=False)

    def __post_init__(self) -> None:
        # no device has a slash in its name; the longest name of a chain is as long as iptables allows, 28 characters
        object.__setattr__(self, "leaf", f"{self.base}/{self.protocol[0]}{self.block:02x}")
        object.__setattr__(self, "node", f"{self.base}/{self.protocol[0]}{self.block // 16:x}")

    @property
    def to_node(self) -> Rule:
        """The rule of the base that leads to the node."""
        return _to_node(self)

    @property
    def to_leaf(self) -> Rule:
        """The rule of the node that leads to the leaf."""
        return _to_leaf(self)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``to``: the chain that it leads to. ``first``: in front of the others of its chain, not behind them.

    ``branch``: that of which its chain is the leaf.
    """

    table: str
    chain: str
    shape: Shape
    values: Values = ()
    to: str = ""
    first: bool = False
    branch: Branch | None = None

    def __hash__(self) -> int:
        return hash((self.chain, self.values))  # as of a shape


@lru_cache(_KEPT)
def _branch(table: str, base: str, side: str, protocol: str, block: int, ipv6: bool) -> Branch:
    return Branch(table, base, side, protocol, block, ipv6)


def branch(table: str, base: str, side: str, protocol: str, port: int, *, ipv6: bool = False) -> Branch:
    """The branch for this port."""
    return _branch(table, base, side, protocol, port // BLOCK, ipv6)


@lru_cache(_KEPT)
def _to_node(to: Branch) -> Rule:
    return _goto(to, to.base, to.node, to.block // 16 * _NODE, _NODE)


@lru_cache(_KEPT)
def _to_leaf(to: Branch) -> Rule:
    return _goto(to, to.node, to.leaf, to.block * BLOCK, BLOCK)


def _goto(branch: Branch, chain: str, to: str, low: int, count: int) -> Rule:
    extension = "conntrack" if branch.side == "ctorigdstport" else branch.protocol
    ports = (extension, ((branch.side, "{low}:{high}"),))
    shape = Shape(goto=True, protocol=branch.protocol, matches=(ports,), ipv6=branch.ipv6)
    return Rule(branch.table, chain, shape, (("low", low), ("high", low + count - 1)), to)
