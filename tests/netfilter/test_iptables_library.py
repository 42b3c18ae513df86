# SPDX-License-Identifier: Apache-2.0
"""The iptables back-end where neither ldconfig nor a compiler can be asked for libraries, as on OpenWrt."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netfilter.topology import command, namespace

pytestmark = pytest.mark.lab

ROOT = Path(__file__).parents[2]
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu") if Path("/usr/lib/x86_64-linux-gnu").is_dir() else Path("/usr/lib")
MAP_ONE_PORT = """
from igdpcp.errors import OurFault
from igdpcp.netfilter.desired import Fact, contributions
from igdpcp.netfilter.iptables import IptablesBackend
from tests.netfilter.topology import SURROUNDINGS, opening, pinhole
try:
    backend = IptablesBackend()
    backend.open()
except OurFault as error:
    raise SystemExit(str(error))
backend.surroundings(SURROUNDINGS)
facts = [*contributions(opening()), *contributions(pinhole())]
backend.sync({key: Fact(value, 600.0) for key, value in facts}, 0.0)
"""


@pytest.fixture
def router() -> Iterator[str]:
    with namespace() as name:
        yield name


def run(router: str, code: str = MAP_ONE_PORT, hide: str = "/sbin/ldconfig", **env: str) -> str:
    """Run Python where ``hide`` cannot be executed or loaded, with nothing on the search path; what it complains of."""
    script = f'mount --bind /dev/null $(readlink -f {hide}) && PATH=/nowhere exec {sys.executable} -c "$CODE"'
    done = subprocess.run(
        ["ip", "netns", "exec", router, "unshare", "--mount", "sh", "-c", script],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "CODE": code, **env},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.stderr.strip()


def is_mapped(router: str) -> bool:
    saved = [command(f"{program}-legacy-save", namespace=router) for program in ("iptables", "ip6tables")]
    return "--to-destination 192.168.1.5:4000" in saved[0] and "-d 2600:1::5/128" in saved[1]


def test_ports_are_mapped_without_ldconfig_and_a_compiler(router: str) -> None:
    assert run(router, "import iptc")  # python-iptables alone cannot
    assert run(router) == ""
    assert is_mapped(router)


def test_what_python_iptables_wants_a_path_of_is_not_loaded(router: str, tmp_path: Path) -> None:
    (tmp_path / "distutils").mkdir()
    (tmp_path / "distutils" / "__init__.py").write_text("raise SystemExit('distutils is loaded')")
    found_first = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "SETUPTOOLS_USE_DISTUTILS": "stdlib"}
    assert run(router, "import distutils.sysconfig", **found_first) == "distutils is loaded"
    assert run(router, **found_first) == ""
    assert is_mapped(router)


def test_extensions_and_libraries_are_found_where_the_environment_says(router: str, tmp_path: Path) -> None:
    for name in ("tcp", "udp", "conntrack", "mark", "addrtype", "standard", "DNAT", "SNAT", "MASQUERADE", "MARK"):
        file = f"libxt_{name}.so"
        (tmp_path / file).symlink_to(LIBRARIES / "xtables" / file)
    for name in ("libxtables.so.12", "libip4tc.so.2", "libip6tc.so.2"):
        (tmp_path / name.partition(".so")[0]).with_suffix(".so").symlink_to(LIBRARIES / name)
    assert run(router, XTABLES_LIBDIR=str(tmp_path), IPTABLES_LIBDIR=str(tmp_path)) == ""
    assert is_mapped(router)


def test_a_missing_extension_is_named_with_the_package_that_has_it(router: str, tmp_path: Path) -> None:
    for file in LIBRARIES.joinpath("xtables").glob("libxt_*.so"):
        if file.name != "libxt_addrtype.so":
            (tmp_path / file.name).symlink_to(file)
    assert run(router, XTABLES_LIBDIR=str(tmp_path)) == (
        f"iptables lacks the extensions addrtype in {tmp_path}: "
        "install iptables-mod-extra (OpenWrt) or iptables (Debian), or set XTABLES_LIBDIR"
    )


@pytest.mark.parametrize(
    ("file", "packages"),
    [
        ("libxtables.so.12", "libxtables (OpenWrt) or libxtables12 (Debian)"),
        ("libip4tc.so.2", "libip4tc (OpenWrt) or libip4tc2 (Debian)"),
        ("libip6tc.so.2", "libip6tc (OpenWrt) or libip6tc2 (Debian)"),
    ],
)
def test_a_missing_library_is_named_with_its_package(router: str, file: str, packages: str) -> None:
    assert run(router, hide=str(LIBRARIES / file)) == f"{file} is missing: install {packages}"
