# SPDX-License-Identifier: Apache-2.0
"""One heap for all threads, which gives back what it does not need, but not in between two changes of a rush.

glibc gives each thread a heap of its own, which grows by what the thread needs at its peak and never gives that back:
5 MB for the few threads here, that hardly ever want memory at the same time. And once something large was freed, what
is as large comes from the heap, too, and stays there: an iptables table of a few MB, at each change. So that goes back
when it is freed; but while change follows change, getting it anew each time would take a sixth of the time. Other C
libraries have neither problem.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_LARGE = 64 * 1024  # octets
_KEPT = 16 * 1024 * 1024 if sys.maxsize > 1 << 32 else 512 * 1024  # octets; glibc refuses much more


def share() -> None:
    """Let the threads that start from now on use the heap that is there."""
    _set(_M_ARENA_MAX, 1)
    _give_back_from(_LARGE)


def keep() -> None:
    """Let what is freed be kept for what comes next, until ``rest``."""
    _give_back_from(_KEPT)


def rest() -> None:
    """Nothing comes next: let the system have what is free, and what is freed from now on."""
    _give_back_from(_LARGE)
    give_back()


def give_back() -> None:
    """Let the system have what is free in between."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _give_back_from(size: int) -> None:
    _set(_M_MMAP_THRESHOLD, size)
    _set(_M_TRIM_THRESHOLD, size)


def _set(option: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(option, value)
