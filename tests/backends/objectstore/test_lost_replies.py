"""A writer that got no answer: it finds out what became of its write, and no write happens twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from aiecs_resilient.backends.objectstore import ObjectStorageBackend
from aiecs_resilient.backends.objectstore._objects import Objects, Outdated, Throttled
from aiecs_resilient.errors import StorageConnectionError, StorageError, StorageTimeoutError
from aiecs_resilient.operations import operation
from aiecs_resilient.testing.contract import _mutations as make

Swap = Callable[[str, bytes, str | None], Awaitable[str]]


class Unreliable:
    """Stands between a backend and its objects; each swap is handled by the next of ``fates``, then as usual."""

    def __init__(self, objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
        self._swap: Swap = objects.swap
        self.fates: list[Callable[[str, bytes, str | None], Awaitable[str]]] = []
        self.calls = 0
        monkeypatch.setattr(objects, "swap", self.swap)

    async def swap(self, path: str, data: bytes, version: str | None) -> str:
        self.calls += 1
        return await (self.fates.pop(0) if self.fates else self._swap)(path, data, version)

    async def applied_but_silent(self, path: str, data: bytes, version: str | None) -> str:
        await self._swap(path, data, version)
        raise StorageTimeoutError("no answer", outcome="unknown")

    async def lost_on_the_way(self, path: str, data: bytes, version: str | None) -> str:
        raise StorageTimeoutError("no answer", outcome="unknown")

    async def late(self, path: str, data: bytes, version: str | None) -> str:
        """Not there when the writer looks, there when it tries again."""

        async def again(_path: str, _data: bytes, _version: str | None) -> str:
            await self._swap(path, data, version)
            return await self._swap(_path, _data, _version)

        self.fates.insert(0, again)
        raise StorageTimeoutError("no answer", outcome="unknown")

    async def refused(self, path: str, data: bytes, version: str | None) -> str:
        raise StorageConnectionError("slow down", outcome="not_applied", retry_after=1.0)


@pytest.fixture
async def storage(folder: Path) -> AsyncIterator[ObjectStorageBackend]:
    async with ObjectStorageBackend(f"file://{folder}/store") as backend:
        await backend.create_session("s", "u")
        yield backend


@pytest.fixture
def store(storage: ObjectStorageBackend, monkeypatch: pytest.MonkeyPatch) -> Unreliable:
    return Unreliable(storage._objects, monkeypatch)


async def _count(storage: ObjectStorageBackend) -> int:
    session = await storage.get_session("s")
    assert session is not None
    return int(session["request_count"])


async def test_a_lost_reply_is_settled_by_looking(storage: ObjectStorageBackend, store: Unreliable) -> None:
    """The head names our commit: it was applied, once, and is no duplicate."""
    store.fates = [store.applied_but_silent]
    [applied] = await make.apply(storage, make.update("s"))
    assert (applied.answer, applied.duplicate) == (True, False)
    assert await _count(storage) == 1
    assert storage._committer.counts.settled == 1
    assert store.calls == 1


async def test_a_lost_request_is_sent_again(storage: ObjectStorageBackend, store: Unreliable) -> None:
    """The head is as it was: the same bytes again, applied once."""
    store.fates = [store.lost_on_the_way]
    assert await storage.update_session("s", increment_requests=True) is True
    assert await _count(storage) == 1
    assert store.calls == 2


async def test_a_late_request_is_recognised_as_our_own(
    storage: ObjectStorageBackend, store: Unreliable
) -> None:
    """Our second try is refused because our first has arrived meanwhile: that refusal is our own doing."""
    store.fates = [store.late]
    assert await storage.update_session("s", increment_requests=True) is True
    assert await _count(storage) == 1
    assert storage._committer.counts.settled == 1


async def test_a_request_that_was_sent_twice_is_served_once(
    storage: ObjectStorageBackend, store: Unreliable
) -> None:
    """Something between us and the store repeats our request: the refusal of the second one is no conflict."""

    async def twice(path: str, data: bytes, version: str | None) -> str:
        await store._swap(path, data, version)
        return await store._swap(path, data, version)

    store.fates = [twice]
    [applied] = await make.apply(storage, make.checkpoint("s", "c", "x" * 20_000))
    assert (applied.answer, applied.duplicate) == (True, False)
    storage._loader.clear()
    checkpoint = await storage.get_checkpoint("s", "c")
    assert checkpoint is not None
    assert checkpoint["data"] == "x" * 20_000
    assert store.calls == 1


async def test_others_may_have_built_on_it(
    storage: ObjectStorageBackend, store: Unreliable, folder: Path
) -> None:
    """Between our lost reply and our look another process has written: ours still counts once, and so does theirs."""
    async with ObjectStorageBackend(f"file://{folder}/store") as other:

        async def overtaken(path: str, data: bytes, version: str | None) -> str:
            await store._swap(path, data, version)
            for _ in range(3):
                await other.update_session("s", increment_requests=True)
            raise StorageTimeoutError("no answer", outcome="unknown")

        store.fates = [overtaken]
        assert await storage.update_session("s", increment_requests=True) is True
        assert await _count(storage) == 4
        assert await storage.update_session("s", increment_requests=True) is True
        assert await _count(other) == 5


async def test_many_may_have_built_on_it(
    storage: ObjectStorageBackend, store: Unreliable, folder: Path
) -> None:
    """Even where the head does not remember our commit any more, it remembers our operation, and keeps what we wrote."""
    async with ObjectStorageBackend(f"file://{folder}/store") as other:

        async def overtaken(path: str, data: bytes, version: str | None) -> str:
            await store._swap(path, data, version)
            for _ in range(20):
                await other.update_session("s", increment_requests=True)
            raise StorageTimeoutError("no answer", outcome="unknown")

        store.fates = [overtaken]
        assert await storage.update_session("s", increment_requests=True) is True
        assert await _count(storage) == 21
        store.fates = [overtaken]
        assert await storage.store_checkpoint("s", "c", {"large": "x" * 20_000}) is True
        for reader in (storage, other):
            reader._loader.clear()
            checkpoint = await reader.get_checkpoint("s", "c")
            assert checkpoint is not None
            assert checkpoint["data"] == {"large": "x" * 20_000}


async def test_what_cannot_be_settled_is_unknown(storage: ObjectStorageBackend, store: Unreliable) -> None:
    """No answer again and again: unknown, never "not applied"; repeated under its identity it counts once."""
    store.fates = [store.lost_on_the_way] * 10
    with pytest.raises(StorageTimeoutError) as caught:
        async with operation("op"):
            await storage.update_session("s", increment_requests=True)
    assert caught.value.outcome == "unknown"
    store.fates = []
    for _ in range(2):
        async with operation("op"):
            assert await storage.update_session("s", increment_requests=True) is True
    assert await _count(storage) == 1


async def test_a_refusal_is_not_applied(storage: ObjectStorageBackend, store: Unreliable) -> None:
    """The service said no: certain, told with what it asked for, and no second request behind the caller's back."""
    store.fates = [store.refused]
    with pytest.raises(StorageConnectionError) as caught:
        await storage.update_session("s", increment_requests=True)
    assert (caught.value.outcome, caught.value.retry_after, caught.value.transient) == (
        "not_applied",
        1.0,
        True,
    )
    assert store.calls == 1
    assert await _count(storage) == 0
    assert await storage.update_session("s", increment_requests=True) is True


