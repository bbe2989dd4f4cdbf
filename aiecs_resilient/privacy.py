"""What logs, spans and reports may show: no password, no content, and ids only as hashes unless that is asked for.

One place decides it, so that a new layer cannot leak by forgetting. Nothing here raises.
"""

from __future__ import annotations

import hashlib
import re

from .errors import ConflictError, DataCorruptionError, InvalidValueError, StorageError

HIDDEN = "***"

_URL_USER = re.compile(r"(?<=://)[^\s'\"]*@")  # greedy: a password may hold an unescaped / or @
_SECRET = re.compile(
    r"(?i)((?:[\w-]*(?:password|passwd|secret|token|(?:api|access)[_-]?key|credential)|pwd|authorization)['\"]?\s*[=:]\s*)"
    r"((?:bearer|basic)\s+[^\s,;'\"]+|'[^']*'|\"[^\"]*\"|[^\s&,;'\")]+)"
)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(?:/\d{1,9})?")

QUOTING = (InvalidValueError, ConflictError, DataCorruptionError)
"""Errors about values: their messages may quote what a user stored, so telemetry shows only their type."""


def redact(text: str) -> str:
    """The text without credentials: user and password of a URL, and values of ``password=``, ``token:`` and the like."""
    if "@" in text:
        text = _URL_USER.sub(HIDDEN + "@", text)
    if "=" in text or ":" in text:
        text = _SECRET.sub(r"\1" + HIDDEN, text)
    return text


def hash_id(value: str) -> str:
    """16 hex digits that stand for an id: the same id gives the same digits on every machine."""
    return hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def show_id(value: str, *, raw: bool) -> str:
    """The id itself where that is allowed, else its hash."""
    return value if raw else hash_id(value)


def show_op_id(value: str, *, raw: bool) -> str:
    """A minted op_id says nothing of anybody and is shown; one that the caller chose may, and is an id like any other."""
    return value if raw or _UUID.fullmatch(value) else hash_id(value)


def describe_error(error: BaseException) -> str:
    """The message of an error about a store, without credentials; nothing for one that may quote what was stored."""
    if isinstance(error, StorageError) and not isinstance(error, QUOTING):
        return redact(str(error))
    return ""
