# SPDX-License-Identifier: Apache-2.0
"""Searches as control points send them, and who is answered with what."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from igdpcp.errors import MalformedRequest
from igdpcp.upnp.description import DeviceIdentity, udns_from, with_config_id
from igdpcp.upnp.ssdp import (
    TEXT_LIMIT,
    Presence,
    Search,
    alive,
    answers,
    byebye,
    host_port,
    parse_announcement,
    parse_answer,
    parse_search,
    search_request,
    update,
)

IDENTITY = with_config_id(DeviceIdentity("igdpcp", "1", udns_from("machine"), 7, "", "1.2.3"))
STRANGER = with_config_id(DeviceIdentity("other", "1", udns_from("another"), 7, "", "1.2.3"))
BASE = "http://192.168.1.1:5000"
V1, V2 = BASE + "/rootDesc.xml", BASE + "/v2/rootDesc.xml"
IGD = "urn:schemas-upnp-org:device:InternetGatewayDevice:"
WANIP = "urn:schemas-upnp-org:service:WANIPConnection:"
L3F = "urn:schemas-upnp-org:service:Layer3Forwarding:1"
FIREWALL = "urn:schemas-upnp-org:service:WANIPv6FirewallControl:1"
LOCATION_SIGNATURE = {"OPT": '"http://schemas.upnp.org/upnp/1/0/"; ns=01', "01-NLS": "7"}


def presence(igd_version="auto", identity=IDENTITY, base=BASE):
    return Presence(identity, base, igd_version, "239.255.255.250:1900")


def fields(message):
    lines = message.decode().split("\r\n")
    assert lines[-2:] == ["", ""]
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}


def found(target, igd_version="auto"):
    replies = [fields(reply) for reply in answers(Search(target, 2), presence(igd_version))]
    return [(reply["ST"], reply["LOCATION"]) for reply in replies]


@pytest.mark.parametrize(
    "data",
    [
        b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\n'
        b"MX: 2\r\nST: upnp:rootdevice\r\n\r\n",
        b'M-SEARCH * HTTP/1.1\r\nST:upnp:rootdevice\r\nMX:2\r\nMan:"ssdp:discover"\r\n\r\n',
        b'M-SEARCH * HTTP/1.1\r\nst: upnp:rootdevice\r\nmx: 2\r\nman: "ssdp:discover"\r\n\r\n',
        b'M-SEARCH * HTTP/1.1\r\nsT :  upnp:rootdevice  \r\n mX : 2 \r\nMAN : "ssdp:discover"\r\n\r\n',
        b"M-SEARCH * HTTP/1.1\r\nST: upnp:rootdevice\r\nMX: 2\r\nMAN: ssdp:discover\r\n\r\n",
        b"M-SEARCH * HTTP/1.1\r\nST: upnp:rootdevice\r\nMX: 2\r\nMAN: 'ssdp:discover'\r\n\r\n",
        b"M-SEARCH * HTTP/1.1\r\nST: upnp:rootdevice\r\nMX: 2\r\n\r\n",
        b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250\r\nST: upnp:rootdevice\r\nMX: 2\r\n\r\n",
        b"M-SEARCH * HTTP/1.1\r\nHOST: [FF02::C]:1900\r\nST: upnp:rootdevice\r\nMX: 2\r\n\r\n",
        b"M-SEARCH * HTTP/1.1\r\nST: upnp:rootdevice\r\nMX: 2\r\n\r\n\r\n",
        b"M-SEARCH * HTTP/1.1\r\nST: upnp:rootdevice\r\nMX: 2\r\n",
        b"M-SEARCH * HTTP/1.1\r\nMX: 2\r\nST: upnp:rootdevice",
        b"\r\nM-SEARCH * HTTP/1.1\r\nST: upnp:rootdevice\r\nMX: 2\r\n\r\n",
        b"M-SEARCH * HTTP/1.1\nMX: 2\nST: upnp:rootdevice\n\n",
        b"M-SEARCH * HTTP/1.1\r\nST: upnp:rootdevice\r\nMX: 2\r\nCPFN.UPNP.ORG: \xc3\xa9\xff\r\n\r\n",
    ],
    ids=[
        "as in the standard",
        "no space after the colon",
        "names in lower case",
        "mixed case and spaces around everything",
        "MAN without quotes",
        "MAN in single quotes",
        "no MAN",
        "HOST without port",
        "HOST of IPv6",
        "one more empty line",
        "no empty line",
        "no end of line",
        "empty line first",
        "line feeds only",
        "a name in no encoding",
    ],
)
def test_searches_are_understood_however_they_are_spelt(data):
    assert parse_search(data) == Search("upnp:rootdevice", 2)


@pytest.mark.parametrize(("mx", "value"), [(b"", None), (b"MX: 10\r\n", 10), (b"MX: 0\r\n", 0), (b"MX: x\r\n", None)])
def test_a_search_may_have_any_or_no_mx(mx, value):
    assert parse_search(b"M-SEARCH * HTTP/1.1\r\n" + mx + b"ST: ssdp:all\r\n\r\n").mx == value


def test_other_ssdp_messages_are_no_search():
    assert parse_search(alive(presence("1"))[0]) is None
    assert parse_search(answers(Search("ssdp:all", 1), presence("1"))[0]) is None
    assert parse_search(b'M-SEARCH * HTTP/1.1\r\nMAN: "ssdp:other"\r\nST: ssdp:all\r\n\r\n') is None


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"GET / HTTP/1.1\r\n\r\n", b"M-SEARCH * HTTP/1.1\r\nMX: 1\r\n\r\n", b"M-SEARCH * \r\nST: a\0b\r\n"],
)
def test_nonsense_is_malformed(data):
    with pytest.raises(MalformedRequest):
        parse_search(data)


def test_an_answer_has_every_field_of_the_standard():
    (message,) = answers(Search(IGD + "1", 2), presence(), "Sun, 22 Nov 2026 14:00:00 GMT")
    assert message.startswith(b"HTTP/1.1 200 OK\r\n")
    assert fields(message) == {
        "DATE": "Sun, 22 Nov 2026 14:00:00 GMT",
        "CACHE-CONTROL": "max-age=1800",
        "EXT": "",
        "LOCATION": V1,
        "SERVER": "Linux/5 UPnP/1.1 igdpcp/1.2.3",
        "ST": IGD + "1",
        "USN": f"{IDENTITY.udns[0]}::{IGD}1",
        "BOOTID.UPNP.ORG": "7",
        "CONFIGID.UPNP.ORG": str(IDENTITY.config_id),
        **LOCATION_SIGNATURE,
    }


@pytest.mark.parametrize(
    ("target", "location"),
    [
        (IGD + "1", V1),
        (IGD + "2", V2),
        (FIREWALL, V2),
        (WANIP + "1", V1),
        (WANIP + "2", V2),
        ("urn:schemas-upnp-org:device:WANConnectionDevice:1", V1),
        ("urn:schemas-upnp-org:device:WANConnectionDevice:2", V2),
        ("urn:schemas-upnp-org:device:WANDevice:1", V1),
        ("urn:schemas-upnp-org:device:WANDevice:2", V2),
        ("upnp:rootdevice", V1),
        (L3F, V1),
        ("urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1", V1),
        *((IDENTITY.udn(level, 1), V1) for level in range(3)),
        *((IDENTITY.udn(level, 2), V2) for level in range(3)),
    ],
)
def test_auto_chooses_the_document_by_what_is_searched_for(target, location):
    assert found(target) == [(target, location)]


@pytest.mark.parametrize("igd_version", ["auto", "1", "2"])
@pytest.mark.parametrize(
    "target",
    [
        IGD + "3",
        IGD + "0",
        IGD,
        IGD + "01",
        "urn:schemas-upnp-org:service:Layer3Forwarding:2",
        "urn:schemas-upnp-org:service:WANIPv6FirewallControl:2",
        WANIP + "3",
        "ssdp:" + IGD + "1",
        "urn:schemas-upnp-org:service:WANPPPConnection:1",
        "urn:dslforum-org:device:InternetGatewayDevice:1",
        STRANGER.udns[0],
        "urn:schemas-upnp-org:device:MediaServer:1",
    ],
)
def test_what_is_not_here_is_not_answered(target, igd_version):
    assert found(target, igd_version) == []


def test_version_1_is_not_found_as_version_2():
    assert found(IGD + "2", "1") == []
    assert found(FIREWALL, "1") == []
    assert found(IDENTITY.udn(0, 2), "1") == []


def test_version_2_answers_for_version_1_with_the_requested_type():
    assert found(IGD + "1", "2") == [(IGD + "1", V2)]
    assert found(WANIP + "1", "2") == [(WANIP + "1", V2)]


@pytest.mark.parametrize(
    ("igd_version", "number", "location", "count"), [("auto", 1, V1, 10), ("1", 1, V1, 10), ("2", 2, V2, 11)]
)
def test_everything_is_one_tree_the_gateway_first(igd_version, number, location, count):
    replies = found("ssdp:all", igd_version)
    assert len(replies) == len(set(replies)) == count
    assert replies[0] == (f"{IGD}{number}", location)
    assert {place for _, place in replies} == {location}


@pytest.mark.parametrize(
    "target", [IGD + "1", "upnp:rootdevice", IDENTITY.udns[1], "urn:schemas-upnp-org:service:WANIPConnection:2"]
)
def test_the_unique_name_is_the_devices_with_the_target_that_was_asked_for(target):
    (message,) = answers(Search(target, 2), presence())
    level = 0 if target in (IGD + "1", "upnp:rootdevice") else 1 if target == IDENTITY.udns[1] else 2
    udn = IDENTITY.udn(level, 2 if target.endswith(":2") else 1)
    assert fields(message)["USN"] == (udn if target == udn else f"{udn}::{target}")


def test_an_answer_has_no_date_while_the_clock_is_not_set():
    (message,) = answers(Search(IGD + "1", 2), presence())
    assert "DATE" not in fields(message)


def test_an_announcement_has_every_field_of_the_standard():
    messages = alive(presence())
    assert messages[1].startswith(b"NOTIFY * HTTP/1.1\r\n")
    assert fields(messages[1]) == {
        "HOST": "239.255.255.250:1900",
        "CACHE-CONTROL": "max-age=1800",
        "LOCATION": V1,
        "NT": "upnp:rootdevice",
        "NTS": "ssdp:alive",
        "SERVER": "Linux/5 UPnP/1.1 igdpcp/1.2.3",
        "USN": f"{IDENTITY.udns[0]}::upnp:rootdevice",
        "BOOTID.UPNP.ORG": "7",
        "CONFIGID.UPNP.ORG": str(IDENTITY.config_id),
        **LOCATION_SIGNATURE,
    }


def announced(igd_version):
    messages = [fields(message) for message in alive(presence(igd_version))]
    return [(message["NT"], message["LOCATION"]) for message in messages]


@pytest.mark.parametrize(("igd_version", "count"), [("1", 10), ("2", 11)])
def test_no_type_is_announced_at_two_places(igd_version, count):
    types = [target for target, _ in announced(igd_version)]
    assert len(types) == len(set(types)) == count


def test_auto_announces_one_gateway_and_who_searched_for_the_other_one_keeps_it_for_long():
    assert announced("auto") == announced("1")
    for version, seconds in ((1, 1800), (2, 86400)):
        (answer,) = answers(Search(f"{IGD}{version}", 1), presence("auto"))
        assert fields(answer)["CACHE-CONTROL"] == f"max-age={seconds}"


def test_the_device_itself_is_announced_by_its_bare_uuid():
    usns = [fields(message)["USN"] for message in alive(presence("1"))]
    assert set(IDENTITY.udns) <= set(usns)


@pytest.mark.parametrize("igd_version", ["auto", "1", "2"])
def test_goodbye_covers_everything_that_can_have_been_found(igd_version):
    announcements = [fields(message) for message in alive(presence(igd_version))]
    types = [message["NT"] for message in announcements]
    types += [target for target, _ in announced("2")] if igd_version == "auto" else []
    lower = [f"{base}:1" for base, _, version in (target.rpartition(":") for target in types) if version == "2"]
    targets = ["ssdp:all", *types, *lower]
    answered = [fields(reply) for target in targets for reply in answers(Search(target, 1), presence(igd_version))]
    gone = [fields(message) for message in byebye(presence(igd_version))]
    assert {message["USN"] for message in gone} == {message["USN"] for message in answered + announcements}
    assert len(gone) == len({message["USN"] for message in gone})
    assert {message["NTS"] for message in gone} == {"ssdp:byebye"}
    assert set(gone[0]) == {"HOST", "NT", "NTS", "USN", "BOOTID.UPNP.ORG", "CONFIGID.UPNP.ORG"}


def test_an_update_names_both_boot_instances_for_everything_that_was_announced():
    messages = [fields(message) for message in update(presence(), 8)]
    assert [message["USN"] for message in messages] == [fields(message)["USN"] for message in alive(presence())]
    assert messages[0] == {
        "HOST": "239.255.255.250:1900",
        "LOCATION": V1,
        "NT": IGD + "1",
        "NTS": "ssdp:update",
        "USN": f"{IDENTITY.udns[0]}::{IGD}1",
        "BOOTID.UPNP.ORG": "7",
        "NEXTBOOTID.UPNP.ORG": "8",
        "CONFIGID.UPNP.ORG": str(IDENTITY.config_id),
    }


@pytest.mark.parametrize(
    ("address", "text"),
    [("192.168.1.1", "192.168.1.1:5000"), ("fd00::1", "[fd00::1]:5000")],
)
def test_ipv6_addresses_in_urls_have_brackets(address, text):
    assert host_port(ip_address(address), 5000) == text


def test_our_own_search_is_one():
    assert parse_search(search_request(IGD + "1", 1)) == Search(IGD + "1", 1)


def test_another_gateway_is_recognised_in_answers_and_announcements():
    (answer,) = answers(Search(IGD + "1", 1), presence(identity=STRANGER))
    for sighting in (parse_answer(answer), parse_announcement(alive(presence(identity=STRANGER))[0])):
        assert sighting.is_gateway
        assert sighting.location == V1
        assert sighting.server.endswith("igdpcp/1.2.3")
        assert not sighting.belongs_to(IDENTITY)
        assert sighting.belongs_to(STRANGER)


def test_what_a_stranger_says_is_cut_and_printable():
    data = b"HTTP/1.1 200 OK\r\nST: x\r\nUSN: uuid:1::x\r\nSERVER: a\x1b[2J\r\nLOCATION: " + b"l" * 900 + b"\r\n\r\n"
    sighting = parse_answer(data)
    assert sighting.server == "a[2J"
    assert len(sighting.location) == TEXT_LIMIT


def test_our_own_version_2_devices_are_ours():
    (answer,) = answers(Search(IGD + "2", 1), presence())
    assert parse_answer(answer).belongs_to(IDENTITY)


def test_other_devices_and_goodbyes_are_no_gateway():
    media = b"HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:MediaServer:1\r\nUSN: uuid:1::x\r\n\r\n"
    assert not parse_answer(media).is_gateway
    assert parse_announcement(byebye(presence(identity=STRANGER))[0]) is None
    assert parse_answer(media.replace(b"200 OK", b"404 No")) is None
    assert parse_answer(b"\xff\xfe") is None
