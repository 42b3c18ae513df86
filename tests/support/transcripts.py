# SPDX-License-Identifier: Apache-2.0
"""Dialogues of control points with the gateway: how they are kept, and what of an answer a control point depends on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tests.support.soap_client import parse_reply

DIRECTORY = Path(__file__).parents[1] / "transcripts"
SSDP, HTTP = "ssdp", "http"

UUID = re.compile(r"uuid:[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
VARYING = re.compile(r"(<New(?:Uptime|Total\w+|Layer1\w+BitRate)>|<NewLeaseDuration>(?!0<))\d+(?=<)")
ASKS_UPTIME = b"varName>Uptime<"
VARIABLE_VALUE = re.compile(r"(?<=<return>)\d+(?=<)")
DECISIVE_HEADERS = ("content-type", "connection", "allow", "timeout", "sid")
DECISIVE_FIELDS = ("cache-control", "ext", "location", "st", "usn")
DESCRIBING = ("deviceType", "UDN", "serviceType", "serviceId", "SCPDURL", "controlURL", "eventSubURL")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, byte for byte, and what was decisive in the answer; over HTTP its first line is the status."""

    transport: str
    request: bytes
    answer: tuple[str, ...]


@dataclass(slots=True)
class Transcript:
    """One dialogue. ``uuids`` are those of the answers as they were sent; in the answers kept they are numbered.

    ``origin`` is ``recorded`` or ``constructed``; ``facts`` says what a constructed one was made of.
    """

    client: str
    origin: str
    facts: str
    igd_version: str
    exchanges: list[Exchange]
    uuids: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Transcript:
        found = json.loads(path.read_text())
        exchanges = [
            Exchange(each["transport"], "".join(each["request"]).encode("latin-1"), tuple(each["answer"]))
            for each in found.pop("exchanges")
        ]
        return cls(exchanges=exchanges, **found)

    def save(self, path: Path) -> None:
        exchanges = [
            {**asdict(each), "request": each.request.decode("latin-1").splitlines(keepends=True)}
            for each in self.exchanges
        ]
        path.write_text(json.dumps({**asdict(self), "exchanges": exchanges}, indent=1) + "\n")


class Uuids:
    """Numbers uuids in the order in which the gateway told them, so that two dialogues can be compared."""

    def __init__(self) -> None:
        self.known: list[str] = []

    def numbered(self, text: str) -> str:
        return UUID.sub(lambda match: f"uuid:#{self._number(match.group())}", text)

    def _number(self, uuid: str) -> int:
        if uuid not in self.known:
            self.known.append(uuid)
        return self.known.index(uuid)

    def translated(self, request: bytes, recorded: list[str]) -> bytes:
        """The request with this dialogue's uuids in place of those that were recorded."""
        for old, new in zip(recorded, self.known, strict=False):
            request = request.replace(old.encode(), new.encode())
        return request


def decisive_found(answers: Iterable[bytes], uuids: Uuids) -> tuple[str, ...]:
    """What counts in the answers to a search, one line for each."""
    lines = []
    for answer in answers:
        reply = parse_reply(answer)
        fields = [f"{name}: {reply.headers[name]}".rstrip() for name in DECISIVE_FIELDS if name in reply.headers]
        lines.append(uuids.numbered(f"{reply.status} {'; '.join(fields)}"))
    return tuple(lines)


def decisive_reply(response: bytes, uuids: Uuids, request: bytes) -> tuple[str, ...]:
    """What counts in the response to ``request``: status, some headers, the body; of descriptions what one goes by."""
    reply = parse_reply(response)
    lines = [str(reply.status)]
    lines += [f"{name}: {reply.headers[name]}" for name in DECISIVE_HEADERS if name in reply.headers]
    body = _decisive_body(reply.body.decode())
    lines += [VARIABLE_VALUE.sub("*", line) for line in body] if ASKS_UPTIME in request else body
    return tuple(uuids.numbered(line) for line in lines)


def decisive_event(message: bytes, uuids: Uuids) -> tuple[str, ...]:
    """What counts in a NOTIFY: whose it is, its number, and the variables."""
    reply = parse_reply(message.replace(b"NOTIFY ", b"HTTP/1.1 0 ", 1))
    told = {name: reply.headers[name] for name in ("nt", "nts", "sid", "seq")}
    variables = [f"{leaf.tag}={leaf.text or ''}" for leaf in ElementTree.fromstring(reply.body).iter() if not len(leaf)]
    return tuple(uuids.numbered(f"event {line}") for line in [*(f"{k}: {v}" for k, v in told.items()), *variables])


def _decisive_body(body: str) -> list[str]:
    if "device-1-0" in body:
        return [f"{name} {text}" for name, text in _leaves(body) if name in DESCRIBING]
    if "service-1-0" in body:
        return list(_offered(body))
    return VARYING.sub(r"\1*", body).splitlines()


def _leaves(document: str) -> Iterator[tuple[str, str]]:
    for element in ElementTree.fromstring(document).iter():
        if not len(element):
            yield element.tag.rpartition("}")[2], element.text or ""


def _offered(document: str) -> Iterator[str]:
    """The actions with their arguments, in order, and the evented variables."""
    root = ElementTree.fromstring(document)
    for action in root.iterfind(".//{*}action"):
        arguments = [
            f"{argument.findtext('{*}direction')} {argument.findtext('{*}name')}"
            for argument in action.iterfind(".//{*}argument")
        ]
        yield f"{action.findtext('{*}name')}({', '.join(arguments)})"
    for variable in root.iterfind(".//{*}stateVariable[@sendEvents='yes']"):
        yield f"evented {variable.findtext('{*}name')}"
