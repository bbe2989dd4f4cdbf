"""A store that somebody else wrote can be a link of a chain, and is not trusted with more than it can do."""

import asyncio
from typing import Any

import pytest

from aiecs_resilient.backends.foreign import METHODS, ForeignBackend, adapt
from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.errors import (
    ConfigurationError,
    OperationScopeError,
    StorageConnectionError,
    StorageError,
    StorageTimeoutError,
    UnsupportedOperationError,
)
from aiecs_resilient.interface import IStorageBackend
from aiecs_resilient.layers.dual_write import DualWrite
from aiecs_resilient.layers.retry import Retry
from aiecs_resilient.operations import active, operation


class Theirs:
    """The specification's sixteen methods over dicts; inherits nothing of ours. ``fault`` is raised instead of working."""

    def __init__(self) -> None:
        self.sessions: dict[str, dict[str, Any]] = {}
        self.messages: dict[str, list[dict[str, Any]]] = {}
        self.checkpoints: dict[str, list[dict[str, Any]]] = {}
        self.contexts: dict[str, Any] = {}
        self.fault: BaseException | None = None
        self.asked = 0

    def _work(self) -> None:
        self.asked += 1
        if self.fault is not None:
            raise self.fault

    async def initialize(self):
        self._work()
        return True

    async def close(self):
        self.sessions.clear()

    async def health_check(self):
        self._work()
        return {"status": "healthy", "theirs": True}

    async def get_metrics(self):
        self._work()
        return {"total_sessions": len(self.sessions)}

    async def cleanup_expired_sessions(self, max_idle_hours=24):
        self._work()
        return max_idle_hours

    async def create_session(self, session_id, user_id, metadata=None):
        self._work()
        self.sessions[session_id] = {"session_id": session_id, "user_id": user_id, "metadata": metadata or {}}
        return self.sessions[session_id]

    async def get_session(self, session_id):
        self._work()
        return self.sessions.get(session_id)

    async def update_session(
        self, session_id, updates=None, increment_requests=False, add_processing_time=0.0, mark_error=False
    ):
        self._work()
        self.sessions[session_id] |= {
            **(updates or {}),
            "seen": (increment_requests, add_processing_time, mark_error),
        }
        return True

    async def end_session(self, session_id, status="completed"):
        self._work()
        self.sessions[session_id]["status"] = status
        return True

    async def add_conversation_message(self, session_id, role, content, metadata=None):
        self._work()
        self.messages.setdefault(session_id, []).append({"role": role, "content": content})
        return True

    async def get_conversation_history(self, session_id, limit=50):
        self._work()
        return self.messages.get(session_id, [])[-limit:]

    async def store_checkpoint(self, thread_id, checkpoint_id, checkpoint_data, metadata=None):
        self._work()
        self.checkpoints.setdefault(thread_id, []).insert(0, {"id": checkpoint_id, "data": checkpoint_data})
        return True

    async def get_checkpoint(self, thread_id, checkpoint_id=None):
        self._work()
        found = self.checkpoints.get(thread_id, [])
        return next((item for item in found if checkpoint_id in (None, item["id"])), None)

    async def list_checkpoints(self, thread_id, limit=10):
        self._work()
        return self.checkpoints.get(thread_id, [])[:limit]

    async def get_task_context(self, session_id):
        self._work()
        return self.contexts.get(session_id)

    async def store_task_context(self, session_id, context):
        self._work()
        self.contexts[session_id] = context
        return True


