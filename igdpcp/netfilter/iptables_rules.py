# SPDX-License-Identifier: Apache-2.0
"""Facts and surroundings as iptables rules, without touching any table.

A mapping costs three rules: redirect, source port, forward accept; one more when its external port is not its client's
own, for the sender of its hairpins. What would need more is said by rules that mappings share, and that is where
iptables says a little less than nftables does:

- Other hosts' packets are moved off a whole block of 256 source ports as soon as one of its ports is mapped, also those
  of networks that are not served: POSTROUTING cannot match the device on which a packet came. The router's own stay.
- A hairpin to the carrier's address follows every redirect of the WAN device, also one whose external port differs.
- A hairpin's sender is seen with the address that it sent to, and with its external port where that is not its own.
- What somebody else redirects to a mapped client's port passes too when it comes from a port of the same block.
- Of two pinholes that let a packet in, either may be the one that counts it.

Nothing expires: the rules live while the daemon does.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address

from igdpcp.model import PCP_CLIENT_PORT, PCP_SERVER_PORT, Endpoint, IPAddress
from igdpcp.netfilter import layout
from igdpcp.netfilter.desired import (
    Admit,
    Hairpin,
    HairpinSender,
    HairpinTarget,
    Key,
    OwnPort,
    Pass,
    Pinhole,
    Redirect,
    SourcePort,
    Value,
    device_name,
)
from igdpcp.netfilter.iptables_shapes import BLOCK, Matches, Options, Rule, Shape, Values, branch
from igdpcp.openings import PcpPeer, Surroundings

PREFIX = "IGDPCP-"
DST, SRC, FWD, IN = f"{PREFIX}DST", f"{PREFIX}SRC", f"{PREFIX}FWD", f"{PREFIX}IN"
GUARD = f"{PREFIX}GUARD"
LOOP, ALIAS, REACH, SENDER = f"{PREFIX}LOOP", f"{PREFIX}ALIAS", f"{PREFIX}REACH", f"{PREFIX}SENDER"
SHOWN = f"{PREFIX}SHOWN"
PASS, ADMIT, HOLES = f"{PREFIX}PASS", f"{PREFIX}ADMIT", f"{PREFIX}HOLES"

# POSTROUTING cannot match the device on which a packet came, so a LAN host's packet to an external address is marked
# before its translation. The bit is one that mwan3 and pbr do not use; it is taken off again when nothing translates.
HAIRPIN_MARK = "0x40000000/0x40000000"
_UNMARK = "0x0/0x40000000"
_MARKED = ("mark", (("mark", HAIRPIN_MARK),))
_TRANSLATED = ("conntrack", (("ctstate", "DNAT"),))
_FIRST_PACKET = ("conntrack", (("ctstate", "NEW"),))

_SHAPES = 256  # remembered; there are a few for each device


def redirects(device: str) -> str:
    """The chain of a WAN device's redirects."""
    return f"{PREFIX}D-{device_name(device)}"


def source_ports(device: str) -> str:
    """The chain of what leaves by a WAN device."""
    return f"{PREFIX}S-{device_name(device)}"


BEHIND_BANS = FWD  # the jump to it stands in front of the general refusal only (``iptables_place.py``)
_IPV6 = Shape(ipv6=True)
JUMPS = (  # the administrator's redirects win, and so do his bans
    Rule("nat", "PREROUTING", Shape(), to=DST),
    Rule("nat", "POSTROUTING", Shape(), to=SRC, first=True),
    Rule("filter", "FORWARD", Shape(), to=FWD),
    Rule("filter", "FORWARD", Shape(), to=GUARD, first=True),
    Rule("filter", "INPUT", Shape(), to=IN, first=True),
    Rule("filter", "FORWARD", _IPV6, to=FWD),
    Rule("filter", "FORWARD", _IPV6, to=GUARD, first=True),
    Rule("filter", "INPUT", _IPV6, to=IN, first=True),
)

