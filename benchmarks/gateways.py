# SPDX-License-Identifier: Apache-2.0
"""The gateways under measure, each in the router of a lab of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.lab.carrier import MINIUPNPD_CHAINS, MINIUPNPD_LEGACY_CHAINS, PEERS, ROOT, START_MINIUPNPD
from tests.lab.clients import HTTP_PORT
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import LabError, poll
from tests.lab.topology import CARRIER_ADDRESS, CARRIER_OUTSIDE, EXTERNAL_ADDRESS, LAN_DEVICE, WAN_DEVICE, Lab

SOAP_DEADLINE = "3.8"  # igdpcp's default; the lab's own is for tests that wait for it
ROOM = "20000"
ADDS = "10000"  # a second: as many as there is time for
PATIENCE = 10.0
CARRIER_READY = "ready"

# As an ordinary IGD. ext_ip, since the WAN's address is one that it refuses to work behind.
MINIUPNPD_CONFIG = f"""
ext_ifname={WAN_DEVICE}
ext_ip={EXTERNAL_ADDRESS}
listening_ip={LAN_DEVICE}
http_port={HTTP_PORT}
ipv6_disable=yes
enable_upnp=yes
enable_natpmp=no
secure_mode=no
system_uptime=no
notify_interval=900
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
upnp_forward_chain=MINIUPNPD
upnp_nat_chain=MINIUPNPD-NAT
upnp_nat_postrouting_chain=MINIUPNPD-POSTROUTING
uuid=7a4f0c5e-2f5d-4c8e-9d3a-0c3d5a1b2c3e
allow 1024-65535 192.168.0.0/16 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


class Gateway(Protocol):
    """A daemon that may be started again after each stop."""

    name: str

    @property
    def pid(self) -> int: ...

    def launch(self) -> None:
        """Start it and wait for nothing."""

    def wait_until_ready(self) -> None:
        """Return when it grants mappings."""

    def stop(self) -> None: ...

    def log(self) -> str:
        """What it wrote since its last start."""


class Igdpcp:
    """igdpcpd with an upstream that grants at once."""

    name = "igdpcp"

    def __init__(self, lab: Lab, backend: str, *, lifetime: int | None = None) -> None:
        """``lifetime``: what the upstream grants at most, in seconds; None: whatever is asked for."""
        argv = [sys.executable, "-S", "-m", "benchmarks.carrier", CARRIER_ADDRESS, EXTERNAL_ADDRESS]
        argv += [] if lifetime is None else [str(lifetime)]
        lab.carrier.popen(argv, name="carrier", env={"PYTHONPATH": str(ROOT)}).wait_for(CARRIER_READY)
        room = {"max_mappings": ROOM, "max_mappings_per_host": ROOM, "adds_per_second": ADDS}
        self.daemon = Igdpcpd(lab, backend, main={"soap_deadline": SOAP_DEADLINE, **room}, start=False)

    @property
    def pid(self) -> int:
        assert self.daemon.process is not None
        return self.daemon.process.pid

    def launch(self) -> None:
        self.daemon.launch()

    def wait_until_ready(self) -> None:
        self.daemon.wait_until_ready()
        self.daemon.wait_for_activation()

    def stop(self) -> None:
        self.daemon.stop()

    def log(self) -> str:
        return self.daemon.log()


class Miniupnpd:
    """Debian's miniupnpd, unpacked by ci/setup; it runs in the background, since -d makes it write debug output."""

    name = "miniupnpd"

    def __init__(self, lab: Lab, backend: str) -> None:
        self._lab = lab
        self._program = PEERS / backend / "usr/sbin/miniupnpd"
        self._config = lab.directory / "miniupnpd.conf"
        self._config.write_text(MINIUPNPD_CONFIG)
        self._pid_file = lab.directory / "miniupnpd.pid"
        if backend == "nftables":
            lab.router.nft(MINIUPNPD_CHAINS)
        else:
            chains = MINIUPNPD_LEGACY_CHAINS.replace(CARRIER_OUTSIDE, WAN_DEVICE)
            lab.router.run(["iptables-legacy-restore", "--noflush"], input=chains)

    @property
    def pid(self) -> int:
        return int(poll(self._written_pid, PATIENCE, "miniupnpd's pid file"))

    def launch(self) -> None:
        self._pid_file.unlink(missing_ok=True)
        argv = [str(self._program), "-f", str(self._config), "-P", str(self._pid_file)]
        command = ["sh", "-c", START_MINIUPNPD, "miniupnpd", *argv]
        self._process = self._lab.router.popen(command, name="miniupnpd")

    def wait_until_ready(self) -> None:
        _ = self.pid

    def stop(self) -> None:
        pid = self.pid
        os.kill(pid, signal.SIGTERM)
        poll(lambda: not Path(f"/proc/{pid}").exists(), PATIENCE, "the end of miniupnpd")

    def log(self) -> str:
        return self._process.output()

    def _written_pid(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self._pid_file.read_text().strip()
        return ""


@dataclass(frozen=True, slots=True)
class Variant:
    """One column of the comparison."""

    kind: type[Igdpcp] | type[Miniupnpd]
    backend: str

    @property
    def key(self) -> str:
        return f"{self.kind.name} {self.backend}"

    @contextlib.contextmanager
    def in_a_lab(self) -> Iterator[tuple[Lab, Gateway]]:
        """The gateway, not started, in a fresh lab that ends with the context."""
        with Lab(firewall=self.backend) as lab:
            yield lab, self.kind(lab, self.backend)


BACKENDS = ("nftables", "iptables")
VARIANTS = tuple(Variant(kind, backend) for backend in BACKENDS for kind in (Igdpcp, Miniupnpd))


def memory(pid: int) -> dict[str, float]:
    """Resident memory in MB: ``VmRSS`` and ``RssAnon``."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = {key: int(value) / 1024 for key, value in re.findall(r"^(VmRSS|RssAnon):\s+(\d+) kB", text, re.MULTILINE)}
    if len(found) != 2:
        raise LabError(f"process {pid} has no memory: it has ended")
    return found
