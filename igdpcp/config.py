# SPDX-License-Identifier: Apache-2.0
"""Config dataclasses and their validation; every problem is listed at once, with section and option."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from igdpcp import option_values, uci
from igdpcp.errors import ConfigError
from igdpcp.option_values import Reader
from igdpcp.profiles import PROFILES, SWITCH_READERS, Switches, switches_of
from igdpcp.static_sections import StaticMappingConfig, static_mappings
from igdpcp.uci import Section
from igdpcp.values import dataclass

NOTIFY_INTERVAL_LIMIT = 900  # half of CACHE-CONTROL's max-age: UPnP Device Architecture 2.0, section 1.2.2
ANY_ADDRESS = IPv4Network("0.0.0.0/0")
ANY_PORTS = range(0, 65536)


@dataclass(frozen=True, slots=True)
class MainConfig(Switches):
    """Section ``igdpcp``."""

    enabled: bool = False
    backend: str = "auto"  # auto | nftables | iptables
    nft_table: str = "auto"  # auto | fw4 | NAME: of our own table, or of one that includes our objects
    http_port: int = 5000
    igd_version: str = "auto"  # auto | 1 | 2
    pcp_server: bool = True  # hosts of the LANs may ask in PCP, too
    natpmp_server: bool = True  # and in NAT-PMP
    friendly_name: str = "igdpcp"
    model_name: str = "igdpcp"
    serial_number: str = ""  # empty: made from the device's identity
    presentation_url: str = ""
    notify_interval: int = 900
    port_policy: str = "strict"  # strict | alias | learn-block
    allow_private_external: bool = False
    max_mappings: int = 5000
    max_mappings_per_host: int = 1000
    adds_per_second: int = 100  # of one host, in the long run
    never_map: tuple[range, ...] = ()  # external ports that no host gets, whatever is permitted
    secure_mode: bool = True  # a host maps to itself only, and manages its own entries only
    private_list: bool = False  # a host sees its own entries only
    block_lan_pcp: bool = False  # hosts behind the router cannot ask PCP servers on the WAN themselves
    cut_flows: bool = False  # when a mapping ends, its established connections end too
    max_pinholes: int = 256
    max_pinholes_per_host: int = 32
    max_connections: int = 128
    max_connections_per_host: int = 16
    max_subscriptions: int = 64
    max_subscriptions_per_host: int = 8
    searches_per_second: int = 100
    force: bool = False
    dhcp_leases: str = "/tmp/dhcp.leases"  # noqa: S108 - dnsmasq's file | none
    log_level: str = "info"
    log_wire: bool = False
    run_dir: str = "/var/run/igdpcp"
    state_dir: str = "/etc/igdpcp"


@dataclass(frozen=True, slots=True)
class LanConfig:
    """Section ``lan``: one LAN that is served."""

    name: str = "lan"
    device: str = "br-lan"


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """Section ``upstream``: a PCP server of a carrier, behind a WAN.

    ``server`` empty: the ones that DHCP names on that WAN, else its default router.
    """

    name: str = "upstream"
    type: str = "pcp"  # pcp | none
    server: tuple[str, ...] = ()  # IPv4 or IPv6 literals of one server
    device: str = ""  # WAN device; empty: the device of the default route
    dhcp: bool = True
    anycast: bool = False
    nat: str = "auto"  # auto | yes | no
    retransmit_initial: float = 3.0  # IRT, RFC 6887 section 8.1.1


@dataclass(frozen=True, slots=True)
class PermissionConfig:
    """Section ``permission``: the first one that matches decides.

    An IPv4 network is for mappings, an IPv6 network for pinholes; ANY_ADDRESS is for both.
    """

    name: str = ""
    action: str = "deny"  # allow | deny
    external_ports: range = ANY_PORTS
    internal_addresses: IPv4Network | IPv6Network = ANY_ADDRESS
    internal_ports: range = ANY_PORTS
    lan: str = ""  # of hosts behind the LAN of this name; empty: any

    @property
    def is_for_pinholes(self) -> bool:
        return self.internal_addresses == ANY_ADDRESS or self.internal_addresses.version == 6


@dataclass(frozen=True, slots=True)
class Config:
    """The whole of /etc/config/igdpcp; ``warnings`` are the sections and options that were skipped, and why."""

    main: MainConfig = MainConfig()
    lans: tuple[LanConfig, ...] = (LanConfig(),)
    upstreams: tuple[UpstreamConfig, ...] = (UpstreamConfig(),)
    permissions: tuple[PermissionConfig, ...] = ()
    mappings: tuple[StaticMappingConfig, ...] = ()
    warnings: tuple[str, ...] = field(default=())


DEFAULT_PERMISSIONS = (
    PermissionConfig(
        name="default", action="allow", external_ports=range(1024, 65536), internal_ports=range(1024, 65536)
    ),
)

_port = option_values.number(int, 1, 65535, "a port")
_mappings = option_values.number(int, 1, 65535, "a number of mappings")
_pinholes = option_values.number(int, 0, 65535, "a number of pinholes")
_ceiling = option_values.number(int, 1, 10000, "a limit")

_MAIN: Mapping[str, Reader] = {
    **SWITCH_READERS,
    "enabled": option_values.boolean,
    "backend": option_values.choice("auto", "nftables", "iptables"),
    "nft_table": option_values.nft_name,
    "http_port": _port,
    "igd_version": option_values.choice("auto", "1", "2"),
    "pcp_server": option_values.boolean,
    "natpmp_server": option_values.boolean,
    "friendly_name": option_values.device_text(option_values.FRIENDLY_NAME_LIMIT),
    "model_name": option_values.device_text(option_values.MODEL_NAME_LIMIT),
    "serial_number": option_values.device_text(option_values.SERIAL_NUMBER_LIMIT),
    "presentation_url": option_values.http_url,
    "notify_interval": option_values.number(int, 60, NOTIFY_INTERVAL_LIMIT, "a number of seconds"),
    "port_policy": option_values.choice("strict", "alias", "learn-block"),
    "allow_private_external": option_values.boolean,
    "max_mappings": _mappings,
    "max_mappings_per_host": _mappings,
    "adds_per_second": _ceiling,
    "never_map": option_values.port_range,
    "secure_mode": option_values.boolean,
    "private_list": option_values.boolean,
    "block_lan_pcp": option_values.boolean,
    "cut_flows": option_values.boolean,
    "max_pinholes": _pinholes,
    "max_pinholes_per_host": _pinholes,
    "max_connections": _ceiling,
    "max_connections_per_host": _ceiling,
    "max_subscriptions": _ceiling,
    "max_subscriptions_per_host": _ceiling,
    "searches_per_second": _ceiling,
    "force": option_values.boolean,
    "dhcp_leases": option_values.file_or_none,
    "log_level": option_values.choice("debug", "info", "warning", "error"),
    "log_wire": option_values.boolean,
    "run_dir": option_values.directory,
    "state_dir": option_values.directory,
}
_LAN: Mapping[str, Reader] = {"device": option_values.interface}
_UPSTREAM: Mapping[str, Reader] = {
    "type": option_values.choice("pcp", "none"),
    "server": option_values.server,
    "device": option_values.interface,
    "dhcp": option_values.boolean,
    "anycast": option_values.boolean,
    "nat": option_values.choice("auto", "yes", "no"),
    "retransmit_initial": option_values.number(float, 0.1, 60, "a number of seconds"),
}
_PERMISSION: Mapping[str, Reader] = {
    "action": option_values.choice("allow", "deny"),
    "ext_ports": option_values.port_range,
    "int_addr": option_values.network,
    "int_ports": option_values.port_range,
    "lan": str,
    "comment": str,
}
_PERMISSION_FIELDS = {
    "ext_ports": "external_ports",
    "int_addr": "internal_addresses",
    "int_ports": "internal_ports",
}
_SECTIONS = ("igdpcp", "lan", "upstream", "permission", "mapping")
_LISTS = ("server", "never_map")


def load(path: str) -> Config:
    """The configuration in the file at ``path``; raises ConfigError with every problem when none can be made of it."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    return parse(text, path)


