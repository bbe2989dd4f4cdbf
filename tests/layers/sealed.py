"""What tests of compression and encryption share: something of everything, and a look at what the store really holds."""

from typing import Any

from aiecs_resilient.interface import Backend

TEXT = "all work and no play " * 100


async def fill(storage: Backend, key: str, what: str = TEXT) -> None:
    """One of each kind of value, by every way in."""
    await storage.create_session(key, "user-1", {"m": what})
    await storage.update_session(key, {"custom": what, "status": "paused"}, increment_requests=True)
    await storage.add_conversation_message(key, "user", what, {"m": what})
    await storage.batch_add_conversation_messages(
        [{"session_id": key, "role": "assistant", "content": f"{what}{n}"} for n in range(2)]
    )
    await storage.batch_create_sessions([{"session_id": f"{key}/b", "user_id": "u", "metadata": {"m": what}}])
    await storage.store_checkpoint(key, "c", {"d": what}, {"m": what})
    await storage.put_checkpoint(key, "d", {"d": [what]})
    await storage.put_writes(key, "c", "task", [("channel", what), ("other", 5)])
    await storage.put_writes(key, "c", "more", [("channel", what)])
    await storage.store_task_context(key, {"v": what})
    await storage.store_task_context(key, (what, b"bytes"))


async def read(storage: Backend, key: str) -> list[Any]:
    """Everything, without times and identities."""
    session = await storage.get_session(key)
    assert session is not None
    [listed] = [item for item in await storage.list_sessions(limit=1_000) if item["session_id"] == key]
    assert listed == session
    assert await storage.batch_get_sessions([key, "nobody"]) == [session, None]
    return [
        {name: value for name, value in session.items() if not name.endswith(("_at", "_activity"))},
        (await storage.get_session(f"{key}/b") or {}).get("metadata"),
        [
            (item["role"], item["content"], item["metadata"])
            for item in await storage.get_conversation_history(key)
        ],
        [(item["data"], item["metadata"]) for item in await storage.list_checkpoints(key)],
        (await storage.get_checkpoint(key, "c") or {}).get("data"),
        (await storage.get_checkpoint(key) or {}).get("data"),
        await storage.get_writes(key, "c"),
        await storage.get_task_context(key),
        [item["context"] for item in await storage.list_task_contexts(key)],
    ]
