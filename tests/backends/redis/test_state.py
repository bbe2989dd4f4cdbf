"""What the store says of itself is true: durability, health, totals, routing."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest

from aiecs_resilient.backends.redis import RedisStorageBackend
from aiecs_resilient.backends.redis._keys import BUCKETS, Keys, bucket_of, id_of, name_of, ordered, unordered
from aiecs_resilient.backends.redis._state import durability, issues
from aiecs_resilient.clock import wall_us
from aiecs_resilient.codec import encode_key
from aiecs_resilient.errors import StaleRouteError
from aiecs_resilient.records import Applied, Durability, Kind, Mutation, Route
from aiecs_resilient.testing.contract.ids import HOSTILE_IDS
from aiecs_resilient.testing.servers import ValkeyServer

AOF = {"aof_enabled": "1", "maxmemory": "0", "maxmemory_policy": "noeviction"}


@pytest.mark.parametrize(
    ("info", "level"),
    [
        (None, Durability.VOLATILE),
        ({}, Durability.VOLATILE),
        ({"aof_enabled": "0", "rdb_last_bgsave_status": "ok"}, Durability.VOLATILE),
        (AOF, Durability.PROCESS),
        (AOF | {"appendfsync": "no"}, Durability.PROCESS),
        (AOF | {"appendfsync": "everysec"}, Durability.PROCESS),
        (AOF | {"appendfsync": "always"}, Durability.HOST),
        (AOF | {"appendfsync": "always", "maxmemory_policy": "allkeys-lru"}, Durability.HOST),
        (
            AOF | {"appendfsync": "always", "maxmemory": "9", "maxmemory_policy": "allkeys-lru"},
            Durability.VOLATILE,
        ),
    ],
)
def test_durability(info: dict[str, str] | None, level: Durability) -> None:
    """Snapshots are not durability, eviction takes it away, and what cannot be read counts as volatile."""
    assert durability(info) is level


@pytest.mark.parametrize(
    ("info", "word"),
    [
        ({"role": "slave"}, "slave"),
        ({"loading": "1"}, "loading"),
        ({"aof_enabled": "1", "aof_last_write_status": "err"}, "append-only"),
        ({"rdb_last_bgsave_status": "err"}, "background save"),
        ({"maxmemory": "100", "maxmemory_policy": "volatile-lru"}, "noeviction"),
        ({"maxmemory": "100", "used_memory": "95", "maxmemory_policy": "noeviction"}, "maxmemory"),
    ],
)
def test_issues_are_named(info: dict[str, str], word: str) -> None:
    """Each trouble has its sentence."""
    [issue] = issues(info)
    assert word in issue
    assert issues({"role": "master", "loading": "0", **AOF}) == []


async def test_what_servers_are_asked(own_server: ValkeyServer) -> None:
    """A real server's settings are seen as they are at that moment, and its restarts show."""
    async with RedisStorageBackend(own_server.url) as backend:
        client = backend._use()
        first = await backend.store_state()
        assert first.durability is Durability.PROCESS
        assert abs(first.now_us - wall_us()) < 1_000_000
        await client.one("CONFIG", "SET", "appendfsync", "always")
        assert (await backend.store_state()).durability is Durability.HOST
        await client.one("CONFIG", "SET", "maxmemory", "1gb")
        await client.one("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        assert (await backend.store_state()).durability is Durability.VOLATILE
        health = await backend.health_check()
        assert (health["status"], health["durability"]) == ("degraded", "volatile")
        assert "noeviction" in health["issues"][0]
        await own_server.akill()
        await own_server.arestart()
        assert (await backend.store_state()).incarnation != first.incarnation


async def test_what_may_not_be_asked_is_declared(own_server: ValkeyServer) -> None:
    """Where CONFIG and INFO are forbidden it counts as volatile, unless the configuration declares it."""
    async with RedisStorageBackend(own_server.url) as admin:
        await admin._use().one("ACL", "SETUSER", "app", "on", ">x", "~*", "+@all", "-config", "-info")
        url = own_server.url.replace("redis://", "redis://app:x@")
        declared: list[tuple[Literal["host"] | None, Durability]] = [
            (None, Durability.VOLATILE),
            ("host", Durability.HOST),
        ]
        for given, level in declared:
            async with RedisStorageBackend(url, durability=given) as backend:
                assert (await backend.store_state()).durability is level
                assert (await backend.health_check())["status"] == ("healthy" if given else "degraded")


async def test_health_tries_to_write(own_server: ValkeyServer) -> None:
    """A server that answers PING but takes no writes is unhealthy; a closed backend is too, and says so."""
    backend = RedisStorageBackend(own_server.url)
    assert (await backend.health_check())["issues"] == ["redis is not open"]
    async with backend:
        assert (await backend.health_check()) == {
            "status": "healthy",
            "storage_backend": "redis",
            "redis_connected": True,
            "issues": [],
            "durability": "process",
        }
        await backend._use().one("CONFIG", "SET", "maxmemory", 1)
        health = await backend.health_check()
        assert (health["status"], health["redis_connected"]) == ("unhealthy", True)
        assert "out of memory" in health["issues"][0]


async def test_totals_are_the_stores(server: ValkeyServer, prefix: str) -> None:
    """Counted in the store, over processes and restarts of ours; what has expired does not count."""
    async with RedisStorageBackend(server.url, prefix=prefix, session_ttl=3_600.0) as backend:
        for n in range(20):
            await backend.create_session(f"s{n}", "u")
            await backend.add_conversation_message(f"s{n}", "user", "x")
            await backend.store_checkpoint(f"s{n}", "c", {})
        await backend.end_session("s1")
        await backend.delete_session("s2")
        await backend.delete_thread("s3")
    async with RedisStorageBackend(server.url, prefix=prefix) as backend:
        wanted = {"total_sessions": 19, "active_sessions": 18, "total_messages": 19, "total_checkpoints": 19}
        assert wanted.items() <= (await backend.get_metrics()).items()
        backend._server_clock = lambda: wall_us() + 3_700_000_000
        assert (await backend.get_metrics())["total_sessions"] == 0


def _probe(key: str, epoch: int, home: str) -> Mutation:
    body = {"role": "user", "content": "x", "metadata": b"\x80"}
    return Mutation(
        key=key,
        op_id=f"{key}/{epoch}/{home}",
        kind=Kind.MESSAGE,
        body=body,
        fingerprint=b"0123456789abcdef",
        occurred_at=wall_us(),
        stamp=wall_us(),
        epoch=epoch,
        home=home,
    )


@pytest.fixture
def everywhere() -> list[str]:
    """An id for each of the 256 buckets."""
    found: dict[int, str] = {}
    n = 0
    while len(found) < BUCKETS:
        n += 1
        found.setdefault(bucket_of(f"s{n}".encode()), f"s{n}")
    return list(found.values())


async def test_a_move_fences_every_bucket(backend: RedisStorageBackend, everywhere: list[str]) -> None:
    """After move_route has returned, no id accepts a write of the epoch before."""
    assert await backend.move_route(0, Route(1, "P")) == Route(1, "P")
    first = await backend.apply([_probe(key, 1, "P") for key in everywhere])
    assert {type(result) for result in first} == {Applied}
    assert await backend.move_route(1, Route(2, "F\n{x} y")) == Route(2, "F\n{x} y")
    late = await backend.apply([_probe(key, 1, "P") for key in everywhere])
    assert {type(result) for result in late} == {StaleRouteError}
    assert (await backend.store_state()).route == Route(2, "F\n{x} y")
    told = await backend.apply([_probe(key, 2, "F\n{x} y") for key in everywhere])
    assert {type(result) for result in told} == {Applied}


@pytest.mark.parametrize("copies", [0, 1, 100, 255])
async def test_a_move_that_died_half_way(
    backend: RedisStorageBackend, everywhere: list[str], copies: int
) -> None:
    """Whoever reports a higher epoch has first made every bucket follow it."""
    await backend.move_route(0, Route(1, "P"))
    keys = backend._keys
    moved = [keys.master_route, *keys.routes[:copies]]
    await backend._use().run([("SET", key, "2 F") for key in moved])
    assert (await backend.store_state()).route == Route(2, "F")
    late = await backend.apply([_probe(key, 1, "P") for key in everywhere])
    assert {type(result) for result in late} == {StaleRouteError}
    assert await backend.move_route(1, Route(3, "P")) == Route(2, "F")
    assert await backend.move_route(2, Route(3, "P")) == Route(3, "P")


async def test_writers_beside_a_move(backend: RedisStorageBackend, everywhere: list[str]) -> None:
    """Writes that race with the move are accepted before it or refused after it: none is accepted once it has returned."""
    await backend.move_route(0, Route(1, "P"))
    moved = asyncio.Event()
    late: list[Any] = []

    async def write(n: int) -> None:
        for round in range(12):
            after = moved.is_set()
            item = _probe(everywhere[(n * 12 + round) % BUCKETS], 1, "P")
            item.op_id = f"{n}/{round}"
            [result] = await backend.apply([item])
            if after:
                late.append(result)

    async def move() -> None:
        await backend.move_route(1, Route(2, "F"))
        moved.set()

    await asyncio.gather(*(write(n) for n in range(20)), move())
    assert late
    assert {type(result) for result in late} == {StaleRouteError}


@pytest.mark.parametrize("id", [*HOSTILE_IDS, "\x00", "\x00\x01", "a\x00\x00"], ids=ascii)
def test_names_can_be_read_back(id: str) -> None:
    """What is packed into an index entry comes out as it was."""
    assert id_of(name_of(id, id.encode())) == id
    assert unordered(ordered(id) + b"rest") == (id, b"rest")


def test_entries_sort_like_what_they_name() -> None:
    """Order in the indexes is that of the texts, byte by byte, prefixes first."""
    texts = [*HOSTILE_IDS, "", "a", "a\x00", "a\x00\x00", "a\x01", "ab"]
    assert sorted(texts, key=lambda text: ordered(text) + b"\x01") == sorted(texts, key=str.encode)
    names = sorted(texts[: len(HOSTILE_IDS)], key=lambda id: encode_key(id).encode())
    assert sorted(names, key=lambda id: name_of(id, id.encode())) == names


def test_no_two_ids_share_a_key() -> None:
    """The id is last and never parsed: keys of different ids and kinds never meet, and all of one id share a tag."""
    keys = Keys("aiecs:")
    ids = [*HOSTILE_IDS, "marks", "k:x", "x", ":x", "n:x", "{b1}", "route"]
    seen: set[bytes] = {
        *keys.routes,
        *keys.marks,
        *keys.logs,
        *keys.names,
        *keys.totals,
        *keys.idle,
        *keys.due,
    }
    seen |= {keys.master_route, keys.format, keys.probe, keys.pruning, keys.no_marks}
    for id in ids:
        of_id = keys.of(id)
        own = of_id.all[1:10]
        assert len({key.split(b"{")[1].split(b"}")[0] for key in of_id.all}) == 1
        assert not seen & set(own)
        seen |= set(own)
