# SPDX-License-Identifier: Apache-2.0
"""Any bytes in any pieces, to the HTTP protocol and to the server: responses or an end, and no memory is filled."""

from __future__ import annotations

import asyncio
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igdpcp.errors import MalformedRequest
from igdpcp.upnp.http import REQUEST_LIMIT, HttpConnection, HttpRequest, HttpResponse
from tests.support.http_exchange import exchange, serving

HEAD = b"Host: 192.168.1.1:5000\r\n"
COUNTED = b"POST /ctl/IPConn HTTP/1.1\r\n" + HEAD + b"Content-Length: 4\r\n\r\nbody"
CHUNKED = b"POST / HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
EXPECTING = b"POST / HTTP/1.1\r\n" + HEAD + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx"
OLD = b"GET / HTTP/1.0\r\n\r\n"
REQUESTS = (COUNTED, CHUNKED, EXPECTING, OLD)


@st.composite
def damaged(draw):
    """Requests one behind the other, with a piece replaced by any bytes."""
    valid = b"".join(draw(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=3)))
    start = draw(st.integers(0, len(valid)))
    end = draw(st.integers(start, min(len(valid), start + 12)))
    return valid[:start] + draw(st.binary(max_size=12)) + valid[end:]


streams = st.one_of(st.binary(max_size=300), damaged())
cuts = st.lists(st.integers(0, 600), max_size=6)


def pieces(data, cuts):
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[start:end] for start, end in pairwise(edges)]


def answered(http, request):
    """Answer a request and those behind it; whether the connection goes on."""
    while request is not None:
        assert isinstance(request, HttpRequest)
        assert http.send(HttpResponse(200, body=b"x")).startswith(b"HTTP/1.1 200 ")
        if http.must_close:
            return False
        request = http.resume()
    return True


@given(streams, cuts, st.booleans())
def test_any_bytes_into_a_connection(data, cuts, ends):
    http = HttpConnection()
    status = 0
    try:
        for piece in pieces(data, cuts):
            request = http.receive_data(piece)
            assert http.bytes_to_send() in (b"", b"HTTP/1.1 100 Continue\r\n\r\n")
            if not answered(http, request):
                return
        if ends:
            assert answered(http, http.receive_end()) is not http.must_close
    except MalformedRequest as error:
        status = error.status
    assert status == 0 or http.refuse(status).startswith(b"HTTP/1.1 %d " % status)


@given(st.lists(st.sampled_from(REQUESTS[:3]), max_size=4), cuts)
def test_how_requests_are_cut_into_pieces_makes_no_difference(requests, cuts):
    http = HttpConnection()
    bodies = []
    for piece in pieces(b"".join(requests), cuts):
        request = http.receive_data(piece)
        while request is not None:
            bodies.append(request.body)
            http.send(HttpResponse(200))
            request = http.resume()
    assert bodies == [{COUNTED: b"body", CHUNKED: b"body", EXPECTING: b"x"}[request] for request in requests]
    assert not http.must_close


@settings(max_examples=60, deadline=None)
@given(streams, cuts, st.booleans())
def test_any_bytes_into_the_server(data, cuts, ends):
    troubles = []

    async def scenario():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
        async with serving() as (server, port):
            # What is behind the data makes the server end, if the data did not.
            answer = await exchange(
                port, *pieces(data, cuts), *([] if ends else [b"\r\n\r\n\0\r\n\r\n" + OLD]), end=True
            )
            return answer, server.counters.failures, server.open_connections

    answer, failures, connections = asyncio.run(scenario())
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    assert (failures, connections, troubles) == (0, 0, [])


@pytest.mark.parametrize(
    ("start", "endless"),
    [
        (b"", b"G"),
        (b"GET / HTTP/1.1\r\n", b"a:\r\n"),
        (b"GET / HTTP/1.1\r\nX: ", b" \t"),
        (CHUNKED.partition(b"4")[0], b"1\r\na\r\n"),
        (CHUNKED.partition(b"4")[0], b"0"),
        (CHUNKED.partition(b"4")[0] + b"0\r\n", b"a:\r\n"),
        (CHUNKED.partition(b"4")[0] + b"1;", b"x"),
        (COUNTED.replace(b"Length: 4", b"Length: 32768"), b"ab"),
    ],
)
def test_no_endless_stream_fills_the_memory(start, endless):
    http = HttpConnection()
    http.receive_data(start)
    tracemalloc.start()
    try:
        for _ in range(2 * REQUEST_LIMIT // len(endless)):
            if http.receive_data(endless):
                break
    except MalformedRequest:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 3 * REQUEST_LIMIT
