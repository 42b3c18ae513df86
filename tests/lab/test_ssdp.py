# SPDX-License-Identifier: Apache-2.0
"""Discovery as control points on the LANs see it: by IPv4 and IPv6, on two LANs, while addresses come and go."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

import pytest

from tests.lab import topology
from tests.lab.carrier import ScriptedCarrier
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import Host, poll
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

PORT = 1900
GROUP, GROUP_LINK, GROUP_SITE = "239.255.255.250", "ff02::c", "ff05::c"
DEVICE = "urn:schemas-upnp-org:device:"
SERVICE = "urn:schemas-upnp-org:service:"
IGD = f"{DEVICE}InternetGatewayDevice:"
V1, V2 = "/rootDesc.xml", "/v2/rootDesc.xml"
SET = 10  # messages that announce one gateway
PATIENCE = 5.0
SOON = 0.05  # seconds; the fastest control points stop listening after 0.25 s

ROUTER_LINK, HOST_LINK = "fe80::1", "fe80::50"
ROUTER_ULA, HOST_ULA = "fd00:1::1", "fd00:1::50"
ROUTER_GUA, HOST_GUA = "2600:1::1", "2600:1::50"
GUEST_DEVICE, GUEST_NETWORK = "guest", "192.168.2."
GUEST_ROUTER, GUEST_HOST = f"{GUEST_NETWORK}1", f"{GUEST_NETWORK}60"
STRANGE_ADDRESS = "10.9.9.9"

TARGETS = {
    "upnp:rootdevice": V1,
    f"{IGD}1": V1,
    f"{DEVICE}WANDevice:1": V1,
    f"{DEVICE}WANConnectionDevice:1": V1,
    f"{SERVICE}Layer3Forwarding:1": V1,
    f"{SERVICE}WANCommonInterfaceConfig:1": V1,
    f"{SERVICE}WANIPConnection:1": V1,
    f"{IGD}2": V2,
    f"{DEVICE}WANDevice:2": V2,
    f"{DEVICE}WANConnectionDevice:2": V2,
    f"{SERVICE}WANIPConnection:2": V2,
    f"{SERVICE}WANIPv6FirewallControl:1": V2,
}
NOT_HERE = (
    f"{IGD}3",
    f"{SERVICE}WANIPConnection:3",
    f"{SERVICE}Layer3Forwarding:2",
    f"{SERVICE}WANPPPConnection:1",
    "urn:dslforum-org:device:InternetGatewayDevice:1",
    f"ssdp:{IGD}1",
)


@dataclass(frozen=True)
class Message:
    """A datagram that a control point got: from whom, its start line, its fields."""

    source: str
    port: int
    start: str
    fields: dict[str, str]

    @classmethod
    def parse(cls, data: bytes, sender: tuple[str, int]) -> Message:
        head, *lines = data.decode().removesuffix("\r\n\r\n").split("\r\n")
        fields = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return cls(sender[0].partition("%")[0], sender[1], head, fields)

    @property
    def kind(self) -> str:
        return self.fields["NTS"]


class ControlPoint:
    """A UDP socket of a LAN host; with port 1900 it also hears the groups."""

    def __init__(self, host: Host, address: str, port: int = 0, device: str = "eth0") -> None:
        self._v6 = ip_address(address).version == 6
        self._index = host.inside(lambda: socket.if_nametoindex(device))
        sock = self._socket = host.socket(socket.SOCK_DGRAM, socket.AF_INET6 if self._v6 else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        if self._v6:
            index = struct.pack("@I", self._index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, self._index)
            for group in (GROUP_LINK, GROUP_SITE) if port else ():
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, IPv6Address(group).packed + index)
            sock.bind(("" if port else address, port, 0, self._index))
        else:
            own = socket.inet_aton(address)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, own)
            if port:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + own)
            sock.bind(("" if port else address, port))

    def send(self, data: bytes, to: str) -> None:
        self._socket.sendto(data, (to, PORT, 0, self._index) if self._v6 else (to, PORT))

    def search(self, target: str, to: str = GROUP, mx: str = "MX: 2\r\n") -> None:
        text = f'M-SEARCH * HTTP/1.1\r\nHOST: {to}:{PORT}\r\nMAN: "ssdp:discover"\r\n{mx}ST: {target}\r\n\r\n'
        self.send(text.encode(), to)

    def receive(self, seconds: float = PATIENCE) -> Message:
        """The next message; TimeoutError when none comes."""
        self._socket.settimeout(seconds)
        data, sender = self._socket.recvfrom(4096)
        return Message.parse(data, sender)

    def answer(self, target: str, to: str = GROUP, mx: str = "MX: 2\r\n") -> Message:
        """The answer to a search."""
        self.search(target, to, mx)
        while True:
            message = self.receive()
            if message.start == "HTTP/1.1 200 OK":
                return message

    def heard(self) -> list[Message]:
        """What came by now."""
        messages = []
        with contextlib.suppress(BlockingIOError, TimeoutError):
            while True:
                messages.append(self.receive(0.0))
        return messages

    def announcements(self, count: int) -> list[Message]:
        """The next announcements of a device, each set of them by its first message, searches left out."""
        found: list[Message] = []
        while len(found) < count:
            message = self.receive()
            if message.start.startswith("NOTIFY") and message.fields["NT"] == "upnp:rootdevice":
                found.append(message)
        return found

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> ControlPoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def with_ipv6(lab: Lab) -> None:
    """Give the router's LAN and one of its hosts IPv6 addresses of every kind."""
    for host, device, addresses in (
        (lab.router, topology.LAN_DEVICE, (ROUTER_LINK, ROUTER_ULA, ROUTER_GUA)),
        (lab.lan, "eth0", (HOST_LINK, HOST_ULA, HOST_GUA)),
    ):
        host.run(["ip", "link", "set", device, "addrgenmode", "none"])
        host.sysctl({f"ipv6.conf.{device}.accept_dad": "0", f"ipv6.conf.{device}.disable_ipv6": "0"})
        for address in addresses:
            host.run(["ip", "addr", "add", f"{address}/64", "dev", device, "nodad"])


