# SPDX-License-Identifier: Apache-2.0
"""Draw for people what the daemon reports: the status on one screen, mappings and pinholes as a table.

What comes from LAN hosts (descriptions, agents) is shown printable and clipped, whatever bytes it has.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from ipaddress import ip_interface
from typing import Any

from igdpcp.model import Activation, Mode, Owner

WIDTH = 80
HEIGHT = 24
LABEL_WIDTH = 10
CELL_LIMIT = 40  # characters of one cell of a table
NETWORK_LIMIT = 20  # characters of a network: all that one of IPv4 can have
ERRORS_SHOWN = 3
ADVICE_SHOWN = 2

MODE_SENTENCES = {
    Mode.CASCADED: "two NATs; the carrier opens a port, this router forwards it.",
    Mode.ROUTED: "one NAT; the carrier opens a port, this router lets it in.",
    Mode.LOCAL: "there is no PCP server; ports open on this router only.",
}
ACTIVATION_WORDS = {
    Activation.NO_WAN: "no WAN address",
    Activation.NO_SERVER: "no PCP server known",
    Activation.PROBING: "waiting for a first answer",
    Activation.ACTIVE: "answers",
    Activation.LOST: "does not answer any more",
}
ACTIVATION_ADVICE = {
    Activation.NO_WAN: "Bring the WAN up; 'ifstatus wan' shows what it waits for.",
    Activation.NO_SERVER: "Ask the carrier for its PCP server; name it as 'list server' in section 'upstream'.",
    Activation.LOST: "Ask the carrier whether its PCP server runs; mappings follow when it answers again.",
}
UNUSABLE_WORDS = "answers, but cannot be used"
UNUSABLE_ADVICE = "Ask the carrier for a server that takes PCP version 2, MAP, and without NAT here THIRD_PARTY."

Status = dict[str, Any]


def printable(text: object, limit: int = CELL_LIMIT) -> str:
    """The text with everything escaped that a terminal could obey, clipped to ``limit`` characters."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text)[: limit + 1])
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."


def duration(seconds: float | None) -> str:
    """A length of time in its two largest units, like '2 h 13 min'."""
    if seconds is None:
        return "unknown time"
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (parts and unit != "s"):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def status_screen(status: Status) -> str:
    """The answer to 'status' on at most 24 lines of 80 columns."""
    title = f"igdpcp {status['version']} ({status['backend']}), running for {duration(status['uptime_seconds'])}"
    lines = [title, "", *_chain(status), ""]
    for label, value, limit in (
        ("Mode", f"{status['mode']}: {MODE_SENTENCES[Mode(status['mode'])]}", 1),
        ("Upstream", _upstream(status), 2),
        ("Address", _address(status), 2),
        ("Mappings", _counts(status["mappings"], status.get("static", {})), 1),
        ("Pinholes", _pinholes(status["pinholes"]), 1),
        ("IGD", _advertising(status["igd"]), 2),
        ("Firewall", _firewall(status["firewall"]), 2),
        ("Ports", _port_conflicts(status.get("port_conflicts", [])), 2),
    ):
        lines += _labelled(label, [value] if value else [], limit)
    advice = _labelled("To do", _advice(status)[:ADVICE_SHOWN] or ["nothing"], 2)
    lan_pcp = _labelled("PCP", filter(None, [_lan_pcp(status.get("pcp_server", {}))]), 1)
    if len(lines) + len(lan_pcp) + len(advice) < HEIGHT:  # what is wrong comes first
        lines += lan_pcp
    errors = _errors(status["errors"]) or ["none"]
    room = HEIGHT - len(lines) - len(advice)
    lines += _labelled("Errors", errors[: max(1, room)], 2 if room >= 2 * len(errors) else 1)
    return "\n".join(lines + advice)


def _labelled(label: str, values: Iterable[str], limit: int) -> list[str]:
    """Each value in at most ``limit`` lines, the first of them behind the label."""
    lines: list[str] = []
    for value in values:
        safe = printable(value, limit * WIDTH)
        lines += textwrap.wrap(safe, WIDTH - LABEL_WIDTH, max_lines=limit, placeholder=" ...") or [""]
    return [f"{label if i == 0 else '':{LABEL_WIDTH}}{line}".rstrip() for i, line in enumerate(lines)]


def _chain(status: Status) -> list[str]:
    """The way from the LAN to the internet as three lines: who, address, device."""
    lans, wan = status["lans"], status["wan"]
    nat = "no NAT" if status["mode"] == Mode.ROUTED else "NAT"
    hops = [
        ("LAN", _networks(lans), ", ".join(printable(lan["device"], 15) for lan in lans[:1])),
        (f"router ({nat})", wan.get("address") or "no address", printable(wan.get("device") or "", 15)),
    ]
    external = status["external_address"]
    if status["mode"] != Mode.LOCAL or external != wan.get("address"):
        hops.append(("carrier (NAT)", "?" if status["mode"] == Mode.LOCAL else "PCP server", ""))
    hops.append(("internet", external or "no address", ""))
    widths = [max(map(len, hop)) for hop in hops]
    rows = [[f"{hop[row]:{width}}" for hop, width in zip(hops, widths, strict=True)] for row in range(3)]
    return [f"  {joint.join(row)}".rstrip() for joint, row in zip(("    ", " -> ", "    "), rows, strict=True)]