class WithWrites(Theirs):
    """And the two methods of pending writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[tuple[Any, ...]] = []

    async def put_writes(self, thread_id, checkpoint_id, task_id, writes_data):
        self._work()
        assert isinstance(writes_data, list)
        self.writes += writes_data
        return True

    async def get_writes(self, thread_id, checkpoint_id):
        self._work()
        return self.writes


@pytest.fixture
def theirs() -> Theirs:
    return Theirs()


@pytest.fixture
def store(theirs: Theirs) -> Any:
    return adapt(theirs)


def test_our_own_backends_stay_as_they_are() -> None:
    """Also a layer, and what was adapted before: wrapping twice would be for nothing."""
    memory = MemoryStorageBackend()
    assert adapt(memory) is memory
    assert adapt(Retry(memory)).inner is memory  # type: ignore[attr-defined]
    wrapped = adapt(Theirs())
    assert adapt(wrapped) is wrapped


def test_sixteen_methods_are_enough_and_all_are_needed() -> None:
    """What is missing is named, when the chain is built and not in the first call that needs it."""
    assert len(METHODS) == 16
    assert set(METHODS) == IStorageBackend.__abstractmethods__
    adapt(Theirs())

    class Half(Theirs):
        end_session = None
        get_metrics = None

    with pytest.raises(
        ConfigurationError, match="Half cannot be used as a store: it has no get_metrics, end_session"
    ):
        adapt(Half())  # type: ignore[arg-type]


def test_its_name_is_given_or_its_own() -> None:
    """In errors, health and routing."""
    named = Theirs()
    named.name = "archive"  # type: ignore[attr-defined]
    assert adapt(Theirs()).name == "Theirs"
    assert adapt(named).name == "archive"
    assert adapt(named, name="cold").name == "cold"
    assert repr(adapt(named)) == "<ForeignBackend 'archive', Theirs>"


async def test_every_method_reaches_it(store: ForeignBackend, theirs: Theirs) -> None:
    """Arguments in their order, answers as they are."""
    async with store:
        assert (await store.create_session("s", "u", {"a": 1}))["metadata"] == {"a": 1}
        assert await store.update_session("s", {"b": 2}, True, 0.5, True)
        assert await store.end_session("s", "failed")
        assert await store.get_session("s") == {
            "session_id": "s",
            "user_id": "u",
            "metadata": {"a": 1},
            "b": 2,
            "seen": (True, 0.5, True),
            "status": "failed",
        }
        assert await store.add_conversation_message("s", "user", "hello")
        assert await store.get_conversation_history("s", 1) == [{"role": "user", "content": "hello"}]
        assert await store.store_checkpoint("t", "c1", {"n": 1})
        assert await store.put_checkpoint("t", "c2", {"n": 2})
        assert await store.get_checkpoint("t", "c1") == {"id": "c1", "data": {"n": 1}}
        assert [item["id"] for item in await store.list_checkpoints("t", 1)] == ["c2"]
        assert await store.store_task_context("s", {"x": 1})
        assert await store.get_task_context("s") == {"x": 1}
        assert await store.cleanup_expired_sessions(3) == 3
    assert theirs.sessions == {}


async def test_reports_have_the_keys_of_the_contract(store: ForeignBackend, theirs: Theirs) -> None:
    """What it does not say is filled in as far as it is known; a store that is down is unhealthy, not an exception."""
    health = await store.health_check()
    assert health == {
        "status": "healthy",
        "theirs": True,
        "storage_backend": "Theirs",
        "redis_connected": False,
        "issues": [],
    }
    assert {"total_sessions", "storage_backend", "timestamp"} <= set(await store.get_metrics())
    theirs.fault = ConnectionRefusedError("refused")
    assert (await store.health_check())["status"] == "unhealthy"
    with pytest.raises(StorageConnectionError):
        await store.get_metrics()
    with pytest.raises(StorageConnectionError):
        await store.initialize()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (ConnectionResetError("reset"), StorageConnectionError),
        (ConnectionRefusedError("refused"), StorageConnectionError),
        (OSError(5, "broken disk"), StorageConnectionError),
        (TimeoutError(), StorageTimeoutError),
    ],
)
async def test_faults_become_our_errors(
    store: ForeignBackend, theirs: Theirs, fault: OSError, kind: type[StorageError]
) -> None:
    """Transient, with the original as cause; a write may have been applied, a read has written nothing."""
    theirs.fault = fault
    for call, outcome in (
        (store.get_session("s"), "not_applied"),
        (store.create_session("s", "u"), "unknown"),
    ):
        with pytest.raises(StorageError) as caught:
            await call
        error = caught.value
        assert type(error) is kind
        assert error.__cause__ is fault
        assert (error.transient, error.outcome, error.backend) == (True, outcome, "Theirs")
        assert type(fault).__name__ in str(error)
    assert active() is None


@pytest.mark.parametrize(
    "fault", [asyncio.CancelledError(), ValueError("theirs"), StorageTimeoutError("ours")]
)
async def test_everything_else_is_left_as_it_is(
    store: ForeignBackend, theirs: Theirs, fault: BaseException
) -> None:
    """A cancellation, a bug, or an error that is ours already."""
    theirs.fault = fault
    with pytest.raises(type(fault)) as caught:
        await store.end_session("s")
    assert caught.value is fault


async def test_what_the_specification_does_not_know_is_refused(store: ForeignBackend, theirs: Theirs) -> None:
    """Before anything is sent: silently ignoring `expected_version` would lose updates."""
    calls = [
        store.update_session("s", expected_version=0),
        store.store_checkpoint("t", "c", {}, expected_version=1),
        store.store_task_context("s", {}, expected_version=1),
        store.get_conversation_history("s", before=5),
        store.get_conversation_history("s", after=0),
        store.put_writes("t", "c", "task", []),
        store.get_writes("t", "c"),
        store.list_sessions(),
        store.delete_session("s"),
        store.operation_outcome("s", "op"),
        store.apply([]),
        store.store_state(),
    ]
    for call in calls:
        with pytest.raises(UnsupportedOperationError) as caught:
            await call
        assert caught.value.outcome == "not_applied"
        assert caught.value.operation
    assert theirs.asked == 0


async def test_pending_writes_work_if_it_has_them() -> None:
    """Both methods or neither."""
    theirs = WithWrites()
    store = adapt(theirs)
    assert await store.put_writes("t", "c", "task", (("a", 1), ("b", 2)))
    assert await store.get_writes("t", "c") == [("a", 1), ("b", 2)]


async def test_batches_are_loops_in_one_operation(store: ForeignBackend) -> None:
    """Answers in order; a scope that names a batch names one operation, and a second write in it is refused."""
    async with operation("batch") as op:
        assert (
            await store.batch_create_sessions([{"session_id": f"s{n}", "user_id": "u"} for n in range(3)])
            == [True] * 3
        )
        with pytest.raises(OperationScopeError):
            await store.end_session("s1")
    assert op.served_by == "Theirs"
    found = await store.batch_get_sessions(["s2", "none", "s0"])
    assert [item and item["session_id"] for item in found] == ["s2", None, "s0"]
    messages = [{"session_id": "s0", "role": "user", "content": str(n)} for n in range(3)]
    assert await store.batch_add_conversation_messages(messages) == [True] * 3
    assert [item["content"] for item in await store.get_conversation_history("s0")] == ["0", "1", "2"]


async def test_a_batch_that_fails_in_the_middle_has_an_unknown_outcome(theirs: Theirs) -> None:
    """Some of it took effect, whatever its last item says of itself."""

    class Second(Theirs):
        async def create_session(self, session_id, user_id, metadata=None):
            if self.sessions:
                raise StorageConnectionError("refused", outcome="not_applied")
            return await super().create_session(session_id, user_id, metadata)

    items = [{"session_id": f"s{n}", "user_id": "u"} for n in range(3)]
    with pytest.raises(StorageConnectionError) as caught:
        await adapt(Second()).batch_create_sessions(items)
    assert (caught.value.outcome, caught.value.operation) == ("unknown", "batch_create_sessions")


async def test_it_is_not_trusted_with_repeats(store: ForeignBackend, theirs: Theirs) -> None:
    """It knows no op_id: a write that may be applied is not retried over it, and it is no leg of dual_write."""
    assert store.honours_op_id is False
    theirs.fault = ConnectionResetError("reset")
    retry = Retry(store)
    assert retry.honours_op_id is False
    with pytest.raises(StorageConnectionError):
        await retry.end_session("s")
    assert theirs.asked == 1
    with pytest.raises(StorageConnectionError):
        await retry.get_session("s")
    assert theirs.asked == 4
    with pytest.raises(UnsupportedOperationError, match="cannot be a leg of dual_write"):
        DualWrite(MemoryStorageBackend(), store)
