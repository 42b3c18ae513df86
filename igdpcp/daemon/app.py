# SPDX-License-Identifier: Apache-2.0
"""igdpcpd: command line, signals, and the lives of the service one after the other."""

from __future__ import annotations

import argparse
import asyncio
import enum
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igdpcp import __version__, config, jsonio, log
from igdpcp.daemon import heap
from igdpcp.errors import ConfigError, OurFault
from igdpcp.net import counters
from igdpcp.option_values import CONTROL_SOCKET

if TYPE_CHECKING:
    from igdpcp.daemon.service import Service

LOG = logging.getLogger("igdpcp.daemon")
DEFAULT_CONFIG = "/etc/config/igdpcp"
OK, UNUSABLE, FAILED = 0, 1, 2  # exit codes: done; the configuration is at fault; this router is
START_SECONDS = 15.0  # what a daemon that is starting gets until it can be told
START_POLL = 0.2
EXIT_SECONDS = 1.0  # what threads get to end that wait for the kernel, or for a lock of iptables
RELEASE_SECONDS = 300.0  # a running daemon paces the deletions of all its mappings


def main(arguments: list[str] | None = None) -> int:
    """Entry point of igdpcpd; returns the exit code."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the handler is there, a reload would end us
    options = _parser().parse_args(arguments)
    try:
        settings = config.load(options.config)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return UNUSABLE
    if options.check:
        return _check(settings, options.config)
    troubles = log.setup(settings.main.log_level)
    for warning in settings.warnings:
        LOG.warning(log.line("config_skipped", problem=warning))
    if options.release:
        return _release(settings, troubles)
    if not settings.main.enabled:
        LOG.info(log.line("not_enabled", config=options.config, remedy="option enabled '1' in section 'main'"))
        return OK
    return _run(_serve(options.config, settings, troubles))


def _run(work: Coroutine[Any, Any, int]) -> int:
    """The exit code of ``work``. The process ends with it soon, even if a thread hangs, which Python would wait for."""
    heap.share()
    with asyncio.Runner() as runner:
        code = runner.run(work)
        last_resort = threading.Timer(EXIT_SECONDS, os._exit, (code,))
        last_resort.daemon = True
        last_resort.start()
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="igdpcpd", description="UPnP IGD to PCP interworking function (RFC 6970)")
    parser.add_argument("--config", default=DEFAULT_CONFIG, metavar="PATH", help="UCI file (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="read the configuration, list its problems, and exit")
    parser.add_argument("--release", action="store_true", help="close every mapping here and at the carrier, and exit")
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def _check(settings: config.Config, path: str) -> int:
    for problem in settings.warnings:
        print(f"{path}: {problem}")
    for absence in config.interface_problems(settings, counters.exists):
        print(f"{path}: {absence} now")
    if not settings.warnings:
        print(f"{path}: no problem" + ("" if settings.main.enabled else "; nothing is enabled"))
    return UNUSABLE if settings.warnings else OK


class _Told(enum.Enum):
    """What may end one life of the service."""

    END = enum.auto()
    RELOAD = enum.auto()
    RESTART = enum.auto()  # with the settings in use: what was found at the start is no longer so


async def _serve(path: str, settings: config.Config, troubles: log.RecentTroubles) -> int:
    """Run one service after the other until a signal, or the operator's release, ends it."""
    gc.disable()  # until all has started: little of what is made meanwhile ever goes
    from igdpcp.daemon.service import Service  # what --check and --version can do without

    told: asyncio.Queue[_Told] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number, meaning in ((signal.SIGTERM, _Told.END), (signal.SIGINT, _Told.END), (signal.SIGHUP, _Told.RELOAD)):
        loop.add_signal_handler(number, told.put_nowait, meaning)
    while True:
        for absence in config.interface_problems(settings, counters.exists):
            LOG.warning(log.line("waiting_for_interface", problem=absence))
        service = Service(settings, troubles, lambda: told.put_nowait(_Told.RESTART))
        life = loop.create_task(_live(service, told))
        latest = None
        try:
            latest = await _next_settings(path, settings, told, life)
        except OurFault as fault:
            LOG.error(log.line("cannot_start", reason=fault))
            return FAILED
        finally:
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
            await service.stop(successor=latest)
        if latest is None:
            LOG.info(log.line("stopped"))
            return OK
        settings = latest
        troubles = log.setup(settings.main.log_level)


async def _live(service: Service, told: asyncio.Queue[_Told]) -> None:
    """Start the service; it ends by itself only when it was released. A signal cancels this at any moment."""
    gc.unfreeze()  # what served before may go
    await service.start()
    gc.collect()
    gc.freeze()  # what is there now stays: requests need not wait until all of it was looked through again
    gc.enable()
    await service.released.wait()
    told.put_nowait(_Told.END)


async def _next_settings(
    path: str, settings: config.Config, told: asyncio.Queue[_Told], life: asyncio.Task[None]
) -> config.Config | None:
    """Wait for the end of this life; returns the configuration of the next one, None: there is none.

    Raises what made the start fail. A new configuration that cannot be used is reported and changes nothing.
    """
    while True:
        word = asyncio.ensure_future(told.get())
        await asyncio.wait([word, life], return_when=asyncio.FIRST_COMPLETED)
        if not word.done():
            word.cancel()
            life.result()
            return None
        match word.result():
            case _Told.END:
                return None
            case _Told.RESTART:
                return settings
        try:
            latest = config.load(path)
        except ConfigError as error:
            LOG.error(log.line("reload_refused", problem="; ".join(error.problems), kept="the configuration in use"))
            continue
        for warning in latest.warnings:
            LOG.warning(log.line("config_skipped", problem=warning))
        LOG.info(log.line("reload"))
        return latest if latest.main.enabled else None


def _release(settings: config.Config, troubles: log.RecentTroubles) -> int:
    """Ask the daemon that runs to close everything; without one do it from what it left behind."""
    control = Path(settings.main.run_dir) / CONTROL_SOCKET
    deadline = time.monotonic() + START_SECONDS
    while answer := _ask_daemon(control, "release", RELEASE_SECONDS):
        if answer.get("ok"):
            return OK
        if not answer.get("starting") or time.monotonic() > deadline:
            LOG.error(log.line("not_released", reason=answer.get("error")))
            return FAILED
        time.sleep(START_POLL)
    return _run(_release_here(settings, troubles))


async def _release_here(settings: config.Config, troubles: log.RecentTroubles) -> int:
    from igdpcp.daemon.service import Service

    service = Service(settings, troubles, lambda: None)
    try:
        await service.start(serve=False)
        await service.release()
    except OurFault as fault:
        LOG.error(log.line("not_released", reason=fault))
        return FAILED
    finally:
        await service.stop()
    return OK


def _ask_daemon(path: Path, command: str, seconds: float) -> dict[str, Any] | None:
    """The answer at the control socket, None when nobody listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(seconds)
        try:
            sock.connect(str(path))
        except OSError:
            return None
        try:
            sock.sendall(jsonio.dumps({"command": command}).encode() + b"\n")
            with sock.makefile("rb") as answers:
                answer = jsonio.loads(answers.readline())
        except (OSError, ValueError):
            return {"error": "igdpcpd did not answer"}
    return answer if isinstance(answer, dict) else {"error": "igdpcpd answered nonsense"}


if __name__ == "__main__":
    sys.exit(main())
