# SPDX-License-Identifier: Apache-2.0
"""Which PCP servers there are, and which address of which of them is asked next (RFC 6887 section 8.1, RFC 7488)."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from igdpcp.errors import MalformedPcp
from igdpcp.model import IPAddress
from igdpcp.values import dataclass

OPTION_V6_PCP_SERVER = 86  # RFC 7291 section 5
ROUND_INTERVAL = 900.0  # RFC 7488 section 3: when every address has failed, begin anew after 15 minutes
ANYCAST = (IPv4Address("192.0.0.9"), IPv6Address("2001:1::1"))  # RFC 7723 section 2
SERVERS_LIMIT = 16  # of one DHCP answer; more are not looked at
ADDRESSES_LIMIT = 8  # of one server; all of them are stored with each grant

_IPV4_LENGTH = 4
_IPV6_LENGTH = 16
_OF_DEVICE = "/"  # behind the name of the device, in identities and marks
_TLV_HEAD = 4  # RFC 8415 section 21.1: option-code, option-len


class Origin(enum.StrEnum):
    """Who named a server; the strings are for people."""

    CONFIGURED = "configured"
    DHCPV4 = "told by DHCP (option 158)"
    DHCPV6 = "told by DHCPv6 (option 86)"
    ROUTER = "the WAN's default router"
    ANYCAST = "the anycast address"


@dataclass(frozen=True, slots=True)
class Server:
    """One server with all its addresses, the preferred one first.

    ``identity`` is what nonces are derived for: it is no address of a server that has several, for they share the nonce
    (RFC 7488 section 5). ``device``: behind which it is, empty when it is the same one behind any. ``third_party``
    False: it may not be asked on behalf of others, whoever named it.
    """

    identity: str
    addresses: tuple[IPAddress, ...]
    origin: Origin
    device: str = ""
    third_party: bool = True

    @property
    def trusted(self) -> bool:
        """Whether it may be asked on behalf of other hosts (RFC 6970 section 6: THIRD_PARTY)."""
        return self.third_party and self.origin in (Origin.CONFIGURED, Origin.DHCPV4, Origin.DHCPV6)

    @property
    def guessed(self) -> bool:
        """Whether nobody said that there is a server."""
        return self.origin in (Origin.ROUTER, Origin.ANYCAST)

    @property
    def mark(self) -> str:
        """What is stored of it with what it granted, so that it is recognised under another identity."""
        return _mark(self.identity, self.addresses, self.device)

    def made(self, mark: str) -> bool:
        """Whether the mark is this server's: it has its identity, or one of its addresses.

        What is behind two devices is two even where both have the same private address.
        """
        if mark == self.mark:
            return True
        ours, theirs = self.mark.split(), mark.split()
        device, other = _device(ours), _device(theirs)
        if device and other and device != other:
            return False
        return any(not word.endswith(_OF_DEVICE) for word in set(ours).intersection(theirs))


@lru_cache(maxsize=16)  # every grant of a server carries it
def _mark(identity: str, addresses: tuple[IPAddress, ...], device: str) -> str:
    words = list(dict.fromkeys([*identity.split(), *map(str, addresses)]))
    if device and not _device(words):
        words.append(device + _OF_DEVICE)
    return " ".join(words)


def _device(words: Iterable[str]) -> str:
    return next((word.partition(_OF_DEVICE)[0] for word in words if _OF_DEVICE in word), "")


def known_as(servers: Iterable[Server], known: Iterable[Server]) -> tuple[Server, ...]:
    """The servers under the identities by which they are known, for those own the nonces that were used.

    Lists change: the default router turns out to be what DHCP names, or DHCP names another address of a server.
    """
    found, left = list[Server](), list(known)
    for server in servers:
        if same := next((each for each in left if server.made(each.mark)), None):
            left = [each for each in left if each.identity != same.identity]
            server = replace(server, identity=same.identity)
        found.append(server)
    return tuple(found)


def learnt(addresses: Iterable[IPAddress], origin: Origin, device: str = "") -> Server | None:
    """The server that one list of a DHCP option describes; None when no address in it can be a server's."""
    usable = tuple(dict.fromkeys(address for address in map(plain, addresses) if _is_host(address)))[:ADDRESSES_LIMIT]
    if not usable:
        return None
    names = " ".join(sorted(map(str, usable)))
    return Server(f"{device}{_OF_DEVICE}{names}" if device else names, usable, origin, device)


