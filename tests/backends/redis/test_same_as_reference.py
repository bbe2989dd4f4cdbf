"""The scripts in the server and the reference in Python are one thing: whatever is done to both, nothing tells them apart."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from aiecs_resilient.backends._store import StoreBackend
from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.backends.redis import RedisStorageBackend
from aiecs_resilient.clock import use_wall_clock, wall_us
from aiecs_resilient.codec import encode, fingerprint
from aiecs_resilient.errors import StorageError
from aiecs_resilient.records import Applied, Kind, Mutation, RecordRef, Route, Scope
from aiecs_resilient.testing.servers import ValkeyServer

LONG = "𝔘" * 512
KEYS = ["k", "k\x00", "k\x00\x01", LONG]
CHECKPOINTS = ["c", "c\x00", "ü:{*}", LONG[1:]]
SPACES = ["", "", "", "n\x00s"]
SEEDS = range(20)
ROUNDS = 14


class Source:
    """Random writes to few keys and ids, so that they meet. Seeded, so that a failure comes again."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = wall_us()
        self.past: list[Mutation] = []

    def write(self) -> Mutation:
        """A new write, or an old one again under another stamp and rank, or with another payload."""
        chance, pick = self.random.random, self.random.choice
        if self.past and chance() < 0.2:
            old = replace(pick(self.past), stamp=self.stamp(), rank=pick([0, 1, 2]), mark=pick([False, True]))
            return replace(old, fingerprint=b"of something else") if chance() < 0.1 else old
        number = len(self.past)
        makers: list[tuple[int, str, Callable[[], dict[str, Any]]]] = [
            (3, Kind.CREATE, lambda: {"user_id": f"u{number % 2}", "metadata": self.value()}),
            (8, Kind.UPDATE, self.update),
            (1, Kind.END, lambda: {"status": pick(["completed", "", "é\x00"])}),
            (8, Kind.MESSAGE, lambda: {"role": "user", "content": f"\x00{number}", "metadata": self.value()}),
            (4, Kind.CONTEXT, lambda: {"value": self.value()}),
            (
                6,
                Kind.CHECKPOINT,
                lambda: self.place() | {"data": self.value(), "metadata": b"\x80", "parent": "p"},
            ),
            (
                5,
                Kind.WRITES,
                lambda: self.place() | {"task": pick(["t", "t\x00"]), "path": "p", "value": self.value()},
            ),
            (2, Kind.PRUNE, lambda: {"ns": pick(SPACES), "keep": pick([0, 1, 2])}),
            (2, Kind.DELETE, self.delete),
        ]
        [(_, kind, make)] = self.random.choices(makers, [weight for weight, _, _ in makers])
        body = make()
        [key] = self.random.choices(KEYS, [6, 3, 1, 2])
        item = Mutation(
            key=key,
            op_id=f"{pick(['a', 'b', 'b' + chr(0)])}{number}",
            kind=kind,
            body=body,
            fingerprint=fingerprint(kind, key, body),
            occurred_at=self.now + self.random.randint(-9, 9),
            stamp=self.stamp(),
            rank=pick([0, 0, 0, 1]),
            mark=pick([False, True]),
            expected_version=pick([0, self.now, 10**30]) if chance() < 0.08 else None,
            expires_at=self.now + self.random.randint(1, 300_000) if chance() < 0.3 else 0,
            format=pick([1] * 60 + [2]),
        )
        if chance() < 0.1:
            item.epoch, item.home = pick([1, 2, 3]), pick(["here", "there"])
        self.past.append(item)
        return item

    def stamp(self) -> int:
        return (
            self.now
            + self.random.choices([self.random.randint(-50, 50), 3_000_000, -7_200_000_000], [30, 1, 1])[0]
        )

    def value(self) -> bytes:
        return encode({"n": self.random.random(), "t": (1, b"\x00\xff")}, "value")

    def place(self) -> dict[str, Any]:
        [id] = self.random.choices(CHECKPOINTS, [6, 2, 1, 1])
        return {"ns": self.random.choice(SPACES), "id": id}

    def update(self) -> dict[str, Any]:
        names = self.random.sample(
            ["status", "user_id", "metadata", "own", "s:created", LONG], self.random.randrange(4)
        )
        fields = {
            name: encode(f"{self.random.randrange(3)}" if name != "metadata" else {}, name) for name in names
        }
        counts = {name: self.random.randrange(3) for name in ("requests", "time_us", "errors")}
        return {"fields": fields, **counts}

    def delete(self) -> dict[str, Any]:
        before = self.random.choice([0, 0, self.now - 10, self.now + 2_000_000])
        return {"scope": self.random.choice([Scope.SESSION, Scope.THREAD, Scope.ALL]), "before": before}

    def replay(self, item: Mutation, result: Applied) -> Mutation | None:
        """As the peer hears of it: at times under another stamp or rank, replaced meanwhile, or fenced."""
        told, chance, pick = result.replay_of(item), self.random.random, self.random.choice
        if told is None:
            return None
        if chance() < 0.3:
            told = replace(told, stamp=told.stamp + pick([-60, -1, 0, 1, 60]), rank=pick([0, 1, 2, 3]))
        if chance() < 0.1 and told.kind in (Kind.MESSAGE, Kind.CONTEXT, Kind.CHECKPOINT, Kind.WRITES):
            told = replace(told, body=pick([{}, {"dead": {pick(["session", "thread"]): self.now - 20}}]))
        if chance() < 0.1:
            told = replace(told, epoch=pick([1, 2, 3]), home="there")
        return told


