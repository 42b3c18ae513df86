# SPDX-License-Identifier: Apache-2.0
"""``dataclass`` as in the standard library, for a program that has a hundred of them and has to start on a slow router.

The standard one compiles up to six methods for each class, which is most of the time that loading this program takes.
Here only ``__init__`` is compiled; the others are closures. What ``frozen`` forbids is mypy's to find, as of everything
that types promise here: at run time nothing stops an assignment, and nothing slows down the making of a value.

``shared`` is for numbers that are in thousands of values at the same time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

__all__ = ["dataclass", "shared"]


@lru_cache(maxsize=64, typed=True)
def shared(number: int) -> int:
    """The number itself, as the same object where it was asked for lately: a large one costs 32 octets each time."""
    return number


if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    import dataclasses
    from operator import attrgetter

    def dataclass(*, frozen=False, slots=False, eq=True):
        """``eq`` compares the fields of values of one class; with ``frozen`` they are what is hashed, too."""

        def made(written):
            cls = dataclasses.dataclass(written, slots=slots, eq=False, repr=False)
            names = [field.name for field in dataclasses.fields(cls)]
            methods = {"__repr__": _repr(names)}
            if eq:
                values = attrgetter(*names) if names else type  # of a class without fields all are equal
                methods |= {"__eq__": _eq(values), "__hash__": _hash(values) if frozen else None}
            for name, method in methods.items():
                if name not in written.__dict__:
                    setattr(cls, name, method)
            return cls

        return made

    def _repr(names):
        def __repr__(self):
            shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
            return f"{type(self).__qualname__}({shown})"

        return __repr__

    def _eq(values):
        def __eq__(self, other):
            return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

        return __eq__

    def _hash(values):
        def __hash__(self):
            return hash(values(self))

        return __hash__
