# SPDX-License-Identifier: Apache-2.0
"""Any control request of a LAN host parses or raises the peer error, and nothing else; any text makes good XML."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Address
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from igdpcp.daemon.http_server import Peer
from igdpcp.errors import MalformedRequest, PeerError
from igdpcp.upnp.actions import DataType
from igdpcp.upnp.http import HttpRequest
from igdpcp.upnp.port_listing import port_listing
from igdpcp.upnp.soap import (
    VariableQuery,
    encode_fault,
    encode_response,
    encode_variable,
    names_an_action,
    parse_control,
)
from tests.support.hall import A, Hall
from tests.support.virtual_time import virtual

WANIP = "urn:schemas-upnp-org:service:WANIPConnection:1"
CALL = (
    f'<?xml version="1.0"?><s:Envelope xmlns:s="x"><s:Body><u:DeletePortMapping xmlns:u="{WANIP}"><NewRemoteHost/>'
    "<NewExternalPort>1</NewExternalPort><NewProtocol>TCP</NewProtocol></u:DeletePortMapping></s:Body></s:Envelope>"
).encode()
PEER = Peer(IPv4Address(A), IPv4Address("192.168.1.1"), "br-lan")
TEXT = st.text(max_size=40)
ENTRY = {
    "NewRemoteHost": "", "NewExternalPort": 1, "NewProtocol": "TCP", "NewInternalPort": 1, "NewInternalClient": "",
    "NewEnabled": True, "NewLeaseDuration": 0,
}  # fmt: skip


@st.composite
def damaged(draw, valid):
    """Valid bytes with a piece replaced by any bytes; from time to time nothing but any bytes."""
    start = draw(st.integers(0, len(valid)))
    end = draw(st.integers(start, min(len(valid), start + 12)))
    return valid[:start] + draw(st.binary(max_size=12)) + valid[end:]


SOAPACTIONS = st.one_of(st.none(), TEXT, st.just(f"{WANIP}#DeletePortMapping"))
BODIES = st.one_of(st.binary(max_size=300), damaged(CALL), st.text(max_size=100).map(str.encode))


@given(SOAPACTIONS, BODIES)
def test_any_bytes_as_a_control_request(soapaction, body):
    names_an_action(soapaction)
    with suppress(PeerError):
        call = parse_control(soapaction, body)
        if not isinstance(call, VariableQuery):
            encode_response(call, {argument.name: "" for argument in call.action.outputs})


@given(st.sampled_from(["TCP", "0", "-1", "", "yes"]) | TEXT)
def test_any_value_of_an_argument_is_typed_or_refused(value):
    cdata = f"<![CDATA[{value}]]>".encode()
    body = CALL.replace(b"<NewRemoteHost/>", b"<NewRemoteHost>" + cdata + b"</NewRemoteHost>")
    with suppress(PeerError):
        call = parse_control(None, body.replace(b">TCP<", b">" + cdata + b"<"))
        for argument in call.action.inputs:
            kind = call.service.variable(argument.variable, 1).type
            assert isinstance(call.arguments[argument.name], str if kind is DataType.STRING else int)


@given(st.data())
def test_any_request_is_answered_or_malformed(tmp_path_factory, data):
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path_factory.getbasetemp())
        wishes = {"host": "192.168.1.1", "accept-language": "", "user-agent": "", "origin": "", "content-type": ""}
        headers = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(wishes, TEXT)))
        if soapaction := data.draw(SOAPACTIONS):
            headers["soapaction"] = soapaction
        method = data.draw(st.sampled_from(["GET", "POST", "M-POST", "SUBSCRIBE"]) | TEXT)
        path = data.draw(st.sampled_from(["/ctl/IPConn", "/v2/evt/IP6FCtl", "/rootDesc.xml"]) | TEXT)
        request = HttpRequest(method, path, headers, data.draw(BODIES), "1.1")
        with suppress(MalformedRequest):
            response = await hall.igd_handler.handle(request, PEER)
            assert 200 <= response.status < 600

    run()


@given(st.text(alphabet=st.characters(), max_size=100))
def test_any_text_makes_a_well_formed_answer(text):
    ElementTree.fromstring(encode_fault(501, text))
    ElementTree.fromstring(encode_variable(text))
    listing = port_listing([ENTRY | {"NewPortMappingDescription": text}])
    ElementTree.fromstring(listing.encode(errors="replace"))
