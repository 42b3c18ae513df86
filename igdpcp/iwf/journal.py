# SPDX-License-Identifier: Apache-2.0
"""What survives the process: every mapping with its intent, on tmpfs at once, on flash now and then.

One line of JSON per change behind a header line, in two files of the same form: ``journal`` in the run-time directory,
written before anything is asked upstream and never synced, and ``mappings`` in the state directory, written whole and
atomically. Pinholes are only in the first: their leases are short, and a reboot may bring another IPv6 prefix. Headers
and changes carry the SystemUpdateID of their time. Times are CLOCK_BOOTTIME; after a reboot, what was left when the
file was written counts (routers have no clock battery).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from igdpcp import jsonio
from igdpcp.errors import OurFault
from igdpcp.iwf import journal_entries
from igdpcp.iwf.journal_entries import Record
from igdpcp.log import line
from igdpcp.model import Mapping, Pinhole
from igdpcp.values import dataclass

LOG = logging.getLogger("igdpcp.journal")
FORMAT = 1
SECRET_BYTES = 32
SLACK = 256 * 1024  # characters of superseded lines that the run-time journal may hold before it is rewritten

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

    A damaged one is set aside and reported; what was stored with its nonce by then stays ours. Raises OurFault when a
    new one cannot be stored, since with yet another one we would be locked out of our own mappings.
    """
    path = state_dir / "secret"
    try:
        secret = bytes.fromhex(path.read_text())
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"{len(secret)} octets instead of {SECRET_BYTES}")
        return secret
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        _set_aside(path, "secret_damaged", error)
    secret = secrets.token_bytes(SECRET_BYTES)
    try:
        _write_atomically(path, [secret.hex() + "\n"])
    except OSError as error:
        raise OurFault(f"cannot store the secret in {path}: {error.strerror}; check option 'state_dir'") from error
    return secret


@dataclass(frozen=True, slots=True)
class Left:
    """What an earlier process left, oldest first; ``update_id`` is its last SystemUpdateID, if it is known."""

    mappings: tuple[Mapping, ...] = ()
    pinholes: tuple[Pinhole, ...] = ()
    update_id: int | None = None


