# SPDX-License-Identifier: Apache-2.0
"""The declaration of the services is consistent in itself and has the standard's argument orders."""

from __future__ import annotations

import pytest

from igdpcp.upnp.actions import SERVICES, service_by_type

EVERY_VERSION = [(service, version) for service in SERVICES for version in service.versions]


@pytest.mark.parametrize(("service", "version"), EVERY_VERSION)
def test_every_argument_has_a_state_variable_in_its_version(service, version):
    for action in service.actions:
        if version in action.versions:
            for argument in action.inputs + action.outputs:
                assert service.variable(argument.variable, version).name == argument.variable


@pytest.mark.parametrize(("service", "version"), EVERY_VERSION)
def test_no_name_is_declared_twice_in_a_version(service, version):
    actions = [action.name for action in service.actions if version in action.versions]
    variables = [variable.name for variable in service.variables if version in variable.versions]
    assert len(set(actions)) == len(actions)
    assert len(set(variables)) == len(variables)


def test_add_port_mapping_has_the_arguments_of_the_standard_in_order():
    action = service_by_type("WANIPConnection").action("AddPortMapping", 1)
    assert [argument.name for argument in action.inputs] == [
        "NewRemoteHost",
        "NewExternalPort",
        "NewProtocol",
        "NewInternalPort",
        "NewInternalClient",
        "NewEnabled",
        "NewPortMappingDescription",
        "NewLeaseDuration",
    ]
    assert action.outputs == ()


def test_get_generic_port_mapping_entry_gives_the_whole_entry():
    action = service_by_type("WANIPConnection").action("GetGenericPortMappingEntry", 1)
    add = service_by_type("WANIPConnection").action("AddPortMapping", 1)
    assert [argument.name for argument in action.inputs] == ["NewPortMappingIndex"]
    assert [argument.name for argument in action.outputs] == [argument.name for argument in add.inputs]


def test_add_any_port_mapping_exists_only_in_version_2():
    service = service_by_type("WANIPConnection")
    assert service.action("AddAnyPortMapping", 1) is None
    assert [argument.name for argument in service.action("AddAnyPortMapping", 2).outputs] == ["NewReservedPort"]


def test_only_the_ip_connection_has_a_version_2():
    assert {service.type: service.version_in(2) for service in SERVICES} == {
        "Layer3Forwarding": 1,
        "WANCommonInterfaceConfig": 1,
        "WANIPConnection": 2,
    }


def test_evented_variables_are_those_of_the_standard():
    evented = {
        (variable.name, version)
        for service, version in EVERY_VERSION
        for variable in service.variables
        if variable.evented and version in variable.versions
    }
    both = {"PossibleConnectionTypes", "ConnectionStatus", "ExternalIPAddress", "PortMappingNumberOfEntries"}
    assert evented == {(name, version) for name in both for version in (1, 2)} | {
        ("SystemUpdateID", 2),
        ("PhysicalLinkStatus", 1),
        ("DefaultConnectionService", 1),
    }


def test_unknown_service_is_none():
    assert service_by_type("WANPPPConnection") is None
