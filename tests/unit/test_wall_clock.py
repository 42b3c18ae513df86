# SPDX-License-Identifier: Apache-2.0
"""The date that control points are told."""

from __future__ import annotations

import pytest

from igdpcp.daemon.wall_clock import http_date


@pytest.mark.parametrize(
    ("unix_time", "date"),
    [
        (1704067200, "Mon, 01 Jan 2024 00:00:00 GMT"),
        (1709210096.9, "Thu, 29 Feb 2024 12:34:56 GMT"),
        (4102444799, "Thu, 31 Dec 2099 23:59:59 GMT"),
    ],
)
def test_the_date_is_written_as_http_wants_it(unix_time, date):
    assert http_date(unix_time) == date


def test_a_clock_that_was_never_set_tells_no_date():
    assert http_date(1704067199) == http_date(0) == ""
