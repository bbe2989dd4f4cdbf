"""The verdict finds what it looks for: a zero means that nothing was there, not that nobody looked."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest

from aiecs_resilient.codec import encode
from aiecs_resilient.demo import names
from aiecs_resilient.demo.outside_check import Holding, Message, digest, unpack
from aiecs_resilient.demo.verdict import MEANINGS, Verdict, judge
from aiecs_resilient.testing.check_history import VIOLATIONS

from .conftest import Recording

Tamper = Callable[[Holding], None]


def longest(held: Holding) -> tuple[str, list[Message]]:
    return max(held.sessions.items(), key=lambda item: len(item[1]))


async def verdict(recording: Recording, tamper: Tamper | None = None, which: int = 1) -> Verdict:
    holdings = deepcopy(recording.holdings)
    if tamper is not None:
        tamper(holdings[which])
    return await judge(recording.history, holdings, recording.folder, ())


async def test_a_healthy_run_is_clean(recording: Recording) -> None:
    """No false alarm, and there was something to find."""
    found = await verdict(recording)
    assert found.clean, found
    assert set(found.violations) == set(MEANINGS) == set(VIOLATIONS)
    written = {entry.what for entry in recording.journal.entries if entry.is_write}
    assert written == {
        "create_session",
        "add_conversation_message",
        "update_session",
        "store_checkpoint",
        "put_writes",
        "store_task_context",
        "end_session",
    }


def drop_message(held: Holding) -> None:
    longest(held)[1].pop()


def double_message(held: Holding) -> None:
    messages = longest(held)[1]
    messages.append({**messages[0], "position": messages[-1]["position"] + 1})


def swap_messages(held: Holding) -> None:
    messages = longest(held)[1]
    messages[0]["position"], messages[1]["position"] = messages[1]["position"], messages[0]["position"]
    messages[:2] = messages[1::-1]


def count_twice(held: Holding) -> None:
    held.counters[names.requests(longest(held)[0])] += 1


def drop_checkpoint(held: Holding) -> None:
    held.checkpoints.popitem()


def forget_end(held: Holding) -> None:
    ended = next(name for name, value in held.contexts.items() if value == digest("completed"))
    held.contexts[ended] = digest("active")


def drop_session(held: Holding) -> None:
    del held.sessions[longest(held)[0]]


def invent_message(held: Holding) -> None:
    longest(held)[1].append(Message(op_id="nobody's", position=2**60, content="never said"))


def change_content(held: Holding) -> None:
    longest(held)[1][0]["content"] = "something else"


@pytest.mark.parametrize(
    ("tamper", "violation"),
    [
        (drop_message, "lost"),
        (double_message, "duplicated"),
        (swap_messages, "out_of_order"),
        (count_twice, "counters"),
        (drop_checkpoint, "lost"),
        (forget_end, "lost"),
        (drop_session, "lost"),
        (invent_message, "unexplained"),
        (change_content, "unexplained"),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
async def test_one_wrong_thing_in_one_store_is_found(
    recording: Recording, tamper: Tamper, violation: str, which: int
) -> None:
    """In either store, among everything that is right."""
    found = await verdict(recording, tamper, which)
    assert not found.clean
    assert found.violations[violation] >= 1
    assert found.details[violation]


async def test_a_difference_between_the_stores_is_one(recording: Recording) -> None:
    """What only one store lacks is a difference, too."""
    assert (await verdict(recording, drop_message)).violations["differing"] >= 1


async def test_marks_left_open_are_no_clean_end(recording: Recording) -> None:
    """A store that still says "the other lacks this" has not been levelled."""

    def mark(held: Holding) -> None:
        held.open_marks = 3

    found = await verdict(recording, mark)
    assert not found.clean
    assert "3 operations" in found.problems[0]


async def test_a_history_that_proves_nothing_is_no_clean_end(recording: Recording) -> None:
    """The checker refuses to judge an empty history, and that is said."""
    empty = recording.folder / "empty.jsonl"
    empty.write_bytes(b"")
    found = await judge(empty, recording.holdings, recording.folder, ())
    assert not found.clean
    assert "proves nothing" in found.problems[0]


def test_tuples_are_read_back_as_what_was_put() -> None:
    """Pending writes are tuples; MessagePack carries them in an extension type."""
    assert digest(unpack(encode([("messages", "hello"), ("cursor", 2)], "writes"))) == digest(
        [("messages", "hello"), ("cursor", 2)]
    )
