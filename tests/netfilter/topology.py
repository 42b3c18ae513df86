# SPDX-License-Identifier: Apache-2.0
"""Namespaces for packets: two LAN hosts behind a router, and an outside host that also plays the PCP server.

a 192.168.1.5 ─┐
               br-lan 192.168.1.1  router  wan0 198.51.100.2 ── 198.51.100.1 (and .77) outside
b 192.168.1.6 ─┘

The same in IPv6, with the same last digits, of 2600:1:: on the LAN and of 2600:2:: outside.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Any, TypeVar

from igdpcp.model import Endpoint, IPAddress, Mode, Protocol
from igdpcp.netfilter.base import Backend, GroupCommit
from igdpcp.openings import AnyOpening, Opening, PcpPeer, PinholeOpening, Surroundings

T = TypeVar("T")

A, B, ROUTER = IPv4Address("192.168.1.5"), IPv4Address("192.168.1.6"), IPv4Address("192.168.1.1")
WAN = IPv4Address("198.51.100.2")
SERVER, OTHER = IPv4Address("198.51.100.1"), IPv4Address("198.51.100.77")  # both on the outside host
CARRIER = IPv4Address("203.0.113.9")  # an address that only the carrier has: nobody here answers for it
A6, B6, ROUTER6 = IPv6Address("2600:1::5"), IPv6Address("2600:1::6"), IPv6Address("2600:1::1")
WAN6, SERVER6, OTHER6 = IPv6Address("2600:2::2"), IPv6Address("2600:2::1"), IPv6Address("2600:2::77")
PCP_PORT = 40000  # of our socket, which the server may send to
SURROUNDINGS = Surroundings(
    frozenset({"wan0"}), frozenset({"br-lan"}), frozenset({PcpPeer(SERVER, PCP_PORT)}), frozenset({"wan0"})
)

COMES = 5.0  # seconds that a packet may take which must come
STAYS_AWAY = 0.3  # seconds after which a packet that must not come has not come

_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()


def opening(id: str = "m1", *, lifetime: float = 600, **other: Any) -> Opening:
    """A cascaded TCP mapping of WAN port 4000 to port 4000 of host a, with the changes given."""
    base = Opening(
        id=id, serial=1, mode=Mode.CASCADED, protocol=Protocol.TCP, wan_device="wan0", wan_address=WAN, wan_port=4000,
        client=Endpoint(A, 4000), external=Endpoint(CARRIER, 4000), remote_hosts=(), ends=time.monotonic() + lifetime,
    )  # fmt: skip
    return replace(base, **other)


def pinhole(id: str = "pinhole-1", *, lifetime: float = 600, **other: Any) -> PinholeOpening:
    """A TCP pinhole from anywhere to port 4000 of host a, with the changes given."""
    base = PinholeOpening(
        id=id, serial=1, protocol=Protocol.TCP, client=A6, client_port=4000, remote_host=None, remote_port=0,
        ends=time.monotonic() + lifetime,
    )  # fmt: skip
    return replace(base, **other)


def enter(namespace: str) -> None:
    """Move this thread, and the threads that it starts, to a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), namespace)
    finally:
        os.close(descriptor)


