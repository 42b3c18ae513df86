# SPDX-License-Identifier: Apache-2.0
"""The main job, told on screen: a LAN host asks by UPnP, the carrier opens the port, packets arrive, all is closed.

Every line with a tick was really seen; the exit code is 0 only when all of them were.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.lab.carrier import CarrierMapping, MiniupnpdCarrier
from tests.lab.clients import Upnpc
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import Host, LabError
from tests.lab.probes import Answer
from tests.lab.screen import Screen
from tests.lab.topology import (
    EXTERNAL_ADDRESS,
    INTERNET_ADDRESS,
    LAN_ADDRESS,
    ROUTER_WAN_ADDRESS,
    Lab,
)

EXTERNAL_PORT = 8080
SERVICE_PORT = 8000
LEASE = 3600
SOAP_DEADLINE = "3.8"  # the default; the lab's own is for tests that wait for it
PROTOCOLS = ("tcp", "udp")
LOG_LINES_SHOWN = 30

DRAWING = """
    LAN host              router                 carrier             internet host
 ┌──────────────┐   ┌───────────────────┐   ┌───────────────────┐   ┌────────────┐
 │ 192.168.1.50 ├───┤ {nat:6}            ├───┤ NAT               ├───┤ 62.0.0.200 │
 │              │   │ WAN: 100.64.12.34 │   │ public: 62.0.0.1  │   │            │
 │ upnpc        │   │ igdpcpd           │   │ miniupnpd         │   │            │
 └──────┬───────┘   └──▲─────────────┬──┘   └──▲────────────────┘   └────────────┘
        └── UPnP IGD ──┘             └── PCP ──┘
"""

OWN_ELEMENTS = re.compile(r"(?:map|set) (igdpcp\w+) \{\n[^}]*?flags timeout\n(?:\t\telements = \{(.*?)\}\n)?\t\}", re.S)
FOUND_URL = re.compile(r"desc: (\S+)")
IMPLIED_MATCH = re.compile(r" -m (?:tcp|udp)\b")
EXPIRES = re.compile(r" expires \w+")


class NotSeen(Exception):
    """Something that the demo promises did not happen."""


@dataclass(frozen=True)
class Stage:
    """Everything that plays in the demo."""

    lab: Lab
    carrier: MiniupnpdCarrier
    daemon: Igdpcpd
    upnpc: Upnpc
    backend: str
    screen: Screen

    def expect(self, seen: object, text: str) -> None:
        if not seen:
            raise NotSeen(text)
        self.screen.good(text)

    def run(self, host: Host, argv: list[str], shown: Callable[[str], bool]) -> str:
        """Run a command on a host; those lines of its output that ``shown`` picks go on screen."""
        self.screen.command(host.name, shlex.join(argv))
        done = host.run(argv, check=False)
        self.screen.listing(line.strip() for line in done.stdout.splitlines() if shown(line))
        if done.returncode:
            raise NotSeen(f"{argv[0]} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def probe(self, protocol: str) -> Answer:
        probe = self.lab.tcp_probe if protocol == "tcp" else self.lab.udp_probe
        return probe(self.lab.internet, EXTERNAL_ADDRESS, EXTERNAL_PORT)

    def opened(self) -> list[CarrierMapping]:
        """What the carrier opened for LAN hosts: not the short-lived mapping by which igdpcpd learns its address."""
        return [mapping for mapping in self.carrier.table() if mapping.external_port == EXTERNAL_PORT]

    def rules(self) -> list[str]:
        """Our rules in the router's kernel, one a line."""
        if self.backend == "nftables":
            return nft_elements(self.lab.router.nft_list("ruleset"))
        return iptables_rules({name: self.lab.router.iptables_rules(name) for name in ("nat", "filter")})


