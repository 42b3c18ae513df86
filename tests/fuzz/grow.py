# SPDX-License-Identifier: Apache-2.0
"""Looks for inputs that reach code which neither valid requests nor the corpus reach, and keeps them, made small.

python -m tests.fuzz.grow --seconds 600 [--kind soap] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import igdpcp
from tests.fuzz.gateway import open_gateway
from tests.fuzz.grammar import datagrams
from tests.fuzz.inputs import (
    CORPUS,
    CORPUS_BYTES,
    CORPUS_FILES,
    SSDP,
    STREAMS,
    corpus,
    datagram,
    of_corpus,
    stream,
)
from tests.fuzz.ssdp_port import SsdpPort, open_port
from tests.support.virtual_time import VirtualTimeLoop

WATCHED = tuple(str(Path(igdpcp.__file__).parent / part) for part in ("upnp", "daemon"))
TRIES = 120  # to make one input smaller
FILE_LIMIT = 4096  # bytes of an input that is kept without anybody having looked at it
OF_CORPUS = 0.4  # how often what is kept is spoilt further

Steps = set[tuple[str, int, int]]  # from line to line of a file
Run = Callable[[bytes], tuple[Steps, str]]  # what an input reaches, and how it is answered


@contextmanager
def watching() -> Iterator[Steps]:
    """The steps that are made meanwhile in the parts that read what LAN hosts send."""
    steps: Steps = set()

    def called(frame: FrameType, event: str, arg: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(WATCHED):
            return None
        before = 0

        def stepped(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal before
            if event == "line":
                steps.add((name, before, frame.f_lineno))
                before = frame.f_lineno
            return stepped

        return stepped

    sys.settrace(called)
    try:
        yield steps
    finally:
        sys.settrace(None)


def run_stream(data: bytes) -> tuple[Steps, str]:
    """On a connection of a gateway of its own."""

    async def run() -> tuple[Steps, str]:
        with TemporaryDirectory() as directory:
            async with open_gateway(Path(directory)) as gateway:
                with watching() as steps:
                    answers = await gateway.hear_out(data)
                codes = [f"{answer.status}-{answer.code}" if answer.code else str(answer.status) for answer in answers]
                return steps, codes[0] if codes else "closed"

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        outcome = runner.run(run())
        assert runner.get_loop().troubles == []
        return outcome


def run_datagram(port: SsdpPort, runner: asyncio.Runner, data: bytes) -> tuple[Steps, str]:
    """At a server that is there already."""
    with watching() as steps:
        found = runner.run(port.say([data]))
    return steps, "answered" if found else "silent"


def smaller(data: bytes, wanted: Steps, run: Run) -> bytes:
    """What is left of the input when pieces that the wanted steps do not need are taken out, the large ones first."""
    tries, size = TRIES, len(data) // 2
    while size and tries > 0:
        at = 0
        while at < len(data) and tries > 0:
            without = data[:at] + data[at + size :]
            tries -= 1
            if without and wanted <= run(without)[0]:
                data = without
            else:
                at += size
        size //= 2
    return data


def keep(kind: str, data: bytes, outcome: str) -> Path:
    """Write a file, named after what is answered and by its content."""
    path = CORPUS / kind / f"{outcome}-{hashlib.sha256(data).hexdigest()[:8]}"
    path.write_bytes(data)
    return path


def grow(kind: str, run: Run, rng: random.Random, deadline: float) -> None:
    """Try inputs of one kind until then."""
    valid = datagrams() if kind == SSDP else STREAMS[kind]()
    known: Steps = set()
    for data in (*valid, *(path.read_bytes() for path in corpus(kind))):
        known |= run(data)[0]
    tried = 0
    while time.monotonic() < deadline and has_room():
        tried += 1
        if rng.random() < OF_CORPUS:
            data = of_corpus(rng, kind)
        else:
            data = datagram(rng) if kind == SSDP else stream(rng, kind)
        steps, _ = run(data)
        if found := steps - known:
            data = smaller(data, found, run)
            steps, outcome = run(data)
            known |= steps | found
            if found <= steps and len(data) <= FILE_LIMIT:
                print(f"{len(found):3} steps: {keep(kind, data, outcome)}", flush=True)
    print(f"{kind}: {tried} inputs tried, {len(known)} steps known")


def has_room() -> bool:
    """Whether the corpus is below its ceilings."""
    sizes = [path.stat().st_size for kind in (*STREAMS, SSDP) for path in corpus(kind)]
    return len(sizes) < CORPUS_FILES and sum(sizes) + FILE_LIMIT < CORPUS_BYTES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.grow", description="Find inputs that reach other code.")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each kind")
    parser.add_argument("--kind", choices=(*STREAMS, SSDP), action="append")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    for kind in arguments.kind or (*STREAMS, SSDP):
        rng = random.Random(f"{arguments.seed} {kind}")
        deadline = time.monotonic() + arguments.seconds
        if kind != SSDP:
            grow(kind, run_stream, rng, deadline)
            continue
        with asyncio.Runner() as runner:
            closing = AsyncExitStack()
            port = runner.run(closing.enter_async_context(open_port()))
            grow(kind, partial(run_datagram, port, runner), rng, deadline)
            runner.run(closing.aclose())


if __name__ == "__main__":
    main()
