"""Listing sessions and threads, and finding what clean-up may remove: without SCAN, at a cost that does not grow."""

from __future__ import annotations

from collections.abc import Sequence

from ...codec import encode_key
from ...records import IdleKey, SessionRow
from ._base import RedisBase
from ._keys import BUCKETS, id_of, interleave
from ._rows import MAX_NUMBER, alive, session_row
from ._scan import MergedScan

_LEAST_PAGE = 64  # candidates looked at together when a filter may refuse many


class RedisListing(RedisBase):
    """The part that spans buckets for applications."""

    async def _list_sessions(
        self, status: str | None, user_id: str | None, after: str | None, limit: int
    ) -> list[tuple[str, SessionRow]]:
        names = self._names(b"s", after)
        filtered = status is not None or user_id is not None
        found: list[tuple[str, SessionRow]] = []
        while len(found) < limit:
            wanted = limit - len(found)
            page = await names.take(max(wanted, _LEAST_PAGE) if filtered else wanted)
            if not page:
                break
            ids = [id_of(name[1:]) for name in page]
            replies = await self._use().run([("HGETALL", self._keys.of(id_).key) for id_ in ids])
            now = self._now()
            for id_, flat in zip(ids, replies, strict=True):
                row, _clock = session_row(flat, now)
                if row is not None and status in (None, row.status()) and user_id in (None, row.owner()):
                    found.append((id_, row))
        return found[:limit]

    async def _list_threads(self, after: str | None, limit: int) -> list[str]:
        names = self._names(b"t", after)
        found: list[str] = []
        while len(found) < limit:
            page = await names.take(limit - len(found))
            if not page:
                break
            ids = [id_of(name[1:]) for name in page]
            expiries = await self._use().run([("HGET", self._keys.of(id_).key, "te") for id_ in ids])
            now = self._now()
            found += [id_ for id_, expires in zip(ids, expiries, strict=True) if alive(expires, now)]
        return found

    def _names(self, tag: bytes, after: str | None) -> MergedScan[bytes]:
        """Entries of the index of names in order. NUL ends an id's name, so 1 is just beyond all entries of that id."""
        begin = b"[" + tag if after is None else b"[" + tag + encode_key(after).encode() + b"\x01"
        end = b"(" + bytes([tag[0] + 1])

        async def fetch(wanted: Sequence[tuple[int, bytes | None]], size: int) -> list[list[bytes]]:
            last = dict(wanted)
            groups = [[bucket for bucket in group if bucket in last] for group in self._groups()]
            calls = [
                self._scripts.bucket_names.call(
                    [self._keys.names[bucket] for bucket in group],
                    size,
                    end,
                    *[begin if (had := last[bucket]) is None else b"(" + had for bucket in group],
                )
                for group in groups
                if group
            ]
            return [page for pages in await self._use().run(calls) for page in pages]

        return MergedScan(fetch, BUCKETS)

    async def read_idle(self, before: int, limit: int) -> list[IdleKey]:
        calls = self._per_group(
            self._scripts.bucket_idle,
            lambda group: interleave([self._keys.idle[b] for b in group], [self._keys.due[b] for b in group]),
            self._clock_argument(),
            max(0, min(before, MAX_NUMBER)),
            limit,
        )
        idle: list[IdleKey] = []
        for flat in await self._use().run(calls):
            for id_, upto, scope in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
                idle.append(IdleKey(id_.decode(), upto, scope.decode()))
        return idle[:limit]
