"""The SQL of the PostgreSQL backend, which lives in files: named queries, and migrations that are only ever added to.

The files are written for the schema ``aiecs`` and valid as they stand; another schema's name is put in its place.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from ...errors import ConfigurationError

_FOLDER = files("aiecs_resilient.backends.postgresql") / "sql"
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_MIGRATION = re.compile(r"(\d{4})_(\w+)\.sql")
_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


class Migration(NamedTuple):
    """One file: applied once, in the order of versions, and never changed afterwards."""

    version: int
    name: str
    script: str
    checksum: str


def check_schema(schema: str) -> str:
    """Only a plain lower-case identifier becomes part of a statement."""
    if not _SCHEMA.fullmatch(schema) or schema.startswith("pg_"):
        raise ConfigurationError(
            f"schema {schema!r} is not a plain identifier: use lower-case letters, digits and _, at most 63, "
            "not beginning with a digit or pg_"
        )
    return schema


@cache
def queries(schema: str) -> dict[str, str]:
    """The named queries of ``queries.sql``."""
    parts = _NAME.split(_read("queries.sql", schema))[1:]
    return {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


@cache
def migrations(schema: str) -> tuple[Migration, ...]:
    """All migrations, oldest first."""
    found = sorted(
        (match, entry.name) for entry in _FOLDER.iterdir() if (match := _version(entry.name)) is not None
    )
    return tuple(
        Migration(version, name, _read(name, schema), hashlib.sha256(_text(name).encode()).hexdigest())
        for version, name in found
    )


def listing(schema: str, *, by_status: bool, by_owner: bool) -> str:
    """The query that lists sessions, with only the filters that are asked for, so that each has a plan of its own."""
    named = queries(schema)
    filters = ""
    for number, name in enumerate(
        [name for name, wanted in (("by_status", by_status), ("by_owner", by_owner)) if wanted], start=4
    ):
        filters += named[name].replace("?", f"${number}") + "\n"
    return named["list_sessions"].replace("/*filter*/", filters)


def records(schema: str, *, open_only: bool) -> str:
    """The query that reads records: all, or those with an open mark."""
    return queries(schema)["read_records"].replace("/*open*/", "AND r.marked" if open_only else "")


def _version(name: str) -> int | None:
    match = _MIGRATION.fullmatch(name)
    return None if match is None else int(match[1])


def _text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _read(name: str, schema: str) -> str:
    return _text(name).replace("aiecs.", f'"{check_schema(schema)}".')
