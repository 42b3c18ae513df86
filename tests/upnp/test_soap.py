# SPDX-License-Identifier: Apache-2.0
"""Control requests as control points send them, and the answers as they must look on the wire."""

from __future__ import annotations

import time
from xml.etree import ElementTree

import pytest

from igdpcp.errors import MalformedRequest, UpnpFault
from igdpcp.upnp.envelope import DEPTH_LIMIT, NAME_LIMIT, VALUE_LIMIT
from igdpcp.upnp.http import BODY_LIMIT
from igdpcp.upnp.services import service_by_type
from igdpcp.upnp.soap import (
    DESCRIPTION_LIMIT,
    Cdata,
    VariableQuery,
    encode_fault,
    encode_response,
    encode_variable,
    may_come_from_a_page,
    names_an_action,
    parse_control,
    printable,
    soapaction_of,
)

WANIP = "urn:schemas-upnp-org:service:WANIPConnection:"
FIREWALL = "WANIPv6FirewallControl"
CONTROL = "urn:schemas-upnp-org:control-1-0"
ARGUMENTS = {
    "NewRemoteHost": "",
    "NewExternalPort": "40000",
    "NewProtocol": "UDP",
    "NewInternalPort": "40001",
    "NewInternalClient": "192.168.1.50",
    "NewEnabled": "1",
    "NewPortMappingDescription": "game",
    "NewLeaseDuration": "3600",
}


def body(arguments, action="AddPortMapping", urn=WANIP + "1"):
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in arguments.items())
    return (
        '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:{action} xmlns:u="{urn}">{inner}</u:{action}></s:Body></s:Envelope>'
    ).encode()


def add(version=1, action="AddPortMapping", without=(), **changes):
    arguments = {name: value for name, value in (ARGUMENTS | changes).items() if name not in without}
    return parse_control(f'"{WANIP}{version}#{action}"', body(arguments, action, f"{WANIP}{version}"))


def test_add_port_mapping_is_typed_by_its_declaration():
    call = add()
    assert (call.service.type, call.version, call.action.name) == ("WANIPConnection", 1, "AddPortMapping")
    assert call.arguments == {
        "NewRemoteHost": "",
        "NewExternalPort": 40000,
        "NewProtocol": "UDP",
        "NewInternalPort": 40001,
        "NewInternalClient": "192.168.1.50",
        "NewEnabled": True,
        "NewPortMappingDescription": "game",
        "NewLeaseDuration": 3600,
    }


def test_absent_optional_arguments_take_their_defaults():
    optional = ("NewRemoteHost", "NewPortMappingDescription", "NewLeaseDuration", "NewEnabled")
    arguments = add(without=optional).arguments
    assert [arguments[name] for name in optional] == ["", "", 0, True]


@pytest.mark.parametrize("text", ["", " \n"])
def test_optional_arguments_that_are_left_empty_take_their_defaults(text):
    arguments = add(NewLeaseDuration=text, NewEnabled=text).arguments
    assert (arguments["NewLeaseDuration"], arguments["NewEnabled"]) == (0, True)


@pytest.mark.parametrize("name", ["NewExternalPort", "NewProtocol", "NewInternalPort", "NewInternalClient"])
def test_absent_required_argument_is_402(name):
    with pytest.raises(UpnpFault) as fault:
        add(without=(name,))
    assert fault.value.code == 402


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("true", True), ("YES", True), ("0", False), ("False", False), (" no ", False)],
)
def test_booleans_in_every_spelling(text, value):
    assert add(NewEnabled=text).arguments["NewEnabled"] is value


@pytest.mark.parametrize("text", ["80", " 80\n", "+80", "0080"])
def test_integers_in_every_spelling(text):
    assert add(NewExternalPort=text).arguments["NewExternalPort"] == 80


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("NewExternalPort", "65536"),
        ("NewExternalPort", "-1"),
        ("NewExternalPort", ""),
        ("NewExternalPort", "0x50"),
        ("NewExternalPort", "8_0"),
        ("NewExternalPort", "٨٠"),
        ("NewExternalPort", "80.0"),
        ("NewExternalPort", "9" * 4000),
        ("NewInternalPort", "65536"),
        ("NewLeaseDuration", "4294967296"),
        ("NewEnabled", "2"),
    ],
)
def test_values_of_the_wrong_type_are_402(name, text):
    with pytest.raises(UpnpFault) as fault:
        add(**{name: text})
    assert fault.value.code == 402


