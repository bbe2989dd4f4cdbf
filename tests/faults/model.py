"""What a storage should answer, said once more with plain dicts and lists, and nothing of the library.

Order is the order of the calls, identity is a dict of answers. It knows no stamps, no marks and no stores.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass
class Key:
    """Everything under one id."""

    session: Json | None = None
    ended: bool = False
    messages: list[tuple[str, str, str, Json]] = field(default_factory=list)  # op_id, role, content, metadata
    contexts: list[Any] = field(default_factory=list)
    checkpoints: dict[str, tuple[Any, Json]] = field(default_factory=dict)  # in the order of storing
    writes: dict[tuple[str, str], list[tuple[Any, ...]]] = field(
        default_factory=dict
    )  # in the order of putting


class Model:
    """The reference. Each write takes the identity under which it is made."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}
        self.answers: dict[tuple[str, str], tuple[object, Any]] = {}

    def key(self, key: str) -> Key:
        return self.keys.setdefault(key, Key())

    def create(self, key: str, user: str, metadata: Json) -> None:
        here = self.key(key)
        here.ended = False
        here.session = {
            "session_id": key,
            "user_id": user,
            "status": "active",
            "metadata": metadata,
            "request_count": 0,
            "total_processing_time": 0.0,
            "error_count": 0,
        }

    def update(self, key: str, updates: Json, requests: bool, seconds: float, error: bool) -> bool:
        here = self.key(key)
        if here.session is None or (here.ended and "status" in updates):
            return False
        here.session |= copy.deepcopy(updates)
        here.session["request_count"] += requests
        here.session["total_processing_time"] = round(here.session["total_processing_time"] + seconds, 6)
        here.session["error_count"] += error
        return True

    def end(self, key: str, status: str) -> bool:
        here = self.key(key)
        if here.session is None:
            return False
        here.ended = True
        here.session["status"] = status
        return True

    def delete_session(self, key: str) -> bool:
        here = self.key(key)
        found = here.session is not None or bool(here.messages) or bool(here.contexts)
        here.session, here.ended = None, False
        here.messages.clear()
        here.contexts.clear()
        return found

    def append(self, key: str, op_id: str, role: str, content: str, metadata: Json) -> bool:
        self.key(key).messages.append((op_id, role, content, metadata))
        return True

    def store_context(self, key: str, context: Any) -> bool:
        self.key(key).contexts.append(context)
        return True

    def checkpoint(self, key: str, id: str, data: Json, metadata: Json) -> bool:
        here = self.key(key)
        here.checkpoints.pop(id, None)
        here.checkpoints[id] = (data, metadata)
        return True

    def put_writes(self, key: str, id: str, task: str, writes: list[tuple[Any, ...]]) -> bool:
        here = self.key(key)
        here.writes.pop((id, task), None)
        here.writes[id, task] = writes
        return True

    def prune(self, key: str, keep: int) -> int:
        here = self.key(key)
        gone = list(here.checkpoints)[: max(0, len(here.checkpoints) - keep)]
        for id in gone:
            del here.checkpoints[id]
            here.writes = {place: value for place, value in here.writes.items() if place[0] != id}
        return len(gone)

    def delete_thread(self, key: str) -> bool:
        here = self.key(key)
        found = bool(here.checkpoints) or bool(here.writes)
        here.checkpoints.clear()
        here.writes.clear()
        return found

    def view(self, key: str) -> Json:
        """Everything that can be read under one id, without times."""
        here = self.key(key)
        newest = list(reversed(here.checkpoints.items()))
        ids = list(dict.fromkeys([*here.checkpoints, *(id for id, _task in here.writes)]))
        return {
            "session": copy.deepcopy(here.session),
            "messages": [list(message) for message in here.messages],
            "context": here.contexts[-1] if here.contexts else None,
            "contexts": list(reversed(here.contexts))[:3],
            "latest": newest[0][0] if newest else None,
            "checkpoints": [[id, data, metadata] for id, (data, metadata) in newest],
            "writes": {
                id: [write for place, value in here.writes.items() if place[0] == id for write in value]
                for id in ids
            },
        }
