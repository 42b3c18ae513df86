# SPDX-License-Identifier: Apache-2.0
"""The DHCP hooks, run by busybox ash as udhcpc's script and hotplug do: what they leave for igdpcpd."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from igdpcp.net.dhcp import DhcpAnswer, DhcpAnswers

FILES = Path(__file__).parents[2] / "files"
UDHCPC_HOOK = FILES / "etc/udhcpc.user.d/igdpcp"
HOTPLUG_HOOK = FILES / "etc/hotplug.d/iface/90-igdpcp"
SERVERS = "04c0000201"
LOOK_UP = """\
import functools, json, sys
names = sys.argv[1].removeprefix("@.").split(".")
print(functools.reduce(lambda found, name: found.get(name) or {}, names, json.load(sys.stdin)) or "")
"""


class Router:
    """A directory with stand-ins for OpenWrt's programs; ``run_dir`` is where the hooks write."""

    def __init__(self, directory: Path, **status: object) -> None:
        self.run_dir = directory / "run"
        self.programs = directory / "bin"
        self.programs.mkdir()
        self.stand_in("uci", f'[ "$*" = "-q get igdpcp.@igdpcp[0].run_dir" ] && echo {self.run_dir}')
        (directory / "status").write_text(json.dumps(status))
        self.stand_in("ubus", f'[ "$*" = "call network.interface.wan6 status" ] && cat {directory}/status')
        self.stand_in("jsonfilter", f'python3 {directory}/look_up "$2"')
        (directory / "look_up").write_text(LOOK_UP)

    def stand_in(self, name: str, script: str) -> None:
        program = self.programs / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def source(self, hook: Path, *arguments: str, **variables: str) -> None:
        done = subprocess.run(
            ["busybox", "ash", "-c", 'hook=$1; shift; . "$hook"; echo "went on"', "ash", str(hook), *arguments],
            env={"PATH": f"{self.programs}:/usr/bin:/bin", **variables}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == ("went on\n", "")

    @property
    def left(self) -> tuple[DhcpAnswer, ...]:
        return DhcpAnswers(self.run_dir).read()


def test_a_bound_lease_leaves_the_option_and_its_end_takes_it_away(tmp_path: Path) -> None:
    router = Router(tmp_path)
    router.source(UDHCPC_HOOK, "bound", interface="wan", opt158=SERVERS)
    assert router.left == (DhcpAnswer(4, "wan", bytes.fromhex(SERVERS)),)
    router.source(UDHCPC_HOOK, "deconfig", interface="wan")
    assert router.left == ()


def test_a_renewal_without_the_option_takes_it_away(tmp_path: Path) -> None:
    router = Router(tmp_path)
    router.source(UDHCPC_HOOK, "bound", interface="wan", opt158=SERVERS)
    router.source(UDHCPC_HOOK, "renew", interface="wan")
    assert router.left == ()


@pytest.mark.parametrize("option", ["$(touch hit)", "04c0;reboot", "../../x", "04C0000201"])
def test_what_is_no_hexadecimal_number_is_not_written(tmp_path: Path, option: str) -> None:
    router = Router(tmp_path)
    router.source(UDHCPC_HOOK, "bound", interface="wan", opt158=option)
    assert not list(tmp_path.rglob("dhcp4.*"))


def test_what_odhcp6c_does_not_know_is_left_as_it_came(tmp_path: Path) -> None:
    options = "0056001020010db800af00000000000000000001"
    router = Router(tmp_path, proto="dhcpv6", l3_device="eth1", data={"passthru": options.upper()})
    router.source(HOTPLUG_HOOK, ACTION="ifup", INTERFACE="wan6", DEVICE="eth1")
    assert router.left == (DhcpAnswer(6, "eth1", bytes.fromhex(options)),)
    router.source(HOTPLUG_HOOK, ACTION="ifdown", INTERFACE="wan6")
    assert router.left == ()


@pytest.mark.parametrize("status", [{"proto": "dhcp", "data": {"passthru": "00"}}, {"proto": "dhcpv6", "data": {}}])
def test_an_interface_that_tells_nothing_leaves_nothing(tmp_path: Path, status: dict[str, object]) -> None:
    router = Router(tmp_path, l3_device="eth1", **status)
    router.source(HOTPLUG_HOOK, ACTION="ifup", INTERFACE="wan6", DEVICE="")
    assert router.left == ()


def test_where_netifd_does_not_answer_nothing_happens(tmp_path: Path) -> None:
    router = Router(tmp_path)
    router.source(HOTPLUG_HOOK, ACTION="ifup", INTERFACE="lan", DEVICE="br-lan")
    assert router.left == ()
