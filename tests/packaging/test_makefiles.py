# SPDX-License-Identifier: Apache-2.0
"""The OpenWrt recipes: what they install, and the scripts that run on the router."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

import igdpcp
from tests.packaging.makefile import ROOT, block, variables

OURS = ROOT / "openwrt" / "Makefile"
FEED = sorted((ROOT / "feed").glob("python-*/Makefile"))
INSTALL = {
    "INSTALL_DIR": "install -d -m0755",
    "INSTALL_BIN": "install -m0755",
    "INSTALL_CONF": "install -m0600",
    "INSTALL_DATA": "install -m0644",
    "CP": "cp -a",
}


def run_recipe(name: str, **values: str) -> None:
    subprocess.run(["sh", "-e"], input=block(OURS, name, **INSTALL, **values), text=True, check=True, timeout=20)


def files_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_the_package_has_the_version_of_the_program() -> None:
    assert variables(OURS)["PKG_VERSION"] == igdpcp.__version__
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{igdpcp.__version__}"' in pyproject


def test_every_shipped_file_is_installed_and_nothing_else(tmp_path: Path) -> None:
    build, root = tmp_path / "build", tmp_path / "root"
    run_recipe("Build/Prepare", CURDIR=str(OURS.parent), PKG_BUILD_DIR=str(build))
    run_recipe("Py3Package/igdpcp/install", PKG_BUILD_DIR=str(build), _1=str(root))
    assert files_below(root) == files_below(ROOT / "files")
    for name in ("etc/init.d/igdpcp", "usr/sbin/igdpcpd", "usr/bin/igdpcp-cli"):
        assert os.access(root / name, os.X_OK)
    assert stat.S_IMODE((root / "etc/config/igdpcp").stat().st_mode) == 0o600


def test_the_python_package_is_installed_without_byte_code_of_this_machine(tmp_path: Path) -> None:
    build, root = tmp_path / "build", tmp_path / "root"
    run_recipe("Build/Prepare", CURDIR=str(OURS.parent), PKG_BUILD_DIR=str(build))
    run_recipe("Build/Install", PKG_BUILD_DIR=str(build), PKG_INSTALL_DIR=str(root), PYTHON3_PKG_DIR="/site")
    installed = files_below(root / "site" / "igdpcp")
    sources = {str(path.relative_to(ROOT / "igdpcp")) for path in (ROOT / "igdpcp").rglob("*.py")}
    assert sources <= installed
    assert not [name for name in installed if "__pycache__" in name]


def test_the_package_brings_the_kernel_modules_that_the_program_would_ask_for() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "igdpcp").rglob("*.py"))
    named = set(re.findall(r"install (kmod-[\w-]+)", sources))
    depends = re.search(r"DEPENDS:=(.*)", block(OURS, "Package/igdpcp").replace("\\\n", ""))
    assert depends
    assert {"kmod-inet-diag", "kmod-nf-conntrack-netlink"} <= named
    assert named <= {word.lstrip("+") for word in depends[1].split()}


def test_configuration_and_state_survive_an_upgrade() -> None:
    assert block(OURS, "Package/igdpcp/conffiles").split("\n")[:2] == ["/etc/config/igdpcp", "/etc/igdpcp/"]


@pytest.mark.parametrize("script", ["postinst", "postrm"])
def test_package_scripts_are_sound_shell_and_leave_an_image_build_alone(script: str, tmp_path: Path) -> None:
    body = block(OURS, f"Package/igdpcp/{script}")
    path = tmp_path / script
    path.write_text(body)
    subprocess.run(["shellcheck", "-s", "dash", str(path)], check=True, timeout=20)
    commands = tmp_path / "commands"
    environment = {"PATH": str(fake_commands(tmp_path, commands)), "IPKG_INSTROOT": "/image"}
    subprocess.run(["/bin/sh", str(path)], env=environment, check=True, timeout=20)
    assert not commands.exists()


def fake_commands(directory: Path, record: Path, listing: str = "") -> Path:
    """A directory with fw4 and nft that note how they were called; 'nft list' prints ``listing``."""
    binaries = directory / "bin"
    binaries.mkdir()
    (directory / "listing").write_text(listing)
    (binaries / "fw4").write_text(f'#!/bin/sh\necho "fw4 $*" >>{record}\n')
    (binaries / "nft").write_text(
        f'#!/bin/sh\nif [ "$1" = list ]; then cat {directory}/listing; else cat >>{record}; fi\n'
    )
    for binary in binaries.iterdir():
        binary.chmod(0o755)
    return binaries


def test_removal_takes_our_objects_out_of_the_firewalls_table_chains_first(tmp_path: Path) -> None:
    listing = """table inet fw4 {
	set igdpcp1_lan {
		type ifname
	}
	map igdpcp1_dnat4 {
		type ifname . inet_proto : ipv4_addr
	}
	set admin_set {
		type ipv4_addr
	}
	chain igdpcp1_dst {
	}
	chain forward {
		jump handle_reject comment "igdpcp"
	}
}
"""
    record = tmp_path / "record"
    path = f"{fake_commands(tmp_path, record, listing)}:{os.environ['PATH']}"
    body = block(OURS, "Package/igdpcp/postrm")
    subprocess.run(["sh"], input=body, text=True, env={"PATH": path}, check=True, timeout=20)
    assert record.read_text().split("\n") == [
        "fw4 -q reload",
        "delete chain inet fw4 igdpcp1_dst",
        "delete map inet fw4 igdpcp1_dnat4",
        "delete set inet fw4 igdpcp1_lan",
        "",
    ]


@pytest.mark.parametrize("makefile", FEED, ids=lambda path: path.parent.name)
def test_feed_recipes_are_complete(makefile: Path) -> None:
    text, known = makefile.read_text(), variables(makefile)
    assert known["PKG_NAME"] == makefile.parent.name
    assert re.fullmatch(r"[0-9a-f]{64}", known["PKG_HASH"])
    package = "python3-" + makefile.parent.name.removeprefix("python-")
    assert f"$(eval $(call Py3Package,{package}))\n$(eval $(call BuildPackage,{package}))" in text
    assert text.index("pypi.mk") < text.index("package.mk") < text.index("python3-package.mk")


def test_recipes_exist_for_what_the_official_feeds_lack() -> None:
    assert [makefile.parent.name for makefile in FEED] == ["python-h11", "python-iptables", "python-ujson"]
