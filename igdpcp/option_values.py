# SPDX-License-Identifier: Apache-2.0
"""Readers of one option's text: a value, or ValueError with the words that finish "TEXT ..."."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

UNIX_PATH_LIMIT = 107  # bytes in sockaddr_un, less the closing zero
INTERFACE_NAME_LIMIT = 15  # IFNAMSIZ, less the closing zero
FRIENDLY_NAME_LIMIT = 63  # UPnP Device Architecture 2.0, section 2.3: shorter than 64 characters
MODEL_NAME_LIMIT = 31  # the same: shorter than 32
SERIAL_NUMBER_LIMIT = 63
URL_LIMIT = 256
DESCRIPTION_LIMIT = 256
NFT_NAME_LIMIT = 31
CONTROL_SOCKET = "control.sock"
NONE = "none"

_TRUE = ("1", "yes", "on", "true", "enabled")
_FALSE = ("0", "no", "off", "false", "disabled")

Reader = Callable[[str], Any]


def boolean(text: str) -> bool:
    """UCI's words for true and false."""
    if text not in _TRUE + _FALSE:
        raise ValueError("is not a boolean (0 or 1)")
    return text in _TRUE


def choice(*allowed: str) -> Reader:
    """Reader of one of these words."""

    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"is none of {', '.join(allowed)}")
        return text

    return read


def number(kind: type[int] | type[float], low: float, high: float, what: str) -> Reader:
    """Reader of a number from ``low`` to ``high``, which the problem calls ``what``."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(low) - 1
        if not low <= value <= high:
            raise ValueError(f"is not {what} ({low}-{high})")
        return value

    return read


def port_range(text: str) -> range:
    """One port, or the first and the last of a range."""
    first, dash, last = text.partition("-")
    if not all(part.strip().isdecimal() for part in ((first, last) if dash else (first,))):
        raise ValueError("is not a port or a range of ports like 1024-65535")
    low, high = int(first), int(last if dash else first)
    if not low <= high <= 65535:
        raise ValueError("is not a range of ports (lowest first, at most 65535)")
    return range(low, high + 1)


def network(text: str) -> IPv4Network | IPv6Network:
    """A network, or one address; host bits are dropped."""
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise ValueError("is not an address or network like 192.168.1.0/24 or 2001:db8::/64") from None


def ipv4_host(text: str) -> IPv4Address:
    """The IPv4 address of one host that is not this one."""
    try:
        address = IPv4Address(text)
    except AddressValueError:
        raise ValueError("is not an IPv4 address (names are not looked up)") from None
    if address.is_multicast or address.is_loopback or address.is_unspecified or text == "255.255.255.255":
        raise ValueError("is not the address of one other host")
    return address


def server(text: str) -> str:
    """The address of one host that is not this one, in its canonical form."""
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError("is not an IP address (names are not looked up)") from None
    if address.is_multicast or address.is_loopback or address.is_unspecified or text == "255.255.255.255":
        raise ValueError("is not the address of one other host")
    if address.version == 6 and address.ipv4_mapped:
        raise ValueError("is an IPv4 address in IPv6 form; write it as IPv4")
    return str(address)


def interface(text: str) -> str:
    """A network device's name, of characters that mean nothing else in a firewall rule."""
    if not re.fullmatch(rf"[A-Za-z0-9_.@-]{{1,{INTERFACE_NAME_LIMIT}}}", text) or text in (".", ".."):
        raise ValueError(f"is not a device name (letters, digits and _.@-, {INTERFACE_NAME_LIMIT} at most)")
    return text


def directory(text: str) -> str:
    """An absolute path in which the control socket can be made."""
    if not text.startswith("/") or not text.isprintable():
        raise ValueError("is not an absolute path")
    if len(f"{text}/{CONTROL_SOCKET}".encode()) > UNIX_PATH_LIMIT:
        raise ValueError("is too long a path for a socket in it")
    return text


def file_or_none(text: str) -> str:
    """The absolute path of a file, or the word none."""
    if text != NONE and (not text.startswith("/") or not text.isprintable()):
        raise ValueError(f"is neither an absolute path nor {NONE}")
    return text


def device_text(limit: int) -> Reader:
    """Reader of what control points show of this device."""

    def read(text: str) -> str:
        if len(text) > limit or not text.isprintable():
            raise ValueError(f"is not printable text of at most {limit} characters")
        return text

    return read


def http_url(text: str) -> str:
    """An absolute URL of the web, or nothing."""
    if text and not re.fullmatch(rf"https?://[!-~]{{1,{URL_LIMIT}}}", text):
        raise ValueError("is not a URL like http://192.168.1.1/")
    return text


def nft_name(text: str) -> str:
    """An nftables identifier."""
    if not re.fullmatch(rf"[A-Za-z][A-Za-z0-9_]{{0,{NFT_NAME_LIMIT - 1}}}", text):
        raise ValueError(f"is not a table name (a letter, then letters, digits, underscore; {NFT_NAME_LIMIT} at most)")
    return text
