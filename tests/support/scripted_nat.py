# SPDX-License-Identifier: Apache-2.0
"""The scripted carrier's own translation: nftables elements that the kernel lets expire by itself."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field

TABLE = "scripted_cgn"

OBJECTS = f"""
table ip {TABLE}
delete table ip {TABLE}
table ip {TABLE} {{
	map redirects {{ type inet_proto . inet_service : ipv4_addr . inet_service; flags timeout; }}
	map restricted {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; flags timeout; }}
	map sources {{ type inet_proto . ipv4_addr . inet_service : inet_service; flags timeout; }}
	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		iifname "outside" meta l4proto {{ tcp, udp }} dnat to ip saddr . meta l4proto . th dport map @restricted
		iifname "outside" meta l4proto {{ tcp, udp }} dnat to meta l4proto . th dport map @redirects
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname "outside" meta l4proto {{ tcp, udp }} masquerade to : meta l4proto . ip saddr . th sport map @sources
	}}
}}
"""

Key = tuple[str, str, int]  # internal address, protocol, internal port


@dataclass
class Entry:
    """One mapping of the server; ``filters`` are the remote hosts that may use it, empty for all."""

    nonce: str
    external_port: int
    ends: float
    filters: list[str] = field(default_factory=list)
    description: str = ""


class Nat:
    """Packets follow the table; with ``enabled`` False nothing is touched."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.clear()

    def clear(self) -> None:
        self._load(OBJECTS)

    def put(self, key: Key, entry: Entry, seconds: int, before: Entry | None) -> None:
        """Replace what ``before`` had in one transaction: a renewal must not interrupt the path."""
        removal = self._removal(key, before or entry)
        self._load(removal + self._elements("add", key, entry, f" timeout {max(1, seconds)}s"))

    def drop(self, key: Key, entry: Entry) -> None:
        self._load(self._removal(key, entry))

    def _removal(self, key: Key, entry: Entry) -> str:
        # An element may have expired meanwhile, and deleting what is not there fails: so it is added first.
        return self._elements("add", key, entry) + self._elements("delete", key, entry)

    def _elements(self, verb: str, key: Key, entry: Entry, timeout: str = "") -> str:
        address, protocol, port = key
        elements = [("sources", f"{protocol} . {address} . {port}{timeout} : {entry.external_port}")]
        redirect = f"{protocol} . {entry.external_port}{timeout} : {address} . {port}"
        if entry.filters:
            elements += [("restricted", f"{peer} . {redirect}") for peer in entry.filters]
        else:
            elements += [("redirects", redirect)]
        return "".join(f"{verb} element ip {TABLE} {name} {{ {element} }}\n" for name, element in elements)

    def _load(self, text: str) -> None:
        if self.enabled:
            subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
