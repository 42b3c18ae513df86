# SPDX-License-Identifier: Apache-2.0
"""The nftables objects, as text: the drop-ins for fw4, the own table, and the include file for an administrator's table
are made from it.

Everything here is static; a mapping or a pinhole is only elements. An object whose type changes must get a new
generation number in its name: redeclaring it with another type makes the whole firewall load fail.

Order matters. ``src`` stands before the router's own masquerade, which would end the search. ``dst`` stands behind the
administrator's redirects, which win.

Source ports are the business of hosts on served LANs alone. From there nobody but its client leaves by a mapped port; a
host that the administrator does not translate is, while it sends from one. Packets from elsewhere, be it from a network
that is not served or from the router itself, are left as the router's other rules treat them: nothing tells here
whether those would translate them, and a translation that was not meant to be cuts such a host off, while a port that
it shares by chance is lost only for a remote endpoint that both talk to.

What belongs to a connection that was let in is accepted by the router's own rules, and a pinhole that ends leaves it
alone. So pinholes look at first packets only, and only those are counted, the same in fw4's table and in an own one.

``guard`` keeps what is behind the router from PCP servers (option block_lan_pcp): whoever speaks to the carrier's from
behind our address can use up what it grants us. It is for all hosts and all such servers, since one may have more
addresses than are known, and a network that is not served leaves by the same address.
"""

from __future__ import annotations

from igdpcp.model import MOVED_PORTS, PCP_CLIENT_PORT, PCP_SERVER_PORT

PREFIX = "igdpcp1_"
FW4_TABLE = "fw4"
OWN_TABLE = "igdpcp"

ALL_HOSTS = "224.0.0.1"  # RFC 6887 section 14.1.1: where they are sent to
ALL_HOSTS_6 = "ff02::1"
ANY_GENERATION = "igdpcp"  # what the names of all our objects begin with, also those of another release

