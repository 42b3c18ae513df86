# SPDX-License-Identifier: Apache-2.0
"""One HTTP connection, seen from its bytes."""

from __future__ import annotations

import tracemalloc

import pytest

from igdpcp.errors import MalformedRequest
from igdpcp.upnp.http import (
    BODY_LIMIT,
    HEADER_LIMIT,
    PIECES_LIMIT,
    REQUEST_LIMIT,
    HttpConnection,
    HttpResponse,
    standing_fields,
    xml_response,
)

POST = b"POST /ctl/IPConn HTTP/1.1\r\nHost: 192.168.1.1:5000\r\nSOAPAction: a#b\r\nContent-Length: 4\r\n\r\nbody"
GET = b"GET /rootDesc.xml HTTP/1.1\r\nHost: 192.168.1.1:5000\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_a_request_comes_out_with_lower_case_header_names():
    request = HttpConnection().receive_data(POST)
    assert (request.method, request.path, request.body, request.version) == ("POST", "/ctl/IPConn", b"body", "1.1")
    assert request.headers == {"host": "192.168.1.1:5000", "soapaction": "a#b", "content-length": "4"}


def test_a_request_may_come_byte_by_byte():
    http = HttpConnection()
    *early, request = [http.receive_data(POST[i : i + 1]) for i in range(len(POST))]
    assert not any(early)
    assert request.body == b"body"


def test_the_response_has_length_type_and_the_standing_fields():
    http = HttpConnection()
    http.receive_data(POST)
    assert http.send(xml_response(200, b"<a/>"), standing_fields("Linux/5 UPnP/1.1 igdpcp/1")) == (
        b'HTTP/1.1 200 OK\r\nContent-Type: text/xml; charset="utf-8"\r\nContent-Length: 4\r\n'
        b"Ext:\r\nServer: Linux/5 UPnP/1.1 igdpcp/1\r\n\r\n<a/>"
    )
    assert not http.must_close


def test_the_date_is_told_where_it_is_known():
    assert standing_fields("x", "Sun, 06 Nov 1994 08:49:37 GMT") == (
        b"Ext:\r\nServer: x\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
    )


def test_header_values_cannot_break_out_of_their_line():
    http = HttpConnection()
    http.receive_data(GET)
    assert b"Allow: POST  X: y\r\n" in http.send(HttpResponse(405, (("Allow", "POST\r\nX: y"),)))
    assert standing_fields("a\r\nb") == b"Ext:\r\nServer: a  b\r\n"


def test_pipelined_requests_come_one_after_the_other():
    http = HttpConnection()
    first = http.receive_data(POST + GET)
    assert first.method == "POST"
    assert http.resume() is None
    http.send(HttpResponse(200))
    second = http.resume()
    assert second.path == "/rootDesc.xml"


def test_line_ends_before_a_request_mean_nothing():
    """Some clients end a body with a line end that they do not count."""
    http = HttpConnection()
    assert http.receive_data(b"\r\n") is None
    assert not http.holds_more
    assert http.receive_data(b"\r\n" + POST + b"\r\n").body == b"body"
    http.send(HttpResponse(200))
    assert not http.holds_more
    assert http.receive_data(b"\r\n" + GET).path == "/rootDesc.xml"


