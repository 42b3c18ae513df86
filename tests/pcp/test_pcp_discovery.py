# SPDX-License-Identifier: Apache-2.0
"""PCP servers as DHCP names them (RFC 7291), and in which order they are tried (RFC 7488)."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igdpcp.errors import MalformedPcp
from igdpcp.pcp.discovery import (
    ADDRESSES_LIMIT,
    SERVERS_LIMIT,
    Choice,
    Origin,
    Server,
    servers_of_dhcpv4,
    servers_of_dhcpv6,
)

OPTION_158 = bytes.fromhex("9e 0e 08 c0000201 c0000202 04 c6336401")
OPTION_86 = bytes.fromhex("0056 0020 20010db800af00000000000000000001 00000000000000000000ffffc0000201")


def addresses(servers: list[Server]) -> list[list[str]]:
    return [[str(address) for address in server.addresses] for server in servers]


def server(*texts: str, origin: Origin = Origin.CONFIGURED) -> Server:
    return Server("isp", tuple(map(ip_address, texts)), origin)


def test_each_list_of_option_158_is_one_server() -> None:
    assert addresses(servers_of_dhcpv4(OPTION_158[2:])) == [["192.0.2.1", "192.0.2.2"], ["198.51.100.1"]]


def test_each_instance_of_option_86_is_one_server_and_a_mapped_address_is_an_ipv4_one() -> None:
    other = bytes.fromhex("0056 0010 20010db800af00000000000000000002")
    between = bytes.fromhex("0017 0002 abcd")
    found = servers_of_dhcpv6(OPTION_86 + between + other)
    assert addresses(found) == [["2001:db8:af::1", "192.0.2.1"], ["2001:db8:af::2"]]


def test_the_identity_of_a_learnt_server_does_not_depend_on_the_order_of_its_addresses() -> None:
    one = servers_of_dhcpv4(bytes.fromhex("08 c0000201 c0000202"))
    other = servers_of_dhcpv4(bytes.fromhex("08 c0000202 c0000201"))
    assert one[0].identity == other[0].identity
    assert one[0].addresses != other[0].addresses


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        ("", []),
        ("00", []),
        ("04 c0000201 00 04 c0000202", [["192.0.2.1"]]),
        ("04 c0000201 05 c0000202aa", [["192.0.2.1"]]),
        ("04 c0000201 08 c0000202", [["192.0.2.1"]]),
        ("08 e0000001 7f000001 04 c0000201", [["192.0.2.1"]]),
        ("08 c0000201 c0000201", [["192.0.2.1"]]),
    ],
)
def test_of_a_crooked_option_158_what_stands_before_counts(octets: str, expected: list[list[str]]) -> None:
    assert addresses(servers_of_dhcpv4(bytes.fromhex(octets))) == expected


@pytest.mark.parametrize("octets", ["00", "0056 0010 2001", "0056 ffff 00"])
def test_options_of_dhcpv6_that_are_cut_short_are_the_peers_error(octets: str) -> None:
    with pytest.raises(MalformedPcp):
        servers_of_dhcpv6(bytes.fromhex(octets))


@given(st.binary(max_size=600))
def test_any_octets_give_few_servers_or_the_peers_error(octets: bytes) -> None:
    assert len(servers_of_dhcpv4(octets)) <= SERVERS_LIMIT
    try:
        found = servers_of_dhcpv6(octets)
    except MalformedPcp:
        return
    assert len(found) <= SERVERS_LIMIT


def test_every_address_of_every_server_is_tried_once_in_a_round() -> None:
    choice = Choice([server("192.0.2.1", "192.0.2.2"), server("198.51.100.1")])
    tried = [choice.address]
    while choice.failed():
        tried.append(choice.address)
    assert list(map(str, tried)) == ["192.0.2.1", "192.0.2.2", "198.51.100.1"]
    choice.begin_anew()
    assert (str(choice.address), choice.failed()) == ("192.0.2.1", True)


def test_an_address_that_answered_and_stopped_is_the_last_to_be_tried_again() -> None:
    choice = Choice([server("192.0.2.1", "192.0.2.2", "192.0.2.3")])
    assert choice.failed()
    choice.answered()
    tried = []
    while choice.failed():
        tried.append(str(choice.address))
    assert tried == ["192.0.2.3", "192.0.2.1"]


def test_a_server_that_refuses_is_tried_again_in_the_next_round_but_not_before() -> None:
    choice = Choice(
        [Server("a", (ip_address("192.0.2.1"),), Origin.CONFIGURED), server("198.51.100.1", "198.51.100.2")]
    )
    choice.refused()
    choice.answered()
    while choice.failed():
        assert choice.server.identity == "isp"
    choice.go_round()
    assert choice.failed()
    assert choice.server.identity == "a"


def test_of_one_dhcp_answer_few_servers_and_of_each_few_addresses_are_looked_at() -> None:
    assert len(servers_of_dhcpv4((b"\x04" + ip_address("192.0.2.1").packed) * (SERVERS_LIMIT + 1))) == SERVERS_LIMIT
    assert len(servers_of_dhcpv6(option_86(1) * (SERVERS_LIMIT + 1))) == SERVERS_LIMIT
    (many,) = servers_of_dhcpv6(option_86(255))
    assert [str(address) for address in many.addresses] == [f"2001:db8::{n:x}" for n in range(1, ADDRESSES_LIMIT + 1)]


def option_86(count: int) -> bytes:
    """One instance of option 86."""
    octets = b"".join((ip_address("2001:db8::") + n).packed for n in range(1, count + 1))
    return (86).to_bytes(2, "big") + len(octets).to_bytes(2, "big") + octets
