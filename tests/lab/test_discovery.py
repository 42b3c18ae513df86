# SPDX-License-Identifier: Apache-2.0
"""How the daemon finds the carrier's PCP server: told by DHCP, at another address, over IPv6, behind another WAN."""

from __future__ import annotations

import contextlib
from ipaddress import ip_address

import pytest

from tests.lab import topology
from tests.lab.carrier import MiniupnpdCarrier, ScriptedCarrier, SimulatedCarrier
from tests.lab.clients import soap_client
from tests.lab.daemon import Igdpcpd, uci
from tests.lab.namespaces import LabError, poll
from tests.lab.topology import (
    CARRIER6_ADDRESS,
    CARRIER_ADDRESS,
    EXTERNAL_ADDRESS,
    LAN_ADDRESS,
    ROUTER_WAN6_ADDRESS,
    ROUTER_WAN_ADDRESS,
    WAN_DEVICE,
    Lab,
)

pytestmark = pytest.mark.lab

PORT = 8080
NOBODY = "100.64.12.77"  # on the link, but nobody's
SECOND = "100.64.12.2"


def option_158(*addresses: str) -> str:
    octets = b"".join(ip_address(address).packed for address in addresses)
    return (bytes([len(octets)]) + octets).hex()


def option_86(address: str) -> str:
    return (bytes.fromhex("00560010") + ip_address(address).packed).hex()


def lease(daemon: Igdpcpd, name: str, octets: str) -> None:
    """What a DHCP hook leaves."""
    new = daemon.run_dir / f"{name}.new"
    new.write_text(octets + "\n")
    new.rename(daemon.run_dir / name)


def config(**upstream: str | list[str]) -> str:
    """The configuration with this upstream, all of it."""
    main = {
        "enabled": "1",
        "backend": "nftables",
        "run_dir": "{run_dir}",
        "state_dir": "{state_dir}",
        "soap_deadline": "1.0",
    }
    section = {"device": WAN_DEVICE, "nat": "yes", "retransmit_initial": "0.2", **upstream}
    return uci({"igdpcp main": main, "lan lan": {"device": topology.LAN_DEVICE}, "upstream carrier": section})


def upstream_of(daemon: Igdpcpd) -> str:
    """The name of the upstream in use; nothing while the daemon starts anew."""
    with contextlib.suppress(LabError, OSError):
        return str(daemon.status()["upstream"]["name"])
    return ""


def held(carrier: ScriptedCarrier) -> list[int]:
    """The external ports that the carrier holds for us."""
    return [mapping.external_port for mapping in carrier.table()]


def opens(lab: Lab, port: int = PORT) -> bool:
    """Whether a control point gets a port, and packets come in through it."""
    with lab.listen(lab.lan, "tcp", port):
        added = soap_client(lab.lan).add("tcp", port, LAN_ADDRESS, port)
        return bool(added) and lab.tcp_probe(lab.internet, EXTERNAL_ADDRESS, port).listener == "lan"


def test_iwf_001_the_server_that_dhcp_names_is_asked_and_may_be_asked_for_others() -> None:
    with Lab() as lab:
        carrier = MiniupnpdCarrier(lab)
        daemon = Igdpcpd(lab, config=config(), start=False)
        lease(daemon, f"dhcp4.{WAN_DEVICE}", option_158(CARRIER_ADDRESS))
        daemon.start()
        daemon.wait_for_activation()
        upstream = daemon.status()["upstream"]
        assert (upstream["server"], upstream["origin"]) == (CARRIER_ADDRESS, "told by DHCP (option 158)")
        assert opens(lab)
        assert len(carrier.table()) >= 1


def test_a_server_that_dhcp_names_later_takes_over_and_what_was_open_is_opened_there() -> None:
    with Lab() as lab:
        lab.carrier.run(["ip", "addr", "add", f"{SECOND}/24", "dev", topology.CARRIER_INSIDE])
        daemon = Igdpcpd(lab, config=config())
        carrier = ScriptedCarrier(lab, address=SECOND)
        daemon.wait_for_activation("no_server")
        assert soap_client(lab.lan).add("tcp", PORT, LAN_ADDRESS, PORT)
        lease(daemon, f"dhcp4.{WAN_DEVICE}", option_158(SECOND))
        daemon.wait_for_activation()
        poll(lambda: [mapping.external_port for mapping in carrier.table()] == [PORT], 10, "the promotion")
        poll(lambda: [mapping["local_only"] for mapping in daemon.mappings()] == [False], 5, "the promotion")


def test_iwf_043_a_default_router_that_dhcp_names_too_knows_us_by_the_nonces_that_it_had() -> None:
    with Lab() as lab:
        carrier = ScriptedCarrier(lab)
        daemon = Igdpcpd(lab, config=config())
        daemon.wait_for_activation()
        client = soap_client(lab.lan)
        assert client.add("tcp", PORT, LAN_ADDRESS, PORT)
        for addresses in ([CARRIER_ADDRESS], [CARRIER_ADDRESS, NOBODY]):
            lease(daemon, f"dhcp4.{WAN_DEVICE}", option_158(*addresses))
            poll(lambda: daemon.status()["upstream"]["addresses"] == addresses, 10, "what DHCP says")  # noqa: B023
            assert client.add("tcp", PORT, LAN_ADDRESS, PORT)
        daemon.stop()
        daemon.start()
        daemon.wait_for_activation()
        assert client.add("tcp", PORT, LAN_ADDRESS, PORT)
        assert daemon.events("grant_refused") == []
        assert client.delete("tcp", PORT)
        poll(lambda: carrier.table() == [], 10, "the deletion at the carrier")


