"""Connections, and how callers share them.

Not the driver's pool, for what it cannot do: wait within the caller's deadline, keep ``pool_size`` connections and close
what overflowed, hand a freed connection to whoever waits even while new ones are being opened, and clean up after a
cancelled call in the background instead of making the cancelled caller wait for the server. A session is never changed
by our statements, so a connection goes back without a reset round trip.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ...clock import monotonic, spawn
from ...errors import (
    BackendClosedError,
    DeadlineExceededError,
    OverloadedError,
    StorageError,
    StorageTimeoutError,
)
from ...operations import active
from ._errors import translate

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]

T = TypeVar("T")

SETTLE_SECONDS = 2.0  # how long an interrupted connection gets to come back before it is cut
CLOSE_SECONDS = 2.0  # how long the server gets to say goodbye


class Pool:
    """At most ``most`` connections, of which up to ``keep`` stay open when idle.

    Args:
        connect: opens one connection.
        keep, most: how many stay, and how many there may be.
        acquire_timeout: seconds that a caller waits for a connection at most; its own deadline may be sooner.
        command_timeout: seconds that a statement may take at most, likewise.
        faults: what the driver and the network raise.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        keep: int,
        most: int,
        acquire_timeout: float,
        command_timeout: float,
        faults: tuple[type[BaseException], ...],
        backend: str,
        place: str,
    ) -> None:
        self._connect = connect
        self._keep, self._most = keep, most
        self._acquire_timeout, self._command_timeout = acquire_timeout, command_timeout
        self._faults = faults
        self._backend, self._place = backend, place
        self._idle: list[tuple[Connection, float]] = []  # the last used is taken first
        self._busy: set[Connection] = set()
        self._waiters: deque[asyncio.Future[Connection]] = deque()
        self._openers: set[asyncio.Task[None]] = set()
        self._settlers: set[asyncio.Task[None]] = set()
        self._drained = asyncio.Event()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Pool {len(self._busy)} busy, {len(self._idle)} idle of {self._most}, {len(self._waiters)} waiting>"

    def facts(self) -> dict[str, int]:
        """For health and metrics."""
        return {
            "connections": self._total(),
            "busy": len(self._busy),
            "idle": len(self._idle),
            "waiting": len(self._waiters),
            "most": self._most,
        }

    # ------------------------------------------------------------------ one statement

    async def fetch(self, query: str, *args: object, limit: float | None = None) -> list[Any]:
        """Run one statement on a connection of its own and return its rows.

        ``limit``: seconds for everything, instead of the two time-outs. The deadline of the operation in flight always
        holds. What is raised is one of our errors; after a cancellation the connection is made sound in the background.
        """
        operation = active()
        left = operation.remaining() if operation is not None else None
        allowed = self._command_timeout if limit is None else limit
        connection = self._take() or await self._wait(self._acquire_timeout if limit is None else limit, left)
        try:
            if operation is not None:
                left = operation.remaining()
                if left is not None and left <= 0:
                    raise _spent("before a statement was sent", self._backend)
            rows = await connection.fetch(
                query, *args, timeout=allowed if left is None else min(allowed, left)
            )
        except self._faults as error:
            self._after(error, connection)
            if isinstance(error, TimeoutError) and left is not None and left <= allowed:
                raise DeadlineExceededError(
                    f"the deadline passed while PostgreSQL at {self._place} was working",
                    backend=self._backend,
                ) from error
            raise translate(error, backend=self._backend, phase="run", place=self._place) from error
        except StorageError:
            self._release(connection)
            raise
        except BaseException:  # cancelled, in the middle of a statement perhaps
            self._settle(connection)
            raise
        self._release(connection)
        return rows

    # ------------------------------------------------------------------ taking and giving back

    def _take(self) -> Connection | None:
        """A connection at once, or None: then there is a queue, or one has to be opened."""
        while self._idle and not self._waiters:
            connection = self._idle.pop()[0]
            if not connection.is_closed():
                self._busy.add(connection)
                return connection
            connection.terminate()
        return None

    async def _wait(self, limit: float, left: float | None) -> Connection:
        if self._closed:
            raise self._refusal()
        if left is not None and left <= 0:
            raise _spent("before a connection was free", self._backend)
        waiter: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._open_more()
        try:
            async with asyncio.timeout(limit if left is None else min(limit, left)):
                return await waiter
        except BaseException as error:
            self._forget(waiter)
            if isinstance(error, TimeoutError):
                raise self._waited_too_long(limit, left) from error
            raise

    def _forget(self, waiter: asyncio.Future[Connection]) -> None:
        """A waiter gave up. What it was just given goes to the next."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if not waiter.done():
            waiter.cancel()
        elif not waiter.cancelled() and waiter.exception() is None:
            self._release(waiter.result())

    def _waited_too_long(self, limit: float, left: float | None) -> StorageError:
        if left is not None and left <= limit:
            return _spent("before a connection was free", self._backend)
        if len(self._busy) < self._most:
            return StorageTimeoutError(
                f"no connection to PostgreSQL at {self._place} within {limit:g} s",
                backend=self._backend,
                outcome="not_applied",
            )
        return OverloadedError(
            f"all {self._most} connections to PostgreSQL were busy for {limit:g} s: raise pool_size or max_overflow, "
            "or send less at once",
            backend=self._backend,
            transient=True,
        )

    def _release(self, connection: Connection) -> None:
        self._busy.discard(connection)
        if self._closed or connection.is_closed():
            connection.terminate()
            self._open_more()
        else:
            self._give(connection)
        if self._closed and not self._busy:
            self._drained.set()

    def _give(self, connection: Connection) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._busy.add(connection)
                waiter.set_result(connection)
                return
        self._idle.append((connection, monotonic()))

    # ------------------------------------------------------------------ interrupted connections

    def _after(self, error: BaseException, connection: Connection) -> None:
        """A statement failed: is the connection still good?"""
        state = getattr(error, "sqlstate", None)
        if isinstance(error, TimeoutError) or state is None:
            self._settle(connection)
            return
        if state.startswith(("08", "57P")) or getattr(error, "severity_en", None) in {"FATAL", "PANIC"}:
            connection.terminate()  # the server is leaving
        self._release(connection)

    def _settle(self, connection: Connection) -> None:
        """The statement was interrupted: the driver has asked the server to end it, wait for that elsewhere."""
        if connection.is_closed() or self._closed:
            connection.terminate()
            self._release(connection)
            return
        task = spawn(self._come_back(connection), name=f"{self._backend}.settle")
        self._settlers.add(task)
        task.add_done_callback(self._settlers.discard)

    async def _come_back(self, connection: Connection) -> None:
        try:
            # Waits for the end of the interrupted statement, and takes a cancel request that arrives late.
            await connection.fetch("SELECT 1", timeout=SETTLE_SECONDS)
        except self._faults:
            connection.terminate()
        except BaseException:
            connection.terminate()
            raise
        finally:
            self._release(connection)

    # ------------------------------------------------------------------ opening

    def _total(self) -> int:
        return len(self._idle) + len(self._busy)

    def _open_more(self) -> None:
        """One opener per waiter, as far as there may be more. Whatever is free first serves the waiter."""
        while (
            not self._closed
            and len(self._openers) < len(self._waiters)
            and self._total() + len(self._openers) < self._most
        ):
            task = spawn(self._open(), name=f"{self._backend}.connect")
            self._openers.add(task)

    async def _open(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            connection = await self.connect()
        except StorageError as error:
            self._openers.discard(task)
            # The server has no room for more, but has some of ours: they will be free in a while.
            if not (self._busy and getattr(error.__cause__, "sqlstate", None) == "53300"):
                self._fail_one(error)
                self._open_more()
        else:
            self._openers.discard(task)
            if self._closed:
                connection.terminate()
            else:
                self._give(connection)
        finally:
            self._openers.discard(task)

    async def connect(self) -> Connection:
        """A new connection outside the pool; errors are ours."""
        return await self.guard(self._connect())

    async def guard(self, work: Awaitable[T]) -> T:
        """Do what comes before the first operation; errors are ours, and say that nothing was applied."""
        try:
            return await work
        except self._faults as error:
            raise translate(error, backend=self._backend, phase="connect", place=self._place) from error

    def _fail_one(self, error: StorageError) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)
                return

    # ------------------------------------------------------------------ less, and the end

    def adopt(self, connection: Connection) -> None:
        """Take in a connection that was opened outside."""
        self._give(connection)

    async def trim(self, idle_seconds: float) -> None:
        """Close what overflowed and has been idle for so long; the least recently used first."""
        horizon = monotonic() - idle_seconds
        surplus: list[Connection] = []
        while self._total() > self._keep and self._idle and self._idle[0][1] < horizon:
            surplus.append(self._idle.pop(0)[0])
        await self._say_goodbye(surplus)

    async def close(self, drain_seconds: float) -> None:
        """Refuse whoever waits, let running statements end, close everything. May be called again."""
        self._closed = True
        for task in list(self._openers):
            task.cancel()
        while self._waiters:
            self._fail_one(self._refusal())
        if self._busy:
            try:
                async with asyncio.timeout(drain_seconds):
                    await self._drained.wait()
            except TimeoutError:
                for connection in list(self._busy):
                    connection.terminate()
        tasks = [*self._openers, *self._settlers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        idle = [connection for connection, _since in self._idle]
        self._idle.clear()
        await self._say_goodbye(idle)

    async def _say_goodbye(self, connections: list[Connection]) -> None:
        async def leave(connection: Connection) -> None:
            try:
                await connection.close(timeout=CLOSE_SECONDS)
            except self._faults:
                connection.terminate()

        await asyncio.gather(*(leave(connection) for connection in connections))

    def _refusal(self) -> BackendClosedError:
        return BackendClosedError(f"{self._backend} was closed", backend=self._backend)


def _spent(when: str, backend: str) -> DeadlineExceededError:
    return DeadlineExceededError(f"the deadline passed {when}", backend=backend, outcome="not_applied")
