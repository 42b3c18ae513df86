# SPDX-License-Identifier: Apache-2.0
"""Memory that threads have used once is there for the others."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import asyncio, ctypes
from igdpcp.daemon import app

async def work():
    await asyncio.to_thread(bytearray, 100_000)
    ctypes.CDLL(None).malloc_stats()
    return 0

app._run(work())
"""


def test_the_daemons_threads_have_no_heaps_of_their_own() -> None:
    told = subprocess.run([sys.executable, "-c", PROGRAM], stderr=subprocess.PIPE, text=True, check=True).stderr
    assert [line for line in told.splitlines() if line.startswith("Arena ")] == ["Arena 0:"]
