# SPDX-License-Identifier: Apache-2.0
"""What keeping mappings costs when the carrier's lifetimes are as short as PCP allows.

    .venv/bin/python -m benchmarks.renewals [MAPPINGS [SECONDS]]

Prints the share of one core that igdpcpd uses while nothing but renewals goes on, and how many were sent.
"""

from __future__ import annotations

import sys
import time

from benchmarks.gateways import Igdpcp
from tests.lab.clients import soap_client
from tests.lab.topology import LAN_ADDRESS, Lab

LIFETIME = 120  # seconds; RFC 6887 section 15: the least that a server may grant
FIRST_PORT = 10000
DEFAULTS = [5000, 120]
MUST = 0.10  # of one core, with 5000 mappings


def main() -> None:
    given = [int(argument) for argument in sys.argv[1:]]
    mappings, seconds = given + DEFAULTS[len(given) :]
    with Lab() as lab:
        gateway = Igdpcp(lab, "nftables", lifetime=LIFETIME)
        gateway.launch()
        gateway.wait_until_ready()
        client = soap_client(lab.lan)
        for port in range(FIRST_PORT, FIRST_PORT + mappings):
            if not client.add("udp", port, LAN_ADDRESS, port):
                sys.exit(f"port {port} was refused")
        daemon = gateway.daemon
        before, sent = daemon.cpu_seconds(), daemon.status()["upstream"]["counters"]["sent"]
        began = time.monotonic()
        time.sleep(seconds)
        used, took = daemon.cpu_seconds() - before, time.monotonic() - began
        renewals = daemon.status()["upstream"]["counters"]["sent"] - sent
        listed = len(daemon.mappings())
    print(f"{listed} mappings, lifetime {LIFETIME} s: {used / took:.1%} of one core (must: {MUST:.0%} with 5000)")
    print(f"{renewals} renewals in {took:.0f} s, {renewals / took:.1f} per second")


if __name__ == "__main__":
    main()