def parse(text: str, source: str) -> Config:
    """The configuration in ``text``, which came from ``source``; raises ConfigError like ``load``."""
    try:
        sections = uci.parse(text)
    except ConfigError as error:
        raise ConfigError([f"{source}: {problem}" for problem in error.problems]) from error
    return _Reading(sections).config()


def interface_problems(config: Config, exists: Callable[[str], bool]) -> list[str]:
    """The devices that the configuration names and this router does not have, one line each."""
    named = [(lan.name, lan.device) for lan in config.lans]
    named += [(upstream.name, upstream.device) for upstream in config.upstreams if upstream.device]
    return [
        f"section '{name}' option 'device': this router has no interface '{device}'"
        for name, device in named
        if not exists(device)
    ]


class _Reading:
    """One pass over the sections; ``warnings`` collects what was skipped, and why."""

    def __init__(self, sections: list[Section]) -> None:
        self.warnings: list[str] = []
        self.by_type: dict[str, list[tuple[str, Section]]] = {known: [] for known in _SECTIONS}
        for section in sections:
            if section.type not in self.by_type:
                title = f"section '{section.name}'" if section.name else f"the section in line {section.line}"
                self.warn(f"{title}: unknown type '{section.type}'{_nearest(section.type, _SECTIONS)}; skipped")
                continue
            same_type = self.by_type[section.type]
            same_type.append((section.name or f"@{section.type}[{len(same_type)}]", section))

    def warn(self, problem: str) -> None:
        self.warnings.append(problem)

    def config(self) -> Config:
        main = self.main()
        upstreams = self.upstreams()
        lans = self.lans({upstream.device for upstream in upstreams})
        permissions = self.permissions([lan.name for lan in lans])
        mappings = static_mappings(self.by_type["mapping"], self.read, self.warn)
        if main.max_pinholes:
            self.warn_of_pinholes(permissions)
        if not lans:
            raise ConfigError([*self.warnings, "no section 'lan' is left: there is no LAN to serve"])
        return Config(main, lans, upstreams, permissions, mappings, tuple(self.warnings))

    def main(self) -> MainConfig:
        """What the profile sets, and in its place what the section says."""
        titled = self.only("igdpcp")
        if titled is None:
            return MainConfig()
        title, section = titled
        profile = _as_scalar(section.values.get("profile", "default"))
        switches, problems = switches_of(profile) if profile in PROFILES else ({}, [])
        if "soap_deadline" not in section.values:
            self.warnings += [f"section '{title}' option 'profile': {problem}" for problem in problems]
        profiled = MainConfig(**switches)
        return replace(profiled, **self.options(titled, _MAIN, profiled))

    def upstreams(self) -> tuple[UpstreamConfig, ...]:
        """Every section, in its order; a carrier's server is no part of another section's."""
        upstreams = []
        for title, section in self.by_type["upstream"]:
            options = self.options((title, section), _UPSTREAM, UpstreamConfig())
            upstreams.append(UpstreamConfig(name=section.name or title, **options))
        if len(upstreams) > 1 and (idle := [upstream for upstream in upstreams if upstream.type == "none"]):
            for upstream in idle:
                self.warn(f"section '{upstream.name}' option 'type': none beside other upstreams; section skipped")
            upstreams = [upstream for upstream in upstreams if upstream.type != "none"] or idle[:1]
        return tuple(upstreams) or (UpstreamConfig(),)

    def lans(self, wan_devices: set[str]) -> tuple[LanConfig, ...]:
        if not self.by_type["lan"]:
            return (LanConfig(),)
        lans: dict[str, LanConfig] = {}
        for title, section in self.by_type["lan"]:
            options, problems = self.read(title, section, _LAN)
            lan = LanConfig(name=title, **options)
            if "device" in section.values and "device" not in options:
                self.warn(f"{problems.pop()}; section skipped")
            elif lan.device in wan_devices:
                self.warn(f"section '{title}' option 'device': '{lan.device}' is the upstream's; section skipped")
            elif lan.device in lans:
                self.warn(f"section '{title}' option 'device': '{lan.device}' is served already; section skipped")
            else:
                lans[lan.device] = lan
            self.warnings += problems
        return tuple(lans.values())

    def permissions(self, lans: list[str]) -> tuple[PermissionConfig, ...]:
        """The rules that can be read. One that cannot never allows more than what was written."""
        if not self.by_type["permission"]:
            return DEFAULT_PERMISSIONS
        rules: list[PermissionConfig] = []
        for title, section in self.by_type["permission"]:
            options, problems = self.read(title, section, _PERMISSION)
            options.pop("comment", None)
            if (lan := options.get("lan", "")) not in ("", *lans):
                problems.append(
                    f"section '{title}' option 'lan': no LAN '{options.pop('lan')}' is served{_nearest(lan, lans)}"
                )
            renamed = {_PERMISSION_FIELDS.get(option, option): value for option, value in options.items()}
            rule = PermissionConfig(name=title, **renamed)
            if problems and rule.action == "allow":
                self.warnings += [f"{problem}; rule skipped" for problem in problems]
                continue
            self.warnings += [f"{problem}; the rule denies any value of it" for problem in problems]
            rules.append(rule)
        return tuple(rules) or (PermissionConfig(name="none-left"),)

    def warn_of_pinholes(self, rules: tuple[PermissionConfig, ...]) -> None:
        """Who denies by IPv4 networks only may not know that an IPv6 host is not denied by that."""
        if any(rule.internal_addresses.version == 6 for rule in rules):
            return
        allowing = [place for place, rule in enumerate(rules) if rule.action == "allow" and rule.is_for_pinholes]
        for rule in rules[: allowing[-1] if allowing else 0]:
            if rule.action == "deny" and not rule.is_for_pinholes:
                self.warn(
                    f"section '{rule.name}' option 'int_addr': {rule.internal_addresses} denies no IPv6 pinhole; "
                    "name an IPv6 network in a rule too, or set max_pinholes to 0"
                )

    def only(self, section_type: str) -> tuple[str, Section] | None:
        """The one section of a type that allows one; more of them are reported."""
        titled = self.by_type[section_type]
        for title, _ in titled[1:]:
            self.warn(f"section '{title}': a second section of type '{section_type}' is not used yet; skipped")
        return titled[0] if titled else None

    def options(self, titled: tuple[str, Section], readers: Mapping[str, Reader], defaults: object) -> dict[str, Any]:
        """The options that can be read, by name; each other one is reported with the default that is used."""
        title, section = titled
        options, problems = self.read(title, section, readers, defaults)
        self.warnings += problems
        return options

    def read(
        self, title: str, section: Section, readers: Mapping[str, Reader], defaults: object = None
    ) -> tuple[dict[str, Any], list[str]]:
        """What can be read of a section, and a line for each option that cannot."""
        options: dict[str, Any] = {}
        problems: list[str] = []
        for option, stored in section.values.items():
            where = f"section '{title}' option '{option}'"
            if option not in readers:
                problems.append(f"{where}: unknown option{_nearest(option, readers)}")
                continue
            values = _as_list(stored) if option in _LISTS else [_as_scalar(stored)]
            good: dict[Any, None] = {}
            for text in values:
                try:
                    good[readers[option](text)] = None
                except ValueError as error:
                    using = f"; using {_shown(getattr(defaults, option))}" if defaults and option not in _LISTS else ""
                    problems.append(f"{where}: {text} {error}{using}")
            if option in _LISTS:
                options[option] = tuple(good)
            elif good:
                options[option] = next(iter(good))
        return options, problems


def _as_list(stored: str | list[str]) -> list[str]:
    return stored.split() if isinstance(stored, str) else stored


def _as_scalar(stored: str | list[str]) -> str:
    return stored if isinstance(stored, str) else stored[-1]


def _nearest(word: str, known: Iterable[str]) -> str:
    import difflib  # only mistakes need it

    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _shown(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value) or "''"


__all__ = [
    "DEFAULT_PERMISSIONS", "Config", "LanConfig", "MainConfig", "PermissionConfig", "StaticMappingConfig",
    "UpstreamConfig", "interface_problems", "load", "parse",
]  # fmt: skip
