# SPDX-License-Identifier: Apache-2.0
"""The description documents: one device tree per IGD version, each consistent in itself, and the services' SCPDs.

Microsoft's control points stop at the first sign of version 2. They are shown version 1 of every document, with the
paths and UDNs of the tree that they found.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from igdpcp.upnp.actions import (
    DEVICE_TYPES,
    DEVICE_URN,
    TREE_PREFIX,
    Action,
    Argument,
    Level,
    Service,
    StateVariable,
)
from igdpcp.upnp.services import services_in
from igdpcp.upnp.soap import escaped
from igdpcp.upnp.uuids import URL_NAMESPACE, named_uuid
from igdpcp.values import dataclass

VERSIONS = (1, 2)
_ROOT_DOCUMENT = "/rootDesc.xml"  # where other gateways have it too; some scripts look nowhere else
ROOT_PATH = {version: prefix + _ROOT_DOCUMENT for version, prefix in TREE_PREFIX.items()}
FRIENDLY_NAME_LIMIT = 63  # UPnP Device Architecture 1.1 section 2.3: fewer than 64 characters
MODEL_NAME_LIMIT = 31  # the same: fewer than 32
MODEL_NUMBER_LIMIT = 31
SERIAL_LIMIT = 63

_DECLARATION = '<?xml version="1.0"?>\n'
_SPEC_VERSION = "<specVersion><major>1</major><minor>1</minor></specVersion>"
_MANUFACTURER = "igdpcp"
_MODEL_DESCRIPTION = "UPnP IGD to PCP interworking function (RFC 6970)"
_VERSION_1_AGENTS = ("microsoft", "fdssdp")  # in lower case; the second is Windows' function discovery


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """Who this gateway says it is.

    ``udns`` are those of the version 1 tree, "uuid:..." for root, WANDevice and WANConnectionDevice. ``boot_id`` grows
    with each start (UPnP Device Architecture 1.1 section 1.2). ``config_id`` is set by ``with_config_id``.
    ``presentation_url`` may be empty. ``system`` is the first token of the SERVER header.
    """

    friendly_name: str
    serial: str
    udns: tuple[str, str, str]
    boot_id: int
    presentation_url: str
    version_string: str
    system: str = "Linux/5"
    config_id: int = 0
    model_name: str = "igdpcp"

    @property
    def server(self) -> str:
        """The SERVER header of HTTP and SSDP."""
        return f"{self.system} UPnP/1.1 igdpcp/{self.version_string}"

    def udn(self, level: Level, version: int) -> str:
        """The UDN of a device in a version's tree; the version 2 ones are derived from those of version 1."""
        first = self.udns[level]
        return first if version == 1 else f"uuid:{named_uuid(first.removeprefix('uuid:'), f'IGD:{version}')}"


def udns_from(seed: str) -> tuple[str, str, str]:
    """Three UDNs that are the same whenever the seed (a machine id) is the same."""
    root, wan, connection = (f"uuid:{named_uuid(URL_NAMESPACE, f'{seed}/{name}')}" for name in DEVICE_TYPES.values())
    return root, wan, connection


def with_config_id(identity: DeviceIdentity, igd_version: str = "auto") -> DeviceIdentity:
    """The identity with the configuration number that its documents' content gives (24 bits)."""
    digest = hashlib.sha256()
    for path, document in documents(replace(identity, config_id=0), igd_version).items():
        digest.update(path.encode() + document)
    return replace(identity, config_id=int.from_bytes(digest.digest()[:3], "big"))


def wants_version_1(agent: str) -> bool:
    """Whether a control point with this User-Agent gives up where it sees version 2."""
    agent = agent.lower()
    return any(name in agent for name in _VERSION_1_AGENTS)


def trees_by_prefix(igd_version: str) -> dict[str, int]:
    """The device tree that stands behind each first part of our paths, as option ``igd_version`` has it.

    With "2" that tree is also found where other gateways have theirs.
    """
    if igd_version == "auto":
        return {prefix: tree for tree, prefix in TREE_PREFIX.items()}
    tree = int(igd_version)
    return {TREE_PREFIX[older]: tree for older in VERSIONS if older <= tree}


def documents(identity: DeviceIdentity, igd_version: str = "auto", shown: int = max(VERSIONS)) -> dict[str, bytes]:
    """Every document by its path; nothing in them is of a higher version than ``shown``."""
    found = {}
    for prefix, tree in trees_by_prefix(igd_version).items():
        version = min(tree, shown)
        found[prefix + _ROOT_DOCUMENT] = root_description(identity, tree, version)
        for service in services_in(version):
            found[prefix + service.scpd_path] = scpd(service, service.version_in(version), identity.config_id)
    return found


