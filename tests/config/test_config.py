# SPDX-License-Identifier: Apache-2.0
"""Validation of /etc/config/igdpcp: what is used, what is reported, and what stops the start."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

import pytest

from igdpcp import config
from igdpcp.config import Config, LanConfig, MainConfig, PermissionConfig, StaticMappingConfig
from igdpcp.daemon.http_connection import HANDLER_TIMEOUT
from igdpcp.errors import ConfigError
from igdpcp.iwf.lifecycle import LOCAL_SECONDS
from igdpcp.model import Endpoint, Protocol
from igdpcp.profiles import SOAP_DEADLINE_LIMIT


def parse(text: str) -> Config:
    return config.parse(text, "test")


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    return caught.value.problems


def test_an_empty_file_gives_the_defaults_and_is_not_enabled() -> None:
    empty = parse("")
    assert empty.main == MainConfig()
    assert not empty.main.enabled
    assert empty.lans == (LanConfig("lan", "br-lan"),)
    assert empty.warnings == ()


def test_without_permission_rules_only_unprivileged_ports_are_allowed() -> None:
    (rule,) = parse("").permissions
    assert (rule.action, rule.external_ports, rule.internal_ports) == ("allow", range(1024, 65536), range(1024, 65536))
    assert rule.internal_addresses == IPv4Network("0.0.0.0/0")


def test_every_kind_of_option_is_read() -> None:
    read = parse(
        """
        config igdpcp 'main'
            option enabled 'yes'
            option http_port '8080'
            option soap_deadline '1.5'
        config lan 'home'
            option device 'br-home'
        config lan
            option device 'br-guest'
        config upstream 'isp'
            list server '100.64.12.1'
            list server '2001:DB8:0::1'
            option device 'wan'
            option nat 'no'
        config permission 'games'
            option action 'allow'
            option ext_ports '1024-2048'
            option int_addr '192.168.1.7/24'
            option int_ports '80'
            option comment 'any text'
        """
    )
    assert (read.main.enabled, read.main.http_port, read.main.soap_deadline) == (True, 8080, 1.5)
    assert [(lan.name, lan.device) for lan in read.lans] == [("home", "br-home"), ("@lan[1]", "br-guest")]
    assert (read.upstreams[0].name, read.upstreams[0].device, read.upstreams[0].nat) == ("isp", "wan", "no")
    assert read.upstreams[0].server == ("100.64.12.1", "2001:db8::1")
    assert read.permissions == (
        PermissionConfig("games", "allow", range(1024, 2049), IPv4Network("192.168.1.0/24"), range(80, 81)),
    )
    assert read.warnings == ()


def test_a_bad_option_is_reported_with_its_default_and_the_rest_is_used() -> None:
    read = parse("config igdpcp main\noption http_port 99999\noption enabled maybe\noption backend iptables\n")
    assert read.warnings == (
        "section 'main' option 'http_port': 99999 is not a port (1-65535); using 5000",
        "section 'main' option 'enabled': maybe is not a boolean (0 or 1); using 0",
    )
    assert (read.main.http_port, read.main.enabled, read.main.backend) == (5000, False, "iptables")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("backend", "nft"),
        ("http_port", "0"),
        ("http_port", "80 81"),
        ("igd_version", "3"),
        ("notify_interval", "1"),
        ("soap_deadline", "nan"),
        ("max_mappings", "-1"),
        ("log_level", "loud"),
        ("run_dir", "relative"),
        ("run_dir", "/" + "x" * 100),
        ("nft_table", "1st"),
        ("friendly_name", "x" * 64),
        ("friendly_name", "a\x1bb"),
        ("model_name", "x" * 32),
        ("serial_number", "x" * 64),
        ("presentation_url", "javascript:alert(1)"),
        ("presentation_url", "http://192.168.1.1/ x"),
        ("max_connections", "0"),
        ("searches_per_second", "10001"),
        ("max_pinholes", "-1"),
        ("profile", "draft02"),
        ("lifetime_cap", "4294967296"),
        ("lifetime_cap", "119"),
        ("remote_host", "drop"),
        ("specific_inuse_error", "713"),
        ("specific_other_cp", "hide"),
        ("specific_query", "1"),
        ("short_error_resends", "-1"),
        ("short_error_wait", "1801"),
        ("external_ip_probe", "2"),
        ("persist", "some"),
        ("prefer_failure_fallback", "yes"),
        ("third_party", "always"),
    ],
)
def test_a_value_out_of_range_falls_back_to_the_default(option: str, value: str) -> None:
    read = parse(f"config igdpcp main\noption {option} '{value}'\n")
    assert read.main == MainConfig()
    (warning,) = read.warnings
    assert warning.startswith(f"section 'main' option '{option}': {value} is n") or "is too long" in warning


def test_an_unknown_option_or_section_type_names_the_nearest_known_one() -> None:
    read = parse("config igdpcp main\noption htp_port 1\nconfig permision p\nconfig zzz\n")
    assert read.warnings == (
        "section 'p': unknown type 'permision' (did you mean 'permission'?); skipped",
        "the section in line 4: unknown type 'zzz'; skipped",
        "section 'main' option 'htp_port': unknown option (did you mean 'http_port'?)",
    )


@pytest.mark.parametrize(
    "server",
    ["pcp.example", "127.0.0.1", "::1", "224.0.0.1", "ff02::1", "0.0.0.0", "255.255.255.255", "::ffff:10.0.0.1"],
)
def test_a_server_that_cannot_be_one_is_left_out(server: str) -> None:
    read = parse(f"config upstream isp\nlist server '{server}'\nlist server 100.64.12.1\n")
    assert read.upstreams[0].server == ("100.64.12.1",)
    assert f"section 'isp' option 'server': {server} is" in read.warnings[0]


def test_servers_in_one_option_are_split_at_blanks_and_counted_once() -> None:
    read = parse("config upstream isp\noption server '100.64.12.1 100.64.12.2 100.64.12.1'\n")
    assert read.upstreams[0].server == ("100.64.12.1", "100.64.12.2")


def test_a_list_where_one_value_is_expected_takes_the_last() -> None:
    assert parse("config igdpcp main\nlist http_port 1\nlist http_port 2\n").main.http_port == 2


def test_every_upstream_is_read_in_its_order() -> None:
    read = parse("config upstream one\noption device wan\nconfig upstream\noption device wan2\n")
    assert [(upstream.name, upstream.device) for upstream in read.upstreams] == [
        ("one", "wan"),
        ("@upstream[1]", "wan2"),
    ]
    assert read.warnings == ()


def test_no_upstream_beside_others_is_skipped() -> None:
    read = parse("config upstream alone\noption type none\nconfig upstream isp\n")
    assert [upstream.name for upstream in read.upstreams] == ["isp"]
    assert read.warnings == ("section 'alone' option 'type': none beside other upstreams; section skipped",)


def test_a_lan_that_cannot_be_served_is_skipped_and_the_others_stay() -> None:
    read = parse(
        "config lan a\noption device 'much-too-long-name'\nconfig lan b\noption device br-b\n"
        "config lan c\noption device br-b\nconfig lan d\noption device wan\nconfig upstream u\noption device wan\n"
    )
    assert [lan.device for lan in read.lans] == ["br-b"]
    assert [warning.split(" option")[0] for warning in read.warnings] == ["section 'a'", "section 'c'", "section 'd'"]


def test_without_any_lan_left_every_problem_is_raised() -> None:
    problems = problems_of("config igdpcp main\noption http_port x\nconfig lan a\noption device 'a/b'\n")
    assert len(problems) == 3
    assert "http_port" in problems[0]
    assert "section 'a' option 'device'" in problems[1]
    assert "no LAN to serve" in problems[2]


def test_an_allow_rule_that_cannot_be_read_allows_nothing() -> None:
    read = parse(
        "config permission p\noption action allow\noption ext_port 80\n"
        "config permission q\noption action allow\noption int_addr nonsense\n"
    )
    assert [(rule.action, rule.external_ports) for rule in read.permissions] == [("deny", range(65536))]
    assert len(read.warnings) == 2


def test_a_deny_rule_that_cannot_be_read_denies_more_not_less() -> None:
    read = parse("config permission p\noption action deny\noption int_addr 192.168.1.300\noption ext_ports 80\n")
    assert read.permissions == (PermissionConfig("p", "deny", range(80, 81)),)
    assert "192.168.1.300 is not an address" in read.warnings[0]


DENY_LAN = "config permission no_lan\noption action deny\noption int_addr 192.168.1.0/24\n"
DENY_IPV6 = "config permission no_ipv6\noption action deny\noption int_addr 2001:db8::/64\n"
ALLOW_ALL = "config permission all\noption action allow\n"
ALLOW_LAN = "config permission lan\noption action allow\noption int_addr 192.168.1.0/24\n"
NO_PINHOLES = "config igdpcp main\noption max_pinholes 0\n"


def test_a_network_of_hosts_may_be_an_ipv6_one() -> None:
    read = parse(DENY_IPV6)
    assert (read.permissions[0].internal_addresses, read.warnings) == (IPv6Network("2001:db8::/64"), ())


def test_who_denies_ipv4_hosts_and_lets_their_pinholes_be_opened_is_warned() -> None:
    (warning,) = parse(DENY_LAN + ALLOW_ALL).warnings
    assert "section 'no_lan' option 'int_addr': 192.168.1.0/24 denies no IPv6 pinhole" in warning


@pytest.mark.parametrize(
    "text",
    [
        DENY_LAN + DENY_IPV6 + ALLOW_ALL,
        DENY_LAN + ALLOW_LAN,
        ALLOW_LAN + ALLOW_ALL,
        ALLOW_ALL + DENY_LAN,
        NO_PINHOLES + DENY_LAN + ALLOW_ALL,
    ],
)
def test_who_denies_ipv4_hosts_and_opens_no_pinhole_by_that_is_not_warned(text: str) -> None:
    assert parse(text).warnings == ()


def test_the_longest_deadline_ends_before_the_http_server_gives_up() -> None:
    assert parse(f"config igdpcp main\noption soap_deadline {SOAP_DEADLINE_LIMIT}\n").warnings == ()
    assert parse(f"config igdpcp main\noption soap_deadline {SOAP_DEADLINE_LIMIT}.1\n").main == MainConfig()
    assert SOAP_DEADLINE_LIMIT + LOCAL_SECONDS < HANDLER_TIMEOUT


DRAFT01 = {
    "lifetime_cap": 65535, "unreachable_policy": "local", "remote_host": "reject", "local_conflict_check": True,
    "specific_query": "probe", "specific_other_cp": "error", "specific_inuse_error": 718, "short_error_resends": 1,
    "short_error_wait": 30, "soap_deadline": SOAP_DEADLINE_LIMIT, "description_option": False,
    "external_ip_probe": "off", "persist": "all", "prefer_failure_fallback": "fail", "announce_recovery": True,
    "third_party": "auto",
}  # fmt: skip
RFC6970 = {
    "lifetime_cap": 4294967295, "unreachable_policy": "error", "remote_host": "filter", "local_conflict_check": False,
    "specific_query": "probe", "specific_other_cp": "relay", "specific_inuse_error": 718, "short_error_resends": 2,
    "short_error_wait": 30, "soap_deadline": SOAP_DEADLINE_LIMIT, "description_option": True,
    "external_ip_probe": "demand", "persist": "all", "prefer_failure_fallback": "fail", "announce_recovery": True,
    "third_party": "auto",
}  # fmt: skip


@pytest.mark.parametrize(("profile", "values"), [("draft01", DRAFT01), ("rfc6970", RFC6970)])
def test_a_profile_sets_all_switches_and_says_what_became_of_its_deadline(
    profile: str, values: dict[str, object]
) -> None:
    read = parse(f"config igdpcp main\noption profile {profile}\n")
    assert read.main == MainConfig(profile=profile, **values)  # type: ignore[arg-type]
    (warning,) = read.warnings
    assert warning.startswith(f"section 'main' option 'profile': '{profile}' has a soap_deadline of 90 s")
    assert "using 18" in warning


def test_single_switches_stand_beside_the_profile_wherever_it_is_written() -> None:
    read = parse("config igdpcp main\noption remote_host both\noption soap_deadline 5\noption profile draft01\n")
    assert (read.main.remote_host, read.main.soap_deadline, read.main.lifetime_cap) == ("both", 5, 65535)
    assert read.warnings == ()


def test_a_bad_switch_beside_a_profile_is_what_the_profile_says() -> None:
    read = parse("config igdpcp main\noption profile draft01\noption remote_host all\noption soap_deadline 5\n")
    assert read.warnings == (
        "section 'main' option 'remote_host': all is none of reject, filter, local, both; using reject",
    )
    assert read.main.remote_host == "reject"


def test_the_default_profile_is_the_defaults() -> None:
    assert parse("config igdpcp main\noption profile default\n").main == MainConfig()


@pytest.mark.parametrize(
    ("written", "meant"),
    [("1", "startup"), ("on", "startup"), ("0", "off"), ("no", "off"), ("demand", "demand"), ("startup", "startup")],
)
def test_external_ip_probe_is_understood_as_the_boolean_that_it_was(written: str, meant: str) -> None:
    read = parse(f"config igdpcp main\noption external_ip_probe {written}\n")
    assert (read.main.external_ip_probe, read.warnings) == (meant, ())


@pytest.mark.parametrize("ports", ["80-", "-80", "90-80", "1-70000", "http", ""])
def test_wrong_port_ranges_are_reported(ports: str) -> None:
    read = parse(f"config permission p\noption action deny\noption ext_ports '{ports}'\n")
    assert (len(read.warnings) == 1) is bool(ports)


def test_devices_that_the_router_lacks_are_named() -> None:
    read = parse("config lan home\noption device br-home\nconfig upstream isp\noption device wan\n")
    assert config.interface_problems(read, lambda device: device == "br-home") == [
        "section 'isp' option 'device': this router has no interface 'wan'"
    ]
    assert config.interface_problems(parse(""), lambda device: device == "br-lan") == []


def test_a_file_that_cannot_be_read_or_parsed_names_itself(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing-here: cannot be read"):
        config.load(str(tmp_path / "nothing-here"))
    broken = tmp_path / "broken"
    broken.write_text("config lan\n\toption device 'br-lan\n")
    with pytest.raises(ConfigError, match="broken: line 2"):
        config.load(str(broken))


WEB = "config mapping 'web'\n option ext_port '443'\n option int_addr '192.168.1.10'\n"


def test_a_static_mapping_needs_no_more_than_a_port_and_a_host() -> None:
    read = parse(WEB)
    (web,) = read.mappings
    client = Endpoint(IPv4Address("192.168.1.10"), 443)
    assert web == StaticMappingConfig("web", (Protocol.TCP, Protocol.UDP), 443, client, None, "web")
    assert read.warnings == ()


def test_every_option_of_a_static_mapping_is_read() -> None:
    (web,) = parse(
        WEB + " option protocol 'udp'\n option int_port '8443'\n option remote_host '62.0.0.200'\n"
        " option description 'a b'\n option enabled '1'\n"
    ).mappings
    assert (web.protocols, web.client.port, str(web.remote_host), web.description) == (
        (Protocol.UDP,), 8443, "62.0.0.200", "a b"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("option ext_port '0'", "option 'ext_port': 0 is not a port"),
        ("option int_addr 'nas'", "option 'int_addr': nas is not an IPv4 address"),
        ("option int_addr '224.0.0.1'", "option 'int_addr': 224.0.0.1 is not the address of one other host"),
        ("option protocol 'sctp'", "option 'protocol': sctp is none of tcp, udp, both"),
        ("option remote_hots '62.0.0.200'", "option 'remote_hots': unknown option (did you mean 'remote_host'?)"),
        ("option ext_port ''", "option 'ext_port': missing"),
        ("option int_addr ''", "option 'int_addr': missing"),
    ],
)
def test_of_a_static_mapping_that_cannot_be_read_nothing_is_opened(line: str, named: str) -> None:
    read = parse(f"{WEB} {line}\nconfig mapping 'other'\n option ext_port '80'\n option int_addr '192.168.1.11'\n")
    assert [mapping.name for mapping in read.mappings] == ["other"]
    (warning,) = read.warnings
    assert warning.startswith(f"section 'web' {named}")
    assert warning.endswith("; section skipped")


def test_a_static_mapping_that_is_switched_off_is_none() -> None:
    read = parse(WEB + " option enabled '0'\n")
    assert (read.mappings, read.warnings) == ((), ())


def test_the_second_static_mapping_of_a_port_is_skipped() -> None:
    udp, other = (
        f"config mapping '{name}'\n option ext_port '443'\n option int_addr '192.168.1.11'\n" for name in "uo"
    )
    read = parse(f"{WEB} option protocol 'tcp'\n{udp} option protocol 'udp'\n{other}")
    assert [mapping.name for mapping in read.mappings] == ["web", "u"]
    assert [warning.partition(": ")[2] for warning in read.warnings] == [
        "tcp 443 is in section 'web' already; section skipped",
        "udp 443 is in section 'u' already; section skipped",
    ]


def test_ports_that_are_never_mapped_are_ports_and_ranges() -> None:
    read = parse("config igdpcp 'main'\n list never_map '22'\n list never_map '135-139'\n list never_map 'smtp'\n")
    assert read.main.never_map == (range(22, 23), range(135, 140))
    assert len(read.warnings) == 1


def test_a_permission_for_a_lan_that_is_not_served_allows_nothing_and_denies_everywhere() -> None:
    lans = "config lan 'lan'\nconfig lan 'guest'\n option device 'br-guest'\n"
    rules = "".join(
        f"config permission '{action}_{lan}'\n option action '{action}'\n option lan '{lan}'\n"
        for action in ("allow", "deny")
        for lan in ("guest", "gest")
    )
    read = parse(lans + rules)
    assert [(rule.name, rule.lan) for rule in read.permissions] == [
        ("allow_guest", "guest"), ("deny_guest", "guest"), ("deny_gest", "")
    ]  # fmt: skip
    assert [warning.partition(": ")[2] for warning in read.warnings] == [
        "no LAN 'gest' is served (did you mean 'guest'?); rule skipped",
        "no LAN 'gest' is served (did you mean 'guest'?); the rule denies any value of it",
    ]
