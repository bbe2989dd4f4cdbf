"""Who leads: takeover when the leader is gone, fail-back when it has returned and caught up (dual-write.md, R6).

Each store holds ``{epoch, leader}``; the higher epoch wins, and every write is checked against it in its own atomic step,
so a process that routes by an old epoch is refused, not believed. Fail-back of the leader L from its stand-in S, store-wide::

    S leads          drain S -> L and L -> S while S goes on leading
    S fenced         S.move_route(epoch + 1, L): from now on S refuses writes; no later write can be missed
    drained          the rest of S -> L
    L leads          L.move_route(epoch + 1, L)

A crash anywhere leaves a state that the next supervisor recognises (a leader that is not at the epoch which names it)
and finishes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ... import telemetry
from ...clock import monotonic, spawn
from ...errors import ConfigurationError, StaleRouteError, StorageConnectionError, StorageError
from ...records import Route
from ._legs import Completeness, Leg
from ._replication import pages, replay

_HANDOVER_WAIT = 0.02  # seconds between two looks while another process hands the lead over


class Router:
    """The route as this process knows it, and the supervisor that keeps it true.

    Args:
        primary, fallback: the two legs.
        poll: seconds between two looks at both stores; also how fast another process's takeover is learnt.
        dwell: seconds that the stand-in leads at least, against flapping.
        lag: seconds after which an open mark counts as a record that the peer lacks rather than one on its way.
        loss_window: seconds of its last writes that a restarted store may have lost.
        page: records per step of a drain.
    """

    def __init__(
        self,
        primary: Leg,
        fallback: Leg,
        *,
        poll: float,
        dwell: float,
        lag: float,
        loss_window: float,
        page: int,
    ) -> None:
        self.primary, self.fallback = primary, fallback
        self.route = Route(0, "")
        self._poll, self._dwell, self._lag, self._page = poll, dwell, lag, page
        self._loss_window_us = int(loss_window * 1_000_000)
        self._lock = asyncio.Lock()
        self._gate = asyncio.Event()
        self._gate.set()
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._caught_up = asyncio.Event()
        self._led_since = 0.0
        self.replayed = 0
        self.refused: list[StorageError] = []
        self.problem: Exception | None = (
            None  # what keeps the supervisor from its work and is no store's fault
        )
        self.on_route: Callable[[Route], None] | None = None

    # ------------------------------------------------------------------ who is who

    @property
    def legs(self) -> tuple[Leg, Leg]:
        return self.primary, self.fallback

    @property
    def leader(self) -> Leg:
        return self.fallback if self.route.leader == self.fallback.name else self.primary

    def peer_of(self, leg: Leg) -> Leg:
        return self.fallback if leg is self.primary else self.primary

    @property
    def follower(self) -> Leg:
        return self.peer_of(self.leader)

    @property
    def degraded(self) -> bool:
        """Not both stores up, complete, and the primary leading."""
        return self.leader is self.fallback or not all(leg.up and leg.complete for leg in self.legs)

    async def passable(self) -> None:
        """Wait while the lead is being handed over."""
        await self._gate.wait()

    async def caught_up(self, leg: Leg, key: str | None, seconds: float) -> bool:
        """Wait for a store that is behind to have caught up, if its peer is there to give it what it lacks."""
        if not self.peer_of(leg).up:
            return False
        try:
            async with asyncio.timeout(seconds):
                while leg.may_lack(key):
                    self.wake()
                    await self._caught_up.wait()
        except TimeoutError:
            return False
        return True

    def wake(self) -> None:
        """Have the supervisor look now instead of at its next turn."""
        self._wake.set()

    # ------------------------------------------------------------------ lifecycle

    async def start(self) -> None:
        """Look at both stores and find out who leads. Raises if neither can be reached."""
        await self._look()
        if not any(leg.up for leg in self.legs):
            raise StorageConnectionError(
                f"neither store can be reached: {self.primary.last_error}; {self.fallback.last_error}",
                outcome="not_applied",
            ) from self.primary.last_error
        if self.route.epoch == 0:
            await self._install_first_route()
            await self._look()
        self._led_since = monotonic()
        try:
            await self._catch_up()
            await self._fail_back()
        except StorageError as error:
            telemetry.event(telemetry.RECONCILE_FAILED, error=error)
        self._task = spawn(self._supervise(), name="aiecs dual_write supervisor")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _install_first_route(self) -> None:
        """Neither store ever took part in a dual write: the primary leads, or its stand-in if it is away."""
        first = self.primary if self.primary.up else self.fallback
        route = Route(1, first.name)
        for leg in (first, self.peer_of(first)):
            if leg.up:
                self._adopt(await leg.backend.move_route(0, route))

    def _adopt(self, route: Route) -> bool:
        """Take over a higher epoch."""
        if route.epoch <= self.route.epoch:
            return False
        if route.leader not in (self.primary.name, self.fallback.name):
            raise ConfigurationError(
                f"the stores are led by {route.leader!r} (epoch {route.epoch}), which is neither {self.primary.name!r} nor "
                f"{self.fallback.name!r}: give the backends the names they had, or use fresh stores"
            )
        if route.leader != self.route.leader:
            self._led_since = monotonic()
        self.route = route
        if self.on_route is not None:
            self.on_route(route)
        return True

    # ------------------------------------------------------------------ takeover

    async def refresh(self, refused: Route, seconds: float) -> None:
        """A store refused this route: wait until there is another, or until its leader has been told that it leads."""
        limit = monotonic() + seconds
        while True:
            async with self._lock:  # while a hand-over is under way this waits for its end
                if self.route == refused:
                    await self._look()
            if self.route != refused or self._told(self.leader) or monotonic() >= limit:
                return
            self.wake()
            await asyncio.sleep(_HANDOVER_WAIT)

    async def take_over(self, failed: Route, cause: StorageError) -> None:
        """The leader of ``failed`` is unavailable: let the other store lead, for all processes.

        Raises:
            StorageConnectionError: the other store cannot be reached either.
        """
        async with self._lock:
            if self.route.epoch > failed.epoch:  # somebody was faster
                return
            leader, stand_in = self.leader, self.follower
            leader.failed(cause)
            try:
                state = await stand_in.backend.store_state()
                stand_in.answered(state, self._loss_window_us)
                if self._adopt(state.route):
                    return
                wanted = Route(self.route.epoch + 1, stand_in.name)
                held = await stand_in.backend.move_route(state.route.epoch, wanted)
            except StorageError as error:
                stand_in.failed(error)
                raise StorageConnectionError(
                    f"neither store can be reached: {leader}: {cause}; {stand_in}: {error}",
                    outcome=cause.outcome,
                    attempts=cause.attempts + error.attempts,
                ) from error
            self._adopt(held)
            leader.missed()
            telemetry.event(
                telemetry.FAILOVER_COMPLETED,
                epoch=held.epoch,
                leader=held.leader,
                previous=leader.name,
                cause=type(cause).__name__,
            )

    # ------------------------------------------------------------------ the supervisor

    async def _supervise(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._poll):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self._look()
                await self._catch_up()
                await self._fail_back()
                self.problem = None
            except StorageError as error:
                telemetry.event(telemetry.RECONCILE_FAILED, error=error)
            except Exception as error:  # noqa: BLE001  if it ended, the stores would stay apart for ever, and quietly
                self.problem = error
                telemetry.event(telemetry.RECONCILE_FAILED, error=error)

    async def _look(self) -> None:
        """Ask both stores how they are, each answer taken as it comes; adopt the highest epoch."""
        await asyncio.gather(*(self._ask(leg) for leg in self.legs))
        for leg in self.legs:
            self._judge(leg)

    async def _ask(self, leg: Leg) -> None:
        try:
            state = await leg.backend.store_state()
        except StorageError as error:
            leg.failed(error)
            return
        leg.answered(state, self._loss_window_us)
        self._adopt(state.route)

    def _judge(self, leg: Leg) -> None:
        """Does this store lack something? Its peer's open marks say so, once they are too old to be on their way.

        While the peer is away, what was known before still holds: this process saw every write of its own.
        """
        peer = self.peer_of(leg)
        if not peer.up or peer.state is None:
            return
        marks, age_us = peer.state.open_marks, peer.state.now_us - peer.state.oldest_mark
        if marks and (leg.completeness is Completeness.UNKNOWN or age_us > self._lag * 1_000_000):
            leg.completeness = Completeness.BEHIND
        elif leg.completeness is Completeness.UNKNOWN:
            leg.completeness = Completeness.COMPLETE

    async def _catch_up(self) -> None:
        """Give each store what it lacks of the other, and the route it has not heard of."""
        if not all(leg.up for leg in self.legs):
            return
        follower, state = self.follower, self.follower.state
        if state is not None and state.route.epoch < self.route.epoch:
            self._adopt(
                await follower.backend.move_route(state.route.epoch, self.route)
            )  # fences writers of the old epoch
        for target in (self.peer_of(follower), follower):  # the leader first: readers wait for it
            if not target.complete or target.unsure:
                await self._complete(target)
            self._caught_up.set()
            self._caught_up.clear()

    async def _complete(self, target: Leg) -> None:
        source = self.peer_of(target)
        misses, since, doubts, behind = (
            target.misses,
            target.rebuild_since,
            dict(target.unsure),
            not target.complete,
        )
        if since is not None:
            await self._drain(source, target, since=since, open_only=False)
        await self._drain(source, target, since=0, open_only=True)
        target.sure(doubts)
        if behind and target.misses == misses:
            target.rebuild_since = None
            target.completeness = Completeness.COMPLETE
            telemetry.event(telemetry.RECONCILE_COMPLETED, store=target.name, replayed=self.replayed)

    async def _drain(self, source: Leg, target: Leg, *, since: int, open_only: bool) -> int:
        count = 0
        refused: list[StorageError] = []
        async for records in pages(source.backend, since=since, open_only=open_only, size=self._page):
            done, bad = await replay(source.backend, target.backend, records, self.route.epoch)
            count += done
            refused += bad
            self.replayed += done
            telemetry.event(telemetry.RECONCILE_PROGRESSED, store=target.name, replayed=done)
        self.refused = refused[:100]
        return count

    async def _fail_back(self) -> None:
        """The primary is back and has everything: it leads again. And a hand-over that stopped midway is finished."""
        leader = self.leader
        if not all(leg.up and leg.state is not None for leg in self.legs):
            return
        told = self._told(leader)
        if told:
            settled = monotonic() - self._led_since >= self._dwell
            if leader is self.primary or not (settled and self.primary.complete):
                return
            telemetry.event(telemetry.FAILBACK_STARTED, epoch=self.route.epoch, leader=self.primary.name)
        self._gate.clear()
        try:
            async with self._lock:
                await self._hand_over(self.primary if told else leader)
        finally:
            self._gate.set()

    def _told(self, leg: Leg) -> bool:
        """Does the store itself hold the current route? If not, a hand-over to it stopped midway, or it came back empty."""
        return leg.state is not None and leg.state.route.epoch >= self.route.epoch

    async def _hand_over(self, new: Leg) -> None:
        old = self.peer_of(new)
        route = self.route
        if route.leader != new.name:
            route = Route(self.route.epoch + 1, new.name)
            held = await old.backend.move_route(self.route.epoch, route)
            if held != route:
                self._adopt(held)
                raise StaleRouteError(
                    f"another process moved the lead to {held.leader!r} (epoch {held.epoch}) meanwhile"
                )
        # From here on the old leader refuses writes: what it holds now is all there is.
        if new.rebuild_since is not None:
            await self._drain(old, new, since=new.rebuild_since, open_only=False)
        await self._drain(old, new, since=0, open_only=True)
        state = await new.backend.store_state()
        held = await new.backend.move_route(state.route.epoch, route)
        new.answered(await new.backend.store_state(), self._loss_window_us)
        self._adopt(held)
        telemetry.event(telemetry.FAILBACK_COMPLETED, epoch=held.epoch, leader=held.leader)
