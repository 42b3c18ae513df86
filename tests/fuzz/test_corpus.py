# SPDX-License-Identifier: Apache-2.0
"""The kept inputs, all of them again: each once did, or was meant to do, something that no valid request does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.fuzz.gateway import open_gateway
from tests.fuzz.inputs import CORPUS_BYTES, CORPUS_FILES, SSDP, STREAMS, corpus
from tests.fuzz.ssdp_port import open_port
from tests.support.virtual_time import virtual


@pytest.mark.parametrize("kind", STREAMS)
def test_every_kept_stream_is_answered_or_ended_and_harms_nobody(kind: str, tmp_path: Path) -> None:
    @virtual
    async def replay() -> None:
        for path in corpus(kind):
            async with open_gateway(tmp_path) as gateway:
                try:
                    await gateway.hear_out(path.read_bytes())
                    assert await gateway.neighbour_still_hears()
                except Exception as error:
                    error.add_note(f"{path}")
                    raise

    replay()


def test_every_kept_datagram_is_answered_or_ignored_and_what_follows_is_answered() -> None:
    troubles = []

    async def replay() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: troubles.append(context))
        async with open_port() as port:
            for path in corpus(SSDP):
                try:
                    await port.say([path.read_bytes()])
                except Exception as error:
                    error.add_note(f"{path}")
                    raise

    asyncio.run(replay())
    assert troubles == []


def test_the_corpus_stays_small() -> None:
    sizes = [path.stat().st_size for kind in (*STREAMS, SSDP) for path in corpus(kind)]
    assert len(sizes) < CORPUS_FILES
    assert sum(sizes) < CORPUS_BYTES
