"""The layer `namespace`: tenants in one store never meet, whatever they are called and whatever they ask for."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.clock import use_wall_clock, wall_us
from aiecs_resilient.errors import ConflictError, InvalidValueError
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers._tenancy import prefix_of, tenant_of
from aiecs_resilient.layers.namespace import Namespace, tenant
from aiecs_resilient.operations import operation
from aiecs_resilient.records import Kind, Mutation, RecordRef

from .cancellation import cancel_everywhere
from .scripted import Delay, store

TENANTS = ["a", "a:b", "a:", "1:a", "1:a:b", "ü", "b", "x" * 64]


async def fill(storage: Backend, key: str, what: str) -> None:
    """Something of everything, that says whose it is."""
    await storage.create_session(key, what, {"of": what})
    await storage.add_conversation_message(key, "user", what)
    await storage.store_checkpoint(key, "c", {"of": what})
    await storage.put_writes(key, "c", "task", [("of", what)])
    await storage.store_task_context(key, {"of": what})


async def everything(storage: Backend, key: str) -> list[Any]:
    """All that is told about one id, without times."""
    session = await storage.get_session(key)
    checkpoint = await storage.get_checkpoint(key)
    return [
        session and (session["session_id"], session["metadata"]),
        [message["content"] for message in await storage.get_conversation_history(key)],
        checkpoint and (checkpoint["thread_id"], checkpoint["data"]),
        [item["thread_id"] for item in await storage.list_checkpoints(key)],
        await storage.get_writes(key, "c"),
        await storage.get_task_context(key),
        [item["context"] for item in await storage.list_task_contexts(key)],
        [found and found["session_id"] for found in await storage.batch_get_sessions([key])],
    ]


async def test_tenants_never_meet() -> None:
    """The same ids under tenants whose names are made to be confused: each reads its own, under its own names."""
    memory = await store()
    views = {name: Namespace(memory, tenant=name) for name in TENANTS}
    ids = ["s", "a:s", "b:s", ":", "1:a:s", "3:a:b:s"]
    for name, view in views.items():
        for id in ids:
            await fill(view, id, f"{name}/{id}")
    for name, view in views.items():
        for id in ids:
            own = f"{name}/{id}"
            assert await everything(view, id) == [
                (id, {"of": own}),
                [own],
                (id, {"of": own}),
                [id],
                [("of", own)],
                {"of": own},
                [{"of": own}],
                [id],
            ]
        assert sorted(await view.list_threads(limit=1_000)) == sorted(ids)
        assert sorted(item["session_id"] for item in await view.list_sessions(limit=1_000)) == sorted(ids)


@pytest.mark.parametrize("other", ["another", "theirs"])
async def test_what_one_deletes_the_others_keep(other: str) -> None:
    """Whoever's keys come first in the store's lists: ending, deleting, pruning and cleaning up touch the tenant's own only."""
    memory = await store()
    mine, theirs = Namespace(memory, tenant="mine"), Namespace(memory, tenant=other)
    now = wall_us()
    with use_wall_clock(lambda: now):
        for view in sorted((mine, theirs), key=repr):
            for n in range(450):
                await view.create_session(f"{n}", "u")
            await fill(view, "s", "x")
    before = await everything(theirs, "s")
    with use_wall_clock(lambda: now + 900_000):
        assert await mine.cleanup_expired_sessions(0) == 451
        assert await mine.cleanup_expired_sessions(0) == 0
        assert await mine.get_session("s") is None
        await mine.delete_session("s")
        await mine.delete_thread("s")
        assert await mine.prune_checkpoints("s", 0) == 0
    assert await everything(theirs, "s") == before
    assert len(await theirs.list_sessions(limit=1_000)) == 451
    with pytest.raises(InvalidValueError):
        await mine.cleanup_expired_sessions(-1)


async def test_pages_give_each_of_the_tenants_own_once() -> None:
    """Among a thousand of others, long and short ids, in pages of any size."""
    memory = await store()
    ids = [f"{n:03}" for n in range(60)] + ["x" * 300, "x" * 440, "é" * 150, "\x1b", "\x00", "😀"]
    for name in ("aa", "b", "bb", "c"):
        await Namespace(memory, tenant=name).batch_create_sessions(
            [{"session_id": id, "user_id": "u"} for id in ids]
        )
        for id in ids:
            await Namespace(memory, tenant=name).store_checkpoint(id, "c", {})
    view = Namespace(memory, tenant="b")
    for page in (1, 7, 1_000):
        seen: list[str] = []
        while found := await view.list_sessions(after=seen[-1] if seen else None, limit=page):
            seen += [session["session_id"] for session in found]
        assert sorted(seen) == sorted(ids)
        threads: list[str] = []
        while names := await view.list_threads(after=threads[-1] if threads else None, limit=page):
            threads += names
        assert threads == seen
    assert await view.list_sessions(user_id="nobody") == []


async def test_others_are_jumped_over() -> None:
    """Listing one tenant does not walk through all the tenants before it."""
    scripted = await store()
    await Namespace(scripted, tenant="a").batch_create_sessions(
        [{"session_id": f"{n}", "user_id": "u"} for n in range(1_000)]
    )
    await Namespace(scripted, tenant="z").create_session("s", "u")
    scripted.calls.clear()
    assert len(await Namespace(scripted, tenant="z").list_sessions()) == 1
    assert len(scripted.calls) <= 2


