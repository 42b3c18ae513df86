# SPDX-License-Identifier: Apache-2.0
"""Memory that was used once is there for others: other threads, other programs."""

from __future__ import annotations

import subprocess
import sys

THREADS = """
import asyncio, ctypes
from igdpcp.daemon import app

async def work():
    await asyncio.to_thread(bytearray, 100_000)
    ctypes.CDLL(None).malloc_stats()
    return 0

app._run(work())
"""
RESIDENT = """
import asyncio, re
from pathlib import Path
from igdpcp.daemon import app, heap

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

async def work():
"""
LARGE = f"""{RESIDENT}
    bytearray(4_000_000)  # makes the C library think that as much is wanted often
    before = resident()
    large, behind = bytearray(4_000_000), bytes(2000)
    del large
    print(resident() - before)
    return 0

app._run(work())
"""
IN_BETWEEN = f"""{RESIDENT}
    before, pieces = resident(), [bytes(2000) for _ in range(10_000)]
    del pieces[:-1]
    heap.give_back()
    print(resident() - before)
    return 0

app._run(work())
"""


KEPT = f"""{RESIDENT}
    heap.keep()
    before = resident()
    large, behind = bytearray(4_000_000), bytes(2000)
    del large
    kept = resident() - before
    heap.rest()
    print(kept, resident() - before)
    return 0

app._run(work())
"""


def told(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)


def test_the_daemons_threads_have_no_heaps_of_their_own() -> None:
    assert [line for line in told(THREADS).stderr.splitlines() if line.startswith("Arena ")] == ["Arena 0:"]


def test_what_is_large_is_given_back_as_soon_as_it_is_free() -> None:
    assert int(told(LARGE).stdout) < 1000


def test_what_is_free_between_others_can_be_given_back() -> None:
    assert int(told(IN_BETWEEN).stdout) < 5000


def test_what_is_free_is_kept_until_rest() -> None:
    kept, left = map(int, told(KEPT).stdout.split())
    assert kept > 3000
    assert left < 1000
