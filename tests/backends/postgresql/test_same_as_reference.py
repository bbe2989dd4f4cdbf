"""The functions in the server and the reference in Python are one thing: whatever is done to both, nothing tells them apart."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from aiecs_resilient.backends._store import StoreBackend
from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.backends.postgresql import PostgreSQLStorageBackend
from aiecs_resilient.clock import use_wall_clock, wall_us
from aiecs_resilient.codec import encode, fingerprint
from aiecs_resilient.errors import StorageError
from aiecs_resilient.records import Applied, Kind, Mutation, RecordRef, Route, Scope

LONG = "𝔘" * 512
IDS = ["c1", "c2", "c\x001", LONG, LONG[:-1] + "x"]
TASKS = ["t", "t\x00", LONG]
SEEDS = range(40)


class _Chooser:
    """Random writes to a few keys, so that they meet; seeded, so that a failure comes again."""

    def __init__(self, seed: int, keys: Sequence[str], now: int) -> None:
        self.random = random.Random(seed)
        self.keys = keys
        self.now = now
        self.past: list[Mutation] = []
        self.number = 0

    def body(self, kind: str) -> dict[str, Any]:
        chance, pick = self.random.random, self.random.choice
        value = encode({"n": self.number, "deep": [1, (2, b"\x00")]}, "value")
        match kind:
            case Kind.CREATE:
                return {"user_id": f"u{self.number % 3}\x00", "metadata": value}
            case Kind.UPDATE:
                names = self.random.sample(
                    ["status", "user_id", "metadata", "x\x00", LONG], k=pick([0, 0, 1, 3])
                )
                fields = {
                    name: encode(f"{name[:3]}{self.number % 4}", name)
                    if name in {"status", "user_id"}
                    else value
                    for name in names
                }
                return {
                    "fields": fields,
                    "requests": pick([0, 1]),
                    "time_us": self.number,
                    "errors": pick([0, 1]),
                }
            case Kind.END:
                return {"status": pick(["completed", "fai\x00led"])}
            case Kind.MESSAGE:
                return {"role": "user", "content": f"m\x00{self.number}\x1b", "metadata": value}
            case Kind.CONTEXT:
                return {"value": value}
            case Kind.CHECKPOINT:
                parent = pick(["", "c1"])
                return {
                    "ns": pick(["", "", LONG]),
                    "id": pick(IDS),
                    "data": value,
                    "metadata": value,
                    "parent": parent,
                }
            case Kind.WRITES:
                place = {"ns": pick(["", "", LONG]), "id": pick(IDS), "task": pick(TASKS)}
                return {**place, "path": "p\x00", "value": value}
            case Kind.PRUNE:
                return {"ns": pick(["", "", LONG]), "keep": pick([0, 1, 2])}
            case _:
                before = 0 if chance() < 0.7 else self.now + self.random.randint(-2_000_000, 2_000_000)
                return {"scope": pick([Scope.SESSION, Scope.THREAD, Scope.ALL]), "before": before}

    def direct(self) -> Mutation:
        """A new write, or now and then an old one again, with other stamps and ranks, or with another payload."""
        chance, pick = self.random.random, self.random.choice
        self.number += 1
        if self.past and chance() < 0.25:
            old = pick(self.past)
            item = replace(old, stamp=self.stamp(), rank=pick([0, 1, 2]), mark=chance() < 0.5)
            return replace(item, fingerprint=b"other payload 16") if chance() < 0.2 else item
        weights = {
            "create": 3,
            "update": 6,
            "end": 1,
            "message": 6,
            "context": 3,
            "checkpoint": 5,
            "writes": 4,
        }
        kinds = {**weights, "prune": 2, "delete": 1, "unheard": 0.1}
        [kind] = self.random.choices([*kinds], [*kinds.values()])
        key = pick(self.keys)
        body = self.body(kind)
        versioned = kind in {Kind.UPDATE, Kind.CONTEXT, Kind.CHECKPOINT} and chance() < 0.15
        item = Mutation(
            key=key,
            op_id=f"op{self.number}{pick(['', chr(0), chr(27), LONG[:400]])}",
            kind=kind,
            body=body,
            fingerprint=fingerprint(kind, key, body),
            occurred_at=self.now + self.random.randint(-5, 5),
            stamp=self.stamp(),
            rank=pick([0, 0, 1]),
            mark=chance() < 0.3,
            expected_version=pick([0, self.now]) if versioned else None,
            expires_at=self.now + self.random.randint(1, 400_000) if chance() < 0.1 else 0,
            format=2 if chance() < 0.01 else 1,
        )
        if chance() < 0.05:
            item.epoch, item.home = pick([1, 2, 3]), pick(["here", "there"])
        self.past.append(item)
        return item

    def stamp(self) -> int:
        chance = self.random.random()
        if chance < 0.02:
            return self.now - 7_200_000_000
        return self.now + self.random.randint(-30, 30) if chance < 0.9 else self.now + 5_000_000

    def replayed(self, item: Mutation, result: Applied) -> Mutation | None:
        """As the peer hears of it: sometimes under another stamp and rank, or replaced by a later write."""
        replay = result.replay_of(item)
        if replay is None:
            return None
        chance, pick = self.random.random, self.random.choice
        if chance() < 0.3:
            replay = replace(replay, stamp=replay.stamp + pick([-40, -3, 0, 3, 40]), rank=pick([0, 1, 2, 3]))
        if chance() < 0.1:
            dead = {"dead": {pick(["session", "thread"]): self.now - 10}} if chance() < 0.5 else {}
            replay = replace(replay, body=dead)
        if chance() < 0.1:
            replay = replace(replay, epoch=pick([1, 2, 3]), home="there", mark=True)
        return replay


async def _both(
    one: StoreBackend, two: StoreBackend, items: list[Mutation], now: int
) -> list[Applied | StorageError]:
    with use_wall_clock(lambda: now):
        if len(items) % 2:  # one by one takes another way through the server than a batch
            mine = [result for item in items for result in await one.apply([item])]
        else:
            mine = await one.apply(items)
        theirs = await two.apply(items)
    for item, left, right in zip(items, mine, theirs, strict=True):
        if isinstance(left, StorageError):
            assert type(left) is type(right), (item, left, right)
            assert (left.transient, left.outcome) == (right.transient, right.outcome)
        else:
            assert left == right, item
    return mine


async def _everything(storage: StoreBackend, keys: Sequence[str], now: int) -> dict[Any, Any]:
    """All that a store answers, raw, at a given time."""
    found: dict[Any, Any] = {}
    with use_wall_clock(lambda: now):
        for key in keys:
            for ns in ("", LONG):
                found[key, ns, "checkpoints"] = await storage._read_checkpoints(key, ns, 0)
                found[key, ns, "latest"] = await storage._read_checkpoint(key, ns, None)
                for id in IDS:
                    found[key, ns, id, "checkpoint"] = await storage._read_checkpoint(key, ns, id)
                    found[key, ns, id, "writes"] = await storage._read_writes(key, ns, id)
            found[key, "session"] = await storage._read_session(key)
            found[key, "contexts"] = await storage._read_contexts(key, 100)
            for page in [
                (0, None, None),
                (3, None, None),
                (3, now + 5, None),
                (3, None, now - 5),
                (2, now + 9, now - 9),
            ]:
                found[key, page] = await storage._read_messages(key, *page)
        found["batch"] = await storage._read_sessions([*keys, "nobody"])
        for status in (None, "active", "completed", "fai\x00led", "sta1"):
            for user_id in (None, "u1\x00", "use2"):
                found["list", status, user_id] = await storage._list_sessions(status, user_id, None, 100)
        found["page"] = await storage._list_sessions(None, None, keys[1], 2)
        found["threads"] = await storage._list_threads(None, 100), await storage._list_threads(keys[0], 1)
        for before in (now - 20, now + 10, now + 10**7):
            found["idle", before] = sorted(await storage.read_idle(before, 100))
        metrics = await storage.get_metrics()
        found["totals"] = [value for name, value in metrics.items() if name.startswith(("total_", "active_"))]
        state = await storage.store_state()
        found["state"] = (state.route, state.open_marks, state.oldest_mark)
        for open_only in (True, False):
            for since in (0, now):
                found["records", open_only, since] = await _records(storage, since, open_only)
    return found


async def _records(storage: StoreBackend, since: int, open_only: bool) -> list[Any]:
    found: list[Mutation] = []
    after = None
    while True:
        page = await storage.read_records(since=since, open_only=open_only, after=after, limit=7)
        found += page.records
        if page.cursor is None:
            break
        after = page.cursor
    places = [(record.key, record.stamp, record.op_id) for record in found]
    assert len(places) == len(set(places))
    return sorted(repr(record) for record in map(_normal, found))


def _normal(record: Mutation) -> Mutation:
    return replace(record, body=dict(sorted((name, _sorted(value)) for name, value in record.body.items())))


def _sorted(value: Any) -> Any:
    return dict(sorted(value.items())) if isinstance(value, dict) else value


@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_tells_them_apart(backend: PostgreSQLStorageBackend, seed: int) -> None:
    """Direct writes, replays in any order, repeats under other stamps and ranks, expiry, fences: equal results and reads."""
    now = wall_us()
    chooser = _Chooser(seed, [f"k{seed}\x00", f"k{seed}", LONG], now)
    async with (
        MemoryStorageBackend(context_versions=10) as memory,
        MemoryStorageBackend() as elsewhere,
    ):
        await elsewhere.move_route(0, Route(2, "there"))
        for store in (backend, memory):
            assert await store.move_route(0, Route(2, "here")) == Route(2, "here")
            assert await store.move_route(1, Route(9, "x")) == Route(2, "here")
        waiting: list[Mutation] = []
        for _round in range(12):
            now += chooser.random.choice([0, 100, 150_000])
            chooser.now = now
            batch = [chooser.direct() for _ in range(chooser.random.randint(1, 6))]
            await _both(backend, memory, batch, now)
            others = [chooser.direct() for _ in range(chooser.random.randint(1, 6))]
            with use_wall_clock(lambda now=now: now):  # type: ignore[misc]
                theirs = await elsewhere.apply(others)
            for item, result in zip(others, theirs, strict=True):
                if isinstance(result, Applied) and (replay := chooser.replayed(item, result)) is not None:
                    waiting.append(replay)
            chooser.random.shuffle(waiting)
            arriving = waiting[:6]
            waiting = waiting[6:] + arriving[:1]
            results = await _both(backend, memory, arriving, now)
            refs = [
                RecordRef(item.key, item.op_id, result.stamp + chooser.random.choice([0, 0, 1]), result.rank)
                for item, result in zip(arriving, results, strict=True)
                if isinstance(result, Applied)
            ]
            assert await backend.close_marks(refs) == await memory.close_marks(refs)
        for later in (0, 10**6):
            mine = await _everything(backend, chooser.keys, now + later)
            theirs_all = await _everything(memory, chooser.keys, now + later)
            for question, answer in theirs_all.items():
                assert mine[question] == answer, question
