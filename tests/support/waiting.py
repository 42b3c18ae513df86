# SPDX-License-Identifier: Apache-2.0
"""Waiting on the event loop for what is seen from outside only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Return when the condition holds; TimeoutError after that time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nothing tells when it does
            await asyncio.sleep(0.005)
