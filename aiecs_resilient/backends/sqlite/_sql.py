"""The SQL of the SQLite backend, which lives in files: named queries, and migrations that are only ever added to."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_FOLDER = files("aiecs_resilient.backends.sqlite") / "sql"
_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_COMMENT = re.compile(r"^--.*$", re.MULTILINE)
_MIGRATION = re.compile(r"(\d{4})_\w+\.sql")


def _queries() -> dict[str, str]:
    parts = _NAME.split((_FOLDER / "queries.sql").read_text(encoding="utf-8"))[1:]
    return {name: _COMMENT.sub("", text).strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


SQL = _queries()
"""The named statements of ``queries.sql``."""


@cache
def migrations() -> dict[int, str]:
    """Scripts by version, oldest first."""
    names = sorted(entry.name for entry in _FOLDER.iterdir() if _MIGRATION.fullmatch(entry.name))
    return {int(name[:4]): (_FOLDER / name).read_text(encoding="utf-8") for name in names}
