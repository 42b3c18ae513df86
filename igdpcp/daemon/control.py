# SPDX-License-Identifier: Apache-2.0
"""The control socket: one JSON line per request, one per answer, for root on this router only.

A request is ``{"command": NAME, ...}``. The answer is ``{"ok": true, "result": ...}``, or
``{"ok": false, "error": TEXT}`` with ``"code"`` when there is one: the UPnP error code, or the name of the refusal's
reason in lower case.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from igdpcp import jsonio, log
from igdpcp.errors import IgdpcpError, OurFault, Refusal, UpnpFault
from igdpcp.option_values import CONTROL_SOCKET

LINE_LIMIT = 64 * 1024  # bytes of one request
CONNECTION_LIMIT = 32
LIVENESS_SECONDS = 2.0  # a daemon that accepts no connection for so long is hung, but it is there

Command = Callable[[dict[str, Any]], Awaitable[object]]

_logger = logging.getLogger(__name__)


class ControlServer:
    """Serves ``commands`` on the Unix socket at ``path``; a command's result must be JSON's kind of value.

    Until there are commands it says that the daemon is starting, which also keeps a second one away.
    """

    def __init__(self, path: str, commands: Mapping[str, Command] | None = None) -> None:
        self._path = path
        self.commands = commands
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; raises OurFault when another daemon answers at ``path`` or the socket cannot be made."""
        listener = _listen(self._path)
        self._server = await asyncio.start_unix_server(self._connected, sock=listener, limit=LINE_LIMIT)

    async def close(self) -> None:
        """Stop listening, end the open connections and take the socket away."""
        if self._server is None:
            return
        self._server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        self._server = None

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if len(self._connections) > CONNECTION_LIMIT:
                await _send(writer, _failure(f"more than {CONNECTION_LIMIT} programs are connected"))
            else:
                await self._converse(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the peer went away, or the daemon stops: nobody is left to tell
        finally:
            self._connections.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await reader.readuntil(b"\n")
            except asyncio.LimitOverrunError:
                await _send(writer, _failure(f"a request may have {LINE_LIMIT} bytes"))
                return
            except asyncio.IncompleteReadError:
                return
            await _send(writer, await self._answer(line))

    async def _answer(self, line: bytes) -> dict[str, object]:
        try:
            request = jsonio.loads(line)
        except (ValueError, RecursionError):
            return _failure("the request is not JSON")
        if self.commands is None:
            return {**_failure("igdpcpd is starting; ask again in a moment"), "starting": True}
        name = request.get("command") if isinstance(request, dict) else None
        command = self.commands.get(name) if isinstance(name, str) else None
        if command is None:
            return _failure(f"unknown command {name!r}; known: {', '.join(sorted(self.commands))}")
        try:
            return {"ok": True, "result": await command(request)}
        except Refusal as error:
            return _failure(str(error), error.reason.name.lower())
        except UpnpFault as error:
            return _failure(str(error), error.code)
        except (IgdpcpError, ValueError) as error:
            return _failure(str(error))
        except Exception as error:
            _logger.exception(log.line("control_failed", command=name))
            return _failure(f"internal error: {error!r}")


def _failure(text: str, code: int | str | None = None) -> dict[str, object]:
    answer: dict[str, object] = {"ok": False, "error": text}
    if code is not None:
        answer["code"] = code
    return answer


async def _send(writer: asyncio.StreamWriter, answer: dict[str, object]) -> None:
    try:
        line = jsonio.dumps(answer).encode()
    except (TypeError, ValueError, OverflowError) as error:
        line = jsonio.dumps(_failure(f"internal error: {error!r}")).encode()
    writer.write(line + b"\n")
    await writer.drain()


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        _remove_stale(path)
        os.fchmod(listener.fileno(), 0o600)  # before bind: Linux makes the file with it, so it is never open to others
        listener.bind(path)
        listener.listen(CONNECTION_LIMIT)  # at once: what does not answer counts as dead
    except OSError as error:
        listener.close()
        raise OurFault(f"control socket {path} cannot be made: {error.strerror or error}") from error
    except OurFault:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    """Take away the socket that a dead daemon left; raises OurFault when it is not dead or no socket."""
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise OurFault(f"{path} is in the way: it is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(LIVENESS_SECONDS)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except (TimeoutError, BlockingIOError):
            pass  # its queue is full: it is busy, not dead
    raise OurFault(f"another igdpcpd runs: it answers at {path}")


__all__ = ["CONTROL_SOCKET", "LINE_LIMIT", "Command", "ControlServer"]
