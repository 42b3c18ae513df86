# SPDX-License-Identifier: Apache-2.0
"""Facts as elements: in which set or map each lives, how nft writes it, and the bytes that the kernel holds of it.

In the kernel a concatenation is its fields one after the other in network order, each filled up with zeros to whole
words of 4 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address

from igdpcp.model import Endpoint, IPAddress
from igdpcp.netfilter.desired import (
    Admit,
    Fact,
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

Counted = tuple[int, int]  # packets, bytes

_DEVICE_SIZE = 16  # IFNAMSIZ of linux/if.h: a device's name with zeros behind it
_WORD = 4

_PINHOLE_SETS = {  # by whether the remote host and the remote port are given
    (False, False): "pass6",
    (True, False): "pass6_rh",
    (False, True): "pass6_rp",
    (True, True): "pass6_rhp",
}


def device_text(name: str) -> str:
    """The name as nft writes it; raises RulesetError for what is none."""
    return f'"{device_name(name)}"'


def timed(key: Key, fact: Fact, now: float, counted: Mapping[bytes, Counted]) -> str:
    """The element that expires with its fact; it goes on counting from what one like it has counted."""
    before = counted.get(element_key(key)) if counted else None
    return element_text(key, fact.value, max(1, round(fact.ends - now)), before)


def by_object(keys: Iterable[Key]) -> dict[str, list[Key]]:
    """The keys of each set and map that has any."""
    grouped: dict[str, list[Key]] = {}
    for key in keys:
        grouped.setdefault(object_name(key), []).append(key)
    return grouped


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


def match_text(key: Key) -> str:
    """The key as nft writes it; the order of fields is that of the type in ``layout.py``."""
    match key:
        case Redirect(device, protocol, wan_port, remote_host):
            return f"{device_text(device)}{_optional(remote_host)} . {protocol:d} . {wan_port:d}"
        case SourcePort(device, protocol, client):
            return f"{device_text(device)} . {protocol:d} . {_endpoint(client)}"
        case OwnPort(device, protocol, wan_port):
            return f"{device_text(device)} . {protocol:d} . {wan_port:d}"
        case Hairpin(address, protocol, port):
            return f"{address} . {protocol:d} . {port:d}"
        case HairpinSender(protocol, client):
            return f"{protocol:d} . {_endpoint(client)}"
        case Pass(protocol, port, client):
            return f"{protocol:d} . {port:d} . {_endpoint(client)}"
        case Admit(device, protocol, client, remote_host):
            return f"{device_text(device)}{_optional(remote_host)} . {protocol:d} . {_endpoint(client)}"
        case Pinhole(protocol, host, port, remote_address, remote_port):
            source = f"{remote_address} . " if remote_address else ""
            source += f"{remote_port:d} . " if remote_port else ""
            return f"{source}{host} . {protocol:d} . {port:d}"


def element_text(key: Key, value: Value, timeout: int | None = None, counted: Counted | None = None) -> str:
    """The whole element as nft writes it; ``timeout`` in seconds."""
    text = match_text(key)
    if counted is not None:
        text += f" counter packets {counted[0]:d} bytes {counted[1]:d}"
    if timeout is not None:
        text += f" timeout {timeout:d}s"
    match value:
        case HairpinTarget(client):
            return f"{text} : {_endpoint(client)}"
        case Endpoint():
            return f"{text} : {_endpoint(value)}"
        case int():
            return f"{text} : {value:d}"
        case None:
            return text


def element_key(key: Key) -> bytes:
    """What the element is found by; the order of fields is that of the type in ``layout.py``."""
    match key:
        case Redirect(device, protocol, port, remote_host):
            return _device(device) + _address(remote_host) + _number(protocol) + _port(port)
        case SourcePort(device, protocol, client):
            return _device(device) + _number(protocol) + _endpoint_bytes(client)
        case OwnPort(device, protocol, port):
            return _device(device) + _number(protocol) + _port(port)
        case Hairpin(address, protocol, port):
            return _address(address) + _number(protocol) + _port(port)
        case HairpinSender(protocol, client):
            return _number(protocol) + _endpoint_bytes(client)
        case Pass(protocol, port, client):
            return _number(protocol) + _port(port) + _endpoint_bytes(client)
        case Admit(device, protocol, client, remote_host):
            return _device(device) + _address(remote_host) + _number(protocol) + _endpoint_bytes(client)
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
            return _port(value)
        case None:
            return b""


def _endpoint(endpoint: Endpoint) -> str:
    return f"{endpoint.address} . {endpoint.port:d}"


def _optional(address: IPv4Address | None) -> str:
    return f" . {address}" if address else ""


def _device(name: str) -> bytes:
    return name.encode().ljust(_DEVICE_SIZE, b"\0")


def _address(address: IPAddress | None) -> bytes:
    return address.packed if address else b""


def _number(protocol: int) -> bytes:
    return bytes((protocol,)).ljust(_WORD, b"\0")


def _port(port: int) -> bytes:
    return port.to_bytes(2, "big").ljust(_WORD, b"\0")


def _endpoint_bytes(endpoint: Endpoint) -> bytes:
    return _address(endpoint.address) + _port(endpoint.port)
