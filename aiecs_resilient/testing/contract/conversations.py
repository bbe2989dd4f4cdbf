"""Conversations: order of acknowledgement, completeness, paging (C5, C6)."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest

from ...clock import iso, use_wall_clock, wall_us
from ...errors import InvalidValueError
from ...interface import Backend, Json
from ...operations import operation
from ._base import ContractBase, contents, fresh, named, observed, say


class ConversationContract(ContractBase):
    """What ``IConversationStorage`` promises."""

    async def test_a_message_has_the_whole_shape(self, storage: Backend) -> None:
        """message_id is the identity of the write, position an integer, the time naive UTC."""
        key, op_id, when = fresh(), fresh("op"), 1_700_000_000_123_456
        async with operation(op_id, occurred_at=when) as op:
            assert await storage.add_conversation_message(key, "user", "hello", {"tokens": 2}) is True
        [message] = await storage.get_conversation_history(key)
        assert set(message) == {"message_id", "position", "role", "content", "timestamp", "metadata"}
        assert (message["message_id"], message["role"], message["content"]) == (op_id, "user", "hello")
        assert message["metadata"] == {"tokens": 2}
        assert message["timestamp"] == iso(when)
        assert datetime.fromisoformat(message["timestamp"]).tzinfo is None
        assert isinstance(message["position"], int)
        assert message["position"] == op.position

    async def test_a_message_has_metadata_by_default(self, storage: Backend) -> None:
        """No metadata is an empty dict, never None."""
        key = fresh()
        await say(storage, key, "hello")
        assert (await storage.get_conversation_history(key))[0]["metadata"] == {}

    async def test_messages_need_no_session(self, storage: Backend) -> None:
        """Messages of a session that was never created are kept, and no session comes of them."""
        key = fresh()
        await say(storage, key, "one", "two")
        assert contents(await storage.get_conversation_history(key)) == ["one", "two"]
        assert await storage.get_session(key) is None

    async def test_an_unknown_session_has_no_history(self, storage: Backend) -> None:
        """History of an unknown id is an empty list, with every way of asking."""
        key = fresh()
        assert await storage.get_conversation_history(key) == []
        assert await storage.get_conversation_history(key, 0) == []
        assert await storage.get_conversation_history(key, 5, before=10**15, after=1) == []

    async def test_history_is_oldest_first(self, storage: Backend) -> None:
        """Messages come in the order in which they were acknowledged."""
        key = fresh()
        await say(storage, key, *(f"m{n}" for n in range(20)))
        assert contents(await storage.get_conversation_history(key)) == [f"m{n}" for n in range(20)]

    async def test_the_limit_takes_the_newest(self, storage: Backend) -> None:
        """The newest `limit`, still oldest first; 50 by default; 0 means all."""
        key = fresh()
        await _say_many(storage, key, 60)
        texts = [f"m{n}" for n in range(60)]
        assert contents(await storage.get_conversation_history(key, 3)) == texts[-3:]
        assert contents(await storage.get_conversation_history(key)) == texts[-50:]
        assert contents(await storage.get_conversation_history(key, 0)) == texts
        assert contents(await storage.get_conversation_history(key, 10_000)) == texts

    async def test_a_negative_limit_is_refused(self, storage: Backend) -> None:
        """A limit below zero is a mistake, not "all"."""
        with pytest.raises(InvalidValueError):
            await storage.get_conversation_history(fresh(), -1)

    async def test_clock_ties_do_not_decide_the_order(self, storage: Backend) -> None:
        """Messages of the same microsecond keep the order of acknowledgement and have distinct, rising positions.

        Nor do their identities decide, which fall here.
        """
        key, now = fresh(), wall_us()
        with use_wall_clock(lambda: now):
            for n in range(30):
                call = storage.add_conversation_message(key, "user", f"m{n}")
                assert await named(f"op{99 - n}", call) is True
        history = await storage.get_conversation_history(key, 0)
        assert contents(history) == [f"m{n}" for n in range(30)]
        _assert_rising(history)

    async def test_a_clock_that_runs_backwards_does_not_decide_the_order(self, storage: Backend) -> None:
        """A later message stays behind an earlier one even if the clock was set back meanwhile."""
        key, now = fresh(), wall_us()
        for step in range(10):
            with use_wall_clock(lambda step=step: now - step * 1_000_000):  # type: ignore[misc]
                await say(storage, key, f"m{step}")
        assert contents(await storage.get_conversation_history(key, 0)) == [f"m{n}" for n in range(10)]

    async def test_nothing_is_dropped_at_any_number(self, storage: Backend) -> None:
        """More than 1,000 messages all come back, in order, with limit 0 and with a large limit."""
        key = fresh()
        await _say_many(storage, key, self.history_size)
        texts = [f"m{n}" for n in range(self.history_size)]
        history = await storage.get_conversation_history(key, 0)
        assert contents(history) == texts
        assert contents(await storage.get_conversation_history(key, self.history_size - 1)) == texts[1:]
        assert len({message["message_id"] for message in history}) == self.history_size

    async def test_concurrent_appends_are_all_there_once(self, storage: Backend) -> None:
        """Many at once: each is there exactly once, and each writer's own order is kept."""
        key, writers, each = fresh(), 5, self.concurrency // 5

        async def write(writer: int) -> None:
            await say(storage, key, *(f"{writer}/{n}" for n in range(each)))

        await asyncio.gather(*(write(writer) for writer in range(writers)))
        history = await storage.get_conversation_history(key, 0)
        _assert_rising(history)
        for writer in range(writers):
            mine = [text for text in contents(history) if text.startswith(f"{writer}/")]
            assert mine == [f"{writer}/{n}" for n in range(each)]
        assert len(history) == writers * each

    @pytest.mark.parametrize("page", [1, 7, 50])
    async def test_paging_backwards_covers_all_once(self, storage: Backend, page: int) -> None:
        """Pages with `before` give every message exactly once."""
        key = fresh()
        await _say_many(storage, key, 60)
        seen: list[Json] = []
        before = None
        while found := await storage.get_conversation_history(key, page, before=before):
            seen[:0] = found
            before = found[0]["position"]
        assert contents(seen) == [f"m{n}" for n in range(60)]

    @pytest.mark.parametrize("page", [1, 7, 50])
    async def test_paging_forwards_covers_all_once(self, storage: Backend, page: int) -> None:
        """Pages with `after` give every message exactly once, the oldest first."""
        key = fresh()
        await _say_many(storage, key, 60)
        seen: list[Json] = []
        after = 0
        while found := await storage.get_conversation_history(key, page, after=after):
            seen += found
            after = found[-1]["position"]
        assert contents(seen) == [f"m{n}" for n in range(60)]

    async def test_before_and_after_are_exclusive(self, storage: Backend) -> None:
        """Both cursors leave out the message they name; together they give what lies between, 0 meaning all of it."""
        key = fresh()
        await say(storage, key, *"abcdef")
        history = await storage.get_conversation_history(key, 0)
        b, e = history[1]["position"], history[4]["position"]
        assert contents(await storage.get_conversation_history(key, 0, before=e)) == [*"abcd"]
        assert contents(await storage.get_conversation_history(key, 2, before=e)) == [*"cd"]
        assert contents(await storage.get_conversation_history(key, 0, after=b)) == [*"cdef"]
        assert contents(await storage.get_conversation_history(key, 2, after=b)) == [*"cd"]
        assert contents(await storage.get_conversation_history(key, 0, before=e, after=b)) == [*"cd"]
        assert await storage.get_conversation_history(key, 0, after=history[-1]["position"]) == []
        assert await storage.get_conversation_history(key, 0, before=history[0]["position"]) == []

    async def test_a_new_message_appears_behind_the_cursor(self, storage: Backend) -> None:
        """Following a conversation by `after` misses nothing that is acknowledged later."""
        key = fresh()
        await say(storage, key, "a")
        [first] = await storage.get_conversation_history(key, 0)
        await say(storage, key, "b")
        assert contents(await storage.get_conversation_history(key, 10, after=first["position"])) == ["b"]

    async def test_sessions_do_not_see_each_other(self, storage: Backend) -> None:
        """A message belongs to one session only."""
        one, two = fresh(), fresh()
        await say(storage, one, "one")
        await say(storage, two, "two")
        assert contents(await storage.get_conversation_history(one)) == ["one"]
        assert contents(await storage.get_conversation_history(two)) == ["two"]

    async def test_a_batch_is_appended_in_order(self, storage: Backend) -> None:
        """batch_add_conversation_messages keeps the order of its items per session and answers one True each."""
        one, two = fresh(), fresh()
        items: list[Json] = [
            {"session_id": one, "role": "user", "content": "a"},
            {"session_id": two, "role": "user", "content": "x", "metadata": {"k": 1}},
            {"session_id": one, "role": "assistant", "content": "b"},
        ]
        answers, context = await observed(storage.batch_add_conversation_messages(items))
        assert answers == [True, True, True]
        assert context.op_id
        first = await storage.get_conversation_history(one)
        assert [(message["role"], message["content"]) for message in first] == [
            ("user", "a"),
            ("assistant", "b"),
        ]
        assert (await storage.get_conversation_history(two))[0]["metadata"] == {"k": 1}
        assert await storage.batch_add_conversation_messages([]) == []

    async def test_equal_messages_are_two_messages(self, storage: Backend) -> None:
        """Saying the same thing twice is two messages: only the identity tells a repeat."""
        key = fresh()
        await say(storage, key, "again", "again")
        assert contents(await storage.get_conversation_history(key)) == ["again", "again"]


async def _say_many(storage: Backend, key: str, count: int) -> None:
    for start in range(0, count, 400):
        items = [
            {"session_id": key, "role": "user", "content": f"m{n}"}
            for n in range(start, min(count, start + 400))
        ]
        assert await storage.batch_add_conversation_messages(items) == [True] * len(items)


def _assert_rising(history: list[Json]) -> None:
    positions = [message["position"] for message in history]
    assert positions == sorted(set(positions))
