# SPDX-License-Identifier: Apache-2.0
"""JSON: ujson where it is installed, the standard library otherwise."""

from __future__ import annotations

import json
from typing import Any

try:
    import ujson
except ImportError:
    ujson = None  # type: ignore[assignment]


def dumps(value: Any) -> str:
    """One line of JSON, without escaped slashes."""
    if ujson is not None:
        return str(ujson.dumps(value, escape_forward_slashes=False, ensure_ascii=False))
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def loads(text: str | bytes) -> Any:
    """Parsed JSON; raises ValueError when it is none."""
    return ujson.loads(text) if ujson is not None else json.loads(text)


def pretty(value: Any) -> str:
    """Indented JSON for people, with a fixed form whichever library is installed."""
    return json.dumps(value, indent=2, ensure_ascii=False)
