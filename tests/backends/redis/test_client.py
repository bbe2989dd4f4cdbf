"""Connections: a limit that makes callers wait and never fail, and never another caller's answer."""

from __future__ import annotations

import asyncio
import random

import pytest

from aiecs_resilient.backends.redis import RedisStorageBackend
from aiecs_resilient.clock import monotonic
from aiecs_resilient.errors import (
    DeadlineExceededError,
    OverloadedError,
    StorageConnectionError,
    StorageError,
    StorageTimeoutError,
)
from aiecs_resilient.operations import deadline, operation
from aiecs_resilient.testing.servers import ValkeyServer

SESSIONS = 40


async def test_more_callers_than_connections_wait(server: ValkeyServer, prefix: str) -> None:
    """200 operations at once over two connections all succeed, and no third connection is made."""
    async with RedisStorageBackend(server.url, prefix=prefix, max_connections=2) as backend:
        sessions = [backend.create_session(f"s{n}", f"u{n}") for n in range(200)]
        created = await asyncio.gather(*sessions)
        read = await asyncio.gather(*(backend.get_session(f"s{n}") for n in range(200)))
        assert read == created
        assert backend._use().idle <= 2


async def test_cancels_leave_nothing_behind(server: ValkeyServer, prefix: str) -> None:
    """After 1,000 cancels at random points every answer still belongs to its caller, and the pool is whole."""
    chooser = random.Random(7)
    async with RedisStorageBackend(server.url, prefix=prefix, max_connections=4) as backend:
        for n in range(SESSIONS):
            await backend.create_session(f"s{n}", f"u{n}", {"mine": "x" * n * 200})
            await backend.add_conversation_message(f"s{n}", "user", f"only {n}")
        cancelled = 0
        while cancelled < 1_000:
            calls = [asyncio.create_task(_look(backend, chooser.randrange(SESSIONS))) for _ in range(30)]
            for call in chooser.sample(calls, 20):
                if chooser.random() < 0.3:
                    await asyncio.sleep(chooser.random() * 0.004)
                call.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            cancelled += sum(isinstance(result, asyncio.CancelledError) for result in results)
            assert [r for r in results if not isinstance(r, asyncio.CancelledError) and r is not True] == []
        client = backend._use()
        assert (client.in_use, len(client._waiting)) == (0, 0)
        assert client.idle <= 4
        everyone = asyncio.gather(*(_look(backend, n) for n in range(SESSIONS)))
        assert await asyncio.wait_for(everyone, 5) == [True] * SESSIONS


async def _look(backend: RedisStorageBackend, n: int) -> bool:
    session = await backend.get_session(f"s{n}")
    history = await backend.get_conversation_history(f"s{n}")
    assert session is not None
    assert (session["user_id"], len(session["metadata"]["mine"])) == (f"u{n}", n * 200)
    assert [item["content"] for item in history] == [f"only {n}"]
    return True


async def test_a_late_answer_reaches_nobody(own_server: ValkeyServer) -> None:
    """Calls that gave up on a stopped server leave no connection behind on which their answers arrive later."""
    async with RedisStorageBackend(own_server.url, max_connections=3, response_timeout=0.1) as backend:
        for n in range(SESSIONS):
            await backend.create_session(f"s{n}", f"u{n}", {"mine": "x" * n * 200})
            await backend.add_conversation_message(f"s{n}", "user", f"only {n}")
        own_server.pause()
        results = await asyncio.gather(*(_look(backend, n) for n in range(6)), return_exceptions=True)
        assert {type(result) for result in results} == {StorageTimeoutError}
        own_server.resume()
        assert await asyncio.gather(*(_look(backend, n) for n in range(SESSIONS))) == [True] * SESSIONS


async def test_a_timed_out_write_has_one_effect(own_server: ValkeyServer) -> None:
    """A write that a stopped server applies after all, when it resumes, is recognised when it is sent again."""
    async with RedisStorageBackend(own_server.url, response_timeout=0.1) as backend:
        await backend.create_session("s", "u")
        own_server.pause()
        async with operation("op"):
            with pytest.raises(StorageTimeoutError) as caught:
                await backend.update_session("s", increment_requests=True)
        assert caught.value.outcome == "unknown"
        own_server.resume()
        async with operation("op"):
            assert await backend.update_session("s", increment_requests=True) is True
        session = await backend.get_session("s")
        assert session is not None
        assert session["request_count"] == 1


