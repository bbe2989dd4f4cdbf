"""The schema: created and migrated under a lock, never over something changed, readable with plain SQL, found by index."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import pytest

from aiecs_resilient.backends.postgresql import PostgreSQLStorageBackend
from aiecs_resilient.backends.postgresql import _sql as sql
from aiecs_resilient.clock import use_wall_clock, wall_us
from aiecs_resilient.errors import ConfigurationError
from aiecs_resilient.operations import operation
from aiecs_resilient.records import Durability
from aiecs_resilient.testing.servers import PostgreSQLServer

HOUR_US = 3_600_000_000


async def _rows(backend: PostgreSQLStorageBackend, query: str, *args: object) -> list[Any]:
    return await backend._opened().fetch(query.replace("aiecs.", f'"{backend._schema}".'), *args)


# ---------------------------------------------------------------------- migrations


def test_migrations_are_numbered_without_gap() -> None:
    """0001, 0002, …: forward only, each with its checksum, and the schema's name is put in everywhere."""
    found = sql.migrations("elsewhere")
    assert [migration.version for migration in found] == list(range(1, len(found) + 1))
    assert all(len(migration.checksum) == 64 for migration in found)
    assert not any("aiecs." in migration.script for migration in found)
    assert [m.checksum for m in found] == [m.checksum for m in sql.migrations("aiecs")]


async def test_every_migration_is_recorded(backend: PostgreSQLStorageBackend) -> None:
    """Version, name and checksum of each file stand in the schema; initialising again adds nothing."""
    assert await backend.initialize()
    async with PostgreSQLStorageBackend(backend._address.url, schema=backend._schema):
        rows = await _rows(backend, "SELECT version, name, checksum FROM aiecs.migrations ORDER BY version")
    known = [(m.version, m.name, m.checksum) for m in sql.migrations(backend._schema)]
    assert [tuple(row) for row in rows] == known


async def test_many_initialise_at_the_same_moment(server: PostgreSQLServer, schema: str) -> None:
    """Ten backends that find nothing at the same moment: one creates the schema, the others wait for it, all work."""
    backends = [PostgreSQLStorageBackend(server.url, schema=schema) for _ in range(10)]
    try:
        assert await asyncio.gather(*(backend.initialize() for backend in backends)) == [True] * 10
        assert all([await backend.add_conversation_message("s", "user", "x") for backend in backends])
    finally:
        await asyncio.gather(*(backend.close() for backend in backends))


async def test_a_changed_migration_is_refused(backend: PostgreSQLStorageBackend) -> None:
    """A file that no longer is what was applied means that the schema is not what we think: refused with its name."""
    await _rows(backend, "UPDATE aiecs.migrations SET checksum = 'other' WHERE version = 2")
    again = PostgreSQLStorageBackend(backend._address.url, schema=backend._schema)
    with pytest.raises(ConfigurationError, match="0002_"):
        await again.initialize()


async def test_a_newer_process_was_here(backend: PostgreSQLStorageBackend) -> None:
    """A version that we do not know is left alone: old and new processes work side by side."""
    await _rows(backend, "INSERT INTO aiecs.migrations (version, name, checksum) VALUES (9999, 'x', 'x')")
    async with PostgreSQLStorageBackend(backend._address.url, schema=backend._schema) as older:
        assert await older.add_conversation_message("s", "user", "x")


async def test_schemas_do_not_meet(server: PostgreSQLServer, backend: PostgreSQLStorageBackend) -> None:
    """Two schemas of one database are two stores."""
    await backend.create_session("s", "u")
    async with PostgreSQLStorageBackend(server.url, schema=f"{backend._schema}_b") as other:
        assert await other.get_session("s") is None
        assert (await other.store_state()).incarnation != (await backend.store_state()).incarnation


@pytest.mark.parametrize("name", ["", "A", "a-b", 'a"b', "a.b", "1a", "pg_x", "a" * 64, "a;b", "ä"])
def test_a_schema_is_a_plain_identifier(name: str) -> None:
    """Nothing else becomes part of a statement."""
    with pytest.raises(ConfigurationError, match="identifier"):
        PostgreSQLStorageBackend("postgresql://localhost/x", schema=name)


async def test_without_prepared_statements(server: PostgreSQLServer, schema: str) -> None:
    """``statement_cache_size=0``, as PgBouncer needs it, works like any other."""
    async with PostgreSQLStorageBackend(server.url, schema=schema, statement_cache_size=0) as backend:
        for _ in range(2):
            await backend.create_session("s", "u")
            assert await backend.add_conversation_message("s", "user", "x")
        assert len(await backend.get_conversation_history("s")) == 2


