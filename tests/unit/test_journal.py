# SPDX-License-Identifier: Apache-2.0
"""The journal by itself: what is written where, when it is rewritten, and what a full disk does to it."""

from __future__ import annotations

import os
import resource
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from igdpcp.errors import OurFault
from igdpcp.iwf import journal
from igdpcp.iwf.journal import Journal, load_secret
from igdpcp.model import (
    Endpoint,
    Entry,
    Grant,
    Mapping,
    MappingRequest,
    MappingState,
    Mode,
    Owner,
    Pinhole,
    PinholeRequest,
    Protocol,
    Requester,
)

REQUEST = MappingRequest(
    requester=Requester(IPv4Address("192.168.1.50"), Owner.UPNP2, "Größe/1"),
    protocol=Protocol.UDP,
    external_port=8080,
    client=Endpoint(IPv4Address("192.168.1.50"), 80),
    remote_host=IPv4Address("198.51.100.9"),
    lease=3600,
    description='a "b"\nc',
    any_port=True,
)
GRANT = Grant("pcp", IPv4Address("100.64.12.34"), Endpoint(IPv4Address("62.0.0.1"), 8080), 600, 1600.0, b"\0" * 12)
OPEN = Mapping("00000001", 1, REQUEST, Mode.CASCADED, 8080, 8080, MappingState.ACTIVE, 4600.0, GRANT)


_WISH = PinholeRequest(
    REQUEST.requester, Protocol.UDP, IPv6Address("2600:1::5"), 4000, IPv6Address("2600:9::1"), 5000, 600
)
PINHOLES = (
    Pinhole(9, _WISH, 1600.0),
    Pinhole(3, replace(_WISH, requester=Requester(_WISH.client, Owner.UPNP1), remote_host=None, remote_port=0), 1500.0),
)


@pytest.fixture(autouse=True)
def _still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "boottime", lambda: 1000.0)


def _journal(directory: Path) -> Journal:
    return Journal(directory / "run", directory / "state", lambda: 1000.0)


@contextmanager
def _full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond ``size``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_every_field_survives_a_kill_and_a_power_cut(tmp_path: Path) -> None:
    written = _journal(tmp_path)
    written.record(OPEN)
    written.save()
    assert _journal(tmp_path).load().mappings == (OPEN,)
    (tmp_path / "run" / "journal").unlink()
    assert _journal(tmp_path).load().mappings == (OPEN,)


def test_iwf_097_each_remote_host_of_a_mapping_survives_with_its_own_lease_and_words(tmp_path: Path) -> None:
    one = replace(REQUEST, remote_host=IPv4Address("198.51.100.10"), description="two", lease=60)
    many = replace(OPEN, others=(Entry(one, 1060.0), Entry(replace(one, remote_host=None, lease=0), None)))
    written = _journal(tmp_path)
    written.record(OPEN)
    written.save()
    written.record(many)
    assert written.dirty
    written.renewed(many)
    assert _journal(tmp_path).load().mappings == (many,)


def test_an_operators_infinite_mapping_without_a_grant_survives_too(tmp_path: Path) -> None:
    bare = replace(
        OPEN,
        request=replace(REQUEST, requester=Requester(None, Owner.OPERATOR), remote_host=None),
        grant=None,
        lease_ends=None,
    )
    _journal(tmp_path).record(bare)
    assert _journal(tmp_path).load().mappings == (bare,)


def test_times_are_counted_from_the_reboot_when_there_was_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _journal(tmp_path).record(OPEN)
    monkeypatch.setattr(journal, "boot_id", lambda: "another")
    monkeypatch.setattr(journal, "boottime", lambda: 5.0)
    (left,) = Journal(tmp_path / "run", tmp_path / "state", lambda: 50.0).load().mappings
    assert left.lease_ends == 50.0 + 3600


def test_a_pinhole_survives_a_kill_but_is_never_written_to_flash(tmp_path: Path) -> None:
    written = _journal(tmp_path)
    written.record(OPEN)
    written.save()
    for pinhole in PINHOLES:
        written.record(pinhole)
    assert not written.dirty
    assert _journal(tmp_path).load().pinholes == PINHOLES
    written.gone(PINHOLES[1].name)
    assert not written.dirty
    left = _journal(tmp_path).load()
    assert (left.mappings, left.pinholes) == ((OPEN,), PINHOLES[:1])
    written.gone(OPEN.id)
    written.save()
    (tmp_path / "run" / "journal").unlink()
    assert _journal(tmp_path).load().pinholes == ()


