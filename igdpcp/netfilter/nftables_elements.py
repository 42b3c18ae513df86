# SPDX-License-Identifier: Apache-2.0
"""Facts as elements: in which set or map each lives, and the bytes that the kernel holds of it.

In the kernel a concatenation is its fields one after the other in network order, each filled up with zeros to whole
words of 4 bytes; a field that stands alone is not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache

from igdpcp.errors import RulesetError
from igdpcp.model import Endpoint, IPAddress
from igdpcp.netfilter.desired import (
    Admit,
    Hairpin,
    HairpinSender,
    HairpinTarget,
    Key,
    OwnPort,
    Pass,
    Pinhole,
    Redirect,
    SourcePort,
    Value,
    device_name,
)

_DEVICE_SIZE = 16  # IFNAMSIZ of linux/if.h: a device's name with zeros behind it
_PORT, _PORT_IN_WORD, _NUMBER_IN_WORD = struct.Struct(">H"), struct.Struct(">H2x"), struct.Struct(">B3x")
_DEVICES = 64  # remembered

_PINHOLE_SETS = {  # by whether the remote host and the remote port are given
    (False, False): "pass6",
    (True, False): "pass6_rh",
    (False, True): "pass6_rp",
    (True, True): "pass6_rhp",
}


def by_object(keys: Iterable[Key]) -> dict[str, list[Key]]:
    """The keys of each set and map that has any."""
    grouped: dict[str, list[Key]] = {}
    for key in keys:
        grouped.setdefault(object_name(key), []).append(key)
    return grouped


@lru_cache(_DEVICES)
def device_key(name: str) -> bytes:
    """The name as it is in keys; raises RulesetError for what is none."""
    return device_name(name).encode().ljust(_DEVICE_SIZE, b"\0")


def object_name(key: Key) -> str:
    """The set or map that a fact lives in."""
    match key:
        case Redirect():
            return "dnat4" if key.remote_host is None else "dnat4_rh"
        case SourcePort():
            return "snat4"
        case OwnPort():
            return "own4"
        case Hairpin():
            return "hair4"
        case HairpinSender():
            return "hsrc4"
        case Pass():
            return "pass4"
        case Admit():
            return "open4" if key.remote_host is None else "open4_rh"
        case Pinhole():
            return _PINHOLE_SETS[key.remote_host is not None, key.remote_port != 0]


def element_key(key: Key) -> bytes:
    """What the element is found by; the order of fields is that of the type in ``layout.py``.

    Raises RulesetError for what is no device name or port.
    """
    match key:
        case Redirect(device, protocol, port, remote_host):
            return device_key(device) + _address(remote_host) + _number(protocol) + _port(port)
        case SourcePort(device, protocol, client):
            return device_key(device) + _number(protocol) + _endpoint_bytes(client)
        case OwnPort(device, protocol, port):
            return device_key(device) + _number(protocol) + _port(port)
        case Hairpin(address, protocol, port):
            return _address(address) + _number(protocol) + _port(port)
        case HairpinSender(protocol, client):
            return _number(protocol) + _endpoint_bytes(client)
        case Pass(protocol, port, client):
            return _number(protocol) + _port(port) + _endpoint_bytes(client)
        case Admit(device, protocol, client, remote_host):
            return device_key(device) + _address(remote_host) + _number(protocol) + _endpoint_bytes(client)
        case Pinhole(protocol, host, port, remote_host, remote_port):
            source = _address(remote_host) + (_port(remote_port) if remote_port else b"")
            return source + _address(host) + _number(protocol) + _port(port)


def element_data(value: Value) -> bytes:
    """What a map's element leads to; nothing in a set."""
    match value:
        case HairpinTarget(client):
            return _endpoint_bytes(client)
        case Endpoint():
            return _endpoint_bytes(value)
        case int():
            return _port(value, _PORT)
        case None:
            return b""


def _address(address: IPAddress | None) -> bytes:
    return address.packed if address else b""


def _number(protocol: int) -> bytes:
    return _NUMBER_IN_WORD.pack(protocol)


def _port(port: int, form: struct.Struct = _PORT_IN_WORD) -> bytes:
    try:
        return form.pack(port)
    except struct.error as error:
        raise RulesetError(f"{port} is not a port") from error


def _endpoint_bytes(endpoint: Endpoint) -> bytes:
    return _address(endpoint.address) + _port(endpoint.port)
