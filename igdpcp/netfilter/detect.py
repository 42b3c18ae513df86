# SPDX-License-Identifier: Apache-2.0
"""Which back-end this router needs, and whether it translates addresses already."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from igdpcp.errors import OurFault, RulesetError
from igdpcp.netfilter import foreign, layout
from igdpcp.netfilter.base import Backend
from igdpcp.netfilter.libnftables import Nft
from igdpcp.netfilter.nftables import NftablesBackend

_LEGACY_TABLES = Path("/proc/thread-self/net/ip_tables_names")  # the tables that this network namespace uses
_LEGACY_SAVE = ("iptables-legacy-save", "iptables-save")
_SAVE_SECONDS = 10.0
LEGACY_OURS = "IGDPCP-"  # what the names of our chains begin with


def choose_backend(setting: str, nft_table: str) -> Backend:
    """The back-end for ``option backend`` and ``option nft_table``; raises OurFault when its library is missing.

    ``auto``: nftables where libnftables works, else iptables. Table ``auto``: fw4's where it exists, else an own one.
    """
    if setting == "iptables":
        return _iptables(in_fw4=nft_table in ("auto", layout.FW4_TABLE) and _drop_ins_loaded())
    try:
        table = _nft_table(nft_table)
    except OurFault as error:
        if setting == "nftables":
            raise
        try:
            return _iptables()
        except OurFault as other:
            raise OurFault(f"no back-end can be used. {error}. {other}") from other
    return NftablesBackend(table)


def fw4_has_come(backend: Backend, nft_table: str) -> bool:
    """Whether fw4, in whose table the rules have to be now, was loaded after this back-end was chosen.

    It refuses what any other table accepts. A firewall that was stopped is no reason to choose again.
    """
    if backend.in_fw4 or nft_table not in ("auto", layout.FW4_TABLE):
        return False
    if isinstance(backend, NftablesBackend):
        with suppress(OurFault):
            return _nft_table(nft_table) == layout.FW4_TABLE
        return False
    return _drop_ins_loaded()


def masquerades(device: str) -> bool:
    """Whether a rule of somebody else translates the source of IPv4 packets that leave by this device.

    Raises RulesetError when the rules cannot be read: then nobody knows.
    """
    return _nft_masquerades(device) or _legacy_masquerades(device)


def _iptables(*, in_fw4: bool = False) -> Backend:
    """Where our drop-ins are in fw4's table, they let through what iptables cannot."""
    if in_fw4:
        from igdpcp.netfilter.iptables_fw4 import Fw4IptablesBackend

        return Fw4IptablesBackend()
    from igdpcp.netfilter.iptables import IptablesBackend  # costs memory that the other back-end needs not spend

    return IptablesBackend()


def _drop_ins_loaded() -> bool:
    try:
        nft = Nft()
    except OurFault:
        return False
    try:
        return layout.FW4_TABLE in {
            chain["table"]
            for chain in _nft_chains(nft)
            if chain["family"] == "inet" and chain["name"] == f"{layout.PREFIX}fwd"
        }
    except RulesetError:
        return False
    finally:
        nft.close()


def _nft_table(wanted: str) -> str:
    """The table for ``option nft_table``; raises OurFault where nftables does not work."""
    nft = Nft()
    try:
        chains = _nft_chains(nft)
    finally:
        nft.close()
    if wanted != "auto":
        return wanted
    fw4 = any((chain["family"], chain["table"]) == ("inet", layout.FW4_TABLE) for chain in chains)
    return layout.FW4_TABLE if fw4 else layout.OWN_TABLE


def _nft_chains(nft: Nft) -> list[dict[str, Any]]:
    """All chains, without their rules; raises RulesetError where the kernel has no nftables."""
    return [entry["chain"] for entry in nft.query("list chains") if "chain" in entry]


def _nft_masquerades(device: str) -> bool:
    with nft_chains() as chains:
        return chains is not None and foreign.translates(chains, device)


@contextmanager
def nft_chains() -> Iterator[foreign.Chains | None]:
    """All chains and rules of nftables; None where there is no nftables. Raises RulesetError."""
    try:
        nft = Nft()
    except OurFault:
        yield None
        return
    try:
        yield foreign.Chains(nft) if _nft_works(nft) else None
    finally:
        nft.close()


def _nft_works(nft: Nft) -> bool:
    try:
        _nft_chains(nft)
    except RulesetError:
        return False
    return True


def _legacy_masquerades(device: str) -> bool:
    return _legacy_translates(legacy_nat_rules(), "POSTROUTING", device, foreign.JUMP_DEPTH)


def legacy_nat_rules() -> list[str]:
    """The lines of iptables-save of the legacy table nat, without the rules in our chains; none where it is not in use.

    Raises RulesetError.
    """
    try:
        if "nat" not in _LEGACY_TABLES.read_text().split():
            return []
    except OSError:
        return []
    for program in _LEGACY_SAVE:
        with suppress(OSError, subprocess.SubprocessError):
            return _saved([program, "-t", "nat"])
    raise RulesetError(f"the legacy table nat is in use, and neither of {', '.join(_LEGACY_SAVE)} can read it")


def _saved(command: list[str]) -> list[str]:
    """Read line by line: what the rules of many mappings take as text is as large as all that is held of them."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        too_late = threading.Timer(_SAVE_SECONDS, process.kill)
        too_late.start()
        try:
            rules = [rule.rstrip("\n") for rule in process.stdout if not rule.startswith(f"-A {LEGACY_OURS}")]
        finally:
            too_late.cancel()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return rules


def _legacy_translates(rules: list[str], chain: str, device: str, depth: int) -> bool:
    """Walk the lines of iptables-save from a chain; rules whose ``-o`` names another device are passed over."""
    if depth == 0 or chain.startswith(LEGACY_OURS):
        return False
    for line in rules:
        if not line.startswith(f"-A {chain} "):
            continue
        out = re.search(r"(! )?-o (\S+)", line)
        if out and fits(out[2], device) == bool(out[1]):
            continue
        verdict = re.search(r" -[jg] (\S+)", line)
        if verdict is None:
            continue
        if verdict[1] in ("MASQUERADE", "SNAT") or _legacy_translates(rules, verdict[1], device, depth - 1):
            return True
    return False


def fits(pattern: str, device: str) -> bool:
    """Whether a device name of legacy iptables, which may end in '+', is for this device."""
    return device.startswith(pattern[:-1]) if pattern.endswith("+") else device == pattern
