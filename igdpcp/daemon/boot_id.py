# SPDX-License-Identifier: Apache-2.0
"""BOOTID.UPNP.ORG: a number that grows with every start and every change of the router's LAN addresses.

Control points take a number that is not larger for the same life of the device. Routers have no clock battery, so the
clock alone will not do; and flash wears, so the file holds a number that is reached only after many changes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from igdpcp.log import line

BOOT_ID_LIMIT = 0x7FFFFFFF  # UPnP Device Architecture 1.1 section 1.2: 31 bits
SANE_TIME = 1704067200  # 2024: a clock that shows less was never set
RESERVED = 64  # numbers that one write of the file is good for

LOG = logging.getLogger("igdpcp.daemon")


class BootId:
    """``value`` is the number in use; ``advance`` makes it ``following``."""

    def __init__(self, state_dir: Path, wall_clock: Callable[[], float] = time.time) -> None:
        """Takes a number beyond all that an earlier process can have used."""
        self._file = state_dir / "boot_id"
        self._reserved = self._read()
        now = int(wall_clock())
        self.value = _after(max(self._reserved, now - 1 if SANE_TIME <= now <= BOOT_ID_LIMIT else 0))
        self._reserve()

    @property
    def following(self) -> int:
        return _after(self.value)

    def advance(self) -> None:
        """Begin another boot instance."""
        self.value = self.following
        if self.value > self._reserved or self.value == 1:
            self._reserve()

    def _reserve(self) -> None:
        self._reserved = min(self.value + RESERVED, BOOT_ID_LIMIT)
        try:
            self._write()
        except OSError as error:
            LOG.warning(line("not_remembered", file=self._file, error=error.strerror))

    def _read(self) -> int:
        try:
            stored = int(self._file.read_text())
        except (OSError, ValueError):
            return 0
        return stored if 0 < stored <= BOOT_ID_LIMIT else 0

    def _write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._file.with_name("boot_id.new")
        with fresh.open("w") as file:
            file.write(f"{self._reserved}\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._file)


def _after(number: int) -> int:
    return number + 1 if number < BOOT_ID_LIMIT else 1
