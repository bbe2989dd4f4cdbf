"""Bringing one store up to the other: replaying what it lacks, and closing the marks of what it has.

Records are replayed with their own stamps and identities, so doing it twice, or from two processes, changes nothing.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import replace

from ...clock import spawn
from ...errors import StaleRouteError, StorageError
from ...interface import Backend
from ...records import Applied, Mutation, RecordRef

REOFFER_LIMIT = 1_000_000  # records offered anew after a restart, at the most: bounds the time of one pass


async def pages(source: Backend, *, since: int, open_only: bool, size: int) -> AsyncIterator[list[Mutation]]:
    """A source's records, page by page, those of one key in order."""
    cursor: str | None = None
    while True:
        page = await source.read_records(since=since, open_only=open_only, after=cursor, limit=size)
        if page.records:
            yield page.records
        cursor = page.cursor
        if cursor is None:
            return


async def replay(
    source: Backend, target: Backend, records: list[Mutation], epoch: int
) -> tuple[int, list[StorageError]]:
    """Replay one page on the target and close the marks of what it definitely has. How many it has, and what it refused."""
    results = await target.apply([replace(record, epoch=epoch) for record in records])
    done: list[RecordRef] = []
    refused: list[StorageError] = []
    for record, result in zip(records, results, strict=True):
        if isinstance(result, Applied):
            done.append(RecordRef(record.key, record.op_id, record.stamp, record.rank))
        elif isinstance(result, StaleRouteError):
            raise result
        else:
            refused.append(result)
    if done:
        await source.close_marks(done)
    return len(done), refused


class Settler:
    """Closes marks lazily, in batches: a mark left open is only work done twice, so nobody waits for it.

    Args:
        interval: seconds between two flushes.
        most: how many marks may wait; more are left to the reconciler.
    """

    def __init__(self, *, interval: float, most: int = 50_000) -> None:
        self._interval = interval
        self._most = most
        self._waiting: dict[Backend, list[RecordRef]] = defaultdict(list)
        self._count = 0
        self._task: asyncio.Task[None] | None = None
        self._some = asyncio.Event()

    def start(self) -> None:
        self._task = spawn(self._run(), name="aiecs dual_write settler")

    async def stop(self) -> None:
        """Close what waits, and end."""
        await self.abandon()
        await self.flush()

    async def abandon(self) -> None:
        """End without flushing, as a crash would: the marks stay open."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def add(self, source: Backend, refs: list[RecordRef]) -> None:
        """The peer of ``source`` has these."""
        if self._count + len(refs) <= self._most:
            self._waiting[source].extend(refs)
            self._count += len(refs)
            self._some.set()

    async def flush(self) -> None:
        """Close what waits. What a failing store does not take is left to the reconciler."""
        waiting, self._waiting, self._count = self._waiting, defaultdict(list), 0
        for source, refs in waiting.items():
            try:
                await source.close_marks(refs)
            except StorageError:
                continue

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            await asyncio.sleep(self._interval)
            self._some.clear()
            await self.flush()