def inside(namespace: str, work: Callable[[], T]) -> T:
    """What ``work`` returns or raises in a thread of that namespace; its sockets stay there."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            enter(namespace)
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class Instance:
    """A GroupCommit with an event loop of its own in a namespace; calls wait until the kernel has the change."""

    def __init__(self, namespace: str, backend: Backend) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(namespace,), daemon=True)
        self._thread.start()
        self.commits: GroupCommit = self.call(lambda: _made(backend))
        self.call(self.commits.start)

    def _run(self, namespace: str) -> None:
        enter(namespace)
        self._loop.run_forever()

    def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run a coroutine function in the instance's loop."""

        async def run() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    def put(self, *openings: AnyOpening) -> list[BaseException | None]:
        """Put them all at once; the error of each."""

        async def run() -> list[BaseException | None]:
            return await asyncio.gather(*map(self.commits.put, openings), return_exceptions=True)

        return self.call(run)

    def remove(self, *ids: str) -> None:
        """Remove one after the other."""
        for id in ids:
            self.call(partial(self.commits.remove, id))

    def surroundings(self, surroundings: Surroundings = SURROUNDINGS) -> None:
        """Apply the ruleset to this network's devices, or others."""
        self.call(lambda: self.commits.surroundings(surroundings))

    def sync(self, *openings: AnyOpening) -> None:
        """Hold exactly these."""
        self.call(lambda: self.commits.sync(list(openings)))

    def packets(self, id: str = "pinhole-1") -> int:
        """What this pinhole has let in."""
        return self.call(lambda: self.commits.pinhole_packets(id))

    def release(self) -> None:
        """Take everything out of the kernel."""
        self.call(self.commits.release)

    def vanish(self) -> None:
        """End as if killed: nothing is told to the kernel."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


async def _made(backend: Backend) -> GroupCommit:
    return GroupCommit(backend, clock=time.monotonic)


def command(*words: str, namespace: str = "", stdin: str = "") -> str:
    """The output of a program, in a namespace; it must succeed."""
    prefix = ("ip", "netns", "exec", namespace) if namespace else ()
    done = subprocess.run([*prefix, *words], input=stdin, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise AssertionError(f"{' '.join(words)}: {done.stderr}")
    return done.stdout


@dataclass(frozen=True)
class Network:
    """Names of the four namespaces."""

    a: str
    b: str
    router: str
    outside: str


@contextmanager
def namespace() -> Iterator[str]:
    """One empty network namespace; its name."""
    name = f"nf{os.getpid()}n{next(_numbers)}"
    command("ip", "netns", "add", name)
    try:
        yield name
    finally:
        command("ip", "netns", "del", name)


@contextmanager
def network(tag: str) -> Iterator[Network]:
    """Make the namespaces and their links; all goes away again."""
    names = Network(*(f"nf{os.getpid()}{tag}{role}" for role in ("a", "b", "r", "o")))
    made: list[str] = []
    try:
        for namespace in (names.a, names.b, names.router, names.outside):
            command("ip", "netns", "add", namespace)
            made.append(namespace)
            command("ip", "-n", namespace, "link", "set", "lo", "up")
        _link(names)
        yield names
    finally:
        for namespace in made:
            command("ip", "netns", "del", namespace)


def _link(names: Network) -> None:
    router = names.router
    script = ["link add br-lan type bridge", f"addr add {ROUTER}/24 dev br-lan", "link set br-lan up",
              f"addr add {ROUTER6}/64 dev br-lan nodad"]  # fmt: skip
    for port, host, address, address6 in (("lan0", names.a, A, A6), ("lan1", names.b, B, B6)):
        script += [
            f"link add {port} type veth peer name eth0 netns {host}",
            f"link set {port} master br-lan",
            f"link set {port} up",
        ]
        _batch(router, script)
        script = []
        _batch(host, [
            f"addr add {address}/24 dev eth0", "link set eth0 up", f"route add default via {ROUTER}",
            f"addr add {address6}/64 dev eth0 nodad", f"route add default via {ROUTER6}",
        ])  # fmt: skip
    _batch(router, [
        f"link add wan0 type veth peer name eth0 netns {names.outside}", f"addr add {WAN}/24 dev wan0",
        "link set wan0 up", f"route add default via {SERVER}",
        f"addr add {WAN6}/64 dev wan0 nodad", f"route add default via {SERVER6}",
    ])  # fmt: skip
    _batch(names.outside, [
        f"addr add {SERVER}/24 dev eth0", f"addr add {OTHER}/24 dev eth0", "link set eth0 up",
        f"route add 192.168.1.0/24 via {WAN}",
        f"addr add {SERVER6}/64 dev eth0 nodad", f"addr add {OTHER6}/64 dev eth0 nodad",
        f"route add 2600:1::/64 via {WAN6}",
    ])  # fmt: skip

    for switch in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        command("sh", "-c", f"echo 1 > /proc/sys/net/{switch}", namespace=router)
    # Bridged hairpin packets would pass the tables a second time, and lose their translation there.
    for bridge in ("/proc/sys/net/bridge/bridge-nf-call-iptables", "/proc/sys/net/bridge/bridge-nf-call-ip6tables"):
        command("sh", "-c", f"test ! -e {bridge} || echo 0 > {bridge}", namespace=router)


def _batch(namespace: str, lines: list[str]) -> None:
    command("ip", "-n", namespace, "-batch", "-", stdin="\n".join(lines) + "\n")


def bound(namespace: str, kind: int, address: IPAddress, port: int) -> socket.socket:
    """A socket of that namespace, bound."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    made = inside(namespace, lambda: socket.socket(family, kind))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((str(address), port))
    return made


def tcp(
    sender: str,
    target: tuple[IPv4Address, int],
    receiver: str,
    at: Endpoint,
    source: tuple[IPv4Address, int] | None = None,
) -> tuple[str, int] | None:
    """Connect from ``sender`` to ``target``; whom the server at ``at`` sees, None when it is not reached."""
    with bound(receiver, socket.SOCK_STREAM, at.address, at.port) as server:
        server.listen()
        with bound(sender, socket.SOCK_STREAM, *(source or (IPv4Address(0), 0))) as client:
            client.settimeout(COMES)
            try:
                client.connect((str(target[0]), target[1]))
            except OSError:
                return None
            server.settimeout(COMES)
            peer: tuple[str, int]
            accepted, peer = server.accept()
            with accepted:
                accepted.sendall(b"pong")
                assert client.recv(4) == b"pong"
            # RST instead of TIME_WAIT, so that the same ports can be used again
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return peer


def udp(
    sender: str, target: tuple[IPv4Address, int], receiver: str, at: Endpoint,
    source: tuple[IPv4Address, int] | None = None, *, comes: bool = True,
) -> tuple[str, int] | None:  # fmt: skip
    """The same by a datagram and its answer, which must come back from where the question was sent to."""
    with (
        bound(receiver, socket.SOCK_DGRAM, at.address, at.port) as server,
        bound(sender, socket.SOCK_DGRAM, *(source or (IPv4Address(0), 0))) as client,
    ):
        client.sendto(b"ping", (str(target[0]), target[1]))
        server.settimeout(COMES if comes else STAYS_AWAY)
        peer: tuple[str, int]
        try:
            _, peer = server.recvfrom(100)
        except TimeoutError:
            return None
        server.sendto(b"pong", peer)
        client.settimeout(COMES)
        assert client.recvfrom(100) == (b"pong", (str(target[0]), target[1]))
        return peer
