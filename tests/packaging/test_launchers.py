# SPDX-License-Identifier: Apache-2.0
"""The two programs in /usr: which interpreter, which signals, which version."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import igdpcp
from tests.packaging.makefile import ROOT

DAEMON = ROOT / "files" / "usr" / "sbin" / "igdpcpd"
CLI = ROOT / "files" / "usr" / "bin" / "igdpcp-cli"


@pytest.mark.parametrize("launcher", [DAEMON, CLI])
def test_launchers_run_with_the_routers_python(launcher: Path) -> None:
    assert launcher.read_text().startswith("#!/usr/bin/python3\n")
    assert os.access(launcher, os.X_OK)


@pytest.mark.parametrize("launcher", [DAEMON, CLI])
def test_version_is_exactly_the_packages(launcher: Path) -> None:
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, str(launcher), "--version"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert done.stdout == f"{igdpcp.__version__}\n"


def test_the_daemon_ignores_a_reload_signal_before_it_imports_anything_of_ours() -> None:
    statements = ast.parse(DAEMON.read_text()).body[1:]
    assert [ast.unparse(statement) for statement in statements[:2]] == [
        "import signal",
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)",
    ]


def test_a_reload_signal_while_the_daemon_is_being_imported_does_not_end_it(tmp_path: Path) -> None:
    package = tmp_path / "igdpcp" / "daemon"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "app.py").write_text(
        f"import os\nos.kill(os.getpid(), {signal.SIGHUP.value})\ndef main():\n    return 7\n"
    )
    done = subprocess.run([sys.executable, str(DAEMON)], env={"PYTHONPATH": str(tmp_path)}, timeout=20)
    assert done.returncode == 7
