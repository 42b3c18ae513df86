# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of links and routes, with both versions of pyroute2 that routers have."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import topology
from tests.lab.carrier import ScriptedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import LabError
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
OLD_PYROUTE2 = ROOT / ".cache/pyroute2-0.7.9"

WATCH = """
import asyncio, json, pyroute2, sys
from igdpcp.net.links import LinkWatcher

def show(snapshot):
    print(json.dumps({
        "devices": sorted(snapshot.devices),
        "addresses": [[device, str(interface)] for device, interface in snapshot.addresses],
        "routes": [[r.device, str(r.gateway), r.metric] for r in snapshot.default_routes],
        "unnamed": [[device, str(interface)] for device, interface in snapshot.unnamed],
        "routes6": [[r.device, str(r.gateway), r.metric] for r in snapshot.default_routes6],
    }), flush=True)

async def main():
    watcher = LinkWatcher(show)
    show(await watcher.start())
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture(params=["0.9", "0.7.9"])
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    if request.param == "0.9":
        return {"PYTHONPATH": str(ROOT)}
    if not OLD_PYROUTE2.exists():
        raise LabError(f"no {OLD_PYROUTE2}: run ci/setup")
    return {"PYTHONPATH": f"{OLD_PYROUTE2}:{ROOT}"}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def test_links_addresses_and_the_default_route_are_read_and_watched(lab: Lab, environment: dict[str, str]) -> None:
    watcher = lab.router.popen([sys.executable, "-c", WATCH], name="watch", env=environment, control=True)

    def next_snapshot() -> dict[str, list[object]]:
        line = watcher.stdout.readline()
        assert line, watcher.output()
        return dict(json.loads(line))

    first = next_snapshot()
    assert {"lo", "br-lan", "wan"} <= set(first["devices"])
    assert ["wan", f"{topology.ROUTER_WAN_ADDRESS}/24"] in first["addresses"]
    assert first["routes"] == [["wan", topology.CARRIER_ADDRESS, 0]]

    lab.router.run(["ip", "addr", "add", "100.64.12.99/24", "dev", "wan"])
    assert ["wan", "100.64.12.99/24"] in next_snapshot()["addresses"]

    lab.router.run(["ip", "route", "replace", "default", "via", "100.64.12.77", "dev", "wan", "metric", "7"])
    assert ["wan", "100.64.12.77", 7] in next_snapshot()["routes"]

    lab.router.run(["ip", "link", "add", "ppp9", "type", "veth", "peer", "name", "ppp8"])
    assert "ppp9" in next_snapshot()["devices"]


def test_ipv6_addresses_that_others_can_be_told_of_are_read_and_watched(lab: Lab, environment: dict[str, str]) -> None:
    device = topology.LAN_DEVICE
    lab.router.run(["ip", "link", "set", device, "addrgenmode", "none"])
    lab.router.sysctl({f"ipv6.conf.{device}.accept_dad": "0", f"ipv6.conf.{device}.disable_ipv6": "0"})
    watcher = lab.router.popen([sys.executable, "-c", WATCH], name="watch", env=environment, control=True)

    def ipv6_addresses() -> list[str]:
        line = watcher.stdout.readline()
        assert line, watcher.output()
        return [text for name, text in json.loads(line)["addresses"] if name == device and ":" in text]

    def change(command: str) -> list[str]:
        lab.router.run(["ip", "addr", *command.split(), "dev", device])
        return ipv6_addresses()

    assert ipv6_addresses() == []
    assert change("add fe80::1/64 nodad") == ["fe80::1/64"]
    assert sorted(change("add 2600:1::1/60 nodad")) == ["2600:1::1/60", "fe80::1/64"]
    assert change("change 2600:1::1/60 preferred_lft 0") == ["fe80::1/64"]
    assert sorted(change("change 2600:1::1/60 preferred_lft forever")) == ["2600:1::1/60", "fe80::1/64"]
    assert change("del 2600:1::1/60") == ["fe80::1/64"]


def test_an_address_on_trial_is_read_when_it_is_usable(lab: Lab, environment: dict[str, str]) -> None:
    """Duplicate address detection takes a second; until then nothing can be sent from the address."""
    device = topology.LAN_DEVICE
    lab.router.run(["ip", "link", "set", device, "addrgenmode", "none"])
    lab.router.sysctl({f"ipv6.conf.{device}.disable_ipv6": "0"})
    watcher = lab.router.popen([sys.executable, "-c", WATCH], name="watch", env=environment, control=True)
    assert watcher.stdout.readline(), watcher.output()
    lab.router.run(["ip", "addr", "add", "2600:1::1/60", "dev", device])
    addresses = json.loads(watcher.stdout.readline())["addresses"]
    assert [device, "2600:1::1/60"] in addresses
    assert "tentative" not in lab.router.run(["ip", "addr", "show", "dev", device]).stdout


def test_the_daemon_runs_with_the_pyroute2_of_openwrt_24_10(lab: Lab) -> None:
    ScriptedCarrier(lab)
    daemon = Igdpcpd(lab, env={"PYTHONPATH": f"{OLD_PYROUTE2}:{ROOT}"}, upstream={"device": ""})
    loaded = lab.router.run(
        [sys.executable, "-c", "import pyroute2; print(pyroute2.__file__)"], env={"PYTHONPATH": str(OLD_PYROUTE2)}
    )
    assert str(OLD_PYROUTE2) in loaded.stdout

    assert soap_client(lab.lan).add("tcp", 8080, topology.LAN_ADDRESS, 8080)

    assert daemon.status()["wan"] == {"device": "wan", "address": topology.ROUTER_WAN_ADDRESS}


def test_ipv6_default_routes_and_addresses_that_fade_are_read_and_watched(environment: dict[str, str]) -> None:
    with Lab(ipv6=True) as lab:
        lab.router.run(["ip", "-6", "route", "add", "unreachable", "default", "metric", "9000"])
        watcher = lab.router.popen([sys.executable, "-c", WATCH], name="watch", env=environment, control=True)

        def next_snapshot() -> dict[str, list[object]]:
            line = watcher.stdout.readline()
            assert line, watcher.output()
            return dict(json.loads(line))

        assert next_snapshot()["routes6"] == [["wan", topology.CARRIER6_ADDRESS, 1024]]
        lan = f"{topology.ROUTER_LAN6_ADDRESS}/64"
        lab.router.run(["ip", "addr", "change", lan, "dev", "br-lan", "preferred_lft", "0"])
        faded = next_snapshot()
        assert ["br-lan", lan] in faded["unnamed"]
        assert ["br-lan", lan] not in faded["addresses"]
        lab.router.run(
            ["ip", "-6", "route", "replace", "default", "from", "2600:1:1::/56", "dev", "wan", "metric", "7"]
        )
        assert ["wan", "None", 7] in next_snapshot()["routes6"]