def nft_elements(listing: str) -> list[str]:
    """The elements of our maps and sets as ``name: element``; those that come and go with mappings only."""
    found = []
    for name, elements in OWN_ELEMENTS.findall(listing):
        for element in elements.split(","):
            if element.strip():
                found.append(f"{name}: {EXPIRES.sub('', ' '.join(element.split()))}")
    return found


def iptables_rules(tables: Mapping[str, list[str]]) -> list[str]:
    """The rules of our chains as ``table: rule``, without the matches that -p implies."""
    ours = [(name, rule) for name, rules in tables.items() for rule in rules if rule.startswith("-A IGDPCP")]
    return [f"{name}: {IMPLIED_MATCH.sub('', rule)}" for name, rule in ours]


def of_interest(line: str) -> bool:
    """The lines of upnpc's output that say what came of it."""
    words = ("ExternalIPAddress", "external ", "failed", "UPNP_DeletePortMapping", "desc:")
    return line.strip().startswith(words) or "failed" in line


def show_closed(stage: Stage) -> None:
    stage.screen.step("Before: nobody asked for anything, and the carrier lets nothing in")
    for protocol in PROTOCOLS:
        answer = stage.probe(protocol)
        stage.expect(
            not answer, f"{INTERNET_ADDRESS} -> {EXTERNAL_ADDRESS}:{EXTERNAL_PORT} {protocol}: {answer.outcome}"
        )
    stage.expect(not stage.opened(), f"the carrier's table has nothing for {EXTERNAL_PORT}")


def show_asking(stage: Stage) -> None:
    stage.screen.step("A LAN host asks its router, by plain UPnP IGD")
    for protocol in PROTOCOLS:
        arguments = ["-a", LAN_ADDRESS, str(SERVICE_PORT), str(EXTERNAL_PORT), protocol.upper(), str(LEASE)]
        output = stage.run(stage.lab.lan, stage.upnpc.command(*arguments), of_interest)
        told = f"{EXTERNAL_ADDRESS}:{EXTERNAL_PORT} {protocol.upper()} is redirected to internal"
        if found := FOUND_URL.search(output):
            stage.upnpc.url = found.group(1)  # from now on the search, which takes two seconds, is spared
        stage.expect(told in output, f"it was told that {EXTERNAL_ADDRESS}:{EXTERNAL_PORT} {protocol} leads to it")


def show_grant(stage: Stage) -> None:
    stage.screen.step("What the carrier granted: its own table")
    mappings = stage.opened()
    stage.screen.listing(f"{EXTERNAL_ADDRESS} {mapping}" for mapping in mappings)
    wanted = {expected_at_carrier(stage.lab.nat, protocol) for protocol in PROTOCOLS}
    owner = "the router's WAN address" if stage.lab.nat else "the LAN host, by THIRD_PARTY"
    stage.expect(set(mappings) == wanted, f"{EXTERNAL_PORT}, tcp and udp, lead to {owner}")


def expected_at_carrier(nat: bool, protocol: str) -> CarrierMapping:
    """Cascaded: to the WAN address and port; routed: to the LAN host itself."""
    if nat:
        return CarrierMapping(protocol, EXTERNAL_PORT, ROUTER_WAN_ADDRESS, EXTERNAL_PORT)
    return CarrierMapping(protocol, EXTERNAL_PORT, LAN_ADDRESS, SERVICE_PORT)


def show_rules(stage: Stage, before: list[str]) -> None:
    tool = "nft list ruleset" if stage.backend == "nftables" else "iptables-legacy-save"
    stage.screen.step(f"Which rules came into the router ({tool}, only ours)")
    fresh = [rule for rule in stage.rules() if rule not in before]
    stage.screen.listing(fresh)
    stage.expect(any(LAN_ADDRESS in rule for rule in fresh), f"{len(fresh)} that were not there before")


