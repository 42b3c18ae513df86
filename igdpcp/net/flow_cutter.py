# SPDX-License-Identifier: Apache-2.0
"""Cutting established flows by ctnetlink: the kernel's connection tracking is asked for them, and told to forget them.

The kernel picks what belongs to a host and protocol; what it hands over is compared again before anything is deleted,
since a kernel before 5.8 knows no filter and hands over everything. pyroute2 takes the messages apart; it is loaded,
and the thread made, when the first flow is to be cut.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from itertools import islice
from typing import Any

from igdpcp.errors import OurFault
from igdpcp.log import line
from igdpcp.model import IPAddress
from igdpcp.net import message_classes
from igdpcp.openings import Flows
from igdpcp.values import dataclass

LOG = logging.getLogger("igdpcp.net")
WAITING_LIMIT = 65536  # as many as there can be mappings
ROUND_LIMIT = 1024  # flows that are deleted before the kernel is asked again
ROUNDS_LIMIT = 64
PATIENCE = 2.0  # seconds; the kernel answers at once

NETLINK_NETFILTER = 12  # linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300  # netlink(7)
NLMSG_ERROR, NLMSG_DONE, NLMSG_ALIGNTO = 2, 3, 4
CT_GET, CT_DELETE = 0x101, 0x102  # linux/nfnetlink.h: NFNL_SUBSYS_CTNETLINK << 8; nfnetlink_conntrack.h
BY_SOURCE, BY_PROTOCOL, BY_SOURCE_PORT = 1 << 0, 1 << 3, 1 << 4  # nf_internals.h: CTA_FILTER_F_CTA_*
_RECEIVE_SPACE = 65536
_HEADER = struct.Struct("=LHHLL")  # netlink(7): struct nlmsghdr
_ERROR = struct.Struct("=l")
_WITHOUT = (errno.EINVAL, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP)  # what a kernel without ctnetlink answers


@dataclass(frozen=True, slots=True)
class _Tuple:
    """One direction of a flow, with the attribute of which it was made."""

    source: tuple[IPAddress, int]
    destination: tuple[IPAddress, int]
    attribute: Any


class FlowCutter:
    """``is_local``: whether an address is one of the LANs; it is called in the thread."""

    def __init__(self, is_local: Callable[[IPAddress], bool]) -> None:
        self._is_local = is_local
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Flows, asyncio.Future[None]] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._task: asyncio.Task[None] | None = None
        self._fault = ""

    async def cut(self, flows: Flows) -> None:
        """Returns when they are forgotten, or cannot be; what waits meanwhile is cut together."""
        if len(self._waiting) >= WAITING_LIMIT:
            return
        done = self._waiting.setdefault(flows, self._loop.create_future())
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._work())
        await asyncio.shield(done)

    async def close(self) -> None:
        """Cut no more."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for done in self._waiting.values():
            done.cancel()
        if self._thread:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="flows")
        while self._waiting:
            batch, self._waiting = self._waiting, {}
            try:
                count = await self._loop.run_in_executor(self._thread, self._cut_all, list(batch))
                LOG.debug(line("flows_cut", flows=count))
                self._fault = ""
            except Exception as error:  # nobody may wait for ever, whatever a message of the kernel has in it
                if self._fault != str(error):
                    unforeseen = None if isinstance(error, OurFault) else error
                    LOG.warning(line("flows_not_cut", reason=error), exc_info=unforeseen)
                self._fault = str(error)
            finally:
                for done in batch.values():
                    if not done.done():
                        done.set_result(None)

    # What follows runs in the thread.

    def _cut_all(self, wanted: Iterable[Flows]) -> int:
        """How many were cut; raises OurFault."""
        try:
            [message_class] = message_classes.load("pyroute2.netlink.nfnetlink", ("nfctsocket:nfct_msg",))
        except ImportError as error:
            raise OurFault(f"pyroute2 cannot be loaded ({error}); install python3-pyroute2") from error
        groups: dict[tuple[Any, ...], list[Flows]] = {}
        for flows in wanted:
            groups.setdefault((flows.protocol, flows.host), []).append(flows)
        try:
            return sum(self._cut_group(message_class, group) for group in groups.values())
        except OSError as error:
            remedy = ": install kmod-nf-conntrack-netlink" if error.errno in _WITHOUT else ""
            raise OurFault(f"established connections cannot be cut ({error.strerror or error}){remedy}") from error

    def _cut_group(self, message_class: Any, group: list[Flows]) -> int:
        """Flows of one host and protocol."""
        cut = 0
        for direction in ("REPLY", "ORIG") if any(flows.outgoing for flows in group) else ("REPLY",):
            for _ in range(ROUNDS_LIMIT):
                doomed = self._doomed(message_class, group, direction)
                with _Table(message_class) as table:
                    for origin, id in doomed:
                        table.delete(origin, id)
                cut += len(doomed)
                if len(doomed) < ROUND_LIMIT:
                    break
        return cut

    def _doomed(self, message_class: Any, group: list[Flows], direction: str) -> list[tuple[_Tuple, int]]:
        """The first ROUND_LIMIT of them."""
        with _Table(message_class) as table:
            found = (
                (origin, id)
                for origin, reply, id in table.find(group, direction)
                if any(self._belongs(flows, origin, reply, direction) for flows in group)
            )
            return list(islice(found, ROUND_LIMIT))

    def _belongs(self, flows: Flows, origin: _Tuple, reply: _Tuple, direction: str) -> bool:
        host = (flows.host, flows.port)
        if direction == "ORIG":
            return flows.outgoing and origin.source == host and reply.destination in flows.destinations
        if reply.source != host or origin.destination not in flows.destinations:
            return False
        if origin.destination == host and self._is_local(origin.source[0]):
            return False
        remote_host, remote_port = origin.source
        if remote_host in flows.spared:
            return False
        return flows.remote_host in (None, remote_host) and flows.remote_port in (0, remote_port)


