# SPDX-License-Identifier: Apache-2.0
"""The process: composition root, servers, control socket, status."""
