# SPDX-License-Identifier: Apache-2.0
"""Cascaded or routed: what is found must be found again before anything changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from igdpcp.daemon import nat_mode
from igdpcp.daemon.nat_mode import NatMode
from igdpcp.errors import RulesetError
from tests.support.virtual_time import virtual

A_DAY = 86400


class Firewall:
    """``translates`` is what each look finds, None: it cannot be read; ``looks`` counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, translates: bool | None) -> None:
        self.translates = translates
        self.looks = 0
        self.device = "wan0"
        monkeypatch.setattr(nat_mode, "masquerades", self._look)
        monkeypatch.setattr(asyncio, "to_thread", self._at_once)

    def _look(self, device: str) -> bool:
        assert device == self.device
        self.looks += 1
        if self.translates is None:
            raise RulesetError("cannot be read")
        return self.translates

    @staticmethod
    async def _at_once(work: Callable[[str], bool], device: str) -> bool:
        return work(device)


class Watched:
    """A NatMode, decided and watched; ``changes`` are the times of its calls."""

    def __init__(self, firewall: Firewall, run_dir: Path, setting: str = "auto") -> None:
        self.loop = asyncio.get_running_loop()
        self.changes: list[float] = []
        self.mode = NatMode(
            setting, lambda: firewall.device, run_dir, lambda: self.changes.append(self.loop.time())
        )  # fmt: skip

    async def __aenter__(self) -> Watched:
        await self.mode.decide()
        self.decided = self.mode.routed
        self.task = asyncio.ensure_future(self.mode.watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@virtual
async def test_a_firewall_that_is_reloaded_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    firewall = Firewall(monkeypatch, translates=True)
    async with Watched(firewall, tmp_path) as watched:
        assert not watched.decided
        firewall.translates = False
        watched.mode.look_again()
        await asyncio.sleep(2 * nat_mode.LOOK_SECONDS - 1)
        firewall.translates = True
        await asyncio.sleep(A_DAY)
        assert (firewall.looks, watched.mode.routed, watched.changes) == (4, False, [])


@virtual
async def test_what_several_looks_find_changes_the_mode_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    firewall = Firewall(monkeypatch, translates=True)
    async with Watched(firewall, tmp_path) as watched:
        firewall.translates = False
        watched.mode.look_again()
        before = watched.loop.time()
        await asyncio.sleep(A_DAY)
        assert watched.changes == [before + 20]
        assert (firewall.looks, watched.mode.routed) == (1 + nat_mode.LOOKS_NEEDED, True)


@virtual
async def test_without_a_wan_nothing_is_decided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    firewall = Firewall(monkeypatch, translates=False)
    firewall.device = ""
    async with Watched(firewall, tmp_path) as watched:
        watched.mode.look_again()
        await asyncio.sleep(A_DAY)
        assert (firewall.looks, watched.decided, watched.changes) == (0, False, [])
        firewall.device = "wan0"
        watched.mode.look_again()
        await asyncio.sleep(60)
        assert (watched.mode.routed, len(watched.changes)) == (True, 1)


@virtual
async def test_a_wan_that_goes_away_keeps_the_router_routed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    firewall = Firewall(monkeypatch, translates=False)
    async with Watched(firewall, tmp_path) as watched:
        firewall.device = ""
        watched.mode.look_again()
        await asyncio.sleep(A_DAY)
        assert (watched.decided, watched.mode.routed, watched.changes) == (True, True, [])


@virtual
async def test_routed_is_left_when_the_firewall_comes_after_us(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    firewall = Firewall(monkeypatch, translates=False)
    async with Watched(firewall, tmp_path) as watched:
        assert watched.decided
        await asyncio.sleep(10)
        firewall.translates = True
        await asyncio.sleep(90)
        assert (watched.mode.routed, len(watched.changes)) == (False, 1)


@virtual
async def test_a_ruleset_that_cannot_be_read_keeps_the_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    firewall = Firewall(monkeypatch, translates=False)
    async with Watched(firewall, tmp_path) as watched:
        firewall.translates = None
        watched.mode.look_again()
        await asyncio.sleep(A_DAY)
        assert firewall.looks > 2
        assert (watched.mode.routed, watched.changes) == (True, [])


@virtual
async def test_a_restart_goes_on_as_before_and_looks_then(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    firewall = Firewall(monkeypatch, translates=False)
    async with Watched(firewall, tmp_path):
        pass
    firewall.translates = True
    for looks in (1, 1 + nat_mode.LOOKS_NEEDED):
        async with Watched(firewall, tmp_path) as watched:
            assert firewall.looks == looks
            assert watched.decided is (looks == 1)
            await asyncio.sleep(30)
    assert (firewall.looks, watched.mode.routed) == (2 + nat_mode.LOOKS_NEEDED, False)


@pytest.mark.parametrize("setting", ["yes", "no"])
def test_who_is_told_never_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str) -> None:
    @virtual
    async def run() -> None:
        firewall = Firewall(monkeypatch, translates=setting == "no")
        async with Watched(firewall, tmp_path, setting) as watched:
            watched.mode.look_again()
            await asyncio.sleep(A_DAY)
            assert (firewall.looks, watched.mode.routed, watched.changes) == (0, setting == "no", [])

    run()
    assert list(tmp_path.iterdir()) == []


@virtual
async def test_a_first_look_that_failed_is_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    firewall = Firewall(monkeypatch, translates=None)
    async with Watched(firewall, tmp_path) as watched:
        assert watched.decided is False
        firewall.translates = False
        await asyncio.sleep(3 * nat_mode.RECHECK_SECONDS)
        assert len(watched.changes) == 1
        assert watched.mode.routed is True


@virtual
async def test_what_could_not_be_found_is_not_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    firewall = Firewall(monkeypatch, translates=None)
    async with Watched(firewall, tmp_path) as watched:
        assert not watched.decided
    firewall.translates = False
    async with Watched(firewall, tmp_path) as watched:
        assert watched.decided


@virtual
async def test_what_was_found_of_one_wan_is_not_believed_of_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    firewall = Firewall(monkeypatch, translates=False)
    async with Watched(firewall, tmp_path) as watched:
        assert watched.decided
    firewall.device, firewall.translates = "lte", True
    async with Watched(firewall, tmp_path) as watched:
        assert not watched.decided
    async with Watched(firewall, tmp_path):
        looks = firewall.looks
    async with Watched(firewall, tmp_path):
        assert firewall.looks == looks
