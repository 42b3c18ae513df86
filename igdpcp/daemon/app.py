# SPDX-License-Identifier: Apache-2.0
"""igdpcpd: command line, signals, and the lives of the service one after the other."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Literal

from igdpcp import __version__, config, jsonio, log
from igdpcp.errors import ConfigError, OurFault
from igdpcp.net import counters
from igdpcp.option_values import CONTROL_SOCKET

LOG = logging.getLogger("igdpcp.daemon")
DEFAULT_CONFIG = "/etc/config/igdpcp"
OK, UNUSABLE, FAILED = 0, 1, 2  # exit codes: done; the configuration is at fault; this router is
LIVENESS_SECONDS = 5.0
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
    return asyncio.run(_serve(options.config, settings, troubles))


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


async def _serve(path: str, settings: config.Config, troubles: log.RecentTroubles) -> int:
    """Run one service after the other until a signal, or the operator's release, ends it."""
    from igdpcp.daemon.service import Service  # what --check and --version can do without

    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, signals.put_nowait, number)
    while True:
        for absence in config.interface_problems(settings, counters.exists):
            LOG.warning(log.line("waiting_for_interface", problem=absence))
        service = Service(settings, troubles, lambda: signals.put_nowait(signal.SIGHUP))
        latest = None
        try:
            await service.start()
            told_to_end = loop.create_task(service.released.wait())
            latest = await _next_settings(path, signals, told_to_end)
        except OurFault as fault:
            LOG.error(log.line("cannot_start", reason=fault))
            return FAILED
        finally:
            await service.stop(for_reload=latest is not None)
        if latest is None:
            LOG.info(log.line("stopped"))
            return OK
        settings = latest
        troubles = log.setup(settings.main.log_level)


async def _next_settings(
    path: str, signals: asyncio.Queue[signal.Signals], told_to_end: asyncio.Task[Literal[True]]
) -> config.Config | None:
    """Wait for a reload and return its configuration; None: end. A configuration that cannot be used is reported."""
    while True:
        told = asyncio.ensure_future(signals.get())
        await asyncio.wait([told, told_to_end], return_when=asyncio.FIRST_COMPLETED)
        if told_to_end.done() or told.result() is not signal.SIGHUP:
            told.cancel()
            told_to_end.cancel()
            return None
        try:
            settings = config.load(path)
        except ConfigError as error:
            LOG.error(log.line("reload_refused", problem="; ".join(error.problems), kept="the configuration in use"))
            continue
        for warning in settings.warnings:
            LOG.warning(log.line("config_skipped", problem=warning))
        LOG.info(log.line("reload"))
        told_to_end.cancel()
        return settings if settings.main.enabled else None


def _release(settings: config.Config, troubles: log.RecentTroubles) -> int:
    """Ask the daemon that runs to close everything; without one do it from what it left behind."""
    control = Path(settings.main.run_dir) / CONTROL_SOCKET
    if _ask_daemon(control, "status", LIVENESS_SECONDS) is None:
        return asyncio.run(_release_here(settings, troubles))
    answer = _ask_daemon(control, "release", RELEASE_SECONDS) or {"error": "igdpcpd did not answer"}
    if not answer.get("ok"):
        LOG.error(log.line("not_released", reason=answer.get("error")))
        return FAILED
    return OK


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
    """The answer at the control socket, None when there is none in time."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(seconds)
        try:
            sock.connect(str(path))
            sock.sendall(jsonio.dumps({"command": command}).encode() + b"\n")
            with sock.makefile("rb") as answers:
                line = answers.readline()
        except OSError:
            return None
    try:
        answer = jsonio.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


if __name__ == "__main__":
    sys.exit(main())
