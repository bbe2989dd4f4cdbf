"""s3:// and gs://: what services answer when things go wrong, and what a network does in between."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiecs_resilient.backends.objectstore import ObjectStorageBackend
from aiecs_resilient.backends.objectstore._objects import Outdated, Throttled
from aiecs_resilient.errors import (
    ConfigurationError,
    InvalidValueError,
    StorageConnectionError,
    StorageError,
    StorageTimeoutError,
    UnsupportedOperationError,
)
from aiecs_resilient.operations import operation
from aiecs_resilient.testing.proxy import Corrupted, Cut, FaultProxy, Refused, ReplyLost, Reset, Silence
from aiecs_resilient.testing.servers import GCSServer, S3Server

Make = Callable[[str], dict[str, Any]]
CLOUDS = ("s3", "gs")


@asynccontextmanager
async def canned(
    status: int, body: bytes = b"", *, headers: str = "", length: int | None = None
) -> AsyncIterator[str]:
    """A service that gives every request the same answer; its endpoint."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                await reader.readexactly(int(line.split(b":")[1]))
        size = len(body) if length is None else length
        facts = (
            f'ETag: "e"\r\nx-goog-generation: 5\r\nLast-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n{headers}'
        )
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Length: {size}\r\nConnection: close\r\n{facts}\r\n".encode()
            + body
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def _backend(scheme: str, endpoint: str, **options: Any) -> ObjectStorageBackend:
    if scheme == "s3":
        options |= {"region": "us-east-1", "access_key_id": "any", "secret_access_key": "any"}
    else:
        options |= {"anonymous": True}
    return ObjectStorageBackend(f"{scheme}://tests/canned", endpoint=endpoint, **options)


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize("scheme", CLOUDS)
@pytest.mark.parametrize(
    ("status", "body", "kind", "transient", "outcome", "words"),
    [
        (
            503,
            b"<Error><Code>SlowDown</Code></Error>",
            StorageConnectionError,
            True,
            "not_applied",
            "fewer requests",
        ),
        (429, b"", Throttled, True, "not_applied", "one object"),
        (
            500,
            b"<Error><Code>InternalError</Code></Error>",
            StorageConnectionError,
            True,
            "unknown",
            "failed",
        ),
        (502, b"", StorageConnectionError, True, "unknown", "failed"),
        (507, b"", StorageConnectionError, True, "not_applied", "space"),
        (
            403,
            b"<Error><Code>AccessDenied</Code></Error>",
            StorageConnectionError,
            False,
            "not_applied",
            "credentials",
        ),
        (401, b"", StorageConnectionError, False, "not_applied", "credentials"),
        (413, b"", InvalidValueError, False, "not_applied", "size"),
        (400, b"<Error><Code>Bad</Code></Error>", StorageError, False, "not_applied", "region and endpoint"),
        (
            404,
            b"<Error><Code>NoSuchBucket</Code></Error>",
            StorageConnectionError,
            False,
            "not_applied",
            "bucket",
        ),
        (301, b"", StorageError, False, "not_applied", "region or endpoint"),
    ],
)
async def test_what_a_service_answers_is_passed_on(
    scheme: str, status: int, body: bytes, kind: type[StorageError], transient: bool, outcome: str, words: str
) -> None:
    """Each status becomes the right error, with whether trying again helps and what a write may have done."""
    async with canned(status, body) as endpoint:
        backend = _backend(scheme, endpoint)
        with pytest.raises(kind) as caught:
            await backend.initialize()
        assert type(caught.value) is kind
        assert (caught.value.transient, caught.value.outcome) == (transient, outcome)
        assert words in caught.value.message
        assert f"{scheme}://tests/canned" in caught.value.message
        assert (caught.value.retry_after is not None) == (status in (429, 503))
        assert (await backend.health_check())["status"] == "unhealthy"


