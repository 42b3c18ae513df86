# SPDX-License-Identifier: Apache-2.0
"""Every action of every service in both trees, as the served SCPDs declare it, with good and with bad arguments.

What the SCPDs cannot say stands in tables here, from the services' specifications: which arguments may be missing, and
which fault a value has that is of the right type. Codes are (version 1, version 2) where the two differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from xml.etree import ElementTree

import pytest

from igdpcp.daemon.http_server import Peer
from igdpcp.upnp.actions import Level
from igdpcp.upnp.description import ROOT_PATH, documents
from igdpcp.upnp.http import HttpRequest
from tests.support.hall import A6, B6, IDENTITY, A, B, Hall
from tests.support.soap_client import envelope
from tests.support.virtual_time import virtual

DEVICE = "{urn:schemas-upnp-org:device-1-0}"
SCPD = "{urn:schemas-upnp-org:service-1-0}"
ROUTER = "192.168.1.1"
ROUTER6 = "2600:1::1"
HELD_PORT = 8080
UI2_MAX, UI4_MAX = 65535, 4294967295

Codes = tuple[int, int]
Arguments = Mapping[str, object]

CONNECTION = f"{IDENTITY.udn(Level.CONNECTION_DEVICE, 1)}:WANConnectionDevice:1,urn:upnp-org:serviceId:WANIPConn1"
KEY = {"NewRemoteHost": "", "NewExternalPort": HELD_PORT, "NewProtocol": "TCP"}
ENTRY = {
    "NewRemoteHost": "", "NewExternalPort": 9090, "NewProtocol": "UDP", "NewInternalPort": 9000,
    "NewInternalClient": A, "NewEnabled": 1, "NewPortMappingDescription": "game", "NewLeaseDuration": 3600,
}  # fmt: skip
RANGE = {"NewStartPort": 8000, "NewEndPort": 9000, "NewProtocol": "TCP", "NewManage": 0}
FLOW = {"RemoteHost": "", "RemotePort": 0, "InternalClient": A6, "InternalPort": 5000, "Protocol": 17}

# With these arguments an action succeeds, or is refused as REFUSED says. UniqueID is filled in.
GOOD: dict[str, Arguments] = {
    "SetConnectionType": {"NewConnectionType": "IP_Routed"},
    "GetGenericPortMappingEntry": {"NewPortMappingIndex": 0},
    "GetSpecificPortMappingEntry": KEY,
    "AddPortMapping": ENTRY,
    "AddAnyPortMapping": ENTRY,
    "DeletePortMapping": KEY,
    "DeletePortMappingRange": RANGE,
    "GetListOfPortMappings": RANGE | {"NewNumberOfPorts": 10},
    "GetActiveConnection": {"NewActiveConnectionIndex": 0},
    "SetDefaultConnectionService": {"NewDefaultConnectionService": CONNECTION},
    "GetOutboundPinholeTimeout": FLOW,
    "AddPinhole": FLOW | {"LeaseTime": 3600},
    "UpdatePinhole": {"UniqueID": None, "NewLeaseTime": 60},
    "DeletePinhole": {"UniqueID": None},
    "GetPinholePackets": {"UniqueID": None},
    "CheckPinholeWorking": {"UniqueID": None},
}
REFUSED: dict[str, Codes] = {
    "SetConnectionType": (501, 731),
    "RequestConnection": (501, 606),
    "ForceTermination": (501, 606),
    "CheckPinholeWorking": (709, 709),
}

# Arguments that control points leave out; the call is then as good as with them.
MAY_BE_MISSING = {
    "NewRemoteHost", "NewEnabled", "NewPortMappingDescription", "NewLeaseDuration", "NewManage", "NewNumberOfPorts",
    "RemoteHost", "RemotePort",
}  # fmt: skip

OTHER = (714, 714)
ADD_VALUES: list[tuple[str, object, Codes]] = [
    ("NewExternalPort", 80, (718, 606)),
    ("NewInternalPort", 0, (402, 732)),
    ("NewInternalPort", 80, (718, 606)),
    ("NewInternalClient", B, (718, 606)),
    ("NewInternalClient", "255.255.255.255", (718, 606)),
    ("NewInternalClient", ROUTER, (718, 606)),
    ("NewInternalClient", "host.example", (402, 402)),
    ("NewRemoteHost", "host.example", (402, 402)),
    ("NewRemoteHost", "*", (0, 0)),
    ("NewEnabled", 0, (501, 501)),
    ("NewLeaseDuration", 0, (0, 0)),
    ("NewLeaseDuration", 604801, (0, 0)),
    ("NewPortMappingDescription", "x" * 5000, (605, 605)),
]
RANGE_VALUES: list[tuple[str, object, Codes]] = [
    ("NewStartPort", 9001, (733, 733)),
    ("NewEndPort", 7999, (733, 733)),
    ("NewEndPort", 8000, (730, 730)),
    ("NewProtocol", "UDP", (730, 730)),
    ("NewManage", 1, (0, 0)),
]
FLOW_VALUES: list[tuple[str, object, Codes]] = [
    ("Protocol", 132, (705, 705)),
    ("Protocol", 0, (705, 705)),
    ("Protocol", 65535, (707, 707)),
    ("Protocol", "UDP", (0, 0)),
    ("Protocol", "SCTP", (402, 402)),
]
UNKNOWN_ID: list[tuple[str, object, Codes]] = [("UniqueID", 4711, (704, 704))]

# What a value of the right type, in place of the good one, leads to.
VALUES: dict[str, list[tuple[str, object, Codes]]] = {
    "SetConnectionType": [("NewConnectionType", "PPPoE_Bridged", (501, 601))],
    "GetGenericPortMappingEntry": [("NewPortMappingIndex", 1, (713, 713))],
    "GetSpecificPortMappingEntry": [
        ("NewExternalPort", 0, OTHER), ("NewExternalPort", 1, OTHER), ("NewProtocol", "udp", OTHER),
        ("NewRemoteHost", "203.0.113.9", OTHER), ("NewRemoteHost", "0.0.0.0", (0, 0)),
        ("NewRemoteHost", "host.example", (402, 402)),
    ],
    "AddPortMapping": [
        *ADD_VALUES, ("NewExternalPort", 0, (716, 716)), ("NewInternalClient", "", (0, 715)),
    ],
    "AddAnyPortMapping": [
        *ADD_VALUES, ("NewExternalPort", 0, (0, 0)), ("NewInternalClient", "", (0, 715)),
    ],
    "DeletePortMapping": [
        ("NewExternalPort", 0, OTHER), ("NewExternalPort", 1, OTHER), ("NewRemoteHost", "203.0.113.9", OTHER),
    ],
    "DeletePortMappingRange": RANGE_VALUES,
    "GetListOfPortMappings": [*RANGE_VALUES, ("NewNumberOfPorts", 0, (0, 0))],
    "GetActiveConnection": [("NewActiveConnectionIndex", 1, (713, 713))],
    "SetDefaultConnectionService": [
        ("NewDefaultConnectionService", "uuid:x:WANConnectionDevice:1,urn:upnp-org:serviceId:WANIPConn1", (720, 720)),
        ("NewDefaultConnectionService", CONNECTION[:-1] + "2", (721, 721)),
    ],
    "GetOutboundPinholeTimeout": FLOW_VALUES,
    "AddPinhole": [
        *FLOW_VALUES,
        ("InternalPort", 0, (706, 706)), ("InternalPort", 80, (606, 606)),
        ("InternalClient", "", (708, 708)), ("InternalClient", "*", (708, 708)),
        ("InternalClient", B6, (606, 606)), ("InternalClient", ROUTER6, (606, 606)),
        ("InternalClient", "192.168.1.50", (402, 402)), ("RemoteHost", "host.example", (402, 402)),
        ("RemoteHost", "*", (0, 0)), ("RemotePort", 443, (0, 0)),
        ("LeaseTime", 0, (402, 402)), ("LeaseTime", 86400, (0, 0)), ("LeaseTime", 86401, (402, 402)),
    ],
    "UpdatePinhole": [*UNKNOWN_ID, ("NewLeaseTime", 0, (402, 402)), ("NewLeaseTime", 86401, (402, 402))],
    "DeletePinhole": UNKNOWN_ID,
    "GetPinholePackets": UNKNOWN_ID,
    "CheckPinholeWorking": UNKNOWN_ID,
}  # fmt: skip

# What the standard knows as optional and this gateway does not have.
NOT_IMPLEMENTED = {
    "WANIPConnection": [
        "RequestTermination", "SetAutoDisconnectTime", "SetIdleDisconnectTime", "SetWarnDisconnectDelay",
        "GetAutoDisconnectTime", "GetIdleDisconnectTime", "GetWarnDisconnectDelay",
    ],
    "WANCommonInterfaceConfig": ["SetEnabledForInternet"],
}  # fmt: skip


@dataclass(frozen=True)
class Variable:
    """A stateVariable element."""

    type: str
    allowed: tuple[str, ...]
    limits: tuple[int, int] | None

    def holds(self, value: str) -> bool:
        """Whether the value is of this type and within its limits."""
        if self.allowed:
            return value in self.allowed
        if self.type == "boolean":
            return value in ("0", "1")
        if self.type == "string":
            return True
        low, high = self.limits or (0, UI2_MAX if self.type == "ui2" else UI4_MAX)
        return value.isdigit() and str(int(value)) == value and low <= int(value) <= high


@dataclass(frozen=True)
class Declared:
    """An action of a served SCPD, and where it is called."""

    name: str
    urn: str
    tree: int
    path: str
    inputs: dict[str, Variable]
    outputs: dict[str, Variable]

    @property
    def service(self) -> str:
        return self.urn.split(":")[3]

    @property
    def expected(self) -> int:
        return self.code(REFUSED.get(self.name, (0, 0)))

    def code(self, codes: Codes) -> int:
        """Of the service's version."""
        return codes[int(self.urn[-1]) - 1]

    def __str__(self) -> str:
        return f"tree{self.tree}-{self.service}-{self.name}"


