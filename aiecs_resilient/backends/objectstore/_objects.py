"""What this backend needs of an object store, and the envelope around everything it keeps there.

Two kinds of objects: *immutable* ones under names that nobody else takes (written once, read, deleted), and *heads*, which
change only by compare-and-set. Everything else, order and atomicity included, is built on that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ...errors import DataCorruptionError, StorageConnectionError
from ...records import Durability

Version = str
"""Names one state of an object; compared, never interpreted, by everybody but the store that gave it."""

_MAGIC = b"aiecs\x00o1"
_DIGEST_BYTES = 16
HEADER_BYTES = len(_MAGIC) + _DIGEST_BYTES


class Unchanged(Enum):
    """The answer to a read that named the version it knows."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED


class Outdated(Exception):
    """The head is not at the version that was to be replaced: somebody else was quicker, or we ourselves."""


class Throttled(StorageConnectionError):
    """This one object is written more often than the service takes (Google: about once a second). Nothing was written."""


@dataclass(frozen=True, slots=True)
class Found:
    """An object's content and the version it has."""

    data: bytes
    version: Version


@dataclass(frozen=True, slots=True)
class Listed:
    """One object of a listing. ``mark`` differs whenever the content does; it is no version. Times are UTC microseconds."""

    path: str
    mark: str
    modified_us: int


class Objects(Protocol):
    """An object store. Paths are ``/``-separated, made of ``a-z 0-9 . _ -`` only, and ours alone."""

    durability: Durability

    async def open(self) -> None:
        """Prepare it; raise where what is needed is missing."""

    async def close(self) -> None: ...

    async def get(self, path: str, known: Version | None = None) -> Found | Unchanged | None:
        """The object; UNCHANGED if it still is at ``known``; None if there is none."""

    async def put(self, items: Sequence[tuple[str, bytes]]) -> None:
        """Write immutable objects; they are durable when it returns."""

    async def swap(self, path: str, data: bytes, version: Version | None) -> Version:
        """Replace the head if it is at ``version`` (None: if there is none), durably. Raises :class:`Outdated` otherwise."""
        ...

    async def delete(self, paths: Sequence[str]) -> None:
        """Remove objects; missing ones are fine."""

    async def list_after(self, prefix: str, after: str, limit: int) -> list[Listed]:
        """Up to ``limit`` objects in the folder ``prefix``, those after the path ``after``, in the order of their bytes."""
        ...


def seal(payload: bytes) -> bytes:
    """The payload with a checksum in front: what is read back is what was written, or an error."""
    return _MAGIC + hashlib.blake2b(payload, digest_size=_DIGEST_BYTES).digest() + payload


def unseal(data: bytes, path: str) -> bytes:
    """What :func:`seal` was given; DataCorruptionError for anything else."""
    payload = data[HEADER_BYTES:]
    if not data.startswith(_MAGIC):
        raise DataCorruptionError(
            f"object {path!r} is not one of this library's: was something else stored under this address?"
        )
    if hashlib.blake2b(payload, digest_size=_DIGEST_BYTES).digest() != data[len(_MAGIC) : HEADER_BYTES]:
        raise DataCorruptionError(
            f"object {path!r} ({len(data):,} bytes) is damaged: its checksum does not fit; restore it from a backup"
        )
    return payload
