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

from igdpcp.upnp.description import (
    ROOT_PATH,
    DeviceIdentity,
    documents,
    root_description,
    scpd,
    trees_by_prefix,
    udns_from,
    wants_version_1,
    with_config_id,
)
from igdpcp.upnp.services import LAYER3_FORWARDING, WAN_IP_CONNECTION, services_in

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
        model_name="Router & Sons",
    )
)
VERSION_2 = (b":2<", b"AddAnyPortMapping", b"GetListOfPortMappings", b"SystemUpdateID", b"604800", b"WANIPv6Firewall")


def golden_name(path):
    return "upnp" + path.replace("/", "_")


@pytest.mark.parametrize("path", sorted(documents(IDENTITY)))
def test_documents_are_the_golden_ones(path):
    document = documents(IDENTITY)[path]
    file = GOLDEN / golden_name(path)
    if os.environ.get("IGDPCP_REGENERATE"):
        file.write_bytes(document)
    assert document == file.read_bytes()


def tree_of(document):
    """Device and service types, UDNs and paths, in the order of the document."""
    root = ElementTree.fromstring(document)
    return {
        name: [element.text for element in root.iter(DEVICE + name)]
        for name in ("deviceType", "serviceType", "UDN", "SCPDURL", "controlURL", "eventSubURL")
    }


@pytest.mark.parametrize("version", [1, 2])
def test_a_tree_is_consistent_in_itself(version):
    tree = tree_of(root_description(IDENTITY, version, version))
    assert tree["deviceType"] == [
        f"urn:schemas-upnp-org:device:{name}:{version}"
        for name in ("InternetGatewayDevice", "WANDevice", "WANConnectionDevice")
    ]
    assert tree["serviceType"] == [
        "urn:schemas-upnp-org:service:Layer3Forwarding:1",
        "urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1",
        f"urn:schemas-upnp-org:service:WANIPConnection:{version}",
        *(["urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"] if version == 2 else []),
    ]


@pytest.mark.parametrize("version", [1, 2])
def test_every_scpd_that_a_tree_names_exists(version):
    paths = tree_of(root_description(IDENTITY, version, version))["SCPDURL"]
    assert len(paths) == len(services_in(version))
    assert set(paths) <= set(documents(IDENTITY))


@pytest.mark.parametrize("document", documents(IDENTITY).values())
def test_elements_stand_where_weak_parsers_expect_them(document):
    root = ElementTree.fromstring(document)
    for device in root.iter(DEVICE + "device"):
        order = [element.tag.removeprefix(DEVICE) for element in device]
        expected = [
            "deviceType", "friendlyName", "manufacturer", "modelDescription", "modelName", "modelNumber",
            "serialNumber", "UDN", "serviceList", "deviceList", "presentationURL",
        ]  # fmt: skip
        assert order == [name for name in expected if name in order]
        assert {"deviceType", "friendlyName", "manufacturer", "modelName", "UDN"} <= set(order)
    for service in root.iter(DEVICE + "service"):
        order = [element.tag.removeprefix(DEVICE) for element in service]
        assert order == ["serviceType", "serviceId", "SCPDURL", "controlURL", "eventSubURL"]


def test_a_service_without_events_has_an_empty_event_url(monkeypatch):
    silent = replace(LAYER3_FORWARDING, variables=(replace(LAYER3_FORWARDING.variables[0], evented=False),))
    monkeypatch.setattr("igdpcp.upnp.description.services_in", lambda tree: (silent,))
    assert tree_of(root_description(IDENTITY, 1, 1))["eventSubURL"] == [None]


def test_udns_are_six_different_ones_that_a_restart_keeps():
    def udns():
        return [udn for version in (1, 2) for udn in tree_of(root_description(IDENTITY, version, version))["UDN"]]

    assert len(set(udns())) == 6
    assert udns() == udns()
    assert udns_from("machine") == IDENTITY.udns
    assert udns_from("other") != IDENTITY.udns


def test_version_1_shows_nothing_of_version_2():
    first, second = documents(IDENTITY, "1"), documents(IDENTITY, "2")
    for name in VERSION_2:
        assert not any(name in document for document in first.values())
        assert any(name in document for document in second.values())


