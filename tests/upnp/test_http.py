# SPDX-License-Identifier: Apache-2.0
"""One HTTP connection, seen from its bytes."""

from __future__ import annotations

import pytest

from igdpcp.errors import MalformedRequest
from igdpcp.upnp.http import (
    BODY_LIMIT,
    HEADER_LIMIT,
    PIECES_LIMIT,
    REQUEST_LIMIT,
    HttpConnection,
    HttpResponse,
    xml_response,
)

POST = b"POST /ctl/IPConn HTTP/1.1\r\nHost: 192.168.1.1:5000\r\nSOAPAction: a#b\r\nContent-Length: 4\r\n\r\nbody"
GET = b"GET /rootDesc.xml HTTP/1.1\r\nHost: 192.168.1.1:5000\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def connection():
    return HttpConnection("Linux/5 UPnP/1.1 igdpcp/1")


def test_a_request_comes_out_with_lower_case_header_names():
    (request,) = connection().receive_data(POST)
    assert (request.method, request.path, request.body, request.version) == ("POST", "/ctl/IPConn", b"body", "1.1")
    assert request.headers == {"host": "192.168.1.1:5000", "soapaction": "a#b", "content-length": "4"}


def test_a_request_may_come_byte_by_byte():
    http = connection()
    requests = [request for i in range(len(POST)) for request in http.receive_data(POST[i : i + 1])]
    assert [request.body for request in requests] == [b"body"]


def test_the_response_has_length_type_server_and_ext():
    http = connection()
    http.receive_data(POST)
    assert http.send(xml_response(200, b"<a/>")) == (
        b'HTTP/1.1 200 OK\r\nContent-Type: text/xml; charset="utf-8"\r\nContent-Length: 4\r\n'
        b"Ext:\r\nServer: Linux/5 UPnP/1.1 igdpcp/1\r\n\r\n<a/>"
    )
    assert not http.must_close


def test_header_values_cannot_break_out_of_their_line():
    http = connection()
    http.receive_data(GET)
    assert b"Allow: POST  X: y\r\n" in http.send(HttpResponse(405, (("Allow", "POST\r\nX: y"),)))


def test_pipelined_requests_come_one_after_the_other():
    http = connection()
    (first,) = http.receive_data(POST + GET)
    assert first.method == "POST"
    assert http.resume() == []
    http.send(HttpResponse(200))
    (second,) = http.resume()
    assert second.path == "/rootDesc.xml"


def test_connection_close_is_honoured():
    http = connection()
    http.receive_data(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert b"\r\nConnection: close\r\n" in http.send(HttpResponse(200))
    assert http.must_close


def test_an_old_client_without_host_is_answered_and_closed():
    http = connection()
    (request,) = http.receive_data(b"GET / HTTP/1.0\r\n\r\n")
    assert request.version == "1.0"
    assert http.send(HttpResponse(404)).startswith(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n")
    assert http.must_close


def test_a_head_request_gets_the_length_but_no_body():
    http = connection()
    http.receive_data(GET.replace(b"GET", b"HEAD"))
    response = http.send(HttpResponse(200, body=b"<a/>"))
    assert b"Content-Length: 4\r\n" in response
    assert response.endswith(b"\r\n\r\n")


def test_a_chunked_body_is_joined():
    http = connection()
    (request,) = http.receive_data(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n"
    )
    assert request.body == b"body"


def test_a_client_that_expects_100_continue_gets_it_once():
    http = connection()
    head, body = POST.replace(b"Content-Length", b"Expect: 100-continue\r\nContent-Length").split(b"\r\n\r\n")
    assert http.receive_data(head + b"\r\n\r\n") == []
    assert http.bytes_to_send() == b"HTTP/1.1 100 \r\n\r\n"
    assert http.bytes_to_send() == b""
    (request,) = http.receive_data(body)
    assert request.body == b"body"


def test_m_post_is_a_request_like_any_other():
    (request,) = connection().receive_data(b"M-POST / HTTP/1.1\r\nHost: a\r\n01-SOAPACTION: a#b\r\n\r\n")
    assert (request.method, request.headers["01-soapaction"]) == ("M-POST", "a#b")


def test_a_whole_url_as_target_is_cut_to_its_path():
    (request,) = connection().receive_data(b"GET http://192.168.1.1:5000/a?b HTTP/1.1\r\nHost: a\r\n\r\n")
    assert request.path == "/a?b"


def test_the_first_of_repeated_headers_counts():
    (request,) = connection().receive_data(b"GET / HTTP/1.1\r\nHost: a\r\nNT: 1\r\nnt: 2\r\n\r\n")
    assert request.headers["nt"] == "1"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x00\x01\x02\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * HEADER_LIMIT, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * HEADER_LIMIT + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * HEADER_LIMIT + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (BODY_LIMIT + 1), 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999999999999\r\n\r\n", 413),
    ],
)
def test_what_is_not_acceptable_is_refused_with_a_status(data, status):
    http = connection()
    with pytest.raises(MalformedRequest) as error:
        http.receive_data(data)
    assert error.value.status == status
    response = http.refuse(status)
    assert response.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close\r\n" in response
    assert http.must_close


def test_a_body_of_just_the_limit_is_taken():
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % BODY_LIMIT
    (request,) = connection().receive_data(head + b"x" * BODY_LIMIT)
    assert len(request.body) == BODY_LIMIT


def test_a_chunked_body_cannot_pass_the_limit():
    http = connection()
    http.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(BODY_LIMIT // 1024):
        http.receive_data(b"400\r\n" + b"x" * 1024 + b"\r\n")
    with pytest.raises(MalformedRequest) as error:
        http.receive_data(b"1\r\nx\r\n")
    assert error.value.status == 413


def test_pipelining_cannot_fill_the_memory():
    http = connection()
    http.receive_data(GET)
    http.receive_data(b"x" * (REQUEST_LIMIT - len(GET)))
    with pytest.raises(MalformedRequest) as error:
        http.receive_data(b"x")
    assert error.value.status == 413


def test_the_framing_of_chunks_counts():
    http = connection()
    http.receive_data(CHUNKED)
    chunk = b"1;extension\r\na\r\n"
    for _ in range((REQUEST_LIMIT - len(CHUNKED)) // len(chunk)):
        http.receive_data(chunk)
    with pytest.raises(MalformedRequest) as error:
        http.receive_data(chunk)
    assert error.value.status == 413


def test_only_so_many_chunks_are_read_at_one_go():
    http = connection()
    http.receive_data(CHUNKED)
    http.receive_data(b"1\r\na\r\n" * PIECES_LIMIT)
    with pytest.raises(MalformedRequest) as error:
        http.receive_data(b"1\r\na\r\n" * (PIECES_LIMIT + 1))
    assert error.value.status == 413


def test_a_body_of_the_full_length_may_come_in_chunks():
    http = connection()
    size = 256
    (request,) = http.receive_data(CHUNKED + (b"100\r\n" + b"x" * size + b"\r\n") * (BODY_LIMIT // size) + b"0\r\n\r\n")
    assert request.body == b"x" * BODY_LIMIT


def test_each_request_of_a_connection_has_the_whole_limit():
    http = connection()
    body = b"x" * BODY_LIMIT
    for _ in range(4):
        (request,) = http.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % BODY_LIMIT + body)
        assert request.body == body
        http.send(HttpResponse(200))
