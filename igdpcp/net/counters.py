# SPDX-License-Identifier: Apache-2.0
"""Byte and packet counters and the link rate of a device, as the kernel's sysfs shows them."""

from __future__ import annotations

import socket
from pathlib import Path

_CLASS_NET = Path("/sys/class/net")
_MEGABIT = 1_000_000


def total(device: str, counter: str) -> int:
    """A counter such as ``tx_bytes`` of the device; 0 where the device has none."""
    return max(0, _read(device, f"statistics/{counter}"))


def bits_per_second(device: str) -> int:
    """The device's link rate; 0 where it is not known."""
    return max(0, _read(device, "speed")) * _MEGABIT


def exists(device: str) -> bool:
    """Whether there is such a device now."""
    try:
        return socket.if_nametoindex(device) > 0
    except OSError:
        return False


def _read(device: str, name: str) -> int:
    try:
        return int((_CLASS_NET / device / name).read_text())
    except (OSError, ValueError):
        return 0
