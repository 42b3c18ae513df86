# SPDX-License-Identifier: Apache-2.0
"""What the upstream says of itself and not of a mapping: for the log, and for what control points are shown."""

from __future__ import annotations

import logging
from collections.abc import Callable

from igdpcp.iwf.interfaces import AddressChanged, StateChanged, UpstreamEvent
from igdpcp.log import SparingLog
from igdpcp.model import Activation


class UpstreamNews:
    """``changed`` is called when what control points are shown of the upstream may be another."""

    def __init__(self, name: Callable[[], str], changed: Callable[[], None]) -> None:
        self._name = name
        self._changed = changed
        self._sparing = SparingLog(logging.getLogger("igdpcp.iwf"))  # a carrier may change these with every grant

    def hear(self, event: UpstreamEvent) -> None:
        """Any event; what is of a mapping changes nothing."""
        match event:
            case StateChanged(state):
                level = logging.WARNING if state is Activation.LOST else logging.INFO
                self._sparing.write(level, "upstream_state", None, upstream=self._name(), state=state.value)
                self._changed()
            case AddressChanged(address):
                self._sparing.write(logging.INFO, "external_address", None, address=address or "unknown")
                self._changed()
