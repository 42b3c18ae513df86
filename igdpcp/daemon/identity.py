# SPDX-License-Identifier: Apache-2.0
"""What the device says it is: as configured, else made from what is this device's own."""

from __future__ import annotations

from igdpcp import __version__
from igdpcp.config import MainConfig
from igdpcp.upnp.description import DeviceIdentity, udns_from, with_config_id

SERIAL_DIGITS = 12  # of the root device's UDN, where no serial number is configured


def device_identity(main: MainConfig, secret: bytes, boot_id: int) -> DeviceIdentity:
    """The identity of all its documents and announcements; UDNs are derived from the secret."""
    udns = udns_from(secret.hex())
    identity = DeviceIdentity(
        friendly_name=main.friendly_name,
        model_name=main.model_name,
        serial=main.serial_number or udns[0][-SERIAL_DIGITS:],
        udns=udns,
        boot_id=boot_id,
        presentation_url=main.presentation_url,
        version_string=__version__,
    )
    return with_config_id(identity, main.igd_version)