async def test_the_block_says_whose_call_it_is() -> None:
    """One chain serves many tenants; tasks started in a block are that tenant's."""
    view = Namespace(await store())
    with tenant("a"):
        await view.create_session("s", "of a")
        reading = asyncio.create_task(view.get_session("s"))
    with tenant("b"):
        assert await view.get_session("s") is None
        with tenant("a"):
            assert (await view.get_session("s"))["user_id"] == "of a"  # type: ignore[index]
    assert await reading is not None


async def test_a_call_of_nobody_is_refused() -> None:
    """It must not end up in a common drawer."""
    scripted = await store()
    view = Namespace(scripted)
    for call in (view.get_session("s"), view.list_threads(), view.cleanup_expired_sessions()):
        with pytest.raises(InvalidValueError, match="nobody said whose call this is"):
            await call
    assert scripted.calls == []


@pytest.mark.parametrize("name", ["", "x" * 65, "é" * 33, "a\x00", "a\nb", "\x1b"])
def test_impossible_tenants_are_refused(name: str) -> None:
    """Names that could blur where a key begins."""
    with pytest.raises(InvalidValueError, match="tenant's name"):
        Namespace(MemoryStorageBackend(), tenant=name)
    with pytest.raises(InvalidValueError, match="tenant's name"), tenant(name):
        pass


async def test_a_long_id_is_refused_before_anything_is_written() -> None:
    """Tenant and id share the 512 characters of a key, and the message says how many are left."""
    view = Namespace(await store(), tenant="acme")
    await view.create_session("x" * 505, "u")
    with pytest.raises(
        InvalidValueError, match="session_id must have 1 to 505 characters for this tenant, not 506"
    ):
        await view.create_session("x" * 506, "u")


@pytest.mark.parametrize("name", TENANTS)
def test_a_key_tells_its_tenant(name: str) -> None:
    """What limits by tenant rely on."""
    for id in ("s", ":", "1:a:s", "x" * 100):
        assert tenant_of(prefix_of(name) + id) == name


@pytest.mark.parametrize("key", ["s", "", ":", "a:b", "9:a:b", "-1:a:b", "²:ab:c", "100:x", "0::a", "1:ab"])
def test_a_key_without_a_tenant_tells_none(key: str) -> None:
    """Ids that merely look like it."""
    assert tenant_of(key) == ""


async def test_identities_are_the_tenants_own() -> None:
    """The same op_id of two tenants is two writes; of one tenant it is one, and its outcome can be asked."""
    memory = await store()
    mine, theirs = Namespace(memory, tenant="mine"), Namespace(memory, tenant="theirs")
    for view in (mine, theirs, mine):
        async with operation("same"):
            await view.add_conversation_message("s", "user", "hello")
    assert (
        len(await mine.get_conversation_history("s")) == len(await theirs.get_conversation_history("s")) == 1
    )
    assert await mine.operation_outcome("s", "same") == "applied"
    assert await mine.operation_outcome("t", "same") == "not_applied"
    with pytest.raises(ConflictError):
        async with operation("same"):
            await mine.add_conversation_message("s", "user", "other")


async def test_records_are_the_tenants_own() -> None:
    """Whoever copies records through a namespace copies one tenant's, under its own names."""
    memory = await store()
    mine, theirs = Namespace(memory, tenant="mine"), Namespace(memory, tenant="theirs")
    await fill(theirs, "s", "x")
    message = Mutation(
        key="s",
        op_id="op",
        kind=Kind.MESSAGE,
        body={"role": "user", "content": "hello", "metadata": b"\x80"},
        fingerprint=bytes(16),
        occurred_at=wall_us(),
        stamp=wall_us(),
        mark=True,
        epoch=0,
    )
    [applied] = await mine.apply([message])
    assert not isinstance(applied, Exception)
    assert [item["content"] for item in await mine.get_conversation_history("s")] == ["hello"]
    [record] = (await mine.read_records(open_only=False)).records
    assert (record.key, record.op_id) == ("s", "op")
    assert {item.key for item in (await theirs.read_records(open_only=False)).records} == {"s"}
    assert await theirs.close_marks([RecordRef("s", "op", applied.stamp, applied.rank)]) == 0
    assert await mine.close_marks([RecordRef("s", "op", applied.stamp, applied.rank)]) == 1


async def test_it_is_seen_in_reports() -> None:
    """Health, metrics and repr name the tenant."""
    view = Namespace(await store(), tenant="acme")
    assert (await view.health_check())["layers"]["namespace"] == {"tenant": "acme"}
    assert (await view.get_metrics())["layers"]["namespace"] == {"tenant": "acme"}
    assert repr(view).startswith("<Namespace tenant 'acme' over ")
    assert repr(Namespace(view.inner)).startswith("<Namespace tenant of the call over ")


@pytest.mark.parametrize("name", ["list_sessions", "cleanup_expired_sessions", "get_session"])
async def test_a_cancellation_passes(name: str) -> None:
    """At whichever wait, also between pages and steps."""

    async def scenario() -> tuple[Awaitable[object], Callable[[], Awaitable[None]]]:
        view = Namespace(await store(then=Delay(0)), tenant="a")
        calls: dict[str, Awaitable[object]] = {
            "list_sessions": view.list_sessions(),
            "cleanup_expired_sessions": view.cleanup_expired_sessions(),
            "get_session": view.get_session("s"),
        }
        for other, call in calls.items():
            if other != name:
                call.close()  # type: ignore[attr-defined]

        async def check() -> None:
            assert await view.get_session("s") is None

        return calls[name], check

    assert await cancel_everywhere(scenario) >= 1
