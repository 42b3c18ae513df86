# SPDX-License-Identifier: Apache-2.0
"""The router's ruleset: what must be there, and two back-ends that say how."""
