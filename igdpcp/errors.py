# SPDX-License-Identifier: Apache-2.0
"""Three families of errors: our fault, the peer's bytes are wrong, a valid refusal."""

from __future__ import annotations

import enum


class IgdpcpError(Exception):
    """Base of everything this program raises on purpose."""


class OurFault(IgdpcpError):
    """Something on this router is not as it must be; the text says what to do."""


class ConfigError(OurFault):
    """The configuration cannot be used; ``problems`` lists every reason, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class RulesetError(OurFault):
    """The kernel refused a change of the ruleset; nothing of that change is in force."""


class RulesetBusy(RulesetError):
    """Somebody else has kept the ruleset locked; nothing was changed, and to try again at once is of no use."""


class PeerError(IgdpcpError):
    """A peer sent bytes that its protocol does not allow."""


class MalformedPcp(PeerError):
    """Not a PCP packet (RFC 6887 section 8.3: drop it)."""


class MalformedRequest(PeerError):
    """Not an HTTP, SOAP or SSDP request; ``status`` is the HTTP status that says so."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class UpnpFault(PeerError):
    """A UPnP control error that the request itself causes (401, 402, 6xx ...)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Reason(enum.StrEnum):
    """Why a valid request is refused; ``iwf/translate.py`` has the UPnP code of each, per version."""

    UNREACHABLE = "upstream does not answer"
    RULESET = "router's ruleset could not be changed"
    CANCELLED = "deleted before it was granted"
    CONFLICT = "port belongs to another client"
    PORT_IN_USE = "port is used by the router itself"
    OPERATORS_ENTRY = "entry was made by the operator"
    FOREIGN_CLIENT = "may only map to its own address"
    NOT_PERMITTED = "no permission rule allows it"
    QUOTA = "too many mappings"
    UNFAIR = "the last mappings are for hosts that hold fewer"
    TOO_FAST = "too many requests at a time"
    NO_PORT = "no free port"
    NOT_GIVEN = "carrier does not give this port"
    NOT_ENABLED = "only enabled mappings exist"
    REMOTE_HOST = "mappings for one remote host are not offered"
    WILDCARD_EXTERNAL_PORT = "external port 0 is not offered"
    WILDCARD_INTERNAL_PORT = "internal port 0 is not offered"
    NO_SUCH_ENTRY = "no such entry"
    NO_SUCH_INDEX = "index past the end"
    FOREIGN_ENTRY = "entry belongs to another client"
    NOTHING_IN_RANGE = "no entry in this range of ports"
    INBOUND_NOT_ALLOWED = "pinholes cannot be opened here"
    PINHOLE_NOT_PERMITTED = "may not open this pinhole"
    PINHOLE_SPACE = "too many pinholes"
    NO_SUCH_PINHOLE = "no such pinhole"
    FOREIGN_PINHOLE = "pinhole belongs to another client"
    NO_TRAFFIC = "pinhole has let nothing in"
    UPSTREAM = "refused by the upstream"


class Refusal(IgdpcpError):
    """A valid request, refused. ``result`` is the PCP result code when ``reason`` is UPSTREAM, else 0.

    ``lifetime``: for how many seconds it will be refused, where that is known.
    """

    def __init__(self, reason: Reason, detail: str = "", result: int = 0, lifetime: int = 0) -> None:
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
        self.reason = reason
        self.detail = detail
        self.result = result
        self.lifetime = lifetime
