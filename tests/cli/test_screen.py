# SPDX-License-Identifier: Apache-2.0
"""What a person reads: the status screen and the table of mappings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igdpcp import screen
from igdpcp.model import Activation, Mode
from tests.cli.daemon_stub import mapping, pinhole, status


def fits(text: str) -> bool:
    lines = text.split("\n")
    return len(lines) <= screen.HEIGHT and all(len(line) <= screen.WIDTH for line in lines)


def field(text: str, label: str) -> str:
    """The value behind a label, with its following lines."""
    lines = text.split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{label} "))
    end = start + 1
    while end < len(lines) and lines[end].startswith(" "):
        end += 1
    return " ".join(line[screen.LABEL_WIDTH :] for line in lines[start:end])


def test_a_healthy_router_is_drawn_from_the_lan_to_the_internet() -> None:
    text = screen.status_screen(status())
    assert text.split("\n")[2:5] == [
        "  LAN               router (NAT)    carrier (NAT)    internet",
        "  192.168.1.0/24 -> 100.64.12.34 -> PCP server    -> 62.0.0.1",
        "  br-lan            wan",
    ]
    assert field(text, "Upstream") == "carrier, pcp 100.64.12.1: answers, for 2 h 13 min (answered ANNOUNCE)"
    assert field(text, "Address") == "62.0.0.1: learnt from the carrier"
    assert field(text, "Mappings") == "12 active (limit 5000)"
    assert field(text, "IGD") == "advertised at http://192.168.1.1:5000/rootDesc.xml"
    assert field(text, "PCP") == "PCP, NAT-PMP for LAN hosts at 192.168.1.1"
    assert field(text, "Errors") == "none"
    assert field(text, "To do") == "nothing"


def test_where_lan_hosts_cannot_ask_in_pcp_nothing_is_said_of_it() -> None:
    assert "\nPCP " not in screen.status_screen(status(pcp_server={"languages": []}))
    nowhere = screen.status_screen(status(pcp_server={"languages": ["pcp"], "addresses": []}))
    assert field(nowhere, "PCP") == "PCP for LAN hosts at no address"


def test_a_server_that_was_not_configured_is_shown_with_who_named_it() -> None:
    text = screen.status_screen(status(upstream={"origin": "told by DHCP (option 158)"}))
    assert "pcp 100.64.12.1 (told by DHCP (option 158)): answers" in text


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        (Mode.CASCADED, "cascaded: two NATs; the carrier opens a port, this router forwards it."),
        (Mode.ROUTED, "routed: one NAT; the carrier opens a port, this router lets it in."),
        (Mode.LOCAL, "local: there is no PCP server; ports open on this router only."),
    ],
)
def test_each_mode_is_a_plain_sentence(mode: Mode, sentence: str) -> None:
    assert field(screen.status_screen(status(mode=mode.value)), "Mode") == sentence


def test_a_router_without_nat_and_one_without_carrier_are_drawn_as_such() -> None:
    assert "router (no NAT)" in screen.status_screen(status(mode="routed"))
    own = screen.status_screen(status(mode="local", wan={"address": "62.0.0.1"}))
    assert "carrier (NAT)" not in own
    behind = screen.status_screen(status(mode="local", external_address=None))
    assert "carrier (NAT)" in behind
    assert "no address" in behind


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"activation": {"state": "no_wan"}}, "ifstatus wan"),
        ({"activation": {"state": "no_server"}}, "list server"),
        ({"activation": {"state": "lost"}}, "whether its PCP server runs"),
        ({"activation": {"state": "lost", "usable": False}}, "takes PCP version 2"),
        ({"activation": {"state": "active", "usable": False}}, "takes PCP version 2"),
        ({"firewall": {"active": False, "problem": "chain igdpcp_dstnat is missing"}}, "/etc/init.d/firewall restart"),
        ({"firewall": {"active": True, "problem": "chain x drops forwarded packets"}}, "nft list ruleset"),
        ({"firewall": {"compared": {"missing": 1, "surplus": 0, "seconds_ago": 1}}}, "igdpcp-cli status --repair"),
        ({"port_conflicts": ["tcp 80, mapped to 192.168.1.50:80, is also used by b"]}, "another port"),
        ({"igd": {"advertising": False, "conflict": "miniupnpd runs"}}, "option 'force'"),
        ({"igd": {"advertising": True, "conflict": "192.168.2.60 (br-guest)"}}, "option 'force'"),
        ({"warnings": ["section 'main' option 'x': unknown option", "b"]}, "Correct /etc/config/igdpcp (1 more)"),
    ],
)
def test_whatever_is_wrong_comes_with_what_to_do(changes: dict[str, Any], advice: str) -> None:
    text = screen.status_screen(status(**changes))
    assert advice in field(text, "To do")
    assert fits(text)


def test_where_another_gateway_keeps_us_silent_is_told_beside_where_we_are_found() -> None:
    text = screen.status_screen(status(igd={"conflict": "192.168.2.60 (br-guest)"}))
    found = "advertised at http://192.168.1.1:5000/rootDesc.xml"
    assert field(text, "IGD") == f"{found}, but not beside 192.168.2.60 (br-guest)"


@pytest.mark.parametrize(
    ("lans", "drawn"),
    [
        ([{"device": "br-lan", "addresses": ["192.168.1.1/24", "2600::1/64"]}] * 3, "192.168.1.0/24 +2 -> "),
        ([{"device": "br-lan", "addresses": ["2600:1::1/64"]}], "2600:1::/64 -> "),
        ([], "none"),
    ],
)
def test_lans_are_shown_by_the_network_of_the_first_and_their_number(lans: list[dict[str, Any]], drawn: str) -> None:
    assert drawn in screen.status_screen(status(lans=lans)).split("\n")[3] + "    -> "


@pytest.mark.parametrize(
    ("missing", "surplus", "shown"),
    [
        (0, 0, "kernel agrees with the table (1 min 5 s ago)"),
        (3, 1, "3 rules missing, 1 unknown: igdpcp-cli status --repair (1 min 5 s ago)"),
        (1, 0, "1 rule missing: igdpcp-cli status --repair (1 min 5 s ago)"),
        (0, 2, "2 rules unknown: igdpcp-cli status --repair (1 min 5 s ago)"),
    ],
)
def test_whether_kernel_and_table_agree_is_told_once_they_were_compared(missing: int, surplus: int, shown: str) -> None:
    compared = {"missing": missing, "surplus": surplus, "seconds_ago": 65}
    assert field(screen.status_screen(status(firewall={"compared": compared})), "Firewall") == shown
    assert field(screen.status_screen(status()), "Firewall") == "rules in place"


@pytest.mark.parametrize(
    ("found", "left", "words"),
    [
        ((0, 0), (0, 0), "The kernel agrees with the table."),
        ((3, 1), (0, 0), "3 rules missing, 1 unknown; all were laid anew. The kernel agrees with the table."),
        (None, (0, 0), "The rules could not be read; all were laid anew. The kernel agrees with the table."),
        ((0, 1), (0, 1), "1 rule unknown; all were laid anew. Still: 1 rule unknown; somebody else changes them, "
                         "see 'logread -e igdpcp'."),
    ],
)  # fmt: skip
def test_a_repair_is_told_in_words(found: tuple[int, int] | None, left: tuple[int, int], words: str) -> None:
    def counts(pair: tuple[int, int] | None) -> dict[str, int] | None:
        return pair and {"missing": pair[0], "surplus": pair[1]}

    assert screen.repaired({"found": counts(found), "left": counts(left)}) == words


def test_pinholes_are_counted_where_there_are_any() -> None:
    assert field(screen.status_screen(status(pinholes={"open": 2})), "Pinholes") == "2 open for IPv6 (limit 1000)"
    assert "Pinholes" not in screen.status_screen(status())


def test_the_first_mapping_without_its_port_is_named_and_the_others_counted() -> None:
    conflicts = ["tcp 80, mapped to 192.168.1.50:80, is also used by redirect 'Web' of /etc/config/firewall", "b", "c"]
    shown = field(screen.status_screen(status(port_conflicts=conflicts)), "Ports")
    assert shown == f"{conflicts[0]} (and 2 more)"
    assert "Ports" not in screen.status_screen(status())


def test_no_carrier_configured_is_nothing_to_repair() -> None:
    text = screen.status_screen(status(mode="local", activation={"state": "no_server"}, upstream={"type": "none"}))
    assert field(text, "To do") == "nothing"


def test_counts_tell_what_is_open_on_the_router_only_and_what_waits() -> None:
    text = screen.status_screen(status(mappings={"local_only": 2, "pending": 1}))
    assert field(text, "Mappings") == "12 active (limit 5000), 2 local_only (not at the carrier), 1 waiting"


def test_static_mappings_are_counted_and_the_first_that_is_not_open_says_why() -> None:
    problem = "mapping 'web' (tcp 443) is not open: port is used by the router itself: TCP 443"
    text = screen.status_screen(status(static={"wanted": 2, "open": 1, "problems": [problem]}))
    assert "1 of 2 static" in field(text, "Mappings")
    assert f"Static {problem}" in field(text, "To do")


def test_the_newest_errors_come_first() -> None:
    errors = [{"seconds_ago": age, "text": f"e{age}"} for age in (50, 40, 30, 2)]
    shown = field(screen.status_screen(status(errors=errors)), "Errors")
    assert shown == "2 s ago: e2 30 s ago: e30 40 s ago: e40"


def test_an_error_gets_a_second_line_only_while_there_is_room() -> None:
    text = "cannot_start reason=" + " ".join(["because"] * 12)
    errors = [{"seconds_ago": 2, "text": f"event={text}"}] * 3
    assert field(screen.status_screen(status(errors=errors)), "Errors").count(text) == 3
    crowded = screen.status_screen(
        status(
            errors=errors,
            activation={"reason": "v " * 80},
            external_address_reason="w " * 80,
            igd={"advertising": False, "conflict": "x " * 80},
            firewall={"active": False, "problem": "z " * 80},
        )
    )
    assert fits(crowded)
    assert field(crowded, "Errors").count("...") == 3


def test_an_operators_mapping_is_told_from_a_hosts() -> None:
    assert "operator" in screen.mappings_table([mapping(requester="", owner="operator")])


@given(st.text(max_size=300), st.sampled_from(Mode), st.sampled_from(Activation))
def test_the_screen_never_outgrows_itself_and_is_printable(noise: str, mode: Mode, activation: Activation) -> None:
    text = screen.status_screen(
        status(
            mode=mode.value,
            activation={"state": activation.value, "reason": noise, "since_seconds": None},
            external_address_reason=noise,
            external_address=None,
            wan={"device": "wan", "address": None},
            lans=[{"device": noise, "addresses": ["192.168.100.254/23"]}] * 3,
            igd={"advertising": False, "conflict": noise},
            pinholes={"open": 1000},
            port_conflicts=[noise] * 3,
            static={"wanted": 65535, "open": 65534, "problems": [noise] * 3},
            firewall={"active": False, "problem": noise},
            errors=[{"seconds_ago": 3, "text": noise}] * 9,
            warnings=[noise] * 9,
        )
    )
    assert fits(text)
    assert text.replace("\n", "").isprintable()


def test_mappings_stand_in_columns_and_empty_columns_are_left_out() -> None:
    text = screen.mappings_table(
        [mapping(), mapping(protocol="udp", external_port=3, public_port=3, lease_left=90, local_only=True)]
    )
    assert text.split("\n") == [
        "PROTO  EXTERNAL       CLIENT           LEASE LEFT     STATE               ASKED BY      DESCRIPTION",
        "tcp    62.0.0.1:8080  192.168.1.50:80  until deleted  active              192.168.1.50  web",
        "udp    62.0.0.1:3     192.168.1.50:80  1 min 30 s     active, local_only  192.168.1.50  web",
    ]
    assert screen.mappings_table([]) == "no mappings"


def test_pinholes_stand_beside_mappings_with_their_number() -> None:
    text = screen.mappings_table(
        [mapping(), pinhole(), pinhole(id="pinhole-18", remote_host="2600:9::9", remote_port=53)]
    )
    assert [line.split()[:5] for line in text.split("\n")] == [
        ["PINHOLE", "PROTO", "EXTERNAL", "CLIENT", "FROM"],
        ["tcp", "62.0.0.1:8080", "192.168.1.50:80", "until", "deleted"],
        ["17", "tcp", "[2600:1::50]:7000", "[2600:1::50]:7000", "10"],
        ["18", "tcp", "[2600:1::50]:7000", "[2600:1::50]:7000", "[2600:9::9]:53"],
    ]
    assert "*:53" in screen.mappings_table([pinhole(remote_port=53)])


@pytest.mark.parametrize(
    ("owner", "shared_with", "shown"),
    [
        ("upnp2", "", "192.168.1.50 web"),
        ("natpmp", "", "192.168.1.50 (natpmp) web"),
        ("upnp1", "pcp", "192.168.1.50 (upnp1, pcp) web"),
    ],
)
def test_who_asked_in_another_language_than_upnp_is_told(owner: str, shared_with: str, shown: str) -> None:
    title, row = screen.mappings_table([mapping(owner=owner, shared_with=shared_with)]).split("\n")
    assert " ".join(row[title.index("ASKED BY") :].split()) == shown


def test_a_remote_host_and_an_agent_get_their_columns() -> None:
    header = screen.mappings_table([mapping(remote_host="62.0.0.9", agent="Transmission")]).split("\n")[0]
    assert "FROM" in header
    assert "AGENT" in header


@given(st.text())
def test_text_of_lan_hosts_stays_on_its_line_and_harmless(text: str) -> None:
    table = screen.mappings_table([mapping(description=text, agent=text)])
    assert len(table.split("\n")) == 2
    assert all(line.isprintable() for line in table.split("\n"))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (90061, "1 d 1 h"), (None, "unknown time")],
)
def test_durations_have_two_units(seconds: int | None, words: str) -> None:
    assert screen.duration(seconds) == words


def test_a_mapping_at_another_public_port_shows_that_and_the_one_that_control_points_see() -> None:
    alias = mapping(external_port=8080, public_port=20100)
    title, row, other = screen.mappings_table([alias, mapping()]).splitlines()
    assert title.split()[:4] == ["PROTO", "EXTERNAL", "SHOWN", "AS"]
    assert row.split()[:4] == ["tcp", "62.0.0.1:20100", "8080", "192.168.1.50:80"]
    assert other.split()[:3] == ["tcp", "62.0.0.1:8080", "192.168.1.50:80"]
    assert "62.0.0.1:20100" in screen.added(alias)
    assert "shown port 8080" in screen.added(alias)
    assert "SHOWN AS" not in screen.mappings_table([mapping()])


def test_the_status_counts_the_mappings_at_another_public_port() -> None:
    counts = {"active": 3, "local_only": 0, "pending": 0, "aliased": 2, "limit": 5000}
    assert "2 at another public port than shown" in field(screen.status_screen(status(mappings=counts)), "Mappings")
    assert "public port" not in screen.status_screen(status())