def declared() -> Iterator[Declared]:
    served = documents(IDENTITY)
    for tree, root in ROOT_PATH.items():
        for service in ElementTree.fromstring(served[root]).iter(DEVICE + "service"):
            scpd = ElementTree.fromstring(served[text(service, DEVICE + "SCPDURL")])
            variables = {text(v, SCPD + "name"): variable(v) for v in scpd.iter(SCPD + "stateVariable")}
            for action in scpd.iter(SCPD + "action"):
                arguments: dict[str, dict[str, Variable]] = {"in": {}, "out": {}}
                for argument in action.iter(SCPD + "argument"):
                    related = variables[text(argument, SCPD + "relatedStateVariable")]
                    arguments[text(argument, SCPD + "direction")][text(argument, SCPD + "name")] = related
                yield Declared(
                    text(action, SCPD + "name"), text(service, DEVICE + "serviceType"), tree,
                    text(service, DEVICE + "controlURL"), arguments["in"], arguments["out"],
                )  # fmt: skip


def text(element: ElementTree.Element, name: str) -> str:
    found = element.findtext(name)
    assert found is not None
    return found


def variable(element: ElementTree.Element) -> Variable:
    limits = element.find(SCPD + "allowedValueRange")
    return Variable(
        text(element, SCPD + "dataType"),
        tuple(value.text or "" for value in element.iter(SCPD + "allowedValue")),
        None if limits is None else (int(text(limits, SCPD + "minimum")), int(text(limits, SCPD + "maximum"))),
    )


