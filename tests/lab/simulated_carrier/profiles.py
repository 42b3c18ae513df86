# SPDX-License-Identifier: Apache-2.0
"""How carriers' servers differ, named by what they do."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from tests.support.pcp_octets import ANNOUNCE, MAP, VERSION

DRAFT_VERSION = 1  # of the PCP drafts of 2012, without nonces


@dataclass(frozen=True, slots=True)
class Profile:
    """One server's behaviour; the defaults are those of RFC 6887 for a provider's NAT.

    What it speaks: PCP ``versions``, ``natpmp``, PCP ``opcodes``; ``refusal_has_opcode``: its NAT-PMP refusal of PCP
    carries 128 + opcode, as seen in the field. What it takes: ``third_party``, ``prefer_failure``, ``clearing_filter``
    (prefix length 0), remote ``peers`` per mapping, octets of ``description`` (0: ignored). What it gives:
    ``quota`` of mappings per internal address (0: none), ``ports``, of these a ``port_block`` of that size per
    internal address (0: all), ``recycle_delay`` seconds until a freed port goes to somebody else, lifetimes from
    ``shortest`` to ``longest``. What it says: ``error_lifetime`` for every refusal (None: by its kind),
    ``checks_nonce`` (False: another nonce takes the mapping over). How it fails: ``resets_epoch`` when its state is
    lost, ``announces`` that by multicast, ``updates`` clients whose external address is another one.
    """

    versions: tuple[int, ...] = (VERSION,)
    natpmp: bool = False
    opcodes: tuple[int, ...] = (ANNOUNCE, MAP)
    refusal_has_opcode: bool = False
    third_party: bool = True
    prefer_failure: bool = True
    clearing_filter: bool = True
    peers: int = 8
    description: int = 128
    quota: int = 0
    ports: tuple[int, int] = (1024, 65535)
    port_block: int = 0
    recycle_delay: float = 0.0
    shortest: int = 120
    longest: int = 86400
    error_lifetime: int | None = None
    checks_nonce: bool = True
    resets_epoch: bool = True
    announces: bool = True
    updates: bool = True


PROFILES: dict[str, Profile] = {
    "strict": Profile(),
    "dual": Profile(natpmp=True),
    "quota_32": Profile(quota=32),
    "no_prefer_failure": Profile(prefer_failure=False),
    "no_third_party": Profile(third_party=False),
    "port_block_512": Profile(port_block=512),
    "version_1_only": Profile(versions=(DRAFT_VERSION,)),
    "natpmp_only": Profile(versions=(), natpmp=True),
    "no_map": Profile(opcodes=(ANNOUNCE,)),
    "silent_state_loss": Profile(resets_epoch=False, announces=False),
    "recycle_delay": Profile(recycle_delay=120.0),
    "lifetime_120": Profile(shortest=120, longest=120),
    "lifetime_86400": Profile(shortest=86400, longest=86400),
    "error_lifetime_0": Profile(error_lifetime=0),
    "nonce_takeover": Profile(checks_nonce=False),
}


def profile_from(name: str, overrides: dict[str, Any]) -> Profile:
    """A profile by name with some of its behaviours changed, as JSON can say it; KeyError for unknown ones."""
    known = {field.name for field in fields(Profile)}
    for behaviour in overrides:
        if behaviour not in known:
            raise KeyError(behaviour)
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in overrides.items()}
    return replace(PROFILES[name], **values)