@pytest.fixture
async def redis(server: ValkeyServer, prefix: str) -> AsyncIterator[RedisStorageBackend]:
    """On the test's clock, because expiry is compared to the microsecond."""
    async with RedisStorageBackend(server.url, prefix=prefix, context_versions=3) as backend:
        backend._server_clock = wall_us
        yield backend


@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_tells_them_apart(redis: RedisStorageBackend, seed: int) -> None:
    """Writes, replays in any order, repeats under other stamps and ranks, expiry, fences: equal results, equal reads."""
    source = Source(seed)
    async with MemoryStorageBackend(context_versions=3) as memory, MemoryStorageBackend() as elsewhere:
        for store in (redis, memory):
            assert await store.move_route(0, Route(2, "here")) == Route(2, "here")
            assert await store.move_route(0, Route(3, "x")) == Route(2, "here")
        waiting: list[Mutation] = []
        for _round in range(ROUNDS):
            source.now += source.random.choice([0, 60, 120_000])
            await both(
                redis, memory, [source.write() for _ in range(source.random.randint(1, 8))], source.now
            )
            for item in [source.write() for _ in range(source.random.randint(1, 8))]:
                with use_wall_clock(lambda: source.now):
                    [result] = await elsewhere.apply([item])
                if isinstance(result, Applied) and (told := source.replay(item, result)) is not None:
                    waiting.append(told)
            source.random.shuffle(waiting)
            arriving, waiting = waiting[:7], waiting[7:] + waiting[:2]
            applied = await both(redis, memory, arriving, source.now)
            refs = [
                RecordRef(item.key, item.op_id, result.stamp + source.random.choice([0, 0, 1]), result.rank)
                for item, result in zip(arriving, applied, strict=True)
                if isinstance(result, Applied)
            ]
            assert await redis.close_marks(refs) == await memory.close_marks(refs)
        for later in (0, 200_000, 10**9):
            mine, theirs = [await everything(store, source.now + later) for store in (redis, memory)]
            for question, answer in theirs.items():
                assert mine[question] == answer, question


