# SPDX-License-Identifier: Apache-2.0
"""Reads orders as JSON lines, answers each with one, until stdin ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping


def serve(commands: Mapping[str, Callable[..., object]]) -> None:
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(commands[order.pop("do")](**order)), flush=True)
