"""Reading through and writing through: one way for all that is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from enum import Enum
from typing import Final, Literal, ParamSpec, TypeVar

from ... import telemetry
from ...clock import monotonic, spawn
from ...errors import BackendClosedError, DeadlineExceededError, InvalidValueError, StorageError
from ...operations import Operation, OperationContext, begin, finish, is_observed
from .._sharing import befalls_all, own_copy
from ._entries import Entry, Lifetimes, Place
from ._fences import Flight
from ._state import CacheState

P = ParamSpec("P")
T = TypeVar("T")

SERVED_BY = "cache"
"""``op.served_by`` of an answer that no store was asked for."""


class Miss(Enum):
    """What a view says if the entry does not hold what is asked for."""

    MISS = 0


MISS: Final = Miss.MISS

Keep = Callable[[T, OperationContext], Entry]
"""Makes an entry of a store's answer; InvalidValueError if it cannot be kept."""

View = Callable[[Entry], T | Literal[Miss.MISS]]
"""Makes an answer of an entry, a copy for whoever asks."""


Successor = Callable[[Place, object, OperationContext], Entry | None]
"""What is true of a place after a write: the entry to keep, or None if only the store knows."""


class Reading:
    """Answers from entries, and keeps them true.

    Args:
        state: entries, fences and counts.
        lifetimes: how long entries are good for.
        name: of the store, for events.
    """

    def __init__(self, state: CacheState, lifetimes: Lifetimes, name: str) -> None:
        self._state = state
        self._lifetimes = lifetimes
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ reads

    async def read(
        self,
        place: Place,
        operation: Operation,
        keep: Keep[T],
        view: View[T],
        call: Callable[P, Awaitable[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """The answer of ``call``, from here if it is known."""
        context, token = begin(operation)
        try:
            now = monotonic()
            entry = self._state.entries.get(place)
            if entry is not None and now < entry.fresh_until and _accounted(entry):
                found = view(entry)
                if found is not MISS:
                    self._state.counts.hits += 1
                    _account(context, entry)
                    if now >= entry.refresh_from:
                        entry.refresh_from = entry.fresh_until  # once
                        self._refresh(place, operation, keep, lambda: call(*args, **kwargs))
                    return found
            return await self._miss(place, context, keep, view, lambda: call(*args, **kwargs))
        finally:
            finish(token)

    async def read_many(
        self,
        places: Sequence[Place],
        context: OperationContext,
        keep: Keep[T],
        view: Callable[[Entry], T],
        call: Callable[[Sequence[Place]], Awaitable[list[T]]],
    ) -> list[T]:
        """What is known from here, the rest in one request."""
        entries, fences, now = self._state.entries, self._state.fences, monotonic()
        found: dict[int, T] = {}
        for index, place in enumerate(places):
            entry = entries.get(place)
            if entry is not None and now < entry.fresh_until:
                found[index] = view(entry)
        self._state.counts.hits += len(found)
        missing = [index for index in range(len(places)) if index not in found]
        if not missing:
            context.served_by = SERVED_BY
            return [found[index] for index in range(len(places))]
        self._state.counts.misses += len(missing)
        generations = [fences.begin_load(places[index]) for index in missing]
        answers: list[T] = []
        try:
            answers = await call([places[index] for index in missing])
        finally:
            current = [
                fences.end_load(places[index], generation)
                for index, generation in zip(missing, generations, strict=True)
            ]
        nowhere = OperationContext()  # a request for many tells no positions
        for index, answer, is_current in zip(missing, answers, current, strict=True):
            found[index] = answer
            if is_current and not context.stale and not self._state.floors.get(places[index][1], 0):
                with suppress(InvalidValueError):  # a foreign store's answer that we have no form for
                    self.keep(places[index], keep(answer, nowhere))
        return [found[index] for index in range(len(places))]

    async def clear(
        self, operation: Operation, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Do what may change anything; then, however it ended, nothing is known any more."""
        _context, token = begin(operation)
        certain = False
        try:
            answer = await call(*args, **kwargs)
            certain = True
            return answer
        finally:
            self._state.clear()
            if not certain:
                self._state.fences.unsettle(None, monotonic())
            finish(token)

    async def close(self) -> None:
        """End what runs in the background."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def keep(self, place: Place, entry: Entry) -> None:
        """Put an entry in its place, unless a write of unknown outcome may still make it untrue."""
        now = monotonic()
        if not entry.fresh_until:
            self._lifetimes.date(entry, now)
        if now < entry.fresh_until and not self._state.fences.is_unsettled(place, now):
            self._state.entries.put(place, entry, now)

    async def _miss(
        self,
        place: Place,
        context: OperationContext,
        keep: Keep[T],
        view: View[T],
        load: Callable[[], Awaitable[T]],
    ) -> T:
        flights = self._state.fences.flights
        while (flight := flights.get(place)) is not None:
            await flight.end()
            if flight.error is not None:
                return self._instead(place, context, view, own_copy(flight.error))
            if flight.alone:
                break
            if flight.entry is not None and _accounted(flight.entry):
                found = view(flight.entry)
                if found is MISS:
                    break
                self._state.counts.joined += 1
                _account(context, flight.entry)
                context.stale = context.stale or flight.stale
                return found
        self._state.counts.misses += 1
        try:
            return await self._load(place, context, keep, load)
        except StorageError as error:
            return self._instead(place, context, view, error)

    async def _load(
        self,
        place: Place,
        context: OperationContext,
        keep: Keep[T],
        load: Callable[[], Awaitable[T]],
    ) -> T:
        """Ask the store; others wait for the same, and nobody is harmed if this is cancelled: one of them goes on."""
        fences, flight = self._state.fences, Flight()
        generation = fences.begin_load(place)
        fences.flights.setdefault(place, flight)
        context.position = context.clock = None
        try:
            answer = await load()
            try:
                flight.entry = keep(answer, context)
            except InvalidValueError:
                flight.alone = True  # a foreign store's answer that we have no form for
            flight.stale = context.stale
            return answer
        except StorageError as error:
            if befalls_all(error) and not isinstance(error, DeadlineExceededError):
                flight.error = error  # the deadline is this caller's own
            raise
        finally:
            current = fences.end_load(place, generation)
            if fences.flights.get(place) is flight:
                del fences.flights[place]
            if flight.entry is not None and not flight.stale:
                if current and self._is_not_behind(place, flight.entry):
                    self.keep(place, flight.entry)
                else:
                    self._state.counts.fenced += 1
            flight.land()

    def _is_not_behind(self, place: Place, entry: Entry) -> bool:
        floor = self._state.floors.get(place[1], 0)
        return not floor or (entry.clock is not None and entry.clock >= floor)

    def _instead(self, place: Place, context: OperationContext, view: View[T], error: StorageError) -> T:
        """What is over but not long ago, if the store fails; else its error."""
        entry = self._state.entries.get(place)
        if (
            entry is None
            or monotonic() >= entry.kept_until
            or not befalls_all(error)
            or isinstance(error, BackendClosedError)
        ):
            raise error
        found = view(entry)
        if found is MISS:
            raise error
        _account(context, entry)
        context.stale = True
        self._state.counts.stale += 1
        telemetry.event(telemetry.ANSWER_STALE, store=self._name, behind=True, error=error)
        return found

    # ------------------------------------------------------------------ ahead

    def _refresh(
        self, place: Place, operation: Operation, keep: Keep[T], load: Callable[[], Awaitable[T]]
    ) -> None:
        if place in self._state.fences.flights:
            return
        self._state.counts.refreshed += 1
        task = spawn(self._load_ahead(place, operation, keep, load), name=f"{self._name}: cache refresh")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load_ahead(
        self, place: Place, operation: Operation, keep: Keep[T], load: Callable[[], Awaitable[T]]
    ) -> None:
        context, token = begin(operation)
        try:
            await self._load(place, context, keep, load)
        except StorageError:
            return  # whoever reads it when it is over sees for himself
        finally:
            finish(token)

    # ------------------------------------------------------------------ writes

    async def write(
        self,
        operation: Operation,
        places: Sequence[Place],
        successor: Successor | None,
        call: Callable[P, Awaitable[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Do it; then, however it ended, what was known of these places is not true any more.

        Args:
            successor: what is true instead, if this was the only write there and it was acknowledged.
        """
        context, token = begin(operation)
        self._state.fences.begin_write(places)
        certain, done, answer = False, False, None
        try:
            result = answer = await call(*args, **kwargs)
            certain = done = True
            return result
        except StorageError as error:
            certain = error.outcome == "not_applied"
            raise
        finally:
            for place in places:
                self._ended(place, context, answer, successor if done else None, certain=certain)
            finish(token)

    def _ended(
        self,
        place: Place,
        context: OperationContext,
        answer: object,
        successor: Successor | None,
        *,
        certain: bool,
    ) -> None:
        state = self._state
        alone = state.fences.end_write(place)
        entry = successor(place, answer, context) if alone and successor is not None else None
        if certain:
            state.saw(place[1], context.position)
        else:
            state.fences.unsettle(place, monotonic())
        if state.entries.drop(place) and entry is None:
            state.counts.invalidated += 1
        if entry is not None:
            self.keep(place, entry)


def _accounted(entry: Entry) -> bool:
    """It says what the caller may want to know: the position that ``expected_version=`` takes."""
    return entry.position is not None or not is_observed()


def _account(context: OperationContext, entry: Entry) -> None:
    context.served_by = SERVED_BY
    context.position = entry.position
    context.clock = entry.clock
