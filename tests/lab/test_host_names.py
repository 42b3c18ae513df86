# SPDX-License-Identifier: Apache-2.0
"""Hosts given by name: the router's own resolver decides, with a hosts file of the lab's and no DNS server."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest

from tests.lab.carrier import SimulatedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.topology import EXTERNAL_ADDRESS, INTERNET2_ADDRESS, INTERNET_ADDRESS, LAN2_ADDRESS, Lab

pytestmark = pytest.mark.lab

PORT = 8080
# `ip netns exec` gives every program mounts of its own. The name server is an address where nobody answers.
WITH_FILES = """
mount --bind "$1/hosts" /etc/hosts && mount --bind "$1/resolv.conf" /etc/resolv.conf && shift && exec "$@"
"""


class NamingIgdpcpd(Igdpcpd):
    """The daemon on a router that knows these names."""

    def launch(self) -> None:
        directory = self._lab.directory
        (directory / "hosts").write_text(f"{LAN2_ADDRESS} nas.lan\n{INTERNET_ADDRESS} peer.example\n")
        (directory / "resolv.conf").write_text(f"nameserver {INTERNET_ADDRESS}\n")
        program = [sys.executable, "-m", "igdpcp", "--config", str(self.config_file)]
        self.process = self._lab.router.popen(
            ["sh", "-c", WITH_FILES, "sh", str(directory), *program], name="igdpcpd", env=self._env
        )


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def test_iwf_030_031_names_of_the_hosts_file_are_resolved(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab)
    daemon = NamingIgdpcpd(lab, main={"external_ip_probe": "0", "secure_mode": "0"})
    daemon.wait_for_activation("active")
    lab.listen(lab.lan2, "tcp", PORT)
    client = soap_client(lab.lan, version=2)

    assert client.add("tcp", PORT, "nas.lan", PORT, remote_host="peer.example")

    (mapping,) = carrier.table()
    assert mapping.filters
    assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, PORT, source=INTERNET_ADDRESS).listener == "lan2"
    assert not lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, PORT, source=INTERNET2_ADDRESS)
    assert client.delete("tcp", PORT, remote_host="peer.example")
    assert carrier.table() == []


def test_iwf_030_175_a_name_server_that_is_silent_holds_up_neither_the_answer_nor_the_end(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab)
    daemon = NamingIgdpcpd(lab, main={"external_ip_probe": "0"})
    daemon.wait_for_activation("active")
    before = time.monotonic()

    assert soap_client(lab.lan).add("tcp", PORT, "no.such.name", PORT).code == 402

    assert time.monotonic() < before + 2
    assert carrier.table() == []
    assert daemon.process is not None
    assert daemon.process.stop() == 0
    assert time.monotonic() < before + 5
