# SPDX-License-Identifier: Apache-2.0
"""The subscriber's view of GENA: NOTIFY messages taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

EVENT_NAMESPACE = "{urn:schemas-upnp-org:event-1-0}"


@dataclass(frozen=True, slots=True)
class Event:
    """One NOTIFY, checked for what every one of them must have."""

    path: str
    host: str
    sid: str
    seq: int
    values: dict[str, str]

    @classmethod
    def parse(cls, message: bytes) -> Event:
        """Take a complete message apart; AssertionError when it is not as the standard says."""
        head, _, body = message.partition(b"\r\n\r\n")
        request, *lines = head.decode("ascii").split("\r\n")
        method, path, version = request.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        assert (method, version) == ("NOTIFY", "HTTP/1.1")
        assert (headers["nt"], headers["nts"]) == ("upnp:event", "upnp:propchange")
        assert headers["content-type"] == 'text/xml; charset="utf-8"'
        assert int(headers["content-length"]) == len(body)
        assert headers["sid"].startswith("uuid:")
        properties = ElementTree.fromstring(body)
        assert properties.tag == f"{EVENT_NAMESPACE}propertyset"
        assert all(each.tag == f"{EVENT_NAMESPACE}property" and len(each) == 1 for each in properties)
        values = {each[0].tag: each[0].text or "" for each in properties}
        return cls(path, headers["host"], headers["sid"], int(headers["seq"]), values)
