# SPDX-License-Identifier: Apache-2.0
"""Ways to spoil a message: what is no longer sane still looks like HTTP, SOAP, GENA or SSDP in most places."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from tests.fuzz.grammar import (
    NEIGHBOURS_PINHOLE,
    NEIGHBOURS_PORT,
    NEIGHBOURS_SID,
    REFUSED_PORT,
    SIDS,
    SILENT_PORT,
)
from tests.support.hall import A6, B6, A, B

Mutation = Callable[[random.Random, bytes], bytes]

NUMBERS = (
    b"0", b"1", b"-1", b"+1", b"007", b"1.5", b"1e9", b"0x10", b" 80 ", b"80,80", b"65535", b"65536", b"4294967295",
    b"4294967296", b"18446744073709551616", b"9" * 30, b"9" * 5000, "٣".encode(), b"",
    *(str(own).encode() for own in (NEIGHBOURS_PORT, NEIGHBOURS_PINHOLE, REFUSED_PORT, SILENT_PORT)),
)  # fmt: skip
TEXTS = (
    *(text.encode() for text in (A, B, A6, B6, *SIDS[:2], NEIGHBOURS_SID)), b"*", b"0.0.0.0", b"255.255.255.255",
    b"127.0.0.1", b"::", b"fe80::1%eth0", b"[::1]:80", b"example.org", b"..", b"UDP", b"tcp", b"yes",
    b"Second-infinite", b"Second-0", b"upnp:event", b"chunked", b"gzip, chunked", b"identity", b"close", b"keep-alive",
    b"100-continue", b"ssdp:byebye", b"ssdp:all", b"it's", b'"', b"\\", b"=", b" event=forged ", b"\x1b[2J", b"\0",
    b"\r", b"\n", b"\r\nX-Injected: 1", b"%0d%0a", b"%s%n", b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80",
    "\u2028\u202e\ufeff\U0001f600".encode(), b"&amp;", b"&#0;", b"&#x1b;", b"&#xD800;", b"&x;", b"]]>",
    b"<![CDATA[<a>]]>", b"<!--", b"<?a b?>", b"<a/>", b"</a>", b"a" * 300, b"a" * 5000, b"http://192.168.1.1:5000/",
    b"<http://192.168.1.60/>",
)  # fmt: skip
METHODS = (
    b"GET", b"HEAD", b"POST", b"M-POST", b"SUBSCRIBE", b"UNSUBSCRIBE", b"NOTIFY", b"M-SEARCH", b"OPTIONS", b"PUT",
    b"TRACE", b"CONNECT", b"PRI", b"get", b"G\0T", b"x" * 300, b"",
)  # fmt: skip
FIELDS = (
    b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 99999999999", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding : chunked", b"Expect: 100-continue",
    b"Connection: close", b"Connection: Upgrade, keep-alive", b"Host: example.org", b"Host:", b"HOST: 192.168.1.1",
    b"Origin: null", b"Content-Encoding: gzip", b"Content-Type: text/plain", b"MAN: x; ns=01", b"01-SOAPACTION: x",
    b"SID: uuid:x", b"NT: upnp:event", b"CALLBACK: <http://192.168.1.50/>", b"User-Agent: it's\ta = \"b\\\"",
    b" folded", b"no colon", b": no name", b"X: " + b"y" * 3000, b"X:\0", b"Accept-Language: en", b"User-Agent: FDSSDP",
)  # fmt: skip
VERSIONS = (b"HTTP/1.0", b"HTTP/1.9", b"HTTP/2.0", b"HTTP/1", b"http/1.1", b"")
DOCTYPES = (
    b"<!DOCTYPE a>",
    b'<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;&x;">]>',
    b'<!DOCTYPE a SYSTEM "file:///etc/passwd">',
    b'<!DOCTYPE a [<!ENTITY % x SYSTEM "http://192.168.1.60/"> %x;]>',
)
ENCODINGS = ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7", "cp037")
DEPTH = 40
HOW_MANY = (0, 1, 1, 1, 1, 2, 2, 3)
BODY_REPAIRED = 0.7  # how often a wrong Content-Length is put right again: most of these shall get further

_NUMBER = re.compile(rb"\d+")
_FIELD_VALUE = re.compile(rb"(?<=: )[^\r\n]*")
_ELEMENT_TEXT = re.compile(rb"(?<=>)[^<>\r\n]*(?=</)")
_WORD = re.compile(rb"[\w.-]+")
_CONTENT_LENGTH = re.compile(rb"(?i)(\r\ncontent-length: *)\d+")


def cut(rng: random.Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + data[end:] if rng.random() < 0.5 else data[:start]


def double(rng: random.Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 2, 20)) + data[end:]


def another_byte(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes([rng.choice(b"\0\t\n\r \"&'/:;<=>\\\x1b\x7f\x80\xff")]) + data[at + rng.randrange(2) :]


def any_bytes(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9))) + data[at:]


def number(rng: random.Random, data: bytes) -> bytes:
    return _substituted(rng, data, _NUMBER, NUMBERS)


def field_value(rng: random.Random, data: bytes) -> bytes:
    return _substituted(rng, data, _FIELD_VALUE, TEXTS)


def element_text(rng: random.Random, data: bytes) -> bytes:
    return _substituted(rng, data, _ELEMENT_TEXT, (*TEXTS, *NUMBERS))


def word(rng: random.Random, data: bytes) -> bytes:
    return _substituted(rng, data, _WORD, TEXTS)


def text(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(TEXTS) + data[at:]


def method(rng: random.Random, data: bytes) -> bytes:
    return rng.choice(METHODS) + b" " + data.partition(b" ")[2]


def version(rng: random.Random, data: bytes) -> bytes:
    return data.replace(b"HTTP/1.1", rng.choice(VERSIONS), 1)


def field(rng: random.Random, data: bytes) -> bytes:
    return _with_lines(data, lambda lines: lines.insert(_place(rng, lines), rng.choice(FIELDS)))


def repeated_field(rng: random.Random, data: bytes) -> bytes:
    return _with_lines(data, lambda lines: lines.insert(_place(rng, lines), rng.choice(lines)))


def swapped_fields(rng: random.Random, data: bytes) -> bytes:
    return _with_lines(data, rng.shuffle)


def many_fields(rng: random.Random, data: bytes) -> bytes:
    return _with_lines(data, lambda lines: lines.extend(b"X-%d: y" % number for number in range(rng.choice((40, 900)))))


def line_ends(rng: random.Random, data: bytes) -> bytes:
    return data.replace(b"\r\n", rng.choice((b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n ")), rng.choice((1, 3, -1)))


def doctype(rng: random.Random, data: bytes) -> bytes:
    head, separator, body = data.partition(b"\r\n\r\n")
    end = body.find(b"?>") + 2 if b"?>" in body else 0
    return head + separator + body[:end] + rng.choice(DOCTYPES) + body[end:]


def encoding(rng: random.Random, data: bytes) -> bytes:
    head, separator, body = data.partition(b"\r\n\r\n")
    return head + separator + body.decode("latin-1").encode(rng.choice(ENCODINGS), "replace")


def nested(rng: random.Random, data: bytes) -> bytes:
    start, end = _span(rng, data)
    depth = rng.choice((1, 3, DEPTH))
    return data[:start] + b"<a>" * depth + data[start:end] + b"</a>" * depth + data[end:]


def chunked(rng: random.Random, data: bytes) -> bytes:
    head, separator, body = data.partition(b"\r\n\r\n")
    size = rng.choice((1, 7, 100, 100000))
    sizes = (b"%x", b"%X;a=b", b"0000%x", b"+%x", b"%x ", b"%xg") if rng.random() < 0.3 else (b"%x",)
    pieces = [body[at : at + size] for at in range(0, len(body), size)][:2000]
    chunks = b"".join(rng.choice(sizes) % len(piece) + b"\r\n" + piece + b"\r\n" for piece in pieces)
    head = _CONTENT_LENGTH.sub(b"", head) + b"\r\nTransfer-Encoding: chunked"
    return head + separator + chunks + rng.choice((b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\n", b"00;\r\n\r\n", b""))


def content_length(rng: random.Random, data: bytes) -> bytes:
    return _CONTENT_LENGTH.sub(lambda match: match[1] + rng.choice((*NUMBERS, b"32768", b"32769")), data, count=1)


OF_ANY_MESSAGE: Sequence[Mutation] = (
    cut, double, another_byte, any_bytes, number, field_value, field_value, word, text, method, version, field,
    repeated_field, swapped_fields, many_fields, line_ends,
)  # fmt: skip
OF_BODIES: Sequence[Mutation] = (
    doctype, encoding, nested, chunked, content_length, element_text, element_text, element_text, element_text,
)  # fmt: skip
MEAN_THE_LENGTH = {content_length, chunked, cut}


def spoilt(rng: random.Random, data: bytes, mutations: Sequence[Mutation]) -> bytes:
    """The message after some of these mutations, few in most cases; its body's length is often right."""
    chosen = [rng.choice(mutations) for _ in range(rng.choice(HOW_MANY))]
    for mutation in chosen:
        data = mutation(rng, data)
    if MEAN_THE_LENGTH.isdisjoint(chosen) and rng.random() < BODY_REPAIRED:
        data = repaired(data)
    return data


def repaired(data: bytes) -> bytes:
    """The message with a Content-Length that counts what is there."""
    length = len(data.partition(b"\r\n\r\n")[2])
    return _CONTENT_LENGTH.sub(lambda match: match[1] + b"%d" % length, data, count=1)


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 4, 30, 200)))


def _substituted(rng: random.Random, data: bytes, pattern: re.Pattern[bytes], texts: Sequence[bytes]) -> bytes:
    places = [match.span() for match in pattern.finditer(data)]
    if not places:
        return data
    start, end = rng.choice(places)
    return data[:start] + rng.choice(texts) + data[end:]


def _with_lines(data: bytes, change: Callable[[list[bytes]], object]) -> bytes:
    """The message with the lines of its head changed; its first line stays."""
    head, separator, body = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    if lines:
        change(lines)
    return b"\r\n".join((first, *lines)) + separator + body


def _place(rng: random.Random, lines: Sequence[bytes]) -> int:
    return rng.randrange(len(lines) + 1)
