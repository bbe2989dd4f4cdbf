"""Bringing the schema up to date: forward only, by one process at a time, and never over a file that was changed.

Any number of processes may start at once: each looks without a lock first, and only the one that finds something to do
takes the advisory lock, looks again and applies all that is missing in one transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import ConfigurationError, StorageConnectionError
from ._sql import Migration, migrations

if TYPE_CHECKING:
    import asyncpg

OLDEST_SERVER = 130_000
_LOCK_CLASS = 1_095_321_923  # "AIEC": the same first half as in the SQL files


async def migrate(connection: asyncpg.Connection[asyncpg.Record], schema: str, *, backend: str) -> None:
    """Create or update the schema. Raises if it was changed by hand or the server cannot hold it."""
    facts = await connection.fetchrow(
        "SELECT current_setting('server_version_num')::int AS version, pg_is_in_recovery() AS standby, "
        "current_setting('server_encoding') AS encoding"
    )
    assert facts is not None
    if facts["version"] < OLDEST_SERVER:
        raise ConfigurationError(
            f"this PostgreSQL is too old (server_version_num {facts['version']}): 13 or newer is needed",
            backend=backend,
        )
    if facts["encoding"] != "UTF8":
        raise ConfigurationError(
            f"the database's encoding is {facts['encoding']}, which cannot hold every text: create it with "
            "ENCODING 'UTF8'",
            backend=backend,
        )
    if facts["standby"]:
        raise StorageConnectionError(
            "this PostgreSQL is a standby and takes no writes: name the primary, or several hosts and "
            "target_session_attrs=read-write",
            backend=backend,
            outcome="not_applied",
        )
    if not await _missing(connection, schema, backend):
        return
    async with connection.transaction(isolation="read_committed"):
        await connection.execute(
            "SELECT pg_advisory_xact_lock($1, hashtext($2))", _LOCK_CLASS, f'"{schema}".migrate'
        )
        if not await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", f'"{schema}"'):
            await connection.execute(f'CREATE SCHEMA "{schema}"')
        await connection.execute(
            f'CREATE TABLE IF NOT EXISTS "{schema}".migrations (version int PRIMARY KEY, name text NOT NULL, '
            "checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        for migration in await _missing(connection, schema, backend):
            await connection.execute(migration.script)
            await connection.execute(
                f'INSERT INTO "{schema}".migrations (version, name, checksum) VALUES ($1, $2, $3)',  # noqa: S608 - a checked identifier
                migration.version,
                migration.name,
                migration.checksum,
            )


async def _missing(
    connection: asyncpg.Connection[asyncpg.Record], schema: str, backend: str
) -> list[Migration]:
    """What is still to be applied. Versions that are newer than ours are a newer process's: they are left alone."""
    known = migrations(schema)
    if not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f'"{schema}".migrations'):
        return list(known)
    rows = await connection.fetch(f'SELECT version, checksum FROM "{schema}".migrations')  # noqa: S608 - a checked identifier
    applied = {row["version"]: row["checksum"] for row in rows}
    for migration in known:
        if applied.get(migration.version, migration.checksum) != migration.checksum:
            raise ConfigurationError(
                f"migration {migration.name} was applied to schema {schema!r} with other contents: install the "
                "version that applied it, or use another schema",
                backend=backend,
            )
    return [migration for migration in known if migration.version not in applied]
