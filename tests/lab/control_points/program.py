# SPDX-License-Identifier: Apache-2.0
"""What all control points of the lab have in common: where ci/setup puts them, and what is asked of each."""

from __future__ import annotations

import json
import select
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tests.lab.namespaces import Host, LabError, Process
from tests.lab.topology import Lab

ROOT = Path(__file__).parents[3]
UNPACKED = ROOT / ".cache/control-points"
PYTHON_PROGRAMS = UNPACKED / "python"  # programs that come as Python packages, for the interpreter of .venv
DRIVERS = Path(__file__).parent / "drivers"
DEBIAN_PYTHON = "/usr/bin/python3"  # Debian's libraries are built for it
OUR_PYTHON = sys.executable
DRIVER_PATIENCE = 15.0

Port = tuple[str, int]  # protocol ("tcp" or "udp"), and the port on both sides


def unpacked(package: str, program: str) -> str:
    """The path of a Debian package's program that ci/setup unpacked."""
    path = UNPACKED / package / program
    if not path.exists():
        raise LabError(f"no {path}: run ci/setup")
    return str(path)


class ControlPoint(ABC):
    """One unmodified program on the lab's first LAN host; ``home`` is all it may write to."""

    name: ClassVar[str]
    ports: ClassVar[Sequence[Port]]  # what it opens
    listens: ClassVar[bool] = False  # whether it listens there itself
    options: ClassVar[Mapping[str, str]] = {}  # of the daemon, without which it would not speak UPnP

    def __init__(self, lab: Lab) -> None:
        self.host: Host = lab.lan
        self.home = lab.directory / f"home-{self.name}"
        self.home.mkdir()

    @property
    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home), "LC_ALL": "C.UTF-8"}

    @abstractmethod
    def open(self) -> None:
        """Have the program open its ports; returns when it says that it has."""

    @abstractmethod
    def sees(self) -> bool:
        """Whether the program itself shows or believes that its ports are open."""

    @abstractmethod
    def close(self) -> None:
        """Have the program close its ports; they may be open for a moment longer."""


class Driver:
    """A script of ``drivers`` that does with a library what it is told, one JSON line for each order and answer."""

    def __init__(self, host: Host, python: str, script: str, environment: Mapping[str, str]) -> None:
        self.process: Process = host.popen([python, str(DRIVERS / script)], name=script, env=environment, control=True)

    def ask(self, do: str, **arguments: Any) -> Any:
        """Give an order and wait for its answer; LabError with what the script printed when there is none."""
        self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], DRIVER_PATIENCE)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            raise LabError(f"{self.process.name} does not answer {do}:\n{self.process.output()}")
        return json.loads(line)

    def end(self) -> None:
        """No more orders: the script ends, in its own time."""
        self.process.stdin.close()
