"""Where things stand in Redis, and the order in which they sort.

An id hashes to one of 256 buckets; all its keys and the bucket's indexes share the hash tag ``{bN}``, so that one script may
touch them atomically, on a single server and on a cluster. A key is ``<prefix>{bN}:<what>:<id>``: the id is last and
nothing is parsed out of a key, so no two ids meet. ``lua/key.lua`` names the same keys in the same order.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from ...codec import encode_key
from ...errors import ConfigurationError

BUCKETS = 256
TERMINATOR = b"\x00"

_OF_ID = (b"k", b"n", b"o", b"m", b"x", b"xv", b"t", b"tv", b"to")
"""key, others, records, messages, contexts, versions, heads, values, order."""

_OF_BUCKET = (b"marks", b"log", b"idle", b"due", b"names", b"totals")


def bucket_of(id_: bytes) -> int:
    """Which bucket an id belongs to. Part of the stored format: never change it."""
    return zlib.crc32(id_) % BUCKETS


class IdKeys:
    """The keys of one id. ``all`` is what scripts about one id get as KEYS."""

    __slots__ = ("all", "bucket", "id", "name")

    def __init__(self, id_: bytes, name: bytes, bucket: int, keys: tuple[bytes, ...]) -> None:
        self.id = id_
        self.name = name
        self.bucket = bucket
        self.all = keys

    @property
    def key(self) -> bytes:
        return self.all[1]

    @property
    def records(self) -> bytes:
        return self.all[3]

    @property
    def messages(self) -> bytes:
        return self.all[4]

    @property
    def contexts(self) -> tuple[bytes, bytes, bytes]:
        return self.all[1], self.all[5], self.all[6]

    @property
    def thread(self) -> tuple[bytes, bytes, bytes, bytes]:
        return self.all[1], self.all[7], self.all[8], self.all[9]


class Keys:
    """All key names under one prefix.

    Args:
        prefix: what every key begins with; several stores may share a server under different ones.
    """

    def __init__(self, prefix: str) -> None:
        if "{" in prefix or "}" in prefix:
            raise ConfigurationError(
                f"prefix {prefix!r} holds a brace, which Redis Cluster would take for a hash tag: leave braces out"
            )
        self.prefix = prefix.encode()
        tags = [self.prefix + b"{b%d}:" % bucket for bucket in range(BUCKETS)]
        self.routes = [tag + b"route" for tag in tags]
        self.marks = [tag + b"marks" for tag in tags]
        self.logs = [tag + b"log" for tag in tags]
        self.idle = [tag + b"idle" for tag in tags]
        self.due = [tag + b"due" for tag in tags]
        self.names = [tag + b"names" for tag in tags]
        self.totals = [tag + b"totals" for tag in tags]
        self._of_id = [tuple(tag + what + b":" for what in _OF_ID) for tag in tags]
        self._of_bucket = [tuple(tag + what for what in _OF_BUCKET) for tag in tags]
        # One of each per store; they live in a bucket too, so that every key of ours has a tag.
        self.master_route = tags[0] + b"master-route"
        self.no_marks = (
            tags[0] + b"no-marks"
        )  # never written: stands beside the master route where pairs are asked
        self.format = tags[0] + b"format"
        self.probe = tags[0] + b"probe"
        self.pruning = tags[0] + b"pruning"

    def of(self, id_: str) -> IdKeys:
        raw = id_.encode()
        bucket = bucket_of(raw)
        own = self._of_id[bucket]
        keys = (self.routes[bucket], *[start + raw for start in own], *self._of_bucket[bucket])
        return IdKeys(raw, name_of(id_, raw), bucket, keys)


def name_of(id_: str, raw: bytes) -> bytes:
    """An id's entry in the index of names: sorts as ``encode_key`` does, and holds the id if that does not."""
    key = encode_key(id_).encode()
    return key + TERMINATOR + (b"" if key == raw else raw)


def id_of(name: bytes) -> str:
    """What :func:`name_of` was given."""
    key, _, raw = name.partition(TERMINATOR)
    return (raw or key).decode()


def ordered(text: str) -> bytes:
    """Text as a prefix that sorts like the text and ends by itself: lua/text.lua has the same."""
    return text.encode().replace(b"\x00", b"\x00\xff") + TERMINATOR


def unordered(data: bytes) -> tuple[str, bytes]:
    """The text of an :func:`ordered` at the beginning, and what follows it."""
    end = data.index(b"\x00")
    while data[end + 1 : end + 2] == b"\xff":
        end = data.index(b"\x00", end + 2)
    return data[:end].replace(b"\x00\xff", b"\x00").decode(), data[end + 1 :]


def interleave(*columns: Sequence[bytes]) -> list[bytes]:
    """a1 b1 a2 b2 …: the KEYS of scripts that take several keys per bucket."""
    return [key for row in zip(*columns, strict=True) for key in row]
