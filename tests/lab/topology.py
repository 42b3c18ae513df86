# SPDX-License-Identifier: Apache-2.0
"""The lab: LAN hosts, the router, the carrier and an internet host, as namespaces that have no way out.

    lan  192.168.1.50 ─┐ br-lan   router    wan        inside  carrier  outside
                       ├ 192.168.1.1  100.64.12.34 ── 100.64.12.1  62.0.0.1 ── 62.0.0.200  internet
    lan2 192.168.1.60 ─┘

The carrier's outside looks public: miniupnpd and miniupnpc refuse addresses of the documentation ranges.

With ``ipv6`` every link has IPv6 as well, which the carrier neither translates nor filters: the LAN is 2600:1:1::/64
with the last digits of above, the internet host 2600:1:3::200.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from tests.lab import firewalls
from tests.lab.namespaces import NETNS_DIRECTORY, Host, LabError, poll, processes_in
from tests.lab.probes import Answer, Listener, probe

PREFIX = "igdpcp"
OWNED = re.compile(rf"{PREFIX}-(\d+)-\d+-")  # the process that made it, and the number of its lab
LAN_NETWORK = "192.168.1.0/24"
LAN_ADDRESS = "192.168.1.50"
LAN2_ADDRESS = "192.168.1.60"
ROUTER_LAN_ADDRESS = "192.168.1.1"
ROUTER_WAN_ADDRESS = "100.64.12.34"
CARRIER_ADDRESS = "100.64.12.1"
EXTERNAL_ADDRESS = "62.0.0.1"
INTERNET_ADDRESS = "62.0.0.200"
INTERNET2_ADDRESS = "62.0.0.201"
LAN6_NETWORK = "2600:1:1::/64"
LAN6_ADDRESS = "2600:1:1::50"
LAN2_6_ADDRESS = "2600:1:1::60"
ROUTER_LAN6_ADDRESS = "2600:1:1::1"
ROUTER_WAN6_ADDRESS = "2600:1:2::34"
CARRIER6_ADDRESS = "2600:1:2::1"
CARRIER_OUTSIDE6_ADDRESS = "2600:1:3::1"
INTERNET6_ADDRESS = "2600:1:3::200"
INTERNET2_6_ADDRESS = "2600:1:3::201"
LAN_DEVICE = "br-lan"
WAN_DEVICE = "wan"
CARRIER_INSIDE = "inside"
CARRIER_OUTSIDE = "outside"

QUIET = {"ipv6.conf.all.disable_ipv6": "1", "ipv6.conf.default.disable_ipv6": "1"}
FORWARDING = {
    "ipv4.ip_forward": "1",
    "bridge.bridge-nf-call-iptables": "0",
    "bridge.bridge-nf-call-ip6tables": "0",
}

# No address is tentative, and none comes but those that are given.
QUIET6 = {
    f"ipv6.conf.{scope}.{key}": value
    for scope in ("all", "default")
    for key, value in (("disable_ipv6", "0"), ("accept_dad", "0"), ("accept_ra", "0"))
}
FORWARDING6 = {"ipv6.conf.all.forwarding": "1"}

# Each link is made with both ends already in their namespaces, so no name is ever seen on this machine.
LINKS = (
    ("lan", "eth0", "router", "lan1"),
    ("lan2", "eth0", "router", "lan2"),
    ("router", WAN_DEVICE, "carrier", CARRIER_INSIDE),
    ("carrier", CARRIER_OUTSIDE, "internet", "eth0"),
)

# A link that joins a bridge before it is up waits a second for the kernel's link watch.
ADDRESSING = {
    "lan": f"addr add {LAN_ADDRESS}/24 dev eth0\nlink set eth0 up\nroute add default via {ROUTER_LAN_ADDRESS}",
    "lan2": f"addr add {LAN2_ADDRESS}/24 dev eth0\nlink set eth0 up\nroute add default via {ROUTER_LAN_ADDRESS}",
    "router": f"""\
