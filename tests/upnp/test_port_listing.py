# SPDX-License-Identifier: Apache-2.0
"""NewPortListing byte for byte, and that no description can end the CDATA section it travels in."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from igdpcp.upnp.port_listing import port_listing
from igdpcp.upnp.soap import encode_response, parse_control
from tests.support.soap_client import envelope

URN = "urn:schemas-upnp-org:service:WANIPConnection:2"
SPACE = "{urn:schemas-upnp-org:gw:WANIPConnection}"
ENTRY = {
    "NewRemoteHost": "",
    "NewExternalPort": 40000,
    "NewProtocol": "UDP",
    "NewInternalPort": 40001,
    "NewInternalClient": "192.168.1.50",
    "NewEnabled": True,
    "NewPortMappingDescription": "R&D <1>",
    "NewLeaseDuration": 3540,
}
RANGE = {"NewStartPort": 1, "NewEndPort": 2, "NewProtocol": "UDP", "NewManage": 0, "NewNumberOfPorts": 0}


def test_the_listing_is_the_document_of_the_standard():
    assert port_listing([ENTRY]) == (
        '<p:PortMappingList xmlns:p="urn:schemas-upnp-org:gw:WANIPConnection"'
        ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
        ' xsi:schemaLocation="urn:schemas-upnp-org:gw:WANIPConnection'
        ' http://www.upnp.org/schemas/gw/WANIPConnection-v2.xsd">'
        "<p:PortMappingEntry><p:NewRemoteHost></p:NewRemoteHost><p:NewExternalPort>40000</p:NewExternalPort>"
        "<p:NewProtocol>UDP</p:NewProtocol><p:NewInternalPort>40001</p:NewInternalPort>"
        "<p:NewInternalClient>192.168.1.50</p:NewInternalClient><p:NewEnabled>1</p:NewEnabled>"
        "<p:NewDescription>R&amp;D &lt;1&gt;</p:NewDescription><p:NewLeaseTime>3540</p:NewLeaseTime>"
        "</p:PortMappingEntry></p:PortMappingList>"
    )


def test_the_listing_travels_unescaped_in_the_answer():
    call = parse_control(None, envelope(URN, "GetListOfPortMappings", RANGE))
    assert b"<NewPortListing><![CDATA[<p:PortMappingList " in encode_response(
        call, {"NewPortListing": port_listing([ENTRY])}
    )


@pytest.mark.parametrize("description", ["]]>", "]]]]>>", "]]&gt;", "<![CDATA[x]]>", "a\x00b\ufffe]]>"])
def test_no_description_can_end_the_section_around_the_listing(description):
    call = parse_control(None, envelope(URN, "GetListOfPortMappings", RANGE))
    listing = port_listing([ENTRY | {"NewPortMappingDescription": description}, ENTRY])
    (outer,) = ElementTree.fromstring(encode_response(call, {"NewPortListing": listing})).iter("NewPortListing")
    shown = [element.text for element in ElementTree.fromstring(outer.text).iter(SPACE + "NewDescription")]
    assert shown == [description.replace("\x00", "").replace("\ufffe", ""), "R&D <1>"]