def servers_of_dhcpv4(option: bytes, device: str = "") -> list[Server]:
    """The servers in the payload of DHCPv4 option 158 (RFC 7291 section 4): one for each list in it.

    What stands before a list that is cut short or crooked counts.
    """
    found: list[Server | None] = []
    at = 0
    while at < len(option) and len(found) < SERVERS_LIMIT:
        length = option[at]
        octets = option[at + 1 : at + 1 + length]
        if not length or length % _IPV4_LENGTH or len(octets) != length:
            break
        found.append(learnt(map(IPv4Address, _pieces(octets, _IPV4_LENGTH)), Origin.DHCPV4, device))
        at += 1 + length
    return [server for server in found if server]


def servers_of_dhcpv6(options: bytes, device: str = "") -> list[Server]:
    """The servers in a sequence of DHCPv6 options: one for each instance of option 86 (RFC 7291 section 5).

    Raises MalformedPcp when the octets are no options.
    """
    found: list[Server | None] = []
    for code, payload in _options(options):
        if code == OPTION_V6_PCP_SERVER and payload and len(payload) % _IPV6_LENGTH == 0:
            found.append(learnt(map(IPv6Address, _pieces(payload, _IPV6_LENGTH)), Origin.DHCPV6, device))
    return [server for server in found if server][:SERVERS_LIMIT]


def plain(address: str | IPAddress) -> IPAddress:
    """The address without a zone; an IPv4-mapped one says that somebody has that IPv4 address (RFC 7291 section 5)."""
    if isinstance(address, IPv4Address):
        return address
    parsed = ip_address(str(address).partition("%")[0])
    return (parsed.ipv4_mapped or parsed) if isinstance(parsed, IPv6Address) else parsed


class Choice:
    """The servers and their addresses in the order in which they are tried, and where we are.

    One server is asked at a time: control points are shown one external address. An address that answers is kept until
    it stops answering. IPv4 mappings asked for over IPv6 need THIRD_PARTY: only trusted servers are asked there.
    """

    def __init__(self, servers: Iterable[Server]) -> None:
        self._all = [
            (server, address)
            for server in servers
            for address in server.addresses
            if server.trusted or address.version == 4
        ]
        self._at = 0
        self._untried = len(self._all) - 1
        self._refusing: set[str] = set()

    @property
    def server(self) -> Server:
        """The server that is asked."""
        return self._all[self._at][0]

    @property
    def address(self) -> IPAddress:
        """The address at which it is asked."""
        return self._all[self._at][1]

    def __len__(self) -> int:
        return len(self._all)

    def prefer(self, identity: str, address: IPAddress) -> None:
        """Begin with this server, if it is among them, and with this address of it, if it has it."""
        places = [at for at, (server, _) in enumerate(self._all) if server.identity == identity]
        self._at = next((at for at in places if self._all[at][1] == address), places[0] if places else 0)

    def answered(self) -> None:
        """It answers: should it stop, everything else is tried before anything is tried again."""
        self._untried = len(self._all) - 1

    def refused(self) -> None:
        """This server answers and does not do what is needed: it is not tried again in this round."""
        self._refusing.add(self.server.identity)

    def failed(self) -> bool:
        """Go on to what is tried next; False: all have failed in this round, and it stays where it is."""
        at = self._at
        while self._untried:
            self._untried -= 1
            at = (at + 1) % len(self._all)
            if self._all[at][0].identity not in self._refusing:
                self._at = at
                return True
        return False

    def begin_anew(self) -> None:
        """Begin another round, with the first address of all."""
        self._at = 0
        self.go_round()

    def go_round(self) -> None:
        """Begin another round where we are."""
        self._untried = len(self._all) - 1
        self._refusing.clear()


def _options(octets: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(octets):
        head = octets[at : at + _TLV_HEAD]
        length = int.from_bytes(head[2:], "big")
        payload = octets[at + _TLV_HEAD : at + _TLV_HEAD + length]
        if len(head) < _TLV_HEAD or len(payload) < length:
            raise MalformedPcp("DHCPv6 options are cut short")
        yield int.from_bytes(head[:2], "big"), payload
        at += _TLV_HEAD + length


def _pieces(octets: bytes, size: int) -> Iterator[bytes]:
    return (octets[at : at + size] for at in range(0, len(octets), size))


def _is_host(address: IPAddress) -> bool:
    """RFC 7291 sections 4 and 5: multicast and loopback addresses are dropped; others name no host either."""
    if address.is_multicast or address.is_loopback or address.is_unspecified:
        return False
    return address != IPv4Address("255.255.255.255")
