# SPDX-License-Identifier: Apache-2.0
"""igdpcp-cli as a person and as a script sees it."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from igdpcp import cli
from igdpcp.errors import Reason, Refusal
from tests.cli import daemon_stub

REPAIRED = {"found": {"missing": 1, "surplus": 0}, "left": {"missing": 0, "surplus": 0}}
HOSTILE = "evil\x1b[2J\x9b31m\u202e\ntext"


class Daemon:
    """Answers the commands, and keeps what it was asked."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.asked: list[dict[str, Any]] = []
        self.status = daemon_stub.status()
        self.mappings = [daemon_stub.mapping()]
        self.repaired = REPAIRED
        self.refusal: Refusal | None = None

    async def answer(self, request: dict[str, Any]) -> object:
        self.asked.append(request)
        if self.refusal:
            raise self.refusal
        return {"status": self.status, "mappings": self.mappings, "audit": {}, "repair": self.repaired}.get(
            request["command"], self.mappings[0]
        )

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(cli.main, ["--socket", self.path, *arguments])


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    stub = Daemon(str(tmp_path / "control.sock"))
    with daemon_stub.serving(
        stub.path, dict.fromkeys(("status", "mappings", "add", "delete", "audit", "repair"), stub.answer)
    ):
        yield stub


@pytest.mark.parametrize("arguments", [("--json", "mappings"), ("mappings", "--json")])
def test_json_may_stand_before_or_behind_the_command(daemon: Daemon, arguments: tuple[str, ...]) -> None:
    assert json.loads(daemon.run(*arguments).stdout) == [daemon_stub.MAPPING]


def test_status_in_json_is_what_the_daemon_said(daemon: Daemon) -> None:
    assert json.loads(daemon.run("status", "--json").stdout) == daemon_stub.STATUS


def test_status_draws_the_screen(daemon: Daemon) -> None:
    result = daemon.run("status")
    assert result.exit_code == 0
    assert "192.168.1.0/24 -> 100.64.12.34" in result.stdout


def test_status_compares_the_rules_first_when_told_to(daemon: Daemon) -> None:
    assert daemon.run("status", "--audit").exit_code == 0
    assert [request["command"] for request in daemon.asked] == ["audit", "status"]


def test_status_repairs_the_rules_and_says_what_was_done(daemon: Daemon) -> None:
    result = daemon.run("status", "--repair")
    assert result.stdout == "1 rule missing; all were laid anew. The kernel agrees with the table.\n"
    assert json.loads(daemon.run("status", "--repair", "--json").stdout) == REPAIRED
    assert [request["command"] for request in daemon.asked] == ["repair"] * 2


def test_a_repair_after_which_something_is_still_wrong_ends_with_1(daemon: Daemon) -> None:
    daemon.repaired = {**REPAIRED, "left": {"missing": 0, "surplus": 1}}
    assert daemon.run("status", "--repair").exit_code == 1


def test_a_repair_that_fails_ends_with_1_and_why(daemon: Daemon) -> None:
    daemon.refusal = Refusal(Reason.RULESET, "firewall not active")
    result = daemon.run("status", "--repair")
    assert result.exit_code == 1
    assert "firewall not active" in result.stderr


def test_add_sends_every_word_and_tells_the_result(daemon: Daemon) -> None:
    result = daemon.run(
        "add", "TCP", "8080", "192.168.1.50:80", "--lease", "60", "--description", "d", "--any",
        "--remote-host", "62.0.0.9",
    )  # fmt: skip
    assert daemon.asked == [
        {
            "command": "add",
            "protocol": "tcp",
            "external_port": 8080,
            "client": "192.168.1.50",
            "client_port": 80,
            "lease": 60,
            "description": "d",
            "remote_host": "62.0.0.9",
            "any": True,
        }
    ]
    assert result.stdout == "tcp 62.0.0.1:8080 reaches 192.168.1.50:80 (until deleted).\n"


def test_add_uses_the_external_port_when_the_clients_is_not_said(daemon: Daemon) -> None:
    daemon.run("add", "udp", "3074", "192.168.1.50")
    assert daemon.asked[0]["client_port"] == 3074


def test_add_says_when_only_the_router_opened_the_port(daemon: Daemon) -> None:
    daemon.mappings = [daemon_stub.mapping(local_only=True)]
    assert "the carrier has not opened it" in daemon.run("add", "tcp", "8080", "192.168.1.50").stdout


def test_delete_by_port_and_by_id(daemon: Daemon) -> None:
    result = daemon.run("delete", "tcp", "8080")
    daemon.run("delete", "--id", "m1")
    daemon.run("delete", "UDP", "8080", "--remote-host", "62.0.0.9")
    assert daemon.asked == [
        {"command": "delete", "protocol": "tcp", "external_port": 8080, "remote_host": ""},
        {"command": "delete", "id": "m1"},
        {"command": "delete", "protocol": "udp", "external_port": 8080, "remote_host": "62.0.0.9"},
    ]
    assert result.stdout == "tcp 62.0.0.1:8080 is closed; it reached 192.168.1.50:80.\n"


