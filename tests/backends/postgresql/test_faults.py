"""What goes wrong at the server or on the way comes out as one of our errors, with an honest outcome and no secret."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from aiecs_resilient.backends.postgresql import PostgreSQLStorageBackend
from aiecs_resilient.backends.postgresql._errors import translate
from aiecs_resilient.errors import (
    ConfigurationError,
    DataCorruptionError,
    InvalidValueError,
    StorageConnectionError,
    StorageError,
    StorageTimeoutError,
)
from aiecs_resilient.testing.servers import PostgreSQLServer

from .conftest import until


async def test_a_killed_server_and_its_return(own_server: PostgreSQLServer) -> None:
    """Killed: a transient error at once, then certainly not applied; restarted: what was acknowledged is there."""
    async with PostgreSQLStorageBackend(own_server.url) as backend:
        assert await backend.add_conversation_message("s", "user", "before")
        await own_server.akill()
        with pytest.raises(StorageConnectionError) as first:
            await backend.add_conversation_message("s", "user", "lost")
        with pytest.raises(StorageConnectionError, match="is it running") as second:
            await backend.add_conversation_message("s", "user", "lost")
        assert first.value.transient
        assert (second.value.transient, second.value.outcome) == (True, "not_applied")
        assert (await backend.health_check())["status"] == "unhealthy"
        await own_server.arestart()
        assert await backend.add_conversation_message("s", "user", "after")
        history = await backend.get_conversation_history("s")
        assert [item["content"] for item in history] == ["before", "after"]
        assert (await backend.health_check())["status"] == "healthy"


async def test_a_server_that_hangs(own_server: PostgreSQLServer) -> None:
    """Stopped in the middle: the call ends in time with an unknown outcome, health too, and all is well after it resumes."""
    async with PostgreSQLStorageBackend(
        own_server.url, command_timeout=0.2, connect_timeout=0.2, acquire_timeout=0.5, health_timeout=0.2
    ) as backend:
        await backend.create_session("s", "u")
        own_server.pause()
        async with asyncio.timeout(5):
            with pytest.raises(StorageTimeoutError) as caught:
                await backend.update_session("s", None, True)
            with pytest.raises(StorageError) as again:
                await backend.update_session("s", None, True)
            health = await backend.health_check()
        assert (caught.value.outcome, caught.value.transient) == ("unknown", True)
        assert again.value.outcome == "not_applied"
        assert health["status"] == "unhealthy"
        own_server.resume()

        async def healthy() -> bool:
            return bool((await backend.health_check())["status"] == "healthy")

        await until(healthy)
        assert await backend.update_session("s", None, True)
        session = await backend.get_session("s")
        assert session is not None
        assert 1 <= session["request_count"] <= 2


async def test_nobody_there() -> None:
    """initialize on an address where nothing listens raises, names the address, and repeats no password."""
    backend = PostgreSQLStorageBackend("postgresql://me:s3cret@127.0.0.1:1/db?password=s3cret")
    with pytest.raises(StorageConnectionError, match=r"127\.0\.0\.1:1/db.*is it running") as caught:
        await backend.initialize()
    assert (caught.value.outcome, caught.value.transient) == ("not_applied", True)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(backend)
    assert (await backend.health_check())["status"] == "unhealthy"
    await backend.close()


async def test_no_such_database(server: PostgreSQLServer) -> None:
    """A wrong database is an error that says so, and that trying again does not help."""
    backend = PostgreSQLStorageBackend(server.url.removesuffix("postgres") + "nowhere")
    with pytest.raises(StorageConnectionError, match="create the database") as caught:
        await backend.initialize()
    assert not caught.value.transient


async def test_a_connection_that_the_server_ends(
    server: PostgreSQLServer, backend: PostgreSQLStorageBackend
) -> None:
    """pg_terminate_backend in the middle of a statement: transient, outcome unknown; the next call has a new connection."""
    pool = backend._opened()
    working = asyncio.ensure_future(pool.fetch("SELECT pg_sleep(20)"))
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(20)'"

    async def killed() -> bool:
        return bool(await pool.fetch(kill))

    await until(killed)
    with pytest.raises(StorageConnectionError) as caught:
        await working
    assert (caught.value.transient, caught.value.outcome) == (True, "unknown")
    assert await backend.add_conversation_message("s", "user", "works")


async def test_a_read_only_server_is_not_healthy(server: PostgreSQLServer) -> None:
    """A server that answers but takes no writes: writes are certainly not applied, and health tells by writing."""
    url = server.create_database("read_only")
    async with PostgreSQLStorageBackend(url) as backend:
        await backend._opened().fetch("ALTER DATABASE read_only SET default_transaction_read_only = on")
    admin = await asyncpg.connect(url)
    try:
        backend = PostgreSQLStorageBackend(url)
        assert await backend.initialize()
        with pytest.raises(StorageConnectionError, match="read-only") as caught:
            await backend.add_conversation_message("s", "user", "x")
        assert (caught.value.outcome, caught.value.transient) == ("not_applied", True)
        health = await backend.health_check()
        assert health["status"] == "unhealthy"
        assert "read-only" in health["issues"][0]
        assert await backend.get_conversation_history("s") == []
        await backend.close()
    finally:
        await admin.close()


async def test_the_server_ends_long_statements(server: PostgreSQLServer, schema: str) -> None:
    """``statement_timeout`` is the server's: what it ends is rolled back, so certainly not applied."""
    async with PostgreSQLStorageBackend(server.url, schema=schema, statement_timeout=0.05) as backend:
        with pytest.raises(StorageTimeoutError) as caught:
            await backend._opened().fetch("SELECT pg_sleep(20)")
        assert caught.value.outcome == "not_applied"


