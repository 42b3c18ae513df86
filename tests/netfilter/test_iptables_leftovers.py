# SPDX-License-Identifier: Apache-2.0
"""Chains of another release of ours, and the rules that lead to them, are taken away."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from igdpcp.netfilter.iptables import IptablesBackend
from tests.netfilter import firewalls
from tests.netfilter.topology import Instance, command, namespace, opening

pytestmark = pytest.mark.lab

LEFT = """\
*nat
:IGDPCP-ENTRY -
:IGDPCP-D-wan9 -
-A PREROUTING -i lo -j RETURN
-A PREROUTING -j IGDPCP-ENTRY
-A OUTPUT -j IGDPCP-ENTRY
-A IGDPCP-ENTRY -j IGDPCP-D-wan9
-A IGDPCP-D-wan9 -p tcp -m tcp --dport 9 -j DNAT --to-destination 192.168.1.9:9
COMMIT
*filter
:IGDPCP-OPEN -
-A FORWARD -j IGDPCP-OPEN
-A IGDPCP-OPEN -j ACCEPT
COMMIT
"""


@pytest.mark.parametrize("act", [lambda one: one.sync(opening()), Instance.release], ids=["sync", "release"])
def test_chains_of_another_release_go_with_what_leads_to_them(act: Callable[[Instance], None]) -> None:
    with namespace() as router:
        firewalls.load_legacy(router, LEFT)
        instance = Instance(router, IptablesBackend())
        instance.surroundings()
        act(instance)
        instance.vanish()
        found = command("iptables-legacy-save", namespace=router)
    assert not [name for name in ("wan9", "ENTRY", "OPEN") if name in found]
    assert "-A PREROUTING -i lo -j RETURN" in found


@pytest.mark.parametrize(("chain", "ours"), [("FORWARD", "IGDPCP-FWD"), ("PREROUTING", "IGDPCP-DST")])
def test_a_rule_of_somebody_else_that_leads_to_a_chain_of_ours_does_not_keep_ports_open(chain: str, ours: str) -> None:
    with namespace() as router:
        firewalls.load_legacy(router)
        instance = Instance(router, IptablesBackend())
        instance.surroundings()
        instance.put(opening())
        table = "nat" if chain == "PREROUTING" else "filter"
        command("iptables-legacy", "-t", table, "-A", chain, "-i", "wan9", "-j", ours, namespace=router)
        instance.release()
        instance.vanish()
        found = command("iptables-legacy-save", namespace=router).splitlines()
    left = [line for line in found if "IGDPCP" in line and not line.startswith(":")]
    assert left == [f"-A {chain} -i wan9 -j {ours}"]