ACTIONS = list(declared())
WITH_ARGUMENTS = [(action, name) for action in ACTIONS for name in action.inputs]


@dataclass(frozen=True)
class Answer:
    """The fault's code, 0 for none, and the output arguments in the order of the answer."""

    code: int
    outputs: dict[str, str]


async def ask(hall: Hall, action: Declared, arguments: Arguments) -> Answer:
    """Call the action from the host of its family."""
    return await post(hall, action.path, action.urn, action.name, arguments)


async def post(hall: Hall, path: str, urn: str, name: str, arguments: Arguments) -> Answer:
    six = "IPv6" in urn
    peer = Peer(ip_address(A6 if six else A), ip_address(ROUTER6 if six else ROUTER), "br-lan")
    headers = {"soapaction": f'"{urn}#{name}"', "content-type": "text/xml"}
    response = await hall.igd_handler.handle(
        HttpRequest("POST", path, headers, envelope(urn, name, arguments), "1.1"), peer
    )
    (content,) = ElementTree.fromstring(response.body)[0]
    code = next((int(e.text or "") for e in content.iter() if e.tag.endswith("}errorCode")), 0)
    assert (response.status == 200) is (code == 0)
    if code:
        return Answer(code, {})
    assert content.tag == f"{{{urn}}}{name}Response"
    return Answer(0, {element.tag: element.text or "" for element in content})