def with_guest_lan(lab: Lab) -> None:
    """A second LAN of the router, on a device of its own; lan2 is on both."""
    link = ["ip", "link", "add", GUEST_DEVICE, "type", "veth", "peer", "name", "eth1", "netns", lab.lan2.namespace]
    lab.router.run(link)
    for host, device, address in ((lab.router, GUEST_DEVICE, GUEST_ROUTER), (lab.lan2, "eth1", GUEST_HOST)):
        host.run(["ip", "addr", "add", f"{address}/24", "dev", device])
        host.run(["ip", "link", "set", device, "up"])


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Lab, Igdpcpd]]:
    """A daemon that advertises on two LANs, one of them with IPv6."""
    with Lab() as lab:
        ScriptedCarrier(lab)
        with_ipv6(lab)
        with_guest_lan(lab)
        daemon = Igdpcpd(lab, sections={"lan guest": {"device": GUEST_DEVICE}}, main={"searches_per_second": "1000"})
        daemon.wait_for_advertising()
        yield lab, daemon


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        ScriptedCarrier(lab)
        yield lab


def url(address: str, path: str) -> str:
    return f"http://[{address}]:5000{path}" if ":" in address else f"http://{address}:5000{path}"


PLACES = [
    pytest.param(topology.LAN_ADDRESS, GROUP, topology.ROUTER_LAN_ADDRESS, id="IPv4 multicast"),
    pytest.param(topology.LAN_ADDRESS, topology.ROUTER_LAN_ADDRESS, topology.ROUTER_LAN_ADDRESS, id="IPv4 unicast"),
    pytest.param(HOST_LINK, GROUP_LINK, ROUTER_LINK, id="link-local multicast"),
    pytest.param(HOST_GUA, GROUP_SITE, ROUTER_GUA, id="site-local multicast from a global address"),
    pytest.param(HOST_ULA, GROUP_SITE, ROUTER_ULA, id="site-local multicast from a local address"),
    pytest.param(HOST_GUA, ROUTER_GUA, ROUTER_GUA, id="IPv6 unicast"),
]


@pytest.mark.parametrize(("asker", "to", "router"), PLACES)
def test_every_target_of_both_versions_is_found(served: tuple[Lab, Igdpcpd], asker: str, to: str, router: str) -> None:
    lab, _ = served
    with ControlPoint(lab.lan, asker) as control_point:
        for target, path in TARGETS.items():
            began = time.monotonic()
            answer = control_point.answer(target, to)
            assert time.monotonic() - began < SOON
            assert answer.fields["ST"] == target
            assert answer.fields["LOCATION"] == url(router, path)
            assert (answer.source, answer.port) == (router, PORT)
            udn = answer.fields["USN"].removesuffix(f"::{target}")
            assert control_point.answer(udn, to).fields["USN"] == udn
        control_point.search("ssdp:all", to)
        everything = [control_point.receive() for _ in range(10)]
        assert everything[0].fields["ST"] == f"{IGD}1"
        assert {answer.fields["LOCATION"] for answer in everything} == {url(router, V1)}
        for target in NOT_HERE:
            control_point.search(target, to)
        assert control_point.answer(f"{IGD}1", to).fields["ST"] == f"{IGD}1"
        assert control_point.heard() == []


