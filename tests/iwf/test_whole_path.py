# SPDX-License-Identifier: Apache-2.0
"""Hall, upstream, engine and a carrier together: what none of them can show alone."""

from __future__ import annotations

from asyncio import sleep
from pathlib import Path

import pytest

from tests.lab.simulated_carrier.profiles import PROFILES
from tests.support.virtual_time import virtual
from tests.support.whole_path import WholePath


def test_iwf_139_a_deletion_that_nobody_answered_is_told_when_the_carrier_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @virtual
    async def test() -> None:
        path = WholePath(tmp_path, PROFILES["lifetime_86400"], monkeypatch, external_ip_probe=False)
        await path.start()
        assert (await path.hall.add(8080, LeaseDuration=0)).code == 0
        path.link.switches.set(loss=1.0)
        assert (await path.hall.delete(8080)).code == 0
        await sleep(300)
        assert len(path.carrier_holds()) == len(path.journalled()) == 1
        path.link.switches.set(loss=0.0)
        await sleep(1000)
        assert path.carrier_holds() == set()
        assert path.journalled() == []

    test()
