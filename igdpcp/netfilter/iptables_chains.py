# SPDX-License-Identifier: Apache-2.0
"""What of the tables mappings do not change: our chains, the jumps to them and their place, the static rules."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from igdpcp.errors import RulesetError
from igdpcp.netfilter import iptables_place as place
from igdpcp.netfilter import iptables_rules as rules
from igdpcp.netfilter.iptables_place import Standing
from igdpcp.netfilter.iptables_shapes import Rule, Shape
from igdpcp.netfilter.iptables_table import Counted, Edit
from igdpcp.openings import Surroundings
from igdpcp.values import dataclass

_IPV6_TABLES = Path("/proc/thread-self/net/ip6_tables_names")  # the tables that this network namespace uses


@dataclass(frozen=True, slots=True)
class Part:
    """What of one table no mapping changes."""

    table: str
    ipv6: bool
    surroundings: Surroundings

    def holds(self, rule: Rule) -> bool:
        """Whether the rule is of this table."""
        return (rule.table, rule.shape.ipv6) == (self.table, self.ipv6)

    @property
    def chains(self) -> tuple[str, ...]:
        """All chains that are always there."""
        return rules.CHAINS[self.table, self.ipv6]

    @property
    def static_chains(self) -> tuple[str, ...]:
        """Those of them that hold static rules alone."""
        return rules.STATIC_CHAINS[self.table, self.ipv6]

    @property
    def jumps(self) -> tuple[Rule, ...]:
        """The rules of the built-in chains that lead to ours."""
        return _jumps(self.table, self.ipv6)

    @property
    def jumps_of_chains(self) -> dict[str, list[str]]:
        """Where they lead to, by the built-in chain in which they are."""
        return _jumps_of_chains(self.table, self.ipv6)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The static rules."""
        return rules.static_rules(self.surroundings)[self.table, self.ipv6]

    @property
    def filled_chains(self) -> tuple[str, ...]:
        """The chains that are not empty, whatever is mapped."""
        return rules.filled_chains(self.surroundings)[self.table, self.ipv6]

    def before_refusal(self, edit: Edit, standing: Sequence[Standing]) -> int:
        """Where our jump belongs in a chain that has these rules."""
        wan = self.surroundings.wan6_devices if self.ipv6 else self.surroundings.wan_devices
        return place.before_refusal(standing, edit.standing, wan, self.surroundings.lan_devices)


@cache
def _jumps(table: str, ipv6: bool) -> tuple[Rule, ...]:
    return tuple(jump for jump in rules.JUMPS if (jump.table, jump.shape.ipv6) == (table, ipv6))


@cache
def _jumps_of_chains(table: str, ipv6: bool) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for jump in _jumps(table, ipv6):
        found.setdefault(jump.chain, []).append(jump.to)
    return found


def parts(surroundings: Surroundings, *, ipv6: bool = False) -> list[Part]:
    """One for each table; IPv6's only where it is in use or needed. Raises RulesetError for what is no device name."""
    rules.static_rules(surroundings)  # a bad name is refused before anything is written
    found = [Part("filter", False, surroundings), Part("nat", False, surroundings)]
    needed = ipv6 or surroundings.shut_devices or any(peer.server.version == 6 for peer in surroundings.pcp_peers)
    if needed or ipv6_in_use():
        found.insert(1, Part("filter", True, surroundings))
    return found


def ipv6_in_use() -> bool:
    """Whether somebody has made the filter table of IPv6; to read it is to make it."""
    with suppress(OSError):
        return "filter" in _IPV6_TABLES.read_text().split()
    return False


def check(edit: Edit, part: Part) -> None:
    """Raises RulesetError when mappings' rules would not take effect: somebody loaded or flushed the table.

    A glance, for every change begins with it.
    """
    for chain, jumps in part.jumps_of_chains.items():
        if rules.BEHIND_BANS in jumps:
            standing = edit.standing(chain)
            targets = [rule.target for rule in standing]
            if rules.BEHIND_BANS not in targets[: part.before_refusal(edit, standing)]:
                raise RulesetError(
                    f"iptables table {part.table}: {chain} does not lead to {rules.BEHIND_BANS} before it refuses"
                )
        else:
            targets = edit.targets(chain)
        if missing := next((to for to in jumps if to not in targets), None):
            raise RulesetError(f"iptables table {part.table}: {chain} does not lead to {missing}")
    if emptied := next(filter(edit.is_empty, part.filled_chains), None):
        raise RulesetError(f"iptables table {part.table}: {emptied} is empty")


def frame(edit: Edit, part: Part) -> None:
    """Our fixed chains, and the one jump to each at its place, wherever an older one stood."""
    for chain in part.chains:
        edit.need(chain)
    for jump in part.jumps:
        while edit.delete(jump):
            pass
        if jump.to == rules.BEHIND_BANS:
            edit.insert(jump, part.before_refusal(edit, edit.standing(jump.chain)))
        else:
            edit.add(jump)


def lay(edit: Edit, part: Part) -> None:
    """The frame and the static rules; those of mappings stay."""
    frame(edit, part)
    for chain in part.static_chains:
        edit.flush(chain)
    replace(edit, [], part.rules)


def rewrite(edit: Edit, part: Part, wanted: Iterable[tuple[Rule, Counted]]) -> None:
    """The static part and these rules with what they have counted, and nothing else of ours."""
    _clear(edit, part, keep=part.chains)
    lay(edit, part)
    for rule, counted in wanted:
        edit.add(rule, counted)


def remove(edit: Edit, part: Part) -> None:
    """Take the jumps and our chains away."""
    _clear(edit, part, keep=())


def amend(edit: Edit, part: Part, gone: Iterable[Rule], come: Iterable[Rule]) -> None:
    """Exchange rules; raises RulesetError when they would not take effect."""
    check(edit, part)
    replace(edit, gone, come)


def replace(edit: Edit, gone: Iterable[Rule], come: Iterable[Rule]) -> None:
    """A rule to delete may be missing: somebody flushed it, and it shall not be there anyway."""
    for rule in gone:
        edit.delete(rule)
    for rule in come:
        edit.add(rule)


def _clear(edit: Edit, part: Part, keep: Collection[str]) -> None:
    """Our chains without any rule, and none but those to keep; another release may have had others and led to them.

    One to which a rule of somebody else leads stays, empty.
    """
    for chain in rules.BUILT_IN[part.table]:
        for target in edit.targets(chain):
            if target.startswith(rules.PREFIX) and target not in keep:
                edit.delete(Rule(part.table, chain, Shape(ipv6=part.ipv6), to=target))
    chains = edit.own_chains()
    for chain in chains:
        edit.flush(chain)
    for chain in set(chains).difference(keep):
        edit.drop_unless_used(chain)
