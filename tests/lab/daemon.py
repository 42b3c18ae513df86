# SPDX-License-Identifier: Apache-2.0
"""igdpcpd in the lab's router: its configuration, its start and end, and its control socket."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.lab import topology
from tests.lab.namespaces import LabError, Process, poll
from tests.lab.topology import Lab

ROOT = Path(__file__).parents[2]
OTHER_PYROUTE2 = ROOT / ".cache/pyroute2-0.7.9"
START_PATIENCE = 30.0
CONTROL_PATIENCE = 10.0

Options = Mapping[str, str | Sequence[str]]


def uci(sections: Mapping[str, Options]) -> str:
    """UCI text; keys are ``type name``, list values become lists."""
    lines = []
    for title, options in sections.items():
        kind, _, name = title.partition(" ")
        lines.append(f"config {kind} '{name}'" if name else f"config {kind}")
        for option, value in options.items():
            if isinstance(value, str):
                lines.append(f"\toption {option} '{value}'")
            else:
                lines += [f"\tlist {option} '{item}'" for item in value]
        lines.append("")
    return "\n".join(lines)


class Igdpcpd:
    """The daemon, started at once and ready when constructed.

    ``main`` and ``upstream`` add to or override the options that the lab sets; ``sections`` are further ones.
    ``config`` is the whole text instead; ``{run_dir}`` and ``{state_dir}`` in it are filled in.
    """

    def __init__(
        self,
        lab: Lab,
        backend: str = "nftables",
        *,
        main: Options | None = None,
        upstream: Options | None = None,
        sections: Mapping[str, Options] | None = None,
        config: str | None = None,
        env: Mapping[str, str] | None = None,
        start: bool = True,
    ) -> None:
        self._lab = lab
        self._env = {"PYTHONPATH": str(ROOT), **(env or {})}
        self.run_dir = lab.directory / "run"
        self.state_dir = lab.directory / "state"
        self.config_file = lab.directory / "igdpcp.uci"
        self.control_socket = self.run_dir / "control.sock"
        for directory in (self.run_dir, self.state_dir):
            directory.mkdir(exist_ok=True)
        if config is None:
            config = uci(
                {
                    "igdpcp main": {
                        "enabled": "1",
                        "backend": backend,
                        "run_dir": str(self.run_dir),
                        "state_dir": str(self.state_dir),
                        "soap_deadline": "1.0",
                        **(main or {}),
                    },
                    "lan lan": {"device": topology.LAN_DEVICE},
                    "upstream carrier": {
                        "server": [topology.CARRIER_ADDRESS],
                        "device": topology.WAN_DEVICE,
                        "nat": "yes" if lab.nat else "no",
                        "retransmit_initial": "0.3",
                        **(upstream or {}),
                    },
                    **(sections or {}),
                }
            )
        self.write_config(config)
        self.process: Process | None = None
        if start:
            self.start()

    def write_config(self, text: str) -> None:
        text = text.replace("{run_dir}", str(self.run_dir)).replace("{state_dir}", str(self.state_dir))
        self.config_file.write_text(text)

    def start(self) -> None:
        """Start the daemon and wait until it serves the LAN and its control socket answers."""
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Start the daemon and wait for nothing."""
        self.process = self._lab.router.popen(
            [sys.executable, "-m", "igdpcp", "--config", str(self.config_file)], name="igdpcpd", env=self._env
        )

    def wait_until_ready(self) -> None:
        """Return when it serves the LAN and its control socket answers; LabError when it has ended."""
        poll(self._is_ready, START_PATIENCE, "igdpcpd being ready")

    def _is_ready(self) -> bool:
        process = self._running()
        if not process.alive:
            raise LabError(f"igdpcpd ended with {process.popen.returncode}:\n{process.output()}")
        try:
            return "event=ready" in process.output() and bool(self.control("status").get("ok"))
        except (OSError, LabError):
            return False

    def _running(self) -> Process:
        if self.process is None:
            raise LabError("igdpcpd was not started")
        return self.process

    def control(self, command: str, **arguments: Any) -> dict[str, Any]:
        """One request at the control socket; the whole answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(CONTROL_PATIENCE)
            connection.connect(str(self.control_socket))
            connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            line = connection.makefile("rb").readline()
        if not line:
            raise LabError(f"no answer to {command}:\n{self.log()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def result(self, command: str, **arguments: Any) -> Any:
        """What a request gives; LabError when it is refused."""
        answer = self.control(command, **arguments)
        if not answer.get("ok"):
            raise LabError(f"{command}: {answer.get('error')}")
        return answer["result"]

    def status(self) -> dict[str, Any]:
        return dict(self.result("status"))

    def mappings(self) -> list[dict[str, Any]]:
        return list(self.result("mappings"))

    def wait_for_activation(self, state: str = "active", seconds: float = 10.0) -> None:
        """Return when the upstream's activation is ``state``."""
        poll(lambda: self.status()["activation"]["state"] == state, seconds, f"activation {state}:\n{self.log()}")

    def wait_for_advertising(self, seconds: float = 5.0) -> None:
        """Return when the daemon answers searches on the LAN."""
        poll(lambda: self.status()["igd"]["advertising"], seconds, f"advertising:\n{self.log()}")

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run igdpcp-cli at this daemon's socket, on the router."""
        argv = [sys.executable, "-m", "igdpcp.cli", "--socket", str(self.control_socket), *arguments]
        return self._lab.router.run(argv, check=check, env=self._env)

    @property
    def release_command(self) -> list[str]:
        return [sys.executable, "-m", "igdpcp", "--config", str(self.config_file), "--release"]

    def release(self) -> subprocess.CompletedProcess[str]:
        """Run ``igdpcpd --release``: close everything for good."""
        return self._lab.router.run(self.release_command, env=self._env)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        return self._running().stop()

    def kill(self) -> None:
        """SIGKILL: what a crash leaves."""
        self._running().kill()

    def reload(self) -> None:
        """SIGHUP: the configuration is read anew."""
        self._running().signal(signal.SIGHUP)

    def log(self) -> str:
        """Everything the daemon wrote since its last start."""
        return self._running().output()

    def events(self, event: str = "") -> list[dict[str, str]]:
        """The log lines as dicts of their ``key=value`` fields; only those of ``event`` when it is given."""
        lines = [dict(_fields(line)) for line in self.log().splitlines() if "event=" in line]
        return [line for line in lines if not event or line.get("event") == event]

    def memory(self) -> dict[str, int]:
        """Resident memory in kB: ``VmRSS`` and ``RssAnon``."""
        text = Path(f"/proc/{self._running().pid}/status").read_text()
        return {key: int(value) for key, value in re.findall(r"^(VmRSS|RssAnon):\s+(\d+) kB", text, re.MULTILINE)}

    def cpu_seconds(self) -> float:
        """Processor time used so far, user and system."""
        fields = Path(f"/proc/{self._running().pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _fields(line: str) -> list[tuple[str, str]]:
    pairs = [word.partition("=") for word in shlex.split(line)]
    return [(key, value) for key, equals, value in pairs if equals]
