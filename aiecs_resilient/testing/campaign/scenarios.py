"""What goes wrong, as data: a name and a coroutine that harms a stage. All of them heal what they harm.

A scenario paces itself by shares of the episode's seconds, so that the same one is a five-second test and an hour's soak.
What it did is counted, by itself for processes and by the proxies for networks: zero faults fail the episode.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from ..proxy import BlackHole, Cut, Fault, FaultProxy, ReplyLost, Reset, Silence
from ..servers import Server
from .stage import Stage, Store
from .watch import Outage

Need = Literal["primary server", "primary network", "fallback server", "fallback network"]


@dataclass(slots=True)
class Trouble:
    """The hand of a scenario: harms, heals, counts, and remembers when which store could not be used.

    Attributes:
        complete: waits until both stores hold everything again, while the load goes on.
    """

    stage: Stage
    seconds: float
    chance: random.Random
    complete: Callable[[], Awaitable[object]]
    struck: Counter[str] = field(default_factory=Counter[str])
    outages: list[Outage] = field(default_factory=list[Outage])

    async def wait(self, share: float) -> None:
        """So much of the episode."""
        await asyncio.sleep(share * self.seconds)

    async def kill(self, store: Store) -> None:
        """SIGKILL."""
        self.lost(store)
        await server(store).akill()
        self.struck["killed"] += 1

    async def restart(self, store: Store) -> None:
        """On its port and folder."""
        await server(store).arestart()
        self.returned(store)

    async def freeze(self, store: Store) -> None:
        """SIGSTOP: what was sent is applied when it thaws."""
        await asyncio.to_thread(server(store).pause)
        self.lost(store)
        self.struck["stopped"] += 1

    async def thaw(self, store: Store) -> None:
        """SIGCONT."""
        self.returned(store)
        await asyncio.to_thread(server(store).resume)

    @asynccontextmanager
    async def outage(self, store: Store, *faults: Fault) -> AsyncGenerator[None]:
        """The network to that store lets nothing through."""
        network(store).set(*faults)
        self.lost(store)
        try:
            yield
        finally:
            self.returned(store)
            network(store).heal()

    def faults(self) -> Counter[str]:
        """How often what has struck, so far."""
        found = Counter(self.struck)
        for store in self.stage.stores:
            if store.proxy is not None:
                found.update({kind.__name__: count for kind, count in store.proxy.injected.items()})
        return found

    def never_struck(self) -> list[str]:
        """Faults of the network that were asked for in vain."""
        proxies = [store.proxy for store in self.stage.stores if store.proxy is not None]
        struck = self.faults()  # on any of them: chance may spare one
        return sorted({kind.__name__ for proxy in proxies for kind in proxy.never_struck()} - struck.keys())

    def lost(self, store: Store) -> None:
        """From now on that store cannot be used, and health has to notice it."""
        self.outages.append(Outage(store.name, time.monotonic()))

    def returned(self, store: Store) -> None:
        """It can be used again."""
        for outage in self.outages:
            if outage.store == store.name and outage.end is None:
                outage.end = time.monotonic()


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way in which stores fail.

    Attributes:
        needs: what the stage must offer for it to be played.
        available: share of calls that must be answered while it lasts.
    """

    name: str
    play: Callable[[Trouble], Awaitable[None]]
    needs: frozenset[Need]
    available: float = 0.98

    def missing(self, stage: Stage) -> set[Need]:
        """What it needs and that stage has not."""
        has: dict[Need, bool] = {
            "primary server": stage.primary.server is not None,
            "primary network": stage.primary.proxy is not None,
            "fallback server": stage.fallback.server is not None,
            "fallback network": stage.fallback.proxy is not None,
        }
        return {need for need in self.needs if not has[need]}


SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str, *needs: Need, available: float = 0.98
) -> Callable[[Callable[[Trouble], Awaitable[None]]], Scenario]:
    """Name a coroutine and put it on the list."""

    def register(play: Callable[[Trouble], Awaitable[None]]) -> Scenario:
        SCENARIOS[name] = made = Scenario(name, play, frozenset(needs), available)
        return made

    return register


def server(store: Store) -> Server:
    if store.server is None:
        raise ValueError(f"{store.name} has no server that could be harmed; say so in the scenario's `needs`")
    return store.server


