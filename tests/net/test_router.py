# SPDX-License-Identifier: Apache-2.0
"""Which addresses are hosts of a LAN that is served, of both families."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface

import pytest

from igdpcp.config import LanConfig
from igdpcp.net.links import DefaultRoute, LinkSnapshot
from igdpcp.net.router import KNOWN_LIMIT, RouterView

ADDRESSES = (
    ("br-lan", "192.168.1.1/24"),
    ("br-lan", "192.168.1.2/24"),
    ("br-lan", "2600:1::1/60"),
    ("br-lan", "fe80::1/64"),
    ("br-guest", "192.168.2.1/24"),
    ("br-guest", "fe80::2/64"),
    ("wan", "2600:9::1/64"),
    ("wan", "100.64.0.2/24"),
    ("wan", "fe80::3/64"),
)
INDEXES = {"br-lan": 5, "br-guest": 6, "wan": 2}


def router(addresses=ADDRESSES, indexes=INDEXES):
    view = RouterView((LanConfig(name="home", device="br-lan"), LanConfig(name="guest", device="br-guest")), "wan")
    view.update(LinkSnapshot(indexes, tuple((device, ip_interface(text)) for device, text in addresses), ()))
    return view


@pytest.mark.parametrize(
    ("address", "lan", "guest"),
    [
        ("192.168.1.50", True, False),
        ("192.168.2.50", False, True),
        ("192.168.1.1", False, False),
        ("192.168.1.2", False, False),
        ("192.168.1.0", False, False),
        ("192.168.1.255", False, False),
        ("2600:1::50", True, False),
        ("2600:1:0:f::50", True, False),
        ("2600:1:0:10::50", False, False),
        ("2600:1::1", False, False),
        ("2600:9::50", False, False),
        ("fe80::50", True, True),
        ("fe80:0:0:1::50", True, True),
        ("fe80::1", False, True),
        ("fe80::3", True, True),
        ("62.0.0.200", False, False),
    ],
)
def test_hosts_of_each_lan(address, lan, guest):
    view = router()
    assert view.on_lan_device(ip_address(address), "br-lan") is lan
    assert view.on_lan_device(ip_address(address), "br-guest") is guest
    assert not view.on_lan_device(ip_address(address), "wan")
    anywhere = (lan or guest) and not address.startswith("fe80")
    assert view.on_lan(ip_address(address)) is anywhere
    assert view.in_lan(ip_address(address), "home") is (lan and anywhere)
    assert view.in_lan(ip_address(address), "guest") is (guest and anywhere)


def test_a_link_local_host_is_on_no_lan_that_has_no_ipv6():
    view = router(ADDRESSES[:2])
    assert not view.on_lan_device(ip_address("fe80::50"), "br-lan")


@pytest.mark.parametrize(
    ("address", "inside"),
    [("192.168.1.1", True), ("192.168.2.9", True), ("2600:1::1", True), ("fe80::1", False), ("100.64.0.2", False)],
)
def test_addresses_that_lie_in_a_lan(address, inside):
    assert router().is_lan_address(ip_address(address)) is inside


def test_the_wan_address_is_of_ipv4():
    assert router().wan_address == ip_address("100.64.0.2")


def test_a_device_that_was_made_again_makes_another_lan():
    before, after = router(), router(indexes={**INDEXES, "br-lan": 7})
    assert [lan.interface for lan in before.lans] == [lan.interface for lan in after.lans]
    assert {lan.device for lan in set(before.lans) - set(after.lans)} == {"br-lan"}


def test_addresses_that_fade_still_lead_to_hosts_and_are_still_our_own():
    view = RouterView((LanConfig(name="home", device="br-lan"),), "wan")
    fading = (("br-lan", ip_interface("2600:1::1/64")),)
    view.update(LinkSnapshot(INDEXES, (("br-lan", ip_interface("192.168.1.1/24")),), (), unnamed=fading))
    assert [str(lan.address) for lan in view.lans] == ["192.168.1.1"]
    assert view.on_lan(ip_address("2600:1::50"))
    assert not view.on_lan(ip_address("2600:1::1"))


def test_the_internet_is_behind_the_devices_of_ipv6_default_routes_that_are_no_lans():
    routes = tuple(DefaultRoute(device, None, 0) for device in ("wan", "wwan0", "br-lan"))
    view = RouterView((LanConfig(name="home", device="br-lan"),), "wan")
    view.update(LinkSnapshot(INDEXES, (), (), default_routes6=routes))
    assert view.wan6_devices == {"wan", "wwan0"}


def test_what_was_said_of_an_address_holds_until_the_next_look_and_not_for_any_number_of_them():
    view = router()
    host = ip_address("192.168.1.50")
    assert view.on_lan_device(host, "br-lan")
    for number in range(3 * KNOWN_LIMIT):
        view.on_lan_device(ip_address("2600:1::") + number, "br-lan")
    assert len(view._known) <= KNOWN_LIMIT
    assert view.on_lan_device(host, "br-lan")
    view.update(LinkSnapshot(INDEXES, (("br-lan", ip_interface("192.168.1.50/24")),), ()))
    assert not view.on_lan_device(host, "br-lan")
