# SPDX-License-Identifier: Apache-2.0
"""What the daemon's ruleset holds in the lab's router, as the kernel lists it."""

from __future__ import annotations

from tests.lab.topology import Lab

OWN_TABLE = "igdpcp"
FW4_TABLE = "fw4"


def our_rules(lab: Lab) -> str:
    """Our objects with their elements (nft), or our chains with their rules (iptables-legacy-save)."""
    if lab.firewall == "iptables":
        saved = [*lab.router.iptables_rules("nat"), *lab.router.iptables_rules("filter")]
        if lab.ipv6:
            saved += lab.router.iptables_rules("filter", "ip6tables")
        return "\n".join(rule for rule in saved if "IGDPCP" in rule)
    table = FW4_TABLE if lab.firewall == "fw4" else OWN_TABLE
    listed = lab.router.run(["nft", "list", "table", "inet", table], check=False)
    return listed.stdout


def rules_for(lab: Lab, address: str, port: int) -> list[str]:
    """The lines that speak of this client's port; empty: no rule stands for it."""
    rows = (row.strip() for row in our_rules(lab).splitlines())
    found = []
    for row in rows:
        for element in row.split(", "):
            words = element.replace(":", " ").replace("/", " ").replace(".", ".").split()
            if address in words and str(port) in words:
                found.append(element)
    return found
