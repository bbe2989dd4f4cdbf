"""Writing: what waits for one key goes into one new head, put in place by compare-and-set.

Whoever finds the head changed meanwhile works on the new one and tries again, so counters are exact however many processes
write. A writer that got no answer looks whether the head names its commit: then it was served, and a refusal it got
for trying again was its own doing.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...clock import monotonic, spawn, wall_us
from ...errors import (
    BackendClosedError,
    DataCorruptionError,
    OverloadedError,
    StorageError,
    StorageTimeoutError,
)
from ...records import Route
from ._draft import Draft
from ._head import Head
from ._loading import Gone, Held, Loader, Pins, foreign
from ._names import content_path, head_path, shard_of, token
from ._objects import Outdated, Throttled, Version, seal
from ._prepare import Prepared, Sizes, prepare, tail_size

Step = Callable[[Draft, Route], Any]
"""One write inside a commit; what it returns is its answer, also a refusal."""

MOST_STEPS = 2_000  # of one commit
FORGET_STEPS = 400  # records looked at when the tail has filled up
NOBODY = Route(0, "")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.004, 0.5  # seconds; full jitter
_SETTLE_ROUNDS = 3


class _PerhapsServed(Outdated):
    """The head has moved on so far that it does not tell any more whether this commit is in it."""


@dataclass(slots=True, eq=False)
class _Job:
    steps: Sequence[Step]
    fenced: bool
    done: asyncio.Future[list[Any]]


@dataclass(slots=True)
class Counts:
    """What the committer did, for metrics and tests: ``settled`` are commits whose answer was lost."""

    commits: int = 0
    steps: int = 0
    largest: int = 0
    conflicts: int = 0
    settled: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """How the committer works; see :class:`.backend.ObjectStorageBackend`."""

    context_versions: int
    retention_us: int
    commit_timeout: float
    max_pending: int
    sizes: Sizes


class Committer:
    """Applies steps to keys.

    Args:
        loader: what is read.
        limits: options.
        read_route: the store's present route, for steps that are fenced by it.
        collect: called with a key that has garbage to be removed.
    """

    def __init__(
        self,
        loader: Loader,
        limits: Limits,
        read_route: Callable[[], Awaitable[Route]],
        collect: Callable[[str], None],
    ) -> None:
        self._loader = loader
        self._objects = loader.objects
        self._limits = limits
        self._read_route = read_route
        self._collect = collect
        self._waiting: dict[str, list[_Job]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.pending = 0
        self.counts = Counts()

    async def run(self, key: str, steps: Sequence[Step], *, fenced: bool = False) -> list[Any]:
        """Apply the steps, in order, in one atomic step; their answers once that is durable.

        Raises what kept it from happening; a step's own StorageError is its answer.
        """
        if self.pending and self.pending + len(steps) > self._limits.max_pending:
            raise OverloadedError(
                f"{self.pending} writes wait for the object store already: slow down, or raise max_pending"
            )
        job = _Job(steps, fenced, asyncio.get_running_loop().create_future())
        self.pending += len(steps)
        queue = self._waiting.get(key)
        if queue is None:
            self._waiting[key] = [job]
            self.background(self._work(key), f"commit of {key!r}")
        else:
            queue.append(job)
        return await job.done

    def background(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Something that :meth:`drain` waits for."""
        task = spawn(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self) -> None:
        """Wait for everything that is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    # ------------------------------------------------------------------ one key's queue

    async def _work(self, key: str) -> None:
        jobs = list[_Job]()
        try:
            while jobs := self._take(key):
                try:
                    await self._serve(key, jobs)
                except Exception as error:  # noqa: BLE001  whoever waits must hear of it, whatever it is
                    _fail(jobs, error)
        finally:  # cancelled with the loop: nobody may wait for ever
            left = self._waiting.pop(key, [])
            self.pending -= sum(len(job.steps) for job in left)
            stopped = BackendClosedError(f"the writer of {key!r} was stopped", outcome="unknown")
            _fail([*jobs, *left], stopped)

    def _take(self, key: str) -> list[_Job]:
        """What goes into the next commit; whoever was cancelled before that has written nothing."""
        queue, taken, steps = self._waiting[key], list[_Job](), 0
        while queue and (not taken or steps + len(queue[0].steps) <= MOST_STEPS):
            job = queue.pop(0)
            self.pending -= len(job.steps)
            if not job.done.done():
                taken.append(job)
                steps += len(job.steps)
        if not taken:
            del self._waiting[key]
        return taken

    async def _serve(self, key: str, jobs: Sequence[_Job]) -> None:
        steps = [step for job in jobs for step in job.steps]
        answers = await self._commit(key, steps, fenced=any(job.fenced for job in jobs))
        start = 0
        for job in jobs:
            stop = start + len(job.steps)
            if not job.done.done():
                job.done.set_result(answers[start:stop])
            start = stop

    # ------------------------------------------------------------------ one commit

    async def _commit(self, key: str, steps: Sequence[Step], *, fenced: bool) -> list[Any]:
        shard = shard_of(key)
        give_up = monotonic() + self._limits.commit_timeout
        held, perhaps_served = self._loader.last_seen(shard), False
        for attempt in itertools.count(1):
            fresh = held is None
            try:
                if held is None:
                    held = await self._loader.head(shard)
                route = await self._read_route() if fenced else NOBODY
                prepared, answers = await self._prepare(key, shard, held, steps, route)
                if prepared is not None:
                    await self._put_in_place(shard, held, prepared)
                    self.counts.commits += 1
                    self.counts.steps += len(steps)
                    self.counts.largest = max(self.counts.largest, len(steps))
                if prepared is not None or fresh:  # a refusal must rest on the head as it is now
                    return answers
            except Throttled as refusal:  # meanwhile others join this commit
                if monotonic() + 2 * (refusal.retry_after or 1.0) > give_up:
                    refusal.outcome = "unknown" if perhaps_served else "not_applied"
                    raise
                await asyncio.sleep((refusal.retry_after or 1.0) * (1 + random.random()))  # noqa: S311  jitter
            except StorageError as error:
                if perhaps_served:  # by an attempt before this one
                    error.outcome = "unknown"
                raise
            except (Outdated, Gone) as conflict:
                self.counts.conflicts += 1
                perhaps_served = perhaps_served or isinstance(conflict, _PerhapsServed)
                if monotonic() > give_up:
                    raise StorageTimeoutError(
                        f"{key!r} was changed by others {attempt} times while this write was prepared: "
                        "spread the load over more keys, or raise commit_timeout",
                        outcome="unknown" if perhaps_served else "not_applied",
                    ) from None
                pause = min(_FIRST_PAUSE * 2 ** min(attempt, 10), _LONGEST_PAUSE)
                await asyncio.sleep(pause * random.random())  # noqa: S311  jitter
            held = None
        raise AssertionError("unreachable")

    async def _prepare(
        self, key: str, shard: str, held: Held, steps: Sequence[Step], route: Route
    ) -> tuple[Prepared | None, list[Any]]:
        """The steps done on a copy, ready to be stored; None where they changed nothing."""
        if held.head is not None and held.head.key != key:
            raise foreign(key, held.head)
        pins = Pins(self._loader, shard)
        draft = Draft(held.head or Head(key), pins.load, pins.fetch, self._limits.context_versions)
        answers = list[Any]()
        for step in steps:
            try:
                answers.append(await pins.run(partial(draft.attempt, partial(_with_route, step, route))))
            except DataCorruptionError as error:  # of a row: this step's trouble, not its neighbours'
                answers.append(error)
        if not draft.changed and not draft.renew:
            return None, answers
        limits = self._limits
        if tail_size(draft.head) > limits.sizes.tail_bytes:
            horizon, looked_at = wall_us() - limits.retention_us, max(FORGET_STEPS, 4 * len(steps))
            await pins.run(partial(draft.attempt, lambda mine: mine.forget(horizon, looked_at)))
        make = partial(prepare, draft, pins.load, token(), limits.retention_us, limits.sizes)
        return await pins.run(make), answers

    async def _put_in_place(self, shard: str, held: Held, prepared: Prepared) -> None:
        pages = {id: page.pack() for id, page in prepared.pages.items()}
        items = [(content_path(shard, id), seal(data)) for id, data in (pages | prepared.values).items()]
        items += [(path, b"") for path in prepared.entries]
        if items:
            try:
                await self._objects.put(items)
            except StorageError as error:
                error.outcome = "not_applied"  # no head names them
                raise
        data = seal(prepared.head.pack())
        try:
            version = await self._swap(shard, held, prepared.head.commits[-1], data)
        except _PerhapsServed:  # what was written may be in use: if not, the sweep will find it
            raise
        except Outdated:
            await self._remove([path for path, _data in items])
            raise
        except StorageError:
            self._loader.forget(shard)
            raise
        if version is not None:
            self._loader.remember(shard, prepared.head, version, len(data))
        for id, page in prepared.pages.items():
            self._loader.keep(shard, id, page, len(pages[id]))
        for id, value in prepared.values.items():
            self._loader.keep(shard, id, value, len(value))
        stale = [*(content_path(shard, id) for id in prepared.stale), *prepared.stale_entries]
        if stale:
            self.background(self._remove(stale), "removal of what was replaced")
        if prepared.head.garbage:
            self._collect(prepared.head.key)

    async def _swap(self, shard: str, held: Held, commit: str, data: bytes) -> Version | None:
        """The new version; None if it is in place but others have built on it since. Outdated if it never will be."""
        path = head_path(shard)
        try:
            return await self._objects.swap(path, data, held.version)
        except Outdated:  # by ourselves, if something on the way has sent our request twice
            self._loader.forget(shard)
            try:
                now = await self._loader.head(shard)
            except StorageError as error:
                error.outcome = "unknown"
                raise
            if now.head is None or commit not in now.head.commits:
                raise
            return self._served(now, commit)
        except StorageError as error:
            if error.outcome == "not_applied":
                raise
            unknown = error
        for _round in range(_SETTLE_ROUNDS):
            with contextlib.suppress(StorageError):
                self._loader.forget(shard)
                now = await self._loader.head(shard)
                if now.head is not None and commit in now.head.commits:
                    return self._served(now, commit)
                if now.version != held.version:
                    raise _PerhapsServed from unknown
                # It may arrive yet. The same bytes again do no harm: whichever comes first, the other is refused.
                with contextlib.suppress(Outdated):
                    return await self._objects.swap(path, data, held.version)
        raise unknown

    def _served(self, now: Held, commit: str) -> Version | None:
        self.counts.settled += 1
        return now.version if now.head is not None and now.head.commits[-1] == commit else None

    async def _remove(self, paths: Sequence[str]) -> None:
        """Best effort: what stays behind is found by the sweep."""
        with contextlib.suppress(StorageError):
            await self._objects.delete(paths)


def _with_route(step: Step, route: Route, draft: Draft) -> Any:
    return step(draft, route)


def _fail(jobs: Sequence[_Job], error: Exception) -> None:
    """Each who waits gets an error of its own: they are raised in different tasks, which add to them."""
    for number, job in enumerate(jobs):
        if not job.done.done():
            mine = error if number == 0 else copy.copy(error)
            mine.__cause__ = error.__cause__
            job.done.set_exception(mine)
