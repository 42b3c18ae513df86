# SPDX-License-Identifier: Apache-2.0
"""One heap for all threads, which gives back what it does not need.

glibc gives each thread a heap of its own, which grows by what the thread needs at its peak and never gives that back:
5 MB for the few threads here, that hardly ever want memory at the same time. And once something large was freed, what
is as large comes from the heap, too, and stays there: an iptables table of a few MB, at each change. Other C libraries
do neither.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_LARGE = 64 * 1024  # octets


def share() -> None:
    """Let the threads that start from now on use the heap that is there."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _LARGE)


def give_back() -> None:
    """Let the system have what is free in between."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
