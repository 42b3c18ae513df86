# SPDX-License-Identifier: Apache-2.0
"""igdpcp-cli: ask the running daemon over its control socket.

Exit codes: 0 done, 1 the daemon refused or failed, 2 wrong usage, 3 no daemon answers.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import IO, Any, TypeVar

import click

from igdpcp import __version__, jsonio, screen
from igdpcp.model import LEASE_MAX_IGD2
from igdpcp.values import dataclass

DEFAULT_SOCKET = "/var/run/igdpcp/control.sock"
ANSWER_SECONDS = 5.0
CHANGE_SECONDS = 100.0  # a change waits for the carrier as long as the longest soap_deadline, 90 s

Answer = dict[str, Any]
Function = TypeVar("Function", bound=Callable[..., Any])


class Failed(click.ClickException):
    """The daemon refused the command or failed at it."""

    exit_code = 1

    def __init__(self, message: str, code: int | str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.as_json = False

    def show(self, file: IO[Any] | None = None) -> None:
        if self.as_json:
            code = {} if self.code is None else {"code": self.code}
            click.echo(json_text({"error": self.message, **code}))
        else:
            code_text = "" if self.code is None else f" ({self.code})"
            click.echo(f"igdpcp-cli: {screen.printable(self.message, 1000)}{code_text}", file=file or sys.stderr)


class Unreachable(Failed):
    """No daemon answers."""

    exit_code = 3


@dataclass(slots=True)
class Session:
    """What the options said: which socket, and whether the answer is for programs."""

    socket: str = DEFAULT_SOCKET
    json: bool = False

    def show(self, result: Any, draw: Callable[[Any], str]) -> None:
        click.echo(json_text(result) if self.json else draw(result))

    def ask(self, request: Answer, seconds: float) -> Any:
        """The result of one request; raises Unreachable or Failed."""
        try:
            return self._result(self._exchange(jsonio.dumps(request).encode() + b"\n", seconds))
        except Failed as error:
            error.as_json = self.json
            raise

    def _result(self, line: bytes) -> Any:
        try:
            answer = jsonio.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or "ok" not in answer:
            raise Unreachable(f"what answers at {self.socket} is not igdpcpd")
        if not answer["ok"]:
            raise Failed(str(answer.get("error", "")), answer.get("code"))
        return answer.get("result")

    def _exchange(self, line: bytes, seconds: float) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            try:
                connection.connect(self.socket)
                connection.sendall(line)
                with connection.makefile("rb") as stream:
                    answer = stream.readline()
            except (FileNotFoundError, ConnectionRefusedError) as error:
                raise Unreachable(
                    f"igdpcpd is not running (no socket at {self.socket}): start it with /etc/init.d/igdpcp start"
                ) from error
            except TimeoutError as error:
                raise Unreachable(f"igdpcpd did not answer within {seconds:.0f} s; see 'logread -e igdpcp'") from error
            except PermissionError as error:
                raise Unreachable(f"only root may use {self.socket}") from error
            except OSError as error:
                raise Unreachable(f"{self.socket}: {error.strerror or error}") from error
        if not answer:
            raise Unreachable("igdpcpd closed the connection without an answer")
        return answer


def json_text(value: Any) -> str:
    """Indented JSON in which nothing that a terminal could obey is left unescaped."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in jsonio.pretty(value))


