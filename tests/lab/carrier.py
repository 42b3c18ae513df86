# SPDX-License-Identifier: Apache-2.0
"""The carrier's PCP server: Debian's miniupnpd, a scripted one of our own, or a strict one with vendors' habits."""

from __future__ import annotations

import json
import re
import select
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab import topology
from tests.lab.namespaces import LabError, Process, poll
from tests.lab.topology import Lab

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".cache/peers"
ALL_HOSTS = "224.0.0.1"
CONTROL_PATIENCE = 10.0
PROBE_PATIENCE = 5.0

# It logs with LOG_CONS, which costs up to 400 ms a line where nobody reads syslog: both ways out lead to /dev/null.
START_MINIUPNPD = """
for way in /dev/console /dev/log; do [ -e $way ] && mount --bind /dev/null $way; done
exec "$@"
"""

MINIUPNPD_CHAINS = """
table inet miniupnpd
delete table inet miniupnpd
table inet miniupnpd {
	chain forward {
		type filter hook forward priority filter; policy accept;
		jump MINIUPNPD
	}
	chain MINIUPNPD {
	}
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		jump MINIUPNPD-NAT
	}
	chain MINIUPNPD-NAT {
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		jump MINIUPNPD-POSTROUTING
	}
	chain MINIUPNPD-POSTROUTING {
	}
}
"""

MINIUPNPD_LEGACY_CHAINS = """
*nat
:MINIUPNPD-NAT - [0:0]
:MINIUPNPD-POSTROUTING - [0:0]
-A PREROUTING -i outside -j MINIUPNPD-NAT
-A POSTROUTING -o outside -j MINIUPNPD-POSTROUTING
COMMIT
*filter
:MINIUPNPD - [0:0]
-A FORWARD -i outside ! -o outside -j MINIUPNPD
COMMIT
"""

MINIUPNPD_CONFIG = """
ext_ifname=outside
listening_ip=inside
enable_natpmp=yes
enable_upnp=no
secure_mode=no
system_uptime=no
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
upnp_forward_chain=MINIUPNPD
upnp_nat_chain=MINIUPNPD-NAT
upnp_nat_postrouting_chain=MINIUPNPD-POSTROUTING
pcp_allow_thirdparty={third_party}
min_lifetime={minimum}
max_lifetime={maximum}
uuid=7a4f0c5e-2f5d-4c8e-9d3a-0c3d5a1b2c3d
allow 0-65535 100.64.0.0/10 0-65535
allow 0-65535 192.168.0.0/16 0-65535
deny 0-65535 0.0.0.0/0 0-65535
"""

NFT_DNAT = re.compile(r"@nh,72,8 (0x[0-9a-f]+) th dport (\d+) dnat ip to ([\d.]+):(\d+)")
NFT_DNAT_NAMED = re.compile(r"(?:ip protocol|meta l4proto) (tcp|udp) th dport (\d+) dnat ip to ([\d.]+):(\d+)")
LEGACY_MASQUERADE = re.compile(r"-s ([\d.]+)/32 -p (tcp|udp) .*--sport (\d+) -j MASQUERADE --to-ports (\d+)")
PROTOCOL_NAMES = {"0x6": "tcp", "0x11": "udp"}


@dataclass(frozen=True, slots=True)
class CarrierMapping:
    """One mapping as the carrier holds it: ``protocol`` external_port -> address:port.

    What follows is known of our own carriers only, the last of it of the simulated one.
    """

    protocol: str
    external_port: int
    address: str
    port: int
    lifetime: int = field(default=0, compare=False)
    filters: tuple[str, ...] = field(default=(), compare=False)
    description: str = field(default="", compare=False)
    nonce: str = field(default="", compare=False)
    external_address: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.protocol} {self.external_port} -> {self.address}:{self.port}"