async def test_the_line_is_bounded(own_server: ValkeyServer) -> None:
    """Who waits too long for a connection is told so, as our own refusal; a deadline, if earlier, wins."""
    async with RedisStorageBackend(
        own_server.url, max_connections=1, response_timeout=0.5, pool_timeout=0.05
    ) as backend:
        await backend.get_session("s")
        own_server.pause()
        first = asyncio.create_task(backend.get_session("s"))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="max_connections") as refused:
            await backend.create_session("s", "u")
        assert refused.value.outcome == "not_applied"
        with pytest.raises(DeadlineExceededError) as late:
            async with deadline(0.02):
                await backend.create_session("s", "u")
        assert late.value.outcome == "not_applied"
        with pytest.raises(StorageTimeoutError):
            await first
        own_server.resume()


async def test_a_deadline_ends_a_request(own_server: ValkeyServer) -> None:
    """The caller's deadline cuts what is under way (unknown) and starts nothing once it has passed (not_applied)."""
    async with RedisStorageBackend(own_server.url) as backend:
        await backend.get_session("s")
        own_server.pause()
        started = monotonic()
        async with deadline(0.05):
            with pytest.raises(DeadlineExceededError) as sent:
                await backend.create_session("s", "u")
            assert monotonic() - started < 0.1
            with pytest.raises(DeadlineExceededError) as unsent:
                await backend.create_session("s", "u")
        assert (sent.value.outcome, unsent.value.outcome) == ("unknown", "not_applied")
        own_server.resume()


async def test_a_killed_server_and_its_return(own_server: ValkeyServer) -> None:
    """Killed: each call fails at once. Restarted: calls work without a new initialize, and nothing acknowledged is gone."""
    async with RedisStorageBackend(own_server.url, max_connections=8) as backend:
        created = await asyncio.gather(*(backend.create_session(f"s{n}", "u") for n in range(30)))
        await own_server.akill()
        times: list[float] = []
        for n in range(20):
            started = monotonic()
            with pytest.raises(StorageConnectionError):
                await backend.get_session(f"s{n}")
            times.append(monotonic() - started)
        assert sorted(times)[10] < 0.02
        health = await backend.health_check()
        assert (health["status"], health["redis_connected"]) == ("unhealthy", False)
        await own_server.arestart()
        assert await asyncio.gather(*(backend.get_session(f"s{n}") for n in range(30))) == created
        assert (await backend.health_check())["status"] == "healthy"


async def test_killed_in_the_middle(own_server: ValkeyServer) -> None:
    """Kills while 20 callers write: every acknowledged message is there, each op_id at most once, errors are ours."""
    acknowledged: list[str] = []
    attempted: list[str] = []
    stop = asyncio.Event()

    async def write(backend: RedisStorageBackend, name: int) -> None:
        n = 0
        while not stop.is_set():
            n += 1
            attempted.append(f"{name}/{n}")
            try:
                async with operation(f"{name}/{n}"):
                    await backend.add_conversation_message("s", "user", f"{name}/{n}")
                acknowledged.append(f"{name}/{n}")
            except StorageError as error:
                if error.outcome == "not_applied":
                    attempted.remove(f"{name}/{n}")
                await asyncio.sleep(0.005)

    async with RedisStorageBackend(own_server.url, max_connections=8) as backend:
        writers = [asyncio.create_task(write(backend, name)) for name in range(20)]
        for _ in range(3):
            await asyncio.sleep(0.15)
            await own_server.akill()
            await own_server.arestart()
        await asyncio.sleep(0.1)
        stop.set()
        await asyncio.gather(*writers)
        stored = [item["content"] for item in await backend.get_conversation_history("s", 0)]
    assert len(stored) == len(set(stored))
    assert set(acknowledged) <= set(stored) <= set(attempted)
    assert len(acknowledged) > 100


async def test_close_waits_for_what_is_under_way(server: ValkeyServer, prefix: str) -> None:
    """Calls under way finish, those in line are refused, and no task or connection is left."""
    backend = RedisStorageBackend(server.url, prefix=prefix, max_connections=2)
    await backend.initialize()
    calls = [asyncio.create_task(backend.create_session(f"s{n}", "u")) for n in range(20)]
    await asyncio.sleep(0)
    client = backend._use()
    await backend.close()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result).__name__ for result in results} <= {"dict", "BackendClosedError"}
    assert any(isinstance(result, dict) for result in results)
    assert (client.in_use, client.idle) == (0, 0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
