"""The store's own object: which store this is, and who leads. Changed by compare-and-set, like a head."""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass, replace
from typing import Any

from ...codec import decode, encode
from ...errors import DataCorruptionError, StorageConnectionError, StorageError, UnsupportedOperationError
from ...records import Route
from ._names import STORE
from ._objects import Found, Objects, Outdated, Unchanged, Version, seal, unseal

FORMAT = 1
_ROUNDS = 100


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What it says."""

    incarnation: str
    route: Route
    version: Version


class StoreObject:
    """Reads and moves it.

    Args:
        objects: where it is.
        name: of the backend, for errors.
    """

    def __init__(self, objects: Objects, name: str) -> None:
        self._objects = objects
        self._name = name
        self._known: StoreFacts | None = None

    async def create(self) -> None:
        """Make it if it is not there; of several who try at once one does."""
        self._known = None
        if await self._find() is None:
            with contextlib.suppress(Outdated):
                await self._objects.swap(STORE, _pack(uuid.uuid4().hex, Route(0, "")), None)
            await self.read()

    async def read(self) -> StoreFacts:
        """What it says now."""
        found = await self._find()
        if found is None:
            raise StorageConnectionError(
                "the store's own object is gone: was the store emptied or moved? Restore it, or initialize it anew",
                outcome="not_applied",
                backend=self._name,
            )
        return found

    async def _find(self) -> StoreFacts | None:
        known = self._known
        found = await self._objects.get(STORE, None if known is None else known.version)
        if isinstance(found, Unchanged):
            return known
        self._known = None if found is None else _unpack(found)
        return self._known

    async def read_route(self) -> Route:
        """Who leads, now."""
        return (await self.read()).route

    async def move_route(self, expected_epoch: int, route: Route) -> Route:
        """Compare-and-set; the route that holds afterwards."""
        for _round in range(_ROUNDS):
            held = await self.read()
            if held.route.epoch != expected_epoch or route.epoch <= expected_epoch:
                return held.route
            try:
                version = await self._objects.swap(STORE, _pack(held.incarnation, route), held.version)
            except Outdated:
                continue
            except StorageError:
                self._known = None
                if (await self.read()).route == route:
                    return route
                raise
            self._known = replace(held, route=route, version=version)
            return route
        raise AssertionError("the epoch rises with every move, so the expected one cannot come back")


def _pack(incarnation: str, route: Route) -> bytes:
    # The nonce makes every state of the object another one, also in stores that name states by their content.
    return seal(encode([FORMAT, incarnation, route.epoch, route.leader, uuid.uuid4().hex], "store"))


def _unpack(found: Found) -> StoreFacts:
    value: Any = decode(unseal(found.data, STORE), "store")
    try:
        if value[0] > FORMAT:
            raise UnsupportedOperationError(
                f"the store has format {value[0]}, this version knows {FORMAT}: update this process"
            )
        _format, incarnation, epoch, leader, _nonce = value
    except (TypeError, ValueError, IndexError) as error:
        raise DataCorruptionError(f"the store's own object has a form that is not known: {error}") from error
    return StoreFacts(incarnation, Route(epoch, leader), found.version)
