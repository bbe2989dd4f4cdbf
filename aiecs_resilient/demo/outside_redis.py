"""Redis or Valkey read back without the library: SCAN, HGETALL, ZRANGE.

All keys of an id share a bucket: ``…{b17}:<what>:<id>``. ``backends/redis/lua`` says what is in them:

====== ======= =========================================================================================
what   type    content
====== ======= =========================================================================================
k      hash    the session: ``cur``, ``s:body`` [user, metadata], ``s:requests``, ``s:time``, ``s:ended`` …
m      zset    messages; score: position; member: op_id, NUL, 8 bytes of time, [role, content, metadata]
x, xv  zset,   versions of the task context: op_id by stamp; op_id to 8 bytes of time and the value
       hash
t, tv  hash    checkpoints (c…) and pending writes (w…): whether they are live; their values
o      hash    records of operations, by op_id
marks  zset    of the bucket, without an id: operations that the other store lacks
====== ======= =========================================================================================
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, cast

import ormsgpack
from redis.asyncio import Redis

from . import names
from .outside_check import Holding, digest, unpack

KEY: Final = re.compile(rb"\{b\d+\}:([a-z]+)(?::(.*))?$", re.DOTALL)
TIME: Final = 8  # bytes before a value: when it happened
SETTER: Final = struct.Struct(">dH")  # before a status: its stamp, and the length of the op_id that follows
COMMANDS: Final = 500  # per round trip
BUCKETS: Final = 256


async def read_redis(url: str) -> Holding:
    """Everything in Redis or Valkey."""
    held = Holding("Valkey")
    async with Redis.from_url(url, protocol=2) as client:
        found: dict[bytes, list[tuple[bytes, str]]] = {}
        keys: AsyncIterator[bytes] = cast("Any", client).scan_iter(count=COMMANDS)
        for key in {key async for key in keys}:  # SCAN may name a key twice
            parsed = KEY.search(key)
            if parsed is not None:
                found.setdefault(parsed[1], []).append((key, (parsed[2] or b"").decode()))

        async def read(what: bytes, *command: str | int) -> list[tuple[str, Any]]:
            """The same command for all keys of one kind."""
            keys = found.get(what, [])
            answers: list[Any] = []
            for start in range(0, len(keys), COMMANDS):
                async with client.pipeline(transaction=False) as pipe:
                    for key, _id in keys[start : start + COMMANDS]:
                        pipe.execute_command(command[0], key, *command[1:])
                    answers += await pipe.execute()
            return [(name, answer) for (_key, name), answer in zip(keys, answers, strict=True)]

        for session, fields in await read(b"k", "HGETALL"):
            _add_session(held, session, _fields(fields))
        for session, members in await read(b"m", "ZRANGE", 0, -1, "WITHSCORES"):
            for member, score in _pairs(members):
                _op_id, rest = member.split(b"\0", 1)
                _role, content, metadata = ormsgpack.unpackb(rest[TIME:])
                held.add_message(session, int(float(score)), content, metadata)
        values = {thread: _fields(fields) for thread, fields in await read(b"tv", "HGETALL")}
        for thread, heads in await read(b"t", "HGETALL"):
            for place, head in _fields(heads).items():
                if head[0]:  # else it is a tombstone
                    _add_value(held, thread, place, values[thread][place])
        newest = dict(await read(b"x", "ZREVRANGE", 0, 0))
        for session, versions in await read(b"xv", "HGETALL"):
            value = _fields(versions)[newest[session][0]][TIME:]
            held.contexts[names.context(session)] = digest(unpack(value))
        held.open_marks = sum(count for _name, count in await read(b"marks", "ZCARD"))
    return held


async def count_operations(url: str, writes: Sequence[tuple[str, str]], *, prefix: str = "aiecs:") -> int:
    """How many of these writes, by key and op_id, have a record here."""
    async with Redis.from_url(url, protocol=2) as client, client.pipeline(transaction=False) as pipe:
        for key, op_id in writes:
            bucket = zlib.crc32(key.encode()) % BUCKETS
            pipe.execute_command("HEXISTS", f"{prefix}{{b{bucket}}}:o:{key}", op_id)
        return sum(await pipe.execute()) if writes else 0


def _add_session(held: Holding, session: str, fields: dict[bytes, bytes]) -> None:
    if not fields.get(b"cur"):
        return  # only messages, or a session that was deleted
    user, metadata = ormsgpack.unpackb(fields[b"s:body"])
    status = "active"
    if b"s:ended" in fields:
        ended = fields[b"s:ended"]
        _stamp, size = SETTER.unpack_from(ended)
        status = ended[SETTER.size + size :].decode()
    requests, microseconds, errors = (
        int(fields.get(name, 0)) for name in (b"s:requests", b"s:time", b"s:errors")
    )
    held.add_session(session, [user, unpack(metadata)], status, requests, microseconds, errors)


def _add_value(held: Holding, thread: str, place: bytes, value: bytes) -> None:
    """``c`` namespace NUL id, or ``w`` namespace NUL checkpoint NUL task. The demo uses no namespace."""
    parts = [part.decode() for part in place[1:].split(b"\0")]
    stored = ormsgpack.unpackb(value)
    if place[:1] == b"c":
        held.checkpoints[names.checkpoint(thread, parts[1])] = digest(unpack(stored[0]))
    else:
        held.checkpoints[names.writes(thread, parts[1], parts[2])] = digest(unpack(stored[1]))


def _fields(answer: Any) -> dict[bytes, bytes]:
    """Of a hash, whether the driver made a dict of it or left it flat."""
    return cast("dict[bytes, bytes]", answer) if isinstance(answer, dict) else dict(_pairs(answer))


def _pairs(flat: Sequence[Any]) -> list[tuple[Any, Any]]:
    if flat and isinstance(flat[0], tuple):
        return list(flat)
    return list(zip(flat[::2], flat[1::2], strict=True))
