# SPDX-License-Identifier: Apache-2.0
"""Read the syntax of OpenWrt's /etc/config files, nothing more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import field

from igdpcp.errors import ConfigError
from igdpcp.values import dataclass

_PIECE = re.compile(
    r"""
      (?P<single>  ' [^']* ' )
    | (?P<double>  " (?: [^"\\] | \\. )* " )
    | (?P<escape>  \\ . )
    | (?P<comment> \# [^\n]* )
    | (?P<newline> \n )
    | (?P<blank>   [ \t\r]+ )
    | (?P<bare>    [^ \t\r\n'"\\#]+ )
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9_]+")

_KEYWORDS = {"c": "config", "o": "option", "l": "list", "p": "package"}  # libuci accepts the first letter alone


@dataclass(slots=True)
class Section:
    """One section: its type, its name ('' when it has none), its options, and the line it starts at."""

    type: str
    name: str
    values: dict[str, str | list[str]] = field(default_factory=dict)
    line: int = 0


def _statements(text: str) -> Iterator[tuple[int, list[str]]]:
    """Split into statements: (line number, words). A quoted word may span lines; adjacent pieces join."""
    words: list[str] = []
    word: str | None = None
    line = start = 1
    position = 0
    while position < len(text):
        piece = _PIECE.match(text, position)
        if piece is None:
            what = (
                "a lone backslash ends the file" if text[position] == "\\" else f"quote {text[position]} never closes"
            )
            raise ConfigError([f"line {line}: {what}"])
        kind, value = piece.lastgroup, piece.group()
        position = piece.end()
        if kind in ("blank", "newline", "comment"):
            if word is not None:
                words.append(word)
                word = None
            if kind == "newline" and words:
                yield start, words
                words = []
        else:
            if word is None:
                word = ""
                start = start if words else line
            word += _literal(kind, value)
        line += value.count("\n")
    if word is not None:
        words.append(word)
    if words:
        yield start, words


def _literal(kind: str | None, piece: str) -> str:
    if kind == "single":
        return piece[1:-1]
    if kind == "double":
        return _ESCAPE.sub(r"\1", piece[1:-1])
    if kind == "escape":
        return "" if piece == "\\\n" else piece[1]
    return piece


def parse(text: str) -> list[Section]:
    """The sections in the order of the file; raises ConfigError with every line that is no UCI.

    Sections of one name are merged. An option with an empty value does not exist.
    """
    sections: list[Section] = []
    named: dict[str, Section] = {}
    current: Section | None = None
    problems: list[str] = []
    try:
        for line, words in _statements(text):
            keyword = _KEYWORDS.get(words[0], words[0])
            problem = _problem(keyword, words[1:], current is not None)
            if problem:
                problems.append(f"line {line}: {problem}")
            elif keyword == "config":
                current = _open_section(sections, named, words[1], words[2] if len(words) == 3 else "", line)
            elif current is not None and keyword != "package":
                _store(current.values, keyword, words[1], words[2] if len(words) == 3 else "")
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return sections


def _problem(keyword: str, arguments: list[str], in_section: bool) -> str:
    """Why this statement is no UCI, or an empty string."""
    if keyword == "package":
        return "" if len(arguments) == 1 else "'package' takes one name"
    if keyword not in ("config", "option", "list"):
        return f"{keyword!r} is none of config, option, list"
    if not 1 <= len(arguments) <= 2:
        return f"{keyword!r} takes one or two words, not {len(arguments)} (is a quote missing?)"
    if keyword == "config":
        if not arguments[0] or not arguments[0].isprintable():
            return f"{arguments[0]!r} is not a section type"
        if len(arguments) == 2 and arguments[1] and not _NAME.fullmatch(arguments[1]):
            return f"{arguments[1]!r} is not a section name (letters, digits, underscore)"
        return ""
    if not in_section:
        return f"{keyword!r} stands before the first section"
    if not _NAME.fullmatch(arguments[0]):
        return f"{arguments[0]!r} is not an option name (letters, digits, underscore)"
    return ""


def _open_section(
    sections: list[Section], named: dict[str, Section], section_type: str, name: str, line: int
) -> Section:
    section = named.get(name)
    if section is None:
        section = Section(section_type, name, {}, line)
        sections.append(section)
        if name:
            named[name] = section
    section.type = section_type
    return section


def _store(values: dict[str, str | list[str]], keyword: str, option: str, value: str) -> None:
    if keyword == "list":
        old = values.get(option, [])
        values[option] = [*(old if isinstance(old, list) else [old]), value]
    elif value:
        values[option] = value
    else:
        values.pop(option, None)
