# SPDX-License-Identifier: Apache-2.0
"""pyroute2's message classes, loaded without the rest of pyroute2."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from typing import Any

_LOADING = threading.Lock()


def load(package: str, names: tuple[str, ...]) -> list[Any]:
    """The classes of these names, each from the module below ``package`` that is said before a colon, or of its name.

    Blocks for a moment; raises ImportError. pyroute2's own __init__ loads 200 modules (11 MB, 0.2 s) that the classes
    can do without: so an empty package stands in its place while they are loaded. Should a version need it after all,
    it is loaded.
    """
    with _LOADING:
        if "pyroute2" not in sys.modules and (spec := importlib.util.find_spec("pyroute2")):
            sys.modules["pyroute2"] = importlib.util.module_from_spec(spec)
            try:
                return _load(package, names)
            except ImportError:
                for name in [name for name in sys.modules if name.startswith("pyroute2.")]:
                    del sys.modules[name]
            finally:
                del sys.modules["pyroute2"]
        return _load(package, names)


def _load(package: str, names: tuple[str, ...]) -> list[Any]:
    found = []
    for name in names:
        module, _, of_class = name.rpartition(":")
        try:
            found.append(getattr(importlib.import_module(f"{package}.{module or of_class}"), of_class))
        except AttributeError as error:
            raise ImportError(str(error)) from error
    return found
