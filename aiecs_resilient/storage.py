"""``open_storage()`` and the handle that an application holds: its chain can be replaced while it is in use.

The handle is the outermost place of every call, so it is where an operation gets its identity, and where calls are
counted: a chain that was replaced is closed when the last call on it has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import ClassVar, ParamSpec, TypeVar

from .assembly import Chain, build
from .clock import spawn
from .configuration.models import Plan
from .configuration.reader import Source
from .interface import Json
from .layers._base import UniformLayer
from .operations import Operation, begin, finish
from .registry import Registry

P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger(__name__)

DRAIN_SECONDS = 30.0


@dataclass(slots=True, eq=False)
class _Live:
    """A chain in use and the calls on it."""

    chain: Chain
    calls: int = 0
    idle: asyncio.Event | None = None


class Storage(UniformLayer):
    """The stable handle: a backend whose chain :meth:`reload` replaces in one assignment.

    Use it as ``async with open_storage(…) as storage``, or ``initialize()`` and ``close()`` it. Calls under way finish on
    the chain on which they began.
    """

    layer_name: ClassVar[str] = "storage"

    def __init__(self, source: Source, *, registry: Registry | None = None) -> None:
        self._registry = registry
        self._source = source
        self._live = _Live(build(source, registry=registry))
        self._open = False
        self._stop_telemetry: Callable[[], None] | None = None
        self._reloading = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        super().__init__(self._live.chain.backend)

    @property
    def plan(self) -> Plan:
        """The configuration in force."""
        return self._live.chain.plan

    def __repr__(self) -> str:
        return f"<Storage {self.plan.source} {'open' if self._open else 'closed'} over {self.inner!r}>"

    # ------------------------------------------------------------------ lifecycle

    async def initialize(self) -> bool:
        if self._open:
            return True
        asked = self._live.chain.observability
        if asked is not None and self._stop_telemetry is None:
            from .observability import setup_observability  # brings the SDK: only who asks for it pays for it

            self._stop_telemetry = setup_observability(asked)
        try:
            self._open = await self._live.chain.backend.initialize()
        finally:
            if not self._open:  # nobody closes what was never open
                await self.close()
        return self._open

    async def close(self) -> None:
        self._open = False
        if self._retiring:
            await asyncio.wait(self._retiring)
        try:
            await self._live.chain.close()
        finally:
            await self._end_telemetry()

    async def _end_telemetry(self) -> None:
        stop, self._stop_telemetry = self._stop_telemetry, None
        if stop is not None:
            await asyncio.to_thread(stop)  # sends what is left, which may take a while

    async def health_check(self) -> Json:
        return await self._counted(self.inner.health_check)

    async def get_metrics(self) -> Json:
        return await self._counted(self.inner.get_metrics)

    async def reload(self, source: Source | None = None, *, drain_seconds: float = DRAIN_SECONDS) -> None:
        """Put another chain in place; returns when the old one is closed.

        Breaker windows, budgets and stores whose configuration did not change are taken over. If the new configuration
        cannot be used, or its stores cannot be opened, this raises and nothing has changed.

        Args:
            source: the new configuration; None reads the same file again.
            drain_seconds: how long calls on the old chain may still take before it is closed.
        """
        async with self._reloading:
            wanted = self._source if source is None else source
            old = self._live
            chain = build(wanted, registry=self._registry, previous=old.chain)
            if self._open:
                try:
                    await chain.backend.initialize()
                except BaseException:
                    await chain.close()
                    raise
            self._take(chain, wanted)
            if chain.observability != old.chain.observability:
                _log.warning(
                    "%s: a changed `observability` takes effect at the next start", chain.plan.source
                )
            retire = spawn(_retire(old, drain_seconds), name="aiecs-retire-chain")
            self._retiring.add(retire)
            retire.add_done_callback(self._retiring.discard)
            await asyncio.shield(retire)  # whoever gives up waiting does not keep the old chain open

    def _take(self, chain: Chain, source: Source) -> None:
        self._live = _Live(chain)
        self.inner = chain.backend  # every method reads it at its call: this is the swap
        self.name, self.honours_op_id = chain.backend.name, chain.backend.honours_op_id
        self._source = source

    # ------------------------------------------------------------------ the way of every call

    async def around(
        self, op: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        live = self._live
        _context, token = begin(op)
        live.calls += 1
        try:
            return await call(*args, **kwargs)
        finally:
            live.calls -= 1
            if live.idle is not None and not live.calls:
                live.idle.set()
            finish(token)

    async def _counted(self, call: Callable[[], Awaitable[T]]) -> T:
        live = self._live
        live.calls += 1
        try:
            return await call()
        finally:
            live.calls -= 1
            if live.idle is not None and not live.calls:
                live.idle.set()


async def _retire(live: _Live, drain_seconds: float) -> None:
    if live.calls:
        live.idle = asyncio.Event()
        try:
            async with asyncio.timeout(drain_seconds):
                await live.idle.wait()
        except TimeoutError:
            _log.warning("closing a replaced chain under %d calls after %g s", live.calls, drain_seconds)
    try:
        await live.chain.close()
    except Exception:  # noqa: BLE001  # the new chain is in use: this must not look like a failed reload
        _log.warning("a replaced chain could not be closed cleanly", exc_info=True)


def open_storage(source: Source, *, registry: Registry | None = None) -> Storage:
    """The storage that a configuration describes, not yet connected.

    Args:
        source: a path, or the same structure as a mapping (``${VARIABLE}`` is substituted there too).
        registry: what names mean; ours and installed plugins by default.

    Raises:
        ConfigurationError: with file, line and column of everything that is wrong.
    """
    return Storage(source, registry=registry)
