# SPDX-License-Identifier: Apache-2.0
"""Which WAN is in use and who is asked behind it: what is written, else what DHCP says, else a guess."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface

import pytest

from igdpcp.config import UpstreamConfig
from igdpcp.daemon.pcp_servers import sections_in_use, servers_behind
from igdpcp.net.dhcp import DhcpAnswer
from igdpcp.net.links import DefaultRoute, LinkSnapshot
from igdpcp.net.router import Wan
from igdpcp.pcp.discovery import ANYCAST, Origin, Server

ROUTER = IPv4Address("100.64.12.1")
WAN = Wan("wan", IPv4Address("100.64.12.34"), ROUTER)
TOLD = bytes.fromhex("04 c0000201")
TOLD_6 = bytes.fromhex("0056 0010 20010db800af00000000000000000001")
SECTION = UpstreamConfig(name="isp")


def shown(servers: tuple[Server, ...]) -> list[tuple[Origin, str]]:
    return [(server.origin, " ".join(map(str, server.addresses))) for server in servers]


def test_iwf_001_what_dhcp_names_is_asked_when_nothing_is_configured() -> None:
    answers = [DhcpAnswer(4, "wan", TOLD), DhcpAnswer(4, "wan2", bytes.fromhex("04 c0000202"))]
    assert shown(servers_behind([SECTION], WAN, ["wan6"], answers)) == [(Origin.DHCPV4, "192.0.2.1")]


def test_a_configured_server_is_asked_whatever_dhcp_says() -> None:
    section = UpstreamConfig(name="isp", server=("100.64.0.9", "2001:db8::9"))
    found = servers_behind([section], WAN, [], [DhcpAnswer(4, "wan", TOLD)])
    assert shown(found) == [(Origin.CONFIGURED, "100.64.0.9 2001:db8::9")]
    assert found[0].identity == "isp"


def test_dhcpv6_may_have_answered_on_another_device_that_leads_to_the_internet() -> None:
    answers = [DhcpAnswer(6, "wan6", TOLD_6), DhcpAnswer(6, "br-lan", TOLD_6), DhcpAnswer(6, "wwan0", TOLD_6)]
    assert shown(servers_behind([SECTION], WAN, ["wan6"], answers)) == [(Origin.DHCPV6, "2001:db8:af::1")]


def test_the_default_router_is_the_guess_and_the_anycast_address_only_when_asked_for() -> None:
    assert shown(servers_behind([SECTION], WAN, [], [])) == [(Origin.ROUTER, str(ROUTER))]
    anycast = UpstreamConfig(name="isp", anycast=True)
    assert [server.addresses for server in servers_behind([anycast], WAN, [], [])] == [(ROUTER,), ANYCAST]


def test_dhcp_can_be_disregarded() -> None:
    section = UpstreamConfig(name="isp", dhcp=False)
    assert shown(servers_behind([section], WAN, [], [DhcpAnswer(4, "wan", TOLD)])) == [(Origin.ROUTER, str(ROUTER))]


def test_nonsense_of_dhcp_is_reported_and_the_guess_stays(caplog: pytest.LogCaptureFixture) -> None:
    answers = [DhcpAnswer(4, "wan", b"\x03abc"), DhcpAnswer(6, "wan", b"\0")]
    assert shown(servers_behind([SECTION], WAN, [], answers)) == [(Origin.ROUTER, str(ROUTER))]
    assert "event=dhcp_unreadable device=wan" in caplog.text


def test_unreadable_options_of_dhcpv6_are_told_of_when_they_are_new(caplog: pytest.LogCaptureFixture) -> None:
    for octets in (b"\0\1", b"\0\1", b"\0\1\2", b"\0\1\2"):
        servers_behind([SECTION], WAN, [], [DhcpAnswer(6, "wan", octets)])
    assert caplog.text.count("event=dhcp_unreadable") == 2


@pytest.mark.parametrize(
    ("section", "answers"),
    [
        (UpstreamConfig(name="isp", device="wan", server=("192.0.2.1",)), []),
        (SECTION, [DhcpAnswer(4, "wan", TOLD)]),
        (SECTION, [DhcpAnswer(6, "wan", TOLD_6)]),
        (UpstreamConfig(name="isp", anycast=True), []),
    ],
)
def test_a_server_is_marked_with_the_device_that_it_is_behind(
    section: UpstreamConfig, answers: list[DhcpAnswer]
) -> None:
    for server in servers_behind([section], WAN, [], answers):
        assert not server.made(server.mark.replace("wan/", "lte/"))


def test_a_configured_server_that_is_bound_to_no_device_is_the_same_behind_any() -> None:
    (server,) = servers_behind([UpstreamConfig(name="isp", server=("192.0.2.1",))], WAN, [], [])
    assert server.made("lte/192.0.2.1 192.0.2.1")


def test_iwf_054_only_what_was_written_or_told_may_be_asked_for_others() -> None:
    trusted = {Origin.CONFIGURED, Origin.DHCPV4, Origin.DHCPV6}
    assert {origin for origin in Origin if Server("x", (ROUTER,), origin).trusted} == trusted


ONE, OTHER, SPARE = (UpstreamConfig(name=name, device=device) for name, device in
                     (("one", "wan"), ("other", "wan"), ("spare", "lte")))  # fmt: skip


@pytest.mark.parametrize(
    ("addressed", "routed", "expected"),
    [
        (["wan", "lte"], ["wan", "lte"], ["one", "other"]),
        (["wan", "lte"], ["lte"], ["spare"]),
        (["wan", "lte"], [], ["one", "other"]),
        (["lte"], [], ["spare"]),
        ([], [], ["one", "other"]),
        (["br-lan"], [], ["one", "other"]),
    ],
)
def test_the_first_wan_that_is_up_is_used_with_all_its_servers(
    addressed: list[str], routed: list[str], expected: list[str]
) -> None:
    addresses = tuple((name, IPv4Interface("100.64.1.2/24")) for name in addressed)
    routes = tuple(DefaultRoute(name, ROUTER, 0) for name in routed)
    found = sections_in_use([ONE, OTHER, SPARE], LinkSnapshot({}, addresses, routes))
    assert [section.name for section in found] == expected


def test_a_section_without_a_device_follows_the_default_route() -> None:
    sections = [SPARE, UpstreamConfig(name="any")]
    route = DefaultRoute("wan", ROUTER, 0)
    assert [s.name for s in sections_in_use(sections, LinkSnapshot({}, (), (route,)))] == ["any"]
    assert [s.name for s in sections_in_use(sections, LinkSnapshot({}, (), ()))] == ["spare"]
