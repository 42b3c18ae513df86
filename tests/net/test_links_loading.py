# SPDX-License-Identifier: Apache-2.0
"""How much of pyroute2 is loaded to read the links: little, or all of it where a version cannot do with less."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLD_PYROUTE2 = ROOT / ".cache/pyroute2-0.7.9"

READ = """
import sys
from igdpcp.net.links import read_links
print("lo" in read_links().devices, "pyroute2" in sys.modules)
"""

READ_WITH_A_STRANGE_ONE = """
from igdpcp.errors import OurFault
from igdpcp.net.links import read_links
try:
    read_links()
except OurFault as fault:
    print(fault)
"""

NEEDS_ITS_PACKAGE = """
from pyroute2 import LOADED
class {name}:
    def __init__(self, data):
        raise OSError("read by " + LOADED)
"""


def run(program: str, *paths: Path) -> str:
    path = ":".join(str(path) for path in (*paths, ROOT))
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("paths", [(), (OLD_PYROUTE2,)], ids=["0.9", "0.7.9"])
def test_reading_the_links_does_not_load_all_of_pyroute2(paths: tuple[Path, ...]) -> None:
    assert run(READ, *paths).split() == ["True", "False"]


def test_a_pyroute2_whose_messages_need_the_whole_package_is_loaded_whole(tmp_path: Path) -> None:
    folder = tmp_path / "pyroute2/netlink/rtnl"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    (tmp_path / "pyroute2/__init__.py").write_text("LOADED = 'the whole package'\n")
    for name in ("ifinfmsg", "ifaddrmsg", "rtmsg"):
        (folder / f"{name}.py").write_text(NEEDS_ITS_PACKAGE.format(name=name))

    assert "read by the whole package" in run(READ_WITH_A_STRANGE_ONE, tmp_path)


def test_a_pyroute2_without_the_messages_is_a_fault_that_names_the_package(tmp_path: Path) -> None:
    (tmp_path / "pyroute2").mkdir()
    (tmp_path / "pyroute2/__init__.py").touch()

    assert "install python3-pyroute2" in run(READ_WITH_A_STRANGE_ONE, tmp_path)
