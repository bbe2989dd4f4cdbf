"""Both stores read back without the library: plain SQL and plain Redis commands.

Nothing of this package is imported but the names under which things are compared. What is stored is readable: text as
text, values as MessagePack. The layout is documented where it is made (``backends/sql/postgresql``, ``backends/lua``).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final, TypedDict

import asyncpg
import ormsgpack

from . import names


class Message(TypedDict):
    """``op_id`` is the application's own reference from the metadata, not the library's identity."""

    op_id: str
    position: int
    content: str


@dataclass(slots=True)
class Holding:
    """What one store holds, by the names of :mod:`.names`; digests of values, messages in the order of their position."""

    store: str
    sessions: dict[str, list[Message]] = field(default_factory=lambda: defaultdict[str, list[Message]](list))
    counters: dict[str, int] = field(default_factory=dict[str, int])
    checkpoints: dict[str, str] = field(default_factory=dict[str, str])
    contexts: dict[str, str] = field(default_factory=dict[str, str])
    open_marks: int = 0

    @property
    def messages(self) -> int:
        return sum(len(messages) for messages in self.sessions.values())

    def as_state(self) -> dict[str, object]:
        """In the form of the checker."""
        return {
            "store": self.store,
            "sessions": self.sessions,
            "counters": self.counters,
            "checkpoints": self.checkpoints,
            "contexts": self.contexts,
        }

    def add_session(
        self, session: str, owner: list[object], status: str, requests: int, microseconds: int, errors: int
    ) -> None:
        """A session without a message is one, too."""
        self.sessions[session] = self.sessions[session]
        self.contexts[names.owner(session)] = digest(owner)
        self.contexts[names.status(session)] = digest(status)
        self.counters[names.requests(session)] = requests
        self.counters[names.microseconds(session)] = microseconds
        self.counters[names.errors(session)] = errors

    def add_message(self, session: str, position: int, content: str, metadata: bytes) -> None:
        reference = unpack(metadata).get(names.REFERENCE, "")
        self.sessions[session].append(Message(op_id=reference, position=position, content=content))


_TUPLE: Final = 1  # extension type of MessagePack under which tuples are kept


def unpack(value: bytes) -> Any:
    """A stored value."""
    return ormsgpack.unpackb(value, ext_hook=_extension)


def _extension(tag: int, data: bytes) -> Any:
    if tag != _TUPLE:
        raise ValueError(f"the demo stores no value of extension type {tag}")
    return unpack(data)


def digest(value: object) -> str:
    """As the checker defines it: of a text its UTF-8, of any other value its JSON with sorted keys."""
    text = (
        value
        if isinstance(value, str)
        else json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    )
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


SESSIONS: Final = """
SELECT k.id, coalesce(s.set_owner, s.user_id) AS owner, s.metadata, s.requests, s.time_us, s.errors,
       coalesce(s.ended_status, s.set_status, 'active') AS status
  FROM aiecs.keys k JOIN aiecs.sessions s ON s.key = k.key AND s.inc = k.current_inc
"""
MESSAGES: Final = """
SELECT k.id, r.position, r.content, r.metadata
  FROM aiecs.records r JOIN aiecs.keys k USING (key)
 WHERE r.position IS NOT NULL ORDER BY k.id, r.position, r.op_id
"""
CHECKPOINTS: Final = """
SELECT k.id AS thread, coalesce(c.id_full, c.id) AS id, c.data
  FROM aiecs.checkpoints c JOIN aiecs.keys k USING (key) WHERE c.data IS NOT NULL
"""
WRITES: Final = (
    "SELECT k.id AS thread, w.id, w.task, w.value FROM aiecs.writes w JOIN aiecs.keys k USING (key)"
)
CONTEXTS: Final = """
SELECT DISTINCT ON (c.key) k.id, c.value
  FROM aiecs.contexts c JOIN aiecs.keys k USING (key) ORDER BY c.key, c.stamp DESC, c.op_id DESC
"""
MARKS: Final = "SELECT count(*) FROM aiecs.records WHERE marked"


async def read_postgresql(url: str) -> Holding:
    """Everything in PostgreSQL."""
    held = Holding("PostgreSQL")
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            for row in await connection.fetch(SESSIONS):
                owner = [row["owner"], unpack(row["metadata"])]
                held.add_session(
                    row["id"], owner, row["status"], row["requests"], row["time_us"], row["errors"]
                )
            for row in await connection.fetch(MESSAGES):
                held.add_message(row["id"], row["position"], row["content"], row["metadata"])
            for row in await connection.fetch(CHECKPOINTS):
                held.checkpoints[names.checkpoint(row["thread"], row["id"])] = digest(unpack(row["data"]))
            for row in await connection.fetch(WRITES):
                held.checkpoints[names.writes(row["thread"], row["id"], row["task"])] = digest(
                    unpack(row["value"])
                )
            for row in await connection.fetch(CONTEXTS):
                held.contexts[names.context(row["id"])] = digest(unpack(row["value"]))
            held.open_marks = int(await connection.fetchval(MARKS))
    finally:
        await connection.close()
    return held


async def read_redis(url: str) -> Holding:
    """Everything in Redis or Valkey."""
    raise NotImplementedError(url)
