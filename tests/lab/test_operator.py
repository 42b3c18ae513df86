# SPDX-License-Identifier: Apache-2.0
"""What an operator does by hand: igdpcp-cli, --check, --version, and configurations with mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from igdpcp import __version__
from tests.lab import topology
from tests.lab.carrier import CarrierMapping, ScriptedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.rules import our_rules, rules_for
from tests.lab.test_pinholes import ControlPoint
from tests.lab.topology import Lab

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
PORT = 8080


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def test_add_and_delete_by_hand_open_and_close_the_whole_path(lab: Lab) -> None:
    carrier = ScriptedCarrier(lab)
    daemon = Igdpcpd(lab, main={"external_ip_probe": "0"})
    lab.listen(lab.lan2, "tcp", 80)

    added = daemon.cli("--json", "add", "tcp", str(PORT), f"{topology.LAN2_ADDRESS}:80", "--description", "web")

    assert json.loads(added.stdout)["external_port"] == PORT
    assert lab.tcp_probe(lab.internet, topology.EXTERNAL_ADDRESS, PORT).listener == "lan2"
    assert [row["description"] for row in json.loads(daemon.cli("mappings", "--json").stdout)] == ["web"]
    assert carrier.table() == [CarrierMapping("tcp", PORT, topology.ROUTER_WAN_ADDRESS, PORT)]

    daemon.cli("delete", "tcp", str(PORT))

    assert carrier.table() == []
    assert not rules_for(lab, topology.LAN2_ADDRESS, 80)
    assert json.loads(daemon.cli("mappings", "--json").stdout) == []


def test_a_pinhole_is_seen_and_closed_by_hand() -> None:
    with Lab("fw4", ipv6=True) as lab:
        daemon = Igdpcpd(lab, upstream={"type": "none"})
        daemon.wait_for_advertising()
        lab.listen(lab.lan, "tcp", PORT, "::")
        control_point = ControlPoint(lab.lan, topology.LAN6_ADDRESS)
        wish = {"RemoteHost": "", "RemotePort": 0, "InternalClient": topology.LAN6_ADDRESS, "InternalPort": PORT,
                "Protocol": 6, "LeaseTime": 600}  # fmt: skip
        number = control_point.call("AddPinhole", **wish)["UniqueID"]
        assert lab.tcp_probe(lab.internet, topology.LAN6_ADDRESS, PORT)

        assert "1 open for IPv6" in daemon.cli("status").stdout
        assert f"[{topology.LAN6_ADDRESS}]:{PORT}" in daemon.cli("mappings").stdout
        assert json.loads(daemon.cli("mappings", "--json").stdout)[0]["id"] == f"pinhole-{number}"
        daemon.cli("delete", "pinhole", number)

        assert not lab.tcp_probe(lab.internet, topology.LAN6_ADDRESS, PORT, timeout=1.0)
        assert json.loads(daemon.cli("mappings", "--json").stdout) == []


def test_a_refusal_is_told_and_the_exit_code_says_so(lab: Lab) -> None:
    ScriptedCarrier(lab, refuse=[11, 1800])
    daemon = Igdpcpd(lab)
    daemon.wait_for_activation("active")

    refused = daemon.cli("add", "tcp", str(PORT), f"{topology.LAN_ADDRESS}:80", check=False)

    assert refused.returncode == 1
    assert "CANNOT_PROVIDE_EXTERNAL" in refused.stderr


def test_a_second_daemon_touches_nothing_of_the_first() -> None:
    with Lab(firewall="iptables") as lab:  # whose rules a daemon takes away when it ends
        ScriptedCarrier(lab)
        daemon = Igdpcpd(lab, lab.firewall)
        assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)
        before = our_rules(lab)

        second = lab.router.run(
            [sys.executable, "-m", "igdpcp", "--config", str(daemon.config_file)],
            check=False,
            env={"PYTHONPATH": str(ROOT)},
        )

        assert second.returncode == 2
        assert "another igdpcpd runs" in second.stderr
        assert "Traceback" not in second.stderr
        assert our_rules(lab) == before


def test_a_mistake_in_the_configuration_is_named_and_the_rest_is_served(lab: Lab) -> None:
    ScriptedCarrier(lab)
    daemon = Igdpcpd(
        lab, main={"http_prot": "80", "notify_interval": "soon"}, sections={"lan guest": {"device": "br-guest"}}
    )

    text = daemon.log()

    assert "section 'main' option 'http_prot'" in text
    assert "section 'main' option 'notify_interval'" in text
    assert "section 'guest' option 'device': this router has no interface 'br-guest'" in text
    assert "Traceback" not in text
    assert daemon.status()["lans"][0]["device"] == "br-lan"


def test_a_lan_that_comes_later_is_served_then(lab: Lab) -> None:
    ScriptedCarrier(lab)
    lab.router.run(["ip", "addr", "flush", "dev", "br-lan"])
    daemon = Igdpcpd(lab)
    assert daemon.status()["lans"] == []

    lab.router.run(["ip", "addr", "add", f"{topology.ROUTER_LAN_ADDRESS}/24", "dev", "br-lan"])

    daemon.wait_for_advertising()
    assert soap_client(lab.lan).add("tcp", PORT, topology.LAN_ADDRESS, PORT)


def run_without_privileges(*arguments: str) -> tuple[int, str]:
    """igdpcpd without a capability, and with netlink's library out of reach."""
    code = (
        "import sys; sys.modules['pyroute2'] = None; from igdpcp.daemon.app import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=20,
    )
    return done.returncode, done.stdout + done.stderr


def test_version_and_check_need_no_privilege_and_no_netlink() -> None:
    assert run_without_privileges("--version") == (0, f"{__version__}\n")
    status, text = run_without_privileges("--config", "files/etc/config/igdpcp", "--check")
    assert status == 0
    assert "no problem" in text


def test_check_names_section_and_option_and_fails(tmp_path: Path) -> None:
    config = tmp_path / "igdpcp"
    config.write_text("config igdpcp 'main'\n\toption http_port '99999'\n\toption colour 'red'\n")
    tmp_path.chmod(0o755)

    done = subprocess.run(
        [sys.executable, "-m", "igdpcp", "--config", str(config), "--check"],
        capture_output=True, text=True, cwd=ROOT, timeout=20,
    )  # fmt: skip

    assert done.returncode == 1
    assert "section 'main' option 'http_port': 99999" in done.stdout
    assert "section 'main' option 'colour'" in done.stdout


def test_a_configuration_that_enables_nothing_says_so_and_ends_well(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "igdpcp", "--config", "files/etc/config/igdpcp"],
        capture_output=True, text=True, cwd=ROOT, timeout=20,
    )  # fmt: skip

    assert done.returncode == 0
    assert "enabled" in done.stderr