# ---------------------------------------------------------------------- state and upkeep


async def test_the_store_tells_who_it_is(server: PostgreSQLServer, backend: PostgreSQLStorageBackend) -> None:
    """Incarnation: system, timeline and schema, the same for everybody; durability as the settings have it."""
    state = await backend.store_state()
    async with PostgreSQLStorageBackend(server.url, schema=backend._schema) as other:
        assert (await other.store_state()).incarnation == state.incarnation
    assert state.incarnation.count("/") == 2
    assert state.durability is Durability.PROCESS  # fsync is off in this server
    assert abs(state.now_us - wall_us()) < 60_000_000


async def test_an_acknowledgement_before_the_disk_is_volatile(server: PostgreSQLServer) -> None:
    """With synchronous_commit off a crash loses acknowledged writes: said in state and health."""
    url = server.create_database("volatile")
    admin = await asyncpg.connect(url)
    await admin.execute("ALTER DATABASE volatile SET synchronous_commit = off")
    await admin.close()
    async with PostgreSQLStorageBackend(url) as backend:
        assert (await backend.store_state()).durability is Durability.VOLATILE
        health = await backend.health_check()
        assert health["status"] == "degraded"
        assert "synchronous_commit" in health["issues"][0]


async def test_old_identities_are_forgotten_but_not_what_needs_them(
    backend: PostgreSQLStorageBackend,
) -> None:
    """After retention only messages, living checkpoints and marked records keep theirs; replaced incarnations go."""
    await backend.create_session("s", "old")
    await backend.create_session("s", "new")
    names = ["message", "first", "second", "count", "context"]
    for name in names:
        async with operation(f"op-{name}"):
            match name:
                case "message":
                    await backend.add_conversation_message("s", "user", "x")
                case "first" | "second":
                    await backend.store_checkpoint("s", "c", {"n": name})
                case "count":
                    await backend.update_session("s", None, True)
                case _:
                    await backend.store_task_context("s", 1)
    await _rows(backend, "UPDATE aiecs.records SET marked = true WHERE op_id = 'op-context'")
    assert await backend.prune_records(2) == 0
    later = wall_us() + 2 * HOUR_US
    with use_wall_clock(lambda: later):
        assert await backend.prune_records(2) > 0
    outcomes = {name: await backend.operation_outcome("s", f"op-{name}") for name in names}
    assert outcomes == {
        "message": "applied",
        "first": "not_applied",
        "second": "applied",
        "count": "not_applied",
        "context": "applied",
    }
    session = await backend.get_session("s")
    assert session is not None
    assert (session["user_id"], session["request_count"]) == ("new", 1)
    assert len(await _rows(backend, "SELECT FROM aiecs.sessions")) == 1
    await backend.delete_session("s")
    await backend.delete_thread("s")
    await _rows(backend, "UPDATE aiecs.records SET marked = false")
    with use_wall_clock(lambda: later + 2 * HOUR_US):
        await backend.prune_records(100)
    assert await _rows(backend, "SELECT FROM aiecs.records") == []


# ---------------------------------------------------------------------- plain SQL


async def test_operators_read_with_plain_sql(backend: PostgreSQLStorageBackend) -> None:
    """The views show sessions and messages as they are, without this library."""
    await backend.create_session("s", "u")
    await backend.update_session("s", {"status": "busy", "user_id": "v"}, True, 1.5)
    async with operation("op-1"):
        await backend.add_conversation_message("s", "user", 'it\'s 10% "done"; --')
    async with operation("op\x002"):
        await backend.add_conversation_message("s", "assistant", "sí")
    [session] = await _rows(backend, "SELECT * FROM aiecs.readable_sessions")
    assert (session["session_id"], session["user_id"], session["status"]) == ("s", "v", "busy")
    assert (session["request_count"], float(session["total_processing_time"])) == (1, 1.5)
    messages = await _rows(backend, "SELECT * FROM aiecs.readable_messages ORDER BY session_id, position")
    assert [(row["role"], row["content"]) for row in messages] == [
        ("user", 'it\'s 10% "done"; --'),
        ("assistant", "sí"),
    ]
    assert messages[0]["message_id"] == "op-1"
    assert abs(messages[0]["said_at"].timestamp() * 1e6 - wall_us()) < 60_000_000
    await backend.end_session("s", "done")
    [ended] = await _rows(backend, "SELECT status FROM aiecs.readable_sessions")
    assert ended["status"] == "done"


# ---------------------------------------------------------------------- reads by index

