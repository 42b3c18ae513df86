# SPDX-License-Identifier: Apache-2.0
"""With a thousand mappings: the carrier loses all of them, and each comes back as it was."""

from __future__ import annotations

import pytest

from tests.lab.carrier import ScriptedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.topology import LAN_ADDRESS, Lab

pytestmark = [pytest.mark.lab, pytest.mark.slow]

MAPPINGS = 1000
FIRST_PORT = 20000
RECOVERY_SECONDS = 60.0
PACE = 25  # packets a second
PACE_WINDOW = 2.0  # seconds over which the pace is measured; a burst at its start is granted


@pytest.mark.timeout(300)
def test_a_carrier_that_lost_its_state_gets_every_mapping_back_at_a_bearable_pace() -> None:
    with Lab() as lab:
        carrier = ScriptedCarrier(lab, nat=False)
        daemon = Igdpcpd(lab, main={"soap_deadline": "3.8"})
        daemon.wait_for_activation()
        client = soap_client(lab.lan)
        for port in range(FIRST_PORT, FIRST_PORT + MAPPINGS):
            assert client.add("udp", port, LAN_ADDRESS, port)
        wanted = {mapping for mapping in carrier.table() if mapping.external_port >= FIRST_PORT}
        assert len(wanted) == MAPPINGS
        seen = len(carrier.maps())

        carrier.reset(announce=True)
        poll(lambda: wanted <= set(carrier.table()), RECOVERY_SECONDS, "every mapping back", interval=0.5)

        assert len(daemon.mappings()) == MAPPINGS
        times = [request["at"] for request in carrier.maps()[seen:]]
        busiest = max(sum(1 for other in times if at <= other < at + PACE_WINDOW) for at in times)
        assert busiest <= PACE * PACE_WINDOW * 1.2
