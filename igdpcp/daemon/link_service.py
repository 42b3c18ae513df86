# SPDX-License-Identifier: Apache-2.0
"""WANCommonInterfaceConfig and Layer3Forwarding: which connection there is; all else are state variables."""

from __future__ import annotations

from igdpcp.daemon.control_request import Answer, ControlRequest, Outputs
from igdpcp.daemon.state_variables import StateVariables
from igdpcp.errors import Reason, Refusal, UpnpFault
from igdpcp.upnp.actions import TREE_PREFIX

INVALID_DEVICE_UUID = 720  # Layer3Forwarding:1 section 2.4
INVALID_SERVICE_ID = 721


class LinkService:
    """There is one connection only, so that it is the default one, and the active one while it is connected."""

    def __init__(self, variables: StateVariables) -> None:
        self._variables = variables
        self.answers: dict[str, Answer] = {
            "SetDefaultConnectionService": self._set_default,
            "GetActiveConnection": self._active_connection,
        }

    def _set_default(self, asked: ControlRequest) -> Outputs:
        wanted = _device_and_service(str(asked.arguments["NewDefaultConnectionService"]))
        ours = [_device_and_service(str(self._variables.read("DefaultConnectionService", t))) for t in TREE_PREFIX]
        if wanted[0] not in {device for device, _ in ours}:
            raise UpnpFault(INVALID_DEVICE_UUID, "no WANConnectionDevice of this gateway")
        if wanted not in ours:
            raise UpnpFault(INVALID_SERVICE_ID, "there is one connection service only")
        return {}

    def _active_connection(self, asked: ControlRequest) -> Outputs:
        index = int(asked.arguments["NewActiveConnectionIndex"])
        if index >= int(self._variables.read("NumberOfActiveConnections", asked.tree)):
            raise Refusal(Reason.NO_SUCH_INDEX, str(index))
        return {output.name: self._variables.read(output.variable, asked.tree) for output in asked.call.action.outputs}


def _device_and_service(value: str) -> tuple[str, str]:
    """UDN and service id of a DefaultConnectionService, "uuid:...:WANConnectionDevice:v,urn:..."."""
    device, _, service = value.partition(",")
    return ":".join(device.strip().split(":")[:2]).lower(), service.strip()