def test_values_that_have_a_fault_code_of_their_own_pass():
    arguments = add(version=2, NewInternalPort="0", NewExternalPort="0", NewLeaseDuration="4294967295").arguments
    assert (arguments["NewInternalPort"], arguments["NewExternalPort"]) == (0, 0)
    assert arguments["NewLeaseDuration"] == 4294967295


@pytest.mark.parametrize(("version", "code"), [(1, 402), (2, 601)])
def test_unknown_protocol_is_402_in_version_1_and_601_in_version_2(version, code):
    with pytest.raises(UpnpFault) as fault:
        add(version=version, NewProtocol="SCTP")
    assert fault.value.code == code


def test_protocol_is_accepted_in_any_case():
    assert add(NewProtocol="udp").arguments["NewProtocol"] == "UDP"


@pytest.mark.parametrize("text", ["*", "0.0.0.0", "255.255.255.255", "", " "])
def test_every_spelling_of_any_remote_host_is_the_empty_one(text):
    assert add(NewRemoteHost=text).arguments["NewRemoteHost"] == ""


def test_a_remote_host_is_kept():
    assert add(NewRemoteHost=" 198.51.100.9 ").arguments["NewRemoteHost"] == "198.51.100.9"


def test_descriptions_come_back_unchanged():
    text = "Transmission at 51413 é中 " + "x" * 80
    assert add(NewPortMappingDescription=text).arguments["NewPortMappingDescription"] == text


def test_lone_surrogates_are_not_printable_and_spaces_of_all_kinds_are():
    assert printable("a\ud800b\u3000c\xa0d") == "ab\u3000c\xa0d"


def test_long_descriptions_are_cut_on_a_character():
    text = add(NewPortMappingDescription="中" * (DESCRIPTION_LIMIT + 1)).arguments["NewPortMappingDescription"]
    assert text == "中" * DESCRIPTION_LIMIT


@pytest.mark.parametrize(
    "text", ["ga\nme", "ga\tme", "ga\x01me", "ga&#10;me", "ga\x85me", "ga\u2028me", "ga&#x2029;me", "ga\u202eme"]
)
def test_what_ends_a_line_or_cannot_be_seen_leaves_descriptions(text):
    assert add(NewPortMappingDescription=text).arguments["NewPortMappingDescription"] == "game"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("R&D", "R&D"),
        ("a && b &x; &", "a && b &x; &"),
        ("R&D &lt;1&gt; &#65;", "R&D <1> A"),
        ("R&amp;D", "R&D"),
    ],
)
def test_ampersands_need_not_be_escaped(text, value):
    assert add(NewPortMappingDescription=text).arguments["NewPortMappingDescription"] == value


@pytest.mark.parametrize(
    "text",
    ["a &#x1; b", "a &#0; b", "a &#xD800; b", "a &#57343; b", "a &#xFFFE; b", "a &#x110000; b", "a &#1;&#9999999; b"],
)
def test_a_reference_to_what_is_no_character_is_left_out(text):
    assert add(NewPortMappingDescription=text).arguments["NewPortMappingDescription"] == "a  b"


def test_a_reference_to_no_character_is_left_out_of_what_looks_like_a_tag_too():
    assert add(NewPortMappingDescription="<b>&#x1;").arguments["NewPortMappingDescription"] == "<b>"


def test_a_reference_that_is_left_out_makes_no_other_one_and_no_tag():
    text = "&am&#1;p; <&#1;b> &#&#1;65; &#x10FFFF;&#xD7FF;&#xE000;&#32;"
    mended = add(NewPortMappingDescription=text).arguments["NewPortMappingDescription"]
    assert mended == "&amp; <b> &#65; \U0010ffff\ud7ff\ue000 "


@pytest.mark.parametrize("text", ["a < b", "<3", "x<", "<<1", "1<2&3"])
def test_a_bracket_that_opens_no_tag_need_not_be_escaped(text):
    assert add(NewPortMappingDescription=text).arguments["NewPortMappingDescription"] == text


