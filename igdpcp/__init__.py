# SPDX-License-Identifier: Apache-2.0
"""igdpcp: the UPnP IGD to PCP interworking function (RFC 6970)."""

__version__ = "0.1.0"
