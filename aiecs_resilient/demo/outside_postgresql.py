"""PostgreSQL read back without the library: plain SQL over the tables of ``backends/postgresql/sql/0001_tables.sql``.

A message is a row with its text as text; values are MessagePack.
"""

from __future__ import annotations

from typing import Final

import asyncpg

from . import names
from .outside_check import Holding, digest, unpack

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
