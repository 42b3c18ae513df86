# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: the table of ARCHITECTURE.md, checked on the source and in a fresh interpreter."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "igdpcp"

VALUES = ("igdpcp.model", "igdpcp.openings", "igdpcp.errors", "igdpcp.values")
CONFIG = ("igdpcp.config", "igdpcp.profiles", "igdpcp.uci", "igdpcp.option_values", "igdpcp.static_sections")
EDGE = (*VALUES, "igdpcp.log", "igdpcp.jsonio", *CONFIG)

# Part: (what it may import of this package, third-party libraries). The longest prefix of a module's name counts.
ALLOWED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "igdpcp": ((), ()),
    "igdpcp.__main__": (("igdpcp.daemon",), ()),
    "igdpcp.values": ((), ()),
    "igdpcp.model": (("igdpcp.values",), ()),
    "igdpcp.openings": (("igdpcp.model", "igdpcp.values"), ()),
    "igdpcp.errors": ((), ()),
    "igdpcp.log": (("igdpcp.values",), ()),
    "igdpcp.jsonio": ((), ("ujson",)),
    "igdpcp.pcp": ((*VALUES, "igdpcp.pcp"), ()),
    "igdpcp.upnp": ((*VALUES, "igdpcp.upnp"), ()),
    "igdpcp.upnp.http": ((*VALUES, "igdpcp.upnp"), ("h11",)),
    "igdpcp.iwf": ((*VALUES, *CONFIG, "igdpcp.log", "igdpcp.jsonio", "igdpcp.iwf"), ()),
    "igdpcp.iwf.translate": ((*VALUES, "igdpcp.pcp.message", "igdpcp.upnp.actions"), ()),
    "igdpcp.upstreams": (
        (
            *VALUES, "igdpcp.config", "igdpcp.log", "igdpcp.pcp", "igdpcp.net.sockets", "igdpcp.iwf.interfaces",
            "igdpcp.upstreams",
        ),
        (),
    ),
    "igdpcp.netfilter": ((*EDGE, "igdpcp.netfilter"), ()),
    "igdpcp.netfilter.iptables": ((*EDGE, "igdpcp.netfilter"), ("iptc",)),
    "igdpcp.net": ((*EDGE, "igdpcp.net"), ("pyroute2",)),
    "igdpcp.uci": (EDGE, ()),
    "igdpcp.option_values": (VALUES, ()),
    "igdpcp.profiles": (("igdpcp.option_values", "igdpcp.values"), ()),
    "igdpcp.config": (EDGE, ()),
    "igdpcp.static_sections": (EDGE, ()),
    "igdpcp.daemon": (
        (
            *EDGE, "igdpcp", "igdpcp.jsonio", "igdpcp.pcp", "igdpcp.upnp", "igdpcp.iwf", "igdpcp.upstreams",
            "igdpcp.netfilter", "igdpcp.net", "igdpcp.daemon",
        ),
        (),
    ),
    "igdpcp.screen": (VALUES, ()),
    "igdpcp.cli": ((*VALUES, "igdpcp", "igdpcp.jsonio", "igdpcp.screen"), ("click",)),
}  # fmt: skip

# The engines get bytes and the time handed in, and give bytes back.
SANS_IO = ("igdpcp.pcp", "igdpcp.upnp")
INPUT_OUTPUT = {"asyncio", "socket", "select", "selectors", "ssl", "subprocess", "threading", "time", "secrets"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(tree: ast.AST) -> set[str]:
    """Absolute names of the modules that the source imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in this package"
            base = node.module or ""
            names = {f"{base}.{alias.name}" for alias in node.names}
            submodules = names & MODULES.keys()
            found |= submodules
            if len(submodules) < len(names):
                found.add(base)
    return found


def rule_for(module: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    while module not in ALLOWED:
        module, _, _ = module.rpartition(".")
        assert module != "igdpcp", "a new top-level module needs a line in the table"
    return ALLOWED[module]


def violations(module: str, imported: set[str]) -> list[str]:
    ours, libraries = rule_for(module)
    wrong = []
    for name in sorted(imported):
        top = name.partition(".")[0]
        if top == "igdpcp":
            allowed = any(name == part or (part != "igdpcp" and name.startswith(f"{part}.")) for part in ours)
        else:
            allowed = top in sys.stdlib_module_names or top in libraries
        if not allowed:
            wrong.append(f"{module} imports {name}")
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_part_may(module: str) -> None:
    assert violations(module, imports(ast.parse(MODULES[module].read_text()))) == []


@pytest.mark.parametrize("module", [name for name in MODULES if name != "igdpcp.values"])
def test_every_dataclass_is_made_at_our_own_price(module: str) -> None:
    standard = [node for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, ast.ImportFrom)]
    assert "dataclass" not in {name.name for node in standard if node.module == "dataclasses" for name in node.names}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("igdpcp.pcp.client", "import igdpcp.upnp.soap"),
        ("igdpcp.upnp.soap", "import h11"),
        ("igdpcp.iwf.table", "from igdpcp.pcp import message"),
        ("igdpcp.upstreams.pcp", "from igdpcp.iwf.table import Table"),
        ("igdpcp.netfilter.nftables", "def late():\n    import pyroute2"),
        ("igdpcp.cli", "from igdpcp.daemon import control"),
        ("igdpcp.model", "import igdpcp.log"),
        ("igdpcp.daemon.app", "import igdpcp.cli"),
        ("igdpcp.daemon.app", "from pyroute2 import IPRoute"),
    ],
)
def test_the_table_refuses_arrows_that_it_does_not_have(module: str, source: str) -> None:
    assert violations(module, imports(ast.parse(source)))


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith(SANS_IO)])
def test_the_engines_use_no_sockets_clock_or_chance(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    assert not {name.partition(".")[0] for name in imports(tree)} & INPUT_OUTPUT
    assert uses_of_random(tree) <= {"Random"}, "chance is passed in; only its type may be named"


def uses_of_random(tree: ast.AST) -> set[str]:
    """What of the module ``random`` the source names."""
    uses = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
            uses.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module == "random":
            uses |= {alias.name for alias in node.names}
    return uses


def loaded_by(module: str) -> set[str]:
    """The modules that a fresh interpreter has after importing this one."""
    code = f"import sys, json, {module}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
    )
    return set(json.loads(done.stdout))


def test_the_cli_loads_no_engine_no_netlink_and_no_event_loop() -> None:
    loaded = loaded_by("igdpcp.cli") - {"igdpcp.errors"}
    assert not loaded & {"pyroute2", "iptc", "asyncio", "h11", "xml", "logging.handlers"}
    ours = {name for name in loaded if name.startswith("igdpcp")}
    assert ours == {"igdpcp", "igdpcp.cli", "igdpcp.jsonio", "igdpcp.model", "igdpcp.screen", "igdpcp.values"}


@pytest.mark.parametrize("module", ["igdpcp.pcp.client", "igdpcp.upnp.soap"])
def test_the_engines_load_no_event_loop(module: str) -> None:
    assert not loaded_by(module) & {"asyncio", "pyroute2", "iptc", "click"}