async def test_an_object_written_too_often_is_waited_for(
    storage: ObjectStorageBackend, store: Unreliable
) -> None:
    """Google takes about one write per second to one object: those who come meanwhile join the commit that waits."""
    calls = list[asyncio.Task[bool]]()

    async def throttled(_path: str, _data: bytes, _version: str | None) -> str:
        calls.extend(
            asyncio.ensure_future(storage.update_session("s", increment_requests=True)) for _ in range(5)
        )
        raise Throttled("too often", outcome="not_applied", retry_after=0.01)

    store.fates = [throttled, throttled]
    assert await storage.update_session("s", increment_requests=True) is True
    assert await asyncio.gather(*calls) == [True] * 10
    assert await _count(storage) == 11
    assert store.calls == 4, "two refused, one for the first, one for all that came meanwhile"


async def test_waiting_for_an_object_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives up before commit_timeout, certain that nothing was written."""
    async with ObjectStorageBackend(f"file://{folder}/store", commit_timeout=0.1) as storage:

        async def throttled(*_arguments: object) -> str:
            raise Throttled("too often", outcome="not_applied", retry_after=0.01)

        monkeypatch.setattr(storage._objects, "swap", throttled)
        with pytest.raises(StorageConnectionError, match="too often") as caught:
            await storage.add_conversation_message("s", "user", "x")
        assert caught.value.outcome == "not_applied"


async def test_content_that_cannot_be_written_changes_nothing(
    storage: ObjectStorageBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the head would have named did not arrive: not applied, and the head is not touched."""

    async def put(_items: object) -> None:
        raise StorageTimeoutError("no answer", outcome="unknown")

    monkeypatch.setattr(storage._objects, "put", put)
    with pytest.raises(StorageTimeoutError) as caught:
        await storage.store_checkpoint("s", "c", {"large": "x" * 20_000})
    assert caught.value.outcome == "not_applied"
    monkeypatch.undo()
    assert await storage.list_checkpoints("s") == []
    assert await storage.store_checkpoint("s", "c", {"large": "x" * 20_000}) is True


