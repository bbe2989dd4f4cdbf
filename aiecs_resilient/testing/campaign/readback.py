"""What each store holds in the end, read on its own, in the form that the checker takes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from ...interface import Backend
from ..history import digest
from .stage import Store

PAGE = 500
MANY = 1_000_000


async def read_back(store: Store, sessions: Iterable[str], folder: Path) -> Path:
    """Read one store, without the chain, into a file for ``check_history.py``."""
    async with store.alone() as backend:
        found = [*await _listed(backend)]
        names = [*dict.fromkeys([*sessions, *found])]  # those written, and whatever else is there
        state: dict[str, object] = {"store": store.name, **await _state(backend, names, set(found))}
    path = folder / f"{store.name}.json"
    path.write_text(json.dumps(state))
    return path


async def _listed(backend: Backend) -> list[str]:
    names: list[str] = []
    after: str | None = None
    while page := await backend.list_sessions(after=after, limit=PAGE):
        names += [session["session_id"] for session in page]
        after = names[-1]
    return names


async def _state(backend: Backend, names: Iterable[str], existing: set[str]) -> dict[str, object]:
    sessions: dict[str, list[dict[str, object]]] = {}
    counters: dict[str, int] = {}
    checkpoints: dict[str, str] = {}
    contexts: dict[str, str] = {}
    for name in names:
        messages = await backend.get_conversation_history(name, 0)
        if messages or name in existing:
            sessions[name] = [
                {"op_id": item["message_id"], "position": item["position"], "content": item["content"]}
                for item in messages
            ]
        session = await backend.get_session(name)
        if session is not None:
            counters[name] = session["request_count"]
        for item in await backend.list_checkpoints(name, MANY):
            checkpoints[f"{name}/{item['checkpoint_id']}"] = digest(item["data"])
        context = await backend.get_task_context(name)
        if context is not None:
            contexts[name] = digest(context)
    return {"sessions": sessions, "counters": counters, "checkpoints": checkpoints, "contexts": contexts}
