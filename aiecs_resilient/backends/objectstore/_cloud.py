"""Objects in S3, Google Cloud Storage or Azure, by way of obstore.

Heads are compared by what each service compares: ETags (S3, Azure) or generations (Google). obstore's own retries are off: whether
trying again is safe and paid for is decided above, and a request that was sent twice cannot tell its own 412 from another's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import (
    ConfigurationError,
    Outcome,
    StorageConnectionError,
    StorageError,
    UnsupportedOperationError,
)
from ...records import Durability
from ._address import Address
from ._cloud_errors import bucket_is_missing, map_error
from ._loading import together
from ._names import token
from ._objects import UNCHANGED, Found, Listed, Outdated, Unchanged, Version

if TYPE_CHECKING:
    from obstore import GetOptions, PutMode
    from obstore.store import AzureStore, GCSStore, S3Store

T = TypeVar("T")

INSTALL = "pip install 'aiecs-resilient[objectstore]'"
_DELETE_AT_ONCE = 1_000
_PROBES = "probe"
_LETTING_GO = 0.1
"""Seconds that obstore's threads get to let go of the interpreter after their last answer. They do so a moment late, and a
process that ends in that moment is aborted by them (10 of 60 short processes, obstore 0.12.1)."""


class CloudObjects:
    """Objects under one prefix of one bucket.

    Args:
        address: bucket, prefix and options.
        name: of the backend, for errors.
        request_timeout, connect_timeout: seconds.
        max_concurrency: requests under way at once.
    """

    durability = Durability.REPLICATED

    def __init__(
        self,
        address: Address,
        *,
        name: str,
        request_timeout: float,
        connect_timeout: float,
        max_concurrency: int,
    ) -> None:
        self._address = address
        self._shown = address.shown
        self._name = name
        self._request_timeout = request_timeout
        self._connect_timeout = connect_timeout
        self._max_concurrency = max_concurrency
        self._places = asyncio.Semaphore(max_concurrency)
        self._store: S3Store | GCSStore | AzureStore | None = None

    async def open(self) -> None:
        if self._store is None:
            try:
                import_module("obstore")
            except ImportError as error:
                raise ConfigurationError(
                    f"{self._shown} needs the package obstore: {INSTALL}", backend=self._name
                ) from error
            self._places = asyncio.Semaphore(self._max_concurrency)
            self._store = self._make()
        try:
            await self._prove()
        except BaseException:
            self._store = None
            raise

    async def close(self) -> None:
        if self._store is not None:
            self._store = None
            await asyncio.sleep(_LETTING_GO)

    def _make(self) -> S3Store | GCSStore | AzureStore:
        from obstore.exceptions import BaseError
        from obstore.store import AzureStore, GCSStore, S3Store

        options = self._address.options
        plain = options.endpoint is not None and options.endpoint.startswith("http://")
        common: dict[str, Any] = {
            "prefix": self._address.prefix or None,
            "client_options": {
                "timeout": timedelta(seconds=self._request_timeout),
                "connect_timeout": timedelta(seconds=self._connect_timeout),
                "allow_http": plain,
            },
            "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=self._request_timeout)},
        }
        try:
            match self._address.scheme:
                case "s3":
                    return S3Store(self._address.bucket, config=_s3(self._address), **common)
                case "gs":
                    return GCSStore(self._address.bucket, config=_google(self._address), **common)
                case _:
                    return AzureStore(self._address.bucket, config=_azure(self._address), **common)
        except (BaseError, ValueError) as error:
            raise ConfigurationError(
                f"{self._shown} cannot be used with these options: {error}", backend=self._name
            ) from error

    async def _prove(self) -> None:
        """Counters rest on conditional writes: an endpoint that ignores the condition would lose some in silence."""
        path = f"{_PROBES}/{token()}"
        first = await self.swap(path, b"one", None)
        try:
            await self._must_refuse(path, None)
            await self.swap(path, b"two", first)
            await self._must_refuse(path, first)
        except StorageError:
            with contextlib.suppress(StorageError):
                await self.delete([path])
            raise
        await self.delete([path])  # and this may be done too

    async def _must_refuse(self, path: str, stale: Version | None) -> None:
        with contextlib.suppress(Outdated):
            await self.swap(path, b"three", stale)
            raise UnsupportedOperationError(
                f"{self._shown} ignores conditions on writes, so concurrent writers would overwrite each other: use a "
                "service, or a version of it, that honours them",
                backend=self._name,
            )

    # ------------------------------------------------------------------ requests

    async def _ask(self, request: Callable[[], Awaitable[T]], outcome: Outcome) -> T:
        from obstore.exceptions import BaseError

        async with self._places:
            try:
                return await request()
            except (BaseError, OSError) as error:
                raise map_error(error, self._shown, self._name, outcome) from error

    @property
    def _opened(self) -> S3Store | GCSStore | AzureStore:
        assert self._store is not None, "the backend checks that it is open"
        return self._store

    async def get(self, path: str, known: Version | None = None) -> Found | Unchanged | None:
        return await self._ask(partial(self._get, path, known), "not_applied")

    async def _get(self, path: str, known: Version | None) -> Found | Unchanged | None:
        import obstore
        from obstore.exceptions import NotModifiedError

        options: GetOptions = {} if known is None else {"if_none_match": known.partition(" ")[0]}
        try:
            found = await obstore.get_async(self._opened, path, options=options)
            data = bytes(await found.bytes_async())
        except NotModifiedError:
            return UNCHANGED
        except FileNotFoundError as error:
            if bucket_is_missing(error):
                raise
            return None
        return Found(data, self._version(found.meta["e_tag"], found.meta["version"]))

    async def put(self, items: Sequence[tuple[str, bytes]]) -> None:
        await together([self._ask(partial(self._put, path, data), "unknown") for path, data in items])

    async def _put(self, path: str, data: bytes) -> None:
        import obstore

        await obstore.put_async(self._opened, path, data, use_multipart=False)

    async def swap(self, path: str, data: bytes, version: Version | None) -> Version:
        return await self._ask(partial(self._swap, path, data, version), "unknown")

    async def _swap(self, path: str, data: bytes, version: Version | None) -> Version:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: PutMode = "create" if version is None else self._condition(version)
        try:
            made = await obstore.put_async(self._opened, path, data, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError) as error:
            if bucket_is_missing(error):
                raise
            raise Outdated from error
        return self._version(made["e_tag"], made["version"])

    async def delete(self, paths: Sequence[str]) -> None:
        size = _DELETE_AT_ONCE if self._address.scheme == "s3" else 1  # the others have no request for many
        steps = [list(paths[start : start + size]) for start in range(0, len(paths), size)]
        await together([self._ask(partial(self._delete, step), "unknown") for step in steps])

    async def _delete(self, paths: list[str]) -> None:
        import obstore

        try:
            await obstore.delete_async(self._opened, paths)
        except FileNotFoundError as error:
            if bucket_is_missing(error):
                raise

    async def list_after(self, prefix: str, after: str, limit: int) -> list[Listed]:
        return await self._ask(partial(self._list, prefix, after, limit), "not_applied")

    async def _list(self, prefix: str, after: str, limit: int) -> list[Listed]:
        import obstore

        found = list[Listed]()
        stream = obstore.list(self._opened, prefix, offset=after or None, chunk_size=min(limit, 1_000))
        async for chunk in stream:
            for item in chunk:
                mark = item["e_tag"] or item["version"] or ""
                modified_us = int(item["last_modified"].timestamp() * 1_000_000)
                found.append(Listed(item["path"], mark, modified_us))
            if len(found) >= limit:
                break
        return found[:limit]

    # ------------------------------------------------------------------ versions

    def _version(self, e_tag: str | None, generation: str | None) -> Version:
        """ETag, and for Google the generation behind a blank: it takes the first for reading, the second for writing."""
        if e_tag is None or (self._address.scheme == "gs" and generation is None):
            raise StorageConnectionError(
                f"{self._shown} names no version of what it holds; nothing can be compared with it",
                transient=False,
                backend=self._name,
            )
        return f"{e_tag} {generation}" if self._address.scheme == "gs" else e_tag

    def _condition(self, version: Version) -> PutMode:
        if self._address.scheme == "gs":
            return {"version": version.rpartition(" ")[2]}
        return {"e_tag": version}  # a version beside it makes S3 refuse


def _given(**values: str | None) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _s3(address: Address) -> Any:
    options = address.options
    config = _given(
        endpoint=options.endpoint,
        region=options.region,
        access_key_id=options.access_key_id,
        secret_access_key=options.secret_access_key,
        session_token=options.session_token,
    )
    return {**config, "skip_signature": True} if options.anonymous else config


def _google(address: Address) -> Any:
    options = address.options
    config = _given(
        base_url=options.endpoint, service_account=options.service_account, bearer_token=options.session_token
    )
    if options.anonymous:
        # `skip_signature` alone leaves writes asking for a token.
        nobody = {
            "disable_oauth": True,
            "client_email": "",
            "private_key": "",
            "private_key_id": "",
            **_given(gcs_base_url=options.endpoint),
        }
        return {**config, "service_account_key": json.dumps(nobody), "skip_signature": True}
    return config


def _azure(address: Address) -> Any:
    options = address.options
    config = _given(
        endpoint=options.endpoint,
        account_name=options.access_key_id,
        account_key=options.secret_access_key,
        sas_key=options.session_token,
    )
    return {**config, "skip_signature": True} if options.anonymous else config
