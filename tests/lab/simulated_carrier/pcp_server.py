# SPDX-License-Identifier: Apache-2.0
"""What a strict server answers to one PCP request (RFC 6887 sections 8.2, 11.3, 13 and 15.1; RFC 7220)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.lab.simulated_carrier import packets
from tests.lab.simulated_carrier.packets import MapRequest
from tests.lab.simulated_carrier.profiles import Profile
from tests.lab.simulated_carrier.table import (
    ANY_ADDRESS,
    NO_RESOURCES,
    Entry,
    MappingTable,
    Translation,
    Wish,
)
from tests.support.pcp_octets import (
    ADDRESS_MISMATCH,
    ANNOUNCE,
    CANNOT_PROVIDE_EXTERNAL,
    DESCRIPTION,
    EXCESSIVE_REMOTE_PEERS,
    FILTER,
    HEADER,
    LONG,
    LONGEST,
    MALFORMED_OPTION,
    MALFORMED_REQUEST,
    MANDATORY_OPTIONS,
    MAP,
    NOT_AUTHORIZED,
    OPTION_LENGTHS,
    OPTION_NAMES,
    PREFER_FAILURE,
    PROTOCOLS,
    SHORT,
    THIRD_PARTY,
    UNSUPP_OPCODE,
    UNSUPP_OPTION,
    UNSUPP_PROTOCOL,
    UNSUPP_VERSION,
    Refusal,
    address_text,
    options_of,
)

DESCRIPTION_MAX = 1016  # octets, RFC 7220 section 4
IPV4_PREFIXES = range(96, 129)  # RFC 6887 section 13.3
WHOLE_HOST = 128
RESULT_OCTET = 3

Source = tuple[str, int]
EpochClock = Callable[[float], int]


class NotParsed(Refusal):
    """A refusal of what is too long, too short or of another version, so that no field of it counts."""


@dataclass(slots=True)
class Options:
    """What the options of a MAP request ask for; ``processed`` are those that a success repeats."""

    internal: str
    exact: bool = False
    clears: bool = False
    peers: list[str] = field(default_factory=list)
    description: bytes | None = None
    processed: bytes = b""


class PcpServer:
    """Answers PCP requests from a mapping table, whose profile says how; ``epoch`` tells the time."""

    def __init__(self, table: MappingTable, epoch: EpochClock) -> None:
        self._table = table
        self._epoch = epoch

    @property
    def _profile(self) -> Profile:
        return self._table.profile

    def answer(self, raw: bytes, source: Source, now: float) -> bytes:
        """The response to a request of at least two octets."""
        version = raw[0] if raw[0] in self._profile.versions else max(self._profile.versions)
        try:
            return self._process(raw, source, now)
        except Refusal as refusal:
            lifetime = refusal.lifetime if self._profile.error_lifetime is None else self._profile.error_lifetime
            parsed = not isinstance(refusal, NotParsed)
            return packets.error(raw, refusal.result, lifetime, self._epoch(now), version=version, parsed=parsed)

    def announcement(self, now: float) -> bytes:
        return packets.success(max(self._profile.versions), ANNOUNCE, 0, self._epoch(now))

    def update(self, entry: Entry, request: MapRequest, now: float) -> bytes:
        """The Mapping Update of an entry whose external side has changed; a refusal when that broke a promise."""
        if not self.still_fits(entry):
            return packets.error(request.raw, CANNOT_PROVIDE_EXTERNAL, LONG, self._epoch(now), version=request.version)
        kept = (THIRD_PARTY, FILTER)
        options = b"".join(whole for code, _, whole in options_of(request.options) if code in kept)
        return self._granted(request, entry, options, now)

    @staticmethod
    def still_fits(entry: Entry) -> bool:
        """Whether an entry has what its last request wanted under PREFER_FAILURE (section 14.2)."""
        request, translation = entry.request, entry.translation
        if request is None or PREFER_FAILURE not in [code for code, _, _ in options_of(request.options)]:
            return True
        return _suggests(request, translation.external, translation.external_port)

    def _process(self, raw: bytes, source: Source, now: float) -> bytes:
        version, opcode = raw[0], raw[1]
        if version not in self._profile.versions:
            raise NotParsed(UNSUPP_VERSION)
        needed = packets.map_length(version) if opcode == MAP else HEADER
        if not needed <= len(raw) <= LONGEST or len(raw) % 4:
            raise NotParsed(MALFORMED_REQUEST)
        if packets.client_address(raw) != source[0]:
            raise Refusal(ADDRESS_MISMATCH)
        if opcode not in self._profile.opcodes:
            raise Refusal(UNSUPP_OPCODE)
        if opcode == ANNOUNCE:
            self._check_announce_options(raw[HEADER:])
            return packets.success(version, ANNOUNCE, 0, self._epoch(now))
        request = packets.parse_map(raw)
        return self._map(request, self._read_options(request, source), source, now)

    # Options (sections 7.3 and 13), in the order in which they stand

    @staticmethod
    def _check_announce_options(data: bytes) -> None:
        for code, _, _ in options_of(data):
            if code in MANDATORY_OPTIONS:
                raise Refusal(MALFORMED_OPTION if code in OPTION_NAMES else UNSUPP_OPTION)

    def _read_options(self, request: MapRequest, source: Source) -> Options:
        options = Options(source[0])
        seen: set[int] = set()
        for code, data, whole in options_of(request.options):
            if code not in OPTION_NAMES:
                if code in MANDATORY_OPTIONS:
                    raise Refusal(UNSUPP_OPTION)
                continue
            if len(data) != OPTION_LENGTHS.get(code, len(data)) or (code in seen and code != FILTER):
                raise Refusal(MALFORMED_OPTION)
            seen.add(code)
            if code == DESCRIPTION:
                options.processed += self._read_description(options, data)
                continue
            options.processed += whole
            if code == THIRD_PARTY:
                options.internal = self._read_third_party(data, source)
            elif code == PREFER_FAILURE:
                self._check_prefer_failure(request)
                options.exact = True
            else:
                self._read_filter(options, data, request)
        return options

    def _read_third_party(self, data: bytes, source: Source) -> str:
        if not self._profile.third_party:
            raise Refusal(UNSUPP_OPTION)
        address = address_text(data)
        if address == source[0]:
            raise Refusal(MALFORMED_REQUEST)
        return address

    def _check_prefer_failure(self, request: MapRequest) -> None:
        if not self._profile.prefer_failure:
            raise Refusal(UNSUPP_OPTION)
        if not request.lifetime or not request.external_port:
            raise Refusal(MALFORMED_OPTION)

    def _read_filter(self, options: Options, data: bytes, request: MapRequest) -> None:
        if not self._profile.peers:
            raise Refusal(UNSUPP_OPTION)
        prefix, peer_port, peer = data[1], int.from_bytes(data[2:4], "big"), address_text(data[4:20])
        if not request.lifetime:
            raise Refusal(MALFORMED_OPTION)
        if prefix == 0 and self._profile.clearing_filter:
            options.clears, options.peers = True, []
            return
        if prefix not in IPV4_PREFIXES or ":" in peer:
            raise Refusal(MALFORMED_OPTION)
        if prefix != WHOLE_HOST or peer_port:
            raise Refusal(EXCESSIVE_REMOTE_PEERS)  # this NAT knows whole hosts only
        options.peers.append(peer)

    def _read_description(self, options: Options, data: bytes) -> bytes:
        """Keep what fits, and say what was kept."""
        if len(data) > DESCRIPTION_MAX:
            raise Refusal(MALFORMED_OPTION)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return b""
        if not self._profile.description:
            return b""
        kept = text.encode()[: self._profile.description].decode(errors="ignore").encode()
        options.description = kept
        return bytes([DESCRIPTION, 0]) + len(kept).to_bytes(2, "big") + kept + bytes(-len(kept) % 4)

    # MAP (sections 11.3 and 15.1)

    def _map(self, request: MapRequest, options: Options, source: Source, now: float) -> bytes:
        if request.protocol == 0 and request.internal_port:
            raise Refusal(MALFORMED_REQUEST)
        entry = self._table.get((request.protocol, options.internal, request.internal_port))
        if entry and self._profile.checks_nonce and entry.nonce != request.nonce:
            raise Refusal(NOT_AUTHORIZED, entry.rest(now))
        if not request.lifetime:
            return self._delete(request, entry, options, now)
        if request.protocol not in PROTOCOLS or not request.internal_port:
            raise Refusal(UNSUPP_PROTOCOL)
        if ":" in options.internal:
            raise Refusal(NO_RESOURCES, SHORT)  # this NAT knows IPv4 only
        entry = self._grant(request, entry, options, now)
        self._table.put(replace(entry, request=request, client=source))
        return self._granted(request, entry, options.processed, now)

    def _grant(self, request: MapRequest, entry: Entry | None, options: Options, now: float) -> Entry:
        key = (request.protocol, options.internal, request.internal_port)
        before = () if entry is None or options.clears else entry.translation.peers
        peers = tuple(dict.fromkeys((*before, *options.peers)))
        if len(peers) > self._profile.peers:
            raise Refusal(EXCESSIVE_REMOTE_PEERS)
        if entry is None:
            wish = Wish(key, request.nonce, request.external_port, request.external_address, options.exact)
            address, port = self._table.assign(wish, now)
            description = b""
        else:
            address, port = entry.translation.external, entry.translation.external_port
            description = entry.description
            if options.exact and not _suggests(request, address, port):
                raise Refusal(CANNOT_PROVIDE_EXTERNAL, LONG)
        lifetime = min(max(request.lifetime, self._profile.shortest), self._profile.longest)
        return Entry(
            Translation(*key, address, port, peers),
            request.nonce,
            now + lifetime,
            description if options.description is None else options.description,
        )

    def _granted(self, request: MapRequest, entry: Entry, options: bytes, now: float) -> bytes:
        data = packets.map_data(request, entry.translation.external_port, entry.translation.external)
        return packets.success(request.version, MAP, entry.rest(now), self._epoch(now), data + options)

    def _delete(self, request: MapRequest, entry: Entry | None, options: Options, now: float) -> bytes:
        """Deleting what is not there succeeds."""
        if entry is not None:
            self._table.remove(entry, now)
        data = packets.map_data(request, request.external_port, request.external_address)
        return packets.success(request.version, MAP, 0, self._epoch(now), data + options.processed)


def _suggests(request: MapRequest, address: str, port: int) -> bool:
    return request.external_port == port and request.external_address in (*ANY_ADDRESS, address)
