# SPDX-License-Identifier: Apache-2.0
"""Whether what the nftables back-end finds in the kernel is what is there, whoever has changed it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from igdpcp.model import Endpoint, Mode, Protocol
from igdpcp.netfilter import layout
from igdpcp.netfilter.nftables import NftablesBackend
from igdpcp.netfilter.nftables_reader import Element, NftablesReader
from igdpcp.openings import AnyOpening, Discrepancy
from tests.netfilter import firewalls
from tests.netfilter.topology import (
    OTHER,
    OTHER6,
    A,
    B,
    Instance,
    command,
    namespace,
    opening,
    pinhole,
)

pytestmark = pytest.mark.lab


def everything() -> list[AnyOpening]:
    """One opening of each shape, so that each set and map holds something; ports whose low byte is zero among them."""
    return [
        opening("m1", serial=1),
        opening("m2", serial=2, protocol=Protocol.UDP, wan_port=0x1000, client=Endpoint(A, 0x2000)),
        opening("m3", serial=3, wan_port=4003, client=Endpoint(B, 4003), remote_hosts=(OTHER,)),
        opening("m4", serial=4, mode=Mode.ROUTED, client=Endpoint(B, 4004), external=Endpoint(B, 4004)),
        opening("m5", serial=5, mode=Mode.ROUTED, client=Endpoint(B, 4005), external=Endpoint(B, 4005),
                remote_hosts=(OTHER,)),
        pinhole("p1", client_port=5001),
        pinhole("p2", client_port=5002, remote_host=OTHER6),
        pinhole("p3", client_port=5003, remote_port=7),
        pinhole("p4", client_port=5004, remote_host=OTHER6, remote_port=0x700),
    ]  # fmt: skip


@pytest.fixture
def router() -> Iterator[str]:
    with namespace() as name:
        yield name


@pytest.fixture(params=["fw4", "igdpcp"])
def table(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def instance(router: str, table: str) -> Iterator[Instance]:
    if table == "fw4":
        firewalls.load_nft(router, firewalls.fw4())
    made = Instance(router, NftablesBackend(table))
    made.surroundings()
    made.sync(*everything())
    yield made
    made.vanish()


def audit(instance: Instance) -> Discrepancy:
    return instance.call(instance.commits.audit)


def nft(router: str, table: str, *commands: str) -> None:
    """Commands of nft in one transaction; ``T`` stands for the table and ``T_`` for it and our names' prefix."""
    script = "\n".join(commands).replace("T_", f"inet {table} igdpcp1_").replace(" T", f" inet {table}")
    command("nft", "-f", "-", namespace=router, stdin=script)


def test_what_was_put_agrees_in_every_set_and_map(router: str, table: str, instance: Instance) -> None:
    mine = (*layout.MAPS, *layout.SETS, *layout.COUNTED_SETS)
    kinds = ["map" if name in layout.MAPS else "set" for name in mine]
    for kind, name in zip(kinds, mine, strict=True):
        listed = command("nft", "list", kind, "inet", table, layout.PREFIX + name, namespace=router)
        assert "elements = " in listed
    assert audit(instance) == Discrepancy()
    assert instance.call(instance.commits.intact)


