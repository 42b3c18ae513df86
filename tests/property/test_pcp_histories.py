# SPDX-License-Identifier: Apache-2.0
"""Random histories of a client and a server: losses, restarts and forged packets end with what is wanted."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from igdpcp.pcp.client import PcpClient
from tests.lab.simulated_carrier.profiles import PROFILES
from tests.support.two_engines import SERVER, TwoEngines

PORTS = st.integers(8000, 8005)
SETTLED = 500.0  # seconds without loss in which everything is retransmitted, recovered or expired
NONCES = st.binary(min_size=12, max_size=12)


class History(RuleBasedStateMachine):
    """``pair`` is what happens; ``held`` what the client held before the last forged packet."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = TwoEngines(profile=PROFILES["lifetime_120"])

    @rule(port=PORTS)
    def want(self, port: int) -> None:
        self.pair.want(port)

    @rule(port=PORTS, lease=st.integers(1, 400))
    def want_for_a_while(self, port: int, lease: int) -> None:
        self.pair.want(port, lease=lease)

    @rule(port=PORTS)
    def drop(self, port: int) -> None:
        self.pair.drop(port)

    @rule(seconds=st.floats(0, 200))
    def time_passes(self, seconds: float) -> None:
        self.pair.run(seconds)

    @rule(loss=st.sampled_from([0.0, 0.3, 1.0]), duplicate=st.sampled_from([0.0, 0.5]))
    def link_changes(self, loss: float, duplicate: float) -> None:
        self.pair.link.switches.set(loss=loss, duplicate=duplicate)

    @rule(announce=st.booleans())
    def server_restarts(self, announce: bool) -> None:
        self.pair.server.restart(self.pair.now, announce=announce)

    @rule()
    def client_restarts(self) -> None:
        wanted = [int(key) for key in self.pair.wanted]
        self.pair.restart_client()
        for port in wanted:
            self.pair.want(port)

    @precondition(lambda self: self.pair.granted)
    @rule(data=st.binary(max_size=120), port=st.integers(0, 65535))
    def somebody_forges_bytes(self, data: bytes, port: int) -> None:
        self._forge(data, port)

    @precondition(lambda self: self.pair.granted)
    @rule(result=st.integers(0, 26), lifetime=st.sampled_from([0, 1, 120, 2**32 - 1]), nonce=NONCES)
    def somebody_forges_an_answer_without_our_nonce(self, result: int, lifetime: int, nonce: bytes) -> None:
        key, held = next(iter(self.pair.granted.items()))
        if nonce == held.nonce:
            return
        epoch = self.pair.server.epoch(self.pair.now)
        header = struct.pack("!BBBBII12x", 2, 0x81, 0, result, lifetime, epoch)
        data = struct.pack("!12sB3xHH16s", nonce, 6, int(key), int(key), bytes(10) + b"\xff\xff\x01\x02\x03\x04")
        self._forge(header + data, SERVER[1])

    def _forge(self, data: bytes, port: int) -> None:
        before = grants(self.pair.client, self.pair.granted)
        self.pair.client.receive_datagram(data, (str(SERVER[0]), port), self.pair.now)
        assert grants(self.pair.client, self.pair.granted) == before
        self.pair.settle()

    @invariant()
    def what_is_held_was_wanted(self) -> None:
        assert self.pair.granted.keys() <= self.pair.wanted.keys()

    def teardown(self) -> None:
        pair = self.pair
        pair.link.switches.set(loss=0.0, duplicate=0.0)
        pair.run(SETTLED)
        lasting = {key for key, wanted in pair.wanted.items() if wanted.until is None}
        assert {str(port) for port in pair.table()} == lasting
        assert all(internal == external for internal, external in pair.table().items())
        assert pair.granted.keys() == lasting


def grants(client: PcpClient, keys: Any) -> dict[str, object]:
    return {key: client.grant(key) for key in keys}


TestHistories = History.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
