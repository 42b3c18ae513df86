# SPDX-License-Identifier: Apache-2.0
"""Hosts that requests name instead of giving their addresses (RFC 6970 section 4.1: InternalClient, RemoteHost).

Whoever is on the LAN can make us ask the DNS, so there are few look-ups: at a time, of one host, and of all.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address

from igdpcp.daemon.control_request import ControlRequest, Deed, Outputs
from igdpcp.errors import Reason, Refusal, UpnpFault
from igdpcp.iwf.lifecycle import LOCAL_SECONDS
from igdpcp.log import RateLimit
from igdpcp.upnp.actions import Value
from igdpcp.upnp.soap import ACTION_FAILED, INVALID_ARGS

ARGUMENTS = ("NewInternalClient", "NewRemoteHost")
NAME_LIMIT = 253  # RFC 1035 section 2.3.4, as text
LOOKUP_SECONDS = 2.0  # at most half of the SOAP deadline: the carrier needs its time, too
KNOWN_SECONDS = 60.0
UNKNOWN_SECONDS = 10.0
REMEMBERED = 64  # names
UNDERWAY, UNDERWAY_OF_HOST = 4, 2  # look-ups at a time; a silent name server holds each for half a minute
HOST_BURST, HOST_PER_SECOND = 4, 0.2
ALL_BURST, ALL_PER_SECOND = 8, 1.0

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")

Lookup = Callable[[str], asyncio.Future[IPv4Address | None]]


class HostNames:
    """Puts addresses in the place of names; ``look_up`` asks the system."""

    def __init__(self, look_up: Lookup, soap_deadline: float) -> None:
        self._look_up = look_up
        self._patience = min(LOOKUP_SECONDS, soap_deadline / 2)
        self._deadline = soap_deadline + LOCAL_SECONDS
        self._now = asyncio.get_running_loop().time
        self._known: dict[str, tuple[float, IPv4Address | None]] = {}  # until when
        self._underway: dict[str, asyncio.Future[IPv4Address | None]] = {}
        self._askers: dict[str, object] = {}  # of those that are under way
        self._of_host = RateLimit(HOST_BURST, HOST_PER_SECOND, self._now)
        self._of_all = RateLimit(ALL_BURST, ALL_PER_SECOND, self._now)

    def resolving(self, deed: Deed) -> Deed:
        """The deed, for requests that may have names; it raises UpnpFault 402 for a name that has no address."""

        async def resolved(asked: ControlRequest) -> Outputs:
            names = {name: text for name in ARGUMENTS if is_host_name(text := str(asked.arguments.get(name, "")))}
            if not names:
                return await deed(asked)
            try:
                async with asyncio.timeout(self._deadline):
                    arguments: dict[str, Value] = dict(asked.arguments)
                    for name, text in names.items():
                        arguments[name] = str(await self._address(name, text, asked.requester.address))
                    return await deed(replace(asked, call=replace(asked.call, arguments=arguments)))
            except TimeoutError:
                raise Refusal(Reason.UNREACHABLE, f"not done in {self._deadline:g} s") from None

        return resolved

    async def _address(self, argument: str, text: str, asker: object) -> IPv4Address:
        name = text.strip().removesuffix(".").lower()
        until, address = self._known.get(name, (0.0, None))
        if until <= self._now():
            looking = self._underway.get(name) or self._begin(name, asker)
            await asyncio.wait([looking], timeout=self._patience)
            address = looking.result() if looking.done() else None
        if address is None:
            raise UpnpFault(INVALID_ARGS, f"{argument}: {text} has no IPv4 address")
        return address

    def _begin(self, name: str, asker: object) -> asyncio.Future[IPv4Address | None]:
        of_host = sum(other == asker for other in self._askers.values())
        if len(self._underway) >= UNDERWAY or of_host >= UNDERWAY_OF_HOST:
            raise UpnpFault(ACTION_FAILED, "too many host names are being looked up")
        if self._of_host.take(asker) is None or self._of_all.take(None) is None:
            raise UpnpFault(ACTION_FAILED, "too many host names to look up")
        self._askers[name] = asker
        looking = self._underway[name] = self._look_up(name)
        looking.add_done_callback(lambda done: self._end(name, done))
        return looking

    def _end(self, name: str, done: asyncio.Future[IPv4Address | None]) -> None:
        del self._underway[name], self._askers[name]
        address = None if done.cancelled() else done.result()
        self._known.pop(name, None)
        if len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[name] = self._now() + (KNOWN_SECONDS if address else UNKNOWN_SECONDS), address


def is_host_name(text: str) -> bool:
    """Whether the system may be asked for it; resolvers take numbers for addresses in forms that nobody expects."""
    text = text.strip().removesuffix(".")
    labels = text.split(".")
    return len(text) <= NAME_LIMIT and all(map(_LABEL.fullmatch, labels)) and not _NUMBER.fullmatch(labels[-1])
