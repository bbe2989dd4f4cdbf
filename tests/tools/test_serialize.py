"""The interchange form of the specification: what goes out comes back, and what cannot is refused by name."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.clock import use_wall_clock
from aiecs_resilient.errors import InvalidValueError
from aiecs_resilient.tools.serialize import deserialize_session, serialize_message, serialize_session

CREATED = datetime(2026, 1, 2, 3, 4, 5, 678)
UPDATED = datetime(2026, 1, 2, 4, 0, 0)


def session(**changes: object) -> dict[str, object]:
    """A session with datetimes, as the specification's sample has it."""
    return {
        "session_id": "s-1",
        "user_id": "user-1",
        "created_at": CREATED,
        "updated_at": UPDATED,
        "status": "active",
        "metadata": {"channel": "web"},
        "request_count": 3,
        "total_processing_time": 1.5,
        "error_count": 1,
        **changes,
    }


def test_the_form_is_that_of_the_specification():
    """Other programs rely on these keys: counters are nested, times are text."""
    assert serialize_session(session()) == {
        "session_id": "s-1",
        "user_id": "user-1",
        "created_at": "2026-01-02T03:04:05.000678",
        "updated_at": "2026-01-02T04:00:00.000000",
        "status": "active",
        "metadata": {"channel": "web"},
        "metrics": {"request_count": 3, "total_processing_time": 1.5, "error_count": 1},
    }


def test_datetimes_come_back_as_they_went():
    """A session with datetimes survives the way out and back."""
    assert deserialize_session(serialize_session(session())) == session()


async def test_a_stored_session_survives_out_and_back_and_through_json():
    """What get_session answers, custom fields included, is what is found again on the other side."""
    async with MemoryStorageBackend() as storage:
        await storage.create_session("s-1", "user-1", {"channel": "web"})
        await storage.update_session(
            "s-1", {"topic": "tea"}, increment_requests=True, add_processing_time=0.25
        )
        stored = await storage.get_session("s-1")
    assert stored is not None
    written = serialize_session(stored)
    assert json.loads(json.dumps(written)) == written
    back = deserialize_session(written)
    assert serialize_session(back) == written
    assert back["topic"] == "tea"
    assert (back["request_count"], back["total_processing_time"]) == (1, 0.25)
    assert back["last_activity"] == datetime.fromisoformat(stored["last_activity"])


@given(
    at=st.datetimes(
        min_value=datetime(1, 1, 3),
        max_value=datetime(9999, 12, 29),
        timezones=st.none() | st.timezones(),
    ),
    counters=st.tuples(st.integers(0), st.floats(0, 1e9), st.integers(0)),
)
def test_any_time_means_the_same_moment_afterwards(at: datetime, counters: tuple[int, float, int]):
    """A time zone is converted to UTC, never dropped; counters are unchanged."""
    requests, seconds, errors = counters
    given_session = session(
        created_at=at, request_count=requests, total_processing_time=seconds, error_count=errors
    )
    back = deserialize_session(serialize_session(given_session))
    expected = at if at.tzinfo is None else at.astimezone(UTC).replace(tzinfo=None)
    assert back["created_at"] == expected
    assert (back["request_count"], back["total_processing_time"], back["error_count"]) == counters


def test_counters_and_metadata_may_be_missing():
    """As in the specification, what was never counted is zero."""
    bare = {
        name: value
        for name, value in session().items()
        if name in {"session_id", "user_id", "created_at", "updated_at", "status"}
    }
    written = serialize_session(bare)
    assert written["metrics"] == {"request_count": 0, "total_processing_time": 0.0, "error_count": 0}
    assert written["metadata"] == {}
    del written["metrics"], written["metadata"]
    back = deserialize_session(written)
    assert (back["request_count"], back["metadata"]) == (0, {})


def test_nothing_is_shared_with_what_was_given():
    """Changing the copy changes nothing else."""
    metadata = {"tags": ["a"]}
    written = serialize_session(session(metadata=metadata))
    written["metadata"]["tags"].append("b")
    back = deserialize_session(written)
    back["metadata"]["tags"].append("c")
    message = serialize_message("user", "hello", metadata)
    message["metadata"]["tags"].append("d")
    assert metadata == {"tags": ["a"]}
    assert written["metadata"] == {"tags": ["a", "b"]}


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"session_id": "s-1"}, "lacks user_id, status, created_at, updated_at"),
        (session(created_at="yesterday"), r"session\['created_at'\] is no ISO-8601 time: 'yesterday'"),
        (
            session(updated_at=1_700_000_000),
            r"session\['updated_at'\] must be a datetime or ISO-8601 text, not int",
        ),
        (session(metrics={"mine": 1}), "rename that field"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(broken, said):
    """A field is never dropped or guessed in silence."""
    with pytest.raises(InvalidValueError, match=said):
        serialize_session(broken)


def test_what_cannot_be_read_is_refused_by_name():
    """The same on the way back."""
    written = serialize_session(session())
    with pytest.raises(InvalidValueError, match="lacks status"):
        deserialize_session({name: value for name, value in written.items() if name != "status"})
    with pytest.raises(InvalidValueError, match=r"\['metrics'\] must be a mapping, not list"):
        deserialize_session({**written, "metrics": [1]})


def test_a_message_has_the_specifications_form():
    """Role, content, time and metadata; the time is now unless the message has one."""
    with use_wall_clock(lambda: 1_767_323_045_000_678):
        assert serialize_message("user", "hello") == {
            "role": "user",
            "content": "hello",
            "timestamp": "2026-01-02T03:04:05.000678",
            "metadata": {},
        }
    at = datetime(2026, 1, 2, 5, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    assert serialize_message("user", "hello", {"k": 1}, timestamp=at) == {
        "role": "user",
        "content": "hello",
        "timestamp": "2026-01-02T03:04:05.000000",
        "metadata": {"k": 1},
    }
