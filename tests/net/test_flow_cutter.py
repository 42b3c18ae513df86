# SPDX-License-Identifier: Apache-2.0
"""Flows of connection tracking that are cut, and those that are not: a flow that was cut begins anew."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from ipaddress import ip_address

import pytest

from igdpcp.model import Protocol
from igdpcp.net import flow_cutter
from igdpcp.net.flow_cutter import FlowCutter
from igdpcp.openings import Flows
from tests.netfilter.topology import command, inside, namespace

pytestmark = pytest.mark.lab
COUNT_FIRST_PACKETS = """\
table inet t {
	counter first {}
	chain out { type filter hook output priority 0; ct state new counter name first; }
}
"""


@pytest.fixture(scope="module")
def host():
    with namespace() as name:
        command("ip", "link", "set", "lo", "up", namespace=name)
        command("nft", "-f", "-", namespace=name, stdin=COUNT_FIRST_PACKETS)
        yield name


class Talk:
    """Datagrams from one socket to another, and answers: one flow, whose first packet is counted."""

    def __init__(self, host: str, address: str) -> None:
        self._host = host
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.client, self.server = (inside(host, lambda: socket.socket(family, socket.SOCK_DGRAM)) for _ in range(2))
        for sock in (self.client, self.server):
            sock.settimeout(5)
            sock.bind((address, 0))
        self.go_on()

    def go_on(self) -> bool:
        """Whether the packets belonged to a flow that was known."""
        before = self._first_packets()
        self.client.sendto(b"ping", self.server.getsockname())
        _, peer = self.server.recvfrom(10)
        self.server.sendto(b"pong", peer)
        self.client.recvfrom(10)
        return self._first_packets() == before

    def _first_packets(self) -> int:
        listed = command("nft", "list", "counter", "inet", "t", "first", namespace=self._host)
        found = re.search(r"packets (\d+)", listed)
        assert found
        return int(found[1])

    def flows(self, **changes: object) -> Flows:
        """This one, said as the flow of a mapping."""
        address, port = self.server.getsockname()[:2]
        end = ip_address(address), port
        return Flows(
            **{"protocol": Protocol.UDP, "host": end[0], "port": port, "destinations": frozenset([end])} | changes
        )


def cut(host: str, *flows: Flows, local: bool = False) -> None:
    async def scenario() -> None:
        cutter = FlowCutter(lambda _: local)
        await asyncio.wait_for(asyncio.gather(*map(cutter.cut, flows)), 20)
        await cutter.close()

    inside(host, lambda: asyncio.run(scenario()))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_only_the_flows_that_are_named_are_cut(host: str, address: str) -> None:
    one, other, third = (Talk(host, address) for _ in range(3))
    assert one.go_on()
    cut(host, one.flows())
    assert not one.go_on()
    assert other.go_on()
    cut(host, one.flows(), other.flows())
    assert not one.go_on()
    assert not other.go_on()
    assert third.go_on()


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": Protocol.TCP},
        {"port": 1},
        {"destinations": frozenset([(ip_address("127.0.0.2"), 9)])},
        {"remote_host": ip_address("127.0.0.2")},
        {"spared": frozenset([ip_address("127.0.0.1")])},
        {"remote_port": 1},
    ],
)
def test_a_flow_that_differs_in_anything_goes_on(host: str, changes: dict[str, object]) -> None:
    talk = Talk(host, "127.0.0.1")
    cut(host, talk.flows(**changes))
    assert talk.go_on()


def test_untranslated_flows_between_lans_go_on(host: str) -> None:
    talk = Talk(host, "127.0.0.1")
    cut(host, talk.flows(), local=True)
    assert talk.go_on()


def test_a_flow_that_the_host_began_is_cut_where_that_is_asked_for(host: str) -> None:
    talk = Talk(host, "127.0.0.1")
    address, port = talk.client.getsockname()
    began = talk.flows(host=ip_address(address), port=port, destinations=frozenset([(ip_address(address), port)]))
    cut(host, began)
    assert talk.go_on()
    cut(host, Flows(Protocol.UDP, began.host, port, began.destinations, outgoing=True))
    assert not talk.go_on()


def test_many_flows_of_one_port_are_cut_in_several_rounds(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_cutter, "ROUND_LIMIT", 2)
    talks = [Talk(host, "127.0.0.1")]
    for _ in range(4):
        more = Talk(host, "127.0.0.1")
        more.server = talks[0].server
        more.go_on()
        talks.append(more)
    cut(host, talks[0].flows())
    assert [talk.go_on() for talk in talks] == [False] * 5


def test_a_kernel_without_ctnetlink_is_told_of_once_and_nobody_waits(
    host: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(flow_cutter, "NETLINK_NETFILTER", 31)
    monkeypatch.setattr(logging.getLogger("igdpcp"), "propagate", True)
    talk = Talk(host, "127.0.0.1")

    async def scenario() -> None:
        cutter = FlowCutter(lambda _: False)
        for _ in range(3):
            await asyncio.wait_for(cutter.cut(talk.flows()), 10)
        await cutter.close()

    inside(host, lambda: asyncio.run(scenario()))
    assert talk.go_on()
    assert len(caplog.records) == 1
    assert "kmod-nf-conntrack-netlink" in caplog.text
