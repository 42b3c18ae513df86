# SPDX-License-Identifier: Apache-2.0
"""What the kernel says: links, addresses, routes, sockets."""
