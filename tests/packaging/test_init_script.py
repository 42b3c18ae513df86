# SPDX-License-Identifier: Apache-2.0
"""The init script under busybox ash, with procd's functions replaced by ones that note their calls."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.packaging.makefile import ROOT

SCRIPT = ROOT / "files" / "etc" / "init.d" / "igdpcp"

# The order of calls is that of OpenWrt's rc.common with USE_PROCD=1.
RC_COMMON = """
note() { echo "$*" >>"$RECORD"; }
for name in procd_open_instance procd_set_param procd_close_instance procd_add_reload_trigger procd_add_validation; do
	eval "$name() { note $name \\"\\$@\\"; }"
done
uci_load_validate() {
	note uci_load_validate "$@"
	enabled=$TEST_ENABLED
	run_dir=$TEST_RUN_DIR
	"$4" "$3" "$TEST_VALID"
}
logger() { note logger "$@"; }
start() { start_service; note procd_set; }
stop() { stop_service; note procd_kill; }
reload() { start; }
restart() { stop; start; }
shutdown() { stop; }
boot() { start; }
action=$1
. "$SCRIPT"
PROG=$TEST_PROG
"$action"
"""


class Router:
    """A place where the init script runs; ``calls`` are the calls that its last action made."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.program = directory / "igdpcpd"
        self.record = directory / "record"
        self.set_program("exit 0")

    def set_program(self, body: str) -> None:
        self.program.write_text(f'#!/bin/sh\necho "igdpcpd $*" >>{self.record}\n{body}\n')
        self.program.chmod(0o755)

    def do(self, action: str, enabled: str = "1", valid: str = "0", **environment: str) -> list[str]:
        self.record.write_text("")
        subprocess.run(
            ["busybox", "ash", "-s", action],
            input=RC_COMMON,
            text=True,
            check=True,
            timeout=20,
            env={
                "PATH": os.environ["PATH"],
                "SCRIPT": str(SCRIPT),
                "RECORD": str(self.record),
                "TEST_PROG": str(self.program),
                "TEST_ENABLED": enabled,
                "TEST_VALID": valid,
                "TEST_RUN_DIR": str(self.directory),
                **environment,
            },
        )
        calls = self.record.read_text().replace(str(self.program), "/usr/sbin/igdpcpd").splitlines()
        return [call for call in calls if not call.startswith("uci_load_validate")]


@pytest.fixture
def router(tmp_path: Path) -> Router:
    return Router(tmp_path)


START = [
    "procd_open_instance main",
    "procd_set_param command /usr/sbin/igdpcpd",
    "procd_set_param env PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1",
    "procd_set_param file /etc/config/igdpcp",
    "procd_set_param reload_signal HUP",
    "procd_set_param respawn 3600 5 5",
    "procd_set_param term_timeout 10",
    "procd_set_param stdout 1",
    "procd_set_param stderr 1",
    "procd_close_instance",
    "procd_set",
]


@pytest.mark.parametrize("action", ["start", "boot", "reload"])
def test_an_enabled_service_is_described_to_procd(router: Router, action: str) -> None:
    assert router.do(action) == START


@pytest.mark.parametrize("action", ["start", "boot"])
def test_a_service_that_is_not_enabled_starts_nothing(router: Router, action: str) -> None:
    assert router.do(action, enabled="0") == ["procd_set"]


def test_an_invalid_enabled_is_logged_and_starts_nothing(router: Router) -> None:
    calls = router.do("start", enabled="maybe", valid="1")
    assert calls[0].startswith("logger -t igdpcp -p daemon.err")
    assert calls[1:] == ["procd_set"]


def test_stop_by_a_person_closes_the_ports_while_the_daemon_still_runs(router: Router) -> None:
    assert router.do("stop") == ["igdpcpd --release", "procd_kill"]


def test_restart_and_shutdown_leave_the_ports_open(router: Router) -> None:
    assert router.do("restart") == ["procd_kill", *START]
    assert router.do("shutdown") == ["procd_kill"]


def test_the_package_manager_leaves_the_ports_open_on_upgrade_only(router: Router) -> None:
    assert router.do("stop", PKG_UPGRADE="1") == ["procd_kill"]
    assert router.do("stop", PKG_UPGRADE="0") == ["igdpcpd --release", "procd_kill"]


def test_switching_a_running_service_off_closes_the_ports(router: Router) -> None:
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(router.directory / "control.sock"))
        assert router.do("reload", enabled="0") == ["igdpcpd --release", "procd_set"]


def test_a_release_that_fails_is_logged(router: Router) -> None:
    router.set_program("exit 1")
    assert router.do("stop")[1].startswith("logger -t igdpcp -p daemon.err igdpcpd --release failed")


def test_a_changed_configuration_reloads_the_service(router: Router) -> None:
    assert router.do("service_triggers") == [
        "procd_add_reload_trigger igdpcp",
        "procd_add_validation validate_main",
    ]


def test_it_is_clean_shell_for_rc_common() -> None:
    assert SCRIPT.read_text().startswith("#!/bin/sh /etc/rc.common\n")
    assert os.access(SCRIPT, os.X_OK)
    subprocess.run(["busybox", "ash", "-n", str(SCRIPT)], check=True, timeout=20)
    subprocess.run(["shellcheck", str(SCRIPT)], check=True, timeout=20)
