# SPDX-License-Identifier: Apache-2.0
"""Which ports programs of the router hold on one address, by the kernel's word."""

from __future__ import annotations

import socket

import pytest

from igdpcp.errors import OurFault
from igdpcp.model import Protocol
from igdpcp.net import listeners
from igdpcp.net.listeners import Listeners
from tests.support.ssdp_lan import CLIENT, DEVICE, ROUTER, two_namespaces

pytestmark = pytest.mark.lab
KINDS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}


@pytest.fixture(scope="module")
def homes():
    with two_namespaces() as homes:
        yield homes


def ask(protocol, port):
    listeners.check()
    with Listeners(DEVICE) as kernel:
        return kernel.hold(protocol, ROUTER, port)


def program(protocol, family, address, device="", only6=None):
    """A socket that waits for strangers."""
    sock = socket.socket(family, KINDS[protocol])
    if only6 is not None:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only6)
    if device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode() + b"\0")
    sock.bind((address, 0))
    if protocol is Protocol.TCP:
        sock.listen()
    return sock


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(
    ("family", "address", "options", "held"),
    [
        (socket.AF_INET, "", {}, True),
        (socket.AF_INET, str(ROUTER), {}, True),
        (socket.AF_INET, "127.0.0.1", {}, False),
        (socket.AF_INET, "", {"device": DEVICE}, True),
        (socket.AF_INET, "", {"device": "lo"}, False),
        (socket.AF_INET6, "::", {"only6": 0}, True),
        (socket.AF_INET6, "::", {"only6": 1}, False),
        (socket.AF_INET6, f"::ffff:{ROUTER}", {"only6": 0}, True),
        (socket.AF_INET6, "::1", {}, False),
    ],
)
def test_a_port_is_held_by_who_would_get_what_a_stranger_sends_there(homes, protocol, family, address, options, held):
    def scenario():
        with program(protocol, family, address, **options) as sock:
            port = sock.getsockname()[1]
            found = ask(protocol, port)
            other = Protocol.UDP if protocol is Protocol.TCP else Protocol.TCP
            assert not ask(other, port)
        return found, ask(protocol, port)

    assert homes.router.inside(scenario) == (held, False)


@pytest.mark.parametrize("protocol", Protocol)
def test_what_the_router_sends_out_holds_no_port(homes, protocol):
    def scenario():
        peer = homes.client.socket(KINDS[protocol])
        with peer, socket.socket(socket.AF_INET, KINDS[protocol]) as sock:
            peer.bind((str(CLIENT), 0))
            if protocol is Protocol.TCP:
                peer.listen()
            sock.connect(peer.getsockname())
            assert sock.getsockname()[0] == str(ROUTER)
            return ask(protocol, sock.getsockname()[1])

    assert homes.router.inside(scenario) is False


def test_a_kernel_that_cannot_tell_is_told_from_one_that_finds_nobody(homes, monkeypatch):
    monkeypatch.setattr(listeners, "NETLINK_SOCK_DIAG", 31)
    with pytest.raises(OurFault, match="install kmod-inet-diag"):
        homes.router.inside(lambda: ask(Protocol.TCP, 1))


def test_a_kernel_module_that_answers_for_nobody_is_noticed(homes, monkeypatch):
    monkeypatch.setattr(Listeners, "hold", lambda *_: False)
    with pytest.raises(OurFault, match="install kmod-inet-diag"):
        homes.router.inside(lambda: ask(Protocol.TCP, 1))


def test_where_the_device_is_gone_a_port_can_still_be_asked_for(homes):
    def scenario():
        with program(Protocol.TCP, socket.AF_INET, "") as sock, Listeners("ppp-gone") as kernel:
            return kernel.hold(Protocol.TCP, ROUTER, sock.getsockname()[1])

    assert homes.router.inside(scenario) is True
