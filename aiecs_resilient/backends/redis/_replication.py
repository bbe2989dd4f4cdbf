"""How dual_write speaks to this store: records, marks, state and routing.

**Routing.** Every write checks its bucket's copy of the route inside its own script. A master copy decides: ``move_route`` is a
compare-and-set there, and afterwards the copies are raised, never lowered. Whoever finds a copy behind brings all of them up to
the highest *before* reporting that epoch. So an epoch that was ever reported fences every write, even if the process that moved
it died half-way, and even where the copies lie on different nodes. Until then nobody was told of the move, and writes under
the old epoch are as good as before it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ...records import Durability, Mutation, RecordPage, RecordRef, Route, StoreState
from . import _state as server
from ._base import RedisBase
from ._keys import BUCKETS, interleave, unordered
from ._rows import MAX_NUMBER, Record
from ._scan import MergedScan
from ._scripts import Command

Place = tuple[int, bytes]  # stamp, entry: where a record stands among all records


class RedisReplication(RedisBase):
    """The part that spans buckets for dual_write."""

    _declared: Durability | None

    # ------------------------------------------------------------------ records

    async def read_records(
        self, *, since: int = 0, open_only: bool = True, after: str | None = None, limit: int = 500
    ) -> RecordPage:
        begin: Place = (max(0, min(since, MAX_NUMBER)), b"")
        if after is not None:
            stamp, _, entry = after.partition(":")
            begin = max(begin, (int(stamp), bytes.fromhex(entry)))
        places = await self._places(begin, open_only=open_only).take(limit + 1)
        page = places[:limit]
        records = await self._load_records(page, open_only=open_only)
        more = len(places) > limit and page
        return RecordPage(records, f"{page[-1][0]}:{page[-1][1].hex()}" if more else None)

    def _places(self, begin: Place, *, open_only: bool) -> MergedScan[Place]:
        index = self._keys.marks if open_only else self._keys.logs

        async def fetch(wanted: Sequence[tuple[int, Place | None]], size: int) -> list[list[Place]]:
            last = dict(wanted)
            groups = [[bucket for bucket in group if bucket in last] for group in self._groups()]
            calls: list[Command] = []
            for group in groups:
                starts: list[bytes] = []
                for bucket in group:
                    stamp, entry = last[bucket] or begin
                    starts += (b"%d" % stamp, entry)
                if group:
                    calls.append(
                        self._scripts.bucket_records.call([index[b] for b in group], size, b"+inf", *starts)
                    )
            return [
                [(int(float(stamp)), entry) for entry, stamp in zip(flat[::2], flat[1::2], strict=True)]
                for lists in await self._use().run(calls)
                for flat in lists
            ]

        return MergedScan(fetch, BUCKETS)

    async def _load_records(self, places: Sequence[Place], *, open_only: bool) -> list[Mutation]:
        wanted: defaultdict[str, list[str]] = defaultdict(list)
        for _stamp, entry in places:
            key, encoded = unordered(entry)
            wanted[key].append(encoded.decode())
        calls: list[Command] = []
        for key, op_ids in wanted.items():
            keys = self._keys.of(key)
            calls.append(self._scripts.read_records.call(keys.all, keys.id, keys.name, *_encoded(op_ids)))
        replay: dict[tuple[str, str], Mutation] = {}
        for (key, op_ids), flat in zip(wanted.items(), await self._use().run(calls), strict=True):
            for op_id, raw, value in zip(op_ids, flat[::2], flat[1::2], strict=True):
                record = None if raw is None else Record(raw, value)
                if record is None or (open_only and not record.marked):
                    continue  # forgotten, or closed, since the index was read
                mutation = record.replay(key, op_id)
                if mutation is not None:
                    replay[key, op_id] = mutation
        order = [unordered(entry) for _stamp, entry in places]
        return [replay[place] for key, encoded in order if (place := (key, encoded.decode())) in replay]

    async def close_marks(self, refs: Sequence[RecordRef]) -> int:
        of_key: defaultdict[str, list[bytes]] = defaultdict(list)
        for ref in refs:
            of_key[ref.key] += (ref.op_id.encode(), b"%d" % ref.stamp, b"%d" % ref.rank)
        calls: list[Command] = []
        for key, args in of_key.items():
            keys = self._keys.of(key)
            calls.append(self._scripts.close_marks.call(keys.all, keys.id, keys.name, *args))
        return sum(await self._use().run(calls))

    # ------------------------------------------------------------------ state and routing

    async def store_state(self) -> StoreState:
        client = self._use()
        states = self._state_calls()
        replies = await client.raw([*states, ("TIME",), *server.info_commands()])
        client.check(replies[: len(states) + 1])
        seconds, micros = replies[len(states)]
        info = server.parse_info(replies[len(states) + 1 :])
        held = _Held(replies[: len(states)])
        return StoreState(
            route=await self._settle(held),
            incarnation=server.incarnation(info) if info is not None else "",
            durability=self._durability(info),
            open_marks=held.marks,
            oldest_mark=held.oldest,
            now_us=int(seconds) * 1_000_000 + int(micros) if self._server_clock is None else self._now(),
        )

    def _durability(self, info: server.Info | None) -> Durability:
        """As the server says; as declared where it does not let us ask."""
        unread = info is None or "appendfsync" not in info
        if unread and self._declared is not None and not (info is not None and server.evicts(info)):
            return self._declared
        return server.durability(info)

    async def move_route(self, expected_epoch: int, route: Route) -> Route:
        client = self._use()
        held = await self._settle(_Held(await client.run(self._state_calls())))
        if held.epoch != expected_epoch or route.epoch <= expected_epoch:
            return held
        decided = _route(
            await client.one(
                *self._scripts.decide_route.call(
                    [self._keys.master_route],
                    b"%d" % expected_epoch,
                    b"%d" % route.epoch,
                    route.leader.encode(),
                )
            )
        )
        await self._raise(decided)
        return decided

    def _state_calls(self) -> list[Command]:
        """Marks and copies of the route of each group; the master copy counts as one more copy of the first bucket's group."""
        calls: list[Command] = []
        for group in self._groups():
            keys = interleave([self._keys.marks[b] for b in group], [self._keys.routes[b] for b in group])
            if 0 in group:
                keys += [self._keys.no_marks, self._keys.master_route]
            calls.append(self._scripts.bucket_state.call(keys))
        return calls

    async def _settle(self, held: _Held) -> Route:
        """The route, after all copies have it."""
        if held.lowest.epoch < held.highest.epoch:
            await self._raise(held.highest)
        return held.highest

    async def _raise(self, route: Route) -> None:
        arguments = (b"%d" % route.epoch, route.leader.encode())
        calls = [
            self._scripts.raise_route.call(
                [*[self._keys.routes[b] for b in group], *([self._keys.master_route] if 0 in group else [])],
                *arguments,
            )
            for group in self._groups()
        ]
        await self._use().run(calls)


class _Held:
    """What all buckets together say."""

    __slots__ = ("highest", "lowest", "marks", "oldest")

    def __init__(self, replies: Sequence[Sequence[bytes | int]]) -> None:
        counts, oldest, low, high = zip(*replies, strict=True)
        self.marks = sum(counts)
        self.oldest = min((stamp for stamp in oldest if stamp), default=0)
        self.lowest = min((_route(text) for text in low), key=lambda route: route.epoch)
        self.highest = max((_route(text) for text in high), key=lambda route: route.epoch)


def _route(text: bytes) -> Route:
    """``epoch leader`` as stored; nothing for a store that never took part in a dual write."""
    epoch, _, leader = text.partition(b" ")
    return Route(int(epoch or 0), leader.decode())


def _encoded(op_ids: Sequence[str]) -> list[bytes]:
    return [op_id.encode() for op_id in op_ids]
