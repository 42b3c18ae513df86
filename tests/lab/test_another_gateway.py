# SPDX-License-Identifier: Apache-2.0
"""Two gateways on one LAN confuse every control point: igdpcp keeps silent beside another one."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from igdpcp.upnp.ssdp import search_request
from tests.lab import topology
from tests.lab.carrier import MINIUPNPD_CHAINS, PEERS, START_MINIUPNPD, ScriptedCarrier
from tests.lab.clients import Upnpc
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import Host, Process, poll
from tests.lab.topology import Lab
from tests.support.other_gateway import GATEWAY, message

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
GUEST_ROUTER, GUEST = "192.168.2.1", "192.168.2.60"
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


def other_gateway(lab: Lab, address: str = topology.LAN2_ADDRESS) -> Process:
    process = lab.lan2.popen(
        [sys.executable, "-S", "-m", "tests.support.other_gateway", address],
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


def search(host: Host, address: str, gateway: str, seconds: float = 5) -> bytes:
    """What answers this host's search within that time; empty when nothing does."""
    with host.socket(socket.SOCK_DGRAM) as sock:
        sock.bind((address, 0))
        sock.settimeout(seconds)
        sock.sendto(search_request(GATEWAY, 1), (gateway, 1900))
        with contextlib.suppress(TimeoutError):
            return sock.recv(2048)
    return b""


def test_a_gateway_on_one_lan_silences_it_there_only_and_a_bare_port_is_none(lab: Lab) -> None:
    lab.router.run(["ip", "link", "set", "lan2", "nomaster"])
    lab.router.run(["ip", "addr", "add", f"{GUEST_ROUTER}/24", "dev", "lan2"])
    lab.lan2.run(["ip", "addr", "flush", "dev", "eth0"])
    lab.lan2.run(["ip", "addr", "add", f"{GUEST}/24", "dev", "eth0"])
    daemon = Igdpcpd(lab, sections={"lan guest": {"device": "lan2"}})
    daemon.wait_for_advertising()
    lab.listen(lab.lan2, "tcp", 9999)
    with lab.lan2.socket(socket.SOCK_DGRAM) as sock:
        sock.bind((GUEST, 0))
        location = f"http://{GUEST}:9999/"
        announcement = message("NOTIFY * HTTP/1.1", GUEST, NT=GATEWAY, NTS="ssdp:alive", LOCATION=location)
        sock.sendto(announcement, (GUEST_ROUTER, 1900))
    poll(lambda: daemon.status()["counters"]["ssdp"]["unconfirmed"], 5, "the doubt")
    assert search(lab.lan2, GUEST, GUEST_ROUTER)

    other_gateway(lab, GUEST)

    conflict = poll(lambda: daemon.status()["igd"]["conflict"], 5, "the conflict")
    assert "(lan2)" in conflict
    poll(lambda: not search(lab.lan2, GUEST, GUEST_ROUTER, 1), 5, "silence: an announcement may be under way")
    assert search(lab.lan, topology.LAN_ADDRESS, topology.ROUTER_LAN_ADDRESS)
    assert f"advertised at http://{topology.ROUTER_LAN_ADDRESS}:5000" in daemon.cli("status").stdout
