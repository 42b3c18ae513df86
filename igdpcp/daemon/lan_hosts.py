# SPDX-License-Identifier: Apache-2.0
"""Which addresses are one host's: those with the same link-layer address on one LAN. Ceilings are per host."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

from igdpcp.model import IPAddress
from igdpcp.net.neighbours import link_layer_address

REMEMBERED_SECONDS = 1.0
REMEMBERED_LIMIT = 512  # addresses

# What stands for the host at an address of the LAN behind a device; equal for all addresses of one host.
HostOf = Callable[[IPAddress, str], Hashable]


def by_address(address: IPAddress, device: str) -> Hashable:
    """Every address counts as a host; a link-local one of one LAN may be another host's on another LAN."""
    return device, address


class LanHosts:
    """Tells hosts apart by the kernel's neighbour table.

    A host can forge link-layer addresses too. But then it can pass for any host of its LAN, which no ceiling mends.
    """

    def __init__(
        self,
        link_layer_address: Callable[[str, IPAddress], bytes] = link_layer_address,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link_layer_address = link_layer_address
        self._clock = clock
        self._remembered: dict[tuple[IPAddress, str], tuple[bytes, float]] = {}  # and until when

    def host_of(self, address: IPAddress, device: str) -> Hashable:
        """An address that the table does not have counts as a host; who has connected is there by then."""
        link_layer = self._look_up(address, device, believe_unknown=False)
        return (device, link_layer) if link_layer else by_address(address, device)

    def host_or_stranger(self, address: IPAddress, device: str) -> Hashable:
        """All addresses of a LAN that the table does not have count as one host: a datagram's source may be forged."""
        return device, self._look_up(address, device, believe_unknown=True)

    def _look_up(self, address: IPAddress, device: str, *, believe_unknown: bool) -> bytes:
        """Remembered for a moment: hosts ask many times in a row.

        That an address is unknown may be over with the next packet: only where it makes strangers of all is it believed
        for that long, or a datagram from each new address would win its connections a share of their own.
        """
        now = self._clock()
        link_layer, until = self._remembered.get((address, device), (b"", now))
        if now >= until or not (link_layer or believe_unknown):
            link_layer = self._link_layer_address(device, address)
            if len(self._remembered) >= REMEMBERED_LIMIT:
                self._remembered.clear()
            self._remembered[address, device] = link_layer, now + REMEMBERED_SECONDS
        return link_layer
