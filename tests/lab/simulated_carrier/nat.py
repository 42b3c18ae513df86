# SPDX-License-Identifier: Apache-2.0
"""The carrier's translation in the kernel: one nftables table, of which only elements change."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from tests.lab.simulated_carrier.table import NatChanges, Translation
from tests.support.pcp_octets import PROTOCOLS

TABLE = "simulated_carrier"

OBJECTS = """
table ip {table}
delete table ip {table}
table ip {table} {{
	map redirects {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
	map restricted {{ type ipv4_addr . ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
	map sources {{ type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service; }}
	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		iifname != "{outside}" accept
		meta l4proto {{ tcp, udp }} dnat to ip saddr . ip daddr . meta l4proto . th dport map @restricted
		meta l4proto {{ tcp, udp }} dnat to ip daddr . meta l4proto . th dport map @redirects
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname "{outside}" meta l4proto {{ tcp, udp }} snat to meta l4proto . ip saddr . th sport map @sources
	}}
}}
"""


class Nat:
    """Packets that come in or leave by the device ``outside`` follow the table's translations."""

    def __init__(self, outside: str) -> None:
        self._outside = outside
        self._load(OBJECTS.format(table=TABLE, outside=outside))

    def use_addresses(self, addresses: Sequence[str]) -> None:
        """Answer for these external addresses; those of before stay on the device."""
        for address in addresses:
            argv = ["ip", "addr", "replace", f"{address}/32", "dev", self._outside]
            subprocess.run(argv, check=True)

    def apply(self, changes: NatChanges) -> None:
        """Bring the changes into the kernel in one transaction."""
        lines = [_elements("delete", translation) for translation in changes.removed]
        lines += [_elements("add", translation) for translation in changes.added]
        self._load("".join(lines))

    @staticmethod
    def _load(text: str) -> None:
        subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


def _elements(verb: str, translation: Translation) -> str:
    protocol = PROTOCOLS[translation.protocol]
    inside = f"{translation.internal} . {translation.internal_port}"
    outside = f"{translation.external} . {translation.external_port}"
    redirect = f"{translation.external} . {protocol} . {translation.external_port} : {inside}"
    elements = [("sources", f"{protocol} . {inside} : {outside}")]
    if translation.peers:
        elements += [("restricted", f"{peer} . {redirect}") for peer in translation.peers]
    else:
        elements += [("redirects", redirect)]
    return "".join(f"{verb} element ip {TABLE} {name} {{ {element} }}\n" for name, element in elements)
