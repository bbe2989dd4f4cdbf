"""Listing, deleting and cleaning up (C15, and what we add to the interfaces)."""

from __future__ import annotations

import asyncio

import pytest

from ...clock import use_wall_clock, wall_us
from ...codec import encode_key
from ...errors import InvalidValueError
from ...interface import Backend, Json
from ._base import ContractBase, contents, fresh, say, snapshot


class ListingContract(ContractBase):
    """Walking over sessions and threads."""

    async def test_pages_cover_all_sessions_once(self, storage: Backend) -> None:
        """Pages by `after` give every session exactly once, whole, in the order of their keys' bytes."""
        user, ids = (
            fresh("u"),
            [fresh(prefix) for prefix in ("b", "a", "é", "Z", "😀", "\x00", "\x1b", "x" * 300, "x" * 299)],
        )
        await storage.batch_create_sessions([{"session_id": id, "user_id": user} for id in ids])
        for page in (1, 2, 100):
            seen: list[Json] = []
            after = None
            while found := await storage.list_sessions(user_id=user, after=after, limit=page):
                seen += found
                after = found[-1]["session_id"]
            assert [session["session_id"] for session in seen] == sorted(
                ids, key=lambda id: encode_key(id).encode()
            )
            assert seen == await storage.batch_get_sessions([session["session_id"] for session in seen])

    async def test_sessions_are_filtered_as_they_are_now(self, storage: Backend) -> None:
        """status and user_id filter by the present values, alone and together."""
        user, ids = fresh("u"), [fresh() for _ in range(4)]
        for id in ids:
            await storage.create_session(id, "somebody")
            await storage.update_session(id, {"user_id": user})
        await storage.end_session(ids[0])
        await storage.update_session(ids[1], {"status": "paused"})
        await storage.update_session(ids[2], {"user_id": fresh("u")})

        async def listed(status: str | None = None, user_id: str | None = None) -> set[str]:
            found = await storage.list_sessions(status=status, user_id=user_id, limit=1_000)
            return {session["session_id"] for session in found}

        assert await listed(user_id=user) == {ids[0], ids[1], ids[3]}
        assert await listed(user_id=user, status="active") == {ids[3]}
        assert await listed(user_id=user, status="completed") == {ids[0]}
        assert ids[1] in await listed(status="paused")
        assert await listed(user_id=fresh("u")) == set()

    async def test_the_cursor_need_not_exist(self, storage: Backend) -> None:
        """A page after a session that was deleted meanwhile goes on at its place."""
        user, ids = fresh("u"), sorted(fresh() for _ in range(4))
        await storage.batch_create_sessions([{"session_id": id, "user_id": user} for id in ids])
        await storage.delete_session(ids[1])
        found = await storage.list_sessions(user_id=user, after=ids[1])
        assert [session["session_id"] for session in found] == ids[2:]

    async def test_limits_of_lists(self, storage: Backend) -> None:
        """limit 0 gives []; a negative limit is refused."""
        assert await storage.list_sessions(limit=0) == []
        assert await storage.list_threads(limit=0) == []
        with pytest.raises(InvalidValueError):
            await storage.list_sessions(limit=-1)
        with pytest.raises(InvalidValueError):
            await storage.list_threads(limit=-1)

    async def test_pages_cover_all_threads_once(self, storage: Backend) -> None:
        """list_threads gives each thread that has checkpoints once, in order; deleted or empty ones do not appear."""
        run = fresh("t")
        ids = [f"{run}{end}" for end in ("a", "B", "é", ":", "\x00")]
        for id in ids:
            await storage.store_checkpoint(id, "c", {})
            await storage.store_checkpoint(id, "d", {})
        await storage.put_writes(f"{run}-writes", "c", "t", [("a", 1)])
        await say(storage, f"{run}-messages", "hello")
        await storage.store_checkpoint(f"{run}-deleted", "c", {})
        await storage.delete_thread(f"{run}-deleted")
        await storage.store_checkpoint(f"{run}-pruned", "c", {})
        await storage.prune_checkpoints(f"{run}-pruned", 0)
        for page in (2, 1_000):
            seen: list[str] = []
            after: str | None = run[:-1]
            while found := await storage.list_threads(after=after, limit=page):
                seen += [id for id in found if id.startswith(run)]
                after = found[-1]
                if not after.startswith(run) and after > run:
                    break
            assert seen == sorted(ids, key=lambda id: encode_key(id).encode())


