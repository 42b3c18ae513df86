# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: the slow ones are marked, and those that need root say so instead of failing obscurely."""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes; ci/test-slow runs it, ci/test does not")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("lab") and os.geteuid() != 0:
        pytest.fail("needs root, for network namespaces: run ci/test as root", pytrace=False)
