"""Concurrency and cancellation: nobody fails because others are there, and a cancelled call leaves nothing behind (C16, C17)."""

from __future__ import annotations

import asyncio
import random

import pytest

from ...interface import Backend
from ._base import ContractBase, contents, fresh, named


class ConcurrencyContract(ContractBase):
    """Many at once, and some of them cancelled."""

    async def test_more_calls_than_connections_wait(self, storage: Backend) -> None:
        """Three hundred calls at once are all answered, and answered truly."""
        keys = [fresh() for _ in range(self.concurrency)]

        async def one(key: str) -> None:
            created = await storage.create_session(key, key)
            assert await storage.add_conversation_message(key, "user", key) is True
            assert await storage.get_session(key) == created
            assert contents(await storage.get_conversation_history(key)) == [key]
            assert await storage.store_checkpoint(key, key, {"key": key}) is True
            checkpoint = await storage.get_checkpoint(key)
            assert checkpoint is not None
            assert checkpoint["data"] == {"key": key}

        await asyncio.gather(*(one(key) for key in keys))

    async def test_one_reads_what_one_wrote(self, storage: Backend) -> None:
        """A read after an acknowledgement sees it, whatever others are doing."""
        key = fresh()
        await storage.create_session(key, "u")
        stop = asyncio.Event()

        async def noise() -> None:
            while not stop.is_set():
                await storage.get_conversation_history(key, 5)
                await storage.update_session(key, increment_requests=True)

        noises = [asyncio.ensure_future(noise()) for _ in range(5)]
        try:
            for n in range(20):
                await storage.add_conversation_message(key, "user", f"m{n}")
                assert contents(await storage.get_conversation_history(key, 1)) == [f"m{n}"]
                await storage.update_session(key, {"n": n})
                session = await storage.get_session(key)
                assert session is not None
                assert session["n"] == n
        finally:
            stop.set()
            await asyncio.gather(*noises)

    @pytest.mark.parametrize("seed", [1, 2, 3])
    async def test_a_cancelled_write_has_an_outcome(self, storage: Backend, seed: int) -> None:
        """Cancelled anywhere: "applied" means it is there; repeated under its op_id it is there exactly once."""
        chooser = random.Random(seed)  # noqa: S311  reproducible, not secret
        key, run = fresh(), fresh("op")
        for n in range(self.cancellations):
            op_id = f"{run}/{n}"
            task = asyncio.ensure_future(_say(storage, key, f"m{n}", op_id))
            await _steps(chooser)
            task.cancel()
            [result] = await asyncio.gather(task, return_exceptions=True)
            assert result is True or isinstance(result, asyncio.CancelledError)
            outcome = await storage.operation_outcome(key, op_id)
            if result is True:
                assert outcome == "applied"
            if outcome == "applied":
                assert f"m{n}" in contents(await storage.get_conversation_history(key, 0))
            assert await named(op_id, storage.add_conversation_message(key, "user", f"m{n}")) is True
            assert await storage.operation_outcome(key, op_id) == "applied"
        said = contents(await storage.get_conversation_history(key, 0))
        assert sorted(said) == sorted(f"m{n}" for n in range(self.cancellations))

    @pytest.mark.parametrize("seed", [1, 2, 3])
    async def test_cancelled_calls_harm_no_others(self, storage: Backend, seed: int) -> None:
        """Among many calls at once, the cancelled ones count at most once and the others exactly once."""
        chooser = random.Random(seed)  # noqa: S311  reproducible, not secret
        key = fresh()
        await storage.create_session(key, "u")
        calls = [
            asyncio.ensure_future(storage.update_session(key, increment_requests=True))
            for _ in range(self.concurrency)
        ]
        await _steps(chooser)
        for call in chooser.sample(calls, self.concurrency // 2):
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        answered = sum(result is True for result in results)
        assert answered + sum(isinstance(result, asyncio.CancelledError) for result in results) == len(calls)
        await storage.update_session(key, {"after": 1})  # behind whatever a cancelled call left under way
        session = await storage.get_session(key)
        assert session is not None
        assert answered <= session["request_count"] <= len(calls)

    async def test_cancelled_reads_leave_everything_usable(self, storage: Backend) -> None:
        """Reads cancelled at every point: the next calls, as many as there are connections and more, still work."""
        chooser = random.Random(4)  # noqa: S311  reproducible, not secret
        key = fresh()
        await storage.create_session(key, "u")
        for _ in range(self.cancellations):
            reads = [asyncio.ensure_future(storage.get_session(key)) for _ in range(5)]
            await _steps(chooser)
            for read in reads:
                read.cancel()
            await asyncio.gather(*reads, return_exceptions=True)
        async with asyncio.timeout(30):
            found = await asyncio.gather(*(storage.get_session(key) for _ in range(self.concurrency)))
        assert all(session is not None and session["session_id"] == key for session in found)

    async def test_a_call_cancelled_before_it_starts_does_nothing(self, storage: Backend) -> None:
        """A task that never ran has written nothing."""
        key = fresh()
        task = asyncio.ensure_future(storage.create_session(key, "u"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await storage.get_session(key) is None


async def _say(storage: Backend, key: str, text: str, op_id: str) -> bool:
    return await named(op_id, storage.add_conversation_message(key, "user", text))


async def _steps(chooser: random.Random) -> None:
    """Let the loop run for a few turns, or for up to a few milliseconds."""
    if chooser.random() < 0.7:
        for _ in range(chooser.randint(0, 12)):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(chooser.random() * 0.004)
