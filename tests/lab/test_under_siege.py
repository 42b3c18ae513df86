# SPDX-License-Identifier: Apache-2.0
"""One hostile host of the LAN does its worst, and another one's AddPortMapping takes hardly longer than in peace."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.carrier import ROOT, ScriptedCarrier
from tests.lab.clients import HTTP_PORT, soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import Process
from tests.lab.topology import LAN2_ADDRESS, ROUTER_LAN_ADDRESS, Lab
from tests.support.soap_client import SoapClient

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CONNECTIONS = 200  # that send a byte a second
SEARCHES = 10_000  # in a second
REQUESTS = 10
LONGEST_DELAY = 0.1  # seconds
SPACING = 0.08  # seconds between two requests, so that all of them fall into the second of the searches
CORES = sorted(os.sched_getaffinity(0))
DAEMON_CORE, HOSTILE_CORE = CORES[0], CORES[-1]
FIRST = -15  # nice(2)


def besieger(lab: Lab) -> Process:
    arguments = [HOSTILE_CORE, ROUTER_LAN_ADDRESS, HTTP_PORT, CONNECTIONS, SEARCHES]
    argv = [sys.executable, "-S", "-m", "tests.lab.siege", *map(str, arguments)]
    program = lab.lan.popen(argv, name="siege", env={"PYTHONPATH": str(ROOT)}, control=True)
    assert program.stdout.readline() == b"ready\n"
    return program


def threads(process: Process) -> list[int]:
    return [int(thread.name) for thread in Path(f"/proc/{process.pid}/task").iterdir()]


@contextlib.contextmanager
def first_in_line(lab: Lab) -> Iterator[None]:
    """Let the router, the carrier and this thread run before whatever else this machine does: it is not their load."""
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    for process in lab.router.processes + lab.carrier.processes:
        for thread in threads(process):
            os.setpriority(os.PRIO_PROCESS, thread, FIRST)
    os.setpriority(os.PRIO_PROCESS, 0, FIRST)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, ours)


def slowest_of_some(client: SoapClient, first_port: int) -> float:
    """Seconds that the slowest of several new mappings takes."""
    took = []
    for port in range(first_port, first_port + REQUESTS):
        began = time.perf_counter()
        assert client.add("udp", port, LAN2_ADDRESS, port)
        took.append(time.perf_counter() - began)
        time.sleep(max(0.0, SPACING - took[-1]))
    return max(took)


def test_a_siege_by_one_host_hardly_delays_another_ones_mapping() -> None:
    with Lab() as lab:
        ScriptedCarrier(lab, nat=False)
        daemon = Igdpcpd(lab)
        daemon.wait_for_activation()
        daemon.wait_for_advertising()
        assert daemon.process is not None
        for thread in threads(daemon.process):
            os.sched_setaffinity(thread, {DAEMON_CORE})
        client = soap_client(lab.lan2)
        assert client.external_address()
        with first_in_line(lab):
            in_peace = slowest_of_some(client, 20000)
        hostile = besieger(lab)
        with first_in_line(lab):
            hostile.stdin.write(b"\n")
            hostile.stdin.flush()
            under_siege = slowest_of_some(client, 30000)

        assert hostile.stdout.readline() == b"sent\n"
        counters = daemon.status()["counters"]["http"]
        assert counters["over_limit"] + counters["timeouts"] >= CONNECTIONS - 16  # the siege was one
        assert under_siege - in_peace <= LONGEST_DELAY
