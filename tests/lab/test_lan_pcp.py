# SPDX-License-Identifier: Apache-2.0
"""LAN hosts open ports in PCP and NAT-PMP through both NATs, and share them with control points."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.lab import topology
from tests.lab.carrier import ScriptedCarrier
from tests.lab.clients import soap_client
from tests.lab.control_points.libtorrent_session import LibtorrentSession
from tests.lab.control_points.nicotine import Nicotine
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import Host, poll
from tests.lab.rules import rules_for
from tests.lab.topology import EXTERNAL_ADDRESS, LAN2_ADDRESS, LAN_ADDRESS, ROUTER_LAN_ADDRESS, Lab
from tests.support.pcp_host import (
    NATPMP_ADDRESS,
    NATPMP_UDP,
    PREFER_FAILURE,
    TCP,
    UDP,
    MapAnswer,
    announce,
    map_request,
    natpmp_map,
    read_address,
    read_announce,
    read_map,
    read_port,
)

pytestmark = pytest.mark.lab

PORT, EXTERNAL_PORT = 6881, 9000
PATIENCE = 5.0  # seconds
SILENCE = 0.5  # seconds without an answer; what is answered takes milliseconds
NOT_AUTHORIZED, UNSUPP_VERSION, CANNOT_PROVIDE_EXTERNAL = 2, 1, 11


class PcpHost:
    """A host with one UDP socket towards port 5351 of ``router``."""

    def __init__(self, host: Host, address: str = LAN_ADDRESS, router: str = ROUTER_LAN_ADDRESS) -> None:
        self.address = address
        self._socket = host.socket(socket.SOCK_DGRAM)
        self._socket.connect((router, 5351))

    def ask(self, octets: bytes) -> bytes:
        """The answer; sent again as PCP hosts do when there is none."""
        for _ in range(3):
            answer = self.ask_once(octets, PATIENCE)
            if answer is not None:
                return answer
        raise AssertionError("no answer")

    def ask_once(self, octets: bytes, seconds: float = SILENCE) -> bytes | None:
        self._socket.settimeout(seconds)
        self._socket.send(octets)
        with contextlib.suppress(TimeoutError, ConnectionRefusedError):
            return self._socket.recv(2048)
        return None

    def map(self, port: int = PORT, **fields: object) -> MapAnswer:
        return read_map(self.ask(map_request(self.address, port, **fields)))  # type: ignore[arg-type]

    def close(self) -> None:
        self._socket.close()


class Everybody:
    """Hears on a LAN host what is multicast to all hosts."""

    def __init__(self, host: Host) -> None:
        self._socket = host.socket(socket.SOCK_DGRAM)
        self._socket.bind(("224.0.0.1", 5350))
        group = socket.inet_aton("224.0.0.1") + socket.inet_aton(host.address)
        self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)

    def hear(self) -> tuple[bytes, tuple[str, int]]:
        self._socket.settimeout(PATIENCE)
        octets, sender = self._socket.recvfrom(2048)
        return octets, sender

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def host(lab: Lab) -> Iterator[PcpHost]:
    with contextlib.closing(PcpHost(lab.lan)) as host:
        yield host


def started(lab: Lab, **options: str) -> Igdpcpd:
    daemon = Igdpcpd(lab, "iptables" if lab.firewall == "iptables" else "nftables", main=options)
    daemon.wait_for_activation()
    return daemon


def ports_at(carrier: ScriptedCarrier) -> list[int]:
    """External ports of what was asked for at the carrier, without the probe for the external address."""
    return [mapping.external_port for mapping in carrier.table() if mapping.port != 9]


@pytest.mark.parametrize("firewall", ["nftables", "fw4", "iptables"])
@pytest.mark.parametrize(("protocol", "number"), [("tcp", TCP), ("udp", UDP)])
def test_a_port_opened_in_pcp_leads_from_the_internet_to_the_host_and_is_closed_again(
    firewall: str, protocol: str, number: int
) -> None:
    with Lab(firewall=firewall) as lab, contextlib.closing(PcpHost(lab.lan)) as host:
        carrier = ScriptedCarrier(lab)
        daemon = started(lab)
        lab.listen(lab.lan, protocol, PORT)
        probe = lab.tcp_probe if protocol == "tcp" else lab.udp_probe

        opened = host.map(protocol=number, suggested=EXTERNAL_PORT, lifetime=600)

        assert (opened.result, opened.external, opened.external_port) == (0, EXTERNAL_ADDRESS, EXTERNAL_PORT)
        assert 0 < opened.lifetime <= 600
        answer = probe(lab.internet, EXTERNAL_ADDRESS, EXTERNAL_PORT)
        assert (answer.listener, answer.peer_address) == ("lan", topology.INTERNET_ADDRESS)
        (row,) = daemon.mappings()
        assert (row["owner"], row["requester"], row["client_port"]) == ("pcp", LAN_ADDRESS, PORT)

        closed = host.map(protocol=number, lifetime=0)

        assert (closed.result, closed.lifetime) == (0, 0)
        assert ports_at(carrier) == []
        assert not rules_for(lab, LAN_ADDRESS, PORT)
        assert not probe(lab.internet, EXTERNAL_ADDRESS, EXTERNAL_PORT)


def test_natpmpc_opens_and_closes_ports(lab: Lab) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = started(lab)
    natpmpc = ["natpmpc", "-g", ROUTER_LAN_ADDRESS, "-a"]
    for protocol in ("tcp", "udp"):
        lab.listen(lab.lan, protocol, PORT)
        said = lab.lan.run([*natpmpc, str(EXTERNAL_PORT), str(PORT), protocol, "600"]).stdout
        assert f"Public IP address : {EXTERNAL_ADDRESS}" in said
        mapped = f"Mapped public port {EXTERNAL_PORT} protocol {protocol.upper()} to local port {PORT}"
        assert f"{mapped} liftime 600" in said  # as it is spelt there
    assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, EXTERNAL_PORT).listener == "lan"
    assert lab.udp_probe(lab.internet, EXTERNAL_ADDRESS, EXTERNAL_PORT).listener == "lan"
    assert [row["owner"] for row in daemon.mappings()] == ["natpmp"] * 2

    lab.lan.run([*natpmpc, "0", str(PORT), "tcp", "0"])

    assert [row["protocol"] for row in daemon.mappings()] == ["udp"]
    assert [mapping.protocol for mapping in carrier.table() if mapping.port != 9] == ["udp"]
    assert not lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, EXTERNAL_PORT)


def test_natpmpc_is_answered_by_a_router_that_serves_alone_when_its_address_is_public() -> None:
    with Lab() as lab:
        daemon = Igdpcpd(lab, main={"allow_private_external": "1"}, upstream={"type": "none"})
        daemon.wait_for_advertising()
        said = lab.lan.run(["natpmpc", "-g", ROUTER_LAN_ADDRESS, "-a", str(PORT), str(PORT), "tcp", "600"]).stdout
        assert f"Public IP address : {topology.ROUTER_WAN_ADDRESS}" in said
        lab.listen(lab.lan, "tcp", PORT)
        assert lab.tcp_probe(lab.carrier, topology.ROUTER_WAN_ADDRESS, PORT).listener == "lan"


def test_nicotine_opens_and_closes_its_port_in_nat_pmp(lab: Lab) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = started(lab)
    program = Nicotine(lab)
    (_, port), *_ = program.ports
    lab.listen(lab.lan, "tcp", port)
    program.open()
    assert program.protocol == "NAT-PMP"
    assert [row["owner"] for row in daemon.mappings()] == ["natpmp"]
    assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, port).listener == "lan"
    program.close()
    poll(lambda: daemon.mappings() == [], PATIENCE, "everything being closed")
    assert ports_at(carrier) == []


def test_iwf_013_libtorrent_which_asks_in_upnp_and_pcp_at_once_gets_one_mapping_of_each_port(lab: Lab) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = started(lab)
    daemon.wait_for_advertising()
    program = LibtorrentSession(lab)
    program.open()
    poll(lambda: [row["shared_with"] for row in daemon.mappings()] == ["pcp"] * 2, PATIENCE, "two that are shared")
    assert program.sees()
    assert ports_at(carrier) == [port for _, port in program.ports]
    program.close()
    poll(lambda: daemon.mappings() == [], PATIENCE, "everything being closed")
    assert ports_at(carrier) == []


@pytest.mark.parametrize("leaves_first", ["control point", "host"])
def test_iwf_013_a_control_point_and_a_pcp_host_share_one_mapping_until_the_last_one_leaves(
    lab: Lab, host: PcpHost, leaves_first: str
) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = started(lab)
    lab.listen(lab.lan, "udp", PORT)
    client = soap_client(lab.lan)
    assert client.add("udp", PORT, LAN_ADDRESS, PORT)
    before = [mapping for mapping in carrier.table() if mapping.external_port == PORT]

    shared = host.map(protocol=UDP, nonce=b"of that host", suggested=EXTERNAL_PORT)

    assert (shared.result, shared.external, shared.external_port) == (0, EXTERNAL_ADDRESS, PORT)
    assert shared.nonce == b"of that host"
    assert ports_at(carrier) == [PORT]
    assert [mapping.nonce for mapping in carrier.table() if mapping.external_port == PORT] == [before[0].nonce]
    (row,) = daemon.mappings()
    assert (row["owner"], row["shared_with"]) == ("upnp1", "pcp")
    steps = [
        ("control point", lambda: client.delete("udp", PORT)),
        ("host", lambda: host.map(protocol=UDP, nonce=b"of that host", lifetime=0).result == 0),
    ]
    for last, (_, leave) in enumerate(sorted(steps, key=lambda step: step[0] != leaves_first)):
        assert lab.udp_probe(lab.internet, EXTERNAL_ADDRESS, PORT).listener == "lan"
        assert ports_at(carrier) == [PORT]
        assert leave()
        assert len(daemon.mappings()) == 1 - last
    assert ports_at(carrier) == []
    assert not lab.udp_probe(lab.internet, EXTERNAL_ADDRESS, PORT)


def test_iwf_013_what_a_pcp_host_opened_is_found_and_shared_by_its_control_point_and_kept_from_others(
    lab: Lab, host: PcpHost
) -> None:
    carrier = ScriptedCarrier(lab)
    started(lab)
    assert host.map(suggested=EXTERNAL_PORT, nonce=b"of that host").external_port == EXTERNAL_PORT
    (at_carrier,) = [mapping for mapping in carrier.table() if mapping.external_port == EXTERNAL_PORT]
    assert at_carrier.nonce == b"of that host".hex()
    other = soap_client(lab.lan2)
    assert other.add("tcp", EXTERNAL_PORT, LAN2_ADDRESS, PORT).code == 718
    client = soap_client(lab.lan)
    assert client.add("tcp", EXTERNAL_PORT, LAN_ADDRESS, PORT)
    assert ports_at(carrier) == [EXTERNAL_PORT]
    assert host.map(nonce=b"of a thief's", lifetime=0).result == NOT_AUTHORIZED


def test_one_host_gets_neither_the_port_of_another_nor_another_port_where_it_prefers_failure(lab: Lab) -> None:
    ScriptedCarrier(lab)
    started(lab)
    with (
        contextlib.closing(PcpHost(lab.lan)) as first,
        contextlib.closing(PcpHost(lab.lan2, LAN2_ADDRESS)) as second,
    ):
        assert first.map(suggested=EXTERNAL_PORT).external_port == EXTERNAL_PORT
        refused = second.map(suggested=EXTERNAL_PORT, options=PREFER_FAILURE)
        assert (refused.result, refused.external_port) == (CANNOT_PROVIDE_EXTERNAL, EXTERNAL_PORT)
        other = second.map(suggested=EXTERNAL_PORT)
        assert other.result == 0
        assert other.external_port != EXTERNAL_PORT
        lab.listen(lab.lan2, "tcp", PORT)
        assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, other.external_port).listener == "lan2"


def test_iwf_186_pcp_and_nat_pmp_are_answered_on_the_lan_only(lab: Lab, host: PcpHost) -> None:
    ScriptedCarrier(lab)
    daemon = started(lab)
    assert read_announce(host.ask(announce(LAN_ADDRESS))) >= 0
    for octets in (announce(topology.CARRIER_ADDRESS), NATPMP_ADDRESS, map_request(topology.CARRIER_ADDRESS, PORT)):
        for address in (topology.ROUTER_WAN_ADDRESS, ROUTER_LAN_ADDRESS):
            with contextlib.closing(PcpHost(lab.carrier, topology.CARRIER_ADDRESS, address)) as outsider:
                assert outsider.ask_once(octets) is None
    assert daemon.mappings() == []


def test_a_router_without_nat_speaks_pcp_and_says_so_to_who_asks_in_nat_pmp() -> None:
    with Lab(nat=False) as lab, contextlib.closing(PcpHost(lab.lan)) as host:
        carrier = ScriptedCarrier(lab, third_party=True)
        daemon = started(lab)
        lab.listen(lab.lan, "tcp", PORT)
        opened = host.map(suggested=EXTERNAL_PORT)
        assert (opened.result, opened.external_port) == (0, EXTERNAL_PORT)
        assert [(mapping.address, mapping.port) for mapping in carrier.table() if mapping.port != 9] == [
            (LAN_ADDRESS, PORT)
        ]
        assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, EXTERNAL_PORT).listener == "lan"
        version, opcode, result = struct.unpack_from("!BBxB", host.ask(NATPMP_ADDRESS))
        assert (version, opcode, result) == (2, 0x80, UNSUPP_VERSION)
        assert daemon.status()["pcp_server"]["languages"] == ["pcp"]


def test_a_start_is_announced_on_the_lan_and_a_host_gets_its_port_again(lab: Lab, host: PcpHost) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = started(lab)
    lab.listen(lab.lan, "tcp", PORT)
    opened = host.map(suggested=EXTERNAL_PORT)
    poll(lambda: read_announce(host.ask(announce(LAN_ADDRESS))) >= 1, PATIENCE, "the epoch going on")
    daemon.kill()
    with contextlib.closing(Everybody(lab.lan)) as everybody:
        daemon.start()
        octets, sender = everybody.hear()
        assert sender == (ROUTER_LAN_ADDRESS, 5351)
        epochs = [read_announce(octets)]
        addresses: list[str] = []
        while len(epochs) < 3 or len(addresses) < 2:
            octets, _ = everybody.hear()
            if octets[0] == 2:
                epochs.append(read_announce(octets))
            else:
                result, _, address = read_address(octets)
                assert result == 0
                addresses.append(address)
    assert epochs[0] <= 2
    assert epochs == sorted(epochs)
    assert set(addresses) == {EXTERNAL_ADDRESS}
    again = host.map(lifetime=7200)
    assert (again.result, again.external_port, again.nonce) == (0, EXTERNAL_PORT, opened.nonce)
    assert again.epoch < 30
    assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, EXTERNAL_PORT).listener == "lan"
    assert host.map(lifetime=0).result == 0
    assert ports_at(carrier) == []


def test_what_nobody_asks_for_again_ends_here_and_at_the_carrier(lab: Lab, host: PcpHost) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = started(lab)
    opened = read_port(host.ask(natpmp_map(PORT, opcode=NATPMP_UDP, suggested=EXTERNAL_PORT, lifetime=2)))
    assert (opened.result, opened.external_port, opened.lifetime) == (0, EXTERNAL_PORT, 2)
    assert ports_at(carrier) == [EXTERNAL_PORT]
    poll(lambda: daemon.mappings() == [], PATIENCE, "the end of the mapping")
    poll(lambda: ports_at(carrier) == [], PATIENCE, "its end at the carrier")


def test_a_port_that_no_rule_permits_and_one_of_the_routers_protocol_are_refused(lab: Lab, host: PcpHost) -> None:
    carrier = ScriptedCarrier(lab)
    started(lab)
    assert host.map(80, suggested=EXTERNAL_PORT).result == NOT_AUTHORIZED
    assert read_port(host.ask(natpmp_map(80))).result == 2
    assert host.map(suggested=5351, protocol=UDP).external_port not in (5350, 5351)
    assert host.map(lifetime=0, protocol=UDP).result == 0
    assert ports_at(carrier) == []


def test_what_is_switched_off_is_not_answered(lab: Lab, host: PcpHost) -> None:
    ScriptedCarrier(lab)
    daemon = started(lab, pcp_server="0", natpmp_server="0")
    for octets in (announce(LAN_ADDRESS), NATPMP_ADDRESS):
        assert host.ask_once(octets) is None
    assert daemon.status()["pcp_server"]["addresses"] == []
