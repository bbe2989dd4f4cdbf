"""Everything in an object store: files in a folder, S3, Google Cloud Storage, Azure; the whole contract, no server of our own.

Each session or thread id has one *head* object, changed by compare-and-set; what does not fit into it lies in immutable
objects that are written before it. So a write is atomic with its record, costs one request most of the time, and counters are
exact however many processes write. What waits for the same key shares a commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import ClassVar

from ...clock import monotonic, wall_us
from ...codec import check_text
from ...errors import InvalidValueError, StorageError
from ...interface import Json
from ...records import Applied, Mutation, Route
from ...units import Bytes, Count, Seconds
from .._engine import apply_one
from .._store import DEFAULT_CONTEXT_VERSIONS, DEFAULT_RETENTION_SECONDS
from ._address import Address, Credentials, read_address
from ._commit import Committer, Limits
from ._draft import Draft
from ._garbage import Collector
from ._loading import Loader
from ._names import BEAT, token
from ._objects import seal
from ._open import make_objects
from ._prepare import SIZES, Sizes
from ._replication import ObjectReplication
from ._store_object import StoreObject


class ObjectStorageBackend(ObjectReplication):
    """Stores everything in an object store; any number of processes may use it at once."""

    kind = "objectstore"
    schemes: ClassVar[frozenset[str]] = frozenset({"file", "s3", "gs", "az"})

    def __init__(
        self,
        url: str,
        *,
        name: str = "objectstore",
        endpoint: str | None = None,
        region: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        session_token: str | None = None,
        service_account: str | None = None,
        anonymous: bool = False,
        allow_http: bool = False,
        request_timeout: Seconds = 10.0,
        connect_timeout: Seconds = 3.0,
        lock_timeout: Seconds = 5.0,
        commit_timeout: Seconds = 30.0,
        max_concurrency: Count = 32,
        max_pending: Count = 10_000,
        cache_size: Bytes = 64 * 1024 * 1024,
        leftover_age: Seconds = 3600.0,
        session_ttl: Seconds | None = None,
        checkpoint_ttl: Seconds | None = None,
        retention: Seconds = DEFAULT_RETENTION_SECONDS,
        context_versions: Count = DEFAULT_CONTEXT_VERSIONS,
        max_value_bytes: Bytes = 64 * 1024 * 1024,
        _sizes: Sizes = SIZES,
    ) -> None:
        """Opens nothing yet.

        Args:
            url: ``file:///folder``, ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``az://container/prefix``.
            name: how it is called in errors, health and routing.
            endpoint: where the service is, if not at its usual place: ``https://host:port``.
            region: of the bucket (S3).
            access_key_id, secret_access_key, session_token: credentials for S3; for Azure account and key. Where none are given,
                the environment and the machine's own identity are asked.
            service_account: path of the key file (Google); without it the environment is asked.
            anonymous: send unsigned requests.
            allow_http: talk to an ``http://`` endpoint that is not on this machine, in the clear.
            request_timeout: seconds for one request to the service.
            connect_timeout: seconds for one connection to it.
            lock_timeout: seconds to wait while another process replaces the same file (``file://``).
            commit_timeout: seconds after which a write gives up because others keep changing the same key.
            max_concurrency: requests under way at once; more wait.
            max_pending: writes that may wait for their commit; more are refused with OverloadedError.
            cache_size: memory for what was read: heads are checked before they are used, everything else never changes.
            leftover_age: seconds after which what a killed writer left behind is removed; longer than any commit takes.
            session_ttl, checkpoint_ttl, retention: seconds; see :class:`.._store.StoreBackend`.
            context_versions: versions of a task context that are kept.
            max_value_bytes: the most one encoded value may take.
        """
        super().__init__(
            name=name,
            session_ttl=session_ttl,
            checkpoint_ttl=checkpoint_ttl,
            retention=retention,
            context_versions=context_versions,
            max_value_bytes=max_value_bytes,
        )
        for what, seconds in (
            ("request_timeout", request_timeout),
            ("connect_timeout", connect_timeout),
            ("lock_timeout", lock_timeout),
            ("commit_timeout", commit_timeout),
        ):
            if not seconds > 0:
                raise InvalidValueError(f"{what} must be a positive number of seconds, not {seconds!r}")
        for what, number in (
            ("max_concurrency", max_concurrency),
            ("max_pending", max_pending),
            ("cache_size", cache_size),
        ):
            if number < 1:
                raise InvalidValueError(f"{what} must be 1 or more, not {number}")
        if leftover_age < 2 * (commit_timeout + request_timeout):
            raise InvalidValueError(
                f"leftover_age must be at least twice commit_timeout + request_timeout, not {leftover_age:g}: "
                "else the objects of a writer that is merely slow would be taken from it"
            )
        self._address: Address = read_address(
            url,
            Credentials(
                endpoint=endpoint,
                region=region,
                access_key_id=access_key_id,
                secret_access_key=secret_access_key,
                session_token=session_token,
                service_account=service_account,
                anonymous=anonymous,
                allow_http=allow_http,
            ),
        )
        if self._address.scheme not in self.schemes:
            raise InvalidValueError(
                f"the {self.kind} backend takes {' or '.join(f'{scheme}://' for scheme in sorted(self.schemes))}, not {url!r}"
            )
        self._objects = make_objects(
            self._address,
            name=name,
            request_timeout=request_timeout,
            connect_timeout=connect_timeout,
            lock_timeout=lock_timeout,
            max_concurrency=max_concurrency,
        )
        self._loader = Loader(self._objects, cache_size)
        self._store = StoreObject(self._objects, name)
        limits = Limits(context_versions, self._retention_us, commit_timeout, max_pending, _sizes)
        self._committer = Committer(self._loader, limits, self._store.read_route, self._collect)
        self._collector = Collector(self._loader, self._committer, leftover_age)
        self._totals = {}
        self._lifecycle = asyncio.Lock()
        self._sweep_every = leftover_age / 4
        self._next_sweep = 0.0

    def _collect(self, key: str) -> None:
        self._collector.collect(key)

    # ------------------------------------------------------------------ lifecycle

    async def initialize(self) -> bool:
        async with self._lifecycle:
            if not self._open:
                await self._objects.open()
                try:
                    await self._store.create()
                except BaseException:
                    await self._objects.close()
                    raise
                self._collector.closing = False
                self._next_sweep = monotonic() + self._sweep_every
                self._open = True
        return True

    async def close(self) -> None:
        self._open = False
        self._collector.closing = True
        async with self._lifecycle:
            await self._committer.drain()
            self._loader.clear()
            await self._objects.close()

    async def health_check(self) -> Json:
        issues: list[str] = []
        if not self._open:
            issues.append(f"{self.name} is not open")
        else:
            try:
                await self._store.read()
                await self._objects.put(
                    [(f"{BEAT}/{token(1)}", seal(b""))]
                )  # healthy means that a write works
            except StorageError as error:
                issues.append(error.message)
        return {
            "status": "unhealthy" if issues else "healthy",
            "storage_backend": self.kind,
            "redis_connected": False,
            "issues": issues,
            "durability": self._objects.durability.name.lower(),
            "address": self._address.shown,
            "pending": self._committer.pending,
        }

    def _own_metrics(self) -> Json:
        return {"group_commit": asdict(self._committer.counts)}

    # ------------------------------------------------------------------ writes

    async def apply(self, mutations: Sequence[Mutation]) -> list[Applied | StorageError]:
        self._require_open()
        now = wall_us()
        places = dict[str, list[int]]()
        ready = [self._dated(mutation) for mutation in mutations]
        for number, mutation in enumerate(ready):
            places.setdefault(mutation.key, []).append(number)
        if not ready:
            return []
        self._sweep_now_and_then()
        answers = await asyncio.gather(
            *(
                self._apply_to(key, [ready[number] for number in numbers], now)
                for key, numbers in places.items()
            ),
            return_exceptions=True,
        )
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        if failures:
            raise _together_failed(failures, len(answers))
        results: list[Applied | StorageError | None] = [None] * len(ready)
        for numbers, answer in zip(places.values(), answers, strict=True):
            assert not isinstance(answer, BaseException)
            for number, result in zip(numbers, answer, strict=True):
                results[number] = result
        return [result for result in results if result is not None]

    async def _apply_to(
        self, key: str, mutations: Sequence[Mutation], now: int
    ) -> list[Applied | StorageError]:
        steps = [partial(self._apply_one, mutation, now) for mutation in mutations]
        fenced = any(mutation.epoch for mutation in mutations)
        return await self._committer.run(key, steps, fenced=fenced)

    def _apply_one(self, mutation: Mutation, now: int, draft: Draft, route: Route) -> Applied | StorageError:
        result = apply_one(draft, mutation, now_us=now, route=route, max_age_us=self._max_age_us)
        if isinstance(result, Applied) and result.effect is not None:
            draft.require([dict(result.effect)])
            result.effect = draft.whole(dict(result.effect))
        return result

    def _dated(self, mutation: Mutation) -> Mutation:
        check_text(mutation.op_id, "op_id")
        expires_at = self._expiry(mutation)
        return mutation if expires_at == mutation.expires_at else replace(mutation, expires_at=expires_at)

    def _sweep_now_and_then(self) -> None:
        if monotonic() >= self._next_sweep:
            self._next_sweep = monotonic() + self._sweep_every
            self._committer.background(self._sweep(), "sweep")

    async def _sweep(self) -> None:
        try:
            await self._collector.sweep()
        except StorageError:
            return  # best effort: the next one is due soon


class FileStorageBackend(ObjectStorageBackend):
    """``file:///folder``: every file and folder flushed; see :class:`ObjectStorageBackend` for the options."""

    kind = "file"
    schemes = frozenset({"file"})


class S3StorageBackend(ObjectStorageBackend):
    """``s3://bucket/prefix``; see :class:`ObjectStorageBackend` for the options."""

    kind = "s3"
    schemes = frozenset({"s3"})


class GCSStorageBackend(ObjectStorageBackend):
    """``gs://bucket/prefix``; see :class:`ObjectStorageBackend` for the options."""

    kind = "gcs"
    schemes = frozenset({"gs"})


def _together_failed(failures: Sequence[BaseException], calls: int) -> BaseException:
    """One error for all: nothing was applied only if that is certain of every key."""
    first = next((error for error in failures if not isinstance(error, StorageError)), failures[0])
    certain = len(failures) == calls and all(
        isinstance(error, StorageError) and error.outcome == "not_applied" for error in failures
    )
    if isinstance(first, StorageError) and not certain:
        first.outcome = "unknown"
    return first
