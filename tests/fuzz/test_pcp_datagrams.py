# SPDX-License-Identifier: Apache-2.0
"""Whatever hosts of the LAN send to the PCP and NAT-PMP port: well-formed answers, own ports, and bounds."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from pathlib import Path

import pytest

from igdpcp.daemon import flood_guard
from igdpcp.daemon.pcp_server import WAITING_LIMIT
from igdpcp.model import Owner
from tests.fuzz.gateway import daemons_log
from tests.fuzz.judge import fields_of
from tests.support.hall import A, B, Hall, settle
from tests.support.pcp_host import announce, map_request, natpmp_map, read_map
from tests.support.pcp_lan import PcpHost, PcpLan, lan, serving
from tests.support.virtual_time import virtual

__all__ = ["lan"]  # a fixture

QUICK, LONG = 5_000, 100_000  # datagrams
BATCH = 8  # datagrams that wait at once: fewer than the kernel keeps
NEIGHBOURS_PORT = 7000
SILENT_PORT = 8111  # the carrier does not answer who suggests it
REFUSED_PORT = 8222
PORTS = (0, 1, 80, 5351, NEIGHBOURS_PORT, 8000, 8001, SILENT_PORT, REFUSED_PORT, 65535)
LIFETIMES = (0, 1, 119, 120, 3600, 86400, 2**31, 2**32 - 1)
OPTIONS = tuple(
    bytes.fromhex(text)
    for text in (
        "02000000", "02000000 02000000", "02000004 00000000", "01000010" + "00" * 10 + "ffffc0a8013c",
        "01000010" + "00" * 10 + "ffffc0a80132", "03000014 00800000" + "00" * 10 + "ffff3e0000c8", "0300ffff",
        "80000003 61620a00", "80000000", "8000001061" + "e280ae" * 5, "c8000000", "7f000000", "80",
    )
)  # fmt: skip


def sane(rng: random.Random) -> bytes:
    """A request of A in either language."""
    kind = rng.randrange(6)
    if kind == 0:
        return announce(A)
    if kind == 1:
        return b"\0\0"
    port, suggested, lifetime = rng.choice(PORTS), rng.choice(PORTS), rng.choice(LIFETIMES)
    if kind == 2:
        return natpmp_map(port, opcode=rng.randint(1, 2), suggested=suggested, lifetime=lifetime)
    return map_request(
        rng.choice((A, A, A, B)),
        port,
        protocol=rng.choice((6, 6, 17, 17, 0, 132)),
        lifetime=lifetime,
        nonce=rng.choice((b"a nonce of A", b"another of A", b"neighbours's")),
        suggested=suggested,
        address=rng.choice(("0.0.0.0", "62.0.0.1", "62.0.0.9")),
        options=b"".join(rng.choices(OPTIONS, k=rng.choice((0, 0, 1, 2)))),
    )


def spoilt(rng: random.Random, octets: bytes) -> bytes:
    """Sane as often as not; the others are cut, longer, or have other octets."""
    how = rng.randrange(8)
    if how == 0:
        return octets[: rng.randrange(len(octets) + 1)]
    if how == 1:
        return octets + rng.randbytes(rng.choice((1, 4, 40, 1100)))
    if how <= 3:
        changed = bytearray(octets)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] = rng.choice((0, 1, 2, 3, 127, 128, 255, rng.randrange(256)))
        return bytes(changed)
    return octets


def judge(request: bytes, answer: bytes) -> None:
    """One answer, no longer than it may be, in the language of the request or of who refuses that."""
    assert answer[1] & 0x80
    assert answer[0] in (0, 2)
    if answer[0] == 2:
        assert 24 <= len(answer) <= 1100
        assert len(answer) % 4 == 0
        assert len(answer) <= max(24, len(request) + 3 & ~3)
    else:
        assert request[0] == 0
        assert len(answer) <= max(16, len(request))


async def sent(hall: Hall, lan: PcpLan, rng: random.Random, number: int) -> None:
    neighbour, hosts = lan.host(B), [lan.host(A) for _ in range(BATCH)]
    async with serving(hall) as server:
        theirs = map_request(B, NEIGHBOURS_PORT, nonce=b"neighbours's", suggested=NEIGHBOURS_PORT, lifetime=86400)
        assert read_map(await neighbour.ask(theirs)).result == 0
        for _ in range(number // BATCH):
            asked: list[tuple[PcpHost, bytes]] = []
            for host in hosts:
                asked.append((host, spoilt(rng, sane(rng))))
                host.send(asked[-1][1])
            await settle()
            assert server.waiting <= WAITING_LIMIT
            if rng.random() < 0.3:
                await asyncio.sleep(rng.choice((0.01, 4, 30)))
            for host, request in asked:
                for answer in host.heard():
                    if server.waiting == 0:
                        judge(request, answer)
            if server.waiting:
                await asyncio.sleep(25)
                for host in hosts:
                    host.heard()
            assert server.waiting == 0
            judge_table(hall)
        assert read_map(await neighbour.ask(theirs)).external_port == NEIGHBOURS_PORT
        assert server.counters.send_errors == server.counters.announcements  # nobody listens to those


def judge_table(hall: Hall) -> None:
    clients = Counter(str(mapping.request.client.address) for mapping in hall.table)
    assert clients.keys() <= {A, B}
    assert clients[B] == 1
    for mapping in hall.table:
        requester = mapping.request.requester
        assert requester.address == mapping.request.client.address
        assert requester.owner in (Owner.PCP, Owner.NATPMP)
        assert mapping.request.description.isprintable()


def answer_of(hall: Hall, id: str, port: int) -> None:
    if port == REFUSED_PORT:
        hall.carrier.refuse(id, 11)
    elif port != SILENT_PORT:
        hall.carrier.grant(id)


@pytest.fixture(autouse=True)
def no_share_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tested elsewhere, and would keep most of what is sent from the rest."""
    monkeypatch.setattr(flood_guard, "DATAGRAMS_PER_HOST", 10**9)


def run(directory: Path, lan: PcpLan, rng: random.Random, number: int) -> None:
    @virtual
    async def scenario() -> None:
        hall = Hall(directory, adds_per_second=10000)
        hall.carrier.answer = lambda request: answer_of(hall, request.id, request.external_port)
        await sent(hall, lan, rng, number)
        await hall.stop()

    with daemons_log(every_line=True) as text:
        scenario()
        for line in text.getvalue().split("\n")[:-1]:
            fields_of(line)
            assert "failed" not in line


def test_whatever_is_sent_in_pcp_and_nat_pmp(tmp_path: Path, lan: PcpLan) -> None:
    run(tmp_path, lan, random.Random(1), QUICK)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whatever_is_sent_in_pcp_and_nat_pmp_for_long(tmp_path: Path, lan: PcpLan) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    run(tmp_path, lan, random.Random(seed), LONG)