def _networks(lans: list[dict[str, Any]]) -> str:
    """The network of the first LAN, and how many LANs more there are."""
    if not lans:
        return "none"
    more = f" +{len(lans) - 1}" if len(lans) > 1 else ""
    return printable(ip_interface(lans[0]["addresses"][0]).network, NETWORK_LIMIT) + more


def _upstream(status: Status) -> str:
    activation, upstream = status["activation"], status["upstream"]
    words = ACTIVATION_WORDS.get(activation["state"], activation["state"])
    if not activation["usable"]:
        words = UNUSABLE_WORDS
    server = f"{upstream['type']} {upstream['server'] or ''}".rstrip()
    if upstream["server"] and upstream["origin"] != "configured":
        server += f" ({upstream['origin']})"
    reason = f" ({activation['reason']})" if activation.get("reason") not in (None, "", words) else ""
    return f"{upstream['name']}, {server}: {words}, for {duration(activation.get('since_seconds'))}{reason}"


def _address(status: Status) -> str:
    reason = status.get("external_address_reason")
    return f"{status['external_address'] or 'none'}" + (f": {reason}" if reason else "")


def _counts(mappings: dict[str, Any], static: dict[str, Any]) -> str:
    parts = [f"{mappings['active']} active (limit {mappings['limit']})"]
    if mappings["local_only"]:
        parts.append(f"{mappings['local_only']} local_only (not at the carrier)")
    if mappings.get("aliased"):
        parts.append(f"{mappings['aliased']} at another public port than shown")
    if mappings["pending"]:
        parts.append(f"{mappings['pending']} waiting")
    if static.get("wanted"):
        parts.append(f"{static['open']} of {static['wanted']} static")
    return ", ".join(parts)


def _pinholes(pinholes: dict[str, Any]) -> str:
    """Empty while there are none."""
    return f"{pinholes['open']} open for IPv6 (limit {pinholes['limit']})" if pinholes["open"] else ""


def _advertising(igd: dict[str, Any]) -> str:
    if not igd["advertising"]:
        return f"not advertised: {igd['conflict']}" if igd["conflict"] else "not advertised"
    besides = f", but not beside {igd['conflict']}" if igd["conflict"] else ""
    return f"advertised at {igd['location']}{besides}"


def _lan_pcp(server: dict[str, Any]) -> str:
    """Empty where it is switched off."""
    languages = ", ".join(server.get("languages", [])).upper()
    if not languages:
        return ""
    return f"{languages} for LAN hosts at {', '.join(server['addresses']) or 'no address'}"


def _firewall(firewall: dict[str, Any]) -> str:
    if firewall["problem"]:
        return str(firewall["problem"])
    if not firewall["active"]:
        return "no rules in place"
    compared = firewall.get("compared")
    if compared is None:
        return "rules in place"
    return f"{_agreement(compared)} ({duration(compared['seconds_ago'])} ago)"


def differs(found: dict[str, int]) -> bool:
    """Whether a comparison of the kernel's rules with the table found anything."""
    return bool(found["missing"] or found["surplus"])


def _agreement(found: dict[str, int]) -> str:
    if not differs(found):
        return "kernel agrees with the table"
    return f"{_difference(found)}: igdpcp-cli status --repair"


def _difference(found: dict[str, int]) -> str:
    """What is wrong, as a list."""
    counts = [(count, word) for count, word in ((found["missing"], "missing"), (found["surplus"], "unknown")) if count]
    (first, word), *others = counts
    parts = [f"{first} rule{'s' if first > 1 else ''} {word}", *(f"{count} {other}" for count, other in others)]
    return ", ".join(parts)


def _port_conflicts(conflicts: list[str]) -> str:
    """Empty while there are none."""
    more = f" (and {len(conflicts) - 1} more)" if len(conflicts) > 1 else ""
    return f"{conflicts[0]}{more}" if conflicts else ""


def _errors(errors: list[dict[str, Any]]) -> list[str]:
    """The latest ones, the newest first."""
    latest = sorted(errors, key=lambda error: float(error["seconds_ago"]))[:ERRORS_SHOWN]
    return [f"{duration(error['seconds_ago'])} ago: {error['text'].removeprefix('event=')}" for error in latest]