async def prepared(directory: Path, action: Declared) -> tuple[Hall, dict[str, object]]:
    """A gateway with one mapping and one pinhole, and the action's good arguments for it."""
    hall = Hall(directory)
    assert not (await hall.add(HELD_PORT, A)).code
    good = dict(GOOD.get(action.name, {}))
    if "UniqueID" in good:
        answer = await post(hall, action.path, action.urn, "AddPinhole", GOOD["AddPinhole"] | {"InternalPort": 6000})
        good["UniqueID"] = answer.outputs["UniqueID"]
    return hall, good


@pytest.fixture(autouse=True)
def flow_timeouts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kernel's connection tracking need not be loaded."""
    for name in ("nf_conntrack_tcp_timeout_established", "nf_conntrack_udp_timeout_stream"):
        (tmp_path / name).write_text("120\n")
    monkeypatch.setattr("igdpcp.net.conntrack._SETTINGS", tmp_path)


def test_every_action_of_the_standards_is_served() -> None:
    served = {(action.tree, action.service, action.name) for action in ACTIONS}
    both = {
        "Layer3Forwarding": 2,
        "WANCommonInterfaceConfig": 9,
        "WANIPConnection": 11,
    }
    counts = {
        (tree, service): sum(1 for t, s, _ in served if (t, s) == (tree, service))
        for tree in (1, 2)
        for service in (*both, "WANIPv6FirewallControl")
    }
    assert counts == {
        **{(1, service): count for service, count in both.items()}, (1, "WANIPv6FirewallControl"): 0,
        (2, "Layer3Forwarding"): 2, (2, "WANCommonInterfaceConfig"): 9, (2, "WANIPConnection"): 14,
        (2, "WANIPv6FirewallControl"): 7,
    }  # fmt: skip
    assert all(set(GOOD.get(action.name, {})) == set(action.inputs) for action in ACTIONS)


@pytest.mark.parametrize("action", ACTIONS, ids=str)
@virtual
async def test_good_arguments_succeed_and_the_answer_is_as_declared(tmp_path: Path, action: Declared) -> None:
    hall, good = await prepared(tmp_path, action)
    answer = await ask(hall, action, good)
    assert answer.code == action.expected
    if not answer.code:
        assert list(answer.outputs) == list(action.outputs)
        wrong = {name: value for name, value in answer.outputs.items() if not action.outputs[name].holds(value)}
        assert wrong == {}


