"""Sessions: shape, counters, fields, endings and beginnings (C1 to C4)."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest

from ...clock import iso
from ...errors import ConflictError, InvalidValueError
from ...interface import Backend
from ...operations import operation
from ._base import ContractBase, fresh, say, version_of

SHAPE = {
    "session_id",
    "user_id",
    "status",
    "metadata",
    "request_count",
    "total_processing_time",
    "error_count",
    "created_at",
    "updated_at",
    "last_activity",
}


class SessionContract(ContractBase):
    """What ``ISessionStorage`` promises."""

    async def test_a_new_session_has_the_whole_shape(self, storage: Backend) -> None:
        """A session has exactly the documented keys, active, with counters of the right types at zero."""
        key = fresh()
        session = await storage.create_session(key, "user-1", {"channel": "web"})
        assert set(session) == SHAPE
        assert (session["session_id"], session["user_id"], session["status"]) == (key, "user-1", "active")
        assert session["metadata"] == {"channel": "web"}
        counters = [session[name] for name in ("request_count", "total_processing_time", "error_count")]
        assert counters == [0, 0.0, 0]
        assert [type(counter) for counter in counters] == [int, float, int]

    async def test_a_session_has_metadata_by_default(self, storage: Backend) -> None:
        """No metadata is an empty dict, never None."""
        assert (await storage.create_session(fresh(), "u"))["metadata"] == {}

    async def test_create_answers_what_get_answers(self, storage: Backend) -> None:
        """What create returned equals what get returns."""
        key = fresh()
        created = await storage.create_session(key, "u", {"a": [1, {"b": None}]})
        assert await storage.get_session(key) == created

    async def test_times_are_naive_utc_with_microseconds(self, storage: Backend) -> None:
        """Timestamps leave as naive ISO text with six decimals and come from the identity of the operation."""
        key, when = fresh(), 1_700_000_000_000_042
        async with operation(occurred_at=when):
            session = await storage.create_session(key, "u")
        for name in ("created_at", "updated_at", "last_activity"):
            parsed = datetime.fromisoformat(session[name])
            assert parsed.tzinfo is None
            assert session[name] == parsed.isoformat(timespec="microseconds")
        assert session["created_at"] == iso(when)

    async def test_an_update_moves_the_last_activity(self, storage: Backend) -> None:
        """last_activity is updated_at and follows the latest write; created_at stays."""
        key = fresh()
        created = await storage.create_session(key, "u")
        when = 4_000_000_000_000_000
        async with operation(occurred_at=when):
            await storage.update_session(key, increment_requests=True)
        session = await storage.get_session(key)
        assert session is not None
        assert session["updated_at"] == session["last_activity"] == iso(when)
        assert session["created_at"] == created["created_at"]

    async def test_counters_add_up(self, storage: Backend) -> None:
        """Requests, errors and processing time accumulate over updates."""
        key = fresh()
        await storage.create_session(key, "u")
        assert await storage.update_session(key, None, True, 0.25, False) is True
        assert await storage.update_session(
            key, increment_requests=True, add_processing_time=1.5, mark_error=True
        )
        assert await storage.update_session(key, mark_error=True)
        session = await storage.get_session(key)
        assert session is not None
        assert (session["request_count"], session["total_processing_time"], session["error_count"]) == (
            2,
            1.75,
            2,
        )

    async def test_processing_time_is_exact_to_the_microsecond(self, storage: Backend) -> None:
        """Ten times 0.1 s is 1.0 s: time is kept in whole microseconds, not as a sum of floats, and none is dropped."""
        key = fresh()
        await storage.create_session(key, "u")
        await storage.update_session(key, add_processing_time=1e-6)
        session = await storage.get_session(key)
        assert session is not None
        assert session["total_processing_time"] == 1e-6
        for _ in range(9):
            await storage.update_session(key, add_processing_time=0.1)
        await storage.update_session(key, add_processing_time=0.099999)
        session = await storage.get_session(key)
        assert session is not None
        assert session["total_processing_time"] == 1.0

    async def test_concurrent_increments_are_all_counted(self, storage: Backend) -> None:
        """N increments at once count exactly N."""
        key = fresh()
        await storage.create_session(key, "u")
        answers = await asyncio.gather(
            *(
                storage.update_session(
                    key, increment_requests=True, add_processing_time=0.001, mark_error=n % 2 == 0
                )
                for n in range(self.concurrency)
            )
        )
        assert answers == [True] * self.concurrency
        session = await storage.get_session(key)
        assert session is not None
        assert session["request_count"] == self.concurrency
        assert session["error_count"] == (self.concurrency + 1) // 2
        assert session["total_processing_time"] == pytest.approx(self.concurrency / 1_000, abs=1e-9)

    async def test_updates_set_known_and_custom_fields(self, storage: Backend) -> None:
        """status, user_id, metadata and custom keys can be set; what is not named stays."""
        key = fresh()
        await storage.create_session(key, "u", {"old": 1})
        assert await storage.update_session(key, {"status": "paused", "topic": {"name": "räume"}})
        assert await storage.update_session(key, {"user_id": "v", "metadata": {"new": 2}})
        session = await storage.get_session(key)
        assert session is not None
        assert (session["status"], session["user_id"], session["metadata"]) == ("paused", "v", {"new": 2})
        assert session["topic"] == {"name": "räume"}

    @pytest.mark.parametrize("name", ["\x00", "a:b", "", "$set", "__class__", "x" * 400, "ключ", "\x1be"])
    async def test_custom_fields_may_have_any_name(self, storage: Backend, name: str) -> None:
        """A custom field's name is data: kept as it is, or refused as a whole."""
        key = fresh()
        await storage.create_session(key, "u")
        try:
            await storage.update_session(key, {name: 7}, increment_requests=True)
        except InvalidValueError:
            session = await storage.get_session(key)
            assert session is not None
            assert session["request_count"] == 0
        else:
            session = await storage.get_session(key)
            assert session is not None
            assert (session[name], session["request_count"]) == (7, 1)

    @pytest.mark.parametrize(
        "name",
        [
            "session_id",
            "created_at",
            "updated_at",
            "last_activity",
            "request_count",
            "total_processing_time",
            "error_count",
        ],
    )
    async def test_updates_never_set_ids_times_or_counters(self, storage: Backend, name: str) -> None:
        """Fixed fields are refused, and nothing of that update happens."""
        key = fresh()
        created = await storage.create_session(key, "u")
        with pytest.raises(InvalidValueError, match=name):
            await storage.update_session(key, {name: "x", "custom": 1}, increment_requests=True)
        assert await storage.get_session(key) == created

    @pytest.mark.parametrize("seconds", [-1, -0.001, float("nan"), float("inf"), float("-inf")])
    async def test_impossible_processing_times_are_refused(self, storage: Backend, seconds: float) -> None:
        """Negative, infinite or undefined processing time changes nothing."""
        key = fresh()
        created = await storage.create_session(key, "u")
        with pytest.raises(InvalidValueError):
            await storage.update_session(key, increment_requests=True, add_processing_time=seconds)
        assert await storage.get_session(key) == created

    async def test_creating_again_starts_afresh(self, storage: Backend) -> None:
        """create on an existing id: counters at zero, new user and metadata, custom fields gone, messages kept."""
        key = fresh()
        await storage.create_session(key, "u", {"a": 1})
        await storage.update_session(key, {"custom": 1, "status": "paused"}, True, 2.0, True)
        await say(storage, key, "kept")
        again = await storage.create_session(key, "v")
        assert set(again) == SHAPE
        assert (again["user_id"], again["status"], again["metadata"]) == ("v", "active", {})
        assert (again["request_count"], again["total_processing_time"], again["error_count"]) == (0, 0.0, 0)
        assert await storage.get_session(key) == again
        assert len(await storage.get_conversation_history(key)) == 1

    async def test_ending_is_true_twice_and_readable(self, storage: Backend) -> None:
        """An ended session stays readable, and ending it again is True again."""
        key = fresh()
        await storage.create_session(key, "u")
        assert await storage.end_session(key) is True
        assert await storage.end_session(key) is True
        session = await storage.get_session(key)
        assert session is not None
        assert session["status"] == "completed"

    async def test_an_ending_has_any_status(self, storage: Backend) -> None:
        """end_session sets the status it is given; of two endings the later one shows."""
        key = fresh()
        await storage.create_session(key, "u")
        await storage.end_session(key, "failed")
        assert _status(await storage.get_session(key)) == "failed"
        await storage.end_session(key, status="cancelled")
        assert _status(await storage.get_session(key)) == "cancelled"

    async def test_a_late_update_cannot_resurrect(self, storage: Backend) -> None:
        """On an ended session an update with a status answers False and changes nothing at all."""
        key = fresh()
        await storage.create_session(key, "u")
        await storage.end_session(key)
        before = await storage.get_session(key)
        assert await storage.update_session(key, {"status": "active", "x": 1}, True, 1.0, True) is False
        assert await storage.get_session(key) == before

    async def test_an_ended_session_still_counts(self, storage: Backend) -> None:
        """On an ended session an update without a status counts and sets other fields."""
        key = fresh()
        await storage.create_session(key, "u")
        await storage.end_session(key)
        assert await storage.update_session(key, {"note": "late"}, True, 0.5, True) is True
        session = await storage.get_session(key)
        assert session is not None
        assert (session["status"], session["note"]) == ("completed", "late")
        assert (session["request_count"], session["total_processing_time"], session["error_count"]) == (
            1,
            0.5,
            1,
        )

    async def test_creating_after_the_end_is_a_new_incarnation(self, storage: Backend) -> None:
        """create on an ended session makes it active again; its messages stay."""
        key = fresh()
        await storage.create_session(key, "u")
        await say(storage, key, "before")
        await storage.end_session(key)
        await storage.create_session(key, "u")
        assert _status(await storage.get_session(key)) == "active"
        assert await storage.update_session(key, {"status": "busy"}) is True
        assert len(await storage.get_conversation_history(key)) == 1

    async def test_an_unknown_session_answers_nothing(self, storage: Backend) -> None:
        """get gives None; update, end and delete give False; nothing is created by asking."""
        key = fresh()
        assert await storage.get_session(key) is None
        assert await storage.update_session(key, {"a": 1}, True, 1.0, True) is False
        assert await storage.end_session(key) is False
        assert await storage.delete_session(key) is False
        assert await storage.get_session(key) is None

    async def test_an_update_expects_a_version(self, storage: Backend) -> None:
        """expected_version lets the write through only if nothing changed since; a refused one changes nothing."""
        key = fresh()
        await storage.create_session(key, "u")
        version = await version_of(storage.get_session(key))
        assert await storage.update_session(key, {"a": 1}, expected_version=version) is True
        before = await storage.get_session(key)
        with pytest.raises(ConflictError):
            await storage.update_session(key, {"a": 2}, True, expected_version=version)
        assert await storage.get_session(key) == before
        version = await version_of(storage.get_session(key))
        assert await storage.update_session(key, {"a": 3}, expected_version=version) is True

    async def test_a_write_reports_the_version_it_made(self, storage: Backend) -> None:
        """The position after a write is the version that the next compare-and-set expects."""
        key = fresh()
        version = await version_of(storage.create_session(key, "u"))
        for n in range(3):
            call = storage.update_session(key, {"n": n}, expected_version=version)
            version = await version_of(call)
        assert await version_of(storage.get_session(key)) == version

    async def test_of_concurrent_compare_and_sets_one_wins(self, storage: Backend) -> None:
        """Ten writers with the same expected_version: one True, nine ConflictErrors, one effect."""
        key = fresh()
        version = await version_of(storage.create_session(key, "u"))
        results: list[Any] = await asyncio.gather(
            *(storage.update_session(key, {"winner": n}, True, expected_version=version) for n in range(10)),
            return_exceptions=True,
        )
        assert sum(result is True for result in results) == 1
        assert sum(isinstance(result, ConflictError) for result in results) == 9
        session = await storage.get_session(key)
        assert session is not None
        assert (session["request_count"], session["winner"]) == (1, results.index(True))

    async def test_batches_keep_order_and_answer_each(self, storage: Backend) -> None:
        """batch_create_sessions answers one True each; batch_get_sessions keeps the order, None where there is none."""
        keys = [fresh() for _ in range(5)]
        items = [{"session_id": key, "user_id": f"u{n}", "metadata": {"n": n}} for n, key in enumerate(keys)]
        del items[0]["metadata"]
        assert await storage.batch_create_sessions(items) == [True] * 5
        missing = fresh()
        found = await storage.batch_get_sessions([keys[3], missing, keys[0], keys[3]])
        assert [session and session["user_id"] for session in found] == ["u3", None, "u0", "u3"]
        assert found[0] == await storage.get_session(keys[3])

    async def test_empty_batches_are_empty(self, storage: Backend) -> None:
        """Nothing asked, nothing answered."""
        assert await storage.batch_create_sessions([]) == []
        assert await storage.batch_get_sessions([]) == []


def _status(session: dict[str, Any] | None) -> str:
    assert session is not None
    return str(session["status"])