class Journal:
    """Remembers mappings and pinholes across restarts.

    ``clock`` is the loop's, whose times they carry; ``update_id`` reads the SystemUpdateID. ``persists`` False: what
    was remembered before is read once more, and nothing is from then on.
    """

    def __init__(
        self,
        run_dir: Path,
        state_dir: Path,
        clock: Clock,
        update_id: Callable[[], int] = lambda: 0,
        *,
        persists: bool = True,
    ) -> None:
        self._run = run_dir / "journal"
        self._flash = state_dir / "mappings"
        self._clock = clock
        self._update_id = update_id
        self._persists = persists
        self._live: dict[str, Record] = {}
        self._compact = self._appended = 0  # characters of the run-time file: as last rewritten, and since
        self._file: TextIOWrapper | None = None
        self._ahead = 0  # sum of all that is worth a flash write, less that of the flash copy: 0 when they are the same
        self._unwritten = False  # the flash copy is not what was to be written last

    @property
    def dirty(self) -> bool:
        """Whether the flash copy lacks something that lasts, or holds what is gone."""
        return self._unwritten or self._ahead != 0

    def load(self) -> Left:
        """What an earlier process left; a damaged file is set aside and reported."""
        left = self._load()
        if not self._persists:
            self._live = {}
            self._unwritten = False
            for path in (self._run, self._flash):
                with contextlib.suppress(OSError):
                    path.unlink()
        return left

    def _load(self) -> Left:
        for path in (self._run, self._flash):
            try:
                entries, update_id = self._read(path)
            except FileNotFoundError:
                continue
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                _set_aside(path, "journal_damaged", error)
                continue
            self._live = entries  # until each is recorded anew or gone, a rewrite must not lose it
            self._unwritten = path == self._run
            return Left(
                tuple(sorted(self._mappings(), key=lambda mapping: mapping.serial)),
                tuple(entry for entry in entries.values() if isinstance(entry, Pinhole)),
                update_id,
            )
        return Left()

    def record(self, entry: Record) -> None:
        """Store this version of an entry before what it says is acted upon; raises OurFault when that fails."""
        if not self._persists:
            return
        key = journal_entries.key(entry)
        before = self._live.get(key)
        try:
            text = _line(self._encode(entry) | {"update_id": self._update_id()})
            self._know(key, entry)
            self._append(text)
        except (OSError, ValueError) as error:
            if before is None:
                self._know(key, None)
            raise OurFault(f"cannot write {self._run}: {error}") from error

    def note(self, entry: Record) -> None:
        """Store this version of an entry that is true already; a failure is logged."""
        try:
            self.record(entry)
        except OurFault as fault:
            LOG.error(line("journal_failed", error=fault))

    def renewed(self, mapping: Mapping) -> None:
        """Store the new times of a mapping that is as it was otherwise; a failure is logged."""
        if not self._persists:
            return
        self._live[mapping.id] = mapping
        try:
            self._append(_line(journal_entries.encode_renewal(mapping, boottime() - self._clock())))
        except OSError as error:
            LOG.error(line("journal_failed", error=error))

    def gone(self, key: str) -> None:
        """Nothing of this entry is left anywhere; a failure is logged."""
        if key not in self._live:
            return
        self._know(key, None)
        try:
            self._append(_line({"gone": key, "update_id": self._update_id()}))
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
        self._unwritten = False
        self._ahead = 0
        live = [mapping for mapping in self._mappings() if not mapping.is_shadow]  # these end within minutes
        update_id = self._update_id()

        def write() -> None:
            try:
                _write_atomically(self._flash, _with_digest(self._snapshot(live, update_id)))
            except OSError:
                self._unwritten = True
                raise

        return write

    def close(self) -> None:
        if file := self._file:
            self._file = None
            with contextlib.suppress(OSError):  # what could not be flushed is in the next snapshot
                file.close()

    def _know(self, key: str, entry: Record | None) -> None:
        """This is what lives by that key now, None: nothing."""
        for version, sign in ((self._live.get(key), -1), (entry, 1)):
            if isinstance(version, Mapping) and not version.is_shadow:
                self._ahead += sign * journal_entries.lasting(version)
        if entry is None:
            self._live.pop(key, None)
        else:
            self._live[key] = entry

    def _append(self, text: str) -> None:
        if self._file is None or self._appended > 2 * self._compact + SLACK:
            self._rewrite()
            return
        try:
            self._file.write(text)
            self._file.flush()
        except OSError:
            self.close()  # half a line may stand there now: the next change writes the file anew
            raise
        self._appended += len(text)

    def _rewrite(self) -> None:
        self.close()
        self._run.parent.mkdir(parents=True, exist_ok=True)
        self._compact = _write_atomically(self._run, self._snapshot(self._live.values(), self._update_id()), sync=False)
        self._file = self._run.open("a", encoding="utf-8")
        self._appended = 0

    def _mappings(self) -> list[Mapping]:
        return [entry for entry in self._live.values() if isinstance(entry, Mapping)]

    def _snapshot(self, entries: Iterable[Record], update_id: int) -> Iterator[str]:
        """The lines of a whole file, made one by one: of many mappings they are as large as all else that is held."""
        yield _line({"igdpcp": FORMAT, "boot": boot_id(), "at": boottime(), "update_id": update_id})
        for entry in entries:
            yield _line(self._encode(entry))

    def _encode(self, entry: Record) -> journal_entries.Line:
        return journal_entries.encode(entry, boottime() - self._clock())

    def _read(self, path: Path) -> tuple[dict[str, Record], int]:
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
        entries: dict[str, Record] = {}
        update_id = int(header.get("update_id", 0))
        for text in rest:
            try:
                fields = jsonio.loads(text)
                if "gone" in fields:
                    entries.pop(fields["gone"], None)
                elif id := fields.get("renewed"):
                    entries[id] = journal_entries.renewed(entries[id], fields, self._clock() - ahead)
                else:
                    entry = journal_entries.decode(fields, self._clock() - ahead)
                    entries[journal_entries.key(entry)] = entry
                update_id = int(fields.get("update_id", update_id))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                LOG.error(line("journal_entry_skipped", file=path, entry=text, error=error))
        return entries, update_id


def _line(entry: dict[str, Any]) -> str:
    """One line; raises ValueError for text that has no encoding."""
    text = jsonio.dumps(entry) + "\n"
    text.encode()
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _with_digest(lines: Iterable[str]) -> Iterator[str]:
    """The lines, and behind them one with their checksum."""
    digest = hashlib.sha256()
    for text in lines:
        digest.update(text.encode())
        yield text
    yield _line({"sha256": digest.hexdigest()})


def _set_aside(path: Path, event: str, error: Exception) -> None:
    aside = path.with_suffix(".damaged")
    with contextlib.suppress(OSError):
        path.replace(aside)
    LOG.error(line(event, file=path, kept_as=aside, error=error))


def _write_atomically(path: Path, lines: Iterable[str], sync: bool = True) -> int:
    """Replace the file so that a power cut leaves the old or the new one, never half of it; its characters."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    written = 0
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        for text in lines:
            written += file.write(text)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    temporary.replace(path)
    if sync:
        _sync_directory(path.parent)
    return written


def _sync_directory(path: Path) -> None:
    """Make a rename in it last: until then a power cut may leave the old file, or none at all."""
    with contextlib.suppress(OSError):  # not every file system can, and the file is there
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