def _json_option(function: Function) -> Function:
    def remember(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        session = context.ensure_object(Session)
        session.json = session.json or value

    option = click.option("--json", is_flag=True, expose_value=False, callback=remember, help="Answer in JSON.")
    return option(function)


def _address(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else str(IPv4Address(value))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not an IPv4 address") from None


def _endpoint(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, int]:
    """ADDRESS or ADDRESS:PORT; port 0 where none is said."""
    address, colon, port = value.partition(":")
    if colon and not (port.isdecimal() and 1 <= int(port[:6]) <= 65535):
        raise click.BadParameter(f"{port!r} is not a port (1-65535)")
    return _address(context, parameter, address) or "", int(port or 0)


_protocol = click.argument("protocol", type=click.Choice(["tcp", "udp"], case_sensitive=False))
_remote_host = click.option("--remote-host", callback=_address, help="Only from this host outside.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(version)s")
@click.option("--socket", "path", default=DEFAULT_SOCKET, show_default=True, help="The daemon's control socket.")
@_json_option
@click.pass_context
def main(context: click.Context, path: str) -> None:
    """Ask the running igdpcpd, or tell it to open and close ports.

    Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 no daemon answers.
    """
    context.ensure_object(Session).socket = path
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@main.command()
@click.option("--audit", is_flag=True, help="Compare all rules in the kernel with the table first.")
@click.option("--repair", is_flag=True, help="Compare them, lay them anew where they differ, and say what was done.")
@_json_option
@click.pass_obj
def status(session: Session, audit: bool, repair: bool) -> None:
    """Show on one screen what works, what does not, and what to do."""
    if repair:
        result = session.ask({"command": "repair"}, CHANGE_SECONDS)
        session.show(result, screen.repaired)
        sys.exit(Failed.exit_code if screen.differs(result["left"]) else 0)
    if audit:
        session.ask({"command": "audit"}, CHANGE_SECONDS)
    session.show(session.ask({"command": "status"}, ANSWER_SECONDS), screen.status_screen)


@main.command()
@_json_option
@click.pass_obj
def mappings(session: Session) -> None:
    """List the mappings, and the pinholes for IPv6."""
    session.show(session.ask({"command": "mappings"}, ANSWER_SECONDS), screen.mappings_table)


@main.command()
@_protocol
@click.argument("external_port", type=click.IntRange(0, 65535))
@click.argument("client", callback=_endpoint)
@click.option("--lease", type=click.IntRange(0, LEASE_MAX_IGD2), default=0, help="Seconds; 0: until deleted.")
@click.option("--description", default="", help="A note for the list.")
@click.option("--any", "any_port", is_flag=True, help="Another external port will do; 0 has no preference.")
@_remote_host
@_json_option
@click.pass_obj
def add(
    session: Session,
    protocol: str,
    external_port: int,
    client: tuple[str, int],
    lease: int,
    description: str,
    any_port: bool,
    remote_host: str | None,
) -> None:
    """Open EXTERNAL_PORT towards CLIENT, which is ADDRESS or ADDRESS:PORT."""
    address, client_port = client
    if external_port == 0 and not any_port:
        raise click.UsageError("external port 0 needs --any")
    if not (client_port or external_port):
        raise click.UsageError("with external port 0 the client's port must be said: ADDRESS:PORT")
    request = {
        "command": "add",
        "protocol": protocol.lower(),
        "external_port": external_port,
        "client": address,
        "client_port": client_port or external_port,
        "lease": lease,
        "description": description,
        "remote_host": remote_host or "",
        "any": any_port,
    }
    session.show(session.ask(request, CHANGE_SECONDS), screen.added)


@main.command()
@click.argument("kind", type=click.Choice(["tcp", "udp", "pinhole"], case_sensitive=False), required=False)
@click.argument("number", type=click.IntRange(1, 65535), required=False)
@click.option("--id", "row_id", help="Instead of the above: the id from 'mappings --json'.")
@_remote_host
@_json_option
@click.pass_obj
def delete(session: Session, kind: str | None, number: int | None, row_id: str | None, remote_host: str | None) -> None:
    """Close the external port NUMBER of tcp or udp, the pinhole NUMBER, or what has that id."""
    by_number = row_id is None
    if (kind is not None, number is not None) != (by_number, by_number):
        raise click.UsageError("say either tcp, udp or pinhole and its number, or --id")
    if remote_host is not None and kind not in ("tcp", "udp"):
        raise click.UsageError("--remote-host goes with tcp and udp only")
    request: Answer = {"command": "delete", "id": row_id}
    if kind == "pinhole":
        request["id"] = f"pinhole-{number}"
    elif kind is not None:
        request = {
            "command": "delete",
            "protocol": kind.lower(),
            "external_port": number,
            "remote_host": remote_host or "",
        }
    session.show(session.ask(request, CHANGE_SECONDS), screen.deleted)


if __name__ == "__main__":
    main(prog_name="igdpcp-cli")
