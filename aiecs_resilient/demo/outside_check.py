"""What a store holds, as it was read back without the library, in a form that can be compared.

``outside_postgresql`` and ``outside_redis`` fill it with plain SQL and plain Redis commands. Nothing of this package is
imported in the three but the names under which things are compared: what is stored is readable by anybody.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Final, TypedDict

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
