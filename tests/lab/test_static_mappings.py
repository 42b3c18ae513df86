# SPDX-License-Identifier: Apache-2.0
"""Static mappings of the configuration, on packets: open without anybody asking, through reload and restart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import topology
from tests.lab.carrier import CarrierMapping, MiniupnpdCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd, Options
from tests.lab.namespaces import poll
from tests.lab.rules import rules_for
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

PORT, OTHER_PORT, CLIENT_PORT = 4430, 4431, 8443
WEB = {"protocol": "tcp", "ext_port": str(PORT), "int_addr": topology.LAN_ADDRESS, "int_port": str(CLIENT_PORT)}


@pytest.fixture(params=["nftables", "iptables"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(firewall=request.param) as lab:
        yield lab


def is_open(lab: Lab, port: int) -> bool:
    return lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, port, timeout=0.5).listener == "lan"


def test_a_static_mapping_is_open_after_start_reload_and_restart(lab: Lab) -> None:
    carrier = MiniupnpdCarrier(lab)
    lab.listen(lab.lan, "tcp", CLIENT_PORT)
    daemon = Igdpcpd(lab, lab.firewall, main={"external_ip_probe": "0"}, sections={"mapping web": WEB})
    poll(lambda: is_open(lab, PORT), 10.0, f"port {PORT}:\n{daemon.log()}")
    poll(lambda: daemon.status()["static"]["open"] == 1, 10.0, f"the table saying so:\n{daemon.log()}")
    assert daemon.status()["static"] == {"wanted": 1, "open": 1, "problems": []}
    assert "1 of 1 static" in daemon.cli("status").stdout
    assert "static" in daemon.cli("mappings").stdout
    assert soap_client(lab.lan).delete("tcp", PORT).code == 714
    assert soap_client(lab.lan2).add("tcp", PORT, topology.LAN2_ADDRESS, PORT).code == 718

    changed: Options = WEB | {"ext_port": str(OTHER_PORT)}
    daemon.write_config(daemon.config_file.read_text().replace(f"'{PORT}'", f"'{changed['ext_port']}'"))
    daemon.reload()
    poll(lambda: is_open(lab, OTHER_PORT), 10.0, f"port {OTHER_PORT}:\n{daemon.log()}")
    assert not is_open(lab, PORT)
    ours = [CarrierMapping("tcp", OTHER_PORT, topology.ROUTER_WAN_ADDRESS, OTHER_PORT)]
    poll(lambda: carrier.table() == ours, 10.0, "the old port being given back")

    assert daemon.stop() == 0
    daemon.start()
    poll(lambda: is_open(lab, OTHER_PORT), 10.0, f"port {OTHER_PORT} after a restart:\n{daemon.log()}")
    assert carrier.table() == ours

    daemon.write_config(daemon.config_file.read_text().replace("config mapping", "config nothing"))
    daemon.reload()
    poll(lambda: carrier.table() == [], 10.0, "the port of a section that is removed being given back")
    assert not is_open(lab, OTHER_PORT)
    poll(lambda: not rules_for(lab, topology.LAN_ADDRESS, CLIENT_PORT), 10.0, "the end of its rules")


def test_a_static_mapping_opens_when_the_wan_comes_up(lab: Lab) -> None:
    MiniupnpdCarrier(lab)
    lab.listen(lab.lan, "tcp", CLIENT_PORT)
    lab.router.run(["ip", "addr", "flush", "dev", topology.WAN_DEVICE])
    daemon = Igdpcpd(lab, lab.firewall, sections={"mapping web": WEB})
    assert daemon.status()["static"]["open"] == 0
    assert "mapping 'web' (tcp 4430) is not open" in daemon.cli("status").stdout

    lab.router.run(["ip", "addr", "add", f"{topology.ROUTER_WAN_ADDRESS}/24", "dev", topology.WAN_DEVICE])
    lab.router.run(["ip", "route", "add", "default", "via", topology.CARRIER_ADDRESS])

    poll(lambda: is_open(lab, PORT), 15.0, f"port {PORT}:\n{daemon.log()}")