def test_delete_closes_a_pinhole_by_its_number(daemon: Daemon) -> None:
    daemon.mappings = [daemon_stub.pinhole()]
    assert daemon.run("delete", "pinhole", "17").stdout == "The pinhole to tcp [2600:1::50]:7000 is closed.\n"
    assert daemon.asked == [{"command": "delete", "id": "pinhole-17"}]


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "sctp", "80", "192.168.1.50"),
        ("add", "tcp", "70000", "192.168.1.50"),
        ("add", "tcp", "80", "host"),
        ("add", "tcp", "80", ":80"),
        ("add", "tcp", "80", "192.168.1.50:0"),
        ("add", "tcp", "80", "192.168.1.50:"),
        ("add", "tcp", "0", "192.168.1.50:80"),
        ("add", "tcp", "0", "192.168.1.50", "--any"),
        ("add", "tcp", "80", "192.168.1.50", "--remote-host", "x"),
        ("delete",),
        ("delete", "tcp"),
        ("delete", "tcp", "80", "--id", "m1"),
        ("delete", "tcp", "--id", "m1"),
        ("delete", "pinhole", "--id", "m1"),
        ("delete", "--id", "m1", "--remote-host", "62.0.0.9"),
        ("delete", "pinhole", "7", "--remote-host", "62.0.0.9"),
        ("delete", "tcp", "0"),
        ("delete", "pinhole", "0"),
        ("delete", "pinhole"),
    ],
)
def test_wrong_usage_is_refused_before_the_daemon_is_asked(daemon: Daemon, arguments: tuple[str, ...]) -> None:
    assert daemon.run(*arguments).exit_code == 2
    assert daemon.asked == []


def test_a_refusal_ends_with_1_and_its_code(daemon: Daemon) -> None:
    daemon.refusal = Refusal(Reason.QUOTA, HOSTILE)
    plain = daemon.run("add", "tcp", "80", "192.168.1.50")
    assert plain.exit_code == 1
    assert plain.stderr == "igdpcp-cli: too many mappings: evil\\x1b[2J\\x9b31m\\u202e\\ntext (quota)\n"
    in_json = daemon.run("add", "tcp", "80", "192.168.1.50", "--json")
    assert in_json.exit_code == 1
    assert json.loads(in_json.stdout) == {"error": f"too many mappings: {HOSTILE}", "code": "quota"}


def test_without_a_daemon_one_line_says_how_to_start_it(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.sock", tmp_path / "stale.sock"):
        with socket.socket(socket.AF_UNIX) as stale:
            if path.name == "stale.sock":
                stale.bind(str(path))
        result = CliRunner().invoke(cli.main, ["--socket", str(path), "status"])
        assert result.exit_code == 3
        assert result.stderr == (
            f"igdpcp-cli: igdpcpd is not running (no socket at {path}): start it with /etc/init.d/igdpcp start\n"
        )


@pytest.mark.parametrize("answer", [b"", b"220 smtp ready\n", b"[]\n", b"{}\n"])
def test_an_answer_that_is_not_the_daemons_ends_with_3(tmp_path: Path, answer: bytes) -> None:
    path = str(tmp_path / "other.sock")
    with socket.create_server(path, family=socket.AF_UNIX) as server:

        def serve_once() -> None:
            with server.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=serve_once)
        thread.start()
        result = CliRunner().invoke(cli.main, ["--socket", path, "status"])
        thread.join(5)
    assert result.exit_code == 3
    assert "without an answer" in result.stderr or "is not igdpcpd" in result.stderr


def test_json_output_cannot_steer_a_terminal_and_still_says_the_same(daemon: Daemon) -> None:
    daemon.mappings = [daemon_stub.mapping(description=HOSTILE, agent="\U000e0001")]
    output = daemon.run("mappings", "--json").stdout
    assert all(character.isprintable() or character == "\n" for character in output)
    assert json.loads(output) == daemon.mappings


def test_version_is_printed_bare() -> None:
    assert CliRunner().invoke(cli.main, ["--version"]).stdout == "0.1.0\n"


def test_every_command_explains_itself() -> None:
    for arguments in ([], ["status"], ["mappings"], ["add"], ["delete"]):
        result = CliRunner().invoke(cli.main, [*arguments, "--help"])
        assert result.exit_code == 0
        assert "Usage:" in result.stdout


def test_it_starts_in_a_quarter_of_a_second_of_processor_time() -> None:
    def start() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "igdpcp.cli", "--version"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(start() for _ in range(5)) < 0.25
