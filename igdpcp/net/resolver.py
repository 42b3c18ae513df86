# SPDX-License-Identifier: Apache-2.0
"""The system's resolver: the hosts file, DNS, whatever the router has. It blocks, so it works in threads."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from ipaddress import IPv4Address


def resolve(name: str) -> IPv4Address | None:
    """The first IPv4 address of a host; None: the system knows none."""
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    address = IPv4Address(found[0][4][0])
    return None if address.is_unspecified else address  # what some servers say of names that they block


class SystemResolver:
    """Each look-up has a thread that nobody waits for at the end: a silent DNS server holds it for half a minute."""

    def __init__(self, resolve: Callable[[str], IPv4Address | None] = resolve) -> None:
        self._resolve = resolve

    def look_up(self, name: str) -> asyncio.Future[IPv4Address | None]:
        """What the system says of this name, some day."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[IPv4Address | None] = loop.create_future()

        def tell(address: IPv4Address | None) -> None:
            if not answer.done():
                answer.set_result(address)

        def work() -> None:
            address = self._resolve(name)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
                loop.call_soon_threadsafe(tell, address)

        try:
            threading.Thread(target=work, name="resolver", daemon=True).start()
        except RuntimeError:  # the system gives no thread
            answer.set_result(None)
        return answer
