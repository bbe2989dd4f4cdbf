"""At most once, and never half: the same identity from two sides, counters of many processes, the fence under load."""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from aiecs_resilient.backends.postgresql import PostgreSQLStorageBackend
from aiecs_resilient.clock import wall_us
from aiecs_resilient.codec import encode, fingerprint
from aiecs_resilient.errors import InvalidValueError, StaleRouteError
from aiecs_resilient.operations import operation
from aiecs_resilient.records import Applied, Kind, Mutation, Route
from aiecs_resilient.testing.servers import PostgreSQLServer

LONG = "𝔘" * 512
HOSTILE = [
    LONG,
    LONG[:-1] + "𝔙",
    "'; DROP TABLE aiecs.keys; --",
    '"aiecs".keys',
    "$1",
    "%s",
    "a\x00b",
    "a\x1b0b",
    "\x1bh",
    "../..",
    "{s}:x*",
    "line\nbreak",
    "a",
    "A",
]


def _count(url: str, schema: str, times: int) -> None:
    """In a process of its own: open a backend and count."""

    async def work() -> None:
        async with PostgreSQLStorageBackend(url, schema=schema, pool_size=5) as backend:
            await asyncio.gather(
                *(backend.update_session("s", None, True, 0.001, True) for _ in range(times))
            )

    asyncio.run(work())


def _initialize(url: str, schema: str) -> bool:
    async def work() -> bool:
        async with PostgreSQLStorageBackend(url, schema=schema) as backend:
            return await backend.add_conversation_message("s", "user", "hello")

    return asyncio.run(work())


async def _in_processes(*calls: tuple[object, ...]) -> list[object]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(calls), mp_context=context) as executor:
        loop = asyncio.get_running_loop()
        return list(
            await asyncio.gather(*(loop.run_in_executor(executor, call[0], *call[1:]) for call in calls))  # type: ignore[arg-type]
        )


async def test_four_processes_count_exactly(
    server: PostgreSQLServer, backend: PostgreSQLStorageBackend, schema: str
) -> None:
    """100 concurrent increments from 4 processes are 100."""
    await backend.create_session("s", "u")
    await _in_processes(*[(_count, server.url, schema, 25)] * 4)
    session = await backend.get_session("s")
    assert session is not None
    assert (session["request_count"], session["error_count"]) == (100, 100)
    assert session["total_processing_time"] == pytest.approx(0.1, abs=1e-9)


async def test_four_processes_start_at_once(server: PostgreSQLServer, schema: str) -> None:
    """Each initialises the same new schema: one migrates, the others wait, all work."""
    assert await _in_processes(*[(_initialize, server.url, schema)] * 4) == [True] * 4
    async with PostgreSQLStorageBackend(server.url, schema=schema) as backend:
        assert len(await backend.get_conversation_history("s")) == 4


@pytest.mark.parametrize("name", ["message", "count", "create", "checkpoint"])
async def test_the_same_identity_from_two_connections(backend: PostgreSQLStorageBackend, name: str) -> None:
    """The same op_id at the same moment on many connections has one effect, and all get the same answer."""
    await backend.create_session("s", "u")

    async def once(op_id: str) -> tuple[object, int | None]:
        async with operation(op_id) as op:
            match name:
                case "message":
                    answer: object = await backend.add_conversation_message("s", "user", "hello")
                case "count":
                    answer = await backend.update_session("s", None, True)
                case "create":
                    answer = await backend.create_session("new", "u")
                case _:
                    answer = await backend.store_checkpoint("t", "c", {"x": 1})
        return (answer if name != "create" else True), op.position

    for n in range(10):
        results = await asyncio.gather(*(once(f"op-{n}") for _ in range(8)))
        assert len(set(results)) == 1, results
    session = await backend.get_session("s")
    assert session is not None
    assert session["request_count"] == (10 if name == "count" else 0)
    assert len(await backend.get_conversation_history("s")) == (10 if name == "message" else 0)


async def test_batches_that_cross_do_not_deadlock(backend: PostgreSQLStorageBackend) -> None:
    """Batches over the same sessions in opposite orders all succeed: locks are taken in one order."""
    ids = [f"s{n}" for n in range(20)]

    def batch(order: list[str]) -> list[dict[str, object]]:
        return [{"session_id": id, "role": "user", "content": "x"} for id in order]

    calls = [backend.batch_add_conversation_messages(batch(ids[:: 1 if n % 2 else -1])) for n in range(30)]
    assert all(all(answers) for answers in await asyncio.gather(*calls))
    for id in ids:
        assert len(await backend.get_conversation_history(id, 0)) == 30


