# SPDX-License-Identifier: Apache-2.0
"""What DHCP said of PCP servers, as the router's DHCP hooks leave it: one file of hexadecimal digits for each device.

``dhcp4.DEVICE`` holds the payload of option 158, ``dhcp6.DEVICE`` a sequence of DHCPv6 options with their heads.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
from pathlib import Path

from igdpcp.log import line
from igdpcp.values import dataclass

LOG = logging.getLogger("igdpcp.net")
DIGITS_LIMIT = 8192  # of one file: a DHCPv4 option has 510 at most, all options of a DHCPv6 answer some hundreds
FILES_LIMIT = 32
_PASSES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_NAME = re.compile(r"dhcp([46])\.(?!.*\.new$)(.+)")  # a file with .new behind it is being written
_OCTETS = re.compile(rf"(?:[0-9a-f]{{2}}){{1,{DIGITS_LIMIT // 2}}}")


@dataclass(frozen=True, slots=True)
class DhcpAnswer:
    """What was learnt on a device: ``family`` 4, the payload of option 158; 6, DHCPv6 options."""

    family: int
    device: str
    octets: bytes


class DhcpAnswers:
    """The answers in a directory; ``read`` costs one look at the directory while nothing changes there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen: int | None = None
        self._answers: tuple[DhcpAnswer, ...] = ()

    def read(self) -> tuple[DhcpAnswer, ...]:
        """Every answer that can be read, in the order of the files' names; the last ones where none can be now."""
        with contextlib.suppress(OSError):
            changed = self._directory.stat().st_mtime_ns
            if changed != self._seen:
                found = sorted(path for path in self._directory.iterdir() if _NAME.fullmatch(path.name))
                self._answers = tuple(answer for path in found[:FILES_LIMIT] if (answer := _read(path)))
                self._seen = changed
        return self._answers


def _read(path: Path) -> DhcpAnswer | None:
    """None: the file is no answer. Raises OSError for what is not the file's fault."""
    name = _NAME.fullmatch(path.name)
    assert name is not None
    try:
        with path.open("rb") as file:
            text = file.read(DIGITS_LIMIT + 2).decode("ascii", "replace").strip()
    except OSError as error:
        if error.errno in _PASSES:
            raise
        LOG.warning(line("dhcp_unreadable", file=path, error=error.strerror))
        return None
    if not _OCTETS.fullmatch(text):
        LOG.warning(line("dhcp_unreadable", file=path, error="not a short row of hexadecimal digits"))
        return None
    return DhcpAnswer(int(name[1]), name[2], bytes.fromhex(text))
