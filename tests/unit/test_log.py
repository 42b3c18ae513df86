# SPDX-License-Identifier: Apache-2.0
"""Log lines: one per decision, whatever a LAN host puts into them."""

from __future__ import annotations

import json
import logging

import pytest

from igdpcp import log


def test_fields_follow_the_event_and_absent_ones_are_left_out() -> None:
    assert (
        log.line("refused", code=718, client="192.168.1.5", agent=None) == "event=refused code=718 client=192.168.1.5"
    )


@pytest.mark.parametrize(
    "value", ["", "two words", 'a"b', "a=b", "back\\slash", "line\nbreak", "\x1b[31m", "é", "\x7f"]
)
def test_what_could_be_mistaken_for_something_else_is_quoted_in_printable_ascii(value: str) -> None:
    text = log.line("x", v=value).partition("v=")[2]
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text) == value


def test_a_long_value_is_cut() -> None:
    assert len(log.line("x", v="a" * 10_000)) < log.VALUE_LIMIT + 20


def test_the_last_warnings_are_kept_for_the_status_and_nothing_less() -> None:
    recent = log.setup("debug")
    logger = logging.getLogger("igdpcp.test")
    try:
        logger.info("event=fine")
        for n in range(log.REMEMBERED_LINES + 5):
            logger.warning("event=trouble n=%d", n)
        texts = [text for _, text in recent.lines]
        assert texts == [f"event=trouble n={n}" for n in range(5, log.REMEMBERED_LINES + 5)]
    finally:
        root = logging.getLogger("igdpcp")
        root.handlers.clear()
        root.propagate = True
        root.setLevel(logging.NOTSET)


def test_the_level_is_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        log.setup("error")
        logging.getLogger("igdpcp.test").warning("event=hidden")
        logging.getLogger("igdpcp.test").error("event=shown")
        assert capsys.readouterr().err == "level=ERROR event=shown\n"
    finally:
        root = logging.getLogger("igdpcp")
        root.handlers.clear()
        root.propagate = True
        root.setLevel(logging.NOTSET)
