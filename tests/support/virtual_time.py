# SPDX-License-Identifier: Apache-2.0
"""An event loop whose clock jumps to the next timer when nothing can run: hours of waiting pass at once."""

from __future__ import annotations

import asyncio
import functools
import gc
import selectors
from collections.abc import Awaitable, Callable
from typing import Any

START = 1000.0  # what the clock shows first


class _JumpingSelector(selectors.DefaultSelector):
    """Looks at the sockets without waiting, and lets the time pass that it was told to wait."""

    now = START

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("nothing will ever happen")
            self.now += max(0.0, timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Sockets work; whatever waits for threads or other processes does not."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self.troubles: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.troubles.append(context))

    def time(self) -> float:
        return self._jumping.now


def virtual(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make a test of a coroutine; it fails too when any task or callback raised what nobody has looked at."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        gc.freeze()  # so that the collection below looks only at what this test made
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, VirtualTimeLoop)
            runner.run(test(*args, **kwargs))  # type: ignore[arg-type]
        gc.collect()
        gc.unfreeze()
        assert loop.troubles == []

    return run
