# SPDX-License-Identifier: Apache-2.0
"""PCP (RFC 6887): bytes and time in, bytes and events out; no sockets, no clock, no asyncio."""
