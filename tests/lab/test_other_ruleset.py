# SPDX-License-Identifier: Apache-2.0
"""A reload that puts the rules elsewhere leaves none where they were, and every mapping open."""

from __future__ import annotations

import pytest

from tests.lab.carrier import ScriptedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.topology import EXTERNAL_ADDRESS, LAN_ADDRESS, Lab

pytestmark = pytest.mark.lab

PORT = 8080
RULESETS = {
    "iptables": {"backend": "iptables"},
    "own": {"backend": "nftables", "nft_table": "igdpcp"},
    "another": {"backend": "nftables", "nft_table": "another"},
    "fw4": {"backend": "nftables", "nft_table": "fw4"},
}


def places_of_rules(lab: Lab) -> set[str]:
    """Where rules for the port are: the names of ``RULESETS``."""
    ruleset = lab.router.run(["nft", "list", "ruleset"]).stdout
    tables = {block.split(" {")[0]: block for block in ruleset.split("table inet ")[1:]}
    found = {name for name, block in tables.items() if LAN_ADDRESS in block}
    saved = lab.router.run(["iptables-legacy-save"]).stdout
    return {"own" if name == "igdpcp" else name for name in found} | ({"iptables"} if LAN_ADDRESS in saved else set())


@pytest.mark.parametrize(
    ("firewall", "before", "after"),
    [
        ("nftables", "iptables", "own"),
        ("nftables", "own", "iptables"),
        ("nftables", "own", "another"),
        ("fw4", "own", "fw4"),
        ("fw4", "fw4", "own"),
    ],
)
def test_rules_are_in_one_place_only_after_a_reload_that_moves_them(firewall: str, before: str, after: str) -> None:
    with Lab(firewall=firewall) as lab:
        ScriptedCarrier(lab)
        daemon = Igdpcpd(lab, main=RULESETS[before])
        lab.listen(lab.lan, "tcp", PORT)
        assert soap_client(lab.lan).add("tcp", PORT, LAN_ADDRESS, PORT)
        assert places_of_rules(lab) == {before}

        text = daemon.config_file.read_text()
        kept = [line for line in text.splitlines() if "option backend" not in line and "option nft_table" not in line]
        options = "".join(f"\n\toption {name} '{value}'" for name, value in RULESETS[after].items())
        daemon.write_config("\n".join(kept).replace("config igdpcp 'main'", f"config igdpcp 'main'{options}") + "\n")
        daemon.reload()
        poll(lambda: len(daemon.events("ready")) == 2, 10, "the reload")

        assert places_of_rules(lab) == {after}
        if firewall == "nftables":  # fw4's forward chain refuses what an own table accepts
            assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, PORT).listener == "lan"
