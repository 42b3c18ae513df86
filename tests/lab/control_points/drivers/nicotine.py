# SPDX-License-Identifier: Apache-2.0
"""Drives the port mapper of Nicotine+, as its network thread does when it has logged in and when it quits."""

from __future__ import annotations

import os

from orders import serve
from pynicotine.config import config
from pynicotine.core import core

home = os.environ["HOME"]
config.set_data_folder(f"{home}/data")
config.set_config_file(f"{home}/config")
core.init_components(enabled_components={"portmapper"})
config.sections["server"]["upnp"] = True


def add(port: int, address: str) -> str:
    """Map the port; the protocol by which it succeeded, empty when by none."""
    core.portmapper.set_port(port, address)
    core.portmapper.add_port_mapping(blocking=True)
    active = core.portmapper._active_implementation
    return active.NAME if active else ""


def remove() -> None:
    core.portmapper.remove_port_mapping(blocking=True)


serve({"add": add, "remove": remove})
