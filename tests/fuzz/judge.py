# SPDX-License-Identifier: Apache-2.0
"""What must hold of every byte that the gateway sends and of every line that it logs, whatever it was told."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from igdpcp.upnp.soap import FAULT_NAMES

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
REFUSALS = {400, 413, 431, 501}  # of what never became a request
STATUS_LINE = re.compile(r"HTTP/1\.1 ([2-5][0-9][0-9]) [ -~]*")
FIELD = re.compile(r"([A-Za-z0-9.-]+):(?: ([ -~]+))?")
HTTP_FIELDS = {
    "allow", "connection", "content-language", "content-length", "content-type", "date", "ext", "server", "sid",
    "timeout",
}  # fmt: skip
SSDP_FIELDS = {
    "01-nls", "bootid.upnp.org", "cache-control", "configid.upnp.org", "date", "ext", "location", "opt", "server", "st",
    "usn",
}  # fmt: skip
LOG_KEY = re.compile(r"[a-z][a-z_0-9]*")


@dataclass(frozen=True, slots=True)
class Answer:
    """A well-formed HTTP response; ``code`` is that of the UPnP fault in it, 0 for none."""

    status: int
    fields: dict[str, str]
    body: bytes
    code: int = 0

    @property
    def ends_the_connection(self) -> bool:
        return self.fields.get("connection") == "close"


def answers_in(data: bytes, methods: Sequence[str]) -> list[Answer]:
    """Everything that came on a connection; AssertionError where it is not one response for each of ``methods``.

    One more may follow that refuses what never became a request. It ends the connection.
    """
    answers: list[Answer] = []
    while data := _without_continue(data):
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator, f"no response: {head!r}"
        status, fields = _head(head, HTTP_FIELDS)
        method = methods[len(answers)] if len(answers) < len(methods) else ""
        length = 0 if method == "HEAD" else int(fields["content-length"])
        body, data = data[:length], data[length:]
        assert len(body) == length
        answers.append(Answer(status, fields, body, _fault_code(fields, body) if body else 0))
    *those_before, last = answers or [None]
    assert not any(answer.ends_the_connection for answer in those_before), "a response behind the last one"
    if len(answers) != len(methods):
        assert len(answers) == len(methods) + 1, f"{len(answers)} responses to {methods}"
        assert last.status in REFUSALS
        assert last.ends_the_connection
    return answers


def found_in(datagram: bytes) -> dict[str, str]:
    """The fields of an answer to a search; AssertionError when the datagram is anything else."""
    head, separator, rest = datagram.partition(b"\r\n\r\n")
    assert (separator, rest) == (b"\r\n\r\n", b"")
    status, fields = _head(head, SSDP_FIELDS)
    assert status == 200
    return fields


def fields_of(line: str) -> dict[str, str]:
    """The fields of a log line; AssertionError when it is not one line of printable ``key=value`` words."""
    assert line.isascii(), line
    assert line.isprintable(), ascii(line)
    pairs = [word.partition("=") for word in shlex.split(line)]
    fields = {key: value for key, equals, value in pairs if equals and LOG_KEY.fullmatch(key)}
    assert len(fields) == len(pairs), f"a word that is no field, or a field twice: {line}"
    assert list(fields)[:2] == ["level", "event"], line
    return fields


def _without_continue(data: bytes) -> bytes:
    while data.startswith(CONTINUE):
        data = data.removeprefix(CONTINUE)
    return data


def _head(head: bytes, known: set[str]) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("ascii").split("\r\n")
    status = STATUS_LINE.fullmatch(first)
    assert status, first
    matches = [FIELD.fullmatch(line) for line in lines]
    assert all(matches), lines
    fields = {match[1].lower(): match[2] or "" for match in matches if match}
    assert len(fields) == len(lines), f"a field twice: {lines}"
    assert fields.keys() <= known, f"who has put that there? {lines}"
    return int(status[1]), fields


def _fault_code(fields: dict[str, str], body: bytes) -> int:
    """The UPnP error code in a body, which must be XML when its type says so."""
    if not fields["content-type"].startswith("text/xml"):
        return 0
    code = next(ElementTree.fromstring(body).iter("{urn:schemas-upnp-org:control-1-0}errorCode"), None)
    if code is None:
        return 0
    number = int(code.text or "")
    assert number in FAULT_NAMES or 700 <= number < 800
    return number
