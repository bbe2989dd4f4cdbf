"""Every error of driver and server becomes one of ours, and says truly whether something may have been written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from _fake import fake_server

from aiecs_resilient.backends.redis import RedisStorageBackend
from aiecs_resilient.backends.redis._client import Command, RedisClient, driver_options
from aiecs_resilient.backends.redis._scripts import load_scripts
from aiecs_resilient.errors import (
    DataCorruptionError,
    StorageConnectionError,
    StorageError,
    StorageTimeoutError,
)
from aiecs_resilient.testing.servers import ValkeyServer


def client_for(url: str, **options: float) -> RedisClient:
    limits = {"connect_timeout": 0.5, "response_timeout": 0.5, "pool_timeout": 0.5, **options}
    return RedisClient(
        driver_options(url, limits["connect_timeout"]),
        name="it",
        scripts=load_scripts(),
        max_connections=4,
        **limits,
    )


async def failure(client: RedisClient, *commands: Command) -> StorageError:
    with pytest.raises(StorageError) as caught:
        await client.run(commands or [("GET", "x")])
    await client.close()
    return caught.value


REFUSALS = [
    ("READONLY You can't write against a read only replica.", True),
    ("LOADING Redis is loading the dataset in memory", True),
    ("OOM command not allowed when used memory > 'maxmemory'.", True),
    ("MISCONF Redis is configured to save RDB snapshots, but cannot", True),
    ("CLUSTERDOWN The cluster is down", True),
    ("MASTERDOWN Link with MASTER is down", True),
    ("BUSY Redis is busy running a script.", True),
    ("TRYAGAIN Multiple keys request during rehashing of slot", True),
    ("NOREPLICAS Not enough good replicas to write.", True),
    ("ERR Error running script (call to f_1): @user_script:1: -OOM command not allowed", True),
    ("MOVED 3999 127.0.0.1:6381", False),
    ("ASK 3999 127.0.0.1:6381", False),
    ("NOAUTH Authentication required.", False),
    ("WRONGPASS invalid username-password pair", False),
    ("NOPERM this user has no permissions to run the 'evalsha' command", False),
    ("CROSSSLOT Keys in request don't hash to the same slot", False),
]


@pytest.mark.parametrize(("text", "transient"), REFUSALS, ids=lambda value: str(value).partition(" ")[0])
async def test_a_refusal_wrote_nothing(text: str, transient: bool) -> None:
    """What the server refuses before a script has written is not_applied; whether trying again helps depends."""
    async with fake_server(lambda _: f"-{text}\r\n".encode()) as url:
        error = await failure(client_for(url))
    assert type(error) is StorageConnectionError
    assert (error.transient, error.outcome, error.backend) == (transient, "not_applied", "it")


@pytest.mark.parametrize(
    "text", ["LOADING Redis is loading", "OOM command not allowed", "NOAUTH Authentication required."]
)
async def test_a_refusal_after_another_write_is_unknown(text: str) -> None:
    """Where one command of several was carried out, not_applied would be a lie."""
    replies = iter([b"+OK\r\n", f"-{text}\r\n".encode(), b"+OK\r\n"])
    async with fake_server(lambda _: next(replies)) as url:
        error = await failure(client_for(url), ("SET", "a", 1), ("SET", "b", 1), ("SET", "c", 1))
    assert error.outcome == "unknown"


async def test_an_unknown_error_is_unknown() -> None:
    """A script that broke in the middle may have written; a key of another kind is somebody else's data."""
    async with fake_server(lambda _: b"-ERR user_script:12: something broke\r\n") as url:
        error = await failure(client_for(url))
    assert (type(error), error.transient, error.outcome) == (StorageError, False, "unknown")
    async with fake_server(lambda _: b"-WRONGTYPE Operation against a key holding\r\n") as url:
        assert type(await failure(client_for(url))) is DataCorruptionError


async def test_a_lost_connection_is_unknown() -> None:
    """Hung up after the command was sent: it may have been applied. So may what was answered with nonsense."""
    async with fake_server(lambda _: None) as url:
        error = await failure(client_for(url))
    assert (type(error), error.transient, error.outcome) == (StorageConnectionError, True, "unknown")
    async with fake_server(lambda _: b"HTTP/1.1 400 Bad Request\r\n") as url:
        error = await failure(client_for(url))
    assert (type(error), error.outcome) == (StorageConnectionError, "unknown")


