# SPDX-License-Identifier: Apache-2.0
"""UUIDs are those that the standard library makes."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from igdpcp.upnp.uuids import URL_NAMESPACE, UUID_BITS, named_uuid, random_uuid


def test_the_namespace_is_the_standards() -> None:
    assert uuid.UUID(URL_NAMESPACE) == uuid.NAMESPACE_URL


@given(namespace=st.uuids(), name=st.text(st.characters(exclude_categories=("Cs",))))
def test_names_give_the_same_uuid_everywhere(namespace: uuid.UUID, name: str) -> None:
    assert named_uuid(str(namespace), name) == str(uuid.uuid5(namespace, name))


@given(bits=st.integers(0, (1 << UUID_BITS) - 1))
def test_random_bits_make_a_version_4_uuid(bits: int) -> None:
    assert random_uuid(bits) == str(uuid.UUID(int=bits, version=4))
