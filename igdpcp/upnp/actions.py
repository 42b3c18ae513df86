# SPDX-License-Identifier: Apache-2.0
"""The words in which UPnP services are declared: state variables, arguments, actions, services, versions, trees."""

from __future__ import annotations

import enum

from igdpcp.values import dataclass

UI2_MAX = 0xFFFF  # UPnP Device Architecture 1.1, table 2-2
UI4_MAX = 0xFFFFFFFF

BOTH = (1, 2)
V1 = (1,)
V2 = (2,)

TREE_PREFIX = {1: "", 2: "/v2"}  # first part of every path of a version's device tree

Value = str | int | bool  # of an argument or a state variable

SERVICE_URN = "urn:schemas-upnp-org:service:"
DEVICE_URN = "urn:schemas-upnp-org:device:"


class DataType(enum.StrEnum):
    """Data types of state variables, spelled as in an SCPD."""

    STRING = "string"
    UI2 = "ui2"
    UI4 = "ui4"
    BOOLEAN = "boolean"


class Level(enum.IntEnum):
    """Which device of the tree offers a service; also the index of that device's UDN."""

    ROOT = 0
    WAN_DEVICE = 1
    CONNECTION_DEVICE = 2


DEVICE_TYPES = {
    Level.ROOT: "InternetGatewayDevice",
    Level.WAN_DEVICE: "WANDevice",
    Level.CONNECTION_DEVICE: "WANConnectionDevice",
}


@dataclass(frozen=True, slots=True)
class StateVariable:
    """A row of a service's state table.

    ``allowed`` is checked on input; ``minimum`` and ``maximum`` are only published, as each has a fault code of its own
    that depends on policy (732, a lease cut to a week). ``spellings`` are what control points write, in lower case, for
    a value that is spelled otherwise. ``free_text`` values come from people: they are kept as they are but for control
    characters.
    """

    name: str
    type: DataType
    allowed: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None
    default: str | None = None
    evented: bool = False
    versions: tuple[int, ...] = BOTH
    spellings: tuple[tuple[str, str], ...] = ()
    free_text: bool = False

    @property
    def is_argument_type(self) -> bool:
        """Whether it stands for no state, only for the type of an argument (UPnP Device Architecture 1.1, 2.5)."""
        return self.name.startswith("A_ARG_TYPE_")

    @property
    def idle_value(self) -> str:
        """Its default, else the least value of its type: what it shows while it has no value of its own."""
        if self.default is not None:
            return self.default
        if self.type is DataType.STRING:
            return self.allowed[0] if self.allowed else ""
        return str(self.minimum or 0)


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument and its related state variable; ``default`` None: a request without it is refused."""

    name: str
    variable: str
    default: str | int | bool | None = None


@dataclass(frozen=True, slots=True)
class Action:
    """An action with its arguments in the standard's order, and the service versions that have it.

    One that is not ``listed`` is answered, though no SCPD names it.
    """

    name: str
    inputs: tuple[Argument, ...] = ()
    outputs: tuple[Argument, ...] = ()
    versions: tuple[int, ...] = BOTH
    listed: bool = True


@dataclass(frozen=True, slots=True)
class Service:
    """A service: ``type`` without URN and version; the paths are those of the version 1 tree.

    ``trees`` are the device trees that offer it. ``not_offered`` are the standard's optional actions that are missing.
    ``faults`` are the codes from 700 on, which each service uses for itself, with their names.
    """

    type: str
    id: str
    versions: tuple[int, ...]
    level: Level
    scpd_path: str
    control_path: str
    event_path: str
    actions: tuple[Action, ...]
    variables: tuple[StateVariable, ...]
    trees: tuple[int, ...] = BOTH
    not_offered: tuple[str, ...] = ()
    faults: tuple[tuple[int, str], ...] = ()

    def urn(self, version: int) -> str:
        """The service type as control points write it."""
        return f"{SERVICE_URN}{self.type}:{version}"

    def version_in(self, tree: int) -> int:
        """The version of this service in the device tree of version ``tree``."""
        return min(tree, max(self.versions))

    def action(self, name: str, version: int) -> Action | None:
        """The action of that name, None when that version of the service has none."""
        return next((a for a in self.actions if a.name == name and version in a.versions), None)

    def variable(self, name: str, version: int) -> StateVariable:
        """The state variable as that version of the service declares it; raises KeyError."""
        for variable in self.variables:
            if variable.name == name and version in variable.versions:
                return variable
        raise KeyError(name)

    def fault_name(self, code: int) -> str:
        """What the standard of this service calls a fault, empty when it is not one of its own."""
        return next((name for own, name in self.faults if own == code), "")

    def evented(self, version: int) -> tuple[StateVariable, ...]:
        """The variables whose changes subscribers are told."""
        return tuple(v for v in self.variables if v.evented and version in v.versions)
