# SPDX-License-Identifier: Apache-2.0
"""One heap for all threads.

glibc gives each thread one of its own, which grows by what the thread needs at its peak and never gives that back: 5 MB
for the few threads here, that hardly ever want memory at the same time. Other C libraries have one heap anyway.
"""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8  # malloc.h


def share() -> None:
    """Let the threads that start from now on use the heap that is there."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
