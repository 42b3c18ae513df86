# SPDX-License-Identifier: Apache-2.0
"""Group commit: the changes that wait at one moment, or while the kernel is busy, go in one transaction.

One thread has the kernel to itself, but for a few changes that a back-end makes in about the time that it takes to wake
that thread and to be woken by it: they are made at once, while the thread has nothing to do.

What must be in force is held here (``desired.py``); a back-end only writes. A batch that the kernel refuses is tried
once more by rewriting everything from what is wanted, for the kernel may hold something else than it was told. When
that is refused too, what was wanted before is restored, and each change is committed on its own: a bad one hurts
nobody else.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

from igdpcp.errors import RulesetBusy, RulesetError
from igdpcp.netfilter.desired import Change, Desired, Fact, Key, Pinhole, difference, pinhole
from igdpcp.openings import AnyOpening, Discrepancy, PinholeOpening, Surroundings
from igdpcp.values import dataclass

T = TypeVar("T")

NOWHERE = Surroundings(frozenset(), frozenset(), frozenset())
FOREIGN_DROP_SECONDS = 60.0
PROMPT_CHANGES = 8  # at most so many at once keep the event loop waiting
# A change waits for whoever loads a large ruleset, and takes longer where there is one. So after one that took longer
# than this, it is the thread that waits, until one took less.
PROMPT_SECONDS = 0.02
SAMPLE_SECONDS = 5.0  # what ends sooner is not looked for: it may be gone already
REST_SECONDS = 1.0
LIFETIME_CAP = 86400  # an orphan's rules are gone after a day (a grant may last longer and is re-armed at renewal)


class Backend(Protocol):
    """Writes facts to the kernel. Synchronous; never called while another call is under way.

    ``apply`` and ``sync`` raise RulesetError; RulesetBusy where they waited in vain, and have changed nothing. ``now``
    is on the clock of Fact.ends. ``prompt_up_to``: with so many openings, a few changes take about a millisecond.
    ``in_fw4``: what is let through is in fw4's table.
    """

    name: str
    prompt_up_to: float

    @property
    def in_fw4(self) -> bool: ...

    def open(self) -> None:
        """Get hold of the kernel's tables and make the static part of the ruleset."""

    def surroundings(self, surroundings: Surroundings) -> None:
        """Apply to these devices and PCP servers from now on, and after each ``sync``, also when this one fails."""

    def apply(self, changes: list[Change], now: float, *, wait: bool = True) -> None:
        """Carry out these changes; none where what makes them apply to packets has gone.

        After a RulesetError some of them may be in force. Without ``wait``: RulesetBusy where somebody else has to be
        waited for.
        """

    def sync(self, facts: dict[Key, Fact], now: float) -> None:
        """The static part, the surroundings, and exactly these facts, whatever was there."""

    def release(self) -> None:
        """Take everything of ours out of the kernel."""

    def close(self, keep_rules: bool) -> None:
        """Let go of the kernel's tables; what cannot expire by itself goes."""

    def intact(self, sample: Mapping[Key, Fact]) -> bool:
        """Whether what makes facts apply to packets is in the kernel, and these few facts, which stand for all, are.

        Cheap, whatever the number of facts.
        """

    def audit(self, facts: Mapping[Key, Fact], now: float) -> Discrepancy:
        """Compare all that the kernel holds of ours with all facts, and change nothing; raises RulesetError."""

    def foreign_drop(self) -> str | None:
        """Why another firewall would drop what is forwarded here, None when nothing is known to."""

    def packets(self, key: Pinhole) -> int:
        """How many packets this pinhole has let in; raises RulesetError."""


@dataclass(slots=True, eq=False)
class _Job:
    """One waiting put (``opening``) or remove (None) and who waits for it."""

    id: str
    opening: AnyOpening | None
    waiter: asyncio.Future[Any]


@dataclass(slots=True, eq=False)
class _Work:
    """Something that stands alone in the queue, and who waits for what it returns."""

    run: Callable[[], Any]
    waiter: asyncio.Future[Any]


