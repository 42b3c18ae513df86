# SPDX-License-Identifier: Apache-2.0
"""What a configuration and what hosts ask for become in the kernel, word for word: ``tests/golden/rulesets``.

A directory there is a case: ``igdpcp`` is its configuration, ``openings`` what is asked for, and one further file for
each firewall what nft lists of ours then. With IGDPCP_REGENERATE set in the environment these are written anew.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from igdpcp import config
from tests.lab import topology
from tests.lab.carrier import ScriptedCarrier
from tests.lab.clients import HTTP_PORT, soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import Host
from tests.lab.rules import our_rules
from tests.lab.topology import Lab
from tests.support.soap_client import SoapClient

pytestmark = pytest.mark.lab

CASES = Path(__file__).parent.parent / "golden/rulesets"
PROTOCOLS = {"tcp": 6, "udp": 17}
BACKENDS = {"fw4": "nftables", "nftables": "nftables", "iptables": "iptables"}


def normalised_nft(listing: str) -> str:
    """Our objects as nft lists them, elements in order; of others' chains only the place of our rules in them."""
    listing = re.sub(r" (timeout|expires) \w+|(?<= counter) packets \d+ bytes \d+", "", listing)
    listing = re.sub(r"elements = \{(.*?)\}", _in_order, listing, flags=re.DOTALL)
    blocks = re.findall(r"^\t(\w+ \w+ \{\n.*?^\t\}\n)", listing, re.DOTALL | re.MULTILINE)
    texts = [block if "igdpcp" in block.split("\n")[0] else _place(block) for block in blocks]
    return "".join(text.replace("\n\t", "\n") for text in texts)


def _in_order(found: re.Match[str]) -> str:
    """One element a line. The port of our PCP socket is the kernel's choice."""
    elements = sorted(re.sub(rf"^({topology.CARRIER_ADDRESS}) \. \d+$", r"\1 . PORT", one.strip())
                      for one in found[1].split(","))  # fmt: skip
    return "elements = {\n" + "".join(f"\t\t\t{element}\n" for element in elements) + "\t\t}"


def _place(block: str) -> str:
    if "igdpcp" not in block:
        return ""
    return re.sub(r"(\t\t(?!.*igdpcp).*\n)+", "\t\t...\n", block)


def normalised_iptables(saved: str) -> str:
    """Our chains and rules as iptables-save writes them, those of IPv6 at the end, without counters."""
    saved = re.sub(r" \[\d+:\d+\]$", "", saved, flags=re.MULTILINE)
    return re.sub(r"(--sport 5351 --dport) (?!5350)\d+", r"\1 PORT", saved) + "\n"


NORMALISED: dict[str, Callable[[str], str]] = {  # by firewall
    "fw4": normalised_nft,
    "nftables": normalised_nft,
    "iptables": normalised_iptables,
}


def open_all(lab: Lab, openings: str) -> None:
    """Ask for each line of the file: as the host that it is for, and with success."""
    hosts = {topology.LAN_ADDRESS: lab.lan, topology.LAN2_ADDRESS: lab.lan2,
             topology.LAN6_ADDRESS: lab.lan, topology.LAN2_6_ADDRESS: lab.lan2}  # fmt: skip
    for line in openings.splitlines():
        kind, *words = line.split()
        if kind == "mapping":
            protocol, external_port, client, port, lease, *remote = words
            reply = soap_client(hosts[client]).add(
                protocol, int(external_port), client, int(port), lease=int(lease), remote_host="".join(remote)
            )
            assert reply, f"{line}: {reply}"
        elif kind == "pinhole":
            protocol, client, port, lease, *remote = words
            host, remote_port = [*remote, "*", "0"][0].replace("*", ""), [*remote[1:], "0"][0]
            reply = pinhole_control(hosts[client]).call(
                "AddPinhole",
                {"RemoteHost": host, "RemotePort": remote_port, "InternalClient": client, "InternalPort": port,
                 "Protocol": PROTOCOLS[protocol], "LeaseTime": lease},
                service="WANIPv6FirewallControl",
            )  # fmt: skip
            assert reply, f"{line}: {reply}"


def pinhole_control(host: Host) -> SoapClient:
    """A SOAP client of that host over IPv6."""
    return SoapClient(
        lambda: host.socket(socket.SOCK_STREAM, socket.AF_INET6),
        topology.ROUTER_LAN6_ADDRESS,
        HTTP_PORT,
        description="/v2/rootDesc.xml",
    )


@pytest.mark.parametrize("firewall", list(NORMALISED))
@pytest.mark.parametrize("case", sorted(path.name for path in CASES.iterdir()))
def test_the_ruleset_is_the_golden_one(case: str, firewall: str) -> None:
    text, openings = (CASES / case / "igdpcp").read_text(), (CASES / case / "openings").read_text()
    wanted = config.parse(text.replace("{run_dir}", "/run/x").replace("{state_dir}", "/run/x"), case)
    with Lab(firewall, nat=wanted.upstreams[0].nat == "yes", ipv6="pinhole " in openings) as lab:
        ScriptedCarrier(lab, third_party=True)
        for number, lan in enumerate(wanted.lans[1:], 50):
            lab.router.run(["ip", "link", "add", lan.device, "up", "type", "bridge"])
            lab.router.run(["ip", "address", "add", f"192.168.{number}.1/24", "dev", lan.device])
        daemon = Igdpcpd(lab, config=text.replace("'1'", f"'1'\n\toption backend '{BACKENDS[firewall]}'", 1))
        if wanted.upstreams[0].type == "pcp":
            daemon.wait_for_activation("active")
        open_all(lab, openings)
        found = NORMALISED[firewall](our_rules(lab))
    file = CASES / case / firewall
    if os.environ.get("IGDPCP_REGENERATE"):
        file.write_text(found)
    assert found == file.read_text()
