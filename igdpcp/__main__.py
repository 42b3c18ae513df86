# SPDX-License-Identifier: Apache-2.0
"""``python -m igdpcp`` is igdpcpd."""

import sys

from igdpcp.daemon.app import main

sys.exit(main())
