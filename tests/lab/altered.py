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
import json, sys
from igdpcp.daemon import control
from igdpcp.net import links
from igdpcp.netfilter import detect

def say(text):
    print(text, file=sys.stderr, flush=True)

def gated(*arguments, choose=detect.choose_backend):
    with open({fifo!r}) as gate:
        gate.read()
    return choose(*arguments)

class Watcher(links.LinkWatcher):
    def __init__(self, on_change):
        def heard(snapshot):
            on_change(snapshot)
            say("event=links_heard")
        super().__init__(heard)

class Control(control.ControlServer):
    async def _answer(self, line):
        say("event=asked command=" + json.loads(line)["command"])
        return await super()._answer(line)

detect.choose_backend = gated
links.LinkWatcher = Watcher
control.ControlServer = Control
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

    ``env`` is for the daemon that is to wait. It logs ``links_heard`` with each change of the links that it notices,
    and ``asked`` with each command at its control socket.
    """

    def __init__(self, lab: Lab) -> None:
        self._fifo = lab.directory / "gate"
        os.mkfifo(self._fifo)
        self.env = altered(lab, GATE.format(fifo=str(self._fifo)))
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
