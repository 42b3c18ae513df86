# SPDX-License-Identifier: Apache-2.0
"""The system's resolver, in threads that nobody waits for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from ipaddress import IPv4Address

from igdpcp.net.resolver import SystemResolver, resolve


def test_the_hosts_file_is_asked() -> None:
    assert resolve("localhost") == IPv4Address("127.0.0.1")


async def _looked_up(resolver: SystemResolver, name: str) -> IPv4Address | None:
    return await resolver.look_up(name)


def test_a_look_up_does_not_hold_up_the_loop() -> None:
    go = threading.Event()

    def slow(name: str) -> IPv4Address | None:
        go.wait()
        return IPv4Address("192.168.1.50")

    async def run() -> None:
        answer = SystemResolver(slow).look_up("nas")
        assert not answer.done()
        go.set()
        assert await answer == IPv4Address("192.168.1.50")

    asyncio.run(run())


def test_no_address_is_an_answer_too() -> None:
    assert asyncio.run(_looked_up(SystemResolver(lambda name: None), "nas")) is None


def test_the_process_ends_while_the_resolver_is_silent() -> None:
    program = (
        "import asyncio, threading\n"
        "from igdpcp.net.resolver import SystemResolver\n"
        "async def run():\n"
        "    SystemResolver(lambda name: threading.Event().wait()).look_up('nas')\n"
        "asyncio.run(run())\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
