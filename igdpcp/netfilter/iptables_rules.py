# SPDX-License-Identifier: Apache-2.0
"""Facts and surroundings as iptables rules, without touching any table.

A mapping costs three rules: redirect, source port, forward accept. What would need more is said by rules that mappings
share, and that is where iptables says a little less than nftables does:

- Other hosts' packets are moved off a whole block of 256 source ports as soon as one of its ports is mapped, also those
  of networks that are not served: POSTROUTING cannot match the device on which a packet came. The router's own stay.
- A hairpin to the carrier's address follows every redirect of the WAN device, also one whose external port differs.
- A hairpin's sender is seen with the address that it sent to, and with its external port where that is not its own.

Nothing expires: the rules live while the daemon does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

from igdpcp.model import Endpoint, IPAddress, PcpPeer, Surroundings
from igdpcp.netfilter import layout
from igdpcp.netfilter.desired import (
    Admit,
    Hairpin,
    HairpinSender,
    HairpinTarget,
    Key,
    OwnPort,
    Pass,
    Redirect,
    SourcePort,
    Value,
    device_name,
)

PREFIX = "IGDPCP-"
DST, SRC, FWD, IN = f"{PREFIX}DST", f"{PREFIX}SRC", f"{PREFIX}FWD", f"{PREFIX}IN"
GUARD = f"{PREFIX}GUARD"
LOOP, ALIAS, REACH, SENDER = f"{PREFIX}LOOP", f"{PREFIX}ALIAS", f"{PREFIX}REACH", f"{PREFIX}SENDER"

# POSTROUTING cannot match the device on which a packet came, so a LAN host's packet to an external address is marked
# before its translation. The bit is one that mwan3 and pbr do not use; it is taken off again when nothing translates.
HAIRPIN_MARK = "0x40000000/0x40000000"
_UNMARK = "0x0/0x40000000"

BLOCK = 256  # ports; see above

Options = tuple[tuple[str, str], ...]
Matches = tuple[tuple[str, Options], ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, as ``iptables -A chain`` takes it. ``first``: in front of the others of its chain, not behind them.

    ``matches`` and ``options``: names and values of the parameters. ``target`` may be a chain.
    """

    table: str
    chain: str
    target: str
    in_device: str = ""
    out_device: str = ""
    source: str = ""
    destination: str = ""
    protocol: str = ""
    matches: Matches = ()
    options: Options = ()
    first: bool = False
    ipv6: bool = False


def redirects(device: str) -> str:
    """The chain of a WAN device's redirects."""
    return f"{PREFIX}D-{device_name(device)}"


def source_ports(device: str) -> str:
    """The chain of what leaves by a WAN device."""
    return f"{PREFIX}S-{device_name(device)}"


BEHIND_BANS = FWD  # the jump to it stands in front of the general refusal only (``iptables_place.py``)
JUMPS = (  # the administrator's redirects win, and so do his bans
    Rule("nat", "PREROUTING", DST),
    Rule("nat", "POSTROUTING", SRC, first=True),
    Rule("filter", "FORWARD", FWD),
    Rule("filter", "FORWARD", GUARD, first=True),
    Rule("filter", "FORWARD", GUARD, first=True, ipv6=True),
    Rule("filter", "INPUT", IN, first=True),
    Rule("filter", "INPUT", IN, first=True, ipv6=True),
)

BUILT_IN = {"nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"), "filter": ("INPUT", "FORWARD", "OUTPUT")}
CHAINS = {"nat": (DST, LOOP, ALIAS, REACH, SRC, SENDER), "filter": (FWD, IN, GUARD)}
STATIC_CHAINS = {"nat": (DST, SRC), "filter": (IN, GUARD)}  # hold nothing of a mapping


def rules_of(key: Key, value: Value) -> Iterator[Rule]:
    """The rules that a fact needs for itself alone."""
    match key, value:
        case Redirect(device, _, port, remote), Endpoint() as client:
            protocol = key.protocol.name.lower()
            yield Rule(
                "nat", redirects(device), "DNAT", source=_host(remote) if remote else "", protocol=protocol,
                matches=_port(protocol, "dport", port), options=(("to-destination", str(client)),),
                first=remote is not None,
            )  # fmt: skip
        case SourcePort(device, _, client), int() as port:
            yield _from_client(source_ports(device), key, "MASQUERADE", ("to-ports", str(port)))
        case Pass(_, port, client), _:
            state = ("conntrack", (("ctstate", "DNAT"), ("ctorigdstport", str(port))))
            yield _to_client(key, (state,))
        case Admit(device, _, client, remote), _:
            yield _to_client(key, (), in_device=device_name(device), source=_host(remote) if remote else "")
        case Hairpin(address, _, port), HairpinTarget(client, ""):
            protocol = key.protocol.name.lower()
            yield Rule(
                "nat", ALIAS, "DNAT", destination=_host(address), protocol=protocol,
                matches=_port(protocol, "dport", port), options=(("to-destination", str(client)),),
            )  # fmt: skip
        case HairpinSender(_, client), Endpoint() as external if client.port != external.port:
            yield _from_client(SENDER, key, "SNAT", ("to-source", str(external)))


