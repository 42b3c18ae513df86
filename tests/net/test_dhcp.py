# SPDX-License-Identifier: Apache-2.0
"""What the DHCP hooks leave: hostile or half written, it is digits or nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from igdpcp.net.dhcp import DIGITS_LIMIT, FILES_LIMIT, DhcpAnswer, DhcpAnswers


def test_each_file_is_the_answer_on_its_device(tmp_path: Path) -> None:
    (tmp_path / "dhcp4.wan").write_text("04c0000201\n")
    (tmp_path / "dhcp6.eth1.2").write_text("0056\n")
    for other in ("journal", "dhcp4.wan.new", "dhcp6-device.wan6"):
        (tmp_path / other).write_text("04c0000201\n")
    assert DhcpAnswers(tmp_path).read() == (
        DhcpAnswer(4, "wan", bytes.fromhex("04c0000201")),
        DhcpAnswer(6, "eth1.2", b"\0\x56"),
    )


@pytest.mark.parametrize("text", ["", "\n", "0", "04C0000201", "04 c0", "zz", "$(reboot)", "0" * (DIGITS_LIMIT + 2)])
def test_what_is_no_short_row_of_digits_is_reported_and_left_out(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dhcp4.wan").write_text(text)
    assert DhcpAnswers(tmp_path).read() == ()
    assert "event=dhcp_unreadable" in caplog.text


def test_a_file_that_comes_changes_or_goes_is_noticed(tmp_path: Path) -> None:
    answers = DhcpAnswers(tmp_path)
    assert answers.read() == ()
    for moment, text in enumerate(("01", "02"), start=1):
        _replace(tmp_path / "dhcp4.wan", text, moment)
        assert [answer.octets.hex() for answer in answers.read()] == [text]
    (tmp_path / "dhcp4.wan").unlink()
    os.utime(tmp_path, ns=(3, 3))
    assert answers.read() == ()


def test_there_may_be_no_directory_yet(tmp_path: Path) -> None:
    assert DhcpAnswers(tmp_path / "run").read() == ()


@pytest.mark.parametrize("failing", ["stat", "iterdir", "open"])
def test_what_cannot_be_read_for_a_moment_is_read_later_and_known_meanwhile(
    tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = DhcpAnswers(tmp_path)
    _replace(tmp_path / "dhcp4.wan", "01", 1)
    assert [answer.octets for answer in answers.read()] == [b"\1"]
    _replace(tmp_path / "dhcp4.wan", "02", 2)

    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, failing, fail)
        assert [answer.octets for answer in answers.read()] == [b"\1"]
    assert [answer.octets for answer in answers.read()] == [b"\2"]


def test_a_file_that_cannot_be_opened_costs_no_other_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "dhcp4.eth0").mkdir()
    (tmp_path / "dhcp4.wan").write_text("01")
    answers = DhcpAnswers(tmp_path)
    for _ in range(2):
        assert [answer.device for answer in answers.read()] == ["wan"]
    assert caplog.text.count("event=dhcp_unreadable") == 1


def test_of_very_many_files_only_some_are_read(tmp_path: Path) -> None:
    for number in range(FILES_LIMIT + 5):
        (tmp_path / f"dhcp4.d{number}").write_text("00")
    assert len(DhcpAnswers(tmp_path).read()) == FILES_LIMIT


def _replace(path: Path, text: str, moment: int) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)
    os.utime(path.parent, ns=(moment, moment))
