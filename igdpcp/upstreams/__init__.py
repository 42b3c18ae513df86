# SPDX-License-Identifier: Apache-2.0
"""What grants external ports: the carrier's PCP server, or our own WAN address."""