Place = tuple[str, bool]  # table, and whether it is that of IPv6
BUILT_IN = {"nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"), "filter": ("INPUT", "FORWARD", "OUTPUT")}
CHAINS: dict[Place, tuple[str, ...]] = {
    ("nat", False): (DST, LOOP, ALIAS, REACH, SRC, SENDER, SHOWN),
    ("filter", False): (FWD, PASS, ADMIT, IN, GUARD),
    ("filter", True): (FWD, HOLES, IN, GUARD),
}
STATIC_CHAINS: dict[Place, tuple[str, ...]] = {  # hold nothing of a mapping
    ("nat", False): (DST, SRC),
    ("filter", False): (FWD, IN, GUARD),
    ("filter", True): (FWD, IN, GUARD),
}


def place_of(key: Key) -> Place:
    """The table of this fact's rules."""
    if isinstance(key, Pass | Admit):
        return "filter", False
    return ("filter", True) if isinstance(key, Pinhole) else ("nat", False)


def rules_of(key: Key, value: Value) -> Iterator[Rule]:
    """The rules that a fact needs for itself alone."""
    values: Values
    match key, value:
        case Redirect(device, _, port, remote), Endpoint() as client:
            yield _redirect(redirects(device), key, port, client, "source", remote, first=remote is not None)
        case SourcePort(device, _, client), int() as port:
            values = (("source", client.address), ("port", client.port), ("new_port", port))
            shape = _from_client(key.protocol.name.lower(), "MASQUERADE", (("to-ports", "{new_port}"),))
            yield _in_leaf("nat", source_ports(device), "sport", shape, client.port, values, first=True)
        case Pass(_, port, client), _:
            shape = _accept(key.protocol.name.lower())
            values = (("destination", client.address), ("port", client.port))
            yield _in_leaf("filter", PASS, "ctorigdstport", shape, port, values)
        case Admit(device, _, client, remote), _:
            shape = _accept(key.protocol.name.lower(), remote=remote is not None, in_device=device_name(device))
            values = (*_remote(remote), ("destination", client.address), ("port", client.port))
            yield _in_leaf("filter", ADMIT, "dport", shape, client.port, values)
        case Hairpin(address, _, port), HairpinTarget(client, ""):
            yield _redirect(ALIAS, key, port, client, "destination", address)
        case HairpinSender(_, client), Endpoint() as external if client.port != external.port:
            values = (
                ("source", client.address), ("port", client.port),
                ("new", external.address), ("new_port", external.port),
            )  # fmt: skip
            shape = _from_client(key.protocol.name.lower(), "SNAT", (("to-source", "{new}:{new_port}"),))
            yield _in_leaf("nat", SENDER, "sport", shape, client.port, values, first=True)
        case Pinhole(_, client6, port, remote6, remote_port), _:
            shape = _pinhole(key.protocol.name.lower(), remote6 is not None, remote_port != 0)
            values = (("destination", client6), ("port", port))
            values += (("source", remote6),) if remote6 else ()
            values += (("remote_port", remote_port),) if remote_port else ()
            yield _in_leaf("filter", HOLES, "dport", shape, port, values, first=len(values) > 2)


