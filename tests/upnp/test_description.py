# SPDX-License-Identifier: Apache-2.0
"""The description documents, byte for byte.

After a wanted change: IGDPCP_REGENERATE=1 pytest tests/upnp/test_description.py, then read the difference.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from igdpcp.upnp.actions import SERVICES
from igdpcp.upnp.description import (
    ROOT_PATH,
    DeviceIdentity,
    documents,
    root_description,
    scpd,
    udns_from,
    with_config_id,
)

GOLDEN = Path(__file__).parent.parent / "golden"
DEVICE = "{urn:schemas-upnp-org:device-1-0}"
SERVICE = "{urn:schemas-upnp-org:service-1-0}"
IDENTITY = with_config_id(
    DeviceIdentity(
        friendly_name="Living room & more",
        serial="0123456789",
        udns=udns_from("machine"),
        boot_id=1,
        presentation_url="http://192.168.1.1/",
        version_string="1.2.3",
    )
)


def golden_name(path):
    return "upnp" + path.replace("/", "_")


@pytest.mark.parametrize("path", sorted(documents(IDENTITY)))
def test_documents_are_the_golden_ones(path):
    document = documents(IDENTITY)[path]
    file = GOLDEN / golden_name(path)
    if os.environ.get("IGDPCP_REGENERATE"):
        file.write_bytes(document)
    assert document == file.read_bytes()


@pytest.mark.parametrize("version", [1, 2])
def test_a_tree_is_consistent_in_itself(version):
    root = ElementTree.fromstring(root_description(IDENTITY, version))
    types = [element.text for element in root.iter(DEVICE + "deviceType")]
    assert types == [
        f"urn:schemas-upnp-org:device:{name}:{version}"
        for name in ("InternetGatewayDevice", "WANDevice", "WANConnectionDevice")
    ]
    services = [element.text for element in root.iter(DEVICE + "serviceType")]
    assert services == [
        "urn:schemas-upnp-org:service:Layer3Forwarding:1",
        "urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1",
        f"urn:schemas-upnp-org:service:WANIPConnection:{version}",
    ]


@pytest.mark.parametrize("version", [1, 2])
def test_every_scpd_that_a_tree_names_exists(version):
    root = ElementTree.fromstring(root_description(IDENTITY, version))
    paths = [element.text for element in root.iter(DEVICE + "SCPDURL")]
    assert len(paths) == len(SERVICES)
    assert set(paths) <= set(documents(IDENTITY))


def test_udns_are_six_different_ones_that_a_restart_keeps():
    def udns():
        return [
            element.text
            for version in (1, 2)
            for element in ElementTree.fromstring(root_description(IDENTITY, version)).iter(DEVICE + "UDN")
        ]

    assert len(set(udns())) == 6
    assert udns() == udns()
    assert udns_from("machine") == IDENTITY.udns
    assert udns_from("other") != IDENTITY.udns


def test_version_1_shows_nothing_of_version_2():
    service = SERVICES[-1]
    first, second = scpd(service, 1), scpd(service, 2)
    for name in (b"AddAnyPortMapping", b"SystemUpdateID", b"604800"):
        assert name not in first
        assert name in second


def test_in_arguments_stand_before_out_arguments():
    for document in documents(IDENTITY).values():
        for arguments in ElementTree.fromstring(document).iter(SERVICE + "argumentList"):
            directions = [element.text for element in arguments.iter(SERVICE + "direction")]
            assert directions == sorted(directions)


def test_names_are_cut_to_what_the_standard_allows():
    root = ElementTree.fromstring(root_description(replace(IDENTITY, friendly_name="x" * 100, serial="y" * 100), 1))
    assert len(next(root.iter(DEVICE + "friendlyName")).text) == 63
    assert len(next(root.iter(DEVICE + "serialNumber")).text) == 63


def test_the_configuration_number_follows_the_content():
    assert 0 < IDENTITY.config_id < 1 << 24
    assert with_config_id(IDENTITY) == IDENTITY
    assert with_config_id(replace(IDENTITY, friendly_name="other")).config_id != IDENTITY.config_id
    assert with_config_id(replace(IDENTITY, boot_id=2)).config_id == IDENTITY.config_id
    for document in documents(IDENTITY).values():
        assert ElementTree.fromstring(document).get("configId") == str(IDENTITY.config_id)


def test_the_root_paths_are_those_that_locations_name():
    assert ROOT_PATH == {1: "/rootDesc.xml", 2: "/v2/rootDesc.xml"}
