"""Rows of SQLite's tables as the shapes that travel, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...codec import decode, encode
from ...errors import DataCorruptionError
from ...records import Mutation, SessionRow
from .._engine import RecordRow

Row = tuple[Any, ...]  # Any: the driver's border

_UNLIMITED = 2**62
_ANSWERS = {True: encode(True, "answer"), False: encode(False, "answer")}
_PLAIN_ANSWERS = {data: answer for answer, data in _ANSWERS.items()}


def pack_answer(answer: Any) -> bytes:
    """Nearly always True or False."""
    return _ANSWERS[answer] if isinstance(answer, bool) else encode(answer, "answer", limit=_UNLIMITED)


def unpack_answer(data: bytes) -> Any:
    """What :func:`pack_answer` was given."""
    return _PLAIN_ANSWERS[data] if data in _PLAIN_ANSWERS else decode(data, "answer")


def pack_effect(effect: Mapping[str, Any] | None) -> bytes | None:
    """None stays NULL: nothing to replay."""
    return None if effect is None else encode(dict(effect), "effect", limit=_UNLIMITED)


def unpack_effect(data: bytes | None) -> Mapping[str, Any] | None:
    """What :func:`pack_effect` was given."""
    if data is None:
        return None
    effect = decode(data, "effect")
    if not isinstance(effect, dict):
        raise DataCorruptionError("a stored effect is no map; it is left as it is")
    return effect  # pyright: ignore[reportUnknownVariableType]


def record_row(op_id: str, row: Row) -> RecordRow:
    """From ``load_record``."""
    kind, stamp, rank, home, marked, fingerprint, occurred_at, answer, effect, expires_at, form = row
    return RecordRow(
        op_id=op_id,
        kind=kind,
        stamp=stamp,
        rank=rank,
        home=home,
        marked=bool(marked),
        fingerprint=fingerprint,
        occurred_at=occurred_at,
        answer=unpack_answer(answer),
        effect=unpack_effect(effect),
        expires_at=expires_at,
        format=form,
    )


def session_row(row: Row) -> SessionRow:
    """From any statement that selects a session's columns in the order of the table."""
    (inc, created, user_id, metadata, created_at, requests, time_us, errors, fields) = row[:9]
    ended_stamp, ended_op, ended_status, touched, touched_at = row[9:]
    return SessionRow(
        inc=inc,
        created=created,
        user_id=user_id,
        metadata=metadata,
        created_at=created_at,
        requests=requests,
        time_us=time_us,
        errors=errors,
        fields={name: (stamp, op, value) for name, (stamp, op, value) in decode(fields, "fields").items()},
        ended=None if ended_stamp is None else (ended_stamp, ended_op, ended_status),
        touched=(touched, touched_at),
    )


def session_values(row: SessionRow) -> Row:
    """For ``save_session``, behind the key."""
    return (
        row.inc,
        row.created,
        row.user_id,
        row.metadata,
        row.created_at,
        row.requests,
        row.time_us,
        row.errors,
        encode({name: list(held) for name, held in row.fields.items()}, "fields", limit=_UNLIMITED),
        *(row.ended or (None, None, None)),
        *row.touched,
    )


def replay(key: str, op_id: str, record: RecordRow, effect: Mapping[str, Any]) -> Mutation:
    """A record as its peer has to replay it."""
    return Mutation(
        key=key,
        op_id=op_id,
        kind=record.kind,
        body=effect,
        fingerprint=record.fingerprint,
        occurred_at=record.occurred_at,
        stamp=record.stamp,
        replay=True,
        rank=record.rank,
        home=record.home,
        expires_at=record.expires_at,
        answer=record.answer,
        format=record.format,
    )


def listed_record(columns: Sequence[Any]) -> tuple[str, RecordRow]:
    """From the statements that read records, which leave out ``marked``."""
    op_id, kind, stamp, rank, home, fingerprint, occurred_at, answer, effect, expires_at, form = columns
    facts = (kind, stamp, rank, home, False, fingerprint, occurred_at, answer, effect, expires_at, form)
    return op_id, record_row(op_id, facts)