def test_connection_close_is_honoured():
    http = HttpConnection()
    http.receive_data(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert b"\r\nConnection: close\r\n" in http.send(HttpResponse(200))
    assert http.must_close


@pytest.mark.parametrize("value", [b"Close", b"keep-alive, close", b"x\r\nConnection: close"])
def test_close_is_found_among_other_words(value):
    http = HttpConnection()
    http.receive_data(GET.replace(b"\r\n\r\n", b"\r\nConnection: " + value + b"\r\n\r\n"))
    http.send(HttpResponse(200))
    assert http.must_close


@pytest.mark.parametrize("field", [b"Connection: keep-alive", b"Connection: upgrade\r\nUpgrade: h2c", b"X: close"])
def test_what_does_not_say_close_keeps_the_connection(field):
    http = HttpConnection()
    http.receive_data(GET.replace(b"\r\n\r\n", b"\r\n" + field + b"\r\n\r\n") + POST)
    http.send(HttpResponse(200))
    assert not http.must_close
    assert http.resume().body == b"body"


def test_an_old_client_without_host_is_answered_and_closed():
    http = HttpConnection()
    request = http.receive_data(b"GET / HTTP/1.0\r\n\r\n")
    assert request.version == "1.0"
    assert http.send(HttpResponse(404)).startswith(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n")
    assert http.must_close


def test_a_head_request_gets_the_length_but_no_body():
    http = HttpConnection()
    http.receive_data(GET.replace(b"GET", b"HEAD"))
    response = http.send(HttpResponse(200, body=b"<a/>"))
    assert b"Content-Length: 4\r\n" in response
    assert response.endswith(b"\r\n\r\n")


def test_a_chunked_body_is_joined():
    http = HttpConnection()
    request = http.receive_data(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n"
    )
    assert request.body == b"body"


def test_a_client_that_expects_100_continue_gets_it_once():
    http = HttpConnection()
    head, body = POST.replace(b"Content-Length", b"Expect: 100-continue\r\nContent-Length").split(b"\r\n\r\n")
    assert http.receive_data(head + b"\r\n\r\n") is None
    assert http.bytes_to_send() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert http.bytes_to_send() == b""
    request = http.receive_data(body)
    assert request.body == b"body"


def test_m_post_is_a_request_like_any_other():
    request = HttpConnection().receive_data(b"M-POST / HTTP/1.1\r\nHost: a\r\n01-SOAPACTION: a#b\r\n\r\n")
    assert (request.method, request.headers["01-soapaction"]) == ("M-POST", "a#b")


def test_a_whole_url_as_target_is_cut_to_its_path():
    request = HttpConnection().receive_data(b"GET http://192.168.1.1:5000/a?b HTTP/1.1\r\nHost: a\r\n\r\n")
    assert request.path == "/a?b"


def test_the_first_of_repeated_headers_counts():
    request = HttpConnection().receive_data(b"GET / HTTP/1.1\r\nHost: a\r\nNT: 1\r\nnt: 2\r\n\r\n")
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
    http = HttpConnection()
    with pytest.raises(MalformedRequest) as error:
        http.receive_data(data)
    assert error.value.status == status
    response = http.refuse(status)
    assert response.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close\r\n" in response
    assert http.must_close


def test_a_body_of_just_the_limit_is_taken():
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % BODY_LIMIT
    request = HttpConnection().receive_data(head + b"x" * BODY_LIMIT)
    assert len(request.body) == BODY_LIMIT


def test_a_chunked_body_cannot_pass_the_limit():
    http = HttpConnection()
    http.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(BODY_LIMIT // 1024):
        http.receive_data(b"400\r\n" + b"x" * 1024 + b"\r\n")
    with pytest.raises(MalformedRequest) as error:
        http.receive_data(b"1\r\nx\r\n")
    assert error.value.status == 413


def test_pipelining_cannot_fill_the_memory():
    http = HttpConnection()
    http.receive_data(GET)
    http.receive_data(b"x" * (REQUEST_LIMIT - len(GET)))
    with pytest.raises(MalformedRequest) as error:
        http.receive_data(b"x")
    assert error.value.status == 413


def test_the_framing_of_chunks_counts():
    http = HttpConnection()
    http.receive_data(CHUNKED)
    chunk = b"1;extension\r\na\r\n"
    for _ in range((REQUEST_LIMIT - len(CHUNKED)) // len(chunk)):
        http.receive_data(chunk)
    with pytest.raises(MalformedRequest) as error:
        http.receive_data(chunk)
    assert error.value.status == 413


def test_only_so_many_chunks_are_read_at_one_go():
    http = HttpConnection()
    http.receive_data(CHUNKED)
    http.receive_data(b"1\r\na\r\n" * PIECES_LIMIT)
    with pytest.raises(MalformedRequest) as error:
        http.receive_data(b"1\r\na\r\n" * (PIECES_LIMIT + 1))
    assert error.value.status == 413


def test_a_body_of_the_full_length_may_come_in_chunks():
    http = HttpConnection()
    size = 256
    request = http.receive_data(CHUNKED + (b"100\r\n" + b"x" * size + b"\r\n") * (BODY_LIMIT // size) + b"0\r\n\r\n")
    assert request.body == b"x" * BODY_LIMIT


def test_each_request_of_a_connection_has_the_whole_limit():
    http = HttpConnection()
    body = b"x" * BODY_LIMIT
    for _ in range(4):
        request = http.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % BODY_LIMIT + body)
        assert request.body == body
        http.send(HttpResponse(200))


def test_a_body_that_is_shorter_than_announced_is_taken_when_the_peer_ends():
    http = HttpConnection()
    assert http.receive_data(POST.replace(b"Length: 4", b"Length: 9")) is None
    request = http.receive_end()
    assert request.body == b"body"
    http.send(HttpResponse(200))
    assert http.must_close


@pytest.mark.parametrize("sent", [b"GET / HT", POST[:40], CHUNKED, CHUNKED + b"4\r\nbo"])
def test_a_peer_that_ends_in_the_middle_is_malformed(sent):
    http = HttpConnection()
    http.receive_data(sent)
    with pytest.raises(MalformedRequest):
        http.receive_end()


def test_a_peer_that_ends_between_requests_is_not():
    http = HttpConnection()
    assert http.receive_end() is None
    http = HttpConnection()
    http.receive_data(GET)
    http.send(HttpResponse(200))
    assert http.receive_end() is None


@pytest.mark.parametrize("early", [True, False])
def test_all_that_a_peer_sent_before_it_ended_is_answered(early):
    http = HttpConnection()
    assert http.receive_data(GET + CHUNKED + b"4\r\nbody\r\n0\r\n\r\n" + POST).method == "GET"
    if early:
        assert http.receive_end() is None
    http.send(HttpResponse(200))
    assert not http.must_close
    assert http.holds_more
    assert http.resume().body == b"body"
    if not early:
        assert http.receive_end() is None
    http.send(HttpResponse(200))
    assert not http.must_close
    assert http.resume().path == "/ctl/IPConn"
    http.send(HttpResponse(200))
    assert http.must_close


def test_nothing_is_held_once_everything_is_answered():
    http = HttpConnection()
    assert not http.holds_more
    http.receive_data(POST)
    http.send(HttpResponse(200))
    assert not http.holds_more
    http.receive_data(b"G")
    assert http.holds_more


def test_a_body_in_very_small_pieces_takes_no_more_memory_than_its_length():
    http = HttpConnection()
    http.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % BODY_LIMIT)
    tracemalloc.start()
    try:
        for _ in range(BODY_LIMIT // 2 - 1):
            http.receive_data(bytes((1, 2)))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * BODY_LIMIT
