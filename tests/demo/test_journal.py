"""What the application was told is written down as it was told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.demo.journal import Fact, Journal
from aiecs_resilient.errors import StorageConnectionError, StorageTimeoutError
from aiecs_resilient.operations import active
from aiecs_resilient.testing.history import HistoryRecorder

FACTS = [Fact("append", "s", None)]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with HistoryRecorder(tmp_path / "history.jsonl", process="demo", flush_after=0) as recorder:
        yield Journal(recorder)


def outcomes(tmp_path: Path) -> list[str]:
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_bytes().splitlines()]
    return [line["outcome"] for line in lines if line["line"] == "outcome"]


async def test_an_error_is_recorded_with_what_it_says_of_its_outcome(
    journal: Journal, tmp_path: Path
) -> None:
    """Refused is not unknown: the checker allows less for the one than for the other."""

    async def refuse() -> bool:
        raise StorageConnectionError("gone", outcome="not_applied")

    async def vanish() -> bool:
        raise StorageTimeoutError("no answer")

    assert not await journal.write("add_conversation_message", "s", "1", FACTS, refuse)
    assert not await journal.write("add_conversation_message", "s", "2", FACTS, vanish)
    assert [(entry.outcome, entry.error) for entry in journal.entries] == [
        ("not_applied", "StorageConnectionError"),
        ("unknown", "StorageTimeoutError"),
    ]
    assert outcomes(tmp_path) == ["not_applied", "unknown"]


async def test_an_unknown_outcome_is_settled_by_asking(journal: Journal, tmp_path: Path) -> None:
    """One was done and its answer lost, one never arrived: afterwards both are known."""
    async with MemoryStorageBackend() as store:

        async def lose_the_answer() -> bool:
            await store.add_conversation_message("s", "user", "hello")
            raise StorageTimeoutError("no answer")

        async def never_arrive() -> bool:
            raise StorageTimeoutError("no answer")

        await journal.write("add_conversation_message", "s", "done", FACTS, lose_the_answer)
        await journal.write("add_conversation_message", "s", "never", FACTS, never_arrive)
        await journal.settle(store)
    assert [entry.settled for entry in journal.entries] == ["ok", "not_applied"]
    assert outcomes(tmp_path) == ["unknown", "unknown", "ok", "not_applied"]


async def test_each_write_has_the_identity_it_was_given(journal: Journal) -> None:
    """So that the application's own reference and the library's identity can be compared."""
    seen: list[str] = []
    async with MemoryStorageBackend() as store:

        async def call() -> bool:
            done = await store.add_conversation_message("s", "user", "hello")
            seen.extend(message["message_id"] for message in await store.get_conversation_history("s"))
            return done

        assert await journal.write("add_conversation_message", "s", "mine", FACTS, call)
    assert seen == ["mine"]
    assert active() is None
