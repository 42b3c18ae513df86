# SPDX-License-Identifier: Apache-2.0
"""The demo tells its story to the end, and does not claim what it did not see."""

from __future__ import annotations

import re

import pytest

from tests.lab import demo
from tests.lab.carrier import MiniupnpdCarrier

pytestmark = pytest.mark.lab

STEPS = 7
COLUMNS = 90


@pytest.mark.parametrize("arguments", [[], ["--backend", "iptables", "--no-nat"]])
def test_the_demo_sees_everything_it_promises(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status = demo.main(arguments)
    shown = capsys.readouterr().out
    assert status == 0, shown
    assert re.findall(r"^(\d)\. ", shown, re.MULTILINE) == [str(step + 1) for step in range(STEPS)]
    assert "✘" not in shown
    assert max(map(len, shown.splitlines())) <= COLUMNS
    assert "\033" not in shown


def test_the_demo_fails_when_the_carrier_has_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(MiniupnpdCarrier, "table", lambda self: [])
    assert demo.main([]) == 1
    assert "✘ not seen" in capsys.readouterr().out


def test_elements_of_other_tables_are_not_ours() -> None:
    listing = """table inet fw4 {
	map igdpcp1_dnat4 {
		type ifname . inet_proto . inet_service : ipv4_addr . inet_service
		flags timeout
		elements = { "wan" . tcp . 80 timeout 1h expires 59m58s : 192.168.1.50 . 8000,
			"wan" . udp . 80 timeout 1h expires 59m59s12ms : 192.168.1.50 . 8000 }
	}

	map others {
		type inet_service : ipv4_addr
		flags timeout
		elements = { 1 timeout 1h expires 3s : 192.0.2.1 }
	}

	set igdpcp1_wan4 {
		type ifname
		elements = { "wan" }
	}

	set igdpcp1_own4 {
		type ifname . inet_proto . inet_service
		flags timeout
	}
}
"""
    assert demo.nft_elements(listing) == [
        'igdpcp1_dnat4: "wan" . tcp . 80 timeout 1h : 192.168.1.50 . 8000',
        'igdpcp1_dnat4: "wan" . udp . 80 timeout 1h : 192.168.1.50 . 8000',
    ]