async def test_silence_is_a_timeout() -> None:
    """No answer within response_timeout: unknown. The connection is cut and the next call gets a new one."""
    waits: Sequence[bytes] = [b"", b":1\r\n"]
    replies = iter(waits)
    async with fake_server(lambda _: next(replies)) as url:
        client = client_for(url, response_timeout=0.05)
        with pytest.raises(StorageTimeoutError) as caught:
            await client.one("INCR", "x")
        assert (caught.value.outcome, caught.value.transient) == ("unknown", True)
        assert client.idle == 0
        assert await client.one("INCR", "x") == 1
        await client.close()


async def test_nobody_there_is_known_at_once() -> None:
    """A refused connection carried nothing, and is told within 20 ms."""
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    client = client_for(f"redis://127.0.0.1:{port}")
    times: list[float] = []
    loop = asyncio.get_running_loop()
    for _ in range(5):
        started = loop.time()
        with pytest.raises(StorageConnectionError) as caught:
            await client.one("GET", "x")
        times.append(loop.time() - started)
        assert (caught.value.transient, caught.value.outcome) == (True, "not_applied")
    assert min(times) < 0.02
    await client.close()


async def test_a_host_that_does_not_answer_is_a_timeout(own_server: ValkeyServer) -> None:
    """A stopped server accepts connections but says nothing: bounded, and where nothing was sent, not_applied."""
    url = own_server.url.replace("redis://", "redis://default:x@")  # the handshake waits for an answer
    own_server.pause()
    client = client_for(url, connect_timeout=0.05)
    with pytest.raises(StorageTimeoutError) as caught:
        await client.one("GET", "x")
    assert caught.value.outcome == "not_applied"
    await client.close()
    own_server.resume()


async def test_a_real_server_that_refuses(own_server: ValkeyServer) -> None:
    """Full memory, a demoted master, withdrawn rights and a busy server, each in turn; then all is well again."""
    async with (
        RedisStorageBackend(own_server.url, response_timeout=2.0) as backend,
        _admin(own_server) as admin,
    ):
        await backend.create_session("s", "u")

        async def refused(word: str) -> None:
            with pytest.raises(StorageConnectionError, match=word) as caught:
                await backend.update_session("s", increment_requests=True)
            assert caught.value.outcome == "not_applied"

        await admin.one("CONFIG", "SET", "maxmemory", 1)
        await refused("out of memory")
        await admin.one("CONFIG", "SET", "maxmemory", 0)
        await admin.one("REPLICAOF", "127.0.0.1", 1)
        await refused("replica")
        assert (await backend.health_check())["status"] == "unhealthy"
        await admin.one("REPLICAOF", "NO", "ONE")
        await admin.one("ACL", "SETUSER", "default", "-evalsha")
        await refused("permit")
        await admin.one("ACL", "SETUSER", "default", "+evalsha")
        await admin.one("CONFIG", "SET", "busy-reply-threshold", 10)
        endless = asyncio.create_task(backend._use().raw([("EVAL", "while true do end", 0)]))
        while not isinstance(await _answer(backend), StorageError):
            pass
        await refused("busy")
        await admin.one("SCRIPT", "KILL")
        await endless
        assert await backend.update_session("s", increment_requests=True) is True
        session = await backend.get_session("s")
        assert session is not None
        assert session["request_count"] == 1
        assert (await backend.health_check())["status"] == "healthy"


async def _answer(backend: RedisStorageBackend) -> object:
    try:
        return await backend.get_session("s")
    except StorageError as error:
        return error


def _admin(server: ValkeyServer) -> _Admin:
    return _Admin(server)


class _Admin:
    """A user that keeps all rights."""

    def __init__(self, server: ValkeyServer) -> None:
        self._url = server.url

    async def __aenter__(self) -> RedisClient:
        first = client_for(self._url)
        await first.one("ACL", "SETUSER", "admin", "on", ">x", "~*", "&*", "+@all")
        await first.close()
        self._client = client_for(self._url.replace("redis://", "redis://admin:x@"))
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
