# SPDX-License-Identifier: Apache-2.0
"""Hosts of the lab: one network namespace each, with processes and sockets inside it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

NETNS_DIRECTORY = Path("/run/netns")
CLONE_NEWNET = 0x40000000
STOP_PATIENCE = 5.0

T = TypeVar("T")


class LabError(Exception):
    """The lab could not do what the test asked of it; the text holds what the failed command said."""


def poll(condition: Callable[[], T], seconds: float, what: str, interval: float = 0.02) -> T:
    """Ask until the answer is true, and return it; LabError with ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise LabError(f"not within {seconds:g} s: {what}")
        time.sleep(interval)


class Process:
    """A program that runs in a host; what it prints goes to ``log``."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None, control: bool) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as sink:
            self.popen = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE if control else subprocess.DEVNULL,
                stdout=subprocess.PIPE if control else sink,
                stderr=sink,
                env=None if env is None else {**os.environ, **env},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    @property
    def stdin(self) -> IO[bytes]:
        assert self.popen.stdin is not None, "started without control=True"
        return self.popen.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self.popen.stdout is not None, "started without control=True"
        return self.popen.stdout

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, seconds: float = 10.0) -> None:
        """Return when ``text`` was printed; LabError when the program ends or the time passes before."""

        def printed() -> bool:
            ended = not self.alive
            if text in self.output():
                return True
            if ended:
                raise LabError(f"{self.name} ended with {self.popen.returncode} before {text!r}:\n{self.output()}")
            return False

        poll(printed, seconds, f"{self.name} printing {text!r}")

    def signal(self, number: signal.Signals) -> None:
        if self.alive:
            self.popen.send_signal(number)

    def stop(self, seconds: float = STOP_PATIENCE) -> int:
        """SIGTERM, and SIGKILL when that is not heeded in time; the exit status."""
        self.signal(signal.SIGTERM)
        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return self.kill()
        return self._reaped()

    def kill(self) -> int:
        self.signal(signal.SIGKILL)
        self.popen.wait(STOP_PATIENCE)
        return self._reaped()

    def _reaped(self) -> int:
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return self.popen.returncode


class Host:
    """One network namespace; ``address`` is the host's own on its main link."""

    def __init__(self, name: str, namespace: str, address: str, directory: Path) -> None:
        self.name = name
        self.namespace = namespace
        self.address = address
        self.processes: list[Process] = []
        self._directory = directory

    def __repr__(self) -> str:
        return f"<{self.name} {self.address}>"

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs ``argv`` here."""
        return ["ip", "netns", "exec", self.namespace, *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        check: bool = True,
        timeout: float = 30.0,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end. With ``check`` a failure raises LabError with what it printed."""
        done = subprocess.run(
            self.command(argv),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=None if env is None else {**os.environ, **env},
        )
        if check and done.returncode:
            raise LabError(f"{self.name}: {' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def popen(
        self, argv: Sequence[str], *, name: str = "", env: Mapping[str, str] | None = None, control: bool = False
    ) -> Process:
        """Start a program that is ended with the lab. ``control``: its stdin and stdout are pipes to us."""
        name = name or Path(argv[0]).name
        log = self._directory / f"{self.name}-{len(self.processes)}-{name}.log"
        process = Process(name, self.command(argv), log, env, control)
        self.processes.append(process)
        return process

    def inside(self, work: Callable[[], T]) -> T:
        """Do ``work`` in a thread that stands in this host's network namespace: its sockets and /proc/sys/net."""
        result: list[T] = []
        failure: list[BaseException] = []

        def enter_and_work() -> None:
            try:
                _enter(NETNS_DIRECTORY / self.namespace)
                result.append(work())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=enter_and_work)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return result[0]

    def socket(self, kind: socket.SocketKind, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
        """A socket that belongs to this host for its whole life, whoever uses it."""
        return self.inside(lambda: socket.socket(family, kind))

    def sysctl(self, values: Mapping[str, str]) -> None:
        """Write keys below net; keys of modules that are not loaded are passed over."""

        def write() -> None:
            for key, value in values.items():
                path = Path("/proc/sys/net", *key.split("."))
                if path.exists():
                    path.write_text(value)

        self.inside(write)

    def nft(self, text: str) -> None:
        """Load nftables commands in one transaction."""
        self.run(["nft", "-f", "-"], input=text)

    def nft_list(self, *what: str) -> str:
        """What ``nft list`` prints; empty when the object does not exist."""
        return self.run(["nft", "list", *what], check=False).stdout

    def iptables_rules(self, table: str = "nat", family: str = "iptables") -> list[str]:
        """The legacy table's chains and rules, as iptables-legacy-save prints them, without counters and comments.

        ``family`` ip6tables: those of IPv6.
        """
        saved = self.run([f"{family}-legacy-save", "-t", table]).stdout
        return [line for line in saved.splitlines() if line.startswith(("-A", ":"))]


def _enter(namespace: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(namespace, os.O_RDONLY)
    try:
        if libc.setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
    finally:
        os.close(descriptor)


def processes_in(namespaces: Sequence[str]) -> Iterator[int]:
    """The processes that stand in any of these network namespaces."""
    wanted = set()
    for name in namespaces:
        with contextlib.suppress(FileNotFoundError):
            wanted.add((NETNS_DIRECTORY / name).stat().st_ino)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "ns/net").stat().st_ino in wanted:
                    yield int(entry.name)
