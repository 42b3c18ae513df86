# SPDX-License-Identifier: Apache-2.0
"""iptables on a router whose firewall is fw4: legacy tables translate, fw4's table lets through.

What legacy tables accept fw4's forward chain refuses all the same. So the sets of our drop-ins in fw4's table hold what
is forwarded and what comes in, and the legacy table nat holds the translations.

Of two nat chains at one hook the one that was made last comes first, and a restart of fw4 makes its chains anew. So
source ports are in both: whichever comes first finds the same. And which of two redirects of one port wins, the
administrator's in fw4 or ours, depends on that too.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext, suppress

from igdpcp.errors import RulesetError
from igdpcp.netfilter import layout
from igdpcp.netfilter.desired import (
    Change,
    Fact,
    Hairpin,
    HairpinSender,
    Key,
    OwnPort,
    Pinhole,
    Redirect,
    SourcePort,
)
from igdpcp.netfilter.iptables import IptablesBackend
from igdpcp.netfilter.nftables import NftablesBackend
from igdpcp.openings import Discrepancy, Surroundings

_TRANSLATING = (Redirect, Hairpin, SourcePort, OwnPort, HairpinSender)
_REDIRECTING = (Redirect, Hairpin)


class Fw4IptablesBackend:
    """Translations by iptables, everything else by fw4's table.

    A refused change is in neither, where taking back can be done; after RulesetBusy it is.
    """

    name = "iptables"
    prompt_up_to = IptablesBackend.prompt_up_to
    in_fw4 = True

    def __init__(self) -> None:
        self._nat = IptablesBackend(only="nat")
        self._fw4 = NftablesBackend(layout.FW4_TABLE)

    def open(self) -> None:
        """Open both; raises RulesetError when fw4 has not loaded the drop-ins."""
        self._nat.open()
        self._fw4.open()

    def surroundings(self, surroundings: Surroundings) -> None:
        """Both are for these devices from now on, also when one of them cannot be told now."""
        try:
            self._fw4.surroundings(surroundings)
        finally:
            self._nat.surroundings(surroundings)

    def apply(self, changes: list[Change], now: float, *, wait: bool = True) -> None:
        """Accept before redirecting, and the other way round when taking away; a refused part is taken back."""
        nat = [change for change in changes if isinstance(change.key, _TRANSLATING)]
        fw4 = [change for change in changes if not isinstance(change.key, _REDIRECTING)]
        come, gone = [change for change in fw4 if change.after], [change for change in fw4 if not change.after]
        with self._nat.locked(wait=wait) if nat else nullcontext():
            if come:
                self._fw4.apply(come, now)
            try:
                if nat:
                    self._nat.apply(nat, now)
            except RulesetError:
                with suppress(RulesetError):
                    self._fw4.apply([Change(change.key, change.after, change.before) for change in come], now)
                raise
            if gone:
                self._fw4.apply(gone, now)

    def sync(self, facts: dict[Key, Fact], now: float) -> None:
        """Make both hold exactly these facts."""
        translating, other = _split(facts)
        self._fw4.sync(other, now)
        self._nat.sync(translating, now)

    def release(self) -> None:
        """Take everything of ours out of both."""
        try:
            self._nat.release()
        finally:
            self._fw4.release()

    def close(self, keep_rules: bool) -> None:
        """Redirects go, since they cannot expire; what fw4's sets hold lets nothing through without them."""
        try:
            self._nat.close(keep_rules)
        finally:
            self._fw4.close(keep_rules)

    def intact(self, sample: Mapping[Key, Fact]) -> bool:
        """Whether both are."""
        translating, other = _split(sample)
        return self._fw4.intact(other) and self._nat.intact(translating)

    def audit(self, facts: Mapping[Key, Fact], now: float) -> Discrepancy:
        """How both differ from these facts."""
        translating, other = _split(facts)
        nat, fw4 = self._nat.audit(translating, now), self._fw4.audit(other, now)
        return Discrepancy(nat.missing + fw4.missing, nat.surplus + fw4.surplus)

    def foreign_drop(self) -> str | None:
        """Name a forward chain that refuses what fw4's accepts."""
        return self._fw4.foreign_drop()

    def packets(self, key: Pinhole) -> int:
        """What fw4's element has counted."""
        return self._fw4.packets(key)


def _split(facts: Mapping[Key, Fact]) -> tuple[dict[Key, Fact], dict[Key, Fact]]:
    """What iptables holds, and what fw4's sets hold."""
    translating: dict[Key, Fact] = {key: fact for key, fact in facts.items() if isinstance(key, _TRANSLATING)}
    return translating, {key: fact for key, fact in facts.items() if not isinstance(key, _REDIRECTING)}
