# SPDX-License-Identifier: Apache-2.0
"""The UCI parser against the rules of libuci."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igdpcp import uci
from igdpcp.errors import ConfigError


def only_option(text: str) -> str | list[str]:
    return uci.parse(f"config t\n\toption o {text}\n")[0].values["o"]


def test_sections_keep_their_order_type_name_and_line() -> None:
    sections = uci.parse("config a 'one'\n\n# note\nconfig b\n\toption x '1'\n")
    assert [(s.type, s.name, s.line) for s in sections] == [("a", "one", 1), ("b", "", 4)]
    assert sections[1].values == {"x": "1"}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("plain", "plain"),
        ("'single # quoted'", "single # quoted"),
        ("'back\\slash'", "back\\slash"),
        (r'"a \"b\" \\ c"', r'a "b" \ c'),
        (r"'it'\''s'", "it's"),
        ("un'quo'\"ted\"", "unquoted"),
        ("x#y", "x"),
        (r"x\#y", "x#y"),
        (r"a\ b", "a b"),
        ("'two\nlines'", "two\nlines"),
        ("long\\\ner", "longer"),
    ],
)
def test_a_word_is_read_as_libuci_reads_it(written: str, value: str) -> None:
    assert only_option(written) == value


def test_an_empty_option_does_not_exist_and_takes_an_earlier_value_away() -> None:
    assert uci.parse("config t\noption a ''\noption b '1'\noption b ''\n")[0].values == {}


def test_list_values_gather_also_after_an_option() -> None:
    assert uci.parse("config t\nlist a 1\nlist a 2\noption b 1\nlist b 2\n")[0].values == {
        "a": ["1", "2"],
        "b": ["1", "2"],
    }


def test_sections_of_one_name_are_merged_and_anonymous_ones_are_not() -> None:
    sections = uci.parse("config t n\noption a 1\nconfig t\nconfig t n\noption a 2\noption b 3\nconfig t\n")
    assert [(s.name, s.values) for s in sections] == [("n", {"a": "2", "b": "3"}), ("", {}), ("", {})]


def test_one_letter_keywords_package_lines_and_crlf_are_accepted() -> None:
    assert uci.parse("p igdpcp\r\nc t n\r\no a 1\r\nl b 2")[0].values == {"a": "1", "b": ["2"]}


def test_every_wrong_line_is_reported_at_once_with_its_number() -> None:
    with pytest.raises(ConfigError) as caught:
        uci.parse("option early 1\nconfig t\n\tfoo 'x'\n\toption a b c\n\toption bad-name 1\nconfig t 'bad name'\n")
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "line 1",
        "line 3",
        "line 4",
        "line 5",
        "line 6",
    ]


@pytest.mark.parametrize("tail", ["option a 'open\n", 'option a "open\n\\"\n', "option a x\\"])
def test_an_unclosed_quote_or_escape_is_reported_where_it_begins(tail: str) -> None:
    with pytest.raises(ConfigError, match="line 3"):
        uci.parse("config t\noption ok 1\n" + tail)


@given(st.text())
def test_any_text_parses_or_raises_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert all(section.type for section in uci.parse(text))


@given(st.text(min_size=1))
def test_any_value_survives_single_quotes(value: str) -> None:
    quoted = "'" + value.replace("'", "'\\''") + "'"
    assert only_option(quoted) == value