def _advice(status: Status) -> list[str]:
    """What a person can do about what is wrong, the worst first."""
    advice = []
    if not status["firewall"]["active"]:
        advice.append("Run '/etc/init.d/firewall restart'; then 'logread -e igdpcp' says what is missing.")
    elif differs(status["firewall"].get("compared") or {"missing": 0, "surplus": 0}):
        advice.append("Run 'igdpcp-cli status --repair'.")
    elif status["firewall"]["problem"]:
        advice.append("Change the firewall so that it lets mapped ports through; 'nft list ruleset' shows its rules.")
    if not status["activation"]["usable"]:
        advice.append(UNUSABLE_ADVICE)
    elif status["activation"]["state"] in ACTIVATION_ADVICE and status["upstream"]["type"] != "none":
        advice.append(ACTIVATION_ADVICE[status["activation"]["state"]])
    if status["igd"]["conflict"]:
        advice.append("Stop the other IGD, or set option 'force' to 1 in /etc/config/igdpcp.")
    if problems := status.get("static", {}).get("problems"):
        advice.append(f"Static {problems[0]}")
    if status.get("port_conflicts"):
        advice.append("Give that program or redirect another port, or let the client map another one.")
    warnings = status.get("warnings", [])
    if warnings:
        more = f" ({len(warnings) - 1} more)" if len(warnings) > 1 else ""
        advice.append(f"Correct /etc/config/igdpcp{more}: {warnings[0]}")
    return advice


Mapping = dict[str, Any]


def _endpoint(address: str | None, port: int) -> str:
    return f"[{address}]:{port}" if ":" in (address or "") else f"{address or '?'}:{port}"


def _external(mapping: Mapping) -> str:
    """Where the internet comes in, where that is known."""
    return _endpoint(mapping["external_address"], mapping.get("public_port") or mapping["external_port"])


def _shown(mapping: Mapping) -> str:
    """The port that control points are shown, and by which it is deleted, where that is another one."""
    shown = mapping["external_port"]
    return str(shown) if mapping.get("public_port") not in (None, shown) else ""


def _client(mapping: Mapping) -> str:
    return _endpoint(mapping["client"], mapping["client_port"])


def _remote(mapping: Mapping) -> str:
    """Who may come in; empty: everybody."""
    port = mapping.get("remote_port")
    return _endpoint(mapping["remote_host"] or "*", port) if port else str(mapping["remote_host"])


def _asked_by(mapping: Mapping) -> str:
    """The host, and in what it asked where that was not UPnP alone; the operator is no host."""
    who, owner, shared_with = mapping["requester"], mapping["owner"], mapping.get("shared_with", "")
    if shared_with:
        return f"{who} ({owner}, {shared_with})"
    return f"{who} ({owner})" if who and owner in (Owner.PCP, Owner.NATPMP) else who or owner


def _lease(mapping: Mapping) -> str:
    return "until deleted" if mapping["lease_left"] is None else duration(mapping["lease_left"])


_COLUMNS: tuple[tuple[str, Callable[[Mapping], object]], ...] = (
    ("PINHOLE", lambda m: m["id"].removeprefix("pinhole-") if m["kind"] == "pinhole" else ""),
    ("PROTO", lambda m: m["protocol"]),
    ("EXTERNAL", _external),
    ("SHOWN AS", _shown),
    ("CLIENT", _client),
    ("FROM", _remote),
    ("LEASE LEFT", _lease),
    ("STATE", lambda m: f"{m['state']}, local_only" if m["local_only"] else m["state"]),
    ("ASKED BY", _asked_by),
    ("AGENT", lambda m: m["agent"]),
    ("DESCRIPTION", lambda m: m["description"]),
)


def mappings_table(mappings: list[Mapping]) -> str:
    """The answer to 'mappings' as a table; a column that is empty for all of them is left out.

    A pinhole has its number in a column of its own: 'delete pinhole NUMBER' closes it.
    """
    if not mappings:
        return "no mappings"
    columns = []
    for title, cell in _COLUMNS:
        cells = [printable(cell(mapping) or "") for mapping in mappings]
        if any(cells):
            width = max(map(len, [title, *cells]))
            columns.append([f"{text:{width}}" for text in [title, *cells]])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def repaired(result: dict[str, Any]) -> str:
    """What 'status --repair' found and did, in a sentence or two."""
    found, left = result["found"], result["left"]
    done = "The rules could not be read; all were laid anew." if found is None else ""
    if found and differs(found):
        done = f"{_difference(found)}; all were laid anew."
    if differs(left):
        return f"{done} Still: {_difference(left)}; somebody else changes them, see 'logread -e igdpcp'.".lstrip()
    return f"{done} The kernel agrees with the table.".lstrip()


def added(mapping: Mapping) -> str:
    """What 'add' achieved, in a sentence."""
    where = f"{mapping['protocol']} {_external(mapping)}"
    target = _client(mapping)
    note = " This router only: the carrier has not opened it." if mapping["local_only"] else ""
    if shown := _shown(mapping):
        note += f" Control points are shown port {shown}, which the carrier did not give."
    return f"{where} reaches {target} ({_lease(mapping)}).{note}"


def deleted(mapping: Mapping) -> str:
    """What 'delete' did, in a sentence."""
    if mapping["kind"] == "pinhole":
        return f"The pinhole to {mapping['protocol']} {_client(mapping)} is closed."
    target = _client(mapping)
    return f"{mapping['protocol']} {_external(mapping)} is closed; it reached {target}."
