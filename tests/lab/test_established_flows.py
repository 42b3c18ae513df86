# SPDX-License-Identifier: Apache-2.0
"""What becomes of open connections when a mapping ends, or its port leads to another host."""

from __future__ import annotations

import contextlib
import itertools
import socket
from typing import Any

import pytest

from tests.lab import topology
from tests.lab.carrier import ScriptedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import Host, poll
from tests.lab.probes import KINDS
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

ARRIVES, STAYS_AWAY, PATIENCE = 5.0, 0.5, 10.0
BOTH_BACKENDS = pytest.mark.parametrize("firewall", ["fw4", "iptables"])
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])
WAN, LAN, LAN2 = topology.ROUTER_WAN_ADDRESS, topology.LAN_ADDRESS, topology.LAN2_ADDRESS
_words = itertools.count()


def started(lab: Lab, upstream: dict[str, str] | None = None, **main: str) -> Igdpcpd:
    """A router that serves alone, unless told otherwise."""
    backend = "iptables" if lab.firewall == "iptables" else "nftables"
    return Igdpcpd(lab, backend, main=main, upstream={"type": "none"} if upstream is None else upstream)


def bound(host: Host, protocol: str, port: int) -> socket.socket:
    sock = host.socket(KINDS[protocol])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", port))
    sock.settimeout(ARRIVES)
    return sock


class Flow:
    """A connection from ``peer`` to a server on a LAN host, or datagrams to it that were answered."""

    def __init__(self, protocol: str, peer: Host, to: tuple[str, int], server: socket.socket) -> None:
        self.client = peer.socket(KINDS[protocol])
        self.client.settimeout(ARRIVES)
        self._server = server
        self.client.connect(to)
        self._accepted = server.accept()[0] if protocol == "tcp" else None
        assert self.goes_on()

    def goes_on(self, seconds: float = ARRIVES) -> bool:
        """Whether what the peer sends arrives, and is answered."""
        word = f"word {next(_words)}".encode()
        with contextlib.suppress(OSError):
            self.client.send(word)
            if self._accepted:
                self._accepted.settimeout(seconds)
                heard = self._accepted.recv(100)
                self._accepted.send(heard)
            else:
                self._server.settimeout(seconds)
                heard, peer = self._server.recvfrom(100)
                self._server.sendto(heard, peer)
            return heard == word and self.client.recv(100) == word
        return False


@BOTH_BACKENDS
@PROTOCOLS
def test_as_a_rule_connections_outlive_their_mapping(firewall: str, protocol: str) -> None:
    with Lab(firewall=firewall) as lab:
        started(lab)
        client = soap_client(lab.lan)
        assert client.add(protocol, 8080, LAN, 8000)
        server = bound(lab.lan, protocol, 8000)
        server.listen() if protocol == "tcp" else None
        flow = Flow(protocol, lab.carrier, (WAN, 8080), server)
        assert client.delete(protocol, 8080)
        assert flow.goes_on()


@BOTH_BACKENDS
@PROTOCOLS
def test_with_cut_flows_exactly_the_mappings_connections_end_with_it(firewall: str, protocol: str) -> None:
    with Lab(firewall=firewall) as lab:
        daemon = started(lab, cut_flows="1")
        servers = {}
        for host, port in ((lab.lan, 8000), (lab.lan, 8001), (lab.lan2, 8000)):
            servers[host, port] = bound(host, protocol, port)
            if protocol == "tcp":
                servers[host, port].listen()
        mapped = {8080: (lab.lan, 8000), 8081: (lab.lan, 8001), 8082: (lab.lan2, 8000), 8083: (lab.lan, 8000)}
        for port, (host, to) in mapped.items():
            assert soap_client(host).add(protocol, port, host.address, to)
        flows: dict[Any, Flow] = {
            port: Flow(protocol, lab.carrier, (WAN, port), servers[where]) for port, where in mapped.items()
        }
        hairpin = Flow(protocol, lab.lan2, (WAN, 8080), servers[lab.lan, 8000])

        assert soap_client(lab.lan).delete(protocol, 8080)

        assert not flows[8080].goes_on(STAYS_AWAY), daemon.log()
        assert not hairpin.goes_on(STAYS_AWAY)
        assert [flows[port].goes_on() for port in (8081, 8082, 8083)] == [True] * 3


@BOTH_BACKENDS
@PROTOCOLS
def test_with_cut_flows_a_lease_that_ends_ends_its_connections(firewall: str, protocol: str) -> None:
    with Lab(firewall=firewall) as lab:
        daemon = started(lab, cut_flows="1")
        server = bound(lab.lan, protocol, 8000)
        server.listen() if protocol == "tcp" else None
        assert soap_client(lab.lan).add(protocol, 8080, LAN, 8000, lease=3)
        flow = Flow(protocol, lab.carrier, (WAN, 8080), server)
        poll(lambda: not daemon.mappings(), PATIENCE, "the end of the lease")
        poll(lambda: not flow.goes_on(STAYS_AWAY), PATIENCE, f"the end of the connection:\n{daemon.log()}")


@BOTH_BACKENDS
@PROTOCOLS
def test_with_cut_flows_and_no_nat_the_mappings_connections_end_with_it(firewall: str, protocol: str) -> None:
    with Lab(firewall=firewall, nat=False) as lab:
        ScriptedCarrier(lab, third_party=True)
        started(lab, {}, cut_flows="1")
        client = soap_client(lab.lan)
        flows = []
        for port in (8000, 8001):
            assert client.add(protocol, port, LAN, port)
            server = bound(lab.lan, protocol, port)
            server.listen() if protocol == "tcp" else None
            flows.append(Flow(protocol, lab.carrier, (LAN, port), server))
        assert client.delete(protocol, 8000)
        assert not flows[0].goes_on(STAYS_AWAY)
        assert flows[1].goes_on()


@BOTH_BACKENDS
@pytest.mark.parametrize("began", ["peer", "client"])
def test_a_udp_port_that_leads_to_another_host_leads_there_for_old_peers_too(firewall: str, began: str) -> None:
    with Lab(firewall=firewall) as lab:
        daemon = started(lab)
        old, new = bound(lab.lan, "udp", 8000), bound(lab.lan2, "udp", 8000)
        peer = bound(lab.carrier, "udp", 40000)
        assert soap_client(lab.lan).add("udp", 8080, LAN, 8000)
        if began == "client":
            old.sendto(b"first", (topology.CARRIER_ADDRESS, 40000))
            assert peer.recvfrom(100) == (b"first", (WAN, 8080))
        peer.sendto(b"to the old one", (WAN, 8080))
        assert old.recv(100) == b"to the old one"

        assert soap_client(lab.lan).delete("udp", 8080)
        assert soap_client(lab.lan2).add("udp", 8080, LAN2, 8000)

        peer.sendto(b"to the new one", (WAN, 8080))
        assert new.recv(100) == b"to the new one", daemon.log()
        old.settimeout(STAYS_AWAY)
        with pytest.raises(TimeoutError):
            old.recv(100)
