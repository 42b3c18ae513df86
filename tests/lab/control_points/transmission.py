# SPDX-License-Identifier: Apache-2.0
"""transmission-daemon: miniupnpc inside, and no patience with a gateway whose address is not public."""

from __future__ import annotations

import json

from tests.lab.control_points.program import ControlPoint, unpacked
from tests.lab.namespaces import Process
from tests.lab.topology import Lab

PORT = 51413
SETTINGS = {
    "peer-port": PORT,
    "port-forwarding-enabled": True,
    "message-level": 3,
    "dht-enabled": False,
    "lpd-enabled": False,
    "rpc-enabled": False,
}


class TransmissionDaemon(ControlPoint):
    """Maps its peer port at start and unmaps it at exit; what it sees is its own state ``Forwarded``.

    It asks for the entries only after 20 minutes.
    """

    name = "transmission-daemon"
    ports = (("tcp", PORT), ("udp", PORT))
    listens = True

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        (self.home / "settings.json").write_text(json.dumps({**SETTINGS, "download-dir": str(self.home)}))
        self._process: Process | None = None

    def open(self) -> None:
        program = unpacked("transmission-daemon", "usr/bin/transmission-daemon")
        argv = [program, "--foreground", "--config-dir", str(self.home)]
        self._process = self.host.popen(argv, env=self.environment)
        self._process.wait_for("Port forwarding successful!")

    def sees(self) -> bool:
        assert self._process is not None
        self._process.wait_for('to "Forwarded"')
        return True

    def close(self) -> None:
        assert self._process is not None
        self._process.stop()