def root_description(identity: DeviceIdentity, tree: int, shown: int) -> bytes:
    """The root description of the tree of version ``tree``, all its types as in version ``shown``."""
    return (
        f'{_DECLARATION}<root xmlns="urn:schemas-upnp-org:device-1-0" configId="{identity.config_id}">'
        f"{_SPEC_VERSION}{_device(identity, tree, shown, Level.ROOT)}</root>\n"
    ).encode()


def scpd(service: Service, version: int, config_id: int = 0) -> bytes:
    """The service description of that version of the service."""
    actions = "".join(_action(service, a, version) for a in service.actions if version in a.versions and a.listed)
    table = "".join(_state_variable(variable) for variable in service.variables if version in variable.versions)
    return (
        f'{_DECLARATION}<scpd xmlns="urn:schemas-upnp-org:service-1-0" configId="{config_id}">{_SPEC_VERSION}'
        f"<actionList>{actions}</actionList><serviceStateTable>{table}</serviceStateTable></scpd>\n"
    ).encode()


def _element(name: str, text: str) -> str:
    return f"<{name}>{escaped(text)}</{name}>"


def _device(identity: DeviceIdentity, tree: int, shown: int, level: Level) -> str:
    """A device element with everything below it; element order as in UPnP Device Architecture 1.1 section 2.3."""
    services = "".join(_service(service, tree, shown) for service in services_in(shown) if service.level is level)
    inner = [child for child in Level if child == level + 1]
    devices = "".join(_device(identity, tree, shown, child) for child in inner)
    at_root = level is Level.ROOT
    return "".join(
        (
            "<device>",
            _element("deviceType", f"{DEVICE_URN}{DEVICE_TYPES[level]}:{shown}"),
            _element("friendlyName", identity.friendly_name[:FRIENDLY_NAME_LIMIT]),
            _element("manufacturer", _MANUFACTURER),
            _element("modelDescription", _MODEL_DESCRIPTION),
            _element("modelName", identity.model_name[:MODEL_NAME_LIMIT]),
            _element("modelNumber", identity.version_string[:MODEL_NUMBER_LIMIT]),
            _element("serialNumber", identity.serial[:SERIAL_LIMIT]),
            _element("UDN", identity.udn(level, tree)),
            f"<serviceList>{services}</serviceList>",
            f"<deviceList>{devices}</deviceList>" if devices else "",
            _element("presentationURL", identity.presentation_url) if at_root and identity.presentation_url else "",
            "</device>",
        )
    )


def _service(service: Service, tree: int, shown: int) -> str:
    prefix = TREE_PREFIX[tree]
    version = service.version_in(shown)
    return "".join(
        (
            "<service>",
            _element("serviceType", service.urn(version)),
            _element("serviceId", service.id),
            _element("SCPDURL", prefix + service.scpd_path),
            _element("controlURL", prefix + service.control_path),
            _element("eventSubURL", prefix + service.event_path if service.evented(version) else ""),
            "</service>",
        )
    )


def _action(service: Service, action: Action, version: int) -> str:
    arguments = "".join(
        [_argument(service, argument, "in", version) for argument in action.inputs]
        + [_argument(service, argument, "out", version) for argument in action.outputs]
    )
    arguments = f"<argumentList>{arguments}</argumentList>" if arguments else ""
    return f"<action>{_element('name', action.name)}{arguments}</action>"


def _argument(service: Service, argument: Argument, direction: str, version: int) -> str:
    related = service.variable(argument.variable, version).name
    return (
        f"<argument>{_element('name', argument.name)}{_element('direction', direction)}"
        f"{_element('relatedStateVariable', related)}</argument>"
    )


def _state_variable(variable: StateVariable) -> str:
    default = _element("defaultValue", variable.default) if variable.default is not None else ""
    limits = ""
    if variable.allowed:
        values = "".join(_element("allowedValue", value) for value in variable.allowed)
        limits = f"<allowedValueList>{values}</allowedValueList>"
    elif variable.maximum is not None:
        limits = (
            f"<allowedValueRange>{_element('minimum', str(variable.minimum or 0))}"
            f"{_element('maximum', str(variable.maximum))}</allowedValueRange>"
        )
    return (
        f'<stateVariable sendEvents="{"yes" if variable.evented else "no"}">{_element("name", variable.name)}'
        f"{_element('dataType', variable.type.value)}{default}{limits}</stateVariable>"
    )