def test_the_last_update_id_is_found_after_a_kill_and_after_a_power_cut(tmp_path: Path) -> None:
    count = iter(range(7, 100))
    written = Journal(tmp_path / "run", tmp_path / "state", lambda: 1000.0, lambda: next(count))
    written.record(OPEN)
    before = next(count)
    written.gone(OPEN.id)
    update_id = _journal(tmp_path).load().update_id
    assert update_id == next(count) - 1 > before
    written.record(OPEN)
    written.save()
    (tmp_path / "run" / "journal").unlink()
    assert _journal(tmp_path).load().update_id == next(count) - 1


def test_without_any_file_nothing_is_known(tmp_path: Path) -> None:
    assert _journal(tmp_path).load() == journal.Left((), (), None)


def test_what_is_gone_is_not_found(tmp_path: Path) -> None:
    written = _journal(tmp_path)
    written.record(OPEN)
    written.gone(OPEN.id)
    assert _journal(tmp_path).load().mappings == ()


def test_flash_is_written_only_for_what_lasts(tmp_path: Path) -> None:
    written = _journal(tmp_path)
    written.record(OPEN)
    assert written.dirty
    written.save()
    before = (tmp_path / "state" / "mappings").stat().st_ino
    written.record(replace(OPEN, grant=replace(GRANT, ends=9999.0), lease_ends=9999.0))
    written.save()
    assert (tmp_path / "state" / "mappings").stat().st_ino == before
    written.gone(OPEN.id)
    written.save()
    assert (tmp_path / "state" / "mappings").stat().st_ino != before


@pytest.mark.parametrize(
    "changed",
    [
        replace(OPEN, state=MappingState.ENDING),
        replace(OPEN, mode=Mode.ROUTED),
        replace(OPEN, external_port=9000),
        replace(OPEN, wan_port=9000),
        *(
            replace(OPEN, request=replace(REQUEST, **change))
            for change in (
                {"protocol": Protocol.TCP},
                {"external_port": 9000},
                {"client": Endpoint(REQUEST.client.address, 81)},
                {"remote_host": None},
                {"any_port": False},
            )
        ),
    ],
)
def test_what_is_needed_to_adopt_or_give_back_an_entry_is_worth_a_flash_write(tmp_path: Path, changed: Mapping) -> None:
    written = _journal(tmp_path)
    written.record(OPEN)
    written.save()
    written.gone(OPEN.id)
    written.record(replace(changed, id="00000002", serial=2))
    assert written.dirty


def test_words_and_leases_that_lan_hosts_change_are_not_worth_a_flash_write(tmp_path: Path) -> None:
    written = _journal(tmp_path)
    written.record(OPEN)
    written.save()
    other = Requester(IPv4Address("192.168.1.51"), Owner.UPNP1, "another agent")
    written.record(replace(OPEN, request=replace(REQUEST, requester=other, description="other", lease=7)))
    assert not written.dirty
    written.record(replace(OPEN, request=replace(REQUEST, requester=Requester(None, Owner.OPERATOR))))
    assert written.dirty


def test_what_is_made_and_deleted_again_between_two_flash_writes_costs_none(tmp_path: Path) -> None:
    written = _journal(tmp_path)
    written.record(OPEN)
    written.save()
    written.record(replace(OPEN, id="00000002", serial=2, external_port=9000))
    assert written.dirty
    written.gone("00000002")
    assert not written.dirty
    written.gone(OPEN.id)
    assert written.dirty
    written.record(replace(OPEN, id="00000003", serial=3))
    assert not written.dirty


def test_a_flash_copy_that_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    written = _journal(tmp_path)
    (tmp_path / "state").write_text("in the way")
    written.record(OPEN)
    with pytest.raises(FileExistsError):
        written.save()
    assert written.dirty
    (tmp_path / "state").unlink()
    written.save()
    (tmp_path / "run" / "journal").unlink()
    assert _journal(tmp_path).load().mappings == (OPEN,)


def test_what_could_not_be_stored_at_all_is_not_written_to_flash(tmp_path: Path) -> None:
    written = _journal(tmp_path)
    written.record(OPEN)
    written.save()
    with _full_disk((tmp_path / "run" / "journal").stat().st_size), pytest.raises(OurFault):
        written.record(replace(OPEN, id="00000002", serial=2, external_port=9000))
    assert not written.dirty


