"""What is refused before anything is sent, with cause and fix; and what never appears in a text."""

from __future__ import annotations

import subprocess
import sys

import pytest
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from aiecs_resilient.backends.redis import RedisStorageBackend
from aiecs_resilient.backends.redis._client import check_driver, driver_options
from aiecs_resilient.errors import (
    BackendClosedError,
    ConfigurationError,
    InvalidValueError,
    StorageConnectionError,
    StorageError,
)
from aiecs_resilient.testing.servers import ValkeyServer


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("http://127.0.0.1", "redis://"),
        ("127.0.0.1:6379", "redis://"),
        ("redis://u:se#cret@127.0.0.1:1/0", "percent-encoded"),
        ("redis://127.0.0.1/0?retry_on_timeout=true", "retry_on_timeout"),
        ("redis://127.0.0.1/0?socket_timeout=3", "socket_timeout"),
        ("redis://127.0.0.1/0?decode_responses=True", "decode_responses"),
        ("redis://127.0.0.1/0?max_connections=3", "max_connections"),
        ("redis://127.0.0.1/0?nonsense=3", "nonsense"),
    ],
)
async def test_a_bad_url_is_refused_by_name(url: str, named: str) -> None:
    """The error says what is wrong with the URL and never quotes its password."""
    with pytest.raises(ConfigurationError) as caught:
        await RedisStorageBackend(url).initialize()
    assert named in str(caught.value)
    assert "cret" not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_good_urls_pass_through() -> None:
    """Sockets, TLS and users reach the driver, whose own retries and timers are off."""
    kind, options = driver_options("rediss://me:pa%23ss@host:7000/3?ssl_cert_reqs=none&client_name=app", 1.0)
    assert kind.__name__ == "SSLConnection"
    wanted = {
        "host": "host",
        "port": 7000,
        "db": 3,
        "username": "me",
        "password": "pa#ss",
        "client_name": "app",
    }
    assert wanted.items() <= options.items()
    assert (options["ssl_cert_reqs"], options["socket_timeout"]) == ("none", None)
    kind, options = driver_options("unix://me:pass@/run/it.sock?db=2", 1.0)
    assert kind.__name__ == "UnixDomainSocketConnection"
    assert (options["path"], options["db"]) == ("/run/it.sock", 2)
    check_driver(kind(**options))


def test_a_driver_that_retries_is_refused() -> None:
    """The driver repeats commands 10 times unless told otherwise; that would apply them twice."""
    with pytest.raises(ConfigurationError, match="retry 10 times"):
        check_driver(Connection(retry=Retry(NoBackoff(), 10)))


@pytest.mark.parametrize(
    "options",
    [
        {"prefix": "a{b}:"},
        {"max_connections": 0},
        {"response_timeout": 0.0},
        {"connect_timeout": -1.0},
        {"pool_timeout": 0.0},
        {"retention": 0.0},
        {"context_versions": 0},
    ],
    ids=str,
)
def test_bad_options_are_refused_by_name(options: dict[str, object]) -> None:
    """Every option has a valid range."""
    with pytest.raises((ConfigurationError, InvalidValueError), match=next(iter(options))):
        RedisStorageBackend("redis://127.0.0.1", **options)  # type: ignore[arg-type]


async def test_nothing_shows_the_password(own_server: ValkeyServer) -> None:
    """Neither errors, nor repr, nor health show it, whether it was wrong or the server is gone."""
    url = own_server.url.replace("redis://", "redis://default:s3cret@")
    right = RedisStorageBackend(own_server.url)
    await right.initialize()
    await right._use().one("CONFIG", "SET", "requirepass", "other")
    texts = [repr(right)]
    wrong = RedisStorageBackend(url)
    with pytest.raises(StorageConnectionError) as caught:
        await wrong.initialize()
    assert (caught.value.transient, caught.value.outcome) == (False, "not_applied")
    assert "WRONGPASS" in str(caught.value) or "password" in str(caught.value)
    await own_server.akill()
    with pytest.raises(StorageError) as gone:
        await wrong.initialize()
    texts += [
        str(caught.value),
        repr(caught.value),
        str(gone.value),
        repr(wrong),
        str(await wrong.health_check()),
    ]
    assert [text for text in texts if "s3cret" in text] == []
    await right.close()


async def test_a_replica_a_cluster_and_newer_data_are_refused(own_server: ValkeyServer) -> None:
    """initialize() is True only where the promises hold; else it says why."""
    async with RedisStorageBackend(own_server.url) as first:
        client, keys = first._use(), first._keys
        await client.one("SET", keys.format, 99)
        with pytest.raises(ConfigurationError, match="format 99"):
            await RedisStorageBackend(own_server.url).initialize()
        await client.one("SET", keys.format, 1)
        await client.one("REPLICAOF", "127.0.0.1", own_server.port)
        with pytest.raises(StorageConnectionError, match="takes no writes"):
            await RedisStorageBackend(own_server.url).initialize()
    own_server.remove()
    with (
        ValkeyServer(options={"cluster-enabled": "yes"}) as cluster,
        pytest.raises(ConfigurationError, match="Cluster"),
    ):
        await RedisStorageBackend(cluster.url).initialize()


async def test_life_of_a_backend(server: ValkeyServer, prefix: str) -> None:
    """initialize and close may be repeated; before and after, use is refused by name; it can be opened again."""
    backend = RedisStorageBackend(server.url, prefix=prefix)
    with pytest.raises(BackendClosedError):
        await backend.get_session("s")
    await backend.close()
    assert await backend.initialize() is True
    assert await backend.initialize() is True
    await backend.create_session("s", "u")
    await backend.close()
    await backend.close()
    with pytest.raises(BackendClosedError):
        await backend.create_session("s", "u")
    assert await backend.initialize() is True
    assert await backend.get_session("s") is not None
    await backend.close()


def test_the_driver_is_imported_on_use() -> None:
    """Importing the backend does not import the driver."""
    code = "import aiecs_resilient.backends.redis, sys; sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