def shared_rules_of(key: Key, value: Value) -> Iterator[Rule]:
    """The rules that a fact needs together with others; each must be there once while anyone needs it."""
    match key, value:
        case OwnPort(device, _, port), _:
            protocol = key.protocol.name.lower()
            block = port - port % BLOCK
            moved = (("to-ports", layout.ports_text(layout.moved_to(port))),)
            sport = (protocol, (("sport", f"{max(block, 1)}:{block + BLOCK - 1}"),))
            chain = source_ports(device)
            yield Rule("nat", chain, "MASQUERADE", protocol=protocol, matches=(sport,), options=moved)
        case Hairpin(address), HairpinTarget(_, via):
            there = _host(address)
            yield Rule("nat", LOOP, "MARK", destination=there, options=(("set-xmark", HAIRPIN_MARK),))
            sent_to = ("conntrack", (("ctorigdst", str(address)),))
            yield Rule("nat", SENDER, "SNAT", matches=(sent_to,), options=(("to-source", str(address)),))
            if via:
                yield Rule("nat", REACH, redirects(via), destination=there)


def static_rules(surroundings: Surroundings) -> Iterator[Rule]:
    """The rules that no mapping changes, in the order of their chains."""
    wan, lan = sorted(surroundings.wan_devices), sorted(surroundings.lan_devices)
    peers = sorted(surroundings.pcp_peers, key=str)
    for device in map(device_name, wan):
        to_router = ("addrtype", (("dst-type", "LOCAL"),))
        forwarded = ("addrtype", (("src-type", "!LOCAL"),))
        yield Rule("nat", DST, redirects(device), in_device=device, matches=(to_router,))
        yield Rule("nat", SRC, source_ports(device), out_device=device, matches=(forwarded,))
        yield from _from_servers(device, [peer for peer in peers if peer.server.version == 4])
    for device in map(device_name, sorted(surroundings.wan6_devices)):
        yield from _from_servers(device, [peer for peer in peers if peer.server.version == 6])
    for device in map(device_name, sorted(surroundings.shut_devices)):
        for ipv6 in (False, True):
            matches = _port("udp", "dport", layout.PCP_SERVER_PORT)
            yield Rule("filter", GUARD, "DROP", out_device=device, protocol="udp", matches=matches, ipv6=ipv6)
    marked = ("mark", (("mark", HAIRPIN_MARK),))
    translated = ("conntrack", (("ctstate", "DNAT"),))
    for device in map(device_name, lan):
        for chain in (LOOP, ALIAS, REACH):
            yield Rule("nat", DST, chain, in_device=device)
        yield Rule("nat", DST, "MARK", in_device=device, matches=(marked,), options=(("set-xmark", _UNMARK),))
        yield Rule("nat", SRC, SENDER, out_device=device, matches=(marked, translated))


def _host(address: IPv4Address) -> str:
    return f"{address}/255.255.255.255"


def _port(protocol: str, side: str, port: int) -> Matches:
    return ((protocol, ((side, str(port)),)),)


def _from_client(chain: str, key: SourcePort | HairpinSender, target: str, option: tuple[str, str]) -> Rule:
    protocol = key.protocol.name.lower()
    return Rule(
        "nat", chain, target, source=_host(key.client.address), protocol=protocol,
        matches=_port(protocol, "sport", key.client.port), options=(option,), first=True,
    )  # fmt: skip


def _to_client(key: Pass | Admit, more: Matches, in_device: str = "", source: str = "") -> Rule:
    protocol = key.protocol.name.lower()
    return Rule(
        "filter", FWD, "ACCEPT", in_device=in_device, source=source, destination=_host(key.client.address),
        protocol=protocol, matches=(*_port(protocol, "dport", key.client.port), *more),
    )  # fmt: skip


def _from_servers(device: str, peers: list[PcpPeer]) -> Iterator[Rule]:
    for peer in peers:
        yield _answers(device, peer)
    for server in sorted({peer.server for peer in peers}, key=str):
        yield _announcements(device, server)


def _announcements(device: str, server: IPAddress) -> Rule:
    group = f"{layout.ALL_HOSTS}/255.255.255.255" if server.version == 4 else f"{layout.ALL_HOSTS_6}/128"
    return _from_server(device, server, layout.PCP_CLIENT_PORT, group)


def _answers(device: str, peer: PcpPeer) -> Rule:
    return _from_server(device, peer.server, peer.port, "")


def _from_server(device: str, server: IPAddress, port: int, destination: str) -> Rule:
    ports = (("sport", str(layout.PCP_SERVER_PORT)), ("dport", str(port)))
    source = _host(server) if isinstance(server, IPv4Address) else f"{str(server).partition('%')[0]}/128"
    return Rule(
        "filter", IN, "ACCEPT", in_device=device, source=source, destination=destination, protocol="udp",
        matches=(("udp", ports),), ipv6=server.version == 6,
    )  # fmt: skip
