"""Thousands of hostile ids with data of their own, read back one by one."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from aiecs_resilient.backends.objectstore import ObjectStorageBackend
from aiecs_resilient.testing.contract import HOSTILE_IDS

# All 5,000 on each: AIECS_HOSTILE_IDS=5000 (moto takes a minute for them).
HOW_MANY = {"file": 5_000, "gs": 1_000, "s3": 250}


def _ids(count: int) -> list[str]:
    chooser = random.Random(11)
    alphabet = "aAbBäÄ:{}*/.%\\\n\x00\x1beh0_é😀İıſ~?#&+ '\"<>|"
    made = dict.fromkeys(HOSTILE_IDS)
    while len(made) < count:
        length = chooser.choice([1, 2, 3, 5, 9, 60, 300, 512])
        made["".join(chooser.choices(alphabet, k=length))] = None
    return list(made)[:count]


@pytest.mark.parametrize("scheme", HOW_MANY)
async def test_each_keeps_its_own(scheme: str, make: Callable[[str], dict[str, Any]]) -> None:
    """As session, thread, checkpoint, task and user: each reads back what was written under it, and nothing else."""
    ids = _ids(int(os.environ.get("AIECS_HOSTILE_IDS", HOW_MANY[scheme])))
    async with ObjectStorageBackend(**make(scheme)) as storage:
        for start in range(0, len(ids), 500):
            some = ids[start : start + 500]
            await storage.batch_create_sessions([{"session_id": id, "user_id": id} for id in some])
            await storage.batch_add_conversation_messages(
                [{"session_id": id, "role": "user", "content": id} for id in some]
            )
        for id in ids[::25]:
            await storage.store_checkpoint(id, id, {"id": id})
            await storage.put_writes(id, id, id, [(id, 1)])
        storage._loader.clear()
        for start in range(0, len(ids), 500):
            some = ids[start : start + 500]
            for id, session in zip(some, await storage.batch_get_sessions(some), strict=True):
                assert session is not None
                assert (session["session_id"], session["user_id"]) == (id, id)
        for id in ids[::5]:
            assert [message["content"] for message in await storage.get_conversation_history(id, 0)] == [id]
        for id in ids[::25]:
            assert [session["session_id"] for session in await storage.list_sessions(user_id=id)] == [id]
            checkpoint = await storage.get_checkpoint(id)
            assert checkpoint is not None
            assert (checkpoint["checkpoint_id"], checkpoint["data"]) == (id, {"id": id})
            assert await storage.get_writes(id, id) == [(id, 1)]
        listed = list[str]()
        while page := await storage.list_sessions(after=listed[-1] if listed else None, limit=500):
            listed += [session["session_id"] for session in page]
        assert len(listed) == len(ids)
        assert set(listed) == set(ids)
