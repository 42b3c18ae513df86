# SPDX-License-Identifier: Apache-2.0
"""Read an OpenWrt package Makefile as far as the tests need it: variables and define blocks."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def variables(makefile: Path) -> dict[str, str]:
    """The NAME:=VALUE lines at the beginning of a line."""
    return dict(re.findall(r"^(\w+):=(.*)$", makefile.read_text(), re.MULTILINE))


def block(makefile: Path, name: str, **values: str) -> str:
    """The body of ``define NAME``, with $(NAME) replaced by ``values`` and $$ by $, as the shell would get it."""
    found = re.search(rf"^define {re.escape(name)}\n(.*?)^endef$", makefile.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{makefile} defines no {name}"
    body = found[1]
    for variable, value in values.items():
        body = body.replace(f"$({variable.lstrip('_')})", value)
    return body.replace("$$", "$")