class MiniupnpdCarrier:
    """Debian's miniupnpd, unpacked by ci/setup, as the carrier's PCP and NAT-PMP server; ``variant`` of its NAT."""

    def __init__(
        self,
        lab: Lab,
        variant: str = "nftables",
        *,
        third_party: bool = True,
        minimum: int = 10,
        maximum: int = 86400,
    ) -> None:
        self.variant = variant
        self._lab = lab
        self._program = PEERS / variant / "usr/sbin/miniupnpd"
        if not self._program.exists():
            raise LabError(f"no {self._program}: run ci/setup")
        self._config = lab.directory / f"miniupnpd-{variant}.conf"
        self._config.write_text(
            MINIUPNPD_CONFIG.format(third_party="yes" if third_party else "no", minimum=minimum, maximum=maximum)
        )
        if variant == "nftables":
            lab.carrier.nft(MINIUPNPD_CHAINS)
        else:
            lab.carrier.run(["iptables-legacy-restore", "--noflush"], input=MINIUPNPD_LEGACY_CHAINS)
        self.process = self._start()

    def _start(self) -> Process:
        pid_file = self._config.with_suffix(".pid")
        argv = [str(self._program), "-d", "-f", str(self._config), "-P", str(pid_file)]
        process = self._lab.carrier.popen(["sh", "-c", START_MINIUPNPD, "miniupnpd", *argv], name="miniupnpd")
        process.wait_for("Listening for NAT-PMP/PCP")
        return process

    def stop(self) -> None:
        """End it; its rules stay in the kernel, as they do at a real carrier."""
        self.process.stop()

    def kill(self) -> None:
        self.process.kill()

    def restart(self, *, forget: bool = True) -> None:
        """Start it anew: its epoch begins at 0 again. ``forget``: the rules of the time before go, too."""
        self.process.stop()
        if forget:
            self.forget()
        self.process = self._start()

    def forget(self) -> None:
        """Take its rules out of the kernel behind its back."""
        if self.variant == "nftables":
            self._lab.carrier.nft(MINIUPNPD_CHAINS)
            return
        for table, chain in (("nat", "MINIUPNPD-NAT"), ("nat", "MINIUPNPD-POSTROUTING"), ("filter", "MINIUPNPD")):
            self._lab.carrier.run(["iptables-legacy", "-t", table, "-F", chain])

    def table(self) -> list[CarrierMapping]:
        """The mappings in the kernel, by external port."""
        if self.variant == "nftables":
            listing = self._lab.carrier.nft_list("chain", "inet", "miniupnpd", "MINIUPNPD-NAT")
            rows = [(PROTOCOL_NAMES[number], *rest) for number, *rest in NFT_DNAT.findall(listing)]
            rows += NFT_DNAT_NAMED.findall(listing)
        else:
            # Its DNAT rules carry a revision that iptables-legacy-save cannot print; their mirrors for the way out can.
            saved = "\n".join(self._lab.carrier.iptables_rules("nat"))
            rows = [(p, external, a, port) for a, p, port, external in LEGACY_MASQUERADE.findall(saved)]
        found = [CarrierMapping(protocol, int(wan), address, int(port)) for protocol, wan, address, port in rows]
        return sorted(found, key=lambda mapping: (mapping.external_port, mapping.protocol))

    def wait_until_only(self, *wanted: CarrierMapping) -> None:
        """Return when these are all; what igdpcp maps to learn the external address goes soon after the first one."""
        poll(lambda: self.table() == list(wanted), PROBE_PATIENCE, f"the carrier holding only {wanted}")


