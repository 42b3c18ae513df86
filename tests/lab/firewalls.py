# SPDX-License-Identifier: Apache-2.0
"""The routers' own firewalls, before igdpcp adds anything: plain nftables, shaped like OpenWrt's fw4, and iptables."""

from __future__ import annotations

from pathlib import Path

DROP_INS = Path(__file__).parents[2] / "files/usr/share/nftables.d"

PLAIN_NFTABLES = """
table inet router {
	chain srcnat {
		type nat hook postrouting priority srcnat; policy accept;
		meta nfproto ipv4 oifname "wan" masquerade
	}
}
"""

FW4 = """
table inet fw4
flush table inet fw4
{ruleset_pre}
table inet fw4 {{
	{table_pre}
	chain input {{
		type filter hook input priority filter; policy accept;
		iifname "lo" accept
		{input_pre}
		ct state established,related accept
		iifname "br-lan" jump input_lan
		iifname "wan" jump input_wan
		{input_post}
	}}
	chain forward {{
		type filter hook forward priority filter; policy drop;
		{forward_pre}
		ct state established,related accept
		iifname "br-lan" jump forward_lan
		iifname "wan" jump forward_wan
		{forward_post}
		jump handle_reject
	}}
	chain output {{
		type filter hook output priority filter; policy accept;
	}}
	chain handle_reject {{
		meta l4proto tcp reject with tcp reset
		reject with icmpx type port-unreachable
	}}
	chain input_lan {{
		accept
	}}
	chain input_wan {{
		udp dport 68 accept
		icmp type echo-request accept
		meta l4proto ipv6-icmp accept
		jump reject_from_wan
	}}
	chain forward_lan {{
		oifname "wan" accept
		oifname "br-lan" accept
	}}
	chain forward_wan {{
		oifname "wan" jump handle_reject
	}}
	chain reject_from_wan {{
		iifname "wan" jump handle_reject
	}}
	chain dstnat {{
		type nat hook prerouting priority dstnat; policy accept;
		{dstnat_pre}
		{dstnat_post}
	}}
	chain srcnat {{
		type nat hook postrouting priority srcnat; policy accept;
		{srcnat_pre}
		oifname "wan" jump srcnat_wan
		{srcnat_post}
	}}
	chain srcnat_wan {{
		{masquerade}
	}}
	{table_post}
}}
{ruleset_post}
"""

FW4_CHAINS = ("input", "forward", "dstnat", "srcnat")

IPTABLES_FILTER = """
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -i wan -j DROP
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i br-lan -j ACCEPT
COMMIT
"""

IPTABLES_NAT = """
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -o wan -j MASQUERADE
COMMIT
"""


IP6TABLES = """
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i br-lan -j ACCEPT
COMMIT
"""


def fw4(*, nat: bool, drop_ins: Path = DROP_INS) -> str:
    """A ruleset with fw4's chains and its order, the drop-in files included where fw4 includes them.

    Loading it again is what ``fw4 reload`` does: the table is flushed and declared anew in one transaction.
    """
    places = {
        "ruleset_pre": "ruleset-pre",
        "ruleset_post": "ruleset-post",
        "table_pre": "table-pre",
        "table_post": "table-post",
    }
    for chain in FW4_CHAINS:
        places[f"{chain}_pre"] = f"chain-pre/{chain}"
        places[f"{chain}_post"] = f"chain-post/{chain}"
    included = {place: _includes(drop_ins / folder) for place, folder in places.items()}
    return FW4.format(masquerade="meta nfproto ipv4 masquerade" if nat else "", **included)


def iptables(*, nat: bool) -> str:
    """What iptables-restore loads for a router that drops what comes from the WAN unasked."""
    return IPTABLES_FILTER + (IPTABLES_NAT if nat else "")


def _includes(folder: Path) -> str:
    return "\n".join(f'include "{path}"' for path in sorted(folder.glob("*.nft")))
