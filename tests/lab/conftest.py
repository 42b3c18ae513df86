# SPDX-License-Identifier: Apache-2.0
"""Every lab test gives back what it took from the machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.topology import Lab


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert Lab.leftovers() == []
