# SPDX-License-Identifier: Apache-2.0
"""What survives the process: every mapping with its intent, on tmpfs at once, on flash now and then.

One line of JSON per change behind a header line, in two files of the same form: ``journal`` in the run-time directory,
written before anything is asked upstream and never synced, and ``mappings`` in the state directory, written whole and
atomically. Times are CLOCK_BOOTTIME; after a reboot, what was left when the file was written counts (routers have no
clock battery).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from io import TextIOWrapper
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from igdpcp import jsonio
from igdpcp.errors import OurFault
from igdpcp.log import line
from igdpcp.model import (
    Endpoint,
    Grant,
    Mapping,
    MappingRequest,
    MappingState,
    Mode,
    Owner,
    Protocol,
    Requester,
)

LOG = logging.getLogger("igdpcp.journal")
FORMAT = 1
SECRET_BYTES = 32
SLACK_LINES = 1000  # superseded lines that the run-time journal may hold before it is rewritten

Clock = Callable[[], float]


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def load_secret(state_dir: Path) -> bytes:
    """The secret that nonces and UDNs are derived from: made once, stored once (0600).

    Raises OurFault when it can be neither read nor stored, since a new one would lock us out of our own mappings.
    """
    path = state_dir / "secret"
    try:
        return bytes.fromhex(path.read_text())
    except FileNotFoundError:
        secret = secrets.token_bytes(SECRET_BYTES)
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            _write_atomically(path, secret.hex() + "\n")
        except OSError as error:
            raise OurFault(f"cannot store the secret in {path}: {error.strerror}; check option 'state_dir'") from error
        return secret
    except (OSError, ValueError) as error:
        raise OurFault(f"cannot read the secret in {path}: {error}; restore it, or delete it to start anew") from error


class Journal:
    """Remembers mappings across restarts; ``clock`` is the loop's, whose times mappings carry."""

    def __init__(self, run_dir: Path, state_dir: Path, clock: Clock) -> None:
        self._run = run_dir / "journal"
        self._flash = state_dir / "mappings"
        self._clock = clock
        self._live: dict[str, Mapping] = {}
        self._lines = 0
        self._file: TextIOWrapper | None = None
        self.dirty = False

    def load(self) -> list[Mapping]:
        """Every mapping that an earlier process left, oldest first; a damaged file is set aside and reported."""
        for path in (self._run, self._flash):
            try:
                mappings = self._read(path)
            except FileNotFoundError:
                continue
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                aside = path.with_suffix(".damaged")
                with contextlib.suppress(OSError):
                    path.replace(aside)
                LOG.error(line("journal_damaged", file=path, kept_as=aside, error=error))
                continue
            self._live = mappings  # until each is recorded anew or gone, a rewrite must not lose it
            self.dirty = path == self._run
            return sorted(mappings.values(), key=lambda mapping: mapping.serial)
        return []

    def record(self, mapping: Mapping) -> None:
        """Store this version of a mapping before what it says is acted upon; raises OurFault when that fails."""
        before = self._live.get(mapping.id)
        try:
            text = _line(self._encode(mapping))
            self._live[mapping.id] = mapping
            self._append(text)
        except (OSError, ValueError) as error:
            if before is None:
                self._live.pop(mapping.id, None)
            raise OurFault(f"cannot write {self._run}: {error}") from error
        if before is None or _lasting(before) != _lasting(mapping):
            self.dirty = True

    def note(self, mapping: Mapping) -> None:
        """Store this version of a mapping that is true already; a failure is logged."""
        try:
            self.record(mapping)
        except OurFault as fault:
            LOG.error(line("journal_failed", error=fault))

    def gone(self, id: str) -> None:
        """Nothing of this mapping is left anywhere; a failure is logged."""
        if self._live.pop(id, None) is None:
            return
        self.dirty = True
        try:
            self._append(_line({"gone": id}))
        except OSError as error:
            LOG.error(line("journal_failed", error=error))

    def save(self) -> None:
        """Write the flash copy when something changed since the last one."""
        if write := self.writer():
            write()

    def writer(self) -> Callable[[], None] | None:
        """What writes the flash copy of this moment, to be called in any thread; None when nothing changed."""
        if not self.dirty:
            return None
        self.dirty = False
        live = list(self._live.values())

        def write() -> None:
            try:
                body = self._snapshot(live)
                _write_atomically(self._flash, body + _line({"sha256": _digest(body)}))
            except OSError:
                self.dirty = True
                raise

        return write

    def close(self) -> None:
        if file := self._file:
            self._file = None
            with contextlib.suppress(OSError):  # what could not be flushed is in the next snapshot
                file.close()

    def _append(self, text: str) -> None:
        if self._file is None or self._lines > 2 * len(self._live) + SLACK_LINES:
            self._rewrite()
            return
        try:
            self._file.write(text)
            self._file.flush()
        except OSError:
            self.close()  # half a line may stand there now: the next change writes the file anew
            raise
        self._lines += 1

    def _rewrite(self) -> None:
        self.close()
        self._run.parent.mkdir(parents=True, exist_ok=True)
        _write_atomically(self._run, self._snapshot(self._live.values()), sync=False)
        self._file = self._run.open("a", encoding="utf-8")
        self._lines = len(self._live)

    def _snapshot(self, mappings: Iterable[Mapping]) -> str:
        header = {"igdpcp": FORMAT, "boot": boot_id(), "at": boottime()}
        return "".join(map(_line, (header, *map(self._encode, mappings))))

    def _read(self, path: Path) -> dict[str, Mapping]:
        octets = path.read_bytes()
        if path == self._run:  # the process ended in the middle of the last line, so what it says was not acted upon
            octets = octets[: octets.rfind(b"\n") + 1]
        text = octets.decode()
        head, *rest = text.removesuffix("\n").split("\n")  # not splitlines: LAN hosts choose what stands in the strings
        header = jsonio.loads(head)
        if header.get("igdpcp") != FORMAT:
            raise ValueError(f"format {header.get('igdpcp')!r} is not known")
        if path == self._flash:
            body, last = text[: text.rindex("\n", 0, -1) + 1], rest.pop()
            if jsonio.loads(last).get("sha256") != _digest(body):
                raise ValueError("checksum does not match")
        ahead = boottime() if header["boot"] == boot_id() else float(header["at"])
        mappings: dict[str, Mapping] = {}
        for text in rest:
            try:
                entry = jsonio.loads(text)
                if "gone" in entry:
                    mappings.pop(entry["gone"], None)
                else:
                    mappings[entry["id"]] = self._decode(entry, self._clock() - ahead)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                LOG.error(line("journal_entry_skipped", file=path, entry=text, error=error))
        return mappings

    def _encode(self, mapping: Mapping) -> dict[str, Any]:
        request, grant = mapping.request, mapping.grant
        shift = boottime() - self._clock()
        return {
            "id": mapping.id,
            "serial": mapping.serial,
            "state": mapping.state.value,
            "mode": mapping.mode.value,
            "requester": str(request.requester.address or ""),
            "owner": request.requester.owner.value,
            "agent": request.requester.agent,
            "protocol": request.protocol.name,
            "wanted": request.external_port,
            "client": str(request.client.address),
            "client_port": request.client.port,
            "remote_host": str(request.remote_host or ""),
            "lease": request.lease,
            "description": request.description,
            "any": request.any_port,
            "external_port": mapping.external_port,
            "wan_port": mapping.wan_port,
            "lease_ends": None if mapping.lease_ends is None else mapping.lease_ends + shift,
            "grant": grant
            and {
                "upstream": grant.upstream,
                "internal": [str(grant.internal.address), grant.internal.port],
                "address": str(grant.external.address),
                "port": grant.external.port,
                "lifetime": grant.lifetime,
                "ends": grant.ends + shift,
                "nonce": grant.nonce.hex(),
                "server": grant.server,
            },
        }

    @staticmethod
    def _decode(entry: dict[str, Any], shift: float) -> Mapping:
        grant = entry["grant"]
        return Mapping(
            id=entry["id"],
            serial=entry["serial"],
            request=MappingRequest(
                requester=Requester(_address(entry["requester"]), Owner(entry["owner"]), entry["agent"]),
                protocol=Protocol[entry["protocol"]],
                external_port=entry["wanted"],
                client=Endpoint(IPv4Address(entry["client"]), entry["client_port"]),
                remote_host=_address(entry["remote_host"]),
                lease=entry["lease"],
                description=entry["description"],
                any_port=entry["any"],
            ),
            mode=Mode(entry["mode"]),
            external_port=entry["external_port"],
            wan_port=entry["wan_port"],
            state=MappingState(entry["state"]),
            lease_ends=None if entry["lease_ends"] is None else entry["lease_ends"] + shift,
            grant=grant
            and Grant(
                upstream=grant["upstream"],
                internal=Endpoint(IPv4Address(grant["internal"][0]), grant["internal"][1]),
                external=Endpoint(IPv4Address(grant["address"]), grant["port"]),
                lifetime=grant["lifetime"],
                ends=grant["ends"] + shift,
                nonce=bytes.fromhex(grant["nonce"]),
                server=grant["server"],
            ),
        )


def _line(entry: dict[str, Any]) -> str:
    """One line; raises ValueError for text that has no encoding."""
    text = jsonio.dumps(entry) + "\n"
    text.encode()
    return text


def _lasting(mapping: Mapping) -> Mapping:
    """What is worth a flash write: everything but the times, which renewals move for ever."""
    return replace(mapping, grant=None, lease_ends=None)


def _address(text: str) -> IPv4Address | None:
    return IPv4Address(text) if text else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write_atomically(path: Path, text: str, sync: bool = True) -> None:
    """Replace the file so that a power cut leaves the old or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    temporary.replace(path)
