"""An operation has one effect, however often and from wherever it is sent."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from aiecs_resilient.backends.redis import RedisStorageBackend
from aiecs_resilient.errors import ConflictError
from aiecs_resilient.operations import operation
from aiecs_resilient.testing.servers import ValkeyServer

COUNT = """
import asyncio, sys
from aiecs_resilient.backends.redis import RedisStorageBackend

async def main(url, prefix):
    async with RedisStorageBackend(url, prefix=prefix) as backend:
        await asyncio.gather(*(
            backend.update_session("s", increment_requests=True, add_processing_time=0.1) for _ in range(25)
        ))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_increments_of_four_processes_all_count(
    server: ValkeyServer, backend: RedisStorageBackend, prefix: str
) -> None:
    """100 concurrent increments from 4 processes count exactly 100, and their time is exact to the microsecond."""
    await backend.create_session("s", "u")
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", COUNT, server.url, prefix, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    for process in processes:
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
    session = await backend.get_session("s")
    assert session is not None
    assert (session["request_count"], session["total_processing_time"]) == (100, 10.0)


async def test_concurrent_repeats_have_one_effect(backend: RedisStorageBackend) -> None:
    """Fifty sendings of one op_id at the same time are one message and one increment."""
    await backend.create_session("s", "u")

    async def send(kind: str) -> bool:
        async with operation(f"op-{kind}"):
            if kind == "message":
                return await backend.add_conversation_message("s", "user", "once")
            return await backend.update_session("s", increment_requests=True)

    answers = await asyncio.gather(*(send(kind) for kind in ["message", "update"] * 50))
    assert set(answers) == {True}
    assert [item["content"] for item in await backend.get_conversation_history("s")] == ["once"]
    session = await backend.get_session("s")
    assert session is not None
    assert session["request_count"] == 1


async def test_a_message_is_recognised_as_long_as_it_lives(backend: RedisStorageBackend) -> None:
    """The same op_id with another text is a conflict, also long after."""
    async with operation("m"):
        await backend.add_conversation_message("s", "user", "one")
    with pytest.raises(ConflictError):
        async with operation("m"):
            await backend.add_conversation_message("s", "user", "two")


async def test_a_long_batch_keeps_its_order(backend: RedisStorageBackend) -> None:
    """1,000 messages to three sessions in one call: each session has its own in the order of the batch."""
    items = [{"session_id": f"s{n % 3}", "role": "user", "content": str(n)} for n in range(1_000)]
    assert await backend.batch_add_conversation_messages(items) == [True] * 1_000
    for session in range(3):
        history = await backend.get_conversation_history(f"s{session}", 0)
        assert [item["content"] for item in history] == [str(n) for n in range(session, 1_000, 3)]
