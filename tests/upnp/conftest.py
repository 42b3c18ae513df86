# SPDX-License-Identifier: Apache-2.0
"""The LAN that the SSDP tests share within a module."""

from __future__ import annotations

import pytest

from tests.support.ssdp_lan import two_namespaces


@pytest.fixture(scope="module")
def homes():
    with two_namespaces() as homes:
        yield homes
