# SPDX-License-Identifier: Apache-2.0
"""UPnP IGD: bytes in, bytes out; no sockets, no clock, no asyncio."""
