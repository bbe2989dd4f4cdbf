"""What an episode is played on: a chain, and the stores under it that can be harmed and read back on their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...interface import Backend
from ..proxy import FaultProxy
from ..servers import Server


@dataclass(frozen=True, slots=True)
class Store:
    """One store of a chain.

    Attributes:
        name: as routing and errors call it.
        alone: makes the bare backend, reached directly: what it holds is read through this, never through the chain.
        server: the process that can be killed and stopped; None where the store is a file.
        proxy: the chain's way to it; None where there is no network.
    """

    name: str
    alone: Callable[[], Backend]
    server: Server | None = None
    proxy: FaultProxy | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """A chain over one or two stores.

    Attributes:
        name: for reports.
        chain: makes the chain, not yet open.
        stores: the primary first.
        config: the same chain as a configuration, where another process is to open it.
        deadline: seconds after which the chain promises that every call has ended.
        health_within: seconds after which health must have noticed that a store cannot be used.
    """

    name: str
    chain: Callable[[], Backend]
    stores: tuple[Store, ...]
    config: Mapping[str, Any] | None = None
    deadline: float = 2.0
    health_within: float = 2.0

    @property
    def primary(self) -> Store:
        return self.stores[0]

    @property
    def fallback(self) -> Store:
        """The last store: of two the second."""
        return self.stores[-1]

    async def heal(self) -> None:
        """Whatever was done to it: servers run again, networks let everything through."""
        for store in self.stores:
            if store.proxy is not None:
                store.proxy.heal()
            if store.server is not None and store.server.paused:
                await asyncio.to_thread(store.server.resume)
            elif store.server is not None and not store.server.running:
                await store.server.arestart()