@pytest.mark.parametrize("mx", ["", "MX: 0\r\n", "MX: 10\r\n", "MX: 99999999999\r\n", "MX: soon\r\n"])
@pytest.mark.parametrize("to", [GROUP, topology.ROUTER_LAN_ADDRESS])
def test_mx_changes_nothing(served: tuple[Lab, Igdpcpd], to: str, mx: str) -> None:
    lab, _ = served
    with ControlPoint(lab.lan, topology.LAN_ADDRESS) as control_point:
        began = time.monotonic()
        control_point.answer(f"{IGD}1", to, mx)
        assert time.monotonic() - began < SOON


@pytest.mark.parametrize(
    ("asker", "to"), [(topology.LAN_ADDRESS, GROUP), (HOST_LINK, GROUP_LINK), (HOST_GUA, GROUP_SITE)]
)
def test_a_search_from_port_1900_is_answered_there(served: tuple[Lab, Igdpcpd], asker: str, to: str) -> None:
    lab, _ = served
    with ControlPoint(lab.lan, asker, PORT) as control_point:
        assert control_point.answer("upnp:rootdevice", to).fields["ST"] == "upnp:rootdevice"


def test_each_lan_is_answered_with_its_own_address(served: tuple[Lab, Igdpcpd]) -> None:
    lab, _ = served
    with (
        ControlPoint(lab.lan2, topology.LAN2_ADDRESS) as at_home,
        ControlPoint(lab.lan2, GUEST_HOST, device="eth1") as guest,
    ):
        assert at_home.answer(f"{IGD}1").fields["LOCATION"] == url(topology.ROUTER_LAN_ADDRESS, V1)
        assert guest.answer(f"{IGD}1").fields["LOCATION"] == url(GUEST_ROUTER, V1)
        assert at_home.heard() == guest.heard() == []


def test_strangers_on_the_lan_and_everybody_on_the_wan_get_nothing(served: tuple[Lab, Igdpcpd]) -> None:
    lab, _ = served
    lab.lan.run(["ip", "addr", "add", f"{STRANGE_ADDRESS}/32", "dev", "eth0"])
    lab.router.run(["ip", "route", "add", f"{STRANGE_ADDRESS}/32", "dev", topology.LAN_DEVICE])
    lab.carrier.run(["ip", "addr", "add", "192.168.1.77/32", "dev", topology.CARRIER_INSIDE])
    with contextlib.ExitStack() as stack:
        stranger = stack.enter_context(ControlPoint(lab.lan, STRANGE_ADDRESS))
        carrier = stack.enter_context(ControlPoint(lab.carrier, topology.CARRIER_ADDRESS, device="inside"))
        forged = stack.enter_context(ControlPoint(lab.carrier, "192.168.1.77", device="inside"))
        for sender in (stranger, carrier, forged):
            for to in (GROUP, topology.ROUTER_LAN_ADDRESS, topology.ROUTER_WAN_ADDRESS):
                sender.search("ssdp:all", to)
        neighbour = stack.enter_context(ControlPoint(lab.lan, topology.LAN_ADDRESS))
        neighbour.answer(f"{IGD}1")
        assert [sender.heard() for sender in (stranger, carrier, forged)] == [[], [], []]


@pytest.mark.parametrize(("asker", "to", "router"), PLACES)
def test_the_description_is_where_the_answer_says(
    served: tuple[Lab, Igdpcpd], asker: str, to: str, router: str
) -> None:
    lab, _ = served
    with ControlPoint(lab.lan, asker) as control_point:
        control_point.answer(f"{IGD}2", to)
    zone = "%eth0" if router == ROUTER_LINK else ""
    place = f"[{router}{zone}]" if ":" in router else router
    found = lab.lan.run(["curl", "-sg", "-m", "5", "-H", f"Host: {url(router, '')[7:]}", f"http://{place}:5000{V2}"])
    assert "InternetGatewayDevice:2" in found.stdout


def kinds(messages: list[Message]) -> list[str]:
    return [message.kind for message in messages]


