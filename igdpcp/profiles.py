# SPDX-License-Identifier: Apache-2.0
"""The switches in which the interworking documents differ, and the profiles that set all of them at once.

``draft01`` is draft-ietf-pcp-upnp-igd-interworking-01, ``rfc6970`` the standard that came of it; ``default`` is
neither, but what serves present-day control points and carriers best.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from igdpcp import option_values
from igdpcp.option_values import Reader
from igdpcp.values import dataclass

SOAP_DEADLINE_LIMIT = 18  # seconds; the HTTP server gives up a little later
LIFETIME_MAX = 2**32 - 1  # seconds; RFC 6887 section 11.1: Requested Lifetime has 32 bits
LIFETIME_CAP_MIN = 120  # seconds; servers raise anything less to this (RFC 6887 section 15)


@dataclass(frozen=True, slots=True)
class Switches:
    """What a profile sets; the defaults are those of profile ``default``."""

    profile: str = "default"  # default | draft01 | rfc6970
    lifetime_cap: int = LIFETIME_MAX
    unreachable_policy: str = "local"  # local | error
    remote_host: str = "both"  # reject | filter: by the carrier | local: by this router | both
    local_conflict_check: bool = True  # another client's port is refused here, and not by the carrier
    specific_query: str = "probe"  # probe | local: whether the carrier is asked for ports that are unknown here
    specific_other_cp: str = "error"  # error | relay: ask the carrier | show
    specific_inuse_error: int = 718  # 718 | 714
    short_error_resends: int = 2
    short_error_wait: int = 30
    soap_deadline: float = 3.8
    description_option: bool = True
    external_ip_probe: str = "startup"  # off | demand | startup
    persist: str = "all"  # none | all
    prefer_failure_fallback: str = "emulate"  # fail | emulate
    announce_recovery: bool = True
    third_party: str = "auto"  # auto | never


PROFILES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "draft01": {
        "lifetime_cap": 65535,
        "unreachable_policy": "local",
        "remote_host": "reject",
        "local_conflict_check": True,
        "specific_query": "probe",
        "specific_other_cp": "error",
        "specific_inuse_error": 718,
        "short_error_resends": 1,
        "short_error_wait": 30,
        "soap_deadline": 90,
        "description_option": False,
        "external_ip_probe": "off",
        "persist": "all",
        "prefer_failure_fallback": "fail",
        "announce_recovery": True,
        "third_party": "auto",
    },
    "rfc6970": {
        "lifetime_cap": LIFETIME_MAX,
        "unreachable_policy": "error",
        "remote_host": "filter",
        "local_conflict_check": False,
        "specific_query": "probe",
        "specific_other_cp": "relay",
        "specific_inuse_error": 718,
        "short_error_resends": 2,
        "short_error_wait": 30,
        "soap_deadline": 90,
        "description_option": True,
        "external_ip_probe": "demand",
        "persist": "all",
        "prefer_failure_fallback": "fail",
        "announce_recovery": True,
        "third_party": "auto",
    },
}


def _probe(text: str) -> str:
    """The words of a boolean are understood too: this option was one."""
    try:
        return "startup" if option_values.boolean(text) else "off"
    except ValueError:
        return str(option_values.choice("off", "demand", "startup")(text))


def _inuse_error(text: str) -> int:
    return int(option_values.choice("718", "714")(text))


SWITCH_READERS: Mapping[str, Reader] = {
    "profile": option_values.choice(*PROFILES),
    "lifetime_cap": option_values.number(int, LIFETIME_CAP_MIN, LIFETIME_MAX, "a number of seconds"),
    "unreachable_policy": option_values.choice("local", "error"),
    "remote_host": option_values.choice("reject", "filter", "local", "both"),
    "local_conflict_check": option_values.boolean,
    "specific_query": option_values.choice("probe", "local"),
    "specific_other_cp": option_values.choice("error", "relay", "show"),
    "specific_inuse_error": _inuse_error,
    "short_error_resends": option_values.number(int, 0, 10, "a number of requests"),
    "short_error_wait": option_values.number(int, 1, 1800, "a number of seconds"),
    "soap_deadline": option_values.number(float, 0.1, SOAP_DEADLINE_LIMIT, "a number of seconds"),
    "description_option": option_values.boolean,
    "external_ip_probe": _probe,
    "persist": option_values.choice("none", "all"),
    "prefer_failure_fallback": option_values.choice("fail", "emulate"),
    "announce_recovery": option_values.boolean,
    "third_party": option_values.choice("auto", "never"),
}


def switches_of(profile: str) -> tuple[dict[str, Any], list[str]]:
    """The switches that the profile sets, by name, as far as they are possible here; and what became of the others.

    A document's ``soap_deadline`` is more than any HTTP server may hold a request for (UPnP Device Architecture 1.1,
    section 3.2.2: 30 s, the way to and fro included).
    """
    switches: dict[str, Any] = {"profile": profile, **PROFILES[profile]}
    wanted = switches.get("soap_deadline", 0)
    if wanted <= SOAP_DEADLINE_LIMIT:
        return switches, []
    switches["soap_deadline"] = float(SOAP_DEADLINE_LIMIT)
    return switches, [
        f"'{profile}' has a soap_deadline of {wanted} s, which no control point may be kept waiting; "
        f"using {SOAP_DEADLINE_LIMIT}, or set option 'soap_deadline'"
    ]
