"""The contract of a store inside a namespace: what a tenant's name in the keys changes, and nothing else."""

from __future__ import annotations

from typing import ClassVar

import pytest

from aiecs_resilient.codec import encode_key
from aiecs_resilient.errors import InvalidValueError
from aiecs_resilient.interface import Backend
from aiecs_resilient.testing.contract import HOSTILE_IDS, StorageContract


class NamespacedContract(StorageContract):
    """For chains with the layer ``namespace`` and this tenant."""

    tenant: ClassVar[str] = "a:b"

    async def test_every_id_keeps_its_own_data(self, storage: Backend) -> None:
        """Overridden: the tenant's name takes part of the 512 characters. What does not fit is refused, the rest holds."""
        for id in HOSTILE_IDS:
            if len(id) > 512 - len(f"3:{self.tenant}:"):
                with pytest.raises(InvalidValueError):
                    await storage.create_session(id, id)
                continue
            await storage.create_session(id, id)
            await storage.add_conversation_message(id, "user", id)
        for id in HOSTILE_IDS:
            if len(id) <= 512 - len(f"3:{self.tenant}:"):
                session = await storage.get_session(id)
                assert session is not None
                assert (session["session_id"], session["user_id"]) == (id, id)
                assert [item["content"] for item in await storage.get_conversation_history(id)] == [id]

    async def test_pages_cover_all_sessions_once(self, storage: Backend) -> None:
        """Overridden: the order is that of the keys with the tenant in them, which differs for ids that are hashed."""
        ids = [f"{prefix}-{n}" for n in range(3) for prefix in ("b", "é", "😀", "\x00", "\x1b", "x" * 300)]
        await storage.batch_create_sessions([{"session_id": id, "user_id": "mine"} for id in ids])
        for page in (1, 2, 100):
            seen: list[str] = []
            while found := await storage.list_sessions(
                user_id="mine", after=seen[-1] if seen else None, limit=page
            ):
                seen += [session["session_id"] for session in found]
            assert seen == sorted(ids, key=lambda id: encode_key(f"3:{self.tenant}:{id}").encode())