def _fenced(n: int, epoch: int, home: str, kind: str = Kind.MESSAGE) -> Mutation:
    metadata = encode({}, "metadata")
    body = {"role": "user", "content": f"e{epoch}", "metadata": metadata}
    if kind == Kind.CONTEXT:
        body = {"value": encode(f"e{epoch}", "value")}
    key = f"k{n % 7}"
    now = wall_us()
    return Mutation(
        key=key,
        op_id=f"{kind}-{epoch}-{n}",
        kind=kind,
        body=body,
        fingerprint=fingerprint(kind, key, body),
        occurred_at=now,
        stamp=now,
        epoch=epoch,
        home=home,
    )


@pytest.mark.parametrize("kind", [Kind.MESSAGE, Kind.CONTEXT])
async def test_no_write_passes_a_moved_route(backend: PostgreSQLStorageBackend, kind: str) -> None:
    """Once move_route has answered, no write of the former leader takes effect, however many are under way."""
    route = await backend.move_route(0, Route(1, "a"))
    for epoch in range(1, 8):
        assert route == Route(epoch, "a")
        applied_at: list[bool] = []
        moved = asyncio.Event()

        async def write(
            n: int, epoch: int = epoch, applied_at: list[bool] = applied_at, moved: asyncio.Event = moved
        ) -> None:
            after = moved.is_set()
            [result] = await backend.apply([_fenced(n, epoch, "a", kind)])
            if isinstance(result, Applied):
                applied_at.append(after)
            else:
                assert isinstance(result, StaleRouteError)

        tasks = [asyncio.ensure_future(write(n)) for n in range(60)]
        await asyncio.sleep(0.01)
        route = await backend.move_route(epoch, Route(epoch + 1, "a"))
        moved.set()
        [row] = await backend._opened().fetch(
            f'SELECT count(*) FROM "{backend._schema}".records WHERE op_id LIKE $1',
            f"{kind}-{epoch}-%".encode(),
        )
        late = [asyncio.ensure_future(write(n)) for n in range(60, 70)]
        await asyncio.gather(*tasks, *late)
        assert len(applied_at) == row[0]
        assert not any(applied_at)


async def test_only_one_takeover_wins(backend: PostgreSQLStorageBackend) -> None:
    """Many want to lead the next epoch: one compare-and-set succeeds, all learn whose."""
    routes = await asyncio.gather(*(backend.move_route(0, Route(1, f"p{n}")) for n in range(12)))
    assert len(set(routes)) == 1


async def test_hostile_ids_stay_apart(backend: PostgreSQLStorageBackend) -> None:
    """Long, escaped, quoted: every id keeps its own data under every kind of operation, and comes back as it was."""
    for id in HOSTILE:
        await backend.create_session(id, id, {"id": id})
        await backend.add_conversation_message(id, id, id)
        await backend.store_checkpoint(id, id, {"id": id})
        await backend.put_writes(id, id, id, [(id,)])
        async with operation(id[:512]):
            await backend.store_task_context(id, {"id": id})
    for id in HOSTILE:
        session = await backend.get_session(id)
        assert session is not None
        assert (session["session_id"], session["user_id"], session["metadata"]) == (id, id, {"id": id})
        [message] = await backend.get_conversation_history(id)
        assert (message["role"], message["content"]) == (id, id)
        assert [item["checkpoint_id"] for item in await backend.list_checkpoints(id)] == [id]
        assert await backend.get_writes(id, id) == [(id,)]
        assert await backend.get_task_context(id) == {"id": id}
        assert [item["session_id"] for item in await backend.list_sessions(user_id=id)] == [id]
    listed = [item["session_id"] for item in await backend.list_sessions()]
    assert sorted(listed) == sorted(HOSTILE)
    assert sorted(await backend.list_threads()) == sorted(HOSTILE)


async def test_what_the_server_cannot_hold_is_refused(backend: PostgreSQLStorageBackend) -> None:
    """A number beyond 64 bits in a record is our error, before anything is written, and the connection stays good."""
    item = _fenced(1, 0, "")
    item.occurred_at = 2**70
    with pytest.raises(InvalidValueError) as caught:
        await backend.apply([item])
    assert caught.value.outcome == "not_applied"
    assert await backend.get_conversation_history("k1") == []