async def test_a_batch_over_many_keys_is_certain_only_together(
    storage: ObjectStorageBackend, store: Unreliable
) -> None:
    """One key refused, others applied: the batch's outcome is unknown; repeated under its identity all is there once."""
    items = [{"session_id": f"k{n}", "role": "user", "content": "x"} for n in range(4)]
    store.fates = [store.refused]
    with pytest.raises(StorageConnectionError) as caught:
        async with operation("batch"):
            await storage.batch_add_conversation_messages(items)
    assert caught.value.outcome == "unknown"
    async with operation("batch"):
        assert await storage.batch_add_conversation_messages(items) == [True] * 4
    for n in range(4):
        assert len(await storage.get_conversation_history(f"k{n}")) == 1
    store.fates = [store.refused] * 4
    with pytest.raises(StorageConnectionError) as caught:
        await storage.batch_add_conversation_messages(items)
    assert caught.value.outcome == "not_applied"


async def test_those_who_share_a_commit_get_errors_of_their_own(
    storage: ObjectStorageBackend, store: Unreliable
) -> None:
    """A failed commit of ten callers raises ten errors: each may be annotated on its own way up."""
    store.fates = [store.refused]
    results = await asyncio.gather(
        *(storage.update_session("s", increment_requests=True) for _ in range(10)), return_exceptions=True
    )
    errors = [result for result in results if isinstance(result, StorageError)]
    assert len(errors) == 10
    assert len({id(error) for error in errors}) == 10
    assert all(error.outcome == "not_applied" and error.retry_after == 1.0 for error in errors)


async def test_conflicts_are_bounded_in_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody is always quicker: after commit_timeout the write gives up, certain that it was not applied."""
    async with ObjectStorageBackend(f"file://{folder}/store", commit_timeout=0.2) as storage:

        async def outdated(*_arguments: object) -> str:
            raise Outdated

        monkeypatch.setattr(storage._objects, "swap", outdated)
        with pytest.raises(StorageTimeoutError, match="commit_timeout") as caught:
            await storage.add_conversation_message("s", "user", "x")
        assert caught.value.outcome == "not_applied"
        assert storage._committer.counts.conflicts > 2


async def test_a_refusal_rests_on_the_present(storage: ObjectStorageBackend, folder: Path) -> None:
    """expected_version is compared with what the store holds now, not with what this process saw last."""
    async with ObjectStorageBackend(f"file://{folder}/store") as other:
        await storage.store_task_context("s", 1)
        await other.store_task_context("s", 2)
        async with operation() as read:
            assert await other.get_task_context("s") == 2
        assert await storage.store_task_context("s", 3, expected_version=read.position) is True
        assert await other.get_task_context("s") == 3
        assert await storage.update_session("gone", {"a": 1}) is False
        await other.create_session("gone", "u")
        assert await storage.update_session("gone", {"a": 1}) is True