@pytest.mark.parametrize(
    "text",
    [
        "x <foo",
        "<foo> bar",
        "a<b>c",
        "a </b",
        "a <!-",
        "a <!--",
        "a <?",
        "a]]>b",
        "<![CDATA[a",
        "R&D <b>",
        "</",
        "<a>" * 14,
        "<" + "a" * NAME_LIMIT + "a>",
    ],
)
def test_a_description_that_looks_like_a_tag_is_a_description_like_any_other(text):
    assert add(NewPortMappingDescription=text).arguments == add().arguments | {"NewPortMappingDescription": text}


def test_what_is_in_order_beside_such_a_description_stays_so():
    request = body(ARGUMENTS | {"NewPortMappingDescription": "<b>", "NewProtocol": "<![CDATA[tcp]]>"}).decode()
    request = request.replace("<NewRemoteHost></NewRemoteHost>", "<NewRemoteHost />\n<NewFuture/>")
    request = request.replace("<NewEnabled>1</NewEnabled>", '<NewEnabled a="1&amp;">&#49;</NewEnabled >')
    arguments = parse_control(None, request.encode()).arguments
    assert arguments == add(NewPortMappingDescription="&lt;b>", NewProtocol="TCP").arguments


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("</s:Body></s:Envelope>", ""), 402),
        (("<NewEnabled>", "<NewEnabled"), 402),
        (("<NewProtocol>", "<NewProtocol>TCP</NewProtocol><NewProtocol>"), 402),
        (("<b>", "<b>" + "x" * VALUE_LIMIT), 605),
    ],
)
def test_what_is_wrong_beside_such_a_description_is_a_fault_and_no_malformed_request(change, code):
    request = body(ARGUMENTS | {"NewPortMappingDescription": "<b>"}).decode().replace(*change)
    with pytest.raises(UpnpFault) as fault:
        parse_control(f"{WANIP}1#AddPortMapping", request.encode())
    assert fault.value.code == code


