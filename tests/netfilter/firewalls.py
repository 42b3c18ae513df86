# SPDX-License-Identifier: Apache-2.0
"""Rulesets that a router has before igdpcp comes: shaped like fw4's, plain nftables, and legacy iptables.

In each the administrator redirects TCP port 4060 of the WAN device to host b.
"""

from __future__ import annotations

from pathlib import Path

from tests.netfilter.topology import command

DROP_INS = Path(__file__).parents[2] / "files/usr/share/nftables.d"

_FW4 = """\
table inet fw4 {{}}
flush table inet fw4
table inet fw4 {{
	chain input {{
		type filter hook input priority filter; policy drop;
		{chain_pre_input}
		iifname "lo" accept
		ct state established,related accept
		meta l4proto ipv6-icmp accept
		iifname "br-lan" accept
		{chain_post_input}
		jump handle_reject
	}}
	chain forward {{
		type filter hook forward priority filter; policy drop;
		{chain_pre_forward}
		ct state established,related accept
		iifname "br-lan" jump forward_lan
		iifname "wan0" jump forward_wan
		{chain_post_forward}
		jump handle_reject
	}}
	chain forward_lan {{
		oifname "wan0" accept
	}}
	chain forward_wan {{
		ip daddr 192.168.1.6 tcp dport 4060 accept
		oifname "wan0" jump handle_reject
	}}
	chain handle_reject {{
		meta l4proto tcp reject with tcp reset
		reject
	}}
	chain dstnat {{
		type nat hook prerouting priority dstnat; policy accept;
		{chain_pre_dstnat}
		iifname "wan0" tcp dport 4060 dnat ip to 192.168.1.6:4060
		{chain_post_dstnat}
	}}
	chain srcnat {{
		type nat hook postrouting priority srcnat; policy accept;
		{chain_pre_srcnat}
		oifname "wan0" jump srcnat_wan
		{chain_post_srcnat}
	}}
	chain srcnat_wan {{
		meta nfproto ipv4 masquerade
	}}
	{table_post}
}}
"""
_HOOKS = ("input", "forward", "dstnat", "srcnat")
_PLACES = (*(f"chain-{when}/{chain}" for when in ("pre", "post") for chain in _HOOKS), "table-post")


def fw4(*, drop_ins: bool = True) -> str:
    """A ruleset that is declared, flushed and declared again as fw4 does it, with what the package drops in."""
    texts = {
        place.replace("-", "_").replace("/", "_"): "".join(
            file.read_text() for file in sorted((DROP_INS / place).glob("*.nft")) if drop_ins
        )
        for place in _PLACES
    }
    return _FW4.format(**texts)


PLAIN = """\
table ip router {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		iifname "wan0" tcp dport 4060 dnat to 192.168.1.6:4060
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "wan0" masquerade
	}
}
"""

LEGACY = """\
*nat
-A PREROUTING -i wan0 -p tcp --dport 4060 -j DNAT --to-destination 192.168.1.6:4060
-A POSTROUTING -o wan0 -j MASQUERADE
COMMIT
*filter
:INPUT ACCEPT
:FORWARD ACCEPT
-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A INPUT -i wan0 -p tcp -j REJECT --reject-with tcp-reset
-A INPUT -i wan0 -j REJECT
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -i br-lan -o wan0 -j ACCEPT
-A FORWARD -d 192.168.1.6 -p tcp --dport 4060 -j ACCEPT
-A FORWARD -p tcp -j REJECT --reject-with tcp-reset
-A FORWARD -j REJECT
COMMIT
"""


LEGACY_6 = """\
-A INPUT -p icmpv6 -j ACCEPT
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -i br-lan -o wan0 -j ACCEPT
-A FORWARD -p tcp -j REJECT --reject-with tcp-reset
-A FORWARD -j REJECT
"""


def load_nft(namespace: str, text: str) -> None:
    """Load a ruleset in one transaction."""
    command("nft", "-f", "-", namespace=namespace, stdin=text)


def load_legacy(namespace: str, text: str = LEGACY) -> None:
    """Load the legacy tables."""
    command("iptables-legacy-restore", namespace=namespace, stdin=text)


def load_legacy6(namespace: str) -> None:
    """Load IPv6's filter table as fw3 does it: it empties the built-in chains, and leaves other people's alone."""
    flushes = "-F INPUT\n-F FORWARD\n"
    command("ip6tables-legacy-restore", "--noflush", namespace=namespace, stdin=f"*filter\n{flushes}{LEGACY_6}COMMIT\n")
