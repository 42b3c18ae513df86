# SPDX-License-Identifier: Apache-2.0
"""Loading python-iptables where neither ldconfig nor a compiler is, as on OpenWrt.

It looks for its libraries by ``ctypes.util.find_library``, which asks those two, and for the directory of the
extensions by ldconfig. Here both are found by the names that the libraries have had for years, which takes no process.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from igdpcp.errors import OurFault

# Library: its file names, newest first; the package of OpenWrt, that of Debian
_LIBRARIES = {
    "xtables": (("libxtables.so.12", "libxtables.so.11", "libxtables.so.10"), "libxtables", "libxtables12"),
    "ip4tc": (("libip4tc.so.2", "libip4tc.so.0"), "libip4tc", "libip4tc2"),
    "ip6tc": (("libip6tc.so.2", "libip6tc.so.0"), "libip6tc", "libip6tc2"),
}
_LIBC = ("libc.so.6", "libc.so", "libc.musl-x86_64.so.1")

_EXTENSIONS = ("/usr/lib/iptables", "/usr/lib/xtables", "/usr/lib64/xtables", "/usr/local/lib/xtables", "/lib/xtables")
_MULTIARCH_EXTENSIONS = "*/xtables"  # below /usr/lib
_BUILT_IN = (  # OpenWrt links the usual extensions into these, which must be told to register them
    ("libiptext.so", "init_extensions"),
    ("libiptext4.so", "init_extensions4"),
    ("libiptext6.so", "init_extensions6"),
)


_NEEDED = {  # by whether it is a target
    False: ("tcp", "udp", "conntrack", "mark", "addrtype"),
    True: ("standard", "DNAT", "SNAT", "MASQUERADE", "MARK"),
}


def must_be_installed() -> None:
    """Raises OurFault when python-iptables is not; loads nothing."""
    if importlib.util.find_spec("iptc") is None:
        raise OurFault("python-iptables is missing: install igdpcp-iptables (OpenWrt) or igdpcp[iptables] (pip)")


def load() -> Any:
    """The module ``iptc``, its extensions registered; raises OurFault that names what is missing."""
    if "XTABLES_LIBDIR" not in os.environ:
        os.environ["XTABLES_LIBDIR"] = _extensions()
    with _found_by_name(), _without_distutils():
        try:
            iptc = importlib.import_module("iptc")
        except Exception as error:  # it raises plain Exception, and AttributeError when its libraries are missing
            raise OurFault(_missing() or f"python-iptables cannot be loaded: {error}") from error
    for library, register in _BUILT_IN:
        with suppress(OSError, AttributeError):
            getattr(ctypes.CDLL(library, ctypes.RTLD_GLOBAL), register)()
    if lacking := _lacking(iptc):
        raise OurFault(
            f"iptables lacks the extensions {', '.join(lacking)} in {os.environ['XTABLES_LIBDIR']}: "
            "install iptables-mod-extra (OpenWrt) or iptables (Debian), or set XTABLES_LIBDIR"
        )
    return iptc


def _lacking(iptc: Any) -> list[str]:
    xtables = iptc.xtables.xtables(iptc.xtables.NFPROTO_IPV4)
    finders = {False: xtables.find_match, True: xtables.find_target}
    return [name for target, names in _NEEDED.items() for name in names if not finders[target](name)]


def _extensions() -> str:
    """The directory of the extensions; where there is none, all of them are built in."""
    multiarch = sorted(map(str, Path("/usr/lib").glob(_MULTIARCH_EXTENSIONS)))
    return next(filter(os.path.isdir, (*_EXTENSIONS, *multiarch)), _EXTENSIONS[0])


def _missing() -> str:
    for name, (files, openwrt, debian) in _LIBRARIES.items():
        found = ctypes.util.find_library(name)
        if not _loadable((found,) if found else files):
            return f"{files[0]} is missing: install {openwrt} (OpenWrt) or {debian} (Debian)"
    return ""


@contextmanager
def _found_by_name() -> Iterator[None]:
    """Meanwhile ``ctypes.util.find_library`` knows our libraries by name, and asks others for these alone."""
    asked = ctypes.util.find_library

    def find(name: str) -> str | None:
        if name == "c":
            return _loadable(_LIBC) or asked(name)
        if name in _LIBRARIES:
            return _loadable(_LIBRARIES[name][0]) or asked(name)
        return None

    setattr(ctypes.util, "find_library", find)  # noqa: B010 (mypy takes an assignment for another function's type)
    try:
        yield
    finally:
        setattr(ctypes.util, "find_library", asked)  # noqa: B010


@contextmanager
def _without_distutils() -> Iterator[None]:
    """Meanwhile something stands in for distutils, of which python-iptables wants one path, that is searched anyway.

    Where setuptools is installed it takes distutils' place, which are 200 modules and 13 MB.
    """
    modules: dict[str, Any] = sys.modules
    if "distutils" in modules:
        yield
        return
    names = "distutils", "distutils.sysconfig"
    stand_in = SimpleNamespace(get_python_lib=lambda: sysconfig.get_path("purelib"))
    modules.update(dict.fromkeys(names, stand_in))
    try:
        yield
    finally:
        for name in names:
            del modules[name]


def _loadable(files: tuple[str, ...]) -> str | None:
    for file in files:
        with suppress(OSError):
            ctypes.CDLL(file, ctypes.RTLD_GLOBAL)
            return file
    return None
