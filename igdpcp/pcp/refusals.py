# SPDX-License-Identifier: Apache-2.0
"""What one server refused, and for how long it must not be asked again (RFC 6887 sections 7.4 and 8.3)."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import TypeVar

from igdpcp.model import IPAddress
from igdpcp.pcp.message import ResultCode
from igdpcp.pcp.options import OptionCode
from igdpcp.values import dataclass

REMEMBERED_REFUSALS = 1024  # requests, and ports; a LAN host can make as many differ as it likes

K = TypeVar("K")
V = TypeVar("V")
ExternalPort = tuple[int, int]  # protocol and port


@dataclass(frozen=True, slots=True)
class Refusal:
    """Result ``result``, valid until ``until``."""

    result: int
    until: float


@dataclass(frozen=True, slots=True)
class Shed:
    """What a request leaves out because the server did not take it."""

    description: bool = False
    clearing_filter: bool = False
    filters: bool = False
    prefer_failure: bool = False


class Refusals:
    """The refusals of one server: of everything, of other hosts, of new mappings, of a request, a port, of options."""

    def __init__(self) -> None:
        self._everything: Refusal | None = None
        self._new_mappings: Refusal | None = None
        self._others: Refusal | None = None
        self._own: IPAddress | None = None
        self._requests: dict[Hashable, Refusal] = {}
        self._too_many = False  # some of these are for the quota
        self._busy: dict[ExternalPort, tuple[Hashable, Refusal]] = {}
        self._shed_until: dict[str, float] = {}

    def refuse_everything(self, result: int, until: float) -> None:
        """No request of any kind before ``until``."""
        self._everything = Refusal(result, until)

    def accept(self) -> None:
        """The server can be used (again)."""
        self._everything = None

    def refuse_new(self, result: int, until: float) -> None:
        """No request for a new mapping before ``until`` (NO_RESOURCES)."""
        self._new_mappings = Refusal(result, until)

    def refuse_others(self, own: IPAddress, result: int, until: float) -> None:
        """No request on behalf of any host but ``own`` before ``until`` (THIRD_PARTY is not taken)."""
        self._own, self._others = own, Refusal(result, until)

    def refuse_request(self, request: Hashable, result: int, until: float) -> None:
        """Not this request before ``until``; the oldest of too many is forgotten."""
        _remember(self._requests, request, Refusal(result, until))
        self._too_many |= result == ResultCode.USER_EX_QUOTA

    def keep_busy(self, port: ExternalPort, owner: Hashable, until: float) -> None:
        """The port is nobody's but ``owner``'s before ``until``: its mapping lives that much longer than its delete."""
        _remember(self._busy, port, (owner, Refusal(ResultCode.CANNOT_PROVIDE_EXTERNAL, until)))

    def free(self, port: ExternalPort) -> None:
        """The port is nobody's: its mapping ended with its delete."""
        self._busy.pop(port, None)

    def of_port(self, port: ExternalPort, asker: Hashable, now: float) -> Refusal | None:
        """The standing refusal of this very port to whoever is not the one that it is kept for."""
        owner, refusal = self._busy.get(port, (None, None))
        return _standing(refusal, now) if owner != asker else None

    def forget_quota(self) -> None:
        """One of our mappings is given back, so there may be room for what was too much."""
        if self._too_many:
            self._too_many = False
            kept = ((key, known) for key, known in self._requests.items() if known.result != ResultCode.USER_EX_QUOTA)
            self._requests = dict(kept)

    def forget_request(self, request: Hashable) -> None:
        """The request was granted."""
        self._requests.pop(request, None)

    def everything(self, now: float) -> Refusal | None:
        """The standing refusal of all requests."""
        return _standing(self._everything, now)

    def of_others(self, now: float) -> Refusal | None:
        """The standing refusal of all requests on behalf of other hosts."""
        return _standing(self._others, now)

    def create(self, host: IPAddress, request: Hashable, *, is_new: bool, now: float) -> Refusal | None:
        """The standing refusal of this request for ``host``; unless it ``is_new``, the server has granted it before."""
        others = self.of_others(now) if host != self._own else None
        new = _standing(self._new_mappings, now) if is_new else None
        return others or new or self.of_request(request, now)

    def of_request(self, request: Hashable, now: float) -> Refusal | None:
        """The standing refusal of this very request."""
        return _standing(self._requests.get(request), now)

    def shed(self, now: float) -> Shed:
        """What requests leave out now."""
        return Shed(**{name: now < until for name, until in self._shed_until.items()})

    def shed_for(self, result: int, sent: Collection[int], clears_filters: bool, now: float, until: float) -> bool:
        """Leave out, until ``until``, what ``result`` is most likely about; False: nothing that could be left out.

        ``sent`` are the option codes of the refused request. The result is never wider than what was asked for: the
        router checks the remote host itself, and an assigned port that was not wanted is given back.
        """
        name = _most_likely(result, sent, clears_filters)
        if name:
            self._shed_until[name] = until
        return bool(name)


def _most_likely(result: int, sent: Collection[int], clears_filters: bool) -> str:
    malformed = result == ResultCode.MALFORMED_OPTION
    unsupported = result == ResultCode.UNSUPP_OPTION
    if (malformed or unsupported) and OptionCode.DESCRIPTION in sent:
        return "description"
    if malformed and clears_filters:
        return "clearing_filter"
    if (malformed or unsupported or result == ResultCode.EXCESSIVE_REMOTE_PEERS) and OptionCode.FILTER in sent:
        return "filters"
    if unsupported and OptionCode.PREFER_FAILURE in sent:
        return "prefer_failure"
    return ""


def _remember(known: dict[K, V], key: K, value: V) -> None:
    known.pop(key, None)
    if len(known) >= REMEMBERED_REFUSALS:
        del known[next(iter(known))]
    known[key] = value


def _standing(refusal: Refusal | None, now: float) -> Refusal | None:
    return refusal if refusal and now < refusal.until else None
