# SPDX-License-Identifier: Apache-2.0
"""Garbage is not looked for during the start, but it is later, and a reload lets go of what served before it."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from igdpcp.daemon import app


class Part:
    """Refers to itself, as many parts of the service do by their callbacks."""

    def __init__(self) -> None:
        self.itself = self


class Life:
    """What ``app`` sees of a service."""

    def __init__(self) -> None:
        self.part: Part | None = None
        self.released = asyncio.Event()
        self.released.set()

    async def start(self) -> None:
        self.part = Part()


@pytest.fixture(autouse=True)
def usual_garbage_collection() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def live(life: Life) -> None:
    asyncio.run(app._live(life, asyncio.Queue()))


def test_after_the_start_garbage_is_collected_again() -> None:
    gc.disable()
    live(Life())
    assert gc.isenabled()


def test_what_is_there_after_the_start_is_not_looked_through_again() -> None:
    life = Life()
    live(life)
    assert all(kept is not life.part for kept in gc.get_objects())


def test_what_served_before_a_reload_goes() -> None:
    life = Life()
    live(life)
    before = weakref.ref(life.part)
    life.part = None
    live(Life())
    assert before() is None
