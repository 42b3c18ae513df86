# SPDX-License-Identifier: Apache-2.0
"""IPv6 pinholes through the whole router: asked for by SOAP over IPv6, tried with packets from the internet."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator

import pytest

from tests.lab.altered import SHORT_GRACE, altered
from tests.lab.clients import HTTP_PORT
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import Host, poll
from tests.lab.rules import our_rules
from tests.lab.topology import (
    INTERNET2_6_ADDRESS,
    INTERNET6_ADDRESS,
    LAN2_6_ADDRESS,
    LAN6_ADDRESS,
    ROUTER_LAN6_ADDRESS,
    Lab,
)
from tests.support.soap_client import SoapClient, SoapReply

pytestmark = pytest.mark.lab

SERVICE = "WANIPv6FirewallControl"
PROTOCOLS = {"tcp": 6, "udp": 17}
PORT = 7000


class ControlPoint:
    """WANIPv6FirewallControl as one LAN host asks it, from its global address."""

    def __init__(self, host: Host, address: str) -> None:
        self.address = address
        self._soap = SoapClient(
            lambda: host.socket(socket.SOCK_STREAM, socket.AF_INET6),
            ROUTER_LAN6_ADDRESS,
            HTTP_PORT,
            description="/v2/rootDesc.xml",
        )

    def call(self, action: str, **arguments: object) -> SoapReply:
        return self._soap.call(action, arguments, service=SERVICE)

    def add(self, protocol: str = "tcp", *, lease: int = 600, remote_host: str = "", client: str = "") -> SoapReply:
        return self.call(
            "AddPinhole", RemoteHost=remote_host, RemotePort=0, InternalClient=client or self.address,
            InternalPort=PORT, Protocol=PROTOCOLS[protocol], LeaseTime=lease,
        )  # fmt: skip

    def packets(self, id: str) -> int:
        return int(self.call("GetPinholePackets", UniqueID=id)["PinholePackets"])


@pytest.fixture(params=["fw4", "iptables"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(request.param, ipv6=True) as made:
        for protocol in PROTOCOLS:
            made.listen(made.lan, protocol, PORT, "::")
        yield made


@pytest.fixture
def daemon(lab: Lab) -> Igdpcpd:
    return Igdpcpd(lab, backend(lab))


def backend(lab: Lab) -> str:
    return "iptables" if lab.firewall == "iptables" else "nftables"


@pytest.fixture
def host(lab: Lab, daemon: Igdpcpd) -> ControlPoint:
    return ControlPoint(lab.lan, LAN6_ADDRESS)


def reached(lab: Lab, protocol: str = "tcp", **options: str) -> bool:
    probe = lab.tcp_probe if protocol == "tcp" else lab.udp_probe
    return bool(probe(lab.internet, LAN6_ADDRESS, PORT, timeout=1.0, **options))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pinhole_lets_the_internet_in_until_it_is_deleted(lab: Lab, host: ControlPoint, protocol: str) -> None:
    assert not reached(lab, protocol)
    added = host.add(protocol)
    assert added.code == 0
    assert host.packets(added["UniqueID"]) == 0
    assert reached(lab, protocol)
    assert host.packets(added["UniqueID"]) == 1
    assert host.call("CheckPinholeWorking", UniqueID=added["UniqueID"])["IsWorking"] == "1"
    assert host.call("DeletePinhole", UniqueID=added["UniqueID"]).code == 0
    assert not reached(lab, protocol)


def test_a_pinhole_for_one_remote_host_lets_nobody_else_in(lab: Lab, host: ControlPoint) -> None:
    assert host.add(remote_host=INTERNET6_ADDRESS).code == 0
    assert reached(lab, source=INTERNET6_ADDRESS)
    assert not reached(lab, source=INTERNET2_6_ADDRESS)


def test_a_host_opens_and_closes_its_own_pinholes_only(lab: Lab, host: ControlPoint) -> None:
    other = ControlPoint(lab.lan2, LAN2_6_ADDRESS)
    assert other.add(client=LAN6_ADDRESS).code == 606
    assert not reached(lab)
    id = host.add()["UniqueID"]
    assert other.call("DeletePinhole", UniqueID=id).code == 606
    assert reached(lab)


def test_a_pinhole_ends_with_its_lease(lab: Lab, host: ControlPoint) -> None:
    id = host.add(lease=1)["UniqueID"]
    poll(lambda: host.call("GetPinholePackets", UniqueID=id).code == 704, 5.0, "the end of the lease")
    poll(lambda: not reached(lab), 5.0, "the end of its rules")


def test_a_pinhole_survives_a_killed_daemon_and_is_known_to_the_next_one(
    lab: Lab, daemon: Igdpcpd, host: ControlPoint
) -> None:
    id = host.add()["UniqueID"]
    assert daemon.process is not None
    daemon.process.signal(signal.SIGKILL)
    daemon.process.kill()
    assert reached(lab)
    daemon.start()
    assert reached(lab)
    assert host.call("DeletePinhole", UniqueID=id).code == 0
    assert not reached(lab)


def test_a_pinhole_to_an_address_that_the_lan_no_longer_has_is_closed(lab: Lab) -> None:
    Igdpcpd(lab, backend(lab), env=altered(lab, SHORT_GRACE))
    assert ControlPoint(lab.lan, LAN6_ADDRESS).add().code == 0
    lab.router.run(["ip", "addr", "add", "2600:1:7::1/64", "dev", "br-lan", "nodad"])
    lab.router.run(["ip", "addr", "del", f"{ROUTER_LAN6_ADDRESS}/64", "dev", "br-lan"])
    lab.router.run(["ip", "route", "add", f"{LAN6_ADDRESS}/128", "dev", "br-lan"])
    poll(lambda: LAN6_ADDRESS not in our_rules(lab), 10.0, "the pinhole's end")
    assert not reached(lab)
