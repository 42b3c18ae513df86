# SPDX-License-Identifier: Apache-2.0
"""What the services are asked, and how they answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol as Interface

from igdpcp.model import Requester
from igdpcp.upnp.actions import Value
from igdpcp.upnp.soap import Call
from igdpcp.values import dataclass


@dataclass(frozen=True, slots=True)
class ControlRequest:
    """A checked call, who makes it, and the device tree whose control URL it was sent to."""

    call: Call
    requester: Requester
    tree: int

    @property
    def arguments(self) -> dict[str, Value]:
        """The inputs of the call by their names on the wire."""
        return self.call.arguments


Outputs = Mapping[str, Value]  # every output argument of the action by its name
Deed = Callable[[ControlRequest], Awaitable[Outputs]]
Answer = Callable[[ControlRequest], Outputs | Awaitable[Outputs]]  # at once, or when something was waited for


class ServiceAnswers(Interface):
    """The actions of a service that are more than reading state variables."""

    @property
    def answers(self) -> Mapping[str, Answer]:
        """By the action's name. They, or what they return, raise Refusal, UpnpFault or OurFault."""