def show_packets(stage: Stage) -> None:
    stage.screen.step("Packets from the internet")
    for protocol in PROTOCOLS:
        answer = stage.probe(protocol)
        stage.expect(
            answer.listener == "lan" and answer.peer_address == INTERNET_ADDRESS,
            f"{EXTERNAL_ADDRESS}:{EXTERNAL_PORT} {protocol} reached {LAN_ADDRESS}:{SERVICE_PORT}, "
            f"which saw {answer.peer or answer.outcome}",
        )


def show_status(stage: Stage) -> None:
    stage.screen.step("What the router says of it")
    for command in ("status", "mappings"):
        stage.screen.command("router", f"igdpcp-cli {command}")
        stage.screen.listing(stage.daemon.cli(command).stdout.splitlines())
    status = stage.daemon.status()
    mode = "cascaded" if stage.lab.nat else "routed"
    stage.expect(status["mode"] == mode and status["mappings"]["active"] == len(PROTOCOLS), f"{mode}, 2 mappings")


def show_deletion(stage: Stage, before: list[str]) -> None:
    stage.screen.step("The LAN host takes it back, and nothing is left")
    for protocol in PROTOCOLS:
        arguments = ["-d", str(EXTERNAL_PORT), protocol.upper()]
        stage.run(stage.lab.lan, stage.upnpc.command(*arguments), of_interest)
    stage.expect(not stage.opened(), f"the carrier's table has nothing for {EXTERNAL_PORT}")
    stage.expect(stage.rules() == before, "the router's rules are as they were before")
    for protocol in PROTOCOLS:
        stage.expect(not stage.probe(protocol), f"{EXTERNAL_ADDRESS}:{EXTERNAL_PORT} {protocol} is closed")
    stage.expect(stage.daemon.stop() == 0, "igdpcpd ended cleanly")


def play(stage: Stage) -> None:
    """The whole story; NotSeen when it goes another way."""
    for protocol in PROTOCOLS:
        stage.lab.listen(stage.lab.lan, protocol, SERVICE_PORT)
    before = stage.rules()
    show_closed(stage)
    show_asking(stage)
    show_grant(stage)
    show_rules(stage, before)
    show_packets(stage)
    show_status(stage)
    show_deletion(stage, before)


def arguments_of(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ci/demo", description="Opens and closes a port through two NATs.")
    parser.add_argument("--backend", choices=("nftables", "iptables"), default="nftables", help="the router's rules")
    parser.add_argument("--no-nat", action="store_true", help="the router routes: the carrier's NAT is the only one")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    arguments = arguments_of(argv)
    screen = Screen()
    nat = not arguments.no_nat
    began = time.monotonic()
    screen.title(
        f"igdpcp: a port through {'two NATs' if nat else 'the carrier’s NAT'}, {arguments.backend} in the router"
    )
    screen.drawing(DRAWING.format(nat="NAT" if nat else "no NAT"))
    daemon: Igdpcpd | None = None
    try:
        with Lab("fw4" if arguments.backend == "nftables" else "iptables", nat=nat) as lab:
            carrier = MiniupnpdCarrier(lab)
            try:
                daemon = Igdpcpd(lab, arguments.backend, main={"soap_deadline": SOAP_DEADLINE}, start=False)
                daemon.start()
                daemon.wait_for_activation()
                daemon.wait_for_advertising()
                play(Stage(lab, carrier, daemon, Upnpc(lab.lan), arguments.backend, screen))
            except (LabError, NotSeen):
                if daemon is not None and daemon.process is not None:
                    screen.line("\nthe end of igdpcpd's log:")
                    screen.listing(daemon.log().splitlines()[-LOG_LINES_SHOWN:])
                raise
    except (LabError, NotSeen) as failure:
        screen.bad(f"not seen: {str(failure).splitlines()[0]}")
        return 1
    left = Lab.leftovers()
    if left:
        screen.bad(f"left behind: {left}")
        return 1
    screen.line()
    screen.good(f"all of it was seen, in {time.monotonic() - began:.1f} s; no namespace and no process is left")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
