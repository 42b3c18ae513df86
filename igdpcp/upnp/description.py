# SPDX-License-Identifier: Apache-2.0
"""The description documents: one device tree per IGD version, each consistent in itself, and the services' SCPDs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from html import escape
from uuid import UUID, uuid5

from igdpcp.upnp.actions import (
    DEVICE_TYPES,
    DEVICE_URN,
    SERVICES,
    TREE_PREFIX,
    Action,
    Argument,
    Level,
    Service,
    StateVariable,
)

VERSIONS = (1, 2)
ROOT_PATH = {version: f"{prefix}/rootDesc.xml" for version, prefix in TREE_PREFIX.items()}
FRIENDLY_NAME_LIMIT = 63  # UPnP Device Architecture 1.1 section 2.3: fewer than 64 characters
MODEL_NUMBER_LIMIT = 31  # the same: fewer than 32
SERIAL_LIMIT = 63

_NAMESPACE = UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # RFC 4122 appendix C, names that are URLs
_DECLARATION = '<?xml version="1.0"?>\n'
_SPEC_VERSION = "<specVersion><major>1</major><minor>1</minor></specVersion>"
_MANUFACTURER = "igdpcp"
_MODEL_NAME = "igdpcp"
_MODEL_DESCRIPTION = "UPnP IGD to PCP interworking function (RFC 6970)"


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

    @property
    def server(self) -> str:
        """The SERVER header of HTTP and SSDP."""
        return f"{self.system} UPnP/1.1 igdpcp/{self.version_string}"

    def udn(self, level: Level, version: int) -> str:
        """The UDN of a device in a version's tree; the version 2 ones are derived from those of version 1."""
        first = self.udns[level]
        return first if version == 1 else f"uuid:{uuid5(UUID(first.removeprefix('uuid:')), f'IGD:{version}')}"


def udns_from(seed: str) -> tuple[str, str, str]:
    """Three UDNs that are the same whenever the seed (a machine id) is the same."""
    root, wan, connection = (f"uuid:{uuid5(_NAMESPACE, f'{seed}/{name}')}" for name in DEVICE_TYPES.values())
    return root, wan, connection


def with_config_id(identity: DeviceIdentity) -> DeviceIdentity:
    """The identity with the configuration number that its documents' content gives (24 bits)."""
    digest = hashlib.sha256()
    for path, document in documents(replace(identity, config_id=0)).items():
        digest.update(path.encode() + document)
    return replace(identity, config_id=int.from_bytes(digest.digest()[:3], "big"))


def documents(identity: DeviceIdentity) -> dict[str, bytes]:
    """Every document of both trees by its path."""
    found = {}
    for tree in VERSIONS:
        found[ROOT_PATH[tree]] = root_description(identity, tree)
        for service in SERVICES:
            found[TREE_PREFIX[tree] + service.scpd_path] = scpd(service, service.version_in(tree), identity.config_id)
    return found


def root_description(identity: DeviceIdentity, version: int) -> bytes:
    """The root description of the tree of that version."""
    return (
        f'{_DECLARATION}<root xmlns="urn:schemas-upnp-org:device-1-0" configId="{identity.config_id}">'
        f"{_SPEC_VERSION}{_device(identity, version, Level.ROOT)}</root>\n"
    ).encode()


def scpd(service: Service, version: int, config_id: int = 0) -> bytes:
    """The service description of that version of the service."""
    actions = "".join(_action(service, action, version) for action in service.actions if version in action.versions)
    table = "".join(_state_variable(variable) for variable in service.variables if version in variable.versions)
    return (
        f'{_DECLARATION}<scpd xmlns="urn:schemas-upnp-org:service-1-0" configId="{config_id}">{_SPEC_VERSION}'
        f"<actionList>{actions}</actionList><serviceStateTable>{table}</serviceStateTable></scpd>\n"
    ).encode()


def _element(name: str, text: str) -> str:
    return f"<{name}>{escape(text, quote=False)}</{name}>"


def _device(identity: DeviceIdentity, version: int, level: Level) -> str:
    """A device element with everything below it; element order as in UPnP Device Architecture 1.1 section 2.3."""
    services = "".join(_service(service, version) for service in SERVICES if service.level is level)
    inner = [child for child in Level if child == level + 1]
    devices = "".join(_device(identity, version, child) for child in inner)
    at_root = level is Level.ROOT
    return "".join(
        (
            "<device>",
            _element("deviceType", f"{DEVICE_URN}{DEVICE_TYPES[level]}:{version}"),
            _element("friendlyName", identity.friendly_name[:FRIENDLY_NAME_LIMIT]),
            _element("manufacturer", _MANUFACTURER),
            _element("modelDescription", _MODEL_DESCRIPTION),
            _element("modelName", _MODEL_NAME),
            _element("modelNumber", identity.version_string[:MODEL_NUMBER_LIMIT]),
            _element("serialNumber", identity.serial[:SERIAL_LIMIT]),
            _element("UDN", identity.udn(level, version)),
            f"<serviceList>{services}</serviceList>",
            f"<deviceList>{devices}</deviceList>" if devices else "",
            _element("presentationURL", identity.presentation_url) if at_root and identity.presentation_url else "",
            "</device>",
        )
    )


def _service(service: Service, tree: int) -> str:
    prefix = TREE_PREFIX[tree]
    return "".join(
        (
            "<service>",
            _element("serviceType", service.urn(service.version_in(tree))),
            _element("serviceId", service.id),
            _element("SCPDURL", prefix + service.scpd_path),
            _element("controlURL", prefix + service.control_path),
            _element("eventSubURL", prefix + service.event_path),
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
