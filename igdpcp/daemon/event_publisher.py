# SPDX-License-Identifier: Apache-2.0
"""Eventing: who has subscribed to what, and when each of them is told of a change."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Hashable, Mapping
from http import HTTPStatus

from igdpcp.daemon.delivery_turns import Delivery, DeliveryTurns
from igdpcp.daemon.event_delivery import deliver
from igdpcp.daemon.http_server import Peer
from igdpcp.daemon.lan_hosts import HostOf, by_address
from igdpcp.errors import MalformedRequest, OurFault
from igdpcp.log import SparingLog
from igdpcp.model import IPAddress
from igdpcp.upnp.actions import Service, Value
from igdpcp.upnp.gena import Renew, Subscribe, Subscription, parse_request
from igdpcp.upnp.http import HttpRequest, HttpResponse
from igdpcp.upnp.uuids import UUID_BITS, random_uuid
from igdpcp.values import dataclass

MODERATION = 0.3  # seconds in which changes are gathered into one event

# The evented variables of a service in the device tree of that version, as the control point at that address sees them.
Read = Callable[[Service, int, IPAddress], Mapping[str, Value]]
Deliver = Callable[[Peer, int, bytes], Awaitable[int]]


@dataclass(slots=True)
class EventCounters:
    """What happened since the start."""

    subscribed: int = 0
    renewed: int = 0
    unsubscribed: int = 0
    expired: int = 0
    refused: int = 0  # requests that are wrong
    over_limit: int = 0  # subscriptions beyond a ceiling
    delivered: int = 0  # events
    failed: int = 0  # events that were lost
    dropped: int = 0  # subscriptions that ended because events were lost


@dataclass(slots=True, eq=False)
class _Subscriber:
    """A subscription with the way to its subscriber."""

    subscription: Subscription
    peer: Peer
    host: Hashable
    busy: bool = False  # an event is on its way
    leaving: bool = False  # unsubscribed, and still to get the initial event


class EventPublisher:
    """The subscriptions to all services; every event is delivered in the background.

    A subscriber that does not answer holds few connections, each for a bounded time. Nothing is kept for it meanwhile
    but a place in the queue: what an event says is decided when it leaves.
    """

    def __init__(
        self,
        *,
        read: Read,
        http_port: int,
        max_subscriptions: int,
        max_subscriptions_per_host: int,
        rng: random.Random,
        host_of: HostOf = by_address,
        deliver: Deliver = deliver,
    ) -> None:
        """``http_port`` of our own server, where events are never sent."""
        self.counters = EventCounters()
        self._read = read
        self._http_port = http_port
        self._limit = max_subscriptions
        self._limit_per_host = max_subscriptions_per_host
        self._rng = rng
        self._host_of = host_of
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._log = SparingLog(logging.getLogger("igdpcp.events"), self._loop.time)
        self._subscribers: dict[str, _Subscriber] = {}  # by SID
        self._waiting: dict[str, _Subscriber] = {}  # who may have to be told something, the longest waiting first
        self._turns = DeliveryTurns(self._loop.time)
        self._deliveries: set[asyncio.Task[None]] = set()
        self._moderation: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None

    @property
    def subscriptions(self) -> int:
        """How many there are."""
        return len(self._subscribers)

    def handle(self, request: HttpRequest, peer: Peer, service: Service, tree: int) -> HttpResponse:
        """Answer a SUBSCRIBE or UNSUBSCRIBE to the event URL of ``service`` in the device tree of version ``tree``."""
        try:
            wish = parse_request(request, peer.address, (peer.local_address, self._http_port))
            if isinstance(wish, Subscribe):
                return self._subscribe(wish, peer, service, tree)
            subscriber = self._find(wish.sid, peer, service, tree)
        except MalformedRequest as error:
            self.counters.refused += 1
            self._log.write(logging.INFO, "subscription_refused", peer.address, service=service.type, reason=error)
            return HttpResponse(error.status)
        return self._renew(subscriber, wish) if isinstance(wish, Renew) else self._unsubscribe(subscriber)

    def poke(self) -> None:
        """Something evented may have changed; may be called as often as one likes."""
        if self._moderation is None:
            self._moderation = self._loop.call_later(MODERATION, self._tell_all)

    async def close(self) -> None:
        """End everything at once: GENA has no goodbye. No request may come any more."""
        for timer in (self._moderation, self._expiry):
            if timer is not None:
                timer.cancel()
        self._subscribers.clear()
        self._waiting.clear()
        for task in self._deliveries:
            task.cancel()
        await asyncio.gather(*self._deliveries, return_exceptions=True)

    # -- requests ------------------------------------------------------------------------------------------------

    def _subscribe(self, wish: Subscribe, peer: Peer, service: Service, tree: int) -> HttpResponse:
        host = self._host_of(peer.address, peer.device)
        older = self._same(wish, peer, service, tree)
        if older is None and self._is_full_for(host):
            self.counters.over_limit += 1
            self._log.write(logging.INFO, "subscription_refused", peer.address, reason="too many subscriptions")
            return HttpResponse(HTTPStatus.SERVICE_UNAVAILABLE)
        sid = f"uuid:{random_uuid(self._rng.getrandbits(UUID_BITS))}"
        subscription = Subscription(sid, service, tree, wish.callback, self._loop.time() + wish.timeout)
        self._subscribers[sid] = subscriber = _Subscriber(subscription, peer, host)
        if older:
            self._remove(older, "subscribed again")
        self._watch_expiry()
        self.counters.subscribed += 1
        self._log.write(
            logging.INFO,
            "subscribed",
            peer.address,
            service=service.type,
            tree=tree,
            port=wish.callback.port,
            seconds=wish.timeout,
        )
        # The HTTP server writes the response as soon as it has it, in this turn of the loop: what is called in the next
        # one cannot overtake it, and a subscriber has to know its SID before the initial event comes.
        self._loop.call_soon(self._tell, subscriber)
        return _accepted(sid, wish.timeout)

    def _renew(self, subscriber: _Subscriber, wish: Renew) -> HttpResponse:
        subscriber.subscription.expires = self._loop.time() + wish.timeout
        self._watch_expiry()
        self.counters.renewed += 1
        return _accepted(wish.sid, wish.timeout)

    def _unsubscribe(self, subscriber: _Subscriber) -> HttpResponse:
        self.counters.unsubscribed += 1
        if subscriber.subscription.begun:
            self._remove(subscriber, "unsubscribed")
        else:
            subscriber.leaving = True
        return HttpResponse(HTTPStatus.OK)

    def _find(self, sid: str, peer: Peer, service: Service, tree: int) -> _Subscriber:
        """The subscription that this host has there under that SID; raises MalformedRequest."""
        subscriber = self._subscribers.get(sid)
        if subscriber is not None and not subscriber.leaving and _is_same_end(subscriber.peer, peer):
            subscription = subscriber.subscription
            if subscription.service is service and subscription.tree == tree:
                return subscriber
        raise MalformedRequest("no such subscription", HTTPStatus.PRECONDITION_FAILED)

    def _same(self, wish: Subscribe, peer: Peer, service: Service, tree: int) -> _Subscriber | None:
        """The subscription that a subscriber who has forgotten it asks for again."""
        for subscriber in self._subscribers.values():
            have = subscriber.subscription
            is_same = have.callback == wish.callback and have.service is service and have.tree == tree
            if is_same and _is_same_end(subscriber.peer, peer):
                return subscriber
        return None

    def _is_full_for(self, host: Hashable) -> bool:
        of_host = sum(subscriber.host == host for subscriber in self._subscribers.values())
        return len(self._subscribers) >= self._limit or of_host >= self._limit_per_host

    # -- the end of subscriptions --------------------------------------------------------------------------------

    def _remove(self, subscriber: _Subscriber, reason: str) -> None:
        """Forget a subscription; an event that is on its way goes on."""
        subscription = subscriber.subscription
        del self._subscribers[subscription.sid]
        self._waiting.pop(subscription.sid, None)
        if all(other.host != subscriber.host for other in self._subscribers.values()):
            self._turns.forget(subscriber.host)
        service = subscription.service.type
        self._log.write(logging.INFO, "subscription_ended", subscriber.peer.address, service=service, reason=reason)

    def _watch_expiry(self) -> None:
        """Have one timer that is not later than the first expiry; after a renewal it may be earlier, and goes on."""
        if not self._subscribers:
            return
        first = min(subscriber.subscription.expires for subscriber in self._subscribers.values())
        if self._expiry is not None:
            if self._expiry.when() <= first:
                return
            self._expiry.cancel()
        self._expiry = self._loop.call_at(first, self._remove_expired)

    def _remove_expired(self) -> None:
        now, self._expiry = self._loop.time(), None
        for subscriber in [each for each in self._subscribers.values() if each.subscription.expires <= now]:
            self.counters.expired += 1
            self._remove(subscriber, "expired")
        self._watch_expiry()

    # -- events --------------------------------------------------------------------------------------------------

    def _tell_all(self) -> None:
        self._moderation = None
        self._waiting |= self._subscribers
        self._begin_deliveries()

    def _tell(self, subscriber: _Subscriber) -> None:
        sid = subscriber.subscription.sid
        if sid in self._subscribers:
            self._waiting[sid] = subscriber
            self._begin_deliveries()

    def _begin_deliveries(self) -> None:
        """Begin what the ceilings allow, in turn."""
        while subscriber := self._next():
            subscription, peer = subscriber.subscription, subscriber.peer
            del self._waiting[subscription.sid]
            event = subscription.next_event(self._read(subscription.service, subscription.tree, peer.address))
            if event is not None:
                self._begin_delivery(subscriber, event)
            if subscriber.leaving:  # after its turn, which must not outlast it
                self._remove(subscriber, "unsubscribed")

    def _next(self) -> _Subscriber | None:
        """Of those that may be told, the longest waiting one of the host that was told longest ago."""
        ready = (each for each in self._waiting.values() if not each.busy and self._turns.may_begin(each.host))
        return min(ready, key=lambda subscriber: self._turns.last_turn(subscriber.host), default=None)

    def _begin_delivery(self, subscriber: _Subscriber, event: bytes) -> None:
        subscriber.busy = True
        delivery = self._turns.begin(subscriber.host)
        task = self._loop.create_task(self._carry(subscriber, event, delivery))
        self._deliveries.add(task)
        task.add_done_callback(lambda task: self._delivery_ended(task, subscriber))

    def _delivery_ended(self, task: asyncio.Task[None], subscriber: _Subscriber) -> None:
        self._deliveries.discard(task)
        subscriber.busy = False
        self._begin_deliveries()

    async def _carry(self, subscriber: _Subscriber, event: bytes, delivery: Delivery) -> None:
        taken = False
        try:
            taken = await self._notify(subscriber, event)
        finally:
            self._turns.end(delivery, taken=taken)

    async def _notify(self, subscriber: _Subscriber, event: bytes) -> bool:
        """Deliver an event; whether it was taken."""
        subscription, peer = subscriber.subscription, subscriber.peer
        status: int | None = None
        nobody_listens = False
        reason: object
        try:
            status = await self._deliver(peer, subscription.callback.port, event)
            reason = f"status {status}"
        except TimeoutError:
            reason = "does not answer in time"
        except (OSError, OurFault, MalformedRequest) as error:
            reason = error
            nobody_listens = isinstance(error, ConnectionRefusedError)
        if status is not None and HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
            self.counters.delivered += 1
            subscription.delivered()
            return True
        self.counters.failed += 1
        self._log.write(logging.DEBUG, "event_lost", peer.address, service=subscription.service.type, reason=reason)
        if subscription.failed(status, nobody_listens=nobody_listens) and subscription.sid in self._subscribers:
            self.counters.dropped += 1
            self._remove(subscriber, f"events are not taken: {reason}")
        return False


def _is_same_end(one: Peer, other: Peer) -> bool:
    """Whether they are the same address of the same LAN: a link-local one can be on several."""
    return one.address == other.address and one.device == other.device


def _accepted(sid: str, timeout: int) -> HttpResponse:
    return HttpResponse(HTTPStatus.OK, (("SID", sid), ("TIMEOUT", f"Second-{timeout}")))
