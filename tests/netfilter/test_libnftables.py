# SPDX-License-Identifier: Apache-2.0
"""libnftables in more threads than one: the ruleset's own, and those that look at the rules of others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.netfilter.topology import command, namespace

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
MAP = "map m{} {{ type ifname . inet_proto . inet_service : ipv4_addr . inet_service; }}"
LIST_AT_ONCE = """
import threading
from igdpcp.netfilter.libnftables import Nft

def work():
    for _ in range(400):
        nft = Nft()
        assert len(nft.query("list ruleset")) > 60
        nft.close()

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_several_threads_may_list_the_rules_at_once() -> None:
    with namespace() as router:
        maps = "\n".join(map(MAP.format, range(60)))
        command("nft", "-f", "-", namespace=router, stdin=f"table inet t {{\n{maps}\n}}\n")
        done = subprocess.run(
            ["ip", "netns", "exec", router, sys.executable, "-c", LIST_AT_ONCE],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), "it does not abort"