_HALVES = (MOVED_PORTS[: len(MOVED_PORTS) // 2], MOVED_PORTS[len(MOVED_PORTS) // 2 :])


def ports_text(ports: range) -> str:
    """The range as nftables and iptables write it."""
    return f"{ports.start}-{ports[-1]}"


def moved_to(port: int) -> range:
    """Where other hosts' packets are moved from this mapped port.

    Not to a range that holds the port itself: a masquerade keeps a source port that lies in its range.
    """
    for half, other in (_HALVES, _HALVES[::-1]):
        if port in half:
            return other
    return MOVED_PORTS


MAPS = {
    "dnat4": "ifname . inet_proto . inet_service : ipv4_addr . inet_service",
    "dnat4_rh": "ifname . ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service",
    "snat4": "ifname . inet_proto . ipv4_addr . inet_service : inet_service",
    "hair4": "ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service",
    "hsrc4": "inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service",
}
SETS = {
    "own4": "ifname . inet_proto . inet_service",
    "pass4": "inet_proto . inet_service . ipv4_addr . inet_service",
    "open4": "ifname . inet_proto . ipv4_addr . inet_service",
    "open4_rh": "ifname . ipv4_addr . inet_proto . ipv4_addr . inet_service",
}
# Pinholes: for any remote host and port, one host, one port, one of both. Each element counts what it lets in.
COUNTED_SETS = {
    "pass6": "ipv6_addr . inet_proto . inet_service",
    "pass6_rh": "ipv6_addr . ipv6_addr . inet_proto . inet_service",
    "pass6_rp": "inet_service . ipv6_addr . inet_proto . inet_service",
    "pass6_rhp": "ipv6_addr . inet_service . ipv6_addr . inet_proto . inet_service",
}
SURROUNDINGS = {
    "wan4": "ifname",
    "wan6": "ifname",
    "lan": "ifname",
    "pcp4": "ipv4_addr . inet_service",
    "pcp6": "ipv6_addr . inet_service",
    "server4": "ipv4_addr",
    "server6": "ipv6_addr",
    "shut": "ifname",
}

_TRANSPORT = "meta l4proto { tcp, udp }"  # a masquerade to ports needs it in its own rule
_PORTS = f"meta nfproto ipv4 {_TRANSPORT}"
_PASSED = f"ct status dnat {_PORTS} meta l4proto . ct original proto-dst . ip daddr . th dport @pass4"

CHAINS = {
    "dst_wan": (
        "dnat ip to iifname . ip saddr . meta l4proto . th dport map @dnat4_rh",
        "dnat ip to iifname . meta l4proto . th dport map @dnat4",
    ),
    "dst": (
        f"iifname @wan4 {_PORTS} fib daddr type local jump dst_wan",
        f"iifname @lan {_PORTS} dnat ip to ip daddr . meta l4proto . th dport map @hair4",
    ),
    "src_moved": (
        *(
            f"{_TRANSPORT} th sport {ports_text(half)} masquerade to :{ports_text(moved_to(half.start))}"
            for half in _HALVES
        ),
        f"{_TRANSPORT} masquerade to :{ports_text(MOVED_PORTS)}",
    ),
    "src_wan": (
        f"{_TRANSPORT} masquerade to : oifname . meta l4proto . ip saddr . th sport map @snat4",
        "oifname . meta l4proto . th sport @own4 jump src_moved",
    ),
    "src_hair": (
        f"{_TRANSPORT} snat ip to meta l4proto . ip saddr . th sport map @hsrc4",
        "masquerade",
    ),
    "src": (
        f"iifname @lan oifname @wan4 {_PORTS} jump src_wan",
        f"iifname @lan oifname @lan {_PASSED} jump src_hair",
    ),
    "fwd6": (
        "ip6 saddr . th sport . ip6 daddr . meta l4proto . th dport @pass6_rhp accept",
        "ip6 saddr . ip6 daddr . meta l4proto . th dport @pass6_rh accept",
        "th sport . ip6 daddr . meta l4proto . th dport @pass6_rp accept",
        "ip6 daddr . meta l4proto . th dport @pass6 accept",
    ),
    "fwd": (
        f"{_PASSED} counter accept",
        f"{_PORTS} iifname . ip saddr . meta l4proto . ip daddr . th dport @open4_rh counter accept",
        f"{_PORTS} iifname . meta l4proto . ip daddr . th dport @open4 counter accept",
        f"iifname @wan6 oifname @lan ct state new meta nfproto ipv6 {_TRANSPORT} jump fwd6",
    ),
    "in": (
        f"iifname @wan4 udp sport {PCP_SERVER_PORT} ip saddr . udp dport @pcp4 accept",
        f"iifname @wan6 udp sport {PCP_SERVER_PORT} ip6 saddr . udp dport @pcp6 accept",
        f"iifname @wan4 ip saddr @server4 ip daddr {ALL_HOSTS} "
        f"udp sport {PCP_SERVER_PORT} udp dport {PCP_CLIENT_PORT} accept",
        f"iifname @wan6 ip6 saddr @server6 ip6 daddr {ALL_HOSTS_6} "
        f"udp sport {PCP_SERVER_PORT} udp dport {PCP_CLIENT_PORT} accept",
    ),
    "guard": (f"oifname @shut udp dport {PCP_SERVER_PORT} counter drop",),
}

# fw4's chain, and the drop-in directory from which fw4 includes our jump there
_FW4_HOOKS = {
    "dst": "chain-post/dstnat",
    "fwd": "chain-post/forward",
    "src": "chain-pre/srcnat",
    "in": "chain-pre/input",
    "guard": "chain-pre/forward",
}
# The administrator's redirects (priority dstnat) come first, and our source ports before a masquerade (srcnat). What
# these say is final whatever other chains say; an accept is not.
_FINAL_HOOKS = {
    "dst": "type nat hook prerouting priority dstnat + 5",
    "src": "type nat hook postrouting priority srcnat - 5",
    "guard": "type filter hook forward priority filter",
}
_ACCEPTING_HOOKS = {
    "fwd": "type filter hook forward priority filter",
    "in": "type filter hook input priority filter",
}


FORWARD_JUMP = f"{PREFIX}fwd"  # the chain to which a forward chain has to jump that shall accept our packets

# The names of everything that is made of this file, wherever it is
NAMES = frozenset(
    PREFIX + name
    for name in (
        *MAPS, *SETS, *COUNTED_SETS, *SURROUNDINGS, *CHAINS,
        *(f"{chain}_hook" for chain in (*_FINAL_HOOKS, *_ACCEPTING_HOOKS)),
    )
)  # fmt: skip


def _prefixed(rule: str) -> str:
    """The rule with the prefix put before every name of ours."""
    words = rule.replace("@", f"@{PREFIX}").split(" ")
    return " ".join(PREFIX + word if words[at - 1] == "jump" else word for at, word in enumerate(words))


def objects() -> str:
    """Sets, maps and chains, as they stand inside a table."""
    blocks = [f"set {PREFIX}{name} {{\n\ttype {type_};\n}}" for name, type_ in SURROUNDINGS.items()]
    for kind, timed in (("map", MAPS), ("set", SETS)):
        blocks += [f"{kind} {PREFIX}{name} {{\n\ttype {type_};\n\tflags timeout;\n}}" for name, type_ in timed.items()]
    for name, type_ in COUNTED_SETS.items():
        blocks.append(f"set {PREFIX}{name} {{\n\ttype {type_};\n\tflags timeout;\n\tcounter;\n}}")
    for name, rules in CHAINS.items():
        body = "".join(f"\t{_prefixed(rule)}\n" for rule in rules)
        blocks.append(f"chain {PREFIX}{name} {{\n{body}}}")
    return "\n".join(blocks) + "\n"


def drop_ins() -> dict[str, str]:
    """What the package puts below /usr/share/nftables.d for fw4: relative path and text."""
    files = {"table-post/30-igdpcp.nft": objects()}
    for chain, directory in _FW4_HOOKS.items():
        files[f"{directory}/30-igdpcp.nft"] = f'jump {PREFIX}{chain} comment "igdpcp"\n'
    return files


def include() -> str:
    """What an administrator includes in an inet table of his own, whose forward and input chains then jump to ours."""
    return objects() + _hooks(_FINAL_HOOKS)


def own_table(name: str, clearance: str = "") -> str:
    """A script that makes our own table, or puts its chains in order; elements that are there stay.

    ``clearance``: commands that are carried out once the table holds no rules. A verdict accept in it is not final: it
    does not overrule another table's chain that drops.
    """
    body = objects() + _hooks(_FINAL_HOOKS | _ACCEPTING_HOOKS)
    return f"table inet {name} {{}}\nflush table inet {name}\n{clearance}table inet {name} {{\n{body}}}\n"


def _hooks(hooks: dict[str, str]) -> str:
    return "".join(
        f"chain {PREFIX}{chain}_hook {{\n\t{hook}; policy accept;\n\tjump {PREFIX}{chain}\n}}\n"
        for chain, hook in hooks.items()
    )
