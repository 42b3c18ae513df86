# SPDX-License-Identifier: Apache-2.0
"""One mapping's life on the wire, as an independent program (tshark) reads it: fields, options, times."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.lab.carrier import SimulatedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.topology import (
    CARRIER_ADDRESS,
    CARRIER_INSIDE,
    EXTERNAL_ADDRESS,
    INTERNET_ADDRESS,
    LAN_ADDRESS,
    ROUTER_WAN_ADDRESS,
    Lab,
)

pytestmark = pytest.mark.lab

PORT, CLIENT_PORT = 40080, 8080
IRT = 0.4
LIFETIME = 12
LOST = 2
CLEARING, ONE_HOST = "0", "128"
MAPPED, PREFER_FAILURE, FILTER, DESCRIPTION = "::ffff:", "2", "3", "128"


class Capture:
    """What passes the carrier's inside device, from the moment it is made until ``messages`` reads it."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._lab = lab
        self._file = directory / "pcp.pcap"
        argv = ["tcpdump", "-i", CARRIER_INSIDE, "--immediate-mode", "-U", "-w", str(self._file), "udp port 5351"]
        self._process = lab.carrier.popen(argv, name="tcpdump")
        self._process.wait_for("listening on")

    def messages(self) -> list[dict[str, Any]]:
        """Every PCP message, with its time, its source and tshark's fields."""
        self._process.stop()
        argv = ["tshark", "-r", str(self._file), "-d", "udp.port==5351,portcontrol", "-T", "json", "-J",
                "frame ip udp portcontrol", "--no-duplicate-keys"]  # fmt: skip
        packets = json.loads(self._lab.carrier.run(argv).stdout)
        return [_message(packet["_source"]["layers"]) for packet in packets]


def _message(layers: dict[str, Any]) -> dict[str, Any]:
    fields = dict(_leaves(layers["portcontrol"]))
    return {"at": float(layers["frame"]["frame.time_epoch"]), "from": layers["ip"]["ip.src"], "fields": fields,
            "to_port": layers["udp"]["udp.dstport"]}  # fmt: skip


def _leaves(tree: Any) -> list[tuple[str, str | list[str]]]:
    """The innermost fields, without the protocol's name; repeated ones as lists."""
    found: dict[str, list[str]] = {}
    stack = [tree]
    while stack:
        node = stack.pop(0)
        for name, value in node.items():
            if isinstance(value, dict):
                stack.append(value)
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict) and isinstance(value, list):
                    stack.append(item)
                elif isinstance(item, str):
                    found.setdefault(name.removeprefix("portcontrol."), []).append(item)
    return [(name, values[0] if len(values) == 1 else values) for name, values in found.items()]


def maps_of(carrier: SimulatedCarrier, internal_port: int) -> list[dict[str, Any]]:
    return [request for request in carrier.maps() if request["internal_port"] == internal_port]


def test_one_mapping_as_tshark_reads_it(tmp_path: Path) -> None:
    with Lab() as lab:
        carrier = SimulatedCarrier(lab, shortest=LIFETIME, longest=LIFETIME)
        igdpcpd = Igdpcpd(lab, upstream={"retransmit_initial": str(IRT)}, main={"soap_deadline": "3.8"})
        igdpcpd.wait_for_activation()
        capture = Capture(lab, tmp_path)
        carrier.switch(lose_requests=[True] * LOST)
        client = soap_client(lab.lan)
        assert client.add("tcp", PORT, LAN_ADDRESS, CLIENT_PORT, description="a game", remote_host=INTERNET_ADDRESS)
        poll(lambda: len(maps_of(carrier, PORT)) > LOST + 1, LIFETIME, "a renewal")
        assert client.delete("tcp", PORT, remote_host=INTERNET_ADDRESS)
        messages = [
            message for message in capture.messages() if message["fields"].get("map.internal_port") == str(PORT)
        ]

    requests = [message for message in messages if message["from"] == ROUTER_WAN_ADDRESS]
    answers = [message for message in messages if message["from"] == CARRIER_ADDRESS]
    creates, renewal, delete = requests[: LOST + 1], requests[LOST + 1], requests[-1]
    assert len(answers) == len(requests) - LOST

    for message in creates:
        fields = message["fields"]
        assert (fields["version"], fields["opcode"], message["to_port"]) == ("2", "1", "5351")
        assert fields["client_ip"] == MAPPED + ROUTER_WAN_ADDRESS
        assert (fields["map.protocol"], fields["map.req_sug_external_port"]) == ("6", str(PORT))
        assert fields["option.code"] == [PREFER_FAILURE, FILTER, FILTER, DESCRIPTION]
        assert fields["option.filter.prefix_length"] == [CLEARING, ONE_HOST]
        assert fields["option.filter.remote_peer_ip"] == [MAPPED + "0.0.0.0", MAPPED + INTERNET_ADDRESS]
        assert "a game" in fields["option.description"]
    assert len({json.dumps(message["fields"], sort_keys=True) for message in creates}) == 1
    waits = [later["at"] - earlier["at"] for earlier, later in itertools.pairwise(creates)]
    for number, wait in enumerate(waits):
        assert IRT * (2 * 0.9) ** number * 0.9 - 0.02 <= wait <= IRT * (2 * 1.1) ** number * 1.1 + 0.2

    granted = answers[0]["fields"]
    assert (granted["result_code"], granted["lifetime_rsp"]) == ("0", str(LIFETIME))
    assert granted["map.rsp_assigned_external_port"] == str(PORT)
    assert granted["map.rsp_assigned_ext_ip"] == MAPPED + EXTERNAL_ADDRESS

    assert LIFETIME / 2 - 0.1 <= renewal["at"] - answers[0]["at"] <= LIFETIME * 5 / 8 + 0.5
    assert renewal["fields"]["map.req_sug_external_ip"] == MAPPED + EXTERNAL_ADDRESS
    assert (delete["fields"]["lifetime_req"], delete["fields"]["map.req_sug_external_port"]) == ("0", "0")
    assert len({message["fields"]["map.nonce"] for message in messages}) == 1