link add {LAN_DEVICE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0
link set lan1 up
link set lan2 up
link set lan1 master {LAN_DEVICE}
link set lan2 master {LAN_DEVICE}
addr add {ROUTER_LAN_ADDRESS}/24 dev {LAN_DEVICE}
link set {LAN_DEVICE} up
addr add {ROUTER_WAN_ADDRESS}/24 dev {WAN_DEVICE}
link set {WAN_DEVICE} up
route add default via {CARRIER_ADDRESS}""",
    "carrier": f"""\
addr add {CARRIER_ADDRESS}/24 dev {CARRIER_INSIDE}
link set {CARRIER_INSIDE} up
addr add {EXTERNAL_ADDRESS}/24 dev {CARRIER_OUTSIDE}
link set {CARRIER_OUTSIDE} up
route add {LAN_NETWORK} via {ROUTER_WAN_ADDRESS}""",
    "internet": f"""\
addr add {INTERNET_ADDRESS}/24 dev eth0
addr add {INTERNET2_ADDRESS}/24 dev eth0
link set eth0 up""",
}

# The second address of the internet host is never chosen as the source of an answer.
ADDRESSING6 = {
    "lan": f"addr add {LAN6_ADDRESS}/64 dev eth0\nroute add default via {ROUTER_LAN6_ADDRESS}",
    "lan2": f"addr add {LAN2_6_ADDRESS}/64 dev eth0\nroute add default via {ROUTER_LAN6_ADDRESS}",
    "router": f"""\
addr add {ROUTER_LAN6_ADDRESS}/64 dev {LAN_DEVICE}
addr add {ROUTER_WAN6_ADDRESS}/64 dev {WAN_DEVICE}
route add default via {CARRIER6_ADDRESS}""",
    "carrier": f"""\
addr add {CARRIER6_ADDRESS}/64 dev {CARRIER_INSIDE}
addr add {CARRIER_OUTSIDE6_ADDRESS}/64 dev {CARRIER_OUTSIDE}
route add {LAN6_NETWORK} via {ROUTER_WAN6_ADDRESS}""",
    "internet": f"""\
addr add {INTERNET6_ADDRESS}/64 dev eth0
addr add {INTERNET2_6_ADDRESS}/64 dev eth0 preferred_lft 0
route add default via {CARRIER_OUTSIDE6_ADDRESS}""",
}

CARRIER_NAT = f"""
table ip cgn {{
	chain srcnat {{
		type nat hook postrouting priority srcnat + 10; policy accept;
		oifname "{CARRIER_OUTSIDE}" masquerade
	}}
}}
"""


class Lab:
    """One lab of its own; use as a context manager. Any number can stand side by side.

    ``firewall`` of the router: ``nftables`` (forwards everything), ``fw4`` (shaped like OpenWrt's, with our drop-ins)
    or ``iptables`` (legacy tables). ``nat`` False: the router routes, and the carrier knows the way to the LAN.
    ``ipv6``: there is IPv6 too.
    """

    _serial = itertools.count(1)
    _open: ClassVar[set[str]] = set()

    def __init__(self, firewall: str = "nftables", *, nat: bool = True, ipv6: bool = False) -> None:
        self.firewall = firewall
        self.nat = nat
        self.ipv6 = ipv6
        self.name = f"{PREFIX}-{os.getpid()}-{next(self._serial)}"
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        self.lan = self._host("lan", LAN_ADDRESS)
        self.lan2 = self._host("lan2", LAN2_ADDRESS)
        self.router = self._host("router", ROUTER_WAN_ADDRESS)
        self.carrier = self._host("carrier", CARRIER_ADDRESS)
        self.internet = self._host("internet", INTERNET_ADDRESS)
        self.hosts = (self.lan, self.lan2, self.router, self.carrier, self.internet)
        self._listeners: list[Listener] = []

    def _host(self, name: str, address: str) -> Host:
        return Host(name, f"{self.name}-{name}", address, self.directory)

    def __enter__(self) -> Lab:
        self._open.add(self.name)
        try:
            self._bring_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _bring_up(self) -> None:
        namespaces = {host.name: host.namespace for host in self.hosts}
        commands = [f"netns add {namespace}" for namespace in namespaces.values()]
        _ip_batch([], commands)
        for host in self.hosts:
            host.sysctl(QUIET6 if self.ipv6 else QUIET)
        _ip_batch(
            [],
            [
                f"link add name {device} netns {namespaces[one]} type veth peer name {peer} netns {namespaces[other]}"
                for one, device, other, peer in LINKS
            ],
        )
        for host in self.hosts:
            addressing6 = [ADDRESSING6[host.name]] if self.ipv6 else []
            _ip_batch(["-n", host.namespace], ["link set lo up", ADDRESSING[host.name], *addressing6])
        for host in (self.router, self.carrier):
            host.sysctl(FORWARDING | FORWARDING6 if self.ipv6 else FORWARDING)
        self.carrier.nft(CARRIER_NAT)
        self.load_firewall()

    def load_firewall(self) -> None:
        """Load the router's own firewall; once more: what a reload of it does."""
        if self.firewall == "fw4":
            self.router.nft(firewalls.fw4(nat=self.nat))
        elif self.firewall == "iptables":
            self.router.run(["iptables-legacy-restore"], input=firewalls.iptables(nat=self.nat))
            if self.ipv6:
                self.router.run(["ip6tables-legacy-restore"], input=firewalls.IP6TABLES)
        elif self.nat:
            self.router.nft(firewalls.PLAIN_NFTABLES)

    def listen(self, host: Host, protocol: str, port: int, address: str = "0.0.0.0") -> Listener:
        """A listener that answers with whom it saw, until it is closed or the lab ends."""
        listener = Listener(host, protocol, port, address)
        self._listeners.append(listener)
        return listener

    def tcp_probe(self, host: Host, to: str, port: int, **options: Any) -> Answer:
        """Connect from ``host``; options as in probes.probe."""
        return probe(host, "tcp", to, port, **options)

    def udp_probe(self, host: Host, to: str, port: int, **options: Any) -> Answer:
        """Send datagrams from ``host`` until one is answered; options as in probes.probe."""
        return probe(host, "udp", to, port, **options)

    def close(self) -> None:
        """End every process, remove every namespace and the directory; safe to call at any moment, and twice."""
        with contextlib.ExitStack() as steps:  # each is taken, whatever the ones before it raised
            steps.callback(self._open.discard, self.name)
            steps.callback(shutil.rmtree, self.directory, ignore_errors=True)
            steps.callback(_remove, [host.namespace for host in self.hosts])
            processes = [process for host in self.hosts for process in host.processes]
            for process in processes:
                process.signal(signal.SIGTERM)
                steps.callback(process.stop)
            for listener in self._listeners:
                steps.callback(listener.close)

    @classmethod
    def leftovers(cls) -> list[str]:
        """Namespaces and processes that labs of this process left behind; empty is what it must be."""
        mine = re.compile(rf"{PREFIX}-{os.getpid()}-\d+")
        found = []
        for namespace in _namespaces():
            match = mine.match(namespace)
            if match and match.group() not in cls._open:
                found.append(namespace)
                found += [f"process {pid} in {namespace}" for pid in processes_in([namespace])]
        return found

    @staticmethod
    def remove_orphans() -> list[str]:
        """Remove the labs of processes that were killed and could not; returns their namespaces."""
        orphans = [name for name in _namespaces() if _is_orphan(name)]
        _remove(orphans)
        for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*-*-*"):
            if _is_orphan(directory.name):
                shutil.rmtree(directory, ignore_errors=True)
        return orphans


def _namespaces() -> list[str]:
    if not NETNS_DIRECTORY.exists():
        return []
    return sorted(path.name for path in NETNS_DIRECTORY.iterdir() if OWNED.match(path.name))


def _is_orphan(name: str) -> bool:
    owner = OWNED.match(name)
    return owner is not None and not Path("/proc", owner.group(1)).exists()


def _remove(namespaces: Sequence[str]) -> None:
    existing = [name for name in namespaces if (NETNS_DIRECTORY / name).exists()]
    if not existing:
        return
    for pid in processes_in(existing):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    poll(lambda: not list(processes_in(existing)), 5.0, f"the end of the processes in {existing}")
    _ip_batch([], [f"netns del {name}" for name in existing])


def _ip_batch(options: Sequence[str], commands: Sequence[str]) -> None:
    done = subprocess.run(
        ["ip", *options, "-batch", "-"], input="\n".join(commands) + "\n", text=True, capture_output=True
    )
    if done.returncode:
        raise LabError(f"ip {' '.join(options)} -batch: {done.stderr}{done.stdout}")
