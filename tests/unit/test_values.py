# SPDX-License-Identifier: Apache-2.0
"""What our dataclasses have in common with the standard library's, seen from the values."""

from __future__ import annotations

import dataclasses

import pytest

from igdpcp.values import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """Two fields."""

    x: int
    y: int = 0


@dataclass(frozen=True, slots=True)
class OtherPoint:
    """The same fields in another class."""

    x: int
    y: int = 0


@dataclass(frozen=True, slots=True)
class Single:
    """One field."""

    x: int


@dataclass(frozen=True, slots=True)
class Nothing:
    """No field."""


@dataclass(slots=True)
class Counter:
    """Changes."""

    count: int = 0
    names: list[str] = dataclasses.field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Thing:
    """Each is itself."""

    x: int


@dataclass(frozen=True, slots=True)
class Spoken:
    """Has its own words."""

    x: int

    def __repr__(self) -> str:
        return "spoken"

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 7


@pytest.mark.parametrize("value", [Point(1, 2), Single(1), Nothing()])
def test_values_of_equal_fields_are_equal_and_found_by_hash(value: Point | Single | Nothing) -> None:
    twin = dataclasses.replace(value)
    assert twin is not value
    assert twin == value
    assert value in {twin}


def test_values_of_other_fields_or_of_another_class_are_not_equal() -> None:
    assert Point(1, 2) != Point(1, 3)
    assert Single(1) != Single(2)
    assert Point(1, 2) != OtherPoint(1, 2)
    assert Point(1, 2) != (1, 2)


def test_what_changes_is_compared_but_not_hashed() -> None:
    assert Counter(1, ["a"]) == Counter(1, ["a"])
    with pytest.raises(TypeError):
        hash(Counter())


def test_defaults_are_each_values_own() -> None:
    assert Counter().names is not Counter().names


def test_without_eq_each_is_itself() -> None:
    one = Thing(1)
    assert one != Thing(1)
    assert one in {one}


def test_a_value_is_shown_with_its_fields() -> None:
    assert repr(Point(1, 2)) == "Point(x=1, y=2)"
    assert repr(Nothing()) == "Nothing()"


def test_what_a_class_writes_itself_stays() -> None:
    assert repr(Spoken(1)) == "spoken"
    assert Spoken(1) == 5
    assert hash(Spoken(1)) == 7


def test_there_is_no_room_for_more_than_the_fields() -> None:
    assert not hasattr(Point(1), "__dict__")
