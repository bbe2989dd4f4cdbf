"""Where things lie: safe paths for any id, and index entries whose names alone answer a listing.

::

    store                               incarnation and route of the whole store
    heads/ab/<sha256 of id>             everything that changes of one key
    content/ab/<sha256 of id>/<random>  immutable: pages of the key's trees, large values
    index/<name>/<id, ordered>-<token><facts>           sessions, threads, marks
    index/<name>/<place>/<id, ordered>-<token><facts>   owners (by user), idle and due (by hour)

Ids never stand in a path: heads go by hash (no traversal, no folding of case or of Unicode, one length), index entries by
``encode_key`` in base32hex, whose alphabet sorts as the bytes do, so that listings come in the order of every other store.
"""

from __future__ import annotations

import base64
import hashlib
import os
from typing import NamedTuple

from ...codec import encode_key, unescape_text

STORE = "store"
HEADS = "heads"
CONTENT = "content"
INDEX = "index"
BEAT = "beat"  # a few objects, written to see whether a write works and what time the store has

HOUR_US = 3_600_000_000
_CHUNK = 200  # characters of one path segment: file systems take 255
_HASHED = "\x1bh"  # how encode_key marks an id that it had to shorten
_END = "z"  # sorts behind every token
_PLACED = frozenset({"owners", "idle", "due"})  # indexes that sort by something before the id


class Entry(NamedTuple):
    """An index entry, read from its path. ``place`` is "" where the index sorts by id alone."""

    path: str
    index_name: str
    place: str
    order: str
    shard: str
    facts: tuple[str, ...]
    modified_us: int = 0


def shard_of(key: str) -> str:
    """``ab/<sha256>``: where the key lies, and what names it inside the store."""
    return _shard(hashlib.sha256(key.encode()).hexdigest())


def _shard(digest: str) -> str:
    return f"{digest[:2]}/{digest}"


def head_path(shard: str) -> str:
    """Of the one object that changes."""
    return f"{HEADS}/{shard}"


def content_path(shard: str, id: str) -> str:
    """Of one immutable object."""
    return f"{CONTENT}/{shard}/{id}"


def token(size: int = 12) -> str:
    """A random name: for content objects, commits and index entries."""
    return os.urandom(size).hex()


def ordered(key: str) -> str:
    """The id as path segments that sort as ``encode_key(id)``'s bytes do."""
    text = base64.b32hexencode(encode_key(key).encode()).decode().rstrip("=").lower()
    return "/".join(text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK))


def short_hash(text: str) -> str:
    """Enough of a hash to sort and filter by; what passes is verified."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def hour(us: int) -> str:
    """The hour of a time in UTC microseconds, as it stands in a path."""
    return f"{max(us, 0) // HOUR_US:08x}"


def index_folder(index: str, place: str = "") -> str:
    """What to list for the entries of an index, or of one place in it."""
    return f"{INDEX}/{index}/{place}" if place else f"{INDEX}/{index}"


def new_entry(index: str, place: str, order: str, facts: tuple[str, ...]) -> str:
    """The path of an entry that nobody else makes: taking it away cannot take away a later one."""
    return f"{index_folder(index, place)}/{order}-{'.'.join((token(6), *facts))}"


def read_entry(path: str, modified_us: int = 0) -> Entry:
    """What an entry's path says."""
    _root, index, rest = path.split("/", 2)
    place, rest = rest.split("/", 1) if index in _PLACED else ("", rest)
    order, _, tail = rest.rpartition("-")
    text = order.replace("/", "").upper()
    key = base64.b32hexdecode(text + "=" * (-len(text) % 8)).decode()
    digest = key[-64:] if key.startswith(_HASHED) else hashlib.sha256(unescape_text(key).encode()).hexdigest()
    return Entry(path, index, place, order, _shard(digest), tuple(tail.split(".")[1:]), modified_us)


def entry_says(path: str) -> tuple[str, tuple[str, ...]]:
    """An entry's place and facts, without the id."""
    _root, index, rest = path.split("/", 2)
    place = rest.split("/", 1)[0] if index in _PLACED else ""
    return place, tuple(rest.rpartition("-")[2].split(".")[1:])


def behind(index: str, place: str, order: str) -> str:
    """A path behind all entries of the id with this order, and before those of the next id."""
    return f"{index_folder(index, place)}/{order}-{_END}"