def test_iwf_042_what_is_deleted_before_the_wan_is_up_is_given_back_when_it_is() -> None:
    with Lab() as lab:
        carrier = ScriptedCarrier(lab)
        daemon = Igdpcpd(lab, config=config(server=[CARRIER_ADDRESS]))
        daemon.wait_for_activation()
        assert soap_client(lab.lan).add("tcp", PORT, LAN_ADDRESS, PORT)
        daemon.stop()
        lab.router.run(["ip", "addr", "del", f"{ROUTER_WAN_ADDRESS}/24", "dev", WAN_DEVICE])
        daemon.start()
        assert soap_client(lab.lan).delete("tcp", PORT)
        assert (daemon.mappings(), PORT in held(carrier)) == ([], True)
        lab.router.run(["ip", "addr", "add", f"{ROUTER_WAN_ADDRESS}/24", "dev", WAN_DEVICE])
        lab.router.run(["ip", "route", "add", "default", "via", CARRIER_ADDRESS])
        poll(lambda: PORT not in held(carrier), 10, "the deletion at the carrier")


def test_iwf_018_of_two_addresses_the_one_that_answers_is_used() -> None:
    with Lab() as lab:
        SimulatedCarrier(lab)
        daemon = Igdpcpd(lab, config=config(server=[NOBODY, CARRIER_ADDRESS]))
        daemon.wait_for_activation()
        assert daemon.status()["upstream"]["server"] == CARRIER_ADDRESS
        assert [event["trying"] for event in daemon.events("pcp_server_not_there")] == [CARRIER_ADDRESS]
        assert opens(lab)


def test_unsolicited_packets_of_the_address_in_use_come_in_through_the_firewall() -> None:
    with Lab(firewall="fw4") as lab:
        carrier = SimulatedCarrier(lab)
        daemon = Igdpcpd(lab, config=config(server=[NOBODY, CARRIER_ADDRESS]))
        daemon.wait_for_activation()
        assert opens(lab)
        lab.router.run(["conntrack", "-F"])
        carrier.restart(announce=True)
        poll(lambda: len(carrier.table()) == 1, 15, "the recovery")


def test_iwf_055_behind_ds_lite_an_ipv6_server_is_asked_for_ipv4_mappings_of_lan_hosts() -> None:
    with Lab(nat=False, ipv6=True) as lab:
        carrier = SimulatedCarrier(lab, address=CARRIER6_ADDRESS)
        daemon = Igdpcpd(lab, config=config(server=[CARRIER6_ADDRESS], nat="no"))
        daemon.wait_for_activation()
        assert opens(lab)
        made = [request for request in carrier.maps() if request["internal_port"] == PORT]
        assert {request["from"] for request in made} == {ROUTER_WAN6_ADDRESS}
        assert {request["options"]["THIRD_PARTY"][0] for request in made} == {LAN_ADDRESS}
        carrier.restart(announce=True)
        poll(lambda: len(carrier.table()) == 1, 15, "the recovery after an announcement to ff02::1")


def test_iwf_052_with_nat_an_ipv6_server_is_asked_for_the_routers_ipv4_address() -> None:
    with Lab(ipv6=True) as lab:
        carrier = SimulatedCarrier(lab, address=CARRIER6_ADDRESS)
        daemon = Igdpcpd(lab, config=config(), start=False)
        lease(daemon, f"dhcp6.{WAN_DEVICE}", option_86(CARRIER6_ADDRESS))
        daemon.start()
        daemon.wait_for_activation()
        assert opens(lab)
        assert [mapping.address for mapping in carrier.table()] == [ROUTER_WAN_ADDRESS]


def test_when_the_first_wan_goes_the_next_one_is_used_and_back() -> None:
    with Lab() as lab:
        MiniupnpdCarrier(lab)
        spare = uci({"upstream spare": {"device": "lte"}})
        daemon = Igdpcpd(lab, config=config(server=[CARRIER_ADDRESS]) + spare)
        daemon.wait_for_activation()
        for command in ("link add lte type bridge", "addr add 100.70.0.2/24 dev lte", "link set lte up",
                        f"addr del {ROUTER_WAN_ADDRESS}/24 dev {WAN_DEVICE}"):  # fmt: skip
            lab.router.run(["ip", *command.split()])
        poll(lambda: [event["device"] for event in daemon.events("another_wan")] == ["lte"], 10, "the spare WAN")
        poll(lambda: upstream_of(daemon) == "spare", 10, "the spare WAN in use")
        lab.router.run(["ip", "addr", "add", f"{ROUTER_WAN_ADDRESS}/24", "dev", WAN_DEVICE])
        lab.router.run(["ip", "route", "add", "default", "via", CARRIER_ADDRESS])
        poll(lambda: upstream_of(daemon) == "carrier", 10, "the first WAN again")
        daemon.wait_for_activation()
        assert opens(lab)