def test_tags_without_end_are_cut_apart_in_no_time():
    deep = body(ARGUMENTS | {"NewPortMappingDescription": "<b> </c " * 100}).decode()
    for filler in ("<b>", "<NewEnabled>", "<Body>", "<s:Body ", "</u:AddPortMapping"):
        for place in ("<u:AddPortMapping", "<NewProtocol>", "</u:AddPortMapping>"):
            request = deep.replace(place, filler * (BODY_LIMIT // len(filler)) + place)
            began = time.process_time()
            with pytest.raises((MalformedRequest, UpnpFault)):
                parse_control(None, request.encode())
            assert time.process_time() - began < 0.2


def test_latin_1_is_understood():
    request = body(ARGUMENTS | {"NewPortMappingDescription": "caf\xe9"}).decode().encode("latin-1")
    assert parse_control(None, request).arguments["NewPortMappingDescription"] == "café"


def test_arguments_come_in_any_order_and_unknown_ones_are_ignored():
    request = body(dict(reversed(ARGUMENTS.items())) | {"NewColour": "red"})
    assert parse_control(None, request) == add()


def test_an_argument_given_twice_is_402():
    request = body(ARGUMENTS).replace(b"<NewProtocol>", b"<NewProtocol>TCP</NewProtocol><NewProtocol>")
    with pytest.raises(UpnpFault) as fault:
        parse_control(None, request)
    assert fault.value.code == 402


def test_an_element_inside_an_argument_is_402():
    with pytest.raises(UpnpFault) as fault:
        add(NewPortMappingDescription="a<b/>c")
    assert fault.value.code == 402


@pytest.mark.parametrize("quote", ['"', "'", "", ' "'])
def test_soapaction_is_accepted_with_any_quotes(quote):
    call = parse_control(f"{quote}{WANIP}1#AddPortMapping{quote}", body(ARGUMENTS))
    assert call.action.name == "AddPortMapping"


@pytest.mark.parametrize("soapaction", [None, "", '""'])
def test_without_soapaction_the_body_decides(soapaction):
    call = parse_control(soapaction, body(ARGUMENTS, urn=WANIP + "2"))
    assert (call.urn, call.version) == (WANIP + "2", 2)


def test_the_version_is_that_of_soapaction():
    assert parse_control(f"{WANIP}2#AddPortMapping", body(ARGUMENTS, urn=WANIP + "1")).version == 2


def test_any_prefix_a_byte_order_mark_white_space_and_a_trailing_zero_are_accepted():
    request = body(ARGUMENTS).replace(b"s:", b"SOAP-ENV:").replace(b":s=", b":SOAP-ENV=")
    request = request.replace(b"u:", b"m:").replace(b":u=", b":m=").replace(WANIP.replace("u", "m", 1).encode(), b"?")
    assert parse_control(f"{WANIP}1#AddPortMapping", b"\xef\xbb\xbf\r\n " + request + b"\r\n\0") == add()


def test_a_default_namespace_is_accepted():
    request = body(ARGUMENTS).replace(b"<u:", b"<").replace(b"</u:", b"</").replace(b"xmlns:u", b"xmlns")
    assert parse_control(None, request) == add()


def test_a_namespace_ends_with_the_element_that_declares_it():
    request = body(ARGUMENTS).replace(b' xmlns:u="' + WANIP.encode() + b'1"', b"")
    request = request.replace(b"<s:Envelope", f'<s:Envelope xmlns:u="{WANIP}2"'.encode())
    request = request.replace(b"<s:Body>", f'<s:Header xmlns:u="{WANIP}1"/><s:Body>'.encode())
    assert parse_control(None, request).version == 2


def test_a_soap_header_is_skipped():
    request = body(ARGUMENTS).replace(
        b"<s:Body>", b"<s:Header><x><NewProtocol>TCP</NewProtocol></x></s:Header><s:Body>"
    )
    assert parse_control(None, request) == add()


def test_what_follows_the_action_is_skipped():
    request = body(ARGUMENTS).replace(
        b"</s:Body>", b"<x><NewColour>red</NewColour><NewProtocol>TCP</NewProtocol></x></s:Body>"
    )
    assert parse_control(None, request) == add()


@pytest.mark.parametrize(
    "soapaction",
    [
        f"{WANIP}1#AddAnyPortMapping",
        f"{WANIP}1#NoSuchAction",
        f"{WANIP}1#DeletePortMapping",
        f"{WANIP}3#AddPortMapping",
        f"{WANIP}0#AddPortMapping",
        "urn:schemas-upnp-org:service:WANCommonInterfaceConfig:2#GetTotalBytesSent",
        "urn:schemas-upnp-org:service:WANPPPConnection:1#AddPortMapping",
        "urn:dslforum-org:service:WANIPConnection:1#AddPortMapping",
        "AddPortMapping",
        "#",
    ],
)
def test_what_no_service_has_is_401(soapaction):
    with pytest.raises(UpnpFault) as fault:
        parse_control(soapaction, body(ARGUMENTS))
    assert fault.value.code == 401


@pytest.mark.parametrize(
    "action",
    [
        "WANIPConnection:1#RequestTermination",
        "WANIPConnection:2#GetAutoDisconnectTime",
        "WANIPConnection:2#SetWarnDisconnectDelay",
        "WANCommonInterfaceConfig:1#SetEnabledForInternet",
    ],
)
def test_an_optional_action_of_the_standard_that_is_not_offered_is_602(action):
    with pytest.raises(UpnpFault) as fault:
        parse_control(f"{WANIP.rpartition('WANIP')[0]}{action}", body({}, action.partition("#")[2]))
    assert fault.value.code == 602


def test_the_number_of_entries_can_be_asked_for_as_miniupnpc_does():
    name = "GetPortMappingNumberOfEntries"
    call = parse_control(f"{WANIP}1#{name}", body({}, name))
    assert b"<NewPortMappingNumberOfEntries>7</" in encode_response(call, {"NewPortMappingNumberOfEntries": 7})


@pytest.mark.parametrize(("text", "number"), [("6", 6), ("TCP", 6), ("udp", 17), (" UDP ", 17), ("65535", 65535)])
def test_a_pinhole_names_its_protocol_by_number_or_by_name(text, number):
    arguments = {"InternalClient": "2600::1", "InternalPort": "1", "Protocol": text, "LeaseTime": "60"}
    call = parse_control(None, body(arguments, "AddPinhole", WANIP.replace("WANIPConnection", FIREWALL) + "1"))
    assert call.arguments["Protocol"] == number
    assert (call.arguments["RemoteHost"], call.arguments["RemotePort"]) == ("", 0)


@pytest.mark.parametrize("soapaction", [f'"{CONTROL}#QueryStateVariable"', f"{CONTROL}#QueryStateVariable", None])
def test_a_state_variable_is_asked_for_by_name(soapaction):
    request = body({"u:varName": " ConnectionStatus\n"}, "QueryStateVariable", CONTROL)
    assert parse_control(soapaction, request) == VariableQuery("ConnectionStatus")


def test_a_query_without_a_name_is_402():
    with pytest.raises(UpnpFault) as fault:
        parse_control(f"{CONTROL}#QueryStateVariable", body({}, "QueryStateVariable", CONTROL))
    assert fault.value.code == 402


def test_the_answer_to_a_query_holds_the_value_in_an_element_without_namespace():
    answer = ElementTree.fromstring(encode_variable("a<b"))[0][0]
    assert answer.tag == f"{{{CONTROL}}}QueryStateVariableResponse"
    assert [(element.tag, element.text) for element in answer] == [("return", "a<b")]


def test_a_document_in_a_result_is_not_escaped():
    call = parse_control(None, body({}, "GetExternalIPAddress"))
    response = encode_response(call, {"NewExternalIPAddress": Cdata("<a>&amp;</a>")})
    assert b"<NewExternalIPAddress><![CDATA[<a>&amp;</a>]]></NewExternalIPAddress>" in response


@pytest.mark.parametrize(
    ("soapaction", "ours"),
    [
        (f'"{WANIP}1#AddPortMapping"', True),
        (f"{WANIP}2#NoSuchAction", True),
        (f'"{CONTROL}#QueryStateVariable"', True),
        ("urn:dslforum-org:service:WANIPConnection:1#AddPortMapping", False),
        ("urn:schemas-upnp-org:service:ContentDirectory:1#Browse", False),
        ("", False),
        (None, False),
    ],
)
def test_a_soapaction_tells_what_is_meant_for_a_gateway(soapaction, ours):
    assert names_an_action(soapaction) is ours


@pytest.mark.parametrize(
    "request_body",
    [
        b"",
        b"not xml",
        b"<a/>",
        b"<s:Envelope><s:Body></s:Body></s:Envelope>",
        b'<!DOCTYPE a [<!ENTITY b "c">]>' + body(ARGUMENTS)[21:],
        b'<!DOCTYPE Envelope SYSTEM "http://192.0.2.1/x.dtd">' + body(ARGUMENTS)[21:],
    ],
)
def test_what_is_no_soap_request_is_malformed(request_body):
    with pytest.raises(MalformedRequest) as error:
        parse_control(f"{WANIP}1#AddPortMapping", request_body)
    assert error.value.status == 400


@pytest.mark.parametrize(
    "request_body", [b"<Envelope><Body><AddPortMapping>", body(ARGUMENTS).decode().encode("utf-16")]
)
def test_an_action_that_is_named_gets_a_fault_however_broken_its_request_is(request_body):
    with pytest.raises(UpnpFault) as fault:
        parse_control(f"{WANIP}1#AddPortMapping", request_body)
    assert fault.value.code == 402


def test_entities_are_never_expanded():
    request = b'<!DOCTYPE a [<!ENTITY b "TCP">]>' + body(ARGUMENTS | {"NewProtocol": "&b;"})[21:]
    with pytest.raises(MalformedRequest):
        parse_control(None, request)


def test_a_declared_encoding_is_not_looked_up():
    request = body(ARGUMENTS).replace(b'version="1.0"', b'version="1.0" encoding="idna"')
    assert parse_control(None, request) == add()


def test_nesting_names_and_values_have_ceilings():
    with pytest.raises(MalformedRequest):
        parse_control(None, b"<a>" * (DEPTH_LIMIT + 1))
    with pytest.raises(MalformedRequest):
        parse_control(None, body(ARGUMENTS | {"N" * (NAME_LIMIT + 1): "1"}))
    deep = "<a>" * DEPTH_LIMIT + "</a>" * DEPTH_LIMIT
    with pytest.raises(MalformedRequest):
        parse_control(None, body(ARGUMENTS | {"NewColour": deep}))
    with pytest.raises(MalformedRequest):
        parse_control(None, body(ARGUMENTS).replace(b"<s:Body>", f"<s:Header>{deep}</s:Header><s:Body>".encode()))
    with pytest.raises(UpnpFault) as fault:
        add(NewPortMappingDescription="x" * (VALUE_LIMIT + 1))
    assert fault.value.code == 605


def test_m_post_names_soapaction_with_a_prefix():
    assert soapaction_of({"man": "x; ns=01", "01-soapaction": "a#b"}) == "a#b"
    assert soapaction_of({"soapaction": "c#d"}) == "c#d"
    assert soapaction_of({"host": "x"}) is None


def test_the_answer_has_the_literal_prefixes_and_the_requested_type():
    call = parse_control(f"{WANIP}2#GetExternalIPAddress", body({}, "GetExternalIPAddress"))
    assert encode_response(call, {"NewExternalIPAddress": "192.0.2.7"}) == (
        b'<?xml version="1.0"?>\n'
        b'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"'
        b' s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        b'<u:GetExternalIPAddressResponse xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:2">'
        b"<NewExternalIPAddress>192.0.2.7</NewExternalIPAddress>"
        b"</u:GetExternalIPAddressResponse></s:Body></s:Envelope>\n"
    )


def test_results_are_in_declared_order_escaped_and_complete():
    call = parse_control(
        f"{WANIP}1#GetSpecificPortMappingEntry",
        body({"NewExternalPort": "1", "NewProtocol": "TCP"}, "GetSpecificPortMappingEntry"),
    )
    outputs = {
        "NewLeaseDuration": 0,
        "NewPortMappingDescription": "R&D <1>\x00",
        "NewEnabled": True,
        "NewInternalClient": "",
        "NewInternalPort": 40001,
    }
    response = ElementTree.fromstring(encode_response(call, outputs))[0][0]
    assert [(element.tag, element.text or "") for element in response] == [
        ("NewInternalPort", "40001"),
        ("NewInternalClient", ""),
        ("NewEnabled", "1"),
        ("NewPortMappingDescription", "R&D <1>"),
        ("NewLeaseDuration", "0"),
    ]
    with pytest.raises(KeyError):
        encode_response(call, {})


def test_a_fault_has_code_and_text_where_control_points_look():
    fault = ElementTree.fromstring(encode_fault(718, "R&D"))[0][0]
    assert [element.tag for element in fault] == ["faultcode", "faultstring", "detail"]
    assert [element.text for element in fault][:2] == ["s:Client", "UPnPError"]
    control = "{urn:schemas-upnp-org:control-1-0}"
    assert [(e.tag, e.text) for e in fault[2][0]] == [
        (control + "errorCode", "718"),
        (control + "errorDescription", "R&D"),
    ]
    assert fault[2][0].tag == control + "UPnPError"


def test_a_fault_without_text_takes_the_name_of_the_standard():
    assert b"<errorDescription>Action not authorized</errorDescription>" in encode_fault(606, "")


@pytest.mark.parametrize(
    ("service", "code", "name"),
    [
        ("WANIPConnection", 704, "ConnectionSetupFailed"),
        ("WANIPv6FirewallControl", 704, "NoSuchEntry"),
        ("Layer3Forwarding", 704, ""),
    ],
)
def test_what_a_code_from_700_on_means_depends_on_the_service(service, code, name):
    assert service_by_type(service).fault_name(code) == name


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"soapaction": "a#b", "content-type": "text/xml"}, False),
        ({"soapaction": "a#b"}, False),
        ({"01-soapaction": "a#b"}, False),
        ({"content-type": 'TEXT/XML; charset="utf-8"'}, False),
        ({"content-type": "application/xml"}, False),
        ({"content-type": "application/soap+xml"}, False),
        ({}, True),
        ({"content-type": "text/plain"}, True),
        ({"content-type": "text/plain; x=text/xml"}, True),
        ({"content-type": "application/x-www-form-urlencoded"}, True),
        ({"soapaction": "a#b", "content-type": "text/xml", "origin": "https://evil.example"}, True),
        ({"soapaction": "a#b", "content-type": "text/xml", "origin": "null"}, True),
    ],
)
def test_a_request_that_a_browser_sends_without_asking_may_come_from_a_page(headers, expected):
    assert may_come_from_a_page(headers) is expected