FILL = """
INSERT INTO aiecs.keys (key, id, clock, has_session, has_thread, has_root, current_inc)
  SELECT 'k' || lpad(i::text, 6, '0'), 'k' || i, 1e15::bigint + i * 1000000::bigint, i % 2 = 0, i % 2 = 1, i % 2 = 1,
         CASE WHEN i % 2 = 0 THEN 'inc'::bytea END FROM generate_series(1, 20000) i;
INSERT INTO aiecs.sessions (key, inc, created, user_id)
  SELECT 'k' || lpad(i::text, 6, '0'), 'inc', 1, 'u' || i % 1000 FROM generate_series(2, 20000, 2) i;
UPDATE aiecs.sessions SET set_status = 'rare' WHERE key > 'k019900';
INSERT INTO aiecs.checkpoints (key, ns, id, stamp, op_id, occurred_at, data, metadata, parent)
  SELECT 'k000001', '', 'c' || i, i, 'op', i, 'x', 'x', '' FROM generate_series(1, 20000) i;
INSERT INTO aiecs.contexts (key, op_id, stamp, occurred_at, value)
  SELECT 'k' || lpad(i::text, 6, '0'), 'op', i, i, 'x' FROM generate_series(1, 20000) i;
INSERT INTO aiecs.writes (key, ns, id, task, op_id, stamp, occurred_at, path, value)
  SELECT 'k000001', '', 'c' || i, 't', 'op', i, i, '', 'x' FROM generate_series(1, 20000) i;
INSERT INTO aiecs.records (key, op_id, kind, stamp, rank, home, marked, held, fingerprint, occurred_at, seen_at,
    expires_at, format, answer, effect, position, role, content, metadata)
  SELECT 'k000002', ('op' || i)::bytea, 'message', i, 0, '', i % 1000 = 0, true, 'f', i, i, 0, 1, 'true', '{}', i, 'u',
         'hello', 'x' FROM generate_series(1, 40000) i;
ANALYZE;
"""

READS: dict[str, list[str]] = {
    "read_session": ["'k000002'", "NULL"],
    "read_sessions": ["ARRAY['k000002', 'k000004']", "NULL"],
    "read_newest_messages": ["'k000002'", "9223372036854775807", "50", "NULL"],
    "read_messages_after": ["'k000002'", "9223372036854775807", "50", "NULL", "100"],
    "read_checkpoint": ["'k000001'", "''", "'c5'", "NULL"],
    "read_checkpoints": ["'k000001'", "''", "1", "NULL"],
    "read_writes": ["'k000001'", "''", "'c5'", "NULL"],
    "read_contexts": ["'k000002'", "1", "NULL"],
    "read_outcome": ["'k000002'", "'op1'"],
    "list_threads": ["'k000003'", "100", "NULL"],
    "all sessions": ["'k010000'", "100", "NULL"],
    "sessions by status": ["''", "100", "NULL", "'rare'"],
    "sessions by owner": ["''", "100", "NULL", "'u2'"],
    "open records": ["5", "''", "''", "500"],
    "all records": ["5", "''", "''", "500"],
    "read_idle": ["1000000100000000", "200", "NULL"],
}


async def test_no_read_grows_with_the_store(server: PostgreSQLServer) -> None:
    """Under the plan for any parameters each read touches the rows it answers and few more, by index, in a store of 10⁴."""
    url = server.create_database("plans")
    async with PostgreSQLStorageBackend(url):
        pass
    queries = {
        **sql.queries("aiecs"),
        "all sessions": sql.listing("aiecs", by_status=False, by_owner=False),
        "sessions by status": sql.listing("aiecs", by_status=True, by_owner=False),
        "sessions by owner": sql.listing("aiecs", by_status=False, by_owner=True),
        "open records": sql.records("aiecs", open_only=True),
        "all records": sql.records("aiecs", open_only=False),
    }
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(FILL)
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        for name, arguments in READS.items():
            await connection.execute(f"PREPARE one AS {queries[name]}")
            plan = await connection.fetchval(
                f"EXPLAIN (ANALYZE, FORMAT JSON, TIMING OFF) EXECUTE one({', '.join(arguments)})"
            )
            await connection.execute("DEALLOCATE one")
            [top] = json.loads(plan)
            assert _touched(top["Plan"]) < 5_000, (name, plan)
    finally:
        await connection.close()


def _touched(node: dict[str, Any]) -> float:
    """Rows that this plan looked at, all nodes together."""
    rows = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
    return float(rows + sum(_touched(inner) for inner in node.get("Plans", [])))
