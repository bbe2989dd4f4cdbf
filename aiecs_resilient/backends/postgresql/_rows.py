"""Between records and rows: what ``aiecs.apply`` takes and gives, and what the reads find.

Values of users stay bytes. What the server has to look into (names of fields, ids, counters) is text or JSON; identities
are bytes, because they must compare as they do in every other store.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ...codec import decode, encode_key, escape_text, unescape_text
from ...errors import (
    ConflictError,
    InvalidValueError,
    StaleRouteError,
    StorageError,
    UnsupportedOperationError,
)
from ...records import FORMAT, Applied, CheckpointRow, Kind, Mutation, SessionRow
from .._engine import nothing_to_write_to

Row = Any  # Any: the driver's records
_PLAIN_FIELDS = ("status", "user_id")  # fields that the server also keeps in readable form, for filters
_DEAD = frozenset({"dead"})


# ---------------------------------------------------------------------- in: one row per mutation, turned into columns


def columns(mutations: Sequence[Mutation], expires_at: Sequence[int]) -> list[list[Any]]:
    """The parallel arrays of ``aiecs.apply``, in the order of its parameters."""
    rows = [_row(mutation, expiry) for mutation, expiry in zip(mutations, expires_at, strict=True)]
    return [list(column) for column in zip(*rows, strict=True)]


def plain(m: Mutation, expires_at: int) -> tuple[str, list[Any]] | None:
    """The query and arguments for a write that is made all the time, a message or a counter; None for all others."""
    if m.format != FORMAT or not m.body or "dead" in m.body or m.must_act:
        return None
    if m.kind == Kind.MESSAGE:
        content = [escape_text(m.body["role"]), escape_text(m.body["content"]), m.body["metadata"]]
        return "append", [*_head(m, expires_at), *content]
    if m.kind == Kind.UPDATE and not m.body["fields"] and m.expected_version is None:
        inc = m.body["inc"].encode() if "inc" in m.body else None
        counts = [m.body[name] for name in ("requests", "time_us", "errors")]
        return "count_up", [*_head(m, expires_at), _json(_update(m.body)), inc, *counts]
    return None


def messages(mutations: Sequence[Mutation], expires_at: Sequence[int]) -> list[Any] | None:
    """The arguments for many messages at once; None if they are not all plain messages under one fence."""
    first = mutations[0]
    route = (first.replay, first.epoch, first.home)
    for m in mutations:
        if (
            m.kind != Kind.MESSAGE
            or m.format != FORMAT
            or not m.body
            or "dead" in m.body
            or (m.replay, m.epoch, m.home) != route
        ):
            return None
    bodies = [m.body for m in mutations]
    return [
        [encode_key(m.key) for m in mutations],
        [escape_text(m.key) for m in mutations],
        [m.op_id.encode() for m in mutations],
        [m.fingerprint for m in mutations],
        [m.occurred_at for m in mutations],
        [m.stamp for m in mutations],
        [m.rank for m in mutations],
        [m.mark for m in mutations],
        expires_at,
        [escape_text(body["role"]) for body in bodies],
        [escape_text(body["content"]) for body in bodies],
        [body["metadata"] for body in bodies],
        first.replay,
        first.epoch,
        escape_text(first.home),
    ]


def _head(m: Mutation, expires_at: int) -> list[Any]:
    return [
        encode_key(m.key),
        escape_text(m.key),
        m.op_id.encode(),
        m.fingerprint,
        m.occurred_at,
        m.stamp,
        m.replay,
        m.rank,
        m.epoch,
        escape_text(m.home),
        m.mark,
        expires_at,
        _json(m.answer) if m.replay else "true",
    ]


def _row(m: Mutation, expires_at: int) -> tuple[Any, ...]:
    whole = not m.replay or bool(m.body.keys() - _DEAD)
    body, role, content, data, metadata = _parts(m.kind, m.body) if whole else ({}, None, None, None, None)
    if "dead" in m.body:
        body["dead"] = m.body["dead"]
    return (
        encode_key(m.key),
        escape_text(m.key),
        m.op_id.encode(),
        m.kind,
        m.fingerprint,
        m.occurred_at,
        m.stamp,
        m.replay,
        m.rank,
        m.epoch,
        escape_text(m.home),
        m.mark,
        m.expected_version,
        expires_at,
        _json(m.answer),
        m.format,
        whole,
        _json(body) if body else None,
        role,
        content,
        data,
        metadata,
        m.must_act,
    )


Parts = tuple[dict[str, Any], str | None, str | None, bytes | None, bytes | None]


def _parts(kind: str, body: Mapping[str, Any]) -> Parts:
    """A command or effect as (JSON, role, content, data, metadata)."""
    match kind:
        case Kind.MESSAGE:
            return {}, escape_text(body["role"]), escape_text(body["content"]), None, body["metadata"]
        case Kind.CREATE:
            return {"user_id": escape_text(body["user_id"])}, None, None, None, body["metadata"]
        case Kind.UPDATE:
            return _update(body), None, None, None, None
        case Kind.END:
            return {"status": escape_text(body["status"]), **_incarnation(body)}, None, None, None, None
        case Kind.CONTEXT:
            return {}, None, None, body["value"], None
        case Kind.CHECKPOINT:
            place = _place(body, "ns", "id")
            return place, None, escape_text(body["parent"]), body["data"], body["metadata"]
        case Kind.WRITES:
            place = _place(body, "ns", "id", "task")
            return place, None, escape_text(body["path"]), body["value"], None
        case Kind.PRUNE if "keep" in body:
            return {**_place(body, "ns"), "keep": body["keep"]}, None, None, None, None
        case Kind.PRUNE:
            ids = [[encode_key(id), _full(id)] for id in body["ids"]]
            return {**_place(body, "ns"), "ids": ids}, None, None, None, None
        case Kind.DELETE:
            return {name: body[name] for name in ("scope", "before") if name in body}, None, None, None, None
        case _:
            return {}, None, None, None, None  # refused by the server, with its name


def _update(body: Mapping[str, Any]) -> dict[str, Any]:
    parts: dict[str, Any] = {name: body[name] for name in ("requests", "time_us", "errors")}
    if body["fields"]:
        parts["fields"] = {
            escape_text(name): b64encode(value).decode() for name, value in body["fields"].items()
        }
        shown = {
            name: escape_text(str(decode(body["fields"][name], name)))
            for name in _PLAIN_FIELDS
            if name in body["fields"]
        }
        if shown:
            parts["shown"] = shown
    return parts | _incarnation(body)


def _incarnation(body: Mapping[str, Any]) -> dict[str, str]:
    return {"inc": str(body["inc"]).encode().hex()} if "inc" in body else {}


def _full(id: str) -> str | None:
    """The id itself, where its key is a hash."""
    text = escape_text(id)
    return None if encode_key(id) == text else text


def _place(body: Mapping[str, Any], *names: str) -> dict[str, Any]:
    place: dict[str, Any] = {name: encode_key(body[name]) for name in names}
    full = {name: text for name in names if (text := _full(body[name])) is not None}
    return place | {"full": full} if full else place


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# ---------------------------------------------------------------------- out: what became of a mutation


def applied(row: Row, m: Mutation) -> Applied | StorageError:
    """One row of ``aiecs.apply``."""
    if row["code"] != "applied":
        return _refusal(row, m)
    stored = _loads(row["effect"])
    effect: Mapping[str, Any] | None
    if row["duplicate"]:
        effect = effect_of(m.kind, stored, row)
    elif m.replay or stored is None:
        effect = m.body if m.replay else None
    else:
        effect = _decided(m, stored)
    return Applied(
        stamp=row["stamp"],
        rank=row["rank"],
        answer=_loads(row["answer"]),
        effect=effect,
        occurred_at=row["occurred_at"],
        expires_at=row["expires_at"],
        duplicate=row["duplicate"],
    )


def _decided(m: Mutation, stored: dict[str, Any]) -> Mapping[str, Any]:
    match m.kind:
        case Kind.PRUNE:
            effect: Mapping[str, Any] = {"ns": m.body["ns"], "ids": _ids(stored)}
        case Kind.DELETE:
            effect = {"scope": stored["scope"]}
        case _ if "inc" in stored:
            effect = {**m.body, "inc": bytes.fromhex(stored["inc"]).decode()}
        case _:
            effect = m.body
    return {**effect, "dead": stored["dead"]} if "dead" in stored else effect


def _refusal(row: Row, m: Mutation) -> StorageError:
    match row["code"]:
        case "route":
            return StaleRouteError(
                f"routed by epoch {m.epoch} to {m.home!r}, but this store is at epoch {row['stamp']}, "
                f"led by {unescape_text(row['detail'])!r}"
            )
        case "format":
            return UnsupportedOperationError(
                f"record of format {m.format}, this version knows {FORMAT}: update this process"
            )
        case "nothing":
            return nothing_to_write_to(m)
        case "payload":
            return ConflictError(f"op_id {m.op_id!r} was used before for another payload; mint a new one")
        case "version":
            return ConflictError(
                f"{m.key!r} is at version {row['detail']}, expected_version was {m.expected_version}: "
                "read it again and decide anew"
            )
        case "old":
            return StaleRouteError(
                f"the write was minted {int(row['detail']) / 1e6:.0f} s ago, over the limit: its identity may have "
                "been forgotten; issue it anew",
                transient=False,
            )
        case _:
            return InvalidValueError(f"unknown kind of mutation {m.kind!r}")


# ---------------------------------------------------------------------- out: effects as they are kept


def effect_of(kind: str, stored: dict[str, Any] | None, row: Row) -> dict[str, Any] | None:
    """What the peer has to replay: a stored effect with the parts of its row. None for nothing."""
    if stored is None:
        return None
    dead = {"dead": stored["dead"]} if "dead" in stored else {}
    return {**_effect(kind, stored, row), **dead} if row["whole"] else dead


def _effect(kind: str, stored: dict[str, Any], row: Row) -> dict[str, Any]:
    match kind:
        case Kind.MESSAGE:
            return {
                "role": unescape_text(row["role"]),
                "content": unescape_text(row["content"]),
                "metadata": row["metadata"],
            }
        case Kind.CREATE:
            return {"user_id": unescape_text(stored["user_id"]), "metadata": row["metadata"]}
        case Kind.UPDATE:
            fields = stored.get("fields", {})
            return {
                **{name: stored[name] for name in ("requests", "time_us", "errors")},
                "fields": {unescape_text(name): b64decode(value) for name, value in fields.items()},
                "inc": bytes.fromhex(stored["inc"]).decode(),
            }
        case Kind.END:
            return {"status": unescape_text(stored["status"]), "inc": bytes.fromhex(stored["inc"]).decode()}
        case Kind.CONTEXT:
            return {"value": row["data"]}
        case Kind.CHECKPOINT:
            return {
                **_names(stored, "ns", "id"),
                "data": row["data"],
                "metadata": row["metadata"],
                "parent": unescape_text(row["content"]),
            }
        case Kind.WRITES:
            return {
                **_names(stored, "ns", "id", "task"),
                "path": unescape_text(row["content"]),
                "value": row["data"],
            }
        case Kind.PRUNE:
            return {**_names(stored, "ns"), "ids": _ids(stored)}
        case _:
            return {"scope": stored["scope"]}


def _names(stored: dict[str, Any], *names: str) -> dict[str, str]:
    full: dict[str, str] = stored.get("full", {})
    return {name: unescape_text(str(full.get(name, stored[name]))) for name in names}


def _ids(stored: dict[str, Any]) -> list[str]:
    pairs: list[tuple[str, str | None]] = stored["ids"]
    return [unescape_text(key if full is None else full) for key, full in pairs]


def replay(row: Row) -> Mutation:
    """One row of ``read_records``."""
    body = effect_of(row["kind"], _loads(row["effect"]), row)
    return Mutation(
        key=unescape_text(row["key_id"]),
        op_id=row["op_id"].decode(),
        kind=row["kind"],
        body=body or {},
        fingerprint=row["fingerprint"],
        occurred_at=row["occurred_at"],
        stamp=row["stamp"],
        replay=True,
        rank=row["rank"],
        home=unescape_text(row["home"]),
        expires_at=row["expires_at"],
        answer=_loads(row["answer"]),
        format=row["format"],
    )


# ---------------------------------------------------------------------- out: what the reads find


def session(row: Row) -> SessionRow | None:
    """The columns of one incarnation, or None where there is none."""
    if row["inc"] is None:
        return None
    fields = cast("dict[str, list[Any]]", _loads(row["fields"]))
    return SessionRow(
        inc=row["inc"].decode(),
        created=row["created"],
        user_id=unescape_text(row["user_id"]),
        metadata=row["metadata"],
        created_at=row["created_at"],
        requests=row["requests"],
        time_us=row["time_us"],
        errors=row["errors"],
        fields={
            unescape_text(name): (stamp, bytes.fromhex(by).decode(), b64decode(value))
            for name, (stamp, by, value) in fields.items()
        },
        ended=None
        if row["ended"] is None
        else (row["ended"], row["ended_by"].decode(), unescape_text(row["ended_status"])),
        touched=(row["touched"], row["touched_at"]),
    )


def checkpoint(row: Row) -> CheckpointRow:
    """The columns of one living checkpoint."""
    id = row["id"] if row["id_full"] is None else row["id_full"]
    return CheckpointRow(
        unescape_text(id),
        row["stamp"],
        row["data"],
        row["metadata"],
        row["occurred_at"],
        unescape_text(row["parent"]),
    )


def _loads(text: str | None) -> Any:
    return None if text is None else json.loads(text)
