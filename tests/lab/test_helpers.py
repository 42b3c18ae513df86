# SPDX-License-Identifier: Apache-2.0
"""The helpers around the daemon: its configuration, its life and its control points."""

from __future__ import annotations

from pathlib import Path

import pytest

from igdpcp import config
from tests.lab.carrier import ScriptedCarrier
from tests.lab.clients import Upnpc, soap_client
from tests.lab.daemon import OTHER_PYROUTE2, Igdpcpd, uci
from tests.lab.topology import EXTERNAL_ADDRESS, LAN_ADDRESS, Lab

pytestmark = pytest.mark.lab


def test_sections_become_uci_that_the_daemon_reads(tmp_path: Path) -> None:
    path = tmp_path / "igdpcp"
    path.write_text(uci({"igdpcp main": {"enabled": "1"}, "upstream u": {"server": ["100.64.12.1", "100.64.12.2"]}}))
    read = config.load(str(path))
    assert read.main.enabled
    assert read.upstreams[0].server == ("100.64.12.1", "100.64.12.2")
    assert read.warnings == ()


@pytest.mark.parametrize("pyroute2", ["installed", "older"])
def test_the_daemon_lives_in_the_router(pyroute2: str) -> None:
    assert OTHER_PYROUTE2.is_dir(), "run ci/setup"
    env = {"PYTHONPATH": f"{OTHER_PYROUTE2}:{Path(__file__).parents[2]}"} if pyroute2 == "older" else None
    with Lab("fw4") as lab:
        carrier = ScriptedCarrier(lab)
        daemon = Igdpcpd(lab, env=env)
        daemon.wait_for_activation()
        daemon.wait_for_advertising()
        assert daemon.events("ready")[0]["mode"] == "cascaded"
        added = soap_client(lab.lan).add("tcp", 9000, LAN_ADDRESS, 8000)
        assert added.status == 200
        assert f"ExternalIPAddress = {EXTERNAL_ADDRESS}" in Upnpc(lab.lan).list().stdout
        assert [mapping["external_port"] for mapping in daemon.mappings()] == [9000]
        assert "62.0.0.1:9000" in daemon.cli("mappings").stdout
        assert daemon.memory()["RssAnon"] < daemon.memory()["VmRSS"]
        assert daemon.stop() == 0
        assert 9000 in [mapping.external_port for mapping in carrier.table()]
