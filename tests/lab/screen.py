# SPDX-License-Identifier: Apache-2.0
"""How the demo talks: numbered steps, commands, listings and verdicts, in colour only on a terminal."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable

WIDTH = 90
INDENT = "   "
BOLD, DIM, GREEN, RED, CYAN = "1", "2", "32", "31", "36"


class Screen:
    """Lines on stdout, each written at once."""

    def __init__(self) -> None:
        self._colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._step = 0

    def paint(self, text: str, *codes: str) -> str:
        return f"\033[{';'.join(codes)}m{text}\033[0m" if self._colours else text

    def line(self, text: str = "") -> None:
        print(text, flush=True)

    def title(self, text: str) -> None:
        self.line(self.paint(text, BOLD))
        self.line(self.paint("═" * WIDTH, DIM))

    def drawing(self, text: str) -> None:
        self.line(textwrap.indent(text.strip("\n"), INDENT))

    def step(self, text: str) -> None:
        self._step += 1
        self.line()
        self.line(self.paint(f"{self._step}. {text}", BOLD, CYAN))

    def say(self, text: str) -> None:
        for line in textwrap.wrap(text, WIDTH - len(INDENT)):
            self.line(INDENT + line)

    def command(self, host: str, command: str) -> None:
        self.line(f"{INDENT}{self.paint(host + ' $', DIM)} {self.paint(command, BOLD)}")

    def listing(self, lines: Iterable[str]) -> None:
        """Output of a program, clipped to the width of the screen."""
        room = WIDTH - len(INDENT) - 2
        for line in lines:
            text = line.expandtabs(4).rstrip()
            text = text if len(text) <= room else text[: room - 1] + "…"
            self.line(f"{INDENT}{self.paint('│', DIM)} {text}".rstrip())

    def good(self, text: str) -> None:
        self.line(f"{INDENT}{self.paint('✔', GREEN, BOLD)} {text}")

    def bad(self, text: str) -> None:
        self.line(f"{INDENT}{self.paint('✘', RED, BOLD)} {text}")
