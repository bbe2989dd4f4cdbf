"""Mutations, records and rows as bytes: what ``lua/*.lua`` packs and unpacks, seen from this side.

Numbers travel as big-endian doubles, which hold stamps (below 2^53) exactly and are what Lua computes with. Lists of byte
strings are framed, each preceded by its length. Values are MessagePack that only this side reads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ormsgpack

from ...errors import (
    ConflictError,
    DataCorruptionError,
    InvalidValueError,
    StaleRouteError,
    StorageError,
    UnsupportedOperationError,
)
from ...records import (
    FORMAT,
    Applied,
    CheckpointRow,
    ContextRow,
    Kind,
    MessageRow,
    Mutation,
    Scope,
    SessionRow,
)
from .._engine import nothing_to_write_to
from ._keys import unordered

_KINDS: tuple[str, ...] = (
    Kind.CREATE,
    Kind.UPDATE,
    Kind.END,
    Kind.MESSAGE,
    Kind.CONTEXT,
    Kind.CHECKPOINT,
    Kind.WRITES,
    Kind.PRUNE,
    Kind.DELETE,
)
CODES = {kind: code for code, kind in enumerate(_KINDS, 1)}
"""Part of the stored format; lua/record.lua has the same."""

MAX_NUMBER = 2**53 - 1
_REPLAY, _MARK, _HAS, _EXPECTED, _MUST_ACT = 1, 2, 4, 8, 16
_MARKED, _HAS_EFFECT, _HAS_BODY = 1, 2, 4
_MUTATION = struct.Struct(">BBH8d")
_RECORD = struct.Struct(">BBH5d")
_HEAD = struct.Struct(">Bdd")
_DOUBLES = struct.Struct(">dd")
_DOUBLE = struct.Struct(">d")
_SETTER = struct.Struct(">dH")
_SIZE = struct.Struct(">I")

Reply = Any  # Any: what the driver's parser makes of a script's answer


def _load(data: bytes) -> Any:
    try:
        return ormsgpack.unpackb(data)
    except (ValueError, TypeError) as error:
        raise DataCorruptionError(f"a stored row cannot be read ({error}); it is left as it is") from error


def frame(parts: Iterable[bytes]) -> bytes:
    """One byte string from many."""
    return b"".join(_SIZE.pack(len(part)) + part for part in parts)


def unframe(data: bytes) -> list[bytes]:
    """What :func:`frame` was given."""
    parts: list[bytes] = []
    at = 0
    while at < len(data):
        (size,) = _SIZE.unpack_from(data, at)
        at += 4
        parts.append(data[at : at + size])
        at += size
    return parts


# ---------------------------------------------------------------------- bodies

_Body = tuple[str, str, str, bytes]  # a, b, c, body


def _pack_body(kind: str, body: Mapping[str, Any]) -> _Body:
    match kind:
        case Kind.CREATE:
            return "", "", "", ormsgpack.packb([body["user_id"], body["metadata"]])
        case Kind.UPDATE:
            parts = [str(body[name]).encode() for name in ("requests", "time_us", "errors")]
            for name, value in body["fields"].items():
                parts += (name.encode(), value)
            return body.get("inc", ""), "", "", frame(parts)
        case Kind.END:
            return body.get("inc", ""), "", "", body["status"].encode()
        case Kind.MESSAGE:
            return "", "", "", ormsgpack.packb([body["role"], body["content"], body["metadata"]])
        case Kind.CONTEXT:
            return "", "", "", body["value"]
        case Kind.CHECKPOINT:
            packed = ormsgpack.packb([body["data"], body["metadata"], body["parent"]])
            return body["ns"], body["id"], "", packed
        case Kind.WRITES:
            return body["ns"], body["id"], body["task"], ormsgpack.packb([body["path"], body["value"]])
        case Kind.PRUNE if "ids" in body:
            return body["ns"], "", "", frame(id.encode() for id in body["ids"])
        case Kind.PRUNE:
            return body["ns"], "", "", b"%d" % min(body["keep"], MAX_NUMBER)
        case _:
            return body["scope"], "", "", b"%d" % body.get("before", 0)


def _unpack_body(kind: str, a: str, b: str, c: str, body: bytes) -> dict[str, Any]:
    match kind:
        case Kind.CREATE:
            user_id, metadata = _load(body)
            return {"user_id": user_id, "metadata": metadata}
        case Kind.UPDATE:
            requests, time_us, errors, *rest = unframe(body)
            fields = {name.decode(): value for name, value in zip(rest[::2], rest[1::2], strict=True)}
            return {"fields": fields, "requests": int(requests), "time_us": int(time_us),
                    "errors": int(errors), "inc": a}  # fmt: skip
        case Kind.END:
            return {"status": body.decode(), "inc": a}
        case Kind.MESSAGE:
            role, content, metadata = _load(body)
            return {"role": role, "content": content, "metadata": metadata}
        case Kind.CONTEXT:
            return {"value": body}
        case Kind.CHECKPOINT:
            data, metadata, parent = _load(body)
            return {"ns": a, "id": b, "data": data, "metadata": metadata, "parent": parent}
        case Kind.WRITES:
            path, value = _load(body)
            return {"ns": a, "id": b, "task": c, "path": path, "value": value}
        case Kind.PRUNE:
            return {"ns": a, "ids": [id.decode() for id in unframe(body)]}
        case _:
            return {"scope": a}


# ---------------------------------------------------------------------- mutations out, answers in


def pack_mutation(mutation: Mutation, expires_at: int) -> list[bytes]:
    """The nine arguments that lua/apply.lua takes per mutation."""
    code = CODES.get(mutation.kind, 0)  # the script refuses 0, after what it checks before
    dead: Mapping[str, int] = mutation.body.get("dead", {})
    has = bool(mutation.body.keys() - {"dead"})
    a, b, c, body = _pack_body(mutation.kind, mutation.body) if has and code else ("", "", "", b"")
    flags = _REPLAY * mutation.replay | _MARK * mutation.mark | _HAS * has | _MUST_ACT * mutation.must_act
    expected = mutation.expected_version
    if expected is not None:
        flags |= _EXPECTED
        expected = max(-MAX_NUMBER, min(expected, MAX_NUMBER))  # no stamp is beyond
    if abs(mutation.occurred_at) > MAX_NUMBER:
        raise InvalidValueError(f"occurred_at must be microseconds since 1970, not {mutation.occurred_at}")
    head = _MUTATION.pack(
        code,
        flags,
        min(mutation.format, 65_535),
        mutation.rank,
        mutation.epoch,
        mutation.stamp,
        mutation.occurred_at,
        expires_at,
        expected or 0,
        dead.get(Scope.SESSION, 0),
        dead.get(Scope.THREAD, 0),
    )
    answer = ormsgpack.packb(mutation.answer) if mutation.replay else b""
    return [
        head,
        mutation.op_id.encode(),
        mutation.home.encode(),
        mutation.fingerprint,
        answer,
        a.encode(),
        b.encode(),
        c.encode(),
        body,
    ]


def unpack_answer(
    mutation: Mutation, expires_at: int, reply: Reply, max_age_us: int
) -> Applied | StorageError:
    """What lua/apply.lua says of one mutation."""
    effect: Mapping[str, Any] | None
    match reply:
        case [0, *refusal]:
            return _refusal(mutation, refusal, max_age_us)
        case [2, record, value]:
            return _applied_before(mutation, record, value)
        case [1]:
            stamp, answer, effect = mutation.stamp, mutation.answer, mutation.body
        case [1, stamp, answer, -1]:
            answer, effect = _load(answer), None
        case [1, stamp, answer, 1, a, ids, dead_session, dead_thread]:
            answer = _load(answer)
            effect = _fresh_effect(mutation, a, ids) | _dead(dead_session, dead_thread)
        case _:
            raise AssertionError(f"apply.lua answered {reply!r}")
    return Applied(
        stamp=stamp,
        rank=mutation.rank,
        answer=answer,
        effect=effect,
        occurred_at=mutation.occurred_at,
        expires_at=expires_at,
    )


def _fresh_effect(mutation: Mutation, a: bytes, ids: bytes) -> dict[str, Any]:
    match mutation.kind:
        case Kind.UPDATE | Kind.END:
            return {**mutation.body, "inc": a.decode()}
        case Kind.PRUNE:
            return _unpack_body(Kind.PRUNE, a.decode(), "", "", ids)
        case Kind.DELETE:
            return {"scope": a.decode()}
        case _:
            return dict(mutation.body)


def _dead(session: float, thread: float) -> dict[str, Any]:
    dead = {scope: int(upto) for scope, upto in ((Scope.SESSION, session), (Scope.THREAD, thread)) if upto}
    return {"dead": dead} if dead else {}


def _refusal(mutation: Mutation, refusal: Sequence[Any], max_age_us: int) -> StorageError:
    match refusal:
        case [b"route", epoch, leader]:
            return StaleRouteError(
                f"routed by epoch {mutation.epoch} to {mutation.home!r}, but this store is at epoch {int(epoch)}, "
                f"led by {leader.decode()!r}"
            )
        case [b"format"]:
            return UnsupportedOperationError(
                f"record of format {mutation.format}, this version knows {FORMAT}: update this process"
            )
        case [b"kind"]:
            return InvalidValueError(f"unknown kind of mutation {mutation.kind!r}")
        case [b"reused"]:
            return ConflictError(
                f"op_id {mutation.op_id!r} was used before for another payload; mint a new one"
            )
        case [b"old", age]:
            return StaleRouteError(
                f"the write was minted {int(age) / 1e6:.0f} s ago, over the limit of {max_age_us / 1e6:.0f} s: "
                "its identity may have been forgotten; issue it anew",
                transient=False,
            )
        case [b"nothing"]:
            return nothing_to_write_to(mutation)
        case [b"version", version]:
            return ConflictError(
                f"{mutation.key!r} is at version {int(version)}, expected_version was {mutation.expected_version}: "
                "read it again and decide anew"
            )
        case _:
            raise AssertionError(f"apply.lua refused with {refusal!r}")


class Record:
    """One record as stored, and the value it refers to."""

    __slots__ = ("answer", "effect", "expires_at", "fingerprint", "format", "home", "kind", "marked",
                 "occurred_at", "rank", "stamp")  # fmt: skip

    def __init__(self, raw: bytes, value: bytes | None) -> None:
        code: int
        flags: int
        code, flags, self.format, rank, stamp, occurred_at, expires_at, _place = _RECORD.unpack_from(raw)
        home, answer, self.fingerprint, a, b, c, dead, body = unframe(raw[_RECORD.size :])
        self.kind: str = _KINDS[code - 1]
        self.marked = bool(flags & _MARKED)
        self.rank, self.stamp = int(rank), int(stamp)
        self.occurred_at, self.expires_at = int(occurred_at), int(expires_at)
        self.home = home.decode()
        self.answer: Any = _load(answer)
        self.effect: dict[str, Any] | None = None
        if flags & _HAS_EFFECT:
            refers = self.kind in (Kind.MESSAGE, Kind.CONTEXT, Kind.CHECKPOINT, Kind.WRITES)
            held = value if refers else body if flags & _HAS_BODY else None
            whole = {} if held is None else _unpack_body(self.kind, a.decode(), b.decode(), c.decode(), held)
            self.effect = whole | (_dead(*_DOUBLES.unpack(dead)) if dead else {})

    def replay(self, key: str, op_id: str) -> Mutation | None:
        """The record as the peer has to replay it."""
        if self.effect is None:
            return None
        return Mutation(
            key=key,
            op_id=op_id,
            kind=self.kind,
            body=self.effect,
            fingerprint=self.fingerprint,
            occurred_at=self.occurred_at,
            stamp=self.stamp,
            replay=True,
            rank=self.rank,
            home=self.home,
            expires_at=self.expires_at,
            answer=self.answer,
            format=self.format,
        )


def _applied_before(mutation: Mutation, raw: bytes, value: bytes | None) -> Applied:
    record = Record(raw, value)
    return Applied(
        stamp=record.stamp,
        rank=record.rank,
        answer=record.answer,
        effect=record.effect,
        occurred_at=record.occurred_at,
        expires_at=record.expires_at,
        duplicate=True,
    )


# ---------------------------------------------------------------------- rows of reads


def number(text: bytes | None) -> int:
    """A number of ours as Redis keeps it; 0 where there is none. Scores may come in exponent form."""
    return 0 if text is None else int(text) if text.isdigit() else int(float(text))


def alive(expires: bytes | None, now_us: int) -> bool:
    """Has this expiry not passed yet? 0 is never."""
    return not 0 < number(expires) <= now_us


def session_row(flat: Sequence[bytes], now_us: int) -> tuple[SessionRow | None, int]:
    """The current incarnation out of an id's hash, unless expired; and the id's clock."""
    held = dict(zip(flat[::2], flat[1::2], strict=True))
    clock = number(held.get(b"clock"))
    current = held.get(b"cur")
    if not current or not alive(held.get(b"se"), now_us):
        return None, clock
    user_id, metadata = _load(held[b"s:body"])
    row = SessionRow(
        inc=current.decode(),
        created=number(held[b"s:created"]),
        user_id=user_id,
        metadata=metadata,
        created_at=number(held[b"s:at"]),
        requests=number(held.get(b"s:requests")),
        time_us=number(held.get(b"s:time")),
        errors=number(held.get(b"s:errors")),
        touched=(number(held.get(b"s:touched")), number(held.get(b"s:seen"))),
    )
    for name, value in held.items():
        if name.startswith(b"f:"):
            row.fields[name[2:].decode()] = _set_by(value)
    if b"s:ended" in held:
        stamp, op_id, status = _set_by(held[b"s:ended"])
        row.ended = (stamp, op_id, status.decode())
    return row, clock


def _set_by(value: bytes) -> tuple[int, str, bytes]:
    stamp, size = _SETTER.unpack_from(value)
    end = _SETTER.size + size
    return int(stamp), value[_SETTER.size : end].decode(), value[end:]


def message_row(member: bytes, score: bytes) -> MessageRow:
    """A member of the zset of messages."""
    op_id, rest = unordered(member)
    role, content, metadata = _load(rest[8:])
    return MessageRow(op_id, number(score), role, content, metadata, int(_DOUBLE.unpack_from(rest)[0]))


def context_row(score: bytes, row: bytes) -> ContextRow:
    """A version of a context: occurred_at, then the value."""
    return ContextRow(number(score), row[8:], int(_DOUBLE.unpack_from(row)[0]))


def checkpoint_row(id_: bytes, head: bytes, body: bytes) -> CheckpointRow:
    """A live checkpoint."""
    _live, stamp, occurred_at = _HEAD.unpack_from(head)
    data, metadata, parent = _load(body)
    return CheckpointRow(id_.decode(), int(stamp), data, metadata, int(occurred_at), parent)


def head_is_live(head: bytes) -> bool:
    """Or is it the tombstone of a pruned checkpoint?"""
    return head[0] == 1


def writes_value(body: bytes) -> bytes:
    """A task's pending writes, as they were put."""
    value: bytes = _load(body)[1]
    return value
