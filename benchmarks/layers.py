"""What retry, circuit_breaker, timeout and deadline cost, beside a stack of tenacity and aiobreaker made by hand.

    python benchmarks/layers.py [--rounds 9] [--calls 2000]

Times are of the processor, not of the clock. Variants run interleaved, so that a noisy machine disturbs all of them alike;
printed are medians over the rounds, and beside
them the least of all rounds, which other programs disturb less. The second line is the inner backend again (A/A): its ratio
is the error of this measurement. Three tables: an answer at once (from memory or a cache), an answer for which the loop
turns once (where timers are armed), and a store that is down (a refusal by the open breaker).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import aiobreaker
import tenacity

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.errors import StorageConnectionError
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers import Layer
from aiecs_resilient.layers.circuit_breaker import CircuitBreaker
from aiecs_resilient.layers.deadline import Deadline
from aiecs_resilient.layers.logging import Logging
from aiecs_resilient.layers.metrics import Metrics
from aiecs_resilient.layers.retry import Retry
from aiecs_resilient.layers.timeout import Timeout
from aiecs_resilient.layers.tracing import Tracing
from aiecs_resilient.operations import GET_SESSION, begin, finish

SESSION = {"session_id": "s-1", "user_id": "user-1", "status": "active", "metadata": {}}

Call = Callable[[str], Awaitable[Any]]


class AtOnce(Layer):
    """As little as an inner backend can do."""

    async def get_session(self, session_id: str) -> dict[str, Any] | None:
        return SESSION


class NextTurn(Layer):
    """An answer that has to be waited for, as briefly as possible."""

    async def get_session(self, session_id: str) -> dict[str, Any] | None:
        await asyncio.sleep(0)
        return SESSION


class Down(Layer):
    """A store that refuses connections."""

    async def get_session(self, session_id: str) -> dict[str, Any] | None:
        raise StorageConnectionError("refused")


class Handle(Layer):
    """The identity that the stable handle gives to each call, so that layers find one as they do in use."""

    async def get_session(self, session_id: str) -> dict[str, Any] | None:
        _context, token = begin(GET_SESSION)
        try:
            return await self.inner.get_session(session_id)
        finally:
            finish(token)


def by_hand(inner: Backend) -> Call:
    """What one would write with the libraries: a total time, tenacity's decorator, aiobreaker, a time limit per attempt."""
    breaker = aiobreaker.CircuitBreaker(fail_max=5, timeout_duration=timedelta(seconds=60))

    async def attempt(session_id: str) -> Any:
        async with asyncio.timeout(1.0):
            return await inner.get_session(session_id)

    @tenacity.retry(
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
        retry=tenacity.retry_if_exception_type(StorageConnectionError),
        reraise=True,
    )
    async def repeated(session_id: str) -> Any:
        return await breaker.call_async(attempt, session_id)

    async def call(session_id: str) -> Any:
        async with asyncio.timeout(2.0):
            return await repeated(session_id)

    return call


def four(inner: Backend) -> Backend:
    """All four in the right order."""
    return Deadline(Retry(CircuitBreaker(Timeout(inner))))


def answering(inner: Backend) -> dict[str, Call]:
    """Variants over a store that works."""
    bare = Handle(inner).get_session
    return {
        "inner alone": bare,
        "inner alone again (A/A)": Handle(inner).get_session,
        "deadline": Handle(Deadline(inner)).get_session,
        "retry": Handle(Retry(inner)).get_session,
        "circuit_breaker": Handle(CircuitBreaker(inner)).get_session,
        "timeout": Handle(Timeout(inner)).get_session,
        "all four": Handle(four(inner)).get_session,
        "all four, tracing, metrics, logging": Handle(Tracing(Metrics(Logging(four(inner))))).get_session,
        "asyncio.timeout alone": _limited(bare),
        "by hand: timeout, tenacity, aiobreaker, timeout": by_hand(inner),
    }


def _limited(call: Call) -> Call:
    async def limited(session_id: str) -> Any:
        async with asyncio.timeout(1.0):
            return await call(session_id)

    return limited


async def refusing(inner: Backend) -> dict[str, Call]:
    """Variants over a store that is down, breakers open."""
    ours = CircuitBreaker(inner, minimum_calls=1, open_for=3_600, max_open_for=3_600)
    theirs = aiobreaker.CircuitBreaker(fail_max=1, timeout_duration=timedelta(hours=10))
    for call in (lambda: ours.get_session("s-1"), lambda: theirs.call_async(inner.get_session, "s-1")):
        await _failing(call)
    return {
        "the store's own error": inner.get_session,
        "the store's own error again (A/A)": inner.get_session,
        "refused by circuit_breaker": ours.get_session,
        "refused, through deadline and retry": Deadline(Retry(ours)).get_session,
        "refused by aiobreaker": lambda session_id: theirs.call_async(inner.get_session, session_id),
    }


async def _failing(call: Callable[[], Awaitable[Any]]) -> None:
    try:
        await call()
    except (StorageConnectionError, aiobreaker.CircuitBreakerError):
        return
    raise AssertionError("this should have failed")


async def answered(call: Call, calls: int) -> float:
    """Microseconds per call."""
    started = time.process_time()
    for _ in range(calls):
        await call("s-1")
    return (time.process_time() - started) / calls * 1e6


async def refused(call: Call, calls: int) -> float:
    """Microseconds per call that fails."""
    started = time.process_time()
    for _ in range(calls):
        try:
            await call("s-1")
        except Exception:  # noqa: BLE001  which error it is was checked before
            continue
    return (time.process_time() - started) / calls * 1e6


async def compare(
    title: str,
    variants: dict[str, Call],
    measure: Callable[[Call, int], Awaitable[float]],
    rounds: int,
    calls: int,
) -> None:
    """Interleaved rounds, then medians."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for call in variants.values():
        await measure(call, calls // 10)
    for _ in range(rounds):
        for name, call in variants.items():
            found[name].append(await measure(call, calls))
    base = next(iter(found.values()))
    print(
        f"\n{title:48} {'median µs':>9} {'added':>8} {'ratio':>7} {'least µs':>9} {'added':>8} {'ratio':>7}"
    )
    for name, times in found.items():
        figures = [
            f"{pick(times):9.2f} {pick(times) - pick(base):8.2f} {pick(times) / pick(base):7.2f}"
            for pick in (statistics.median, min)
        ]
        print(f"{name:48} {' '.join(figures)}")


async def run(rounds: int, calls: int) -> None:
    """The three tables."""
    memory = MemoryStorageBackend()
    await compare("an answer at once", answering(AtOnce(memory)), answered, rounds, calls)
    await compare("an answer at the loop's next turn", answering(NextTurn(memory)), answered, rounds, calls)
    await compare("a store that is down", await refusing(Down(memory)), refused, rounds, calls)


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=2_000)
    options = parser.parse_args()
    asyncio.run(run(options.rounds, options.calls))


if __name__ == "__main__":
    main()
