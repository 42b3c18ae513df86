# SPDX-License-Identifier: Apache-2.0
"""Which code each refusal has, in each version: what the carrier says, and what it is not asked about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from igdpcp.errors import Reason, Refusal
from igdpcp.iwf import translate
from igdpcp.model import Activation, Protocol
from tests.support.hall import A, B, Hall, Reply
from tests.support.virtual_time import virtual

# PCP result: code for version 1, for version 2 (RFC 6970 section 4.3).
RESULTS = {
    1: (501, 501), 2: (718, 606), 3: (501, 501), 4: (501, 501), 5: (501, 501), 6: (501, 501), 7: (501, 501),
    8: (501, 728), 9: (501, 501), 10: (501, 728), 11: (718, 718), 12: (501, 501), 13: (501, 501),
    **dict.fromkeys(range(14, 24), (718, 606)), **dict.fromkeys(range(24, 27), (501, 501)), 99: (501, 501),
}  # fmt: skip
IGD2_ONLY = {606, 728, 729, 730, 731, 732, 733}

Ask = Callable[[Hall, int], Awaitable[Reply]]


@dataclass(frozen=True)
class Condition:
    """A hall made with ``options`` and brought about by ``prepare``; ``codes`` None: version 1 cannot ask that."""

    codes: tuple[int | None, int]
    ask: Ask
    options: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Hall], object] = lambda hall: None
    held: tuple[int, ...] = ()  # ports that B holds before


def adding(port: int = 8080, **changes: object) -> Ask:
    return lambda hall, version: hall.add(port, version=version, **changes)


def calling(action: str, **arguments: object) -> Ask:
    return lambda hall, version: hall.soap(action, A, version, **arguments)


def silent(state: Activation) -> Callable[[Hall], object]:
    def prepare(hall: Hall) -> None:
        hall.carrier.silent, hall.carrier.state = True, state

    return prepare


def alone_with_a_port_taken(hall: Hall) -> None:
    hall.carrier.state = Activation.NO_SERVER
    hall.router.used.add((Protocol.TCP, 8080))


KEY = {"RemoteHost": "", "ExternalPort": 8080, "Protocol": "TCP"}
RANGE = {"StartPort": 8000, "EndPort": 9000, "Protocol": "TCP", "Manage": 0}
CONDITIONS = {
    "the server is lost, policy error": Condition(
        (501, 501), adding(), {"unreachable_policy": "error"}, silent(Activation.LOST)
    ),
    "the server is lost, routed": Condition((501, 501), adding(), {"routed": True}, silent(Activation.LOST)),
    "the deadline is over": Condition((501, 501), adding(), prepare=silent(Activation.ACTIVE)),
    "another control point holds the port": Condition((718, 718), adding(), held=(8080,)),
    "the router uses the port": Condition((718, 729), adding(), prepare=alone_with_a_port_taken),
    "deleting another's entry": Condition((714, 606), calling("DeletePortMapping", **KEY), held=(8080,)),
    "the quota of the host": Condition((501, 728), adding(), {"max_mappings_per_host": 0}),
    "the quota of all": Condition((501, 728), adding(), {"max_mappings": 1}, held=(9090,)),
    "for another client": Condition((718, 606), adding(InternalClient=B)),
    "an argument is missing": Condition((402, 402), calling("AddPortMapping", **KEY)),
    "an argument cannot be read": Condition((402, 402), adding(LeaseDuration="soon")),
    "a name that nobody knows": Condition((402, 402), adding(InternalClient="no.such.name")),
    "neither TCP nor UDP": Condition((402, 601), adding(Protocol="SCTP")),
    "ExternalPort 0": Condition((716, 716), adding(0)),
    "InternalPort 0": Condition((402, 732), adding(InternalPort=0)),
    "not enabled": Condition((501, 501), adding(Enabled=0)),
    "deleting what is not there": Condition((714, 714), calling("DeletePortMapping", **KEY)),
    "deleting for another remote host": Condition(
        (714, 714), calling("DeletePortMapping", **KEY | {"RemoteHost": "198.51.100.9"}), held=(8080,)
    ),
    "no entry in a range to delete": Condition((None, 730), calling("DeletePortMappingRange", **RANGE)),
    "no entry in a range to list": Condition((None, 730), calling("GetListOfPortMappings", **RANGE, NumberOfPorts=0)),
    "a range to delete that ends too soon": Condition(
        (None, 733), calling("DeletePortMappingRange", **RANGE | {"StartPort": 9001})
    ),
    "a range to list that ends too soon": Condition(
        (None, 733), calling("GetListOfPortMappings", **RANGE | {"StartPort": 9001}, NumberOfPorts=0)
    ),
    "past the end": Condition((713, 713), calling("GetGenericPortMappingEntry", PortMappingIndex=1), held=(8080,)),
    "a port that nobody has": Condition((714, 714), calling("GetSpecificPortMappingEntry", **KEY)),
    "another connection type": Condition((501, 731), calling("SetConnectionType", ConnectionType="IP_Routed")),
}


@pytest.mark.parametrize("result", RESULTS)
def test_iwf_170_172_each_pcp_result_has_its_code_in_each_version(tmp_path: Path, result: int) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path)
        hall.carrier.refuses(result)
        codes = (await hall.add(8080)).code, (await hall.add(8081, version=2)).code
        assert codes == RESULTS[result]
        of_any_port = (await hall.add(8082, any_port=True)).code
        assert of_any_port == (728 if RESULTS[result][1] == 718 else RESULTS[result][1]), "it has no conflicts"
        assert len(hall.table) == 0

    run()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS.keys())
def test_iwf_170_172_each_condition_has_its_code_in_each_version(
    tmp_path: Path, condition: Condition, version: int
) -> None:
    @virtual
    async def run() -> None:
        hall = Hall(tmp_path, **condition.options)
        for port in condition.held:
            assert (await hall.add(port, B)).code == 0
        condition.prepare(hall)
        code = condition.codes[version - 1]
        assert (await condition.ask(hall, version)).code == (401 if code is None else code)
        assert hall.table.listed == len(hall.ruleset.rules) == len(condition.held)

    run()


def test_iwf_172_no_refusal_gives_version_1_a_code_that_it_does_not_know() -> None:
    for reason in set(Reason) - translate.PINHOLE_CONDITIONS.keys():
        results = RESULTS if reason is Reason.UPSTREAM else [0]
        for result in results:
            assert translate.fault_code(Refusal(reason, result=result), 1, "AddPortMapping") not in IGD2_ONLY
