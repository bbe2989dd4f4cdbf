"""Rows as bytes: what a key's trees hold, with large values outside of them.

A value over :data:`LARGE_BYTES` lies in an object of its own and the row holds a :class:`Large` in its place, which
passes for ``bytes`` or ``str`` through the engine, so that comparing two stamps never fetches a checkpoint.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from ...codec import decode, encode
from ...errors import DataCorruptionError
from ...records import SessionRow
from .._engine import RecordRow, ValueRow

LARGE_BYTES = 8 * 1024
_UNLIMITED = 2**62

# One byte names the table; its keys follow.
MESSAGES = b"m"  # stamp op_id
RECORDS = b"r"  # op_id
TIMES = b"t"  # stamp op_id, of every record
MARKS = b"k"  # stamp op_id, of records with an open mark
SESSIONS = b"s"  # incarnation
CONTEXTS = b"x"  # stamp op_id
CHECKPOINTS = b"c"  # ns, id; pruned ones too
LATEST = b"d"  # ns, stamp op_id -> id, of those that are there
WRITES = b"w"  # ns, id, task
TABLES = (MESSAGES, RECORDS, TIMES, MARKS, SESSIONS, CONTEXTS, CHECKPOINTS, LATEST, WRITES)


class Large(bytes):
    """Stands for bytes (or text) that lie in an object of their own."""

    id: str
    text: bool

    def __new__(cls, id: str, text: bool) -> Large:
        made = super().__new__(cls)
        made.id, made.text = id, text
        return made

    def __reduce__(self) -> tuple[type[Large], tuple[str, bool]]:
        return Large, (self.id, self.text)


Stage = Callable[[bytes], str]
"""Takes a large value and gives the id of the object that will hold it."""


def dump(value: Any, stage: Stage) -> bytes:
    """A row as bytes; what is large in it is given to ``stage``."""
    return encode(_lean(value, stage), "row", limit=_UNLIMITED)


def _lean(value: Any, stage: Stage) -> Any:
    raw: Any = value  # as it came: checkers narrow `value` to containers of unknown items
    if isinstance(value, Large):
        return (value.id, value.text)
    if isinstance(value, bytes) and len(value) > LARGE_BYTES:
        return (stage(value), False)
    if (
        isinstance(value, str)
        and len(value) * 4 > LARGE_BYTES
        and len(encoded := value.encode()) > LARGE_BYTES
    ):
        return (stage(encoded), True)
    if isinstance(value, dict):
        return {name: _lean(item, stage) for name, item in raw.items()}
    if isinstance(value, list):
        return [_lean(item, stage) for item in raw]
    return value


def load(data: bytes) -> Any:
    """What :func:`dump` was given, with a :class:`Large` for each large value."""
    return _full(decode(data, "row"))


def _full(value: Any) -> Any:
    raw: Any = value
    if isinstance(value, tuple):
        return Large(*raw)
    if isinstance(value, dict):
        return {name: _full(item) for name, item in raw.items()}
    if isinstance(value, list):
        return [_full(item) for item in raw]
    return value


def large_in(value: Any) -> list[Large]:
    """All large values of a row."""
    raw: Any = value
    if isinstance(value, Large):
        return [value]
    if isinstance(value, dict):
        return [found for item in raw.values() for found in large_in(item)]
    if isinstance(value, list):
        return [found for item in raw for found in large_in(item)]
    return []


def materialize(value: Any, fetch: Callable[[Large], bytes]) -> Any:
    """The same with every large value in its place."""
    raw: Any = value
    if isinstance(value, Large):
        data = fetch(value)
        return data.decode() if value.text else data
    if isinstance(value, dict):
        return {name: materialize(item, fetch) for name, item in raw.items()}
    if isinstance(value, list):
        return [materialize(item, fetch) for item in raw]
    return value


# ---------------------------------------------------------------------- keys

_STAMP = struct.Struct(">Q")
BEHIND = b"\xff" * 9  # behind every key of a table


def stamped(stamp: int, op_id: str = "") -> bytes:
    """A key that sorts by (stamp, op_id); without op_id, below every key of that stamp."""
    return _STAMP.pack(stamp) + op_id.encode()


def stamp_in(key: bytes) -> tuple[int, str]:
    """What :func:`stamped` was given."""
    return _STAMP.unpack_from(key)[0], key[_STAMP.size :].decode()


def joined(*parts: str) -> bytes:
    """Several ids as one key: each with its length, so that no border can move."""
    encoded = [part.encode() for part in parts]
    return b"".join(len(part).to_bytes(2, "big") + part for part in encoded)


def above(prefix: bytes) -> bytes:
    """The end of the range of keys that begin with this prefix."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else BEHIND


# ---------------------------------------------------------------------- rows


def record_value(row: RecordRow) -> list[Any]:
    """A record as a row."""
    return [
        row.kind,
        row.stamp,
        row.rank,
        row.home,
        row.marked,
        row.fingerprint,
        row.occurred_at,
        row.answer,
        None if row.effect is None else dict(row.effect),
        row.expires_at,
        row.format,
    ]


def record_row(op_id: str, value: list[Any]) -> RecordRow:
    """What :func:`record_value` was given."""
    kind, stamp, rank, home, marked, fingerprint, occurred_at, answer, effect, expires_at, form = value
    return RecordRow(
        op_id=op_id,
        kind=kind,
        stamp=stamp,
        rank=rank,
        home=home,
        marked=marked,
        fingerprint=fingerprint,
        occurred_at=occurred_at,
        answer=answer,
        effect=effect,
        expires_at=expires_at,
        format=form,
    )


def dump_session(row: SessionRow, stage: Stage) -> bytes:
    """A session's incarnation as a row. Status and owner always stand in it: the indexes need them."""
    fields = {
        name: [stamp, op_id, value if name in ("status", "user_id") else _lean(value, stage)]
        for name, (stamp, op_id, value) in row.fields.items()
    }
    value = [
        row.created,
        row.user_id,
        _lean(row.metadata, stage),
        row.created_at,
        row.requests,
        row.time_us,
        row.errors,
        fields,
        None if row.ended is None else list(row.ended),
        list(row.touched),
    ]
    return encode(value, "row", limit=_UNLIMITED)


def session_row(inc: str, value: list[Any]) -> SessionRow:
    """What :func:`dump_session` made, loaded."""
    created, user_id, metadata, created_at, requests, time_us, errors, fields, ended, touched = value
    return SessionRow(
        inc=inc,
        created=created,
        user_id=user_id,
        metadata=metadata,
        created_at=created_at,
        requests=requests,
        time_us=time_us,
        errors=errors,
        fields={name: (held[0], held[1], held[2]) for name, held in fields.items()},
        ended=None if ended is None else (ended[0], ended[1], ended[2]),
        touched=(touched[0], touched[1]),
    )


def value_row(value: list[Any], body: Mapping[str, Any] | None) -> ValueRow:
    """A checkpoint or a task's writes: stamp, op_id and time stand first in their rows."""
    stamp, op_id, occurred_at = value[:3]
    return ValueRow(stamp, op_id, occurred_at, body)


def checked(value: Any, length: int) -> list[Any]:
    """A row of this many fields."""
    if not isinstance(value, list) or len(value) != length:  # pyright: ignore[reportUnknownArgumentType]
        raise DataCorruptionError(
            "a stored row has a form that is not known; was it written by a newer version?"
        )
    return value  # pyright: ignore[reportUnknownVariableType]
