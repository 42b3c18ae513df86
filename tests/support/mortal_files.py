# SPDX-License-Identifier: Apache-2.0
"""A process that is killed at a step of what it writes: behind each system call, within each write, and before the
first call for a file. Behind one call is before the next one, as long as the same file is being made.

``install`` is for the process that is to die; what it opens, writes, syncs and renames below ``directories`` counts.
"""

from __future__ import annotations

import io
import itertools
import os
import signal
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

NEVER = 0


class _Steps:
    def __init__(self, directories: Sequence[str], last: int, record: str) -> None:
        self._directories = tuple(directories)
        self._last = last
        self._number = itertools.count(1)
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def take(self, what: str, path: str) -> None:
        os.write(self._record, f"{what} {os.path.basename(path)}\n".encode())
        if next(self._number) == self._last:
            os.kill(os.getpid(), signal.SIGKILL)

    def path(self, file: object) -> str:
        """The path of what counts, empty for what does not."""
        if isinstance(file, int):
            file = os.readlink(f"/proc/self/fd/{file}")
        path = os.fspath(file)  # type: ignore[call-overload]
        return path if isinstance(path, str) and path.startswith(self._directories) else ""

    def around(self, call: Callable[..., Any], *, first: bool = False) -> Callable[..., Any]:
        """The system call with a step behind it, and one before it when it is the ``first`` for a file."""

        @wraps(call)
        def stepping(file: Any, *arguments: Any, **keywords: Any) -> Any:
            path = self.path(file)
            if path and first:
                self.take(f"before {call.__name__}", path)
            result = call(file, *arguments, **keywords)
            if path:
                self.take(f"after {call.__name__}", path)
            return result

        return stepping


def install(directories: Sequence[str], last: int, record: str) -> None:
    """Die at step ``last``, counted from 1, NEVER: not at all; ``record`` gets a line for each step."""
    steps = _Steps(directories, last, record)

    class MortalFile(io.FileIO):
        def write(self, octets: Any) -> int:
            view = memoryview(octets)
            path = steps.path(self.fileno())
            if not path.endswith(".new"):
                steps.take("before write", path)
            written = super().write(view[: len(view) // 2])
            steps.take("within write", path)
            written += super().write(view[len(view) // 2 :])
            steps.take("after write", path)
            return written

    plain_open = io.open

    def mortal_open(file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None, *rest: Any) -> Any:
        if mode not in ("w", "a") or not (path := steps.path(file)):
            return plain_open(file, mode, buffering, encoding, *rest)
        raw = MortalFile(file, mode)
        if not isinstance(file, int):
            steps.take("after open", path)
        return io.TextIOWrapper(io.BufferedWriter(raw), encoding or "utf-8")

    io.open = mortal_open  # type: ignore[assignment]
    os.open = steps.around(os.open, first=True)
    os.fsync, os.replace = steps.around(os.fsync), steps.around(os.replace)


def taken(record: Path) -> list[str]:
    """The steps that a process has taken."""
    return record.read_text().splitlines()