def test_the_run_time_journal_does_not_grow_for_ever(tmp_path: Path) -> None:
    written = _journal(tmp_path)
    for n in range(journal.SLACK // 100):
        written.record(replace(OPEN, grant=replace(GRANT, ends=2000.0 + n)))
    assert (tmp_path / "run" / "journal").stat().st_size <= journal.SLACK + 4000
    assert _journal(tmp_path).load().mappings == (replace(OPEN, grant=replace(GRANT, ends=2000.0 + n)),)


def test_a_renewal_is_a_short_line_and_is_read_as_the_mapping_with_other_times(tmp_path: Path) -> None:
    written = _journal(tmp_path)
    written.record(OPEN)
    written.save()
    before = (tmp_path / "run" / "journal").stat().st_size
    renewed = replace(OPEN, grant=replace(GRANT, lifetime=700, ends=2700.0))
    written.renewed(renewed)
    assert (tmp_path / "run" / "journal").stat().st_size - before < 100
    assert not written.dirty
    assert _journal(tmp_path).load().mappings == (renewed,)


def test_a_process_that_counts_time_from_another_start_finds_the_same_ends(tmp_path: Path) -> None:
    assert OPEN.lease_ends is not None
    written = Journal(tmp_path / "run", tmp_path / "state", lambda: 300.0)
    written.record(OPEN)
    written.renewed(replace(OPEN, grant=replace(GRANT, lifetime=700, ends=2700.0)))
    written.record(PINHOLES[0])
    found = Journal(tmp_path / "run", tmp_path / "state", lambda: 20.0).load()
    assert [pinhole.lease_ends for pinhole in found.pinholes] == [PINHOLES[0].lease_ends - 280]
    (left,) = found.mappings
    assert left.grant
    assert (left.lease_ends, left.grant.ends) == (OPEN.lease_ends - 280, 2700.0 - 280)


@pytest.mark.parametrize("text", ['{"renewed": "nobody", "lifetime": 1, "ends": 1}', '{"renewed": "00000001"}'])
def test_a_renewal_of_nothing_is_skipped(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    _journal(tmp_path).record(OPEN)
    with (tmp_path / "run" / "journal").open("a") as file:
        file.write(text + "\n")
    assert _journal(tmp_path).load().mappings == (OPEN,)
    assert "event=journal_entry_skipped" in caplog.text


@pytest.mark.parametrize(
    "damaged",
    [
        *(replace(PINHOLES[0], id=id) for id in (0, 65536, True)),
        *(replace(OPEN, wan_port=port) for port in (-1, 65536)),
    ],
)
def test_an_entry_with_a_number_that_there_is_not_is_skipped(
    tmp_path: Path, damaged: Mapping | Pinhole, caplog: pytest.LogCaptureFixture
) -> None:
    largest = replace(OPEN, id="00000002", serial=2, wan_port=65535), replace(PINHOLES[1], id=65535)
    written = _journal(tmp_path)
    for entry in (damaged, *largest):
        written.record(entry)
    left = _journal(tmp_path).load()
    assert (*left.mappings, *left.pinholes) == largest
    assert "event=journal_entry_skipped" in caplog.text


def test_a_rewrite_keeps_what_was_loaded(tmp_path: Path) -> None:
    written = _journal(tmp_path)
    written.record(OPEN)
    written.record(replace(OPEN, id="00000002", serial=2))
    again = _journal(tmp_path)
    again.load()
    again.record(OPEN)
    assert [mapping.id for mapping in _journal(tmp_path).load().mappings] == ["00000001", "00000002"]


def test_a_flash_copy_that_was_changed_is_not_believed(tmp_path: Path) -> None:
    written = _journal(tmp_path)
    written.record(OPEN)
    written.save()
    (tmp_path / "run" / "journal").unlink()
    flash = tmp_path / "state" / "mappings"
    flash.write_text(flash.read_text().replace("8080", "8081"))
    assert _journal(tmp_path).load().mappings == ()
    assert (tmp_path / "state" / "mappings.damaged").exists()


def test_a_full_disk_is_our_fault_and_the_journal_is_whole_when_there_is_room_again(tmp_path: Path) -> None:
    written = _journal(tmp_path)
    written.record(OPEN)
    run = tmp_path / "run" / "journal"
    with _full_disk(run.stat().st_size + 10):
        with pytest.raises(OurFault, match="cannot write"):
            written.record(replace(OPEN, id="00000002", serial=2))
        written.note(replace(OPEN, external_port=9000))
        written.gone("00000001")
    written.record(replace(OPEN, id="00000003", serial=3))
    assert [mapping.id for mapping in _journal(tmp_path).load().mappings] == ["00000003"]


def test_text_that_has_no_encoding_is_our_fault_and_is_not_kept(tmp_path: Path) -> None:
    written = _journal(tmp_path)
    written.record(OPEN)
    with pytest.raises(OurFault, match="cannot write"):
        written.record(replace(OPEN, id="00000002", serial=2, request=replace(REQUEST, description="x\udcff")))
    written.save()
    written.close()
    written.record(replace(OPEN, id="00000003", serial=3))
    assert [mapping.id for mapping in _journal(tmp_path).load().mappings] == ["00000001", "00000003"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x1c", "\n"])
def test_a_line_separator_in_a_string_separates_no_lines(tmp_path: Path, separator: str) -> None:
    written = _journal(tmp_path)
    entries = [replace(OPEN, request=replace(REQUEST, description=f"a{separator}b")), replace(OPEN, id="2", serial=2)]
    for entry in entries:
        written.record(entry)
    written.save()
    assert list(_journal(tmp_path).load().mappings) == entries
    (tmp_path / "run" / "journal").unlink()
    assert list(_journal(tmp_path).load().mappings) == entries


def test_closing_on_a_full_disk_is_quiet(tmp_path: Path) -> None:
    written = _journal(tmp_path)
    written.record(OPEN)
    with _full_disk((tmp_path / "run" / "journal").stat().st_size):
        written.note(replace(OPEN, external_port=9000))
        written.close()
    written.close()


def test_the_secret_is_made_once_and_only_ours_to_read(tmp_path: Path) -> None:
    secret = load_secret(tmp_path / "state")
    assert len(secret) == journal.SECRET_BYTES
    assert load_secret(tmp_path / "state") == secret
    assert stat.S_IMODE((tmp_path / "state" / "secret").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"no hex", b"\xff\xfe", b"", b"00" * 31, b"00" * 33])
def test_a_damaged_secret_is_set_aside_and_reported_and_another_is_made_once(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "secret").write_bytes(content)
    secret = load_secret(tmp_path)
    assert len(secret) == journal.SECRET_BYTES
    assert load_secret(tmp_path) == secret
    assert (tmp_path / "secret.damaged").read_bytes() == content
    assert caplog.text.count("event=secret_damaged") == 1


def test_a_secret_that_cannot_even_be_set_aside_is_our_fault(tmp_path: Path) -> None:
    for name in ("secret", "secret.damaged"):
        (tmp_path / name / "in the way").mkdir(parents=True)
    with pytest.raises(OurFault, match="check option 'state_dir'"):
        load_secret(tmp_path)


def test_what_is_on_flash_is_synced_as_content_and_as_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not may be lost in a power cut: with the secret, that would lock us out."""
    synced: list[tuple[str, bool]] = []
    really = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, (tmp_path / "state" / "secret").exists()))
        really(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    load_secret(tmp_path / "state")
    assert synced == [("secret.new", False), ("state", True)]


def test_iwf_044_a_newer_format_is_set_aside_whole_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = _journal(tmp_path)
    written.record(OPEN)
    written.save()
    for name, left in (("run/journal", (OPEN,)), ("state/mappings", ())):
        path = tmp_path / name
        newer = path.read_text().replace('"igdpcp":1', '"igdpcp":2', 1)
        path.write_text(newer)
        assert _journal(tmp_path).load().mappings == left
        assert path.with_suffix(".damaged").read_text() == newer
    assert caplog.text.count("format 2 is not known") == 2


@pytest.mark.parametrize("wall_clock", [0.0, 946684800.0, 4102444800.0])
def test_iwf_042_a_wall_clock_that_jumps_changes_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wall_clock: float
) -> None:
    written = _journal(tmp_path)
    written.record(OPEN)
    written.save()
    monkeypatch.setattr(time, "time", lambda: wall_clock)
    assert _journal(tmp_path).load().mappings == (OPEN,)
    (tmp_path / "run" / "journal").unlink()
    assert _journal(tmp_path).load().mappings == (OPEN,)
    monkeypatch.setattr(journal, "boot_id", lambda: "another")
    assert _journal(tmp_path).load().mappings == (OPEN,)


def test_a_secret_that_cannot_be_stored_is_our_fault(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(OurFault, match="secret"):
        load_secret(tmp_path / "state")