@pytest.mark.parametrize(("action", "name"), WITH_ARGUMENTS, ids=str)
@virtual
async def test_an_argument_that_is_missing_has_a_default_or_is_402(tmp_path: Path, action: Declared, name: str) -> None:
    hall, good = await prepared(tmp_path, action)
    del good[name]
    assert (await ask(hall, action, good)).code == (action.expected if name in MAY_BE_MISSING else 402)


@pytest.mark.parametrize(
    ("action", "name"),
    [(action, name) for action, name in WITH_ARGUMENTS if action.inputs[name].type != "string"],
    ids=str,
)
@virtual
async def test_an_argument_that_is_left_empty_has_a_default_or_is_402(
    tmp_path: Path, action: Declared, name: str
) -> None:
    hall, good = await prepared(tmp_path, action)
    assert (await ask(hall, action, good | {name: ""})).code == (action.expected if name in MAY_BE_MISSING else 402)


def values_of_another_type(variable: Variable) -> list[str]:
    if variable.type == "boolean":
        return ["2", "maybe"]
    if variable.type == "ui2":
        return ["x", "-1", "1.5", "0x1F", str(UI2_MAX + 1)]
    if variable.type == "ui4":
        return ["x", "-1", str(UI4_MAX + 1)]
    return []


@pytest.mark.parametrize(
    ("action", "name", "value"),
    [(action, name, value) for action, name in WITH_ARGUMENTS for value in values_of_another_type(action.inputs[name])],
    ids=str,
)
@virtual
async def test_a_value_of_another_type_is_402(tmp_path: Path, action: Declared, name: str, value: str) -> None:
    hall, good = await prepared(tmp_path, action)
    assert (await ask(hall, action, good | {name: value})).code == 402


@pytest.mark.parametrize(
    ("action", "name"), [(action, name) for action, name in WITH_ARGUMENTS if action.inputs[name].allowed], ids=str
)
@virtual
async def test_a_value_outside_the_list_is_402_in_version_1_and_601_in_version_2(
    tmp_path: Path, action: Declared, name: str
) -> None:
    hall, good = await prepared(tmp_path, action)
    assert (await ask(hall, action, good | {name: "Nothing"})).code == action.code((402, 601))


@pytest.mark.parametrize(
    ("action", "name", "value", "codes"),
    [(action, *row) for action in ACTIONS for row in VALUES.get(action.name, ())],
    ids=lambda value: str(value)[:40],
)
@virtual
async def test_a_value_that_is_not_to_be_had_has_its_own_fault(
    tmp_path: Path, action: Declared, name: str, value: object, codes: Codes
) -> None:
    hall, good = await prepared(tmp_path, action)
    assert (await ask(hall, action, good | {name: value})).code == action.code(codes)


@pytest.mark.parametrize("action", [a for a in ACTIONS if a.name.startswith("Get") and not a.inputs], ids=str)
@virtual
async def test_actions_without_arguments_ignore_what_they_are_given(tmp_path: Path, action: Declared) -> None:
    hall, _ = await prepared(tmp_path, action)
    assert (await ask(hall, action, {"NewColour": "red"})).code == 0


@pytest.mark.parametrize("action", {(a.tree, a.service): a for a in ACTIONS}.values(), ids=str)
@virtual
async def test_what_a_service_does_not_have_is_401_and_what_it_leaves_out_is_602(
    tmp_path: Path, action: Declared
) -> None:
    hall, _ = await prepared(tmp_path, action)
    assert (await post(hall, action.path, action.urn, "NoSuchAction", {})).code == 401
    for name in NOT_IMPLEMENTED.get(action.service, ()):
        assert (await post(hall, action.path, action.urn, name, {})).code == 602
    if action.tree == 1 and action.service == "WANIPConnection":
        for name in ("AddAnyPortMapping", "DeletePortMappingRange", "GetListOfPortMappings"):
            assert (await post(hall, action.path, action.urn, name, GOOD[name])).code == 401
