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
    "value", ["", "two words", 'a"b', "it's", "a=b", "back\\slash", "line\nbreak", "\x1b[31m", "é", "\x7f"]
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


class Clock:
    """Monotonic time that the test sets."""

    now = 1000.1

    def __call__(self) -> float:
        return self.now


def test_a_key_may_do_a_burst_and_then_so_many_a_second() -> None:
    clock = Clock()
    limit = log.RateLimit(burst=3, per_second=2, clock=clock)
    assert [limit.take("a") for _ in range(5)] == [0, 0, 0, None, None]
    assert limit.take("b") == 0
    clock.now += 0.5
    assert [limit.take("a") for _ in range(2)] == [2, None]
    clock.now += 60
    assert [limit.take("a") for _ in range(4)] == [1, 0, 0, None]


def test_keys_beyond_the_limit_share_a_budget_until_others_are_idle() -> None:
    clock = Clock()
    limit = log.RateLimit(burst=1, per_second=1, clock=clock)
    assert [limit.take(n) for n in range(log.KEYS_LIMIT)] == [0] * log.KEYS_LIMIT
    assert [limit.take(f"new {n}") for n in range(3)] == [0, None, None]
    clock.now += 2
    assert [limit.take(f"new {n}") for n in range(3)] == [0, 0, 0]


def test_a_host_that_causes_many_lines_writes_few_and_the_next_tells_how_many_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    sparing = log.SparingLog(logging.getLogger("igdpcp.test"), clock)
    with caplog.at_level(logging.INFO, logger="igdpcp.test"):
        for _ in range(log.LINES_BURST + 7):
            sparing.write(logging.DEBUG, "refused", "192.168.1.4")
            sparing.write(logging.INFO, "refused", "192.168.1.5", code=718)
        sparing.write(logging.INFO, "refused", "192.168.1.6", code=718)
        sparing.write(logging.INFO, "deleted", "192.168.1.5")
        clock.now += 1
        sparing.write(logging.INFO, "refused", "192.168.1.5", code=714)
    assert caplog.messages == [
        *["event=refused client=192.168.1.5 code=718"] * log.LINES_BURST,
        "event=refused client=192.168.1.6 code=718",
        "event=deleted client=192.168.1.5",
        "event=refused client=192.168.1.5 code=714 suppressed=7",
    ]
