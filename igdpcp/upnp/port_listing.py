# SPDX-License-Identifier: Apache-2.0
"""The XML document that GetListOfPortMappings returns in NewPortListing (WANIPConnection:2, A_ARG_TYPE_PortListing)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from igdpcp.upnp.actions import Value
from igdpcp.upnp.soap import Cdata, escaped

ENTRIES_PER_ANSWER = 1000  # as many as miniupnpc asks for; NewNumberOfPorts 0 means no limit but this one

_NAMESPACE = "urn:schemas-upnp-org:gw:WANIPConnection"
_OPEN = (
    f'<p:PortMappingList xmlns:p="{_NAMESPACE}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
    f' xsi:schemaLocation="{_NAMESPACE} http://www.upnp.org/schemas/gw/WANIPConnection-v2.xsd">'
)
_CLOSE = "</p:PortMappingList>"


def port_listing(entries: Iterable[Mapping[str, Value]]) -> Cdata:
    """The document of these entries, each the output arguments of a GetGenericPortMappingEntry."""
    return Cdata(_OPEN + "".join(map(_entry, entries)) + _CLOSE)


def _entry(entry: Mapping[str, Value]) -> str:
    # No "]]>" can occur: what comes from control points has its ">" escaped.
    return (
        "<p:PortMappingEntry>"
        f"<p:NewRemoteHost>{entry['NewRemoteHost']}</p:NewRemoteHost>"
        f"<p:NewExternalPort>{entry['NewExternalPort']}</p:NewExternalPort>"
        f"<p:NewProtocol>{entry['NewProtocol']}</p:NewProtocol>"
        f"<p:NewInternalPort>{entry['NewInternalPort']}</p:NewInternalPort>"
        f"<p:NewInternalClient>{entry['NewInternalClient']}</p:NewInternalClient>"
        f"<p:NewEnabled>{entry['NewEnabled']:d}</p:NewEnabled>"
        f"<p:NewDescription>{escaped(str(entry['NewPortMappingDescription']))}</p:NewDescription>"
        f"<p:NewLeaseTime>{entry['NewLeaseDuration']}</p:NewLeaseTime>"
        "</p:PortMappingEntry>"
    )
