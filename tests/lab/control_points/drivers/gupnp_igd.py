# SPDX-License-Identifier: Apache-2.0
"""Drives gupnp-igd through GObject introspection."""

from __future__ import annotations

import gi

gi.require_version("GUPnPIgd", "1.0")
from gi.repository import GLib, GUPnPIgd  # noqa: E402  # the version has to be said first
from orders import serve  # noqa: E402

LEASE = 600
PATIENCE_MILLISECONDS = 10_000
CLOSING_MILLISECONDS = 300

loop = GLib.MainLoop()
simple = GUPnPIgd.SimpleIgd()
reports: list[list[object]] = []


def mapped(_: object, protocol: str, external: str, __: object, port: int, local: str, *___: object) -> None:
    reports.append([protocol, external, port, local])
    loop.quit()


def failed(_: object, error: GLib.Error, protocol: str, port: int, *__: object) -> None:
    reports.append([protocol, error.message, port])
    loop.quit()


def run(milliseconds: int) -> None:
    timer = GLib.timeout_add(milliseconds, loop.quit)
    loop.run()
    GLib.source_remove(timer)


def add(protocol: str, port: int, address: str) -> list[list[object]]:
    """Add a port and wait for what the library reports."""
    simple.add_port(protocol, port, address, port, LEASE, "gupnp-igd")
    run(PATIENCE_MILLISECONDS)
    return reports


def remove(protocol: str, port: int) -> None:
    simple.remove_port(protocol, port)
    GLib.timeout_add(CLOSING_MILLISECONDS, loop.quit)
    loop.run()


simple.connect("mapped-external-port", mapped)
simple.connect("error-mapping-port", failed)
serve({"add": add, "remove": remove})
