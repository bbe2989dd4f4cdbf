"""Forgetting the identities of old writes, in the background and in small steps.

The log of each bucket is walked by stamp. What lives on (messages, checkpoints) is passed over once and looked at again only on
the next full walk; so a store with many messages does not slow down the forgetting of counters. A lease in Redis keeps
several processes from doing the same work; it is a matter of economy only, since forgetting is safe to do twice.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import defaultdict

from ...clock import monotonic
from ...errors import BackendClosedError, StorageError
from ._client import RedisClient
from ._keys import BUCKETS, Keys, unordered
from ._scripts import Command, Scripts

PAGE = 200  # records looked at per step
PAUSE = 0.02  # seconds between steps: leaves the server to its callers
INTERVAL = 60.0  # seconds between walks to the horizon
FULL_WALKS = 24  # retentions between walks from the beginning


class Pruner:
    """Walks the logs. ``horizon_us`` is subtracted from the server's clock: younger records stay."""

    def __init__(self, client: RedisClient, keys: Keys, scripts: Scripts, retention_us: int) -> None:
        self._client = client
        self._keys = keys
        self._scripts = scripts
        self._retention_us = retention_us
        self._token = uuid.uuid4().hex
        self._after: list[tuple[int, bytes]] = [(0, b"")] * BUCKETS
        self._restart_at = 0.0

    async def run(self) -> None:
        """Until cancelled. A store that is down is met again at the next turn."""
        await asyncio.sleep(INTERVAL * random.random())  # noqa: S311  so that processes started together do not walk together
        while True:
            try:
                if await self._lease():
                    await self.walk()
            except BackendClosedError:
                return
            except StorageError:
                pass  # callers and health_check see the same trouble; nothing depends on this walk
            await asyncio.sleep(INTERVAL)

    async def _lease(self) -> bool:
        milliseconds = int(INTERVAL * 3_000)
        if await self._client.one("SET", self._keys.pruning, self._token, "NX", "PX", milliseconds):
            return True
        if await self._client.one("GET", self._keys.pruning) != self._token.encode():
            return False
        await self._client.one("PEXPIRE", self._keys.pruning, milliseconds)
        return True

    async def walk(self) -> int:
        """To the horizon in every bucket; how many records were forgotten."""
        if monotonic() >= self._restart_at:
            self._after = [(0, b"")] * BUCKETS
            self._restart_at = monotonic() + FULL_WALKS * self._retention_us / 1_000_000
        seconds, micros = await self._client.one("TIME")
        horizon = int(seconds) * 1_000_000 + int(micros) - self._retention_us
        forgotten = 0
        for bucket in range(BUCKETS):
            while found := await self._step(bucket, horizon):
                forgotten += found[1]
                if found[0] < PAGE:
                    break
                await asyncio.sleep(PAUSE)
        return forgotten

    async def _step(self, bucket: int, horizon: int) -> tuple[int, int] | None:
        stamp, member = self._after[bucket]
        log = self._keys.logs[bucket]
        call = self._scripts.bucket_records.call([log], PAGE, b"(%d" % horizon, b"%d" % stamp, member)
        [flat] = await self._client.one(*call)
        if not flat:
            return None
        of_key: defaultdict[str, list[bytes]] = defaultdict(list)
        for entry in flat[::2]:
            key, op_id = unordered(entry)
            of_key[key].append(op_id)
        calls: list[Command] = []
        for key, op_ids in of_key.items():
            keys = self._keys.of(key)
            calls.append(self._scripts.forget.call(keys.all, keys.id, keys.name, b"%d" % horizon, *op_ids))
        forgotten = sum(await self._client.run(calls))
        self._after[bucket] = (int(float(flat[-1])), flat[-2])
        return len(flat) // 2, forgotten
