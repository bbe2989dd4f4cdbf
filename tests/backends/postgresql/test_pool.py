"""Sharing few connections among many callers: nobody fails, nobody waits beyond the deadline, nothing is left unsound."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from aiecs_resilient.backends.postgresql import PostgreSQLStorageBackend
from aiecs_resilient.backends.postgresql._pool import Pool
from aiecs_resilient.errors import (
    BackendClosedError,
    DeadlineExceededError,
    OverloadedError,
    StorageTimeoutError,
)
from aiecs_resilient.operations import GET_SESSION, begin, deadline, finish
from aiecs_resilient.testing.servers import PostgreSQLServer

from .conftest import until

SLEEP = "SELECT pg_sleep($1)"


@pytest.fixture
async def small(server: PostgreSQLServer, schema: str) -> AsyncIterator[PostgreSQLStorageBackend]:
    """A backend with two connections."""
    async with PostgreSQLStorageBackend(server.url, schema=schema, pool_size=2, max_overflow=0) as opened:
        yield opened


def pool_of(backend: PostgreSQLStorageBackend) -> Pool:
    return backend._opened()


async def sound(backend: PostgreSQLStorageBackend) -> None:
    """Nothing is busy, nobody waits, and the connections work."""

    async def idle() -> bool:
        return pool_of(backend).facts()["busy"] == 0

    await until(idle)  # interrupted connections come back in the background
    assert pool_of(backend).facts()["waiting"] == 0
    assert await backend.add_conversation_message("after", "user", "works") is True


async def test_fifty_callers_share_two_connections(small: PostgreSQLStorageBackend) -> None:
    """More calls than connections wait: all succeed, each exactly once, and there never are more connections."""
    calls = [small.add_conversation_message("s", "user", f"m{n}") for n in range(50)]
    assert await asyncio.gather(*calls) == [True] * 50
    history = await small.get_conversation_history("s", 0)
    assert sorted(item["content"] for item in history) == sorted(f"m{n}" for n in range(50))
    assert pool_of(small).facts()["connections"] == 2


async def test_the_wait_ends_with_the_deadline(small: PostgreSQLStorageBackend) -> None:
    """Who waits for a connection is told when its time is spent, certain that nothing was written; the others go on."""
    holders = [asyncio.ensure_future(pool_of(small).fetch(SLEEP, 1.0)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(DeadlineExceededError) as caught:
        async with asyncio.timeout(0.8), deadline(0.1):
            await small.add_conversation_message("s", "user", "late")
    assert caught.value.outcome == "not_applied"
    await asyncio.gather(*holders)
    assert await small.get_conversation_history("s") == []
    await sound(small)


async def test_a_spent_deadline_sends_nothing(small: PostgreSQLStorageBackend) -> None:
    """A statement is not even sent once the time is over."""
    context, token = begin(GET_SESSION)
    context.deadline = asyncio.get_running_loop().time() - 1
    try:
        with pytest.raises(DeadlineExceededError) as caught:
            await small.get_session("s")
    finally:
        finish(token)
    assert caught.value.outcome == "not_applied"
    await sound(small)


async def test_a_deadline_in_the_middle_leaves_the_outcome_open(small: PostgreSQLStorageBackend) -> None:
    """When the time ends while the server works, the outcome is unknown and the connection comes back."""
    context, token = begin(GET_SESSION)
    context.deadline = asyncio.get_running_loop().time() + 0.1
    try:
        with pytest.raises(DeadlineExceededError) as caught:
            await pool_of(small).fetch(SLEEP, 20)
    finally:
        finish(token)
    assert caught.value.outcome == "unknown"
    await sound(small)


async def test_the_wait_has_its_own_limit(server: PostgreSQLServer, schema: str) -> None:
    """Without a deadline ``acquire_timeout`` ends the wait, with an error that says the pool is full."""
    url = server.url
    async with PostgreSQLStorageBackend(
        url, schema=schema, pool_size=1, max_overflow=0, acquire_timeout=0.05
    ) as backend:
        holder = asyncio.ensure_future(pool_of(backend).fetch(SLEEP, 0.3))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="pool_size") as caught:
            await backend.get_session("s")
        assert caught.value.outcome == "not_applied"
        await holder


async def test_a_statement_that_hangs_is_given_up(server: PostgreSQLServer, schema: str) -> None:
    """``command_timeout`` ends a statement: outcome unknown, the server ends it too, the connection is used again."""
    async with PostgreSQLStorageBackend(
        server.url, schema=schema, pool_size=1, max_overflow=0, command_timeout=0.1
    ) as backend:
        with pytest.raises(StorageTimeoutError) as caught:
            await pool_of(backend).fetch(SLEEP, 20)
        assert (caught.value.outcome, caught.value.transient) == ("unknown", True)
        await sound(backend)
        assert pool_of(backend).facts()["connections"] == 1


@pytest.mark.parametrize("seed", range(4))
async def test_a_storm_of_cancels_leaves_everything_sound(small: PostgreSQLStorageBackend, seed: int) -> None:
    """Calls cancelled at any moment: what was acknowledged is there once, the rest at most once, and the pool is whole."""
    chooser = random.Random(seed)
    acknowledged: set[str] = set()

    async def write(text: str) -> None:
        assert await small.add_conversation_message(f"s{chooser.randrange(3)}", "user", text) is True
        acknowledged.add(text)

    tasks = [asyncio.ensure_future(write(f"m{n}")) for n in range(150)]
    for task in chooser.sample(tasks, 120):
        for _ in range(chooser.randrange(6)):
            await asyncio.sleep(0)
        if chooser.random() < 0.1:
            await asyncio.sleep(0.001)
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results), results
    await sound(small)
    assert pool_of(small).facts()["connections"] <= 2
    histories = [await small.get_conversation_history(f"s{n}", 0) for n in range(3)]
    stored = [item["content"] for history in histories for item in history]
    assert len(stored) == len(set(stored))
    assert acknowledged <= set(stored)


async def test_a_cancelled_waiter_gives_its_connection_on(small: PostgreSQLStorageBackend) -> None:
    """A connection handed to a waiter that is cancelled in the same moment goes to the next in the queue."""
    pool = pool_of(small)
    for _ in range(30):
        holders = [asyncio.ensure_future(pool.fetch("SELECT 1")) for _ in range(2)]
        waiters = [asyncio.ensure_future(pool.fetch("SELECT 2")) for _ in range(3)]
        await asyncio.wait(holders, return_when=asyncio.FIRST_COMPLETED)
        waiters[0].cancel()
        results = await asyncio.gather(*holders, *waiters, return_exceptions=True)
        assert [result[0][0] for result in results[3:] if isinstance(result, list)] == [2, 2]
    await sound(small)


async def test_overflow_goes_when_it_is_idle(server: PostgreSQLServer, schema: str) -> None:
    """Connections beyond ``pool_size`` are opened under load and closed when they have been idle; the others stay."""
    async with PostgreSQLStorageBackend(server.url, schema=schema, pool_size=2, max_overflow=3) as backend:
        pool = pool_of(backend)
        await asyncio.gather(*(pool.fetch(SLEEP, 0.05) for _ in range(8)))
        assert pool.facts()["connections"] == 5
        await pool.trim(60)
        assert pool.facts()["connections"] == 5
        await pool.trim(0)
        assert pool.facts()["connections"] == 2
        await sound(backend)


async def test_close_lets_the_running_end_and_refuses_the_waiting(small: PostgreSQLStorageBackend) -> None:
    """What the server is working on is finished and acknowledged; who still waits is told, certain of not_applied."""
    pool = pool_of(small)
    running = [asyncio.ensure_future(pool.fetch("SELECT 7 FROM pg_sleep(0.1)")) for _ in range(2)]

    async def both() -> bool:
        return pool.facts()["busy"] == 2

    await until(both)
    waiting = asyncio.ensure_future(small.get_session("s"))
    await asyncio.sleep(0)
    await small.close()
    assert [(await task)[0][0] for task in running] == [7, 7]
    with pytest.raises(BackendClosedError) as caught:
        await waiting
    assert caught.value.outcome == "not_applied"


async def test_close_does_not_wait_for_ever(server: PostgreSQLServer, schema: str) -> None:
    """A statement that does not end is cut after ``close_timeout``; its caller gets one of our errors."""
    backend = PostgreSQLStorageBackend(server.url, schema=schema, close_timeout=0.1)
    await backend.initialize()
    pool = pool_of(backend)
    hanging = asyncio.ensure_future(pool.fetch(SLEEP, 20))
    await asyncio.sleep(0.02)
    async with asyncio.timeout(5):
        await backend.close()
    with pytest.raises(Exception, match="PostgreSQL") as caught:
        await hanging
    assert getattr(caught.value, "outcome", None) == "unknown"
    assert pool.facts()["connections"] == 0


async def test_no_connection_outlives_close(server: PostgreSQLServer, schema: str) -> None:
    """The server counts as many of our connections after close as before."""

    async def ours() -> int:
        async with PostgreSQLStorageBackend(server.url, schema=schema) as watcher:
            query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'aiecs-resilient'"
            return int((await pool_of(watcher).fetch(query))[0][0])

    before = await ours()
    async with PostgreSQLStorageBackend(server.url, schema=schema) as backend:
        await asyncio.gather(*(backend.get_session("s") for _ in range(30)))

    async def gone() -> bool:
        return await ours() <= before

    await until(gone)  # the server notices a moment later
