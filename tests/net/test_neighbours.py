# SPDX-License-Identifier: Apache-2.0
"""What the kernel's neighbour table says of a LAN host, in network namespaces."""

from __future__ import annotations

import contextlib
import socket
from ipaddress import ip_address
from pathlib import Path

import pytest

from igdpcp.net.neighbours import link_layer_address
from tests.support.ssdp_lan import CLIENT, CLIENT_DEVICE, CLIENT_GUA, DEVICE, ROUTER, ROUTER_GUA, two_namespaces

pytestmark = pytest.mark.lab
DISCARD_PORT = 9


@pytest.fixture(scope="module")
def homes():
    with two_namespaces() as homes:
        homes.client.inside(knock)
        yield homes


def knock():
    """Have the router answer at both addresses, for which it has to know who asks."""
    for address in (ROUTER, ROUTER_GUA):
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection((str(address), DISCARD_PORT), 5)


def known(homes, address, device=DEVICE):
    return homes.router.inside(lambda: link_layer_address(device, address))


@pytest.mark.parametrize("address", [CLIENT, CLIENT_GUA])
def test_every_address_of_a_host_leads_to_its_link_layer_address(homes, address):
    own = homes.client.run(["ip", "-o", "link", "show", CLIENT_DEVICE]).stdout.partition("link/ether ")[2].split()[0]
    assert known(homes, address) == bytes.fromhex(own.replace(":", ""))


@pytest.mark.parametrize(
    ("address", "device"),
    [("192.168.77.99", DEVICE), ("2600:77::99", DEVICE), (str(CLIENT), "br-none"), ("127.0.0.1", "lo")],
)
def test_who_is_not_there_has_none(homes, address, device):
    assert known(homes, ip_address(address), device) == b""


def test_asking_leaves_nothing_open(homes):
    def opened():
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(100):
            link_layer_address(DEVICE, CLIENT)
        return len(list(Path("/proc/self/fd").iterdir())) - before

    assert homes.router.inside(opened) == 0