def network(store: Store) -> FaultProxy:
    if store.proxy is None:
        raise ValueError(
            f"{store.name} has no network that could be harmed; say so in the scenario's `needs`"
        )
    return store.proxy


@scenario("primary killed", "primary server")
async def primary_killed(trouble: Trouble) -> None:
    """SIGKILL, and back on its port and data."""
    primary = trouble.stage.primary
    await trouble.wait(0.2)
    await trouble.kill(primary)
    await trouble.wait(0.4)
    await trouble.restart(primary)
    await trouble.wait(0.4)


@scenario("primary stopped", "primary server", available=0.97)
async def primary_stopped(trouble: Trouble) -> None:
    """SIGSTOP: nothing answers, and what was sent is applied late."""
    primary = trouble.stage.primary
    await trouble.wait(0.2)
    await trouble.freeze(primary)
    await trouble.wait(0.4)
    await trouble.thaw(primary)
    await trouble.wait(0.4)


@scenario("replies lost", "primary network", available=0.95)
async def replies_lost(trouble: Trouble) -> None:
    """The primary executes, and between one and three answers of ten never arrive."""
    proxy = network(trouble.stage.primary)
    for _ in range(4):
        proxy.set(ReplyLost(probability=trouble.chance.uniform(0.1, 0.3)))
        await trouble.wait(0.18)
        proxy.heal()
        await trouble.wait(0.07)


@scenario("connections broken", "primary network", available=0.25)  # at times both breakers are open, rightly
async def connections_broken(trouble: Trouble) -> None:
    """On every network there is: resets, and answers cut off in the middle of a frame."""
    proxies = [store.proxy for store in trouble.stage.stores if store.proxy is not None]
    for turn in range(10):
        for place, proxy in enumerate(proxies):
            proxy.set(
                _break(trouble.chance, hard=turn % len(proxies) == place)
            )  # hard in turn: one store is left
        await trouble.wait(0.1)
    for proxy in proxies:
        proxy.heal()


def _break(chance: random.Random, *, hard: bool) -> Fault:
    """A way in which connections end, often or now and then."""
    at = chance.randint(1, 5_000 if hard else 50_000)
    reset = Reset(probability=0.1 if hard else 0.01)
    return chance.choice((reset, Cut(at=at, reset=chance.random() < 0.5), Cut(at=at, direction="request")))


@scenario("primary in a black hole", "primary network", available=0.97)
async def black_hole(trouble: Trouble) -> None:
    """Connections are accepted and every byte vanishes."""
    await trouble.wait(0.2)
    async with trouble.outage(trouble.stage.primary, BlackHole()):
        await trouble.wait(0.4)
    network(
        trouble.stage.primary
    ).drop_connections()  # what lost bytes stays silent: a real network ends it, too
    await trouble.wait(0.4)


@scenario("primary silent", "primary network", available=0.97)
async def primary_silent(trouble: Trouble) -> None:
    """Everything is executed and no answer comes; connections stay open."""
    await trouble.wait(0.2)
    async with trouble.outage(trouble.stage.primary, Silence()):
        await trouble.wait(0.3)
    await trouble.wait(0.5)


@scenario("fallback killed, then the primary", "primary server", "fallback server")
async def one_after_the_other(trouble: Trouble) -> None:
    """The primary works alone, the fallback comes back and catches up, then the primary goes."""
    primary, fallback = trouble.stage.primary, trouble.stage.fallback
    await trouble.wait(0.1)
    await trouble.kill(fallback)
    await trouble.wait(0.2)
    await trouble.restart(fallback)
    await trouble.complete()
    await trouble.kill(primary)
    await trouble.wait(0.3)
    await trouble.restart(primary)
    await trouble.wait(0.2)


@scenario("both killed", "primary server", "fallback server", available=0.2)
async def both_killed(trouble: Trouble) -> None:
    """For a while there is no store at all: nothing may be acknowledged then."""
    primary, fallback = trouble.stage.primary, trouble.stage.fallback
    await trouble.wait(0.2)
    await trouble.kill(primary)
    await trouble.wait(0.1)
    await trouble.kill(fallback)
    await trouble.wait(0.2)
    await trouble.restart(primary)
    await trouble.wait(0.1)
    await trouble.restart(fallback)
    await trouble.wait(0.3)
