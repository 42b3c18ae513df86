# SPDX-License-Identifier: Apache-2.0
"""Grants on their way into force: the kernel has the rules before the table says so.

More than one grant of a mapping may be on its way, and what is waited for need not end in the order in which it began.
So only the latest one counts when its rules are there; the others were for the kernel alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from igdpcp.errors import RulesetError
from igdpcp.iwf.background import Tasks
from igdpcp.iwf.router_leg import RouterLeg
from igdpcp.iwf.table import MappingTable
from igdpcp.model import Entry, Grant, Mapping, MappingState, Mode
from igdpcp.values import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class _Commit:
    """One of its own each time: the same grant may be brought into force again."""

    grant: Grant


class Commits:
    """``id in commits``: a grant of that mapping is on its way.

    ``in_force`` is called with the latest version of the mapping when the kernel has the grant's rules, ``refused``
    when it has none of them; neither for what has ended meanwhile, whose rules are removed behind this change.
    ``joining`` names entries that come into force with it, by a mapping's id; when one leaves, a commit is started.
    """

    def __init__(
        self,
        *,
        tasks: Tasks,
        table: MappingTable,
        router_leg: RouterLeg,
        joining: Callable[[str], tuple[Entry, ...]],
        in_force: Callable[[Mapping, Grant], None],
        refused: Callable[[Mapping, Grant, RulesetError], None],
    ) -> None:
        self._tasks = tasks
        self._table = table
        self._router_leg = router_leg
        self._joining = joining
        self._in_force = in_force
        self._refused = refused
        self._latest: dict[str, _Commit] = {}

    def __contains__(self, id: str) -> bool:
        return id in self._latest

    def grant_of(self, mapping: Mapping) -> Grant | None:
        """The grant that is on its way into force, else the one that the mapping has."""
        commit = self._latest.get(mapping.id)
        return commit.grant if commit else mapping.grant

    @property
    def coming(self) -> int:
        """How many mappings a carrier has granted of which the table does not say so yet."""
        granted = (self._table.get(id) for id, commit in self._latest.items() if commit.grant.upstream != Mode.LOCAL)
        return sum(mapping is not None and not mapping.at_carrier for mapping in granted)

    def start(self, id: str, grant: Grant) -> None:
        """Bring this grant into force, in the place of any that is on its way."""
        commit = self._latest[id] = _Commit(grant)
        self._tasks.start(self._carry(id, commit))

    def void(self, id: str) -> None:
        """What is on its way has been lost; whoever says so has the rules removed behind it."""
        self._latest.pop(id, None)

    async def _carry(self, id: str, commit: _Commit) -> None:
        try:
            laid: Mapping | None = None
            while (mapping := self._wanted(id, commit)) and (laid is None or _leads_elsewhere(mapping, laid)):
                laid, joining = mapping, self._joining(id)
                try:
                    await self._router_leg.put(_with(mapping, joining), commit.grant)
                except RulesetError as error:
                    if mapping := self._wanted(id, commit):
                        self._refused(mapping, commit.grant, error)
                    return
            if mapping:
                self._in_force(_with(mapping, joining), commit.grant)
        finally:
            if self._latest.get(id) is commit:
                del self._latest[id]

    def _wanted(self, id: str, commit: _Commit) -> Mapping | None:
        """The mapping, while it is to be open by this grant."""
        mapping = self._table.get(id)
        if mapping is None or mapping.state is MappingState.ENDING or self._latest.get(id) is not commit:
            return None
        return mapping


def _leads_elsewhere(mapping: Mapping, laid: Mapping) -> bool:
    """Whether a version that came meanwhile has other rules: nobody lays those of what is not open yet."""
    return (mapping.request.client, mapping.hosts) != (laid.request.client, laid.hosts)


def _with(mapping: Mapping, joining: Iterable[Entry]) -> Mapping:
    for entry in joining:
        mapping = mapping.with_entry(entry)
    return mapping
