# SPDX-License-Identifier: Apache-2.0
"""amuled, on libupnp: takes a gateway only when its type is InternetGatewayDevice:1 to the letter."""

from __future__ import annotations

from tests.lab.control_points.program import ControlPoint, unpacked
from tests.lab.namespaces import Process, poll
from tests.lab.topology import Lab

CLIENT_PORT = 4662
EXTENDED_PORT = 4672
CONTROL_PORT = 4712
PATIENCE = 10.0
PASSWORD_MD5 = "5f4dcc3b5aa765d61d8327deb882cf99"
SETTINGS = f"""\
[eMule]
AppVersion=2.3.3
Port={CLIENT_PORT}
UDPPort={EXTENDED_PORT}
UDPEnable=1
Autoconnect=0
ConnectToKad=0
ConnectToED2K=0
NewVersionCheck=0
UPnPEnabled=1
[ExternalConnect]
UPnPECEnabled=1
AcceptExternalConnections=1
ECPort={CONTROL_PORT}
ECPassword={PASSWORD_MD5}
"""


class Amuled(ControlPoint):
    """Maps four ports at start and unmaps them at exit; what it sees are the events and the number of entries."""

    name = "amuled"
    ports = (("tcp", CLIENT_PORT), ("udp", CLIENT_PORT + 3), ("udp", EXTENDED_PORT), ("tcp", CONTROL_PORT))
    listens = True

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        (self.home / "amule.conf").write_text(SETTINGS)
        self._process: Process | None = None

    def open(self) -> None:
        program = unpacked("amule-daemon", "usr/bin/amuled")
        self._process = self.host.popen([program, f"--config-dir={self.home}"], env=self.environment)
        poll(lambda: "Asio thread" in self._log(), PATIENCE, "amuled having started")

    def sees(self) -> bool:
        log = self._log()
        return "WAN Service Detected" in log and "Universal Plug and Play: Error" not in log

    def close(self) -> None:
        assert self._process is not None
        self._process.stop()

    def _log(self) -> str:
        file = self.home / "logfile"
        return file.read_text() if file.exists() else ""
