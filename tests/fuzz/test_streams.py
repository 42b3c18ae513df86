# SPDX-License-Identifier: Apache-2.0
"""Whatever hosts of the LAN send to the HTTP server, at the same time and in any pieces: each gets its answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.gateway import open_gateway
from tests.fuzz.grammar import gena_requests, http_requests, soap_requests
from tests.fuzz.inputs import STREAMS, stream
from tests.support.hall import A6, A
from tests.support.virtual_time import virtual

# No failing input is made smaller: that would take longer than a test may. What is printed can be put into the corpus.
QUICK = settings(
    max_examples=50, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
LONG = settings(QUICK, max_examples=600, derandomize=False, print_blob=True)
STREAM = st.builds(stream, st.randoms(use_true_random=False), st.sampled_from(list(STREAMS)))
CUTS = st.lists(st.integers(0, 1500), max_size=4)
SAYING = st.tuples(STREAM, CUTS, st.booleans())
ROUNDS = st.lists(st.tuples(SAYING, SAYING), min_size=1, max_size=3)


def hosts_say_at_the_same_time(directory: Path, rounds) -> None:
    """Two hosts in each round; a gateway of its own for all of them."""

    @virtual
    async def run() -> None:
        async with open_gateway(directory) as gateway:
            for first, second in rounds:
                await asyncio.gather(
                    *(
                        gateway.say(data, host, cuts=cuts, end=end)
                        for host, (data, cuts, end) in ((A, first), (A6, second))
                    )
                )
                await gateway.judge()
            assert await gateway.neighbour_still_hears()

    run()


@QUICK
@given(ROUNDS)
def test_whatever_two_hosts_say_each_gets_its_answers_and_nobody_else_is_harmed(tmp_path_factory, rounds) -> None:
    hosts_say_at_the_same_time(tmp_path_factory.getbasetemp(), rounds)


@pytest.mark.slow
@pytest.mark.timeout(180)
@LONG
@given(ROUNDS)
def test_whatever_two_hosts_say_for_long(tmp_path_factory, rounds) -> None:
    hosts_say_at_the_same_time(tmp_path_factory.getbasetemp(), rounds)


@QUICK
@given(st.binary(min_size=1, max_size=400), CUTS, st.booleans())
def test_bytes_that_were_never_a_request_are_answered_or_ended(tmp_path_factory, data, cuts, end) -> None:
    @virtual
    async def run() -> None:
        async with open_gateway(tmp_path_factory.getbasetemp()) as gateway:
            await gateway.say(data, cuts=cuts, end=end)
            await gateway.judge()

    run()


@pytest.mark.parametrize("requests", [http_requests, soap_requests, gena_requests])
def test_every_sane_request_gets_exactly_one_answer_however_it_is_cut(
    requests: Callable[[], tuple[bytes, ...]], tmp_path: Path
) -> None:
    chance = random.Random(1)

    @virtual
    async def run() -> None:
        async with open_gateway(tmp_path) as gateway:
            for request in requests():
                answers = await gateway.say(request, cuts=[chance.randrange(len(request)) for _ in range(3)])
                assert len(answers) == 1, request
                assert answers[0].status in (200, 403, 404, 405, 412, 500, 501, 503)
                await gateway.judge()

    run()
