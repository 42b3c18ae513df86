# SPDX-License-Identifier: Apache-2.0
"""GENA: what subscribers ask for to typed values, and what one of them is told to NOTIFY messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from http import HTTPStatus
from ipaddress import ip_address

from igdpcp.errors import MalformedRequest
from igdpcp.model import IPAddress
from igdpcp.upnp.actions import UI2_MAX, UI4_MAX, Service, Value
from igdpcp.upnp.http import XML_TYPE, HttpRequest
from igdpcp.upnp.soap import text_of
from igdpcp.upnp.ssdp import host_port
from igdpcp.values import dataclass

TIMEOUT_MIN = 1800  # seconds; UPnP Device Architecture 1.1 section 4.1.2: at least that
TIMEOUT_MAX = 86400
PATH_LIMIT = 256  # characters of a callback's path
FAILURES_LIMIT = 3  # events in a row that were not taken end a subscription

_EVENT = "upnp:event"
_DEFAULT_PORT = "80"
_BETWEEN_BRACKETS = re.compile(r"<([^<>]*)>")
_TIMEOUT = re.compile(r"second-([0-9]{1,18})", re.IGNORECASE)
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-5][0-9][0-9])(?![0-9])")
# A zone is the subscriber's own name of the link, and says nothing here.
_CALLBACK = re.compile(
    r"http://(?:([0-9.]{7,15})|\[([0-9A-F:.]{2,45})(?:%[0-9A-Z._%-]{1,32})?\])(?::([0-9]{1,5}))?"
    rf'(/[!"$-~]{{0,{PATH_LIMIT - 1}}})?',
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Callback:
    """Where a subscriber takes events: its own address, and a path that is safe in a request line."""

    address: IPAddress
    port: int
    path: str


@dataclass(frozen=True, slots=True)
class Subscribe:
    """A subscription is wanted; ``timeout`` in seconds, as it is granted."""

    callback: Callback
    timeout: int


@dataclass(frozen=True, slots=True)
class Renew:
    """A subscription is to live for another ``timeout`` seconds, as they are granted."""

    sid: str
    timeout: int


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """A subscription is to end."""

    sid: str


def parse_request(
    request: HttpRequest, requester: IPAddress, ours: tuple[IPAddress, int]
) -> Subscribe | Renew | Unsubscribe:
    """What a SUBSCRIBE or UNSUBSCRIBE asks for; raises MalformedRequest with the status that refuses it.

    The statuses are those of UPnP Device Architecture 1.1 sections 4.1.2 to 4.1.4. ``ours`` is the address that the
    requester reached, and the port of this server.
    """
    headers = request.headers
    sid = headers.get("sid")
    if sid is not None and ("nt" in headers or "callback" in headers):
        raise MalformedRequest("SID together with NT or CALLBACK", HTTPStatus.BAD_REQUEST)
    if request.method == "UNSUBSCRIBE":
        if sid is None:
            raise _unmet("no SID")
        return Unsubscribe(sid.strip())
    timeout = _granted(headers.get("timeout", ""))
    if sid is not None:
        return Renew(sid.strip(), timeout)
    if "callback" not in headers:
        raise _unmet("neither SID nor CALLBACK")
    if headers.get("nt", "").strip() != _EVENT:
        raise _unmet("NT is not upnp:event")
    return Subscribe(_first_acceptable(headers["callback"], requester, ours), timeout)


def status_of(answer: bytes) -> int:
    """The status of a subscriber's answer, of which the first line is enough; raises MalformedRequest."""
    match = _STATUS_LINE.match(answer)
    if match is None:
        raise MalformedRequest("not an HTTP response")
    return int(match[1])


def propertyset(values: Mapping[str, Value]) -> bytes:
    """The body of an event, with the variables in the order given."""
    properties = "".join(
        f"<e:property><{name}>{text_of(value)}</{name}></e:property>" for name, value in values.items()
    )
    return (
        f'<?xml version="1.0"?>\n<e:propertyset xmlns:e="urn:schemas-upnp-org:event-1-0">{properties}</e:propertyset>\n'
    ).encode(errors="replace")