class ScriptedCarrier:
    """Our own strict PCP server, a process in the carrier's namespace; packets flow, unless ``nat`` is off.

    Switches, as arguments here or later by ``set``: ``external`` address; ``refuse`` [result, lifetime] for every
    creation, ``refuse_ports`` {port: [result, lifetime]} for suggested ones, ``refuse_deletes``; ``silent``; ``drop``
    the next n requests; ``grant_port`` instead of what is suggested; ``block`` [low, high] of the ports it gives;
    ``cap`` and ``floor`` of lifetimes; ``delay`` of answers in seconds; ``third_party`` and ``prefer_failure`` options
    allowed; ``quota`` of mappings per internal address.
    """

    def __init__(self, lab: Lab, *, nat: bool = True, address: str = topology.CARRIER_ADDRESS, **switches: Any) -> None:
        self._lab = lab
        self._argv = [sys.executable, "-S", "-m", "tests.support.scripted_pcp", address, *([] if nat else ["--no-nat"])]
        self._switches = switches
        self.process = self._start()

    def _start(self) -> Process:
        process = self._lab.carrier.popen(self._argv, name="scripted_pcp", env={"PYTHONPATH": str(ROOT)}, control=True)
        self.process = process
        self._read()
        if self._switches:
            self.set(**self._switches)
        return process

    def _read(self) -> Any:
        ready, _, _ = select.select([self.process.stdout], [], [], CONTROL_PATIENCE)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            raise LabError(f"the scripted PCP server does not answer:\n{self.process.output()}")
        return json.loads(line)

    def _order(self, **order: Any) -> Any:
        try:
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise LabError(f"the scripted PCP server has ended:\n{self.process.output()}") from error
        return self._read()

    def set(self, **switches: Any) -> None:
        """Turn switches; they hold until turned again."""
        self._order(set=switches)

    def refuse(self, result: int, lifetime: int = 30, *, port: int | None = None) -> None:
        """Refuse every creation, or those that suggest ``port``."""
        if port is None:
            self.set(refuse=[result, lifetime])
        else:
            self.set(refuse_ports={str(port): [result, lifetime]})

    def accept(self) -> None:
        """Take back every refusal and silence."""
        self.set(refuse=None, refuse_ports={}, refuse_deletes=None, silent=False, drop=0)

    def reset(self, *, epoch: int = 0, forget: bool = True, announce: bool = False) -> None:
        """Begin the epoch anew; ``forget``: as a server that lost its state; ``announce``: and tell everybody."""
        self._order(reset={"epoch": epoch, "forget": forget})
        if announce:
            self.announce()

    def announce(self, address: str = ALL_HOSTS) -> None:
        """Send an unsolicited ANNOUNCE."""
        self._order(announce=address)

    def table(self) -> list[CarrierMapping]:
        """The mappings that live, by external port."""
        rows = self._order(get="table")
        found = [CarrierMapping(**{**row, "filters": tuple(row["filters"])}) for row in rows]
        return sorted(found, key=lambda mapping: (mapping.external_port, mapping.protocol))

    def counters(self) -> dict[str, int]:
        """``datagrams``, ``result_N``, ``dropped_on_demand``, ``dropped_nonsense``."""
        return dict(self._order(get="counters"))

    def requests(self) -> list[dict[str, Any]]:
        """Every request it saw, in order: ``opcode``, ``result``, ``raw`` and, for MAP, its fields and ``options``."""
        return list(self._order(get="requests"))

    def maps(self) -> list[dict[str, Any]]:
        """The MAP requests among them."""
        return [request for request in self.requests() if "internal_port" in request]

    def stop(self) -> None:
        self.process.stop()

    def kill(self) -> None:
        self.process.kill()

    def restart(self) -> None:
        """Start it anew, with an empty table, epoch 0 and the first switches."""
        self.process.stop()
        self._start()


