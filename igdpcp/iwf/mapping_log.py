# SPDX-License-Identifier: Apache-2.0
"""Log lines about mappings. LAN hosts cause them, so each host gets only so many, and few of them are warnings."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from igdpcp.log import RateLimit, SparingLog
from igdpcp.model import Mapping

WARNINGS_BURST = 2  # of one event: the status shows the last ten of all
WARNINGS_PER_SECOND = 1 / 60


class MappingLog:
    """Says which mapping it is, and counts lines by its client."""

    def __init__(self) -> None:
        self._log = SparingLog(logging.getLogger("igdpcp.iwf"))
        self._warnings = RateLimit(WARNINGS_BURST, WARNINGS_PER_SECOND, asyncio.get_running_loop().time)

    def tell(self, event: str, mapping: Mapping, level: int = logging.INFO, **fields: Any) -> None:
        """One line, unless this client has caused too many of this event."""
        request = mapping.request
        self._log.write(
            level, event, request.client.address, client_port=request.client.port, mapping=mapping.id,
            protocol=request.protocol.name, external_port=mapping.external_port, **fields,
        )  # fmt: skip

    def warn(self, event: str, mapping: Mapping, **fields: Any) -> None:
        """As ``tell``, and as a warning unless there were many of this event lately."""
        scarce = self._warnings.take(event) is not None
        self.tell(event, mapping, logging.WARNING if scarce else logging.INFO, **fields)
