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
LEASE_HOOK = FILES / "etc/hotplug.d/dhcp/90-igdpcp"
SERVERS = "04c0000201"
HOST, OTHER_HOST = "02:00:00:00:00:50", "02:00:00:00:00:60"
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


class LanRouter(Router):
    """One whose dnsmasq tells of leases; mappings were made on it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.run_dir.mkdir()
        (self.run_dir / "journal").touch()

    def tell(self, action: str, address: str = "192.168.1.50", mac: str = HOST, **variables: str) -> None:
        self.source(LEASE_HOOK, ACTION=action, IPADDR=address, MACADDR=mac, HOSTNAME="pc", **variables)

    @property
    def marks(self) -> list[str]:
        return sorted(path.name for path in self.run_dir.iterdir() if path.name != "journal")


def test_iwf_190_a_lease_that_dnsmasq_ends_leaves_a_mark(tmp_path: Path) -> None:
    router = LanRouter(tmp_path)
    router.tell("remove")
    assert router.marks == ["ended.192.168.1.50"]


@pytest.mark.parametrize("action", ["add", "update"])
def test_iwf_191_the_same_host_takes_the_mark_away_by_coming_back(tmp_path: Path, action: str) -> None:
    router = LanRouter(tmp_path)
    router.tell("remove")
    router.tell(action, "192.168.1.60", OTHER_HOST)
    assert router.marks == ["ended.192.168.1.50"]
    router.tell(action)
    assert router.marks == []


def test_iwf_190_another_host_does_not_take_the_mark_away(tmp_path: Path) -> None:
    router = LanRouter(tmp_path)
    router.tell("remove")
    router.tell("add", mac=OTHER_HOST)
    assert router.marks == ["ended.192.168.1.50"]


@pytest.mark.parametrize("action", ["add", "update", "", "$(touch hit)"])
def test_iwf_191_a_lease_that_begins_or_goes_on_leaves_nothing(tmp_path: Path, action: str) -> None:
    router = LanRouter(tmp_path)
    router.tell(action)
    assert router.marks == []


@pytest.mark.parametrize("text", ["$(touch hit)", "../../hit", "a b", "-e", "`touch hit`", "192.168.1.50\n/hit", ""])
def test_what_is_no_address_or_no_mac_reaches_no_shell_and_no_file(tmp_path: Path, text: str) -> None:
    router = LanRouter(tmp_path)
    router.tell("remove", text)
    router.tell("remove", mac=text if text != "-e" else "$x", DNSMASQ_USER_CLASS0=text)
    router.tell("remove", "192.168.1.51", DNSMASQ_VENDOR_CLASS=text, DNSMASQ_SUPPLIED_HOSTNAME=text)
    assert router.marks == ["ended.192.168.1.51"]
    assert not list(tmp_path.rglob("*hit*"))


def test_a_router_that_has_made_no_mapping_gets_no_mark(tmp_path: Path) -> None:
    router = LanRouter(tmp_path)
    (router.run_dir / "journal").unlink()
    router.tell("remove")
    assert router.marks == []


def test_marks_that_nobody_reads_are_limited(tmp_path: Path) -> None:
    router = LanRouter(tmp_path)
    for number in range(256):
        (router.run_dir / f"ended.192.168.2.{number}").touch()
    router.tell("remove")
    assert len(router.marks) == 256
    (router.run_dir / "ended.192.168.2.0").unlink()
    router.tell("remove")
    assert len(router.marks) == 256
