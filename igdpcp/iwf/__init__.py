# SPDX-License-Identifier: Apache-2.0
"""The interworking function: table, policy, lifecycle and the two languages' translation."""
