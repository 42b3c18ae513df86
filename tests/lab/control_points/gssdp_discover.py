# SPDX-License-Identifier: Apache-2.0
"""gssdp-discover: searches and prints what answers; it knows nothing of mappings."""

from __future__ import annotations

import re

from tests.lab.control_points.program import unpacked
from tests.lab.namespaces import Host

FOUND = re.compile(r"^\s+USN:\s+(\S+)\n\s+Location:\s+(\S+)$", re.MULTILINE)


def discover(host: Host, target: str = "ssdp:all", seconds: int = 1) -> dict[str, str]:
    """USN and LOCATION of everything that answers a search for ``target``."""
    program = unpacked("gupnp-tools", "usr/bin/gssdp-discover")
    done = host.run([program, "-i", "eth0", "-t", target, "-n", str(seconds), "-m", "available"])
    return dict(FOUND.findall(done.stdout))
