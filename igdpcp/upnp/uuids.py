# SPDX-License-Identifier: Apache-2.0
"""UUIDs as text (RFC 9562). The standard library's module takes 5 ms to load, as it loads much that is not needed."""

from __future__ import annotations

import hashlib

UUID_BITS = 128
URL_NAMESPACE = "6ba7b811-9dad-11d1-80b4-00c04fd430c8"  # RFC 9562 section 6.6, names that are URLs


def named_uuid(namespace: str, name: str) -> str:
    """The UUID of a name in a namespace, itself a UUID: version 5 (section 5.5)."""
    digest = hashlib.sha1(bytes.fromhex(namespace.replace("-", "")) + name.encode(), usedforsecurity=False).digest()
    return _text(int.from_bytes(digest[: UUID_BITS // 8], "big"), 5)


def random_uuid(bits: int) -> str:
    """The UUID of UUID_BITS random bits: version 4 (section 5.4)."""
    return _text(bits, 4)


def _text(number: int, version: int) -> str:
    """With version and variant in their places (sections 4.1 and 4.2)."""
    number = number & ~(0xF << 76) | version << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    digits = f"{number:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
