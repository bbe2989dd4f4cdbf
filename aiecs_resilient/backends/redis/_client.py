"""Connections to one Redis server, with limits of our own.

The driver's connections are used one by one and its pools are not: a blocking pool stalled after cancelled calls, and one
rule is easier to keep than to check from outside: *a connection goes back only if every reply to what was sent on it has been
read*. Whatever else happens, error, timeout or cancellation, it is cut off, so that no caller ever reads another's reply.

One timer per request bounds connecting, sending and reading together; the driver's own timers and retries are off.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import hiredis
import redis.exceptions as driver
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ...errors import (
    BackendClosedError,
    ConfigurationError,
    DeadlineExceededError,
    Outcome,
    OverloadedError,
    StorageError,
    StorageTimeoutError,
)
from ...operations import active
from ._errors import connection_lost, needs_new_connection, not_connected, refused
from ._scripts import Command, Script, Scripts

Reply = Any  # Any: what the driver's parser makes of a reply
RELOADS = 3  # times that forgotten scripts are loaded again for one request
PIPELINE = 1_000  # commands sent before their replies are read: bounds what the server must buffer

_FROM_URL = frozenset(
    {"host", "port", "db", "path", "username", "password", "client_name", "connection_class"}
)


def driver_options(url: str, connect_timeout: float) -> tuple[type[AbstractConnection], dict[str, Any]]:
    """The driver's class and arguments for a URL.

    Raises:
        ConfigurationError: the URL cannot be used, or sets something that this backend decides itself.
    """
    where = f"{url.partition('://')[0]}://…" if "://" in url else "the URL"  # it may hold a password
    for name in _query_of(url):
        if name not in _FROM_URL and not name.startswith("ssl_"):
            raise ConfigurationError(
                f"the query of {where} sets {name!r}, which is an option of this backend or must not be changed; "
                f"allowed there: {', '.join(sorted(_FROM_URL - {'connection_class'}))}, ssl_*"
            )
    try:
        pool = ConnectionPool.from_url(url)
    except (ValueError, TypeError):  # not chained: its text may quote parts of the password
        raise ConfigurationError(
            f"{where} is no address of a Redis server: write redis://[user:password@]host:port/database, rediss:// for "
            "TLS, or unix:///path/of/socket?db=0, with special characters of a password percent-encoded"
        ) from None
    given = pool.connection_kwargs
    options: dict[str, Any] = {
        name: value for name, value in given.items() if name in _FROM_URL or name.startswith("ssl_")
    }
    options |= {
        "protocol": 2,  # one form of replies, and no push messages between them
        "decode_responses": False,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
        "socket_timeout": None,  # one timer per request is ours
        "socket_connect_timeout": connect_timeout,
        "health_check_interval": 0,
    }
    return pool.connection_class, options


def _query_of(url: str) -> list[str]:
    return [part.partition("=")[0] for part in url.partition("?")[2].split("&") if part]


def check_driver(connection: AbstractConnection) -> None:
    """Refuse a driver that would repeat commands on its own: a repeat is decided once, with an identity, or not at all."""
    retries = connection.retry.get_retries()
    if retries:
        raise ConfigurationError(
            f"the Redis driver is set to retry {retries} times on its own; this backend needs 0, because a repeated "
            "command could be applied twice. Put a retry layer above it instead"
        )


class RedisClient:
    """Sends commands and answers with their replies.

    Args:
        options: what :func:`driver_options` gave.
        name: of the backend, for errors.
        scripts: loaded on demand.
        max_connections: sockets at most; further calls wait in line.
        connect_timeout, response_timeout, pool_timeout: seconds for making a connection, for a request once it has one,
            and for waiting in line. The caller's deadline, if earlier, wins.
    """

    def __init__(
        self,
        options: tuple[type[AbstractConnection], Mapping[str, Any]],
        *,
        name: str,
        scripts: Scripts,
        max_connections: int,
        connect_timeout: float,
        response_timeout: float,
        pool_timeout: float,
    ) -> None:
        self._class, self._options = options
        self._name = name
        self._scripts = scripts
        self._max_connections = max_connections
        self._connect_timeout = connect_timeout
        self._response_timeout = response_timeout
        self._pool_timeout = pool_timeout
        self._idle: list[AbstractConnection] = []
        self._free = max_connections
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._drained = asyncio.Event()
        self._closed = False

    def __repr__(self) -> str:
        used = self._max_connections - self._free
        return (
            f"<RedisClient {self._name}, {used}/{self._max_connections} in use, {len(self._waiting)} waiting>"
        )

    @property
    def in_use(self) -> int:
        """Permits taken: requests under way."""
        return self._max_connections - self._free

    @property
    def idle(self) -> int:
        """Connections that wait for work."""
        return len(self._idle)

    # ------------------------------------------------------------------ requests

    async def one(self, *command: bytes | int | str) -> Reply:
        """One command; its error is raised."""
        [reply] = await self.run([command])
        return reply

    async def run(self, commands: Sequence[Command]) -> list[Reply]:
        """Commands in one round trip each thousand; the first error is raised, after all replies have been read.

        ``not_applied`` is said only if no command before or beside the failing one was carried out.
        """
        replies: list[Reply] = []
        for start in range(0, len(commands), PIPELINE):
            with self.unknown_if(bool(replies)):
                replies += await self.raw(commands[start : start + PIPELINE])
        self.check(replies)
        return replies

    def check(self, replies: Sequence[Reply]) -> None:
        """Raise the first error among replies of :meth:`raw`."""
        errors = [reply for reply in replies if isinstance(reply, driver.ResponseError)]
        if errors:
            outcome: Outcome = "not_applied" if len(errors) == len(replies) else "unknown"
            raise refused(errors[0], self._name, outcome) from errors[0]

    @staticmethod
    @contextlib.contextmanager
    def unknown_if(part_is_done: bool) -> Generator[None]:
        """What follows cannot be said to be ``not_applied`` if a part of it already was."""
        try:
            yield
        except StorageError as error:
            if part_is_done:
                error.outcome = "unknown"
            raise

    async def raw(self, commands: Sequence[Command]) -> list[Reply]:
        """As :meth:`run`, with the server's errors as values. Scripts that the server has forgotten are loaded again."""
        replies = await self._exchange(commands)
        for attempt in range(1, RELOADS + 1):
            forgotten = [n for n, reply in enumerate(replies) if isinstance(reply, driver.NoScriptError)]
            if not forgotten:
                break
            calls = {n: self._script_of(commands[n]) for n in forgotten}
            load = _load({script.sha: script for script in calls.values()}.values())
            # The last time with the text itself, which works even if somebody flushes all the time.
            again = [
                script.evaluate(commands[n]) if attempt == RELOADS else commands[n]
                for n, script in calls.items()
            ]
            with self.unknown_if(len(forgotten) < len(commands)):
                answers = await self._exchange([*load, *again])
            for n, reply in zip(forgotten, answers[len(load) :], strict=True):
                replies[n] = reply
        return replies

    def _script_of(self, command: Command) -> Script:
        sha = command[1]
        assert isinstance(sha, bytes)
        return self._scripts.by_sha[sha]

    async def load_scripts(self) -> None:
        """Send all scripts to the server."""
        await self.run(_load(self._scripts.all))

    async def _exchange(self, commands: Sequence[Command]) -> list[Reply]:
        """One round trip: as many replies as commands."""
        payload: list[bytes] = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]  its stub allows one argument only
        loop = asyncio.get_running_loop()
        deadline = _deadline()
        if deadline is not None and deadline <= loop.time():
            raise self._too_late(sent=False, by_deadline=True)
        if self._free and not self._waiting and not self._closed:
            self._free -= 1
        else:
            await self._wait_in_line(deadline)
        limit = loop.time() + self._response_timeout
        exchange = _Exchange(self, payload)
        try:
            async with asyncio.timeout_at(limit if deadline is None else min(limit, deadline)):
                return await exchange.run()
        except TimeoutError as error:
            await self.forget_idle()  # they lead to the same silence
            raise self._too_late(
                sent=exchange.sent, by_deadline=deadline is not None and deadline <= limit
            ) from error
        finally:
            await exchange.end()
            self._pass_on()

    def _too_late(self, *, sent: bool, by_deadline: bool) -> StorageError:
        outcome: Outcome = "unknown" if sent else "not_applied"
        if by_deadline:
            return DeadlineExceededError(
                f"the deadline passed while waiting for {self._name}", outcome=outcome, backend=self._name
            )
        return StorageTimeoutError(
            f"{self._name} did not answer within {self._response_timeout:g} s (response_timeout)",
            outcome=outcome,
            backend=self._name,
        )

    # ------------------------------------------------------------------ the line

    async def _wait_in_line(self, deadline: float | None) -> None:
        """A permit, first come first served. A cancelled waiter hands on what it was given."""
        self._require_open()
        loop = asyncio.get_running_loop()
        limit = loop.time() + self._pool_timeout
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout_at(limit if deadline is None else min(limit, deadline)):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._pass_on()
            else:
                turn.cancel()
                with contextlib.suppress(ValueError):
                    self._waiting.remove(turn)
            if not isinstance(error, TimeoutError):
                raise
            if deadline is not None and deadline <= limit:
                raise self._too_late(sent=False, by_deadline=True) from error
            raise OverloadedError(
                f"no connection to {self._name} became free within {self._pool_timeout:g} s (pool_timeout): "
                f"all {self._max_connections} are busy; raise max_connections, or ask less at once",
                backend=self._name,
            ) from error
        if self._closed:
            self._pass_on()
            self._require_open()

    def _pass_on(self) -> None:
        """A permit to the next in line, or back."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
        if self._closed and self.in_use == 0:
            self._drained.set()

    # ------------------------------------------------------------------ connections

    async def connected(self) -> AbstractConnection:
        """An idle connection that is clean, or a new one. The caller owns it until :meth:`give_back` or :meth:`cut`."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_connected and not await _has_pending(connection):
                return connection
            await self.cut(connection)  # the server closed it, or said something nobody asked for
        connection = self._class(**self._options)
        check_driver(connection)
        try:
            async with asyncio.timeout(self._connect_timeout):
                connect: Callable[[], Awaitable[None]] = connection.connect  # the driver leaves it untyped
                await connect()
        except (driver.RedisError, OSError) as error:  # TimeoutError is an OSError
            await self.cut(connection)
            raise not_connected(error, self._name) from error
        except BaseException:
            await self.cut(connection)
            raise
        return connection

    async def give_back(self, connection: AbstractConnection) -> None:
        """For connections on which every reply has been read."""
        if self._closed:
            await self.cut(connection)
        else:
            self._idle.append(connection)

    async def cut(self, connection: AbstractConnection) -> None:
        """End it at once, dropping what is still to be sent: it must not wait for a peer that reads nothing."""
        writer = connection._writer  # the driver has no public way to abort
        if writer is not None:
            writer.transport.abort()
        with contextlib.suppress(driver.RedisError, OSError):
            await connection.disconnect(nowait=True)

    async def forget_idle(self) -> None:
        """Cut all idle connections: the address may lead to another server now."""
        while self._idle:
            await self.cut(self._idle.pop())

    def _require_open(self) -> None:
        if self._closed:
            raise BackendClosedError(f"{self._name} is closed", backend=self._name)

    async def close(self) -> None:
        """Refuse new requests, let those under way finish (they are bounded), end all connections."""
        self._closed = True
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self._free -= 1  # it takes the permit, sees that we are closed, and gives it back
                turn.set_result(None)
        if self.in_use > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._response_timeout):
                    await self._drained.wait()
        await self.forget_idle()


