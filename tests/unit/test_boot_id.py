# SPDX-License-Identifier: Apache-2.0
"""The boot number grows whatever happens to the clock and to the flash."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from igdpcp.daemon.boot_id import BOOT_ID_LIMIT, RESERVED, SANE_TIME, BootId

NOW = SANE_TIME + 5_000_000


def started(state_dir: Path, now: float = 0.0) -> BootId:
    return BootId(state_dir, lambda: now)


def test_the_first_start_takes_the_time(tmp_path: Path) -> None:
    assert started(tmp_path, NOW).value == NOW


def test_without_a_clock_it_counts(tmp_path: Path) -> None:
    values = [started(tmp_path).value for _ in range(3)]
    assert values == sorted(set(values))
    assert values[0] == 1


def test_a_clock_that_was_set_back_does_not_set_it_back(tmp_path: Path) -> None:
    first = started(tmp_path, NOW).value
    assert started(tmp_path, NOW - 100_000).value > first
    assert started(tmp_path, 1000).value > first


@pytest.mark.parametrize("advances", [1, RESERVED, RESERVED + 1, 3 * RESERVED])
def test_it_is_larger_than_all_that_the_process_before_used(tmp_path: Path, advances: int) -> None:
    boot_id = started(tmp_path, NOW)
    for _ in range(advances):
        following = boot_id.following
        boot_id.advance()
        assert boot_id.value == following
    assert boot_id.value == NOW + advances
    assert started(tmp_path, NOW).value > boot_id.value


def test_it_is_written_once_for_many_changes(tmp_path: Path) -> None:
    assert RESERVED > 30  # a LAN whose IPv6 prefix changes every day: a write a month
    boot_id = started(tmp_path)
    written = (tmp_path / "boot_id").stat().st_ino
    for _ in range(RESERVED):
        boot_id.advance()
    assert (tmp_path / "boot_id").stat().st_ino == written
    boot_id.advance()
    assert (tmp_path / "boot_id").stat().st_ino != written


def test_it_stays_within_31_bits(tmp_path: Path) -> None:
    (tmp_path / "boot_id").write_text(f"{BOOT_ID_LIMIT - 1}\n")
    boot_id = started(tmp_path)
    assert boot_id.value == BOOT_ID_LIMIT
    boot_id.advance()
    assert boot_id.value == 1
    assert started(tmp_path).value == 1 + RESERVED + 1


@pytest.mark.parametrize("content", [b"", b"x\n", b"-5\n", b"99999999999\n", b"\xff\xfe"])
def test_a_damaged_file_is_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "boot_id").write_bytes(content)
    assert started(tmp_path, NOW).value == NOW


def test_what_cannot_be_stored_is_used_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="igdpcp.daemon")
    (tmp_path / "file").touch()
    assert started(tmp_path / "file", NOW).value == NOW
    assert "event=not_remembered" in caplog.text