async def both(
    mine: StoreBackend, reference: StoreBackend, items: list[Mutation], now: int
) -> list[Applied | StorageError]:
    """Apply to both; the results must be equal."""
    with use_wall_clock(lambda: now):
        results, wanted = await mine.apply(items), await reference.apply(items)
    for item, result, want in zip(items, results, wanted, strict=True):
        if isinstance(want, StorageError):
            assert isinstance(result, StorageError), (item, result, want)
            facts = [(type(error), error.message, error.transient, error.outcome) for error in (result, want)]
            assert facts[0] == facts[1], item
        else:
            assert result == want, item
    return results


async def everything(store: StoreBackend, now: int) -> dict[Any, Any]:
    """All that a store answers, raw, at that time."""
    found: dict[Any, Any] = {}
    with use_wall_clock(lambda: now):
        for key in KEYS:
            found[key] = await store._read_session(key)
            found[key, "contexts"] = await store._read_contexts(key, 100), await store._read_contexts(key, 1)
            for page in (
                (0, None, None),
                (2, None, None),
                (2, now, None),
                (2, None, now - 10**6),
                (1, now, now - 99),
            ):
                found[key, page] = await store._read_messages(key, *page)
            for ns in SPACES[2:]:
                found[key, ns] = (
                    await store._read_checkpoints(key, ns, 0),
                    await store._read_checkpoints(key, ns, 2),
                )
                for id in (None, *CHECKPOINTS):
                    found[key, ns, id] = await store._read_checkpoint(key, ns, id)
                for id in CHECKPOINTS:
                    found[key, ns, id, "writes"] = await store._read_writes(key, ns, id)
        found["sessions"] = await store._read_sessions([*KEYS, "nobody"])
        for status, user_id in (
            (None, None),
            ("active", None),
            ("completed", None),
            (None, "u1"),
            ("0", "1"),
        ):
            found["list", status, user_id] = await store._list_sessions(status, user_id, None, 10)
        found["pages"] = [await store._list_sessions(None, None, after, 1) for after in KEYS]
        found["threads"] = [
            await store._list_threads(after, limit) for after in (None, *KEYS) for limit in (1, 9)
        ]
        found["idle"] = [
            sorted(await store.read_idle(before, 99)) for before in (0, now - 10**6, now + 10**7)
        ]
        metrics = await store.get_metrics()
        found["totals"] = {name: metrics[name] for name in metrics if name.startswith(("total_", "active_"))}
        state = await store.store_state()
        found["state"] = state.route, state.open_marks, state.oldest_mark
        for since in (0, now):
            for open_only in (True, False):
                found["records", since, open_only] = await records(store, since, open_only)
    return found


async def records(store: StoreBackend, since: int, open_only: bool) -> list[Mutation]:
    """Page by page, in the order in which they come."""
    found: list[Mutation] = []
    after: str | None = None
    while True:
        page = await store.read_records(since=since, open_only=open_only, after=after, limit=5)
        found += page.records
        after = page.cursor
        if after is None:
            return found


async def test_expired_beside_a_living_thread(redis: RedisStorageBackend) -> None:
    """A session that expired is cleaned up although a replay moved the clock of its id after that."""
    source = Source(0)
    start = source.now
    steps: list[tuple[int, str, dict[str, Any], int]] = [
        (0, Kind.CREATE, {"user_id": "u", "metadata": b"\x80"}, start + 100),
        (500, Kind.CHECKPOINT, source.place() | {"data": b"\x80", "metadata": b"\x80", "parent": ""}, 0),
        (900, Kind.DELETE, {"scope": Scope.SESSION, "before": start + 101}, 0),
    ]
    async with MemoryStorageBackend() as memory:
        for after, kind, body, expires_at in steps:
            item = Mutation(
                key="k",
                op_id=kind,
                kind=kind,
                body=body,
                fingerprint=b"0" * 16,
                occurred_at=start,
                stamp=start + after,
                expires_at=expires_at,
                replay=kind == Kind.CHECKPOINT,
            )
            [result] = await both(redis, memory, [item], start + after)
        assert isinstance(result, Applied)
        assert result.answer is True
        mine, theirs = [await everything(store, start + 999) for store in (redis, memory)]
        assert mine == theirs