class DeletionContract(ContractBase):
    """Deleting and cleaning up."""

    async def test_deleting_a_session_takes_what_is_its_own(self, storage: Backend) -> None:
        """delete_session removes session, messages and task contexts; checkpoints of the same id and neighbours stay."""
        key, neighbour = fresh(), fresh()
        for id in (key, neighbour):
            await _fill(storage, id)
        assert await storage.delete_session(key) is True
        state = await snapshot(storage, key)
        assert (state["session"], state["messages"], state["contexts"]) == (None, [], [])
        assert await storage.get_task_context(key) is None
        assert len(state["checkpoints"]) == 1
        assert state["writes"] == {"c": [("a", 1)]}
        assert (await snapshot(storage, neighbour))["session"] is not None
        assert await storage.delete_session(key) is False

    async def test_deleting_a_thread_takes_what_is_its_own(self, storage: Backend) -> None:
        """delete_thread removes checkpoints and pending writes; session, messages and contexts of the same id stay."""
        key = fresh()
        await _fill(storage, key)
        before = await snapshot(storage, key)
        assert await storage.delete_thread(key) is True
        after = await snapshot(storage, key)
        assert (after["checkpoints"], after["latest"]) == ([], None)
        assert await storage.get_writes(key, "c") == []
        assert [after[name] for name in ("session", "messages", "contexts")] == [
            before[name] for name in ("session", "messages", "contexts")
        ]
        assert await storage.delete_thread(key) is False

    async def test_messages_alone_can_be_deleted(self, storage: Backend) -> None:
        """delete_session is True when there were only messages or contexts, delete_thread when only pending writes."""
        one, two, three = fresh(), fresh(), fresh("t")
        await say(storage, one, "x")
        await storage.store_task_context(two, 1)
        await storage.put_writes(three, "c", "task", [("a", 1)])
        assert await storage.delete_session(one) is True
        assert await storage.delete_session(two) is True
        assert await storage.delete_thread(three) is True
        assert await storage.get_conversation_history(one) == []

    async def test_life_after_deletion(self, storage: Backend) -> None:
        """What is written after a delete is there, and nothing of before comes back with it."""
        key, now = fresh(), wall_us()
        with use_wall_clock(lambda: now):
            await _fill(storage, key)
            await storage.delete_session(key)
            await storage.delete_thread(key)
            assert await storage.update_session(key, increment_requests=True) is False
            await say(storage, key, "new")
            created = await storage.create_session(key, "new")
            await storage.store_checkpoint(key, "d", {"new": 1}, expected_version=0)
            await storage.store_task_context(key, "new", expected_version=0)
        assert contents(await storage.get_conversation_history(key)) == ["new"]
        assert await storage.get_session(key) == created
        assert [item["checkpoint_id"] for item in await storage.list_checkpoints(key)] == ["d"]
        assert await storage.get_writes(key, "c") == []
        assert [item["context"] for item in await storage.list_task_contexts(key)] == ["new"]

    async def test_cleanup_removes_the_idle_and_leaves_the_busy(self, storage: Backend) -> None:
        """What has not been written for so long goes with all that belongs to its id; a busy neighbour neither helps nor suffers."""
        now, idle, busy = wall_us(), fresh(), fresh()
        with use_wall_clock(lambda: now):
            await _fill(storage, idle)
            await _fill(storage, busy)
        with use_wall_clock(lambda: now + 900_000):
            await say(storage, busy, "still here")
        with use_wall_clock(lambda: now + 500_000):
            assert await storage.cleanup_expired_sessions(0) >= 1
        state = await snapshot(storage, idle)
        assert state["session"] is None
        assert (state["messages"], state["contexts"], state["checkpoints"]) == ([], [], [])
        assert await storage.get_writes(idle, "c") == []
        assert len((await snapshot(storage, busy))["messages"]) == 2
        assert await storage.get_session(busy) is not None
        assert len(await storage.list_checkpoints(busy)) == 1

    async def test_cleanup_counts_each_session_once(self, storage: Backend) -> None:
        """The answer is how many were removed; a second run finds nothing of them."""
        await storage.cleanup_expired_sessions(0)
        keys, now = [fresh() for _ in range(450)], wall_us()
        with use_wall_clock(lambda: now):
            await storage.batch_create_sessions([{"session_id": key, "user_id": "u"} for key in keys])
        with use_wall_clock(lambda: now + 900_000):
            assert await storage.cleanup_expired_sessions(0) == len(keys)
            assert await storage.cleanup_expired_sessions(0) == 0
        assert await storage.batch_get_sessions(keys) == [None] * len(keys)

    async def test_cleanup_leaves_the_young_alone(self, storage: Backend) -> None:
        """By default only what has been idle for 24 hours goes."""
        key = fresh()
        await _fill(storage, key)
        before = await snapshot(storage, key)
        await storage.cleanup_expired_sessions()
        assert await snapshot(storage, key) == before
        with pytest.raises(InvalidValueError):
            await storage.cleanup_expired_sessions(-1)

    async def test_cleanup_beside_writers_loses_nothing(self, storage: Backend) -> None:
        """Clean-ups racing with creates and appends: an acknowledged later write is never swept away."""
        keys, now = [fresh() for _ in range(20)], wall_us()

        async def write(key: str) -> None:
            for n in range(5):
                await storage.add_conversation_message(key, "user", f"m{n}")

        async def clean() -> None:
            with use_wall_clock(lambda: now - 60_000_000):
                for _ in range(5):
                    await storage.cleanup_expired_sessions(0)

        await asyncio.gather(clean(), *(write(key) for key in keys))
        for key in keys:
            assert contents(await storage.get_conversation_history(key)) == [f"m{n}" for n in range(5)]


async def _fill(storage: Backend, key: str) -> None:
    await storage.create_session(key, "u")
    await say(storage, key, "x")
    await storage.store_task_context(key, {"v": 1})
    await storage.store_checkpoint(key, "c", {"v": 1})
    await storage.put_writes(key, "c", "task", [("a", 1)])