def shared_rules_of(key: Key, value: Value) -> tuple[Rule, ...]:
    """The rules that a fact needs together with others; each must be there once while anyone needs it."""
    match key, value:
        case OwnPort(device, protocol, port), _:
            return _moves(device, protocol.name.lower(), port // BLOCK)
        case Hairpin(address), HairpinTarget(_, via):
            return _hairpins(address, via)
    return ()


@lru_cache(4)  # as long as nothing changes they are the same at every commit
def static_rules(surroundings: Surroundings) -> dict[Place, tuple[Rule, ...]]:
    """The rules that no mapping changes, in the order of their chains. Raises RulesetError for what is no device."""
    made = (_nat(surroundings), _filter(surroundings), _filter6(surroundings))
    return dict(zip(CHAINS, map(tuple, made), strict=True))


@lru_cache(4)
def filled_chains(surroundings: Surroundings) -> dict[Place, tuple[str, ...]]:
    """The chains in which static rules are."""
    return {
        place: tuple(dict.fromkeys(rule.chain for rule in held)) for place, held in static_rules(surroundings).items()
    }


def _nat(surroundings: Surroundings) -> Iterator[Rule]:
    for device in map(device_name, sorted(surroundings.wan_devices)):
        to_router = ("addrtype", (("dst-type", "LOCAL"),))
        forwarded = ("addrtype", (("src-type", "!LOCAL"),))
        yield Rule("nat", DST, Shape(in_device=device, matches=(to_router,)), to=redirects(device))
        yield Rule("nat", SRC, Shape(out_device=device, matches=(forwarded,)), to=source_ports(device))
    for device in map(device_name, sorted(surroundings.lan_devices)):
        marked = Shape(in_device=device, matches=(_MARKED,))
        unmark = Shape("MARK", in_device=device, matches=(_MARKED,), options=(("set-xmark", _UNMARK),))
        yield Rule("nat", DST, Shape(in_device=device), to=LOOP)
        yield Rule("nat", DST, marked, to=ALIAS)
        yield Rule("nat", DST, marked, to=REACH)
        yield Rule("nat", DST, unmark)
        hairpin = Shape(out_device=device, matches=(_MARKED, _TRANSLATED))
        yield Rule("nat", SRC, hairpin, to=SENDER)
        yield Rule("nat", SRC, hairpin, to=SHOWN)


def _filter(surroundings: Surroundings) -> Iterator[Rule]:
    yield Rule("filter", FWD, Shape(matches=(_TRANSLATED,)), to=PASS)
    yield Rule("filter", FWD, Shape(), to=ADMIT)
    peers = sorted((peer for peer in surroundings.pcp_peers if peer.server.version == 4), key=str)
    for device in map(device_name, sorted(surroundings.wan_devices)):
        yield from _from_servers(device, peers)
    yield from _guards(surroundings, ipv6=False)


def _filter6(surroundings: Surroundings) -> Iterator[Rule]:
    peers = sorted((peer for peer in surroundings.pcp_peers if peer.server.version == 6), key=str)
    for device in map(device_name, sorted(surroundings.wan6_devices)):
        for lan in map(device_name, sorted(surroundings.lan_devices)):
            first = Shape(in_device=device, out_device=lan, matches=(_FIRST_PACKET,), ipv6=True)
            yield Rule("filter", FWD, first, to=HOLES)
        yield from _from_servers(device, peers)
    yield from _guards(surroundings, ipv6=True)


def _guards(surroundings: Surroundings, *, ipv6: bool) -> Iterator[Rule]:
    to_servers = _ports("udp", ("dport", str(PCP_SERVER_PORT)))
    for device in map(device_name, sorted(surroundings.shut_devices)):
        yield Rule("filter", GUARD, Shape("DROP", out_device=device, protocol="udp", matches=to_servers, ipv6=ipv6))


def _in_leaf(
    table: str, base: str, side: str, shape: Shape, port: int, values: Values, *, first: bool = False
) -> Rule:  # fmt: skip
    leaf = branch(table, base, side, shape.protocol, port, ipv6=shape.ipv6)
    return Rule(table, leaf.leaf, shape, values, first=first, branch=leaf)


def _redirect(
    base: str, key: Redirect | Hairpin, port: int, client: Endpoint, side: str, address: IPv4Address | None,
    *, first: bool = False,
) -> Rule:  # fmt: skip
    shape = _destination(key.protocol.name.lower(), side if address else "")
    values: Values = (("port", port), ("new", client.address), ("new_port", client.port))
    return _in_leaf("nat", base, "dport", shape, port, (*values, (side, address)) if address else values, first=first)


@lru_cache(_SHAPES)
def _moves(device: str, protocol: str, block: int) -> tuple[Rule, ...]:
    """What moves other hosts' packets off the block."""
    port = block * BLOCK
    shape = _moved(protocol, layout.ports_text(layout.moved_to(port)))
    return (_in_leaf("nat", source_ports(device), "sport", shape, port, ()),)


@lru_cache(_SHAPES)
def _hairpins(address: IPv4Address, via: str) -> tuple[Rule, ...]:
    """What LAN hosts' packets to this address need; ``via``: follow that device's redirects."""
    there: Values = (("address", address),)
    reach = (Rule("nat", REACH, _REACHED, there, to=redirects(via)),) if via else ()
    return Rule("nat", LOOP, _MARK, there), Rule("nat", SHOWN, _SENT_TO, there), *reach


_HOST, _HOST6 = "/255.255.255.255", "/128"
_ADDRESS = "{address}" + _HOST
_MARK = Shape("MARK", destination=_ADDRESS, options=(("set-xmark", HAIRPIN_MARK),))
_SENT_TO = Shape("SNAT", matches=(("conntrack", (("ctorigdst", "{address}"),)),), options=(("to-source", "{address}"),))
_REACHED = Shape(destination=_ADDRESS)


def _ports(protocol: str, *ports: tuple[str, str]) -> Matches:
    return ((protocol, ports),)


@lru_cache(_SHAPES)
def _destination(protocol: str, side: str) -> Shape:
    """A DNAT of what comes from (``source``) or goes to (``destination``) one address, or of all."""
    return Shape(
        "DNAT", source="{source}" + _HOST if side == "source" else "",
        destination="{destination}" + _HOST if side == "destination" else "", protocol=protocol,
        matches=_ports(protocol, ("dport", "{port}")), options=(("to-destination", "{new}:{new_port}"),),
    )  # fmt: skip


@lru_cache(_SHAPES)
def _from_client(protocol: str, target: str, options: Options) -> Shape:
    return Shape(
        target, source="{source}" + _HOST, protocol=protocol, matches=_ports(protocol, ("sport", "{port}")),
        options=options,
    )  # fmt: skip


@lru_cache(_SHAPES)
def _moved(protocol: str, ports: str) -> Shape:
    return Shape("MASQUERADE", protocol=protocol, options=(("to-ports", ports),))


@lru_cache(_SHAPES)
def _accept(protocol: str, *, remote: bool = False, in_device: str = "") -> Shape:
    return Shape(
        "ACCEPT", in_device=in_device, source="{source}" + _HOST if remote else "",
        destination="{destination}" + _HOST, protocol=protocol, matches=_ports(protocol, ("dport", "{port}")),
    )  # fmt: skip


@lru_cache(_SHAPES)
def _pinhole(protocol: str, remote_host: bool, remote_port: bool) -> Shape:
    sport = (("sport", "{remote_port}"),) if remote_port else ()
    return Shape(
        "ACCEPT", source="{source}" + _HOST6 if remote_host else "", destination="{destination}" + _HOST6,
        protocol=protocol, matches=_ports(protocol, ("dport", "{port}"), *sport), ipv6=True,
    )  # fmt: skip


def _remote(address: IPv4Address | None) -> Values:
    return (("source", address),) if address else ()


def _from_servers(device: str, peers: list[PcpPeer]) -> Iterator[Rule]:
    for peer in peers:
        yield _from_server(device, peer.server, peer.port, "")
    for server in sorted({peer.server for peer in peers}, key=str):
        group = f"{layout.ALL_HOSTS}{_HOST}" if server.version == 4 else f"{layout.ALL_HOSTS_6}{_HOST6}"
        yield _from_server(device, server, PCP_CLIENT_PORT, group)


def _from_server(device: str, server: IPAddress, port: int, destination: str) -> Rule:
    source = f"{server}{_HOST}" if isinstance(server, IPv4Address) else f"{str(server).partition('%')[0]}{_HOST6}"
    ports = _ports("udp", ("sport", str(PCP_SERVER_PORT)), ("dport", str(port)))
    shape = Shape(
        "ACCEPT", in_device=device, source=source, destination=destination, protocol="udp", matches=ports,
        ipv6=server.version == 6,
    )  # fmt: skip
    return Rule("filter", IN, shape)
