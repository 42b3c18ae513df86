# SPDX-License-Identifier: Apache-2.0
"""What stands in the inet table that we use: whose it is, whether our part of it works, what other releases left.

Objects of another generation (``layout.PREFIX``) hold mappings that nobody here knows of, and would go on translating
while the drop-ins that they belong to are loaded. So would a table that was ours before another was chosen.
"""

from __future__ import annotations

import re
from dataclasses import field

from igdpcp.netfilter import layout
from igdpcp.netfilter.libnftables import Nft
from igdpcp.values import dataclass

INCLUDE_FILE = "/usr/share/igdpcp/table.nft"  # where the package puts ``layout.include``
_GENERATION = re.compile(rf"{layout.ANY_GENERATION}[0-9]+_")
_OWN_TABLE_MARK = re.compile(rf"{_GENERATION.pattern}fwd_hook")  # a chain that nobody has but a table that we made
_ELEMENTS = ("set", "map")  # the kinds that have some


@dataclass(frozen=True, slots=True)
class Survey:
    """The named objects of one table, as pairs of kind and name, and the chains that hold rules.

    ``abandoned``: other tables that are ours alone.
    """

    table: str
    objects: list[tuple[str, str]] = field(default_factory=list)
    filled: set[str] = field(default_factory=set)
    abandoned: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether all our chains are there and hold rules: fw4 empties those whose drop-ins it does not load."""
        return self.filled.issuperset(layout.PREFIX + chain for chain in layout.CHAINS)

    @property
    def stranger(self) -> str | None:
        """An object that is not named as ours are, None when there is none."""
        strangers = (f"{kind} {name!r}" for kind, name in self.objects if not name.startswith(layout.ANY_GENERATION))
        return next(strangers, None)

    @property
    def is_administrators(self) -> bool:
        """Whether somebody else made the table and included our objects in it."""
        return self.stranger is not None and self.complete and not self.made_here

    @property
    def made_here(self) -> bool:
        """Whether this or another release made the table."""
        return any(_OWN_TABLE_MARK.fullmatch(name) for _, name in self.objects)

    @property
    def emptied(self) -> str:
        """Commands that take all elements out of our sets and maps that are there, of whatever generation."""
        ours = (one for one in self.objects if one[0] in _ELEMENTS and _GENERATION.match(one[1]))
        return "".join(f"flush {kind} inet {self.table} {name}\n" for kind, name in ours)

    def clearance(self, *, ours: bool) -> str:
        """Commands that take away what another generation left. ``ours``: no rule of the table is kept anyway.

        Where rules of its drop-ins are loaded, somebody else's rules lead to them: then only its elements can go.
        """
        stale = [(kind, name) for kind, name in self.objects if _GENERATION.match(name) and name not in layout.NAMES]
        in_use = not ours and any(name in self.filled for _, name in stale)
        flushed = [f"flush {kind} inet {self.table} {name}\n" for kind, name in stale if kind in _ELEMENTS]
        stale.sort(key=lambda one: one[0] != "chain")  # whose rules refer to the others
        gone = [] if in_use else [f"delete {kind} inet {self.table} {name}\n" for kind, name in stale]
        return "".join(flushed + gone)


def survey(nft: Nft, table: str) -> Survey:
    """Look at the table, without the elements of its sets; nothing is found where there is no such table.

    Raises RulesetError.
    """
    tables: dict[str, Survey] = {table: Survey(table)}
    for entry in nft.query("list ruleset", elements=False):
        for kind, one in entry.items():
            if one.get("family") != "inet" or "table" not in one:
                continue
            found = tables.setdefault(one["table"], Survey(one["table"]))
            if kind == "rule":
                found.filled.add(one["chain"])
            elif "name" in one:
                found.objects.append((kind, one["name"]))
    wanted = tables.pop(table)
    wanted.abandoned.extend(other.table for other in tables.values() if other.made_here and not other.stranger)
    return wanted