@pytest.mark.parametrize(
    ("igd_version", "trees", "roots"),
    [
        ("auto", {"": 1, "/v2": 2}, {"/rootDesc.xml": 1, "/v2/rootDesc.xml": 2}),
        ("1", {"": 1}, {"/rootDesc.xml": 1}),
        ("2", {"": 2, "/v2": 2}, {"/rootDesc.xml": 2, "/v2/rootDesc.xml": 2}),
    ],
)
def test_the_option_chooses_the_trees_that_are_shown(igd_version, trees, roots):
    assert trees_by_prefix(igd_version) == trees
    found = documents(IDENTITY, igd_version)
    assert {path for path in found if path.endswith("/rootDesc.xml")} == set(roots)
    for path, version in roots.items():
        assert found[path] == root_description(IDENTITY, version, version)
        assert set(tree_of(found[path])["SCPDURL"]) <= set(found)
    for path, document in found.items():
        if path.endswith(WAN_IP_CONNECTION.scpd_path):
            version = trees[path.removesuffix(WAN_IP_CONNECTION.scpd_path)]
            assert document == scpd(WAN_IP_CONNECTION, version, IDENTITY.config_id)


@pytest.mark.parametrize("igd_version", ["auto", "1", "2"])
def test_what_microsoft_is_shown_is_version_1_with_the_udns_and_paths_of_each_tree(igd_version):
    shown = documents(IDENTITY, igd_version, shown=1)
    for path, document in shown.items():
        assert not any(name in document for name in VERSION_2)
        if path.endswith("rootDesc.xml"):
            tree, original = tree_of(document), tree_of(documents(IDENTITY, igd_version)[path])
            assert tree["UDN"] == original["UDN"]
            assert tree["controlURL"] == original["controlURL"][:3]
            assert set(tree["SCPDURL"]) <= set(shown)


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        ("Microsoft-Windows/10.0 UPnP/1.0", True),
        ("Mozilla/4.0 (compatible; UPnP/1.0; MICROSOFT NT)", True),
        ("FDSSDP", True),
        ("Debian/12 UPnP/1.1 MiniUPnPc/2.2.4", False),
        ("", False),
    ],
)
def test_microsoft_is_known_by_its_user_agent(agent, expected):
    assert wants_version_1(agent) is expected


def test_an_action_outside_the_standard_is_in_no_scpd():
    assert not any(b"GetPortMappingNumberOfEntries" in document for document in documents(IDENTITY).values())


def test_in_arguments_stand_before_out_arguments():
    for document in documents(IDENTITY).values():
        for arguments in ElementTree.fromstring(document).iter(SERVICE + "argumentList"):
            directions = [element.text for element in arguments.iter(SERVICE + "direction")]
            assert directions == sorted(directions)


def test_names_are_cut_to_what_the_standard_allows():
    long = replace(IDENTITY, friendly_name="x" * 100, serial="y" * 100, model_name="z" * 100, version_string="1" * 100)
    root = ElementTree.fromstring(root_description(long, 1, 1))
    lengths = {"friendlyName": 63, "serialNumber": 63, "modelName": 31, "modelNumber": 31}
    assert {name: len(next(root.iter(DEVICE + name)).text) for name in lengths} == lengths


def test_the_configuration_number_follows_the_content():
    assert 0 < IDENTITY.config_id < 1 << 24
    assert with_config_id(IDENTITY) == IDENTITY
    assert with_config_id(replace(IDENTITY, friendly_name="other")).config_id != IDENTITY.config_id
    assert with_config_id(replace(IDENTITY, boot_id=2)).config_id == IDENTITY.config_id
    assert len({with_config_id(IDENTITY, version).config_id for version in ("auto", "1", "2")}) == 3
    for document in documents(IDENTITY).values():
        assert ElementTree.fromstring(document).get("configId") == str(IDENTITY.config_id)


def test_the_root_paths_are_those_that_locations_name():
    assert ROOT_PATH == {1: "/rootDesc.xml", 2: "/v2/rootDesc.xml"}
