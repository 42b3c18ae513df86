# SPDX-License-Identifier: Apache-2.0
"""The router's policy on packets: what a carrier's quota leaves is shared, and what is never mapped stays shut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.carrier import SimulatedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.topology import EXTERNAL_ADDRESS, LAN2_ADDRESS, LAN_ADDRESS, Lab

pytestmark = pytest.mark.lab

QUOTA = 32
FIRST_PORT, PORT = 20000, 8080


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def test_iwf_184_of_a_carriers_quota_the_host_that_has_none_gets_the_next_one(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab, "quota_32")
    daemon = Igdpcpd(lab, main={"external_ip_probe": "0"})
    daemon.wait_for_activation()
    greedy, other = soap_client(lab.lan), soap_client(lab.lan2)
    lab.listen(lab.lan2, "tcp", PORT)
    codes = [greedy.add("udp", FIRST_PORT + n, LAN_ADDRESS, FIRST_PORT + n).code for n in range(QUOTA + 1)]
    assert codes == [0] * QUOTA + [501]

    assert other.add("tcp", PORT, LAN2_ADDRESS, PORT).code == 501
    assert greedy.delete("udp", FIRST_PORT)
    assert greedy.add("udp", FIRST_PORT, LAN_ADDRESS, FIRST_PORT).code == 501
    assert other.add("tcp", PORT, LAN2_ADDRESS, PORT)

    assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, PORT).listener == "lan2"
    assert len(carrier.table()) == QUOTA
    assert daemon.status()["counters"]["refusals"]["unfair"] >= 1


def test_iwf_185_what_is_never_mapped_and_what_one_lan_is_denied_stays_shut(lab: Lab) -> None:
    carrier = SimulatedCarrier(lab)
    guests = {"action": "deny", "lan": "guest"}
    all_hosts = {"action": "allow"}
    daemon = Igdpcpd(
        lab,
        main={"external_ip_probe": "0", "never_map": ["2200", "6000-6010"]},
        sections={
            "lan guest": {"device": "br-guest"}, "permission no_guests": guests, "permission all": all_hosts,
        },
    )  # fmt: skip
    daemon.wait_for_activation()
    client = soap_client(lab.lan, version=2)
    lab.listen(lab.lan, "tcp", PORT)

    assert [client.add("tcp", port, LAN_ADDRESS, PORT).code for port in (2200, 6000, 6010)] == [606] * 3
    assert carrier.table() == []
    assert client.add("tcp", 2300, LAN_ADDRESS, PORT)
    assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 2300).listener == "lan"

    daemon.write_config(daemon.config_file.read_text().replace("option lan 'guest'", "option lan 'lan'"))
    daemon.reload()

    poll(lambda: daemon.log().count("event=ready") == 2, 10.0, "the reload")
    poll(lambda: carrier.table() == [], 10.0, f"what the LAN may not have any more being closed:\n{daemon.log()}")
    assert not lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, 2300, timeout=0.5)
    assert client.add("tcp", 2300, LAN_ADDRESS, PORT).code == 606


def test_iwf_184_a_host_that_asks_too_fast_is_told_so_and_others_are_served(lab: Lab) -> None:
    SimulatedCarrier(lab)
    daemon = Igdpcpd(lab, main={"adds_per_second": "1"})
    daemon.wait_for_activation()
    hasty, other = soap_client(lab.lan, version=2), soap_client(lab.lan2, version=2)
    lab.listen(lab.lan2, "tcp", PORT)

    codes = [hasty.add("tcp", FIRST_PORT, LAN_ADDRESS, FIRST_PORT).code for _ in range(40)]

    assert set(codes) == {0, 728}
    assert other.add("tcp", PORT, LAN2_ADDRESS, PORT)
    assert lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, PORT).listener == "lan2"
    assert daemon.status()["counters"]["refusals"]["too_fast"] == codes.count(728)