@pytest.mark.parametrize("status", [409, 412])
@pytest.mark.parametrize("scheme", CLOUDS)
async def test_a_conflict_is_no_error(
    scheme: str, status: int, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """409 and 412 on a head mean that somebody was quicker: look again, try again."""
    async with ObjectStorageBackend(**make(scheme)) as storage, canned(status) as endpoint:
        other = _backend(scheme, endpoint)
        other._objects._store = other._objects._make()  # type: ignore[attr-defined]
        with pytest.raises(Outdated):
            await other._objects.swap("heads/x", b"x", '"e" 5')
        real, refusals = storage._objects.swap, 2

        async def refuse_at_first(path: str, data: bytes, version: str | None) -> str:
            nonlocal refusals
            refusals -= 1
            return await (real if refusals < 0 else other._objects.swap)(path, data, version)

        monkeypatch.setattr(storage._objects, "swap", refuse_at_first)
        assert await storage.add_conversation_message("s", "user", "x") is True
        assert storage._committer.counts.conflicts == 2
        assert len(await storage.get_conversation_history("s")) == 1
        await other._objects.close()


@pytest.mark.parametrize("scheme", CLOUDS)
async def test_a_service_without_conditions_is_refused(scheme: str) -> None:
    """An endpoint that overwrites whatever the condition says would lose counts in silence: initialize says so."""
    async with canned(200) as endpoint:
        with pytest.raises(UnsupportedOperationError, match="ignores conditions"):
            await _backend(scheme, endpoint).initialize()


@pytest.mark.parametrize("scheme", CLOUDS)
async def test_a_missing_bucket_is_not_an_empty_store(scheme: str, make: Make) -> None:
    """A bucket that is not there, from the beginning or suddenly, is an error that names it, never "not found"."""
    address = make(scheme)
    missing = {**address, "url": f"{scheme}://not-there/x"}
    with pytest.raises(StorageConnectionError, match=r"bucket of .*not-there/x does not exist"):
        await ObjectStorageBackend(**missing).initialize()
    async with ObjectStorageBackend(**address) as storage:
        storage._objects._store = ObjectStorageBackend(**missing)._objects._make()  # type: ignore[attr-defined]
        for call in (storage.get_session, storage.get_conversation_history, storage.delete_session):
            with pytest.raises(StorageConnectionError, match="does not exist"):
                await call("s")
        with pytest.raises(StorageConnectionError, match="does not exist"):
            await storage.list_sessions()


async def test_without_obstore_the_command_is_named(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is imported on use, and what is missing is said with the command that installs it."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'aiecs-resilient\[objectstore\]'"):
        await ObjectStorageBackend("s3://tests/x").initialize()
    async with ObjectStorageBackend(**make("file")) as storage:
        assert await storage.add_conversation_message("s", "user", "files need no library") is True


# ---------------------------------------------------------------------- the network in between


@asynccontextmanager
async def proxied(
    scheme: str, make: Make, seed: int = 1, **options: Any
) -> AsyncIterator[tuple[ObjectStorageBackend, FaultProxy]]:
    address = make(scheme)
    host, port = str(address["endpoint"]).removeprefix("http://").split(":")
    async with FaultProxy(host, int(port), seed=seed) as proxy:
        address["endpoint"] = proxy.through(str(address["endpoint"]))
        async with ObjectStorageBackend(**address, **options) as storage:
            yield storage, proxy
            proxy.heal()


@pytest.mark.parametrize("scheme", CLOUDS)
async def test_lost_replies_count_once(scheme: str, make: Make) -> None:
    """Half of all replies are thrown away: retried under their identity, forty increments are forty."""
    async with proxied(scheme, make, seed=3) as (storage, proxy):
        await storage.create_session("s", "u")
        proxy.set(ReplyLost(probability=0.3))
        for n in range(40):
            for _attempt in range(50):
                try:
                    async with operation(f"op{n}"):
                        assert await storage.update_session("s", increment_requests=True) is True
                    break
                except StorageConnectionError:
                    continue
            else:
                raise AssertionError("fifty attempts")
        assert proxy.injected[ReplyLost] > 5
        proxy.heal()
        session = await storage.get_session("s")
        assert session is not None
        assert session["request_count"] == 40
        assert storage._committer.counts.settled > 0


@pytest.mark.parametrize("scheme", CLOUDS)
async def test_broken_connections_tell_the_truth(scheme: str, make: Make) -> None:
    """Resets, cut replies, flipped bits: every acknowledged message is there once, what was "not applied" is not."""
    async with proxied(scheme, make, seed=5, request_timeout=2.0) as (storage, proxy):
        said, denied = list[str](), list[str]()
        for n in range(60):
            proxy.set(
                *[(Reset(probability=0.2),), (Cut(at=150 + 7 * n),), (Corrupted(probability=0.2),)][n % 3]
            )
            try:
                await storage.add_conversation_message("s", "user", f"m{n}")
                said.append(f"m{n}")
            except StorageError as error:
                if error.outcome == "not_applied":
                    denied.append(f"m{n}")
        assert sum(proxy.injected.values()) > 10
        proxy.heal()
        storage._loader.clear()
        there = [message["content"] for message in await storage.get_conversation_history("s", 0)]
        assert sorted(set(there)) == sorted(there)
        assert set(said) <= set(there)
        assert not set(denied) & set(there)
        assert [text for text in there if text in said] == said


@pytest.mark.parametrize("scheme", CLOUDS)
async def test_a_cut_answer_is_no_answer(scheme: str, make: Make) -> None:
    """A body that ends too early is a broken connection, never half a history."""
    async with proxied(scheme, make) as (storage, proxy):
        await storage.store_checkpoint("t", "c", {"large": "x" * 50_000})
        storage._loader.clear()
        await storage.list_checkpoints("t", 0)
        for connection in proxy.connections:
            proxy.set(Cut(at=30_000), connection=connection)
        proxy.set(Cut(at=30_000))
        with pytest.raises(StorageConnectionError) as caught:
            await storage.get_checkpoint("t")
        assert caught.value.transient
        proxy.heal()
        checkpoint = await storage.get_checkpoint("t")
        assert checkpoint is not None
        assert checkpoint["data"] == {"large": "x" * 50_000}


@pytest.mark.parametrize("scheme", CLOUDS)
async def test_silence_ends_in_time(scheme: str, make: Make) -> None:
    """A service that does not answer: a timeout after request_timeout, and a write's outcome is unknown."""
    async with proxied(scheme, make, request_timeout=0.2) as (storage, proxy):
        await storage.create_session("s", "u")
        proxy.set(Silence())
        with pytest.raises(StorageTimeoutError, match="request_timeout"):
            await storage.get_session("s")
        async with asyncio.timeout(5):
            with pytest.raises(StorageTimeoutError) as caught:
                async with operation("op"):
                    await storage.update_session("s", increment_requests=True)
        assert caught.value.outcome == "unknown"
        proxy.heal()
        async with operation("op"):
            assert await storage.update_session("s", increment_requests=True) is True
        session = await storage.get_session("s")
        assert session is not None
        assert session["request_count"] == 1


@pytest.mark.parametrize("scheme", CLOUDS)
async def test_nobody_there_is_told_at_once(scheme: str, make: Make) -> None:
    """Connections refused: certain that nothing was applied, without any retry of the library below."""
    async with proxied(scheme, make) as (storage, proxy):
        await storage.create_session("s", "u")
        proxy.set(Refused())
        async with asyncio.timeout(2):
            for _connection in range(10):  # those that were open break off first
                with pytest.raises(StorageConnectionError):
                    await storage.get_session("s")
            with pytest.raises(StorageConnectionError, match="cannot be reached") as caught:
                await storage.add_conversation_message("s", "user", "x")
            assert (caught.value.outcome, caught.value.transient) == ("not_applied", True)
            assert (await storage.health_check())["status"] == "unhealthy"
        proxy.heal()
        assert await storage.get_conversation_history("s") == []
        assert (await storage.health_check())["status"] == "healthy"


@pytest.mark.parametrize("server", [S3Server, GCSServer])
async def test_a_killed_service_is_told(server: type[S3Server | GCSServer]) -> None:
    """A real process gone: an error, no "not found"; and an emulator that comes back empty is seen to be another store."""
    with server() as running:
        running.create_bucket("tests")
        scheme = "s3" if server is S3Server else "gs"
        async with _backend(scheme, running.url) as storage:
            await storage.create_session("s", "u")
            running.kill()
            with pytest.raises(StorageConnectionError):
                await storage.get_session("s")
            running.start()
            running.create_bucket("tests")
            assert (await storage.health_check())["status"] == "unhealthy"
            with pytest.raises(StorageConnectionError, match="own object is gone"):
                await storage.store_state()


# ---------------------------------------------------------------------- the limits of one request


@pytest.mark.parametrize("scheme", CLOUDS)
async def test_more_calls_than_places_wait(scheme: str, make: Make) -> None:
    """With one request at a time everything still happens, and cancelled calls leave no place taken."""
    async with ObjectStorageBackend(**make(scheme), max_concurrency=1) as storage:
        calls = [asyncio.ensure_future(storage.create_session(f"s{n}", "u")) for n in range(10)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        async with asyncio.timeout(20):
            sessions = await storage.batch_get_sessions([f"s{n}" for n in range(1, 10, 2)])
        assert all(session is not None for session in sessions)
