# SPDX-License-Identifier: Apache-2.0
"""The declaration of the services is consistent in itself and has the standard's argument orders."""

from __future__ import annotations

import pytest

from igdpcp.upnp.services import SERVICES, service_by_type, services_in

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


def test_add_any_port_mapping_returns_the_port():
    action = service_by_type("WANIPConnection").action("AddAnyPortMapping", 2)
    assert [argument.name for argument in action.outputs] == ["NewReservedPort"]


def test_the_trees_offer_the_services_of_the_standard_in_the_versions_of_the_standard():
    first = {"Layer3Forwarding": 1, "WANCommonInterfaceConfig": 1, "WANIPConnection": 1}
    second = first | {"WANIPConnection": 2, "WANIPv6FirewallControl": 1}
    assert {service.type: service.version_in(1) for service in services_in(1)} == first
    assert {service.type: service.version_in(2) for service in services_in(2)} == second


def test_no_action_or_variable_means_two_things_in_two_services():
    actions = [action.name for service in SERVICES for action in service.actions]
    variables = [(service.type, variable.name) for service in SERVICES for variable in service.variables]
    assert len(set(actions)) == len(actions)
    assert len({name for _, name in variables}) == len(set(variables))


def test_what_is_not_offered_is_not_declared():
    for service in SERVICES:
        assert not {action.name for action in service.actions} & set(service.not_offered)


@pytest.mark.parametrize(("service", "version"), EVERY_VERSION)
def test_a_variable_without_a_value_shows_one_that_its_type_and_limits_allow(service, version):
    for variable in (v for v in service.variables if version in v.versions):
        value = variable.idle_value
        assert not variable.allowed or value in variable.allowed
        if variable.type.value in ("ui2", "ui4", "boolean"):
            assert (variable.minimum or 0) <= int(value)
            assert variable.maximum is None or int(value) <= variable.maximum


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
        ("EnabledForInternet", 1),
        ("FirewallEnabled", 1),
        ("InboundPinholeAllowed", 1),
    }


RANGE = ["NewStartPort", "NewEndPort", "NewProtocol", "NewManage"]
FLOW = ["RemoteHost", "RemotePort", "InternalClient", "InternalPort", "Protocol"]


@pytest.mark.parametrize(
    ("service", "version", "name", "inputs", "outputs"),
    [
        ("WANIPConnection", 2, "DeletePortMappingRange", RANGE, []),
        ("WANIPConnection", 2, "GetListOfPortMappings", [*RANGE, "NewNumberOfPorts"], ["NewPortListing"]),
        ("WANIPv6FirewallControl", 1, "GetFirewallStatus", [], ["FirewallEnabled", "InboundPinholeAllowed"]),
        ("WANIPv6FirewallControl", 1, "GetOutboundPinholeTimeout", FLOW, ["OutboundPinholeTimeout"]),
        ("WANIPv6FirewallControl", 1, "AddPinhole", [*FLOW, "LeaseTime"], ["UniqueID"]),
        ("WANIPv6FirewallControl", 1, "UpdatePinhole", ["UniqueID", "NewLeaseTime"], []),
        ("WANIPv6FirewallControl", 1, "DeletePinhole", ["UniqueID"], []),
        ("WANIPv6FirewallControl", 1, "GetPinholePackets", ["UniqueID"], ["PinholePackets"]),
        ("WANIPv6FirewallControl", 1, "CheckPinholeWorking", ["UniqueID"], ["IsWorking"]),
        (
            "WANCommonInterfaceConfig",
            1,
            "GetActiveConnection",
            ["NewActiveConnectionIndex"],
            ["NewActiveConnDeviceContainer", "NewActiveConnectionServiceID"],
        ),
        ("WANCommonInterfaceConfig", 1, "GetEnabledForInternet", [], ["NewEnabledForInternet"]),
        ("WANCommonInterfaceConfig", 1, "GetWANAccessProvider", [], ["NewWANAccessProvider"]),
        ("WANCommonInterfaceConfig", 1, "GetMaximumActiveConnections", [], ["NewMaximumActiveConnections"]),
    ],
)
def test_arguments_are_those_of_the_standard_in_order(service, version, name, inputs, outputs):
    action = service_by_type(service).action(name, version)
    assert [argument.name for argument in action.inputs] == inputs
    assert [argument.name for argument in action.outputs] == outputs


@pytest.mark.parametrize("name", ["AddAnyPortMapping", "DeletePortMappingRange", "GetListOfPortMappings"])
def test_the_actions_of_version_2_are_unknown_in_version_1(name):
    assert service_by_type("WANIPConnection").action(name, 1) is None


def test_unknown_service_is_none():
    assert service_by_type("WANPPPConnection") is None