def notify_message(callback: Callback, sid: str, seq: int, body: bytes) -> bytes:
    """One event, complete (UPnP Device Architecture 1.1 section 4.3.2)."""
    head = (
        f"NOTIFY {callback.path} HTTP/1.1\r\n"
        f"HOST: {host_port(callback.address, callback.port)}\r\n"
        f"CONTENT-TYPE: {XML_TYPE}\r\n"
        f"CONTENT-LENGTH: {len(body)}\r\n"
        "CONNECTION: close\r\n"
        f"NT: {_EVENT}\r\n"
        "NTS: upnp:propchange\r\n"
        f"SID: {sid}\r\n"
        f"SEQ: {seq}\r\n"
        "\r\n"
    )
    return head.encode() + body


@dataclass(slots=True)
class Subscription:
    """One subscription, and what its subscriber was told; one event is on its way at a time.

    After each event that ``next_event`` gives, ``delivered`` or ``failed`` has to be called.
    """

    sid: str
    service: Service
    tree: int
    callback: Callback
    expires: float
    next_seq: int = 0
    _told: dict[str, Value] = field(default_factory=dict)
    _telling: dict[str, Value] = field(default_factory=dict)  # in the event that is on its way
    _failures: int = 0  # events in a row

    @property
    def begun(self) -> bool:
        """Whether the initial event was given out."""
        return self.next_seq > 0

    def next_event(self, current: Mapping[str, Value]) -> bytes | None:
        """The message that tells what differs from what the subscriber knows; None when nothing does.

        The first one tells everything there is.
        """
        told = self._told
        changed = {name: value for name, value in current.items() if name not in told or told[name] != value}
        if self.begun and not changed:
            return None
        message = notify_message(self.callback, self.sid, self.next_seq, propertyset(changed))
        self._telling = changed
        self.next_seq = 1 if self.next_seq == UI4_MAX else self.next_seq + 1  # 0: the initial event only
        return message

    def delivered(self) -> None:
        """The subscriber has taken the event."""
        self._told |= self._telling
        self._failures = 0

    def failed(self, status: int | None, *, nobody_listens: bool = False) -> bool:
        """The event is lost, with this answer (None: none came); whether the subscription has to end.

        It ends when nobody listens for the initial event: there is no subscriber. Else the subscriber may have got it
        all the same, so that what it knows of these variables is unknown: the next event carries them whatever they
        are.
        """
        for name in self._telling:
            self._told.pop(name, None)
        self._failures += 1
        is_initial = self.next_seq == 1
        return (
            status == HTTPStatus.PRECONDITION_FAILED
            or self._failures >= FAILURES_LIMIT
            or (is_initial and nobody_listens)
        )


def _unmet(reason: str) -> MalformedRequest:
    return MalformedRequest(reason, HTTPStatus.PRECONDITION_FAILED)


def _granted(wanted: str) -> int:
    """The seconds that are granted for a TIMEOUT header; what is no number, "infinite" too, counts as absent."""
    match = _TIMEOUT.fullmatch(wanted.strip())
    return min(max(int(match[1]), TIMEOUT_MIN), TIMEOUT_MAX) if match else TIMEOUT_MIN


def _first_acceptable(header: str, requester: IPAddress, ours: tuple[IPAddress, int]) -> Callback:
    """The first URL that leads to the requester itself: anything else would make us knock at other people's doors.

    UPnP Device Architecture 2.0 section 4.1.1 (CVE-2020-12695) asks for the same network only.
    """
    for url in _BETWEEN_BRACKETS.findall(header):
        callback = _callback(url)
        if callback is not None and callback.address == requester and (callback.address, callback.port) != ours:
            return callback
    raise _unmet("no CALLBACK that leads to the subscriber itself")


def _callback(url: str) -> Callback | None:
    """The parts of an http URL with a literal address; None for any other text."""
    match = _CALLBACK.fullmatch(url)
    if match is None:
        return None
    port = int(match[3] or _DEFAULT_PORT)
    try:
        address = ip_address(match[1] or match[2])
    except ValueError:
        return None
    return Callback(address, port, match[4] or "/") if 0 < port <= UI2_MAX else None
