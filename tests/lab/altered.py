# SPDX-License-Identifier: Apache-2.0
"""A daemon that is altered where the lab cannot reach: times that are too long for a test, a start that takes long.

The alteration is Python that runs before the daemon does, as the interpreter's ``sitecustomize``.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.lab.namespaces import poll
from tests.lab.topology import Lab

ROOT = Path(__file__).parents[2]
PATIENCE = 10.0

GATE = """
import time
from igdpcp.netfilter import detect

def gated(*arguments, choose=detect.choose_backend):
    with open({fifo!r}) as gate:
        gate.read()
    time.sleep({slowness})
    return choose(*arguments)

detect.choose_backend = gated
"""


SHORT_GRACE = """
from igdpcp.iwf import absences

absences.LAN_GRACE_SECONDS = 2.0
"""


def altered(lab: Lab, code: str) -> dict[str, str]:
    """The environment for a daemon in which ``code`` has run first."""
    directory = lab.directory / "altered"
    directory.mkdir(exist_ok=True)
    (directory / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{directory}:{ROOT}"}


class Gate:
    """A place in the daemon's start, before it has a back-end, where it waits until the gate is opened.

    Then it takes ``slowness`` more seconds, as a slow router does. ``env`` is for the daemon that is to wait.
    """

    def __init__(self, lab: Lab, slowness: float = 0.0) -> None:
        self._fifo = lab.directory / "gate"
        os.mkfifo(self._fifo)
        self.env = altered(lab, GATE.format(fifo=str(self._fifo), slowness=slowness))
        self._end: int | None = None

    def wait_for_daemon(self) -> None:
        """Return when the daemon waits."""
        poll(self._is_there, PATIENCE, "the daemon coming to the gate")

    def open(self) -> None:
        assert self._end is not None, "nobody waits"
        os.close(self._end)

    def _is_there(self) -> bool:
        try:
            self._end = os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads
                raise
            return False
        return True
