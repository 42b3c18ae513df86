# SPDX-License-Identifier: Apache-2.0
"""Routers have little memory, and a thousand mappings are a thousand times what one of them takes."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import pytest

from tests.lab.simulated_carrier.profiles import PROFILES
from tests.support.virtual_time import virtual
from tests.support.whole_path import WholePath

FIRST_PORT, FEW, MANY = 10000, 30, 330
MOST = 1950  # octets; what the back-end of the ruleset remembers comes on top
OURS = [tracemalloc.Filter(True, file) for file in ("*/igdpcp/*", "*/dataclasses.py")]


def held() -> int:
    gc.collect()
    return sum(each.size for each in tracemalloc.take_snapshot().filter_traces(OURS).statistics("filename"))


@virtual
async def test_a_mapping_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = WholePath(
        tmp_path, PROFILES["lifetime_86400"], monkeypatch, external_ip_probe=False, max_mappings=MANY,
        max_mappings_per_host=MANY, adds_per_second=MANY,
    )  # fmt: skip
    await path.start()
    tracemalloc.start()
    try:
        sizes = []
        for ports in (range(FIRST_PORT, FIRST_PORT + FEW), range(FIRST_PORT + FEW, FIRST_PORT + MANY)):
            for port in ports:
                assert not (await path.hall.add(port, InternalPort=port, LeaseDuration=0)).code
            sizes.append(held())
    finally:
        tracemalloc.stop()
    few, many = sizes
    assert (many - few) / (MANY - FEW) < MOST
    await path.stop()
