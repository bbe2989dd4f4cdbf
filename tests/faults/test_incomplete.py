"""The store that leads lacks what only the other one holds, and that one is away: no write is answered by a guess.

And nothing is recorded under its identity either: repeated when all is back, it does what it was meant to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiecs_resilient.errors import IncompleteStoreError
from aiecs_resilient.interface import Backend
from aiecs_resilient.operations import operation
from aiecs_resilient.testing.clock import run_virtual

from .subjects import Leg, chain

Write = Callable[[Backend], Awaitable[Any]]

WRITES: list[tuple[str, Write, Any]] = [
    ("update_session", lambda s: s.update_session("s", increment_requests=True), True),
    ("end_session", lambda s: s.end_session("s"), True),
    ("delete_session", lambda s: s.delete_session("s"), True),
    ("delete_thread", lambda s: s.delete_thread("s"), True),
    ("prune_checkpoints", lambda s: s.prune_checkpoints("s", 0), 1),
]


@pytest.mark.parametrize(("write", "answer"), [case[1:] for case in WRITES], ids=[case[0] for case in WRITES])
def test_a_write_is_not_answered_by_a_guess(write: Write, answer: Any) -> None:
    """It fails, certain that nothing was done; and under the same identity it is done when the other store is back."""

    async def play() -> None:
        legs = hot, cold = Leg("hot"), Leg("cold")
        async with chain(*legs) as storage:
            cold.state = "refusing"
            await storage.create_session("s", "u")
            await storage.store_checkpoint("s", "c", {"v": 1})
            before = await storage.get_session("s"), await storage.list_checkpoints("s")
            hot.state, cold.state = "refusing", "up"
            await asyncio.sleep(5)  # past the breakers' open periods
            with pytest.raises(IncompleteStoreError) as caught:
                async with operation("it"):
                    await write(storage)
            assert caught.value.outcome == "not_applied"
            hot.state = "up"
            await asyncio.sleep(30)
            async with operation("it"):
                assert await write(storage) == answer
            await asyncio.sleep(5)
            seen = [(await leg.store.get_session("s"), await leg.store.list_checkpoints("s")) for leg in legs]
            assert seen[0] == seen[1]
            assert seen[0] != before

    run_virtual(play())


def test_what_the_leader_has_done_before_is_answered_as_it_was() -> None:
    """A repeat is no guess: its record is there, although what it deleted is not."""

    async def play() -> None:
        hot, cold = Leg("hot"), Leg("cold")
        async with chain(hot, cold) as storage:
            await storage.create_session("s", "u")
            async with operation("it"):
                assert await storage.delete_session("s") is True
            cold.state = "refusing"
            await storage.create_session("another", "u")
            hot.state, cold.state = "refusing", "up"
            await asyncio.sleep(5)
            async with operation("it"):
                assert await storage.delete_session("s") is True

    run_virtual(play())