def test_goodbye_comes_first_then_everything_twice_and_goodbye_when_it_ends(lab: Lab) -> None:
    with_ipv6(lab)
    with (
        ControlPoint(lab.lan, topology.LAN_ADDRESS, PORT) as ipv4,
        ControlPoint(lab.lan, HOST_LINK, PORT) as ipv6,
    ):
        daemon = Igdpcpd(lab)
        by_ipv4, by_ipv6 = ipv4.announcements(3), ipv6.announcements(3 * 3)
        daemon.stop()
        last = [ipv4.announcements(1), ipv6.announcements(3)]

    assert kinds(by_ipv4) == ["ssdp:byebye", "ssdp:alive", "ssdp:alive"]
    assert {message.fields["BOOTID.UPNP.ORG"] for message in by_ipv4 + by_ipv6} == {
        by_ipv4[0].fields["BOOTID.UPNP.ORG"]
    }
    for source, host in (
        (ROUTER_LINK, "[FF02::C]:1900"),
        (ROUTER_ULA, "[FF05::C]:1900"),
        (ROUTER_GUA, "[FF05::C]:1900"),
    ):
        mine = [message for message in by_ipv6 if message.source == source]
        assert kinds(mine) == ["ssdp:byebye", "ssdp:alive", "ssdp:alive"]
        assert {message.fields["HOST"] for message in mine} == {host}
        assert {message.fields["LOCATION"] for message in mine[1:]} == {url(source, V1)}
    assert [kinds(messages) for messages in last] == [["ssdp:byebye"], ["ssdp:byebye"] * 3]


def test_a_start_after_a_crash_has_a_larger_boot_number(lab: Lab) -> None:
    with ControlPoint(lab.lan, topology.LAN_ADDRESS, PORT) as control_point:
        daemon = Igdpcpd(lab)
        first = control_point.announcements(1)[0]
        daemon.kill()
        control_point.heard()
        daemon.start()
        second = control_point.announcements(1)[0]
    assert int(second.fields["BOOTID.UPNP.ORG"]) > int(first.fields["BOOTID.UPNP.ORG"])


def test_a_lan_that_comes_later_is_announced_with_a_new_boot_number_and_the_others_told_before(lab: Lab) -> None:
    with ControlPoint(lab.lan, topology.LAN_ADDRESS, PORT) as control_point:
        daemon = Igdpcpd(lab, sections={"lan guest": {"device": GUEST_DEVICE}})
        before = control_point.announcements(3)[-1].fields["BOOTID.UPNP.ORG"]
        with_guest_lan(lab)
        found = control_point.announcements(3)
        with ControlPoint(lab.lan2, GUEST_HOST, device="eth1") as guest:
            poll(lambda: guest.search(f"{IGD}1") or guest.heard(), PATIENCE, "an answer on the guest's LAN", 0.1)
        lab.router.run(["ip", "link", "del", GUEST_DEVICE])
        gone = control_point.announcements(3)
        assert daemon.status()["igd"]["advertising"]

    after = found[-1].fields["BOOTID.UPNP.ORG"]
    assert int(after) > int(before)
    assert [(message.kind, message.fields["BOOTID.UPNP.ORG"]) for message in found] == [
        ("ssdp:update", before),
        ("ssdp:alive", after),
        ("ssdp:alive", after),
    ]
    assert found[0].fields["NEXTBOOTID.UPNP.ORG"] == after
    assert kinds(gone) == ["ssdp:update", "ssdp:alive", "ssdp:alive"]


def test_ipv6_that_comes_later_is_served_and_nothing_is_said_of_it_before(lab: Lab) -> None:
    daemon = Igdpcpd(lab)
    daemon.wait_for_advertising()
    assert [event for event in daemon.events() if event.get("event") in ("lan_not_served", "not_advertised")] == []
    with_ipv6(lab)
    with ControlPoint(lab.lan, HOST_GUA) as control_point:
        poll(lambda: control_point.search(f"{IGD}2", GROUP_SITE) or control_point.heard(), PATIENCE, "an answer", 0.1)
        assert control_point.answer(f"{IGD}2", GROUP_SITE).fields["LOCATION"] == url(ROUTER_GUA, V2)
        lab.router.run(["ip", "addr", "del", f"{ROUTER_GUA}/64", "dev", topology.LAN_DEVICE])
        before = len(daemon.events("lan_changed"))
        assert before
    with ControlPoint(lab.lan, HOST_ULA) as control_point:
        assert control_point.answer(f"{IGD}2", GROUP_SITE).fields["LOCATION"] == url(ROUTER_ULA, V2)
