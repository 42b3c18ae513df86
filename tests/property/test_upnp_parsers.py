# SPDX-License-Identifier: Apache-2.0
"""Any bytes of a LAN host parse or raise the peer error, and nothing else."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from igdpcp.errors import MalformedRequest, PeerError
from igdpcp.upnp.http import HttpConnection, HttpResponse
from igdpcp.upnp.soap import encode_fault, encode_response, parse_call
from igdpcp.upnp.ssdp import parse_announcement, parse_answer, parse_search

WANIP = "urn:schemas-upnp-org:service:WANIPConnection:1"
REQUEST = (
    b"POST /ctl/IPConn HTTP/1.1\r\nHost: 192.168.1.1:5000\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n"
    b"\r\n4\r\nbody\r\n0\r\n\r\nGET / HTTP/1.0\r\n\r\n"
)
SEARCH = b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 2\r\nST: ssdp:all\r\n\r\n'
CALL = (
    f'<?xml version="1.0"?><s:Envelope xmlns:s="x"><s:Body><u:DeletePortMapping xmlns:u="{WANIP}"><NewRemoteHost/>'
    "<NewExternalPort>1</NewExternalPort><NewProtocol>TCP</NewProtocol></u:DeletePortMapping></s:Body></s:Envelope>"
).encode()


@st.composite
def damaged(draw, valid):
    """Valid bytes with a piece replaced by any bytes; from time to time nothing but any bytes."""
    start = draw(st.integers(0, len(valid)))
    end = draw(st.integers(start, min(len(valid), start + 12)))
    return valid[:start] + draw(st.binary(max_size=12)) + valid[end:]


@given(st.one_of(st.binary(max_size=300), damaged(REQUEST)), st.lists(st.integers(0, 300), max_size=4))
def test_any_bytes_into_a_connection(data, cuts):
    http = HttpConnection("x")
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    status = 0
    try:
        for start, end in pairwise(edges):
            requests = http.receive_data(data[start:end])
            http.bytes_to_send()
            while requests:
                http.send(HttpResponse(200, body=b"x"))
                if http.must_close:
                    return
                requests = http.resume()
    except MalformedRequest as error:
        status = error.status
    assert status == 0 or http.refuse(status).startswith(b"HTTP/1.1 %d " % status)


@given(
    st.one_of(st.none(), st.text(max_size=40), st.just(f"{WANIP}#DeletePortMapping")),
    st.one_of(st.binary(max_size=300), damaged(CALL), st.text(max_size=100).map(str.encode)),
)
def test_any_bytes_as_a_control_request(soapaction, body):
    with suppress(PeerError):
        call = parse_call(soapaction, body)
        encode_response(call, {argument.name: "" for argument in call.action.outputs})


@given(st.text(alphabet=st.characters(), max_size=100))
def test_any_text_makes_a_well_formed_fault(text):
    ElementTree.fromstring(encode_fault(501, text))


@given(st.one_of(st.binary(max_size=300), damaged(SEARCH)))
def test_any_bytes_as_a_search(data):
    parse_answer(data)
    parse_announcement(data)
    with suppress(MalformedRequest):
        parse_search(data)
