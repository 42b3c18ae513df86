# SPDX-License-Identifier: Apache-2.0
"""Unmodified programs open a way from the internet through both NATs, see it and close it; their words are recorded."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from tests.lab import topology
from tests.lab.carrier import CarrierMapping, MiniupnpdCarrier
from tests.lab.clients import Upnpc
from tests.lab.control_points.amule import Amuled
from tests.lab.control_points.gssdp_discover import discover
from tests.lab.control_points.gupnp_igd import GupnpIgd
from tests.lab.control_points.libtorrent_session import LibtorrentSession
from tests.lab.control_points.nicotine import Nicotine
from tests.lab.control_points.program import ControlPoint, Port
from tests.lab.control_points.python_miniupnpc import PythonMiniupnpc
from tests.lab.control_points.transmission import TransmissionDaemon
from tests.lab.control_points.upnp_client import UpnpClient
from tests.lab.control_points.upnpc import UpnpcProgram
from tests.lab.daemon import Igdpcpd
from tests.lab.namespaces import poll
from tests.lab.recorder import Recorder
from tests.lab.topology import Lab
from tests.support.transcripts import DIRECTORY, HTTP

pytestmark = pytest.mark.lab

RECORD = "IGDPCP_RECORD"  # in the environment: keep what was recorded; tests/lab/record sets it
PATIENCE = 8.0  # seconds
CONNECT_PATIENCE = 1.0

SEARCHING_FOR_ONE = [UpnpcProgram, PythonMiniupnpc, TransmissionDaemon, LibtorrentSession, GupnpIgd, Amuled]
SEARCHING_FOR_TWO = [UpnpClient, Nicotine]
CASES = [
    *((program, "auto") for program in (*SEARCHING_FOR_ONE, *SEARCHING_FOR_TWO)),
    (UpnpcProgram, "1"),
    (UpnpcProgram, "2"),
    (Amuled, "1"),
    (Nicotine, "2"),
]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.mark.parametrize(("program", "igd_version"), CASES, ids=lambda value: getattr(value, "name", value))
def test_iwf_011_a_program_opens_its_ports_sees_them_and_closes_them(
    lab: Lab, program: type[ControlPoint], igd_version: str
) -> None:
    """What a program cannot do itself, its module says."""
    carrier = MiniupnpdCarrier(lab)
    daemon = Igdpcpd(lab, main={"igd_version": igd_version, **program.options})
    daemon.wait_for_advertising()
    point = program(lab)
    if not point.listens:
        for protocol, port in point.ports:
            lab.listen(lab.lan, protocol, port)

    with Recorder(lab) as recorder:
        point.open()
        opened = sorted((protocol, port, topology.LAN_ADDRESS, port) for protocol, port in point.ports)
        poll(lambda: mapped(daemon) == opened, PATIENCE, f"{opened} being open:\n{daemon.log()}")
        assert carrier.table() == sorted(
            (CarrierMapping(protocol, port, topology.ROUTER_WAN_ADDRESS, port) for protocol, port in point.ports),
            key=lambda mapping: (mapping.external_port, mapping.protocol),
        )
        poll(lambda: reached(lab, point) == probed(point), PATIENCE, f"{probed(point)} being reached")
        assert point.sees()

        point.close()
        poll(lambda: not daemon.mappings(), PATIENCE, f"everything being closed:\n{daemon.log()}")
        assert carrier.table() == []
        assert reached(lab, point) == []

    assert [text for text in daemon.log().splitlines() if not text.startswith("level=INFO ")] == []
    keep(recorder, point.name, igd_version)


@pytest.mark.parametrize("igd_version", ["auto", "1", "2"])
def test_gssdp_discover_sees_every_device_and_service(lab: Lab, igd_version: str) -> None:
    """It only searches, and listens to what is announced."""
    daemon = Igdpcpd(lab, main={"igd_version": igd_version})
    daemon.wait_for_advertising()

    with Recorder(lab) as recorder:
        everything = discover(lab.lan)
        second = discover(lab.lan, "urn:schemas-upnp-org:device:InternetGatewayDevice:2")

    tree = 2 if igd_version == "2" else 1
    types = {
        "upnp:rootdevice",
        f"urn:schemas-upnp-org:device:InternetGatewayDevice:{tree}",
        f"urn:schemas-upnp-org:device:WANDevice:{tree}",
        f"urn:schemas-upnp-org:device:WANConnectionDevice:{tree}",
        "urn:schemas-upnp-org:service:Layer3Forwarding:1",
        "urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1",
        f"urn:schemas-upnp-org:service:WANIPConnection:{tree}",
    }
    assert types <= {usn.partition("::")[2] for usn in everything}
    location = next(location for usn, location in everything.items() if usn.endswith("::upnp:rootdevice"))
    assert sum("::" not in usn for usn, at in everything.items() if at == location) == 3
    assert len(second) == (0 if igd_version == "1" else 1)
    keep(recorder, "gssdp-discover", igd_version)


def test_upnpc_finds_a_port_that_the_gateway_chose_in_the_list_of_version_2(lab: Lab) -> None:
    """AddAnyPortMapping and GetListOfPortMappings, which only WANIPConnection:2 has."""
    MiniupnpdCarrier(lab)
    daemon = Igdpcpd(lab)
    daemon.wait_for_advertising()
    location = discover(lab.lan, "urn:schemas-upnp-org:service:WANIPConnection:2").popitem()[1]
    upnpc = Upnpc(lab.lan, location)

    with Recorder(lab) as recorder:
        upnpc.add_any(8401, 8401, "TCP")
        assert mapped(daemon) == [("tcp", 8401, topology.LAN_ADDRESS, 8401)]
        assert f"8401->{topology.LAN_ADDRESS}:8401" in upnpc.run("-L").stdout
        upnpc.delete(8401, "TCP")
        assert mapped(daemon) == []
        assert "->" not in upnpc.run("-L").stdout

    keep(recorder, "upnpc-any", "auto")


def mapped(daemon: Igdpcpd) -> list[tuple[str, int, str, int]]:
    keys = ("protocol", "external_port", "client", "client_port")
    return sorted(tuple(row[key] for key in keys) for row in daemon.mappings() if row["state"] == "active")


def probed(point: ControlPoint) -> list[Port]:
    """The ports that can be asked: a program that listens on UDP itself does not answer just anything."""
    return [(protocol, port) for protocol, port in point.ports if not (point.listens and protocol == "udp")]


def reached(lab: Lab, point: ControlPoint) -> list[Port]:
    """The ports at which the internet host gets to a listener of ours, or to the program itself."""
    ask = connects if point.listens else answers
    return [(protocol, port) for protocol, port in probed(point) if ask(lab, protocol, port)]


def answers(lab: Lab, protocol: str, port: int) -> bool:
    probe = lab.tcp_probe if protocol == "tcp" else lab.udp_probe
    return probe(lab.internet, topology.EXTERNAL_ADDRESS, port, timeout=CONNECT_PATIENCE).listener == "lan"


def connects(lab: Lab, _: str, port: int) -> bool:
    with lab.internet.socket(socket.SOCK_STREAM) as connection, contextlib.suppress(OSError):
        connection.settimeout(CONNECT_PATIENCE)
        connection.connect((topology.EXTERNAL_ADDRESS, port))
        return True
    return False


def keep(recorder: Recorder, name: str, igd_version: str) -> None:
    """What was said is whole; it becomes the transcript when that was asked for."""
    transcript = recorder.transcript(name, igd_version)
    assert transcript.exchanges
    assert [each.request for each in transcript.exchanges if each.transport == HTTP and not each.answer] == []
    if os.environ.get(RECORD):
        transcript.save(DIRECTORY / f"{name}-{igd_version}.json")