class SimulatedCarrier:
    """A strict PCP and NAT-PMP server with the habits of ``profile``, a process in the carrier's namespace.

    ``profile`` is a name of simulated_carrier.profiles.PROFILES, ``overrides`` change its behaviours. It gives ports of
    the ``external`` addresses, and packets flow through them. The same ``seed`` makes the same choices. It has been
    running for ``epoch`` seconds, so that a restart shows at once.
    """

    def __init__(
        self,
        lab: Lab,
        profile: str = "strict",
        *,
        address: str = topology.CARRIER_ADDRESS,
        external: Sequence[str] = (topology.EXTERNAL_ADDRESS,),
        seed: int = 1,
        epoch: int = 86400,
        **overrides: Any,
    ) -> None:
        self._lab = lab
        self._settings = {"address": address, "external": list(external), "outside": topology.CARRIER_OUTSIDE,
                          "profile": profile, "overrides": overrides, "seed": seed}  # fmt: skip
        self.process = self._start(epoch)

    def _start(self, epoch: int) -> Process:
        self._control = self._lab.directory / f"carrier-{len(self._lab.carrier.processes)}.sock"
        settings = json.dumps({**self._settings, "epoch": epoch, "control": str(self._control)})
        argv = [sys.executable, "-S", "-m", "tests.lab.simulated_carrier", settings]
        process = self._lab.carrier.popen(argv, name="simulated_carrier", env={"PYTHONPATH": str(ROOT)})
        process.wait_for("ready")
        return process

    def _order(self, order: str, /, **arguments: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(CONTROL_PATIENCE)
            try:
                connection.connect(str(self._control))
                connection.sendall(json.dumps({"do": order, "with": arguments}).encode() + b"\n")
                answer = json.loads(connection.makefile("rb").readline())
            except (OSError, ValueError) as error:
                raise LabError(f"the simulated carrier does not answer:\n{self.process.output()}") from error
        if "error" in answer:
            raise LabError(f"{order}: {answer['error']}")
        return answer["result"]

    def table(self) -> list[CarrierMapping]:
        """The mappings that live, by external port."""
        found = [CarrierMapping(**{**row, "filters": tuple(row["filters"])}) for row in self._order("table")]
        return sorted(found, key=lambda mapping: (mapping.external_port, mapping.protocol))

    def block(self, address: str) -> range:
        """The external ports that an internal address can have; KeyError before its first mapping."""
        low, high = self._order("blocks")[address]
        return range(low, high + 1)

    def counters(self) -> dict[str, int]:
        """``received``, ``version_V_opcode_O``, ``result_R``, ``dropped_*``, ``lost_*`` and ``sent``."""
        return dict(self._order("counters"))

    def requests(self, last: int = 1000) -> list[dict[str, Any]]:
        """The requests that came last, as ScriptedCarrier tells them; ``result`` None: not answered."""
        return list(self._order("requests", last=last))

    def maps(self, last: int = 1000) -> list[dict[str, Any]]:
        """The PCP MAP requests among them."""
        return [request for request in self.requests(last) if "internal_port" in request]

    def switch(self, **switches: Any) -> None:
        """Turn switches of the link (simulated_carrier.link.Switches); they hold until turned again."""
        self._order("switch", **switches)

    def restart(self, *, announce: bool | None = None) -> None:
        """As after a power cut: every mapping is gone, and the epoch begins anew unless the profile keeps it.

        ``announce``: whether it tells everybody, None: as the profile does.
        """
        self._order("restart", announce=announce)

    def lose_state(self) -> None:
        """Lose every mapping behind the clients' backs: nothing is said, and the epoch goes on."""
        self._order("lose_state")

    def announce(self) -> None:
        """Send the unsolicited announcements of a server that has started."""
        self._order("announce")

    def use_addresses(self, *addresses: str) -> None:
        """Move every mapping to these external addresses, and say so as the profile does."""
        self._order("use_addresses", addresses=addresses)

    def use_profile(self, name: str, **overrides: Any) -> None:
        """Behave like this from now on; what was granted stays."""
        self._order("use_profile", name=name, overrides=overrides)

    def stop(self) -> None:
        """End it; its translations stay in the kernel, as they do at a real carrier."""
        self.process.stop()

    def kill(self) -> None:
        self.process.kill()

    def start(self) -> None:
        """Start it anew after its end, with epoch 0: nothing is known, also not to the kernel."""
        self.process = self._start(epoch=0)
