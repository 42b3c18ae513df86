# SPDX-License-Identifier: Apache-2.0
"""The control socket as a program on the router sees it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from igdpcp.daemon.control import LINE_LIMIT, ControlServer
from igdpcp.errors import OurFault, Reason, Refusal, RulesetError, UpnpFault
from tests.cli.daemon_stub import serving


async def echo(request: dict[str, Any]) -> object:
    return request


async def refuse(request: dict[str, Any]) -> object:
    failures = {
        "refusal": Refusal(Reason.CONFLICT, "tcp 80"),
        "fault": UpnpFault(718, "ConflictInMappingEntry"),
        "ours": RulesetError("kernel said no"),
        "bug": KeyError("port"),
    }
    if request["how"] == "unserialisable":
        return object()
    raise failures[request["how"]]


def talk(path: str, *lines: bytes) -> list[dict[str, Any]]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(path)
        with connection.makefile("rwb") as stream:
            answers = []
            for line in lines:
                stream.write(line + b"\n")
                stream.flush()
                answers.append(json.loads(stream.readline()))
            return answers


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "run" / "control.sock")


def test_requests_on_one_connection_are_answered_in_turn(path: str) -> None:
    with serving(path, {"echo": echo}):
        answers = talk(path, b'{"command":"echo","n":1}', b'{"command":"echo","n":2}')
    assert answers == [{"ok": True, "result": {"command": "echo", "n": n}} for n in (1, 2)]


def test_only_the_owner_may_open_the_socket(path: str) -> None:
    with serving(path, {}):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert not os.path.exists(path)


def test_an_unknown_command_names_the_known_ones(path: str) -> None:
    with serving(path, {"status": echo, "add": echo}):
        answers = talk(path, b'{"command":"stat"}', b"{}", b"[]", b'{"command":[]}')
    assert answers[0] == {"ok": False, "error": "unknown command 'stat'; known: add, status"}
    assert all(not answer["ok"] and "known: add, status" in answer["error"] for answer in answers)


@pytest.mark.parametrize("line", [b"", b"hello", b"\xff\xfe", b"[" * 5000])
def test_what_is_not_json_is_answered_and_the_connection_stays(path: str, line: bytes) -> None:
    with serving(path, {"echo": echo}):
        answers = talk(path, line, b'{"command":"echo"}')
    assert answers[0] == {"ok": False, "error": "the request is not JSON"}
    assert answers[1]["ok"]


@pytest.mark.parametrize(
    ("how", "answer"),
    [
        ("refusal", {"ok": False, "error": "port belongs to another client: tcp 80", "code": "conflict"}),
        ("fault", {"ok": False, "error": "ConflictInMappingEntry", "code": 718}),
        ("ours", {"ok": False, "error": "kernel said no"}),
        ("bug", {"ok": False, "error": "internal error: KeyError('port')"}),
    ],
)
def test_a_failed_command_says_why_and_the_server_lives_on(path: str, how: str, answer: dict[str, Any]) -> None:
    with serving(path, {"refuse": refuse, "echo": echo}):
        first, second = talk(path, json.dumps({"command": "refuse", "how": how}).encode(), b'{"command":"echo"}')
    assert first == answer
    assert second["ok"]


def test_a_line_past_the_limit_is_refused(path: str) -> None:
    with serving(path, {"echo": echo}):
        (answer,) = talk(path, b"x" * (LINE_LIMIT + 10))
        assert "65536 bytes" in answer["error"]
        assert talk(path, b'{"command":"echo"}')[0]["ok"]


def test_a_second_daemon_does_not_start_and_does_not_disturb_the_first(path: str) -> None:
    with serving(path, {"echo": echo}):
        with pytest.raises(OurFault, match="another igdpcpd runs"):
            asyncio.run(ControlServer(path, {}).start())
        assert talk(path, b'{"command":"echo"}')[0]["ok"]


def test_a_socket_that_a_dead_daemon_left_is_replaced(path: str) -> None:
    os.makedirs(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with serving(path, {"echo": echo}):
        assert talk(path, b'{"command":"echo"}')[0]["ok"]


def test_a_file_in_the_way_is_left_alone_and_named(path: str) -> None:
    os.makedirs(os.path.dirname(path))
    Path(path).write_text("mine")
    with pytest.raises(OurFault, match="not a socket"):
        asyncio.run(ControlServer(path, {}).start())
    assert Path(path).read_text() == "mine"


def test_closing_ends_open_connections(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        with serving(path, {"echo": echo}):
            connection.connect(path)
            connection.sendall(b'{"command":"echo"}\n')
            assert connection.recv(100)
        assert connection.recv(100) == b""