class GroupCommit:
    """The router's ruleset (``iwf.interfaces.Ruleset``) over a back-end; use it from one event loop.

    A caller that is cancelled while it waits does not take its change back.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        clock: Callable[[], float],
        at_work: Callable[[], None] = lambda: None,
        at_rest: Callable[[], None] = lambda: None,
    ) -> None:
        """``at_rest`` is called in the thread when that has had nothing to do for REST_SECONDS, ``at_work`` before what
        comes next.
        """
        self.name = backend.name
        self._backend = backend
        self._clock = clock
        self._desired = Desired()
        self._queue: deque[_Job | _Work] = deque()
        self._foreign_drop: tuple[float, str | None] | None = None  # when it was asked, and the answer
        self.thread_id = 0  # of the thread that makes changes beside the caller's, once started
        self.audited: tuple[float, Discrepancy] | None = None  # when it was last compared, and what was found
        self._busy = self._closed = False
        self._took = 0.0  # seconds, for the last change
        self._unsure = False  # whether the kernel holds what is wanted: a change may have been carried out in part
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="netfilter")
        self._at_work = at_work
        self._at_rest = at_rest
        self._rest: asyncio.TimerHandle | None = None
        self._worked = False  # since that timer was set

    async def start(self) -> None:
        """Set the back-end up in its thread; raises OurFault that says what is missing.

        After a RulesetError the thread runs: a sync may succeed later, when the firewall is up.
        """
        self.thread_id = await self._do(threading.get_native_id)
        await self._do(self._backend.open)

    async def put(self, opening: AnyOpening) -> None:
        """Make the kernel hold the rules of this mapping or pinhole, in place of earlier ones of the same id."""
        waiter = asyncio.get_running_loop().create_future()
        await self._enqueue(_Job(opening.id, _for_a_day(opening, self._clock()), waiter))

    async def remove(self, id: str) -> None:
        """Take the rules of this id away; nothing happens when there are none."""
        waiter = asyncio.get_running_loop().create_future()
        await self._enqueue(_Job(id, None, waiter))

    async def sync(self, openings: list[AnyOpening]) -> None:
        """Make the kernel hold exactly these, whatever an earlier process left."""
        self._foreign_drop = self.audited = None
        await self._do(lambda: self._sync(openings))

    async def surroundings(self, surroundings: Surroundings) -> None:
        """Apply to these devices and PCP servers from now on."""
        await self._do(lambda: self._backend.surroundings(surroundings))

    async def release(self) -> None:
        """Take everything of ours out of the kernel."""
        await self._do(self._release)

    async def pinhole_packets(self, id: str) -> int:
        """How many packets this pinhole has let in, first ones of a connection only; 0 when there is none."""
        return await self._do(lambda: self._packets(id))

    async def foreign_drop(self) -> str | None:
        """Why forwarded packets would be dropped in spite of our rules, None when nothing is known to.

        The answer is up to FOREIGN_DROP_SECONDS old, for it costs a reading of everybody's rules.
        """
        now = self._clock()
        if self._foreign_drop is None or now >= self._foreign_drop[0] + FOREIGN_DROP_SECONDS:
            self._foreign_drop = (now, await self._do(self._backend.foreign_drop))
        return self._foreign_drop[1]

    async def intact(self) -> bool:
        """Whether what was laid down is still there; False when the firewall was loaded anew: ``sync`` mends it."""
        return await self._do(self._intact)

    async def audit(self) -> Discrepancy:
        """Compare all that is wanted with all that the kernel has; changes wait for it. Raises RulesetError."""
        found = await self._do(lambda: self._audit(self._clock()))
        self.audited = self._clock(), found
        return found

    async def close(self, *, keep_rules: bool = False) -> None:
        """End the thread. nftables rules stay and expire by themselves; iptables rules go, unless they are to be kept.

        Whoever keeps them has to sync soon.
        """
        self._closed = True
        try:
            await self._do(lambda: self._backend.close(keep_rules))
        finally:
            if self._rest:
                self._rest.cancel()
            self._thread.shutdown()

    async def _do(self, run: Callable[[], T]) -> T:
        result: T = await self._enqueue(_Work(run, asyncio.get_running_loop().create_future()))
        return result

    async def _enqueue(self, item: _Job | _Work) -> Any:
        self._queue.append(item)
        if not self._busy:
            self._run_next()
        return await item.waiter

    def _run_next(self) -> None:
        """Let what waits have its turn; what comes until it is done goes together in the next one."""
        self._busy = True
        prompt = not self._closed and len(self._desired) <= self._backend.prompt_up_to
        if prompt and isinstance(self._queue[0], _Job):
            asyncio.get_running_loop().call_soon(self._run_promptly)  # with what else comes at this moment
        else:
            self._run_in_thread(*self._next())

    def _run_promptly(self) -> None:
        """What is refused is left to the thread: it has to write everything, or to wait."""
        jobs = self._jobs()
        waiters = [job.waiter for job in jobs]
        if len(jobs) <= PROMPT_CHANGES and self._took <= PROMPT_SECONDS and not self._unsure:
            try:
                self._together(jobs, partial(self._backend.apply, wait=False))
                self._finished([None] * len(jobs), waiters)
                return
            except RulesetError:
                pass
            except Exception as error:  # nobody may wait for ever
                self._finished([error] * len(jobs), waiters)
                return
        self._run_in_thread(waiters, lambda: self._commit(jobs))

    def _run_in_thread(self, waiters: list[asyncio.Future[Any]], run: Callable[[], Sequence[Any]]) -> None:
        try:
            if self._rest is None:
                self._thread.submit(self._at_work)
            work = asyncio.get_running_loop().run_in_executor(self._thread, run)
        except RuntimeError as error:  # closed
            self._finished([error] * len(waiters), waiters)
            return
        work.add_done_callback(lambda done: self._finished(_results(done, len(waiters)), waiters))
        self._worked = True
        if self._rest is None:
            self._rest_later()

    def _rest_later(self) -> None:
        self._worked = False
        self._rest = asyncio.get_running_loop().call_later(REST_SECONDS, self._rest_if_idle)

    def _rest_if_idle(self) -> None:
        if self._busy or self._worked:
            self._rest_later()
        else:
            self._rest = None
            self._thread.submit(self._at_rest)

    def _finished(self, results: Sequence[Any], waiters: list[asyncio.Future[Any]]) -> None:
        self._busy = False
        for waiter, result in zip(waiters, results, strict=True):
            if waiter.done():
                continue
            if isinstance(result, Exception):
                waiter.set_exception(result)
            else:
                waiter.set_result(result)
        if self._queue:
            self._run_next()

    def _next(self) -> tuple[list[asyncio.Future[Any]], Callable[[], Sequence[Any]]]:
        """What to run next, one result for each waiter: all jobs at the head of the queue, or the work there."""
        item = self._queue[0]
        if isinstance(item, _Work):
            self._queue.popleft()
            return [item.waiter], lambda: [item.run()]
        jobs = self._jobs()
        return [job.waiter for job in jobs], lambda: self._commit(jobs)

    def _jobs(self) -> list[_Job]:
        """Take the jobs at the head of the queue."""
        jobs: list[_Job] = []
        while self._queue and isinstance(item := self._queue[0], _Job):
            jobs.append(item)
            self._queue.popleft()
        return jobs

    # What follows has the kernel to itself.

    def _commit(self, jobs: list[_Job]) -> list[RulesetError | None]:
        """Bring the batch into the kernel; the result of each job."""
        if not self._unsure:
            try:
                self._together(jobs, self._backend.apply)
                return [None] * len(jobs)
            except RulesetBusy as error:
                return [_named(error, job) for job in jobs]
            except RulesetError:
                pass
        try:
            self._together(jobs, self._write_all)
            return [None] * len(jobs)
        except RulesetError as error:
            refused = error
        try:
            self._write_all([], self._clock())
        except RulesetError:
            return [_named(refused, job) for job in jobs]
        if len(jobs) == 1:
            return [_named(refused, jobs[0])]
        return [self._alone(job) for job in jobs]

    def _alone(self, job: _Job) -> RulesetError | None:
        try:
            self._together([job], self._write_all if self._unsure else self._backend.apply)
        except RulesetError as error:
            return _named(error, job)
        return None

    def _write_all(self, _: list[Change], now: float) -> None:
        self._backend.sync(self._desired.all_facts(now), now)
        self._unsure = False

    def _together(self, jobs: list[_Job], write: Callable[[list[Change], float], None]) -> None:
        """Want what the jobs say and write the changes; a write that fails leaves what is wanted as it was."""
        now = self._clock()
        earlier = {job.id: self._desired.get(job.id) for job in jobs}
        touched = [opening for opening in (*(job.opening for job in jobs), *earlier.values()) if opening]
        before = self._desired.facts(touched)
        for job in jobs:
            self._desired.set(job.id, job.opening)
        try:
            changes = difference(before, self._desired.facts(touched))
            if changes or self._unsure:
                write(changes, now)
        except BaseException as error:
            for id, opening in earlier.items():
                self._desired.set(id, opening)
            self._unsure |= not isinstance(error, RulesetBusy)
            raise
        finally:
            self._took = self._clock() - now

    def _packets(self, id: str) -> int:
        held = self._desired.get(id)
        return self._backend.packets(pinhole(held)) if isinstance(held, PinholeOpening) else 0

    def _intact(self) -> bool:
        return self._backend.intact(self._desired.sample(self._clock() + SAMPLE_SECONDS))

    def _audit(self, now: float) -> Discrepancy:
        return self._backend.audit(self._desired.all_facts(now), now)

    def _sync(self, openings: list[AnyOpening]) -> None:
        now = self._clock()
        wanted = Desired()
        for opening in openings:
            wanted.set(opening.id, _for_a_day(opening, now))
        self._unsure = True
        self._backend.sync(wanted.all_facts(now), now)
        self._desired, self._unsure = wanted, False

    def _release(self) -> None:
        self._backend.release()
        self._desired = Desired()


def _results(done: asyncio.Future[Sequence[Any]], count: int) -> Sequence[Any]:
    """One result for each waiter, also when the work failed as a whole: nobody may wait for ever."""
    if done.cancelled():
        return [RulesetError("cancelled")] * count
    error = done.exception()
    return [error] * count if error else done.result()


def _for_a_day(opening: AnyOpening, now: float) -> AnyOpening:
    return opening if opening.ends <= now + LIFETIME_CAP else replace(opening, ends=now + LIFETIME_CAP)


def _named(error: RulesetError, job: _Job) -> RulesetError:
    return RulesetError(f"rules of {job.id}: {error}")