class _Exchange:
    """One request on one connection, and what became of the connection."""

    __slots__ = ("_clean", "_client", "_connection", "_payload", "sent")

    def __init__(self, client: RedisClient, payload: Sequence[bytes]) -> None:
        self._client = client
        self._payload = payload
        self._connection: AbstractConnection | None = None
        self._clean = False
        self.sent = False

    async def run(self) -> list[Reply]:
        client = self._client
        client._require_open()
        connection = self._connection = await client.connected()
        replies: list[Reply] = []
        try:
            self.sent = True
            await connection.send_packed_command(self._payload, check_health=False)
            for _ in self._payload:
                try:
                    replies.append(await connection.read_response(disconnect_on_error=False))
                except driver.ResponseError as error:
                    replies.append(error)
        except (driver.RedisError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            done = any(not isinstance(reply, driver.ResponseError) for reply in replies)
            raise connection_lost(error, client._name, "unknown" if done else "not_applied") from error
        moved = any(
            isinstance(reply, driver.ResponseError) and needs_new_connection(reply) for reply in replies
        )
        self._clean = not moved
        if moved:
            await client.forget_idle()
        return replies

    async def end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._clean:
            await self._client.give_back(connection)
        else:
            await self._client.cut(connection)


def _load(scripts: Iterable[Script]) -> list[Command]:
    return [(b"SCRIPT", b"LOAD", script.text) for script in scripts]


def _deadline() -> float | None:
    context = active()
    return None if context is None else context.deadline


async def _has_pending(connection: AbstractConnection) -> bool:
    """Has the peer closed it, or sent something that nobody asked for?"""
    try:
        if hasattr(connection, "can_read"):  # redis 8; before that the same was called can_read_destructive
            return bool(await connection.can_read())
        return bool(await connection.can_read_destructive())
    except (driver.RedisError, OSError):
        return True