class _Table:
    """The kernel's table of flows, as a context manager; methods raise OSError."""

    def __init__(self, message_class: Any) -> None:
        self._message_class = message_class
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._socket.settimeout(PATIENCE)

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def find(self, group: list[Flows], direction: str) -> Iterator[tuple[_Tuple, _Tuple, int]]:
        """Both directions and the id of each flow in which the host of this group is the source of ``direction``."""
        host, ports = group[0].host, {flows.port for flows in group}
        version = "V4" if host.version == 4 else "V6"
        proto, flags = [["CTA_PROTO_NUM", int(group[0].protocol)]], BY_PROTOCOL
        if host.version == 4:  # Linux compares IPv6 addresses the wrong way round here
            flags |= BY_SOURCE
        if len(ports) == 1:
            proto.append(["CTA_PROTO_SRC_PORT", *ports])
            flags |= BY_SOURCE_PORT
        side = [
            ["CTA_TUPLE_IP", {"attrs": [[f"CTA_IP_{version}_SRC", str(host)]]}],
            ["CTA_TUPLE_PROTO", {"attrs": proto}],
        ]
        sides = [[f"CTA_FILTER_{each}_FLAGS", flags if each == direction else 0] for each in ("ORIG", "REPLY")]
        attributes = [[f"CTA_TUPLE_{direction}", {"attrs": side}], ["CTA_FILTER", {"attrs": sides}]]
        self._send(CT_GET, NLM_F_REQUEST | NLM_F_DUMP, host, attributes)
        for data in self._answers():
            message = self._message_class(data)
            message.decode()
            origin, reply = (_tuple(message.get_attr(f"CTA_TUPLE_{each}"), version) for each in ("ORIG", "REPLY"))
            if origin and reply:
                yield origin, reply, message.get_attr("CTA_ID")

    def delete(self, origin: _Tuple, id: int) -> None:
        """Forget this flow; nothing happens when it is gone or another one has its place."""
        attributes = [["CTA_TUPLE_ORIG", origin.attribute], ["CTA_ID", id]]
        self._send(CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, origin.source[0], attributes)
        try:
            for _ in self._answers():
                pass
        except FileNotFoundError:  # ENOENT
            pass

    def _send(self, kind: int, flags: int, address: IPAddress, attributes: list[Any]) -> None:
        self._sequence += 1
        message = self._message_class()
        message["nfgen_family"] = socket.AF_INET if address.version == 4 else socket.AF_INET6
        message["version"] = message["res_id"] = 0
        message["attrs"] = attributes
        message["header"].update(type=kind, flags=flags, sequence_number=self._sequence, pid=0)
        message.encode()
        self._socket.send(bytes(message.data))

    def _answers(self) -> Iterator[bytes]:
        """The messages of an answer as far as its end, or its acknowledgement; raises OSError for an error."""
        while True:
            data = self._socket.recv(_RECEIVE_SPACE)
            at = 0
            while at < len(data):
                length, kind, *_ = _HEADER.unpack_from(data, at)
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    code = -_ERROR.unpack_from(data, at + _HEADER.size)[0]
                    if code == 0:
                        return
                    raise OSError(code, os.strerror(code))
                yield data[at : at + length]
                at += length + -length % NLMSG_ALIGNTO


def _tuple(attribute: Any, version: str) -> _Tuple | None:
    """None when it has no ports, or addresses of another version."""
    try:
        ip, proto = attribute.get_attr("CTA_TUPLE_IP"), attribute.get_attr("CTA_TUPLE_PROTO")
        ends = [
            (ip_address(ip.get_attr(f"CTA_IP_{version}_{end}")), int(proto.get_attr(f"CTA_PROTO_{end}_PORT")))
            for end in ("SRC", "DST")
        ]
        addresses = [
            [f"CTA_IP_{version}_{end}", str(found)] for end, (found, _) in zip(("SRC", "DST"), ends, strict=True)
        ]
        ports = [[f"CTA_PROTO_{end}_PORT", port] for end, (_, port) in zip(("SRC", "DST"), ends, strict=True)]
        number = ["CTA_PROTO_NUM", proto.get_attr("CTA_PROTO_NUM")]
    except (AttributeError, TypeError, ValueError):
        return None
    parts = [["CTA_TUPLE_IP", {"attrs": addresses}], ["CTA_TUPLE_PROTO", {"attrs": [number, *ports]}]]
    return _Tuple(ends[0], ends[1], {"attrs": parts})
