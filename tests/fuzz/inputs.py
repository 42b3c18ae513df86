# SPDX-License-Identifier: Apache-2.0
"""The inputs of the fuzzers, made of chance that is passed in; and the corpus of those that have shown something."""

from __future__ import annotations

import random
from pathlib import Path

from tests.fuzz.grammar import datagrams, gena_requests, http_requests, soap_requests
from tests.fuzz.mutations import OF_ANY_MESSAGE, OF_BODIES, spoilt

CORPUS = Path(__file__).parent / "corpus"
STREAMS = {"http": http_requests, "soap": soap_requests, "gena": gena_requests}
SSDP = "ssdp"
PIPELINED = 0.2  # how often more than one message is sent on a connection
MOST_PIPELINED = 4
CORPUS_FILES, CORPUS_BYTES = 300, 300_000  # at most
STREAM_LIMIT = 100_000  # bytes: more than a connection takes
DATAGRAM_LIMIT = 4096


def stream(rng: random.Random, kind: str) -> bytes:
    """What a host sends on one connection: one message, or some in a row."""
    number = rng.randint(2, MOST_PIPELINED) if rng.random() < PIPELINED else 1
    return b"".join(_message(rng, kind) for _ in range(number))[:STREAM_LIMIT]


def datagram(rng: random.Random) -> bytes:
    """What a host sends to the SSDP port."""
    return spoilt(rng, rng.choice(datagrams()), OF_ANY_MESSAGE)[:DATAGRAM_LIMIT]


def of_corpus(rng: random.Random, kind: str) -> bytes:
    """A kept input, spoilt further."""
    kept = corpus(kind)
    if not kept:
        return datagram(rng) if kind == SSDP else stream(rng, kind)
    mutations = OF_ANY_MESSAGE if kind == SSDP else (*OF_ANY_MESSAGE, *OF_BODIES)
    return spoilt(rng, rng.choice(kept).read_bytes(), mutations)


def corpus(kind: str) -> list[Path]:
    """The kept inputs, one a file."""
    return sorted((CORPUS / kind).iterdir())


def _message(rng: random.Random, kind: str) -> bytes:
    return spoilt(rng, rng.choice(STREAMS[kind]()), (*OF_ANY_MESSAGE, *OF_BODIES))