CHANGES = {
    "deleted": ('delete element T_own4 { "wan0" . 6 . 4000 }', Discrepancy(missing=1)),
    "added": ('add element T_own4 { "wan0" . 6 . 999 timeout 1h }', Discrepancy(surplus=1)),
    "added for ever": ('add element T_own4 { "wan0" . 6 . 999 }', Discrepancy(surplus=1)),
    "leads elsewhere": (
        'delete element T_dnat4 { "wan0" . 6 . 4000 }\n'
        'add element T_dnat4 { "wan0" . 6 . 4000 timeout 600s : 192.168.1.66 . 4000 }',
        Discrepancy(missing=1),
    ),
    "ends too soon": (
        'delete element T_own4 { "wan0" . 6 . 4000 }\nadd element T_own4 { "wan0" . 6 . 4000 timeout 300s }',
        Discrepancy(missing=1),
    ),
    "never ends": (
        'delete element T_own4 { "wan0" . 6 . 4000 }\nadd element T_own4 { "wan0" . 6 . 4000 }',
        Discrepancy(surplus=1),
    ),
    "about as long": (
        'delete element T_own4 { "wan0" . 6 . 4000 }\nadd element T_own4 { "wan0" . 6 . 4000 timeout 599s }',
        Discrepancy(),
    ),
    "another device": ('add element T_wan4 { "eth9" }', Discrepancy(surplus=1)),
    "another LAN": ('delete element T_lan { "br-lan" }\nadd element T_lan { "br9" }', Discrepancy(1, 1)),
    "a pinhole": ("flush set T_pass6_rhp", Discrepancy(missing=1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_somebody_changes_by_hand_is_found_and_a_sync_mends_it(
    router: str, table: str, instance: Instance, change: str
) -> None:
    script, expected = CHANGES[change]
    nft(router, table, script)
    assert audit(instance) == expected
    assert audit(instance) == expected  # looking changes nothing
    instance.sync(*everything())
    assert audit(instance) == Discrepancy()


@pytest.mark.parametrize("name", ["map T_dnat4", "map T_dnat4_rh", "map T_hair4", "set T_pass4", "set T_open4",
                                  "set T_pass6", "set T_pass6_rhp", "set T_wan4"])  # fmt: skip
def test_a_set_that_was_flushed_is_noticed_at_first_sight(
    router: str, table: str, instance: Instance, name: str
) -> None:
    nft(router, table, f"flush {name}")
    assert not instance.call(instance.commits.intact)


def test_rules_that_were_flushed_out_of_an_own_table_are_noticed_and_come_back(router: str) -> None:
    instance = Instance(router, NftablesBackend("igdpcp"))
    instance.surroundings()
    instance.sync(*everything())
    before = command("nft", "-s", "list", "chain", "inet", "igdpcp", "igdpcp1_dst_wan", namespace=router)
    command("nft", "flush", "chain", "inet", "igdpcp", "igdpcp1_dst_wan", namespace=router)
    assert not instance.call(instance.commits.intact)
    assert audit(instance) == Discrepancy(missing=2)
    instance.sync(*everything())
    assert command("nft", "-s", "list", "chain", "inet", "igdpcp", "igdpcp1_dst_wan", namespace=router) == before
    assert instance.call(instance.commits.intact)
    instance.vanish()


def test_what_has_expired_is_not_missed(router: str, table: str, instance: Instance) -> None:
    assert instance.put(opening("m9", serial=9, wan_port=4009, client=Endpoint(A, 4009), lifetime=1)) == [None]
    deadline = time.monotonic() + 10
    while "4009" in command("nft", "list", "table", "inet", table, namespace=router):
        assert time.monotonic() < deadline
        assert audit(instance) == Discrepancy()
    assert audit(instance) == Discrepancy()


def test_a_firewall_that_is_gone_cannot_be_compared_and_is_said_to_be(router: str) -> None:
    firewalls.load_nft(router, firewalls.fw4())
    instance = Instance(router, NftablesBackend("fw4"))
    instance.surroundings()
    command("nft", "flush", "ruleset", namespace=router)
    with pytest.raises(Exception, match="firewall not active"):
        audit(instance)
    instance.vanish()


def test_others_who_change_their_rules_all_the_time_do_not_make_it_differ(router: str) -> None:
    instance = Instance(router, NftablesBackend("igdpcp"))
    instance.surroundings()
    many = [
        opening(f"m{port}", serial=port, wan_port=port, client=Endpoint(A, port), external=Endpoint(OTHER, port))
        for port in range(2000, 4000)
    ]
    instance.sync(*many)
    command("nft", "add", "table", "ip", "theirs", namespace=router)
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            command("nft", "add set ip theirs s { type ipv4_addr; }; delete set ip theirs s", namespace=router)

    somebody = threading.Thread(target=change)
    somebody.start()
    try:
        assert [audit(instance) for _ in range(5)] == [Discrepancy()] * 5
    finally:
        done.set()
        somebody.join()
        instance.vanish()


def test_a_reading_that_lacks_what_changed_meanwhile_is_repeated(
    router: str, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance.sync(*everything())
    first = iter([True])

    def read(reader: NftablesReader, name: str, whole: Any = NftablesReader.elements) -> Iterator[Element]:
        if next(first, False):
            command("nft", "add", "table", "ip", "theirs", namespace=router)
            return iter(())
        found: Iterator[Element] = whole(reader, name)
        return found

    monkeypatch.setattr(NftablesReader, "elements", read)
    assert audit(instance) == Discrepancy()


def test_what_a_pinhole_has_counted_is_found_at_once_beside_thousands_of_mappings(router: str, table: str) -> None:
    """libnftables reads all elements to find one, which takes more than a hundred times as long as is allowed here."""
    if table == "fw4":
        firewalls.load_nft(router, firewalls.fw4())
    instance = Instance(router, NftablesBackend(table))
    instance.surroundings()
    ports = range(2000, 5000)
    instance.sync(
        pinhole(),
        *(
            opening(f"m{port}", serial=port, wan_port=port, client=Endpoint(A, port), external=Endpoint(OTHER, port))
            for port in ports
        ),
    )
    took = []
    for _ in range(5):
        began = time.perf_counter()
        assert instance.packets() == 0
        took.append(time.perf_counter() - began)
    instance.vanish()
    assert min(took) < 0.02
