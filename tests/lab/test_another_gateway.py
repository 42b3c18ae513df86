# SPDX-License-Identifier: Apache-2.0
"""Two gateways on one LAN confuse every control point: igdpcp keeps silent beside another one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import topology
from tests.lab.carrier import MINIUPNPD_CHAINS, PEERS, START_MINIUPNPD, ScriptedCarrier
from tests.lab.clients import Upnpc
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import Process, poll
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
MINIUPNPD_CONFIG = f"""
ext_ifname={topology.WAN_DEVICE}
ext_ip={topology.EXTERNAL_ADDRESS}
listening_ip={topology.LAN_DEVICE}
http_port=5555
ipv6_disable=yes
enable_upnp=yes
enable_natpmp=no
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
upnp_forward_chain=MINIUPNPD
upnp_nat_chain=MINIUPNPD-NAT
upnp_nat_postrouting_chain=MINIUPNPD-POSTROUTING
uuid=7a4f0c5e-2f5d-4c8e-9d3a-0c3d5a1b2c3e
"""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        ScriptedCarrier(lab)
        yield lab


def other_gateway(lab: Lab) -> Process:
    process = lab.lan2.popen(
        [sys.executable, "-S", "-m", "tests.support.other_gateway", topology.LAN2_ADDRESS],
        name="other_gateway",
        env={"PYTHONPATH": str(ROOT)},
    )
    process.wait_for("ready")
    return process


def test_it_does_not_advertise_beside_another_gateway_and_says_so(lab: Lab) -> None:
    other_gateway(lab)
    daemon = Igdpcpd(lab)
    poll(lambda: daemon.status()["igd"]["conflict"], 5, "the conflict")

    found = Upnpc(lab.lan).run("-s").stdout

    assert topology.ROUTER_LAN_ADDRESS not in found
    assert daemon.status()["igd"]["advertising"] is False
    assert topology.LAN2_ADDRESS in daemon.cli("status").stdout
    assert topology.LAN2_ADDRESS in json.dumps(daemon.events())


def test_miniupnpd_on_the_router_itself_counts(lab: Lab) -> None:
    """It was there first, and announces itself only every quarter of an hour: it has to be searched for."""
    config = lab.directory / "miniupnpd.conf"
    config.write_text(MINIUPNPD_CONFIG)
    lab.router.nft(MINIUPNPD_CHAINS)
    argv = [str(PEERS / "nftables/usr/sbin/miniupnpd"), "-d", "-f", str(config), "-P", str(config.with_suffix(".pid"))]
    lab.router.popen(["sh", "-c", START_MINIUPNPD, "miniupnpd", *argv], name="miniupnpd")
    poll(lambda: "5555" in Upnpc(lab.lan).run("-s").stdout, 10, "miniupnpd")

    daemon = Igdpcpd(lab)

    poll(lambda: daemon.status()["igd"]["conflict"], 5, "the conflict")
    assert f"http://{topology.ROUTER_LAN_ADDRESS}:5555/" in daemon.status()["igd"]["conflict"]
    assert daemon.status()["igd"]["advertising"] is False


def test_force_overrides_it(lab: Lab) -> None:
    other_gateway(lab)
    daemon = Igdpcpd(lab, main={"force": "1"})
    daemon.wait_for_advertising()

    assert f"http://{topology.ROUTER_LAN_ADDRESS}:5000" in Upnpc(lab.lan).run("-s").stdout


def test_a_gateway_that_comes_later_silences_it(lab: Lab) -> None:
    daemon = Igdpcpd(lab)
    daemon.wait_for_advertising()

    other_gateway(lab)

    poll(lambda: daemon.status()["igd"]["advertising"] is False, 5, "silence")
    assert topology.ROUTER_LAN_ADDRESS not in Upnpc(lab.lan).run("-s").stdout
