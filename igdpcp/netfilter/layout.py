# SPDX-License-Identifier: Apache-2.0
"""The nftables objects, as text: the drop-ins for fw4 and the own table are made from it.

Everything here is static; a mapping is only elements. An object whose type changes must get a new generation number in
its name: redeclaring it with another type makes the whole firewall load fail.

Order matters. ``src`` stands before the router's own masquerade, which would end the search. ``dst`` stands behind the
administrator's redirects, which win.
"""

from __future__ import annotations

from igdpcp.model import MOVED_PORTS

PREFIX = "igdpcp1_"
FW4_TABLE = "fw4"
OWN_TABLE = "igdpcp"

PCP_SERVER_PORT = 5351  # RFC 6887 section 19.1
PCP_CLIENT_PORT = 5350  # RFC 6887 section 19.1: multicast announcements
UNPRIVILEGED_PORTS = "1024-65535"  # where the socket is that the server answers
MOVED_TO = f"{MOVED_PORTS.start}-{MOVED_PORTS[-1]}"

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
SURROUNDINGS = {"wan4": "ifname", "lan": "ifname", "pcp4": "ipv4_addr", "pcp6": "ipv6_addr"}

_PORTS = "meta nfproto ipv4 meta l4proto { tcp, udp }"
_PASSED = f"ct status dnat {_PORTS} meta l4proto . ct original proto-dst . ip daddr . th dport @pass4"

_CHAINS = {
    "dst_wan": (
        "dnat ip to iifname . ip saddr . meta l4proto . th dport map @dnat4_rh",
        "dnat ip to iifname . meta l4proto . th dport map @dnat4",
    ),
    "dst": (
        f"iifname @wan4 {_PORTS} fib daddr type local jump dst_wan",
        f"iifname @lan {_PORTS} dnat ip to ip daddr . meta l4proto . th dport map @hair4",
    ),
    "src_wan": (
        "meta l4proto { tcp, udp } masquerade to : oifname . meta l4proto . ip saddr . th sport map @snat4",
        "oifname . meta l4proto . th sport @own4 meta l4proto { tcp, udp } masquerade to :" + MOVED_TO,
    ),
    "src_hair": (
        "meta l4proto { tcp, udp } snat ip to meta l4proto . ip saddr . th sport map @hsrc4",
        "masquerade",
    ),
    "src": (
        f"oifname @wan4 {_PORTS} jump src_wan",
        f"iifname @lan oifname @lan {_PASSED} jump src_hair",
    ),
    "fwd": (
        f"{_PASSED} counter accept",
        f"{_PORTS} iifname . ip saddr . meta l4proto . ip daddr . th dport @open4_rh counter accept",
        f"{_PORTS} iifname . meta l4proto . ip daddr . th dport @open4 counter accept",
    ),
    "in": (
        f"ip saddr @pcp4 udp sport {PCP_SERVER_PORT} udp dport {UNPRIVILEGED_PORTS} accept",
        f"ip6 saddr @pcp6 udp sport {PCP_SERVER_PORT} udp dport {UNPRIVILEGED_PORTS} accept",
        f"iifname @wan4 ip daddr 224.0.0.1 udp sport {PCP_SERVER_PORT} udp dport {PCP_CLIENT_PORT} accept",
        f"iifname @wan4 ip6 daddr ff02::1 udp sport {PCP_SERVER_PORT} udp dport {PCP_CLIENT_PORT} accept",
    ),
}

# fw4's chain, and the drop-in directory from which fw4 includes our jump there
_FW4_HOOKS = {
    "dst": "chain-post/dstnat",
    "fwd": "chain-post/forward",
    "src": "chain-pre/srcnat",
    "in": "chain-pre/input",
}
# The administrator's redirects (priority dstnat) come first, and our source ports before a masquerade (srcnat).
_OWN_HOOKS = {
    "dst": "type nat hook prerouting priority dstnat + 5",
    "fwd": "type filter hook forward priority filter",
    "src": "type nat hook postrouting priority srcnat - 5",
    "in": "type filter hook input priority filter",
}


def _prefixed(rule: str) -> str:
    """The rule with the prefix put before every name of ours."""
    words = rule.replace("@", f"@{PREFIX}").split(" ")
    return " ".join(PREFIX + word if words[at - 1] == "jump" else word for at, word in enumerate(words))


def objects() -> str:
    """Sets, maps and chains, as they stand inside a table."""
    blocks = [f"set {PREFIX}{name} {{\n\ttype {type_};\n}}" for name, type_ in SURROUNDINGS.items()]
    for kind, timed in (("map", MAPS), ("set", SETS)):
        blocks += [f"{kind} {PREFIX}{name} {{\n\ttype {type_};\n\tflags timeout;\n}}" for name, type_ in timed.items()]
    for name, rules in _CHAINS.items():
        body = "".join(f"\t{_prefixed(rule)}\n" for rule in rules)
        blocks.append(f"chain {PREFIX}{name} {{\n{body}}}")
    return "\n".join(blocks) + "\n"


def drop_ins() -> dict[str, str]:
    """What the package puts below /usr/share/nftables.d for fw4: relative path and text."""
    files = {"table-post/30-igdpcp.nft": objects()}
    for chain, directory in _FW4_HOOKS.items():
        files[f"{directory}/30-igdpcp.nft"] = f'jump {PREFIX}{chain} comment "igdpcp"\n'
    return files


def own_table(name: str) -> str:
    """A script that makes our own table, or puts its chains in order; elements that are there stay.

    A verdict accept in it is not final: it does not overrule another table's chain that drops.
    """
    blocks = [objects()]
    for chain, hook in _OWN_HOOKS.items():
        blocks.append(f"chain {PREFIX}{chain}_hook {{\n\t{hook}; policy accept;\n\tjump {PREFIX}{chain}\n}}\n")
    return f"table inet {name} {{}}\nflush table inet {name}\ntable inet {name} {{\n{''.join(blocks)}}}\n"
