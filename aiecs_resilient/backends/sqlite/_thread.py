"""A thread that owns a connection: the writer, with group commit, and the reader for what is too large to read in place.

All writes that are waiting go into one transaction: one fsync for all of them. A caller's await returns only when that
transaction is durable. If anything in it fails, it is rolled back and each is tried alone, so that a failing item does not
disturb its neighbours; and a caller that stops waiting changes nothing for the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ...errors import BackendClosedError, Outcome, OverloadedError
from ._errors import map_error
from ._file import DatabaseFile
from ._sql import SQL
from ._tables import Batch

T = TypeVar("T")

MAX_BATCH = 1_000
"""Calls per transaction: enough to make the fsync cheap, few enough that nobody waits long."""


@dataclass(slots=True)
class Job(Generic[T]):
    """Work that somebody waits for."""

    work: Callable[[Batch], T]
    future: asyncio.Future[T]


Answer = tuple[Job[Any], Any, Exception | None]


@dataclass(slots=True)
class CommitCounts:
    """How well commits are shared."""

    commits: int = 0
    calls: int = 0
    largest: int = 0


class ConnectionThread:
    """Runs jobs on a connection of its own, in the order in which they came.

    Args:
        file: what to connect to.
        name: of the store, for errors and for the thread.
        writes: run jobs in transactions, as many as wait in one; otherwise one by one, reading only.
        context_versions: versions of a task context that are kept.
        max_pending: jobs that may wait; one more is refused.
    """

    def __init__(
        self, file: DatabaseFile, *, name: str, writes: bool, context_versions: int, max_pending: int
    ) -> None:
        self._file = file
        self._name = name
        self._writes = writes
        self._context_versions = context_versions
        self._max_pending = max_pending
        self._jobs: queue.SimpleQueue[Job[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Future[None] | None = None
        self.counts = CommitCounts()

    @property
    def pending(self) -> int:
        """Jobs that wait."""
        return self._jobs.qsize()

    def start(self, connection: sqlite3.Connection) -> None:
        """Begin to serve on this connection, which is closed in the end; called in the loop that will wait for the jobs."""
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        role = "writer" if self._writes else "reader"
        self._thread = threading.Thread(
            target=self._serve, args=(connection, self._ended), name=f"{self._name}-{role}", daemon=True
        )
        self._thread.start()

    async def stop(self) -> None:
        """Finish what is waiting, then end the thread and close the connection."""
        thread, ended, self._thread = self._thread, self._ended, None
        if thread is None or ended is None:
            return
        self._jobs.put(None)
        await asyncio.shield(ended)
        thread.join()  # it has nothing left to do but return

    async def call(self, work: Callable[[Batch], T]) -> T:
        """Wait for the work; for a writer: until what it did is durable."""
        if self._thread is None or self._loop is None:
            raise BackendClosedError(f"{self._name} is not open: initialize() it first", backend=self._name)
        if self._jobs.qsize() >= self._max_pending:
            raise OverloadedError(
                f"{self._max_pending:,} calls are waiting for {self._file.path} already: slow down, or raise max_pending",
                backend=self._name,
            )
        job = Job(work, self._loop.create_future())
        self._jobs.put(job)
        done: T = await job.future
        return done

    # ------------------------------------------------------------------ in the thread

    def _serve(self, connection: sqlite3.Connection, ended: asyncio.Future[None]) -> None:
        try:
            open_for_more = True
            while open_for_more:
                jobs, open_for_more = self._take()
                try:
                    answers = (self._commit if self._writes else self._read)(connection, jobs) if jobs else []
                except Exception as error:  # noqa: BLE001  the thread must live on, and nobody may wait for ever
                    self._roll_back(connection)
                    answers = self._refuse(jobs, error, "unknown")
                self._tell(_settle, answers)
        finally:
            connection.close()
            self._tell(_end, ended)

    def _take(self) -> tuple[list[Job[Any]], bool]:
        """All that wait, at least one; False once the end has come."""
        jobs: list[Job[Any]] = []
        job = self._jobs.get()
        with contextlib.suppress(queue.Empty):
            while job is not None:
                if not job.future.cancelled():  # nobody waits, and nothing was begun
                    jobs.append(job)
                if len(jobs) == (MAX_BATCH if self._writes else 1):
                    return jobs, True
                job = self._jobs.get_nowait()
            return jobs, False
        return jobs, True

    def _read(self, connection: sqlite3.Connection, jobs: list[Job[Any]]) -> list[Answer]:
        connection.execute(
            SQL["begin_read"]
        )  # takes no lock yet and cannot fail; all that a job reads is of one moment
        batch = Batch(connection, self._context_versions)
        answers = [self._attempt(job, batch, "not_applied") for job in jobs]
        self._roll_back(connection)
        return answers

    def _commit(self, connection: sqlite3.Connection, jobs: list[Job[Any]]) -> list[Answer]:
        try:
            self._file.begin(connection)
        except sqlite3.Error as error:
            return self._refuse(jobs, error, "not_applied")
        batch = Batch(connection, self._context_versions)
        answers = list[Answer]()
        for job in jobs:
            answers.append(self._attempt(job, batch, "not_applied"))
            if answers[-1][2] is not None:
                break
        else:
            try:
                batch.flush()
            except sqlite3.Error as error:
                answers = self._refuse(jobs, error, "not_applied")
            else:
                return self._end_transaction(connection, jobs, answers)
        self._roll_back(connection)
        if len(jobs) == 1:
            return answers
        return [answer for job in jobs for answer in self._commit(connection, [job])]

    def _end_transaction(
        self, connection: sqlite3.Connection, jobs: list[Job[Any]], answers: list[Answer]
    ) -> list[Answer]:
        try:
            connection.execute(SQL["commit"])
        except sqlite3.Error as error:
            self._roll_back(connection)
            return self._refuse(jobs, error, "unknown")
        self.counts.commits += 1
        self.counts.calls += len(jobs)
        self.counts.largest = max(self.counts.largest, len(jobs))
        return answers

    def _attempt(self, job: Job[Any], batch: Batch, outcome: Outcome) -> Answer:
        try:
            return job, job.work(batch), None
        except Exception as error:  # noqa: BLE001  the thread's border: whatever it is belongs to the one who waits
            return job, None, map_error(error, self._file.path, self._name, outcome)

    def _refuse(self, jobs: list[Job[Any]], error: Exception, outcome: Outcome) -> list[Answer]:
        return [(job, None, map_error(error, self._file.path, self._name, outcome)) for job in jobs]

    @staticmethod
    def _roll_back(connection: sqlite3.Connection) -> None:
        if connection.in_transaction:  # a full disk or an I/O error has rolled back by itself
            with contextlib.suppress(sqlite3.Error):
                connection.execute(SQL["rollback"])

    def _tell(self, callback: Callable[..., None], *args: Any) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(callback, *args)


def _end(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


def _settle(answers: list[Answer]) -> None:
    for job, answer, error in answers:
        if job.future.done():  # cancelled while it was under way: it has happened all the same
            continue
        if error is None:
            job.future.set_result(answer)
        else:
            job.future.set_exception(error)
