# SPDX-License-Identifier: Apache-2.0
"""Keeps the processors from going to sleep between two requests.

A virtual processor that sleeps gives its place and its caches to the host's other guests; the next request then times
how long it takes to get them back. What runs here is in the class that gives way to everybody at once.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from tests.lab.carrier import ROOT

_TURNS = 1_000_000  # between two looks whether anybody still needs it, some hundredths of a second


@contextlib.contextmanager
def processors() -> Iterator[None]:
    """Keep all that we may use awake until the context ends, or the process does."""
    command = [sys.executable, "-S", "-m", "benchmarks.awake", str(os.getpid())]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for processor in os.sched_getaffinity(0):
            started.append(subprocess.Popen([*command, str(processor)], cwd=ROOT))
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def _keep_awake(parent: int, processor: int) -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.sched_setaffinity(0, {processor})
    while os.getppid() == parent:
        for _ in range(_TURNS):
            pass


if __name__ == "__main__":
    _keep_awake(*map(int, sys.argv[1:]))
