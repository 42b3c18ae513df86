# SPDX-License-Identifier: Apache-2.0
"""The machine's clock is the loop's, so that a restart finds as much time gone by as the test let pass."""

from __future__ import annotations

import asyncio

import pytest

from igdpcp.iwf import journal


@pytest.fixture(autouse=True)
def _one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "boottime", lambda: asyncio.get_running_loop().time())
