"""Values: stored faithfully or refused, copied in and copied out (C9, C11, C12)."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum
from pathlib import PurePosixPath
from typing import Any, cast
from uuid import UUID

import pytest

from ...errors import InvalidValueError
from ...interface import Backend, Json
from ._base import ContractBase, fresh

FAITHFUL: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, -(2**31) - 1, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**64, -(2**63) - 1,
    10**40, -(10**40), 0.0, -0.0, 1.0, 0.1, -2.5e-300, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan,
    "", " ", "\x00", "a\x00b", "\x1b", "\x1b0", "\x1be", "\n\r\t", "ü", "日本語", "😀", "\ufeff", "\u202e", "\uffff", "\U0010ffff",
    "null", "true", "1", "{}", "x" * 100_000, b"", b"\x00", bytes(range(256)), b"\xff" * 1_000,
    [], {}, (), [[]], [{}], {"": ""}, {"a": {"b": {"c": [1, [2, (3, [4])]]}}}, (1, (2, (3,))), [None, True, 1, 1.0, "1", b"1"],
    {"$set": 1, "a.b": 2, "__proto__": 3, "a\x00b": 4, "😀": 5, "x" * 300: 6, "\x1b0": 7}, {"ordered": 1, "as": 2, "given": 3},
]  # fmt: skip
"""What must come back equal and of the same type."""


class _Colour(Enum):
    RED = "red"


@dataclass
class _Step:
    name: str
    tags: list[str] = field(default_factory=list[str])


@dataclass
class _Task:
    steps: list[_Step]
    started: datetime
    raw: bytes = b""


NOON = datetime(2024, 2, 29, 12, 0, 0, 5, UTC)
CONVERTED: list[tuple[Any, Any]] = [
    (NOON, "2024-02-29T12:00:00.000005+00:00"),
    (NOON.replace(tzinfo=None), "2024-02-29T12:00:00.000005"),
    (date(2024, 2, 29), "2024-02-29"),
    (time(1, 2, 3), "01:02:03"),
    ({"one"}, ["one"]),
    (frozenset(), []),
    (bytearray(b"ab"), b"ab"),
    (_Step("a", ["b"]), {"name": "a", "tags": ["b"]}),
    (
        {"task": _Task([_Step("a")], NOON, b"\x00")},
        {
            "task": {
                "steps": [{"name": "a", "tags": []}],
                "started": "2024-02-29T12:00:00.000005+00:00",
                "raw": b"\x00",
            }
        },
    ),
]
"""The only conversions there are: dataclass to dict, set to list, datetime to ISO text, buffers to bytes."""

_cyclic: list[Any] = []
_cyclic.append(_cyclic)
REFUSED: list[Any] = [
    object(), _Colour.RED, Decimal("1.5"), 1 + 2j, PurePosixPath("/x"), UUID(int=5), range(3), iter([1]), len, int,
    Exception("x"), {1: "int key"}, {None: 1}, {("a",): 1}, {b"a": 1}, "\ud800", ["\udfff"], {"\ud800": 1}, _cyclic,
]  # fmt: skip
"""What cannot be stored faithfully: nothing of it is ever turned into text."""


@dataclass(frozen=True)
class Slot:
    """A place where a value can be put, and read back from."""

    name: str
    put: Callable[[Backend, str, Any], Awaitable[Any]]
    get: Callable[[Backend, str], Awaitable[Any]]


async def _put_metadata(storage: Backend, key: str, value: Any) -> None:
    await storage.create_session(key, "u", {"v": value})


async def _put_field(storage: Backend, key: str, value: Any) -> None:
    if await storage.get_session(key) is None:
        await storage.create_session(key, "u")
    await storage.update_session(key, {"v": value}, increment_requests=True)


async def _session(storage: Backend, key: str) -> Json:
    session = await storage.get_session(key)
    assert session is not None
    return session


async def _checkpoint(storage: Backend, key: str) -> Json:
    checkpoint = await storage.get_checkpoint(key, "c")
    assert checkpoint is not None
    return checkpoint


async def _get_metadata(storage: Backend, key: str) -> Any:
    return (await _session(storage, key))["metadata"]["v"]


async def _get_field(storage: Backend, key: str) -> Any:
    return (await _session(storage, key))["v"]


async def _get_message(storage: Backend, key: str) -> Any:
    return (await storage.get_conversation_history(key, 1))[0]["metadata"]["v"]


async def _get_data(storage: Backend, key: str) -> Any:
    return (await _checkpoint(storage, key))["data"]["v"]


async def _get_checkpoint_metadata(storage: Backend, key: str) -> Any:
    return (await _checkpoint(storage, key))["metadata"]["v"]


async def _get_write(storage: Backend, key: str) -> Any:
    return (await storage.get_writes(key, "c"))[0][1]


SLOTS = [
    Slot("session metadata", _put_metadata, _get_metadata),
    Slot("session field", _put_field, _get_field),
    Slot(
        "message metadata", lambda s, k, v: s.add_conversation_message(k, "user", "x", {"v": v}), _get_message
    ),
    Slot("checkpoint data", lambda s, k, v: s.store_checkpoint(k, "c", {"v": v}), _get_data),
    Slot(
        "checkpoint metadata",
        lambda s, k, v: s.store_checkpoint(k, "c", {}, {"v": v}),
        _get_checkpoint_metadata,
    ),
    Slot("pending write", lambda s, k, v: s.put_writes(k, "c", "task", [("channel", v)]), _get_write),
    Slot("task context", lambda s, k, v: s.store_task_context(k, v), lambda s, k: s.get_task_context(k)),
]
every_slot = pytest.mark.parametrize("slot", SLOTS, ids=lambda slot: str(slot.name))


def same(one: Any, two: Any) -> bool:
    """Equal, and of the same types all the way down; NaN is itself, 0.0 is not -0.0, dicts keep their order."""
    if type(one) is not type(two):
        return False
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(two)) or (
            one == two and math.copysign(1, one) == math.copysign(1, two)
        )
    if isinstance(one, dict):
        ours, theirs = cast("Json", one), cast("Json", two)
        return list(ours) == list(theirs) and all(same(ours[name], theirs[name]) for name in ours)
    if isinstance(one, (list, tuple)):
        items, others = cast("Sequence[Any]", one), cast("Sequence[Any]", two)
        return len(items) == len(others) and all(map(same, items, others))
    return bool(one == two)


class ValueContract(ContractBase):
    """What may be stored, and how it comes back."""

    @every_slot
    async def test_values_come_back_equal_and_of_the_same_type(self, storage: Backend, slot: Slot) -> None:
        """Big integers, infinities, NaN, NUL, bytes, tuples: each is what it was."""
        key = fresh()
        await slot.put(storage, key, FAITHFUL)
        found = await slot.get(storage, key)
        assert len(found) == len(FAITHFUL)
        for value, back in zip(FAITHFUL, found, strict=True):
            assert same(value, back), f"{value!r:.80} came back as {back!r:.80}"

    @every_slot
    async def test_the_named_conversions_and_no_others(self, storage: Backend, slot: Slot) -> None:
        """Dataclass to dict, set to list, datetime to ISO text, buffers to bytes."""
        key = fresh()
        await slot.put(storage, key, [value for value, _ in CONVERTED])
        for found, (value, expected) in zip(await slot.get(storage, key), CONVERTED, strict=True):
            assert same(found, expected), f"{value!r:.80} came back as {found!r:.80}"

    async def test_a_set_loses_its_order_only(self, storage: Backend) -> None:
        """Every member of a set comes back, once."""
        key = fresh()
        await storage.store_task_context(key, {"members": {3, 1, 2}, "mixed": frozenset({"a", 1, (1, 2)})})
        found: Any = await storage.get_task_context(key)
        assert sorted(found["members"]) == [1, 2, 3]
        assert set(found["mixed"]) == {"a", 1, (1, 2)}
        assert type(found["mixed"]) is list

    @every_slot
    async def test_what_cannot_be_kept_is_refused(self, storage: Backend, slot: Slot) -> None:
        """Refused with the path inside the value, and what was there before stays as it was."""
        key = fresh()
        await slot.put(storage, key, "before")
        for value in REFUSED:
            with pytest.raises(InvalidValueError, match=r"deeper|inner") as caught:
                await slot.put(storage, key, {"outer": [0, {"inner": value}]})
            assert caught.value.outcome == "not_applied"
        assert await slot.get(storage, key) == "before"

    @every_slot
    async def test_a_deep_value_is_kept_or_refused(self, storage: Backend, slot: Slot) -> None:
        """However deep: it comes back whole, or it is refused and nothing is written."""
        for depth in (10, 50, 300, 1_000, 1_020, 1_030, 5_000, 100_000):
            key = fresh()
            await slot.put(storage, key, "before")
            value: Any = "leaf"
            for _ in range(depth):
                value = [value]
            try:
                await slot.put(storage, key, value)
            except InvalidValueError:
                assert depth > 50, "50 levels are ordinary"
                assert await slot.get(storage, key) == "before"
                continue
            found: Any = await slot.get(storage, key)
            for _ in range(depth):
                assert type(found).__name__ == "list"
                [found] = found
            assert found == "leaf"

    @every_slot
    async def test_a_large_value_is_kept(self, storage: Backend, slot: Slot) -> None:
        """A megabyte of every byte value."""
        key, value = fresh(), bytes(range(256)) * min(4_096, self.max_value_bytes // 512)
        await slot.put(storage, key, value)
        assert await slot.get(storage, key) == value

    @every_slot
    async def test_an_oversize_value_is_refused(self, storage: Backend, slot: Slot) -> None:
        """Over the configured limit: refused before anything is written, naming the limit."""
        key = fresh()
        await slot.put(storage, key, "before")
        with pytest.raises(InvalidValueError, match="limit"):
            await slot.put(storage, key, bytes(self.max_value_bytes + 1))
        assert await slot.get(storage, key) == "before"

    async def test_oversize_content_is_refused(self, storage: Backend) -> None:
        """A message's content has the same limit, counted in bytes."""
        key = fresh()
        with pytest.raises(InvalidValueError, match="limit"):
            await storage.add_conversation_message(key, "user", "ä" * (self.max_value_bytes // 2 + 1))
        assert await storage.get_conversation_history(key) == []

    @pytest.mark.parametrize(
        "text", ["", "\x00", "a\x00b\x1b0\x1be", "\x1b", "😀" * 1_000, "\u202e\ufeff", "\r\n", "'\"\\%"]
    )
    async def test_text_comes_back_as_it_was(self, storage: Backend, text: str) -> None:
        """Content, role, user id and status are any text."""
        key = fresh()
        await storage.add_conversation_message(key, text, text)
        [message] = await storage.get_conversation_history(key)
        assert (message["role"], message["content"]) == (text, text)
        await storage.create_session(key, text)
        await storage.end_session(key, text)
        session = await storage.get_session(key)
        assert session is not None
        assert (session["user_id"], session["status"]) == (text, text)

    async def test_lone_surrogates_are_refused_everywhere(self, storage: Backend) -> None:
        """Half a character has no encoding: refused before anything is written."""
        key, bad = fresh(), "half \ud83d"
        for call in (
            storage.create_session(key, bad),
            storage.create_session(key, "u", {"m": bad}),
            storage.create_session(key, "u", {bad: 1}),
            storage.add_conversation_message(key, bad, "x"),
            storage.add_conversation_message(key, "user", bad),
            storage.end_session(key, bad),
            storage.update_session(key, {bad: 1}),
            storage.update_session(key, {"status": bad}),
            storage.store_task_context(key, bad),
        ):
            with pytest.raises(InvalidValueError):
                await call
        assert await storage.get_session(key) is None
        assert await storage.get_conversation_history(key) == []

    @pytest.mark.parametrize("wrong", [b"bytes", 5, None, ["x"]])
    async def test_text_must_be_text(self, storage: Backend, wrong: Any) -> None:
        """An id, role or content of another type is refused, not turned into text."""
        for call in (
            storage.create_session(wrong, "u"),
            storage.create_session(fresh(), wrong),
            storage.add_conversation_message(fresh(), wrong, "x"),
            storage.add_conversation_message(fresh(), "user", wrong),
        ):
            with pytest.raises(InvalidValueError):
                await call

    async def test_metadata_must_be_a_dict(self, storage: Backend) -> None:
        """A list is not metadata."""
        wrong: Any = ["not", "a", "dict"]
        with pytest.raises(InvalidValueError):
            await storage.create_session(fresh(), "u", wrong)

    @every_slot
    async def test_changing_what_was_given_changes_nothing(self, storage: Backend, slot: Slot) -> None:
        """Values are copied in."""
        key, value = fresh(), {"list": [1], "nested": {"a": 1}}
        await slot.put(storage, key, value)
        value["list"].append(2)  # type: ignore[attr-defined]
        value["nested"]["a"] = 2  # type: ignore[index]
        assert await slot.get(storage, key) == {"list": [1], "nested": {"a": 1}}

    @every_slot
    async def test_changing_what_came_back_changes_nothing(self, storage: Backend, slot: Slot) -> None:
        """Values are copied out, each time."""
        key = fresh()
        await slot.put(storage, key, {"list": [1], "nested": {"a": 1}})
        found = await slot.get(storage, key)
        found["list"].append(2)
        found["nested"]["a"] = 2
        assert await slot.get(storage, key) == {"list": [1], "nested": {"a": 1}}

    async def test_changing_an_answer_changes_nothing(self, storage: Backend) -> None:
        """Whole sessions, messages and checkpoints are copies too, also from lists and from create."""
        key = fresh()
        created = await storage.create_session(key, "u", {"a": 1})
        created["status"] = "changed"
        created["metadata"]["a"] = 2
        await storage.add_conversation_message(key, "user", "x")
        await storage.store_checkpoint(key, "c", {"v": 1})
        for answer in (
            await storage.get_session(key),
            (await storage.get_conversation_history(key))[0],
            await storage.get_checkpoint(key),
            (await storage.list_checkpoints(key))[0],
        ):
            assert answer is not None
            before = dict(answer)
            answer.clear()
            assert before
        session = await storage.get_session(key)
        assert session is not None
        assert (session["status"], session["metadata"]) == ("active", {"a": 1})
        assert (await storage.get_conversation_history(key))[0]["content"] == "x"
        assert (await _checkpoint(storage, key))["data"] == {"v": 1}