async def test_a_full_server_makes_callers_wait(own_server: PostgreSQLServer) -> None:
    """When the server has no room for our next connection, callers share those that we have; nobody fails."""
    await own_server.aremove()
    crowded = PostgreSQLServer(fsync=False, max_connections=8)
    async with crowded, PostgreSQLStorageBackend(crowded.url, pool_size=20) as backend:
        calls = [backend.add_conversation_message("s", "user", f"m{n}") for n in range(60)]
        assert await asyncio.gather(*calls) == [True] * 60


async def test_settings_that_would_break_the_fence_are_refused(server: PostgreSQLServer) -> None:
    """Under another isolation level than read committed the fence would read an old route: writes are refused."""
    url = server.create_database("repeatable")
    async with PostgreSQLStorageBackend(url) as backend:
        await backend._opened().fetch(
            "ALTER DATABASE repeatable SET default_transaction_isolation = 'repeatable read'"
        )
    async with PostgreSQLStorageBackend(url) as backend:
        with pytest.raises(StorageError, match="read committed") as caught:
            await backend.add_conversation_message("s", "user", "x")
        assert caught.value.outcome == "not_applied"


@pytest.mark.parametrize(
    ("error", "phase", "expected", "transient", "outcome"),
    [
        (ConnectionRefusedError("no"), "connect", StorageConnectionError, True, "not_applied"),
        (ConnectionResetError("no"), "run", StorageConnectionError, True, "unknown"),
        (TimeoutError(), "connect", StorageTimeoutError, True, "not_applied"),
        (TimeoutError(), "run", StorageTimeoutError, True, "unknown"),
        (asyncpg.ConnectionDoesNotExistError("closed"), "run", StorageConnectionError, True, "unknown"),
        (asyncpg.InterfaceError("connection is closed"), "run", StorageConnectionError, True, "not_applied"),
        (asyncpg.InternalClientError("got confused"), "run", StorageConnectionError, True, "unknown"),
        (asyncpg.ReadOnlySQLTransactionError("no"), "run", StorageConnectionError, True, "not_applied"),
        (asyncpg.SerializationError("no"), "run", StorageError, True, "not_applied"),
        (asyncpg.DeadlockDetectedError("no"), "run", StorageError, True, "not_applied"),
        (asyncpg.TooManyConnectionsError("no"), "connect", StorageConnectionError, True, "not_applied"),
        (asyncpg.AdminShutdownError("no"), "run", StorageConnectionError, True, "unknown"),
        (asyncpg.CannotConnectNowError("no"), "connect", StorageConnectionError, True, "not_applied"),
        (asyncpg.InvalidPasswordError("no"), "connect", StorageConnectionError, False, "not_applied"),
        (asyncpg.InsufficientPrivilegeError("no"), "connect", StorageConnectionError, False, "not_applied"),
        (
            asyncpg.DataError("invalid input for query argument"),
            "run",
            InvalidValueError,
            False,
            "not_applied",
        ),
        (asyncpg.DataCorruptedError("no"), "run", DataCorruptionError, False, "unknown"),
        (asyncpg.StatementCompletionUnknownError("no"), "run", StorageConnectionError, True, "unknown"),
        (asyncpg.ClientConfigurationError("no"), "connect", ConfigurationError, False, "not_applied"),
    ],
)
def test_every_fault_has_one_meaning(
    error: BaseException, phase: str, expected: type[StorageError], transient: bool, outcome: str
) -> None:
    """Class, whether trying again helps, and whether it may have been applied, for each kind of fault."""
    ours = translate(error, backend="pg", phase="connect" if phase == "connect" else "run", place="there")
    assert (type(ours), ours.transient, ours.outcome, ours.backend) == (expected, transient, outcome, "pg")


def test_an_error_of_the_server_was_rolled_back() -> None:
    """ERROR ends the statement's transaction, so nothing was applied; FATAL may come after the commit."""
    for severity, outcome in (("ERROR", "not_applied"), ("FATAL", "unknown"), ("PANIC", "unknown")):
        error = asyncpg.DiskFullError("no space left")
        error.severity_en = severity
        ours = translate(error, backend="pg", phase="run", place="there")
        assert (type(ours), ours.transient, ours.outcome) == (StorageConnectionError, True, outcome)
