"""The clocks that tests own."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from aiecs_resilient.clock import monotonic, use_wall_clock, wall_us
from aiecs_resilient.testing.clock import EPOCH_US, FakeWallClock, VirtualTimeLoop, run_virtual


def test_an_hour_of_sleep_takes_no_time() -> None:
    """The clock jumps over waits, and shows them."""

    async def scenario() -> tuple[float, float]:
        before = monotonic()
        await asyncio.sleep(3600)
        return before, monotonic()

    started = time.monotonic()
    before, after = run_virtual(scenario())
    assert after - before == pytest.approx(3600)
    assert time.monotonic() - started < 5


def test_timers_fire_in_their_order() -> None:
    """Concurrent sleepers wake in the order of their times, each at its own time."""

    async def scenario() -> list[tuple[str, float]]:
        woken: list[tuple[str, float]] = []

        async def sleeper(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            woken.append((name, round(monotonic(), 6)))

        await asyncio.gather(sleeper("c", 30), sleeper("a", 0.001), sleeper("b", 2.5))
        return woken

    assert run_virtual(scenario()) == [("a", 0.001), ("b", 2.5), ("c", 30.0)]


def test_a_timeout_expires_in_virtual_time() -> None:
    """asyncio.timeout works: it cuts what takes longer and lets pass what is quicker."""

    async def scenario() -> float:
        async with asyncio.timeout(10):
            await asyncio.sleep(9.99)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.Event().wait()
        return monotonic()

    assert run_virtual(scenario()) == pytest.approx(19.99)


def test_no_time_passes_while_there_is_work() -> None:
    """Tasks that are ready run at one and the same time."""

    async def scenario() -> set[float]:
        seen: set[float] = set()

        async def busy() -> None:
            for _ in range(50):
                await asyncio.sleep(0)
                seen.add(monotonic())

        timer = asyncio.ensure_future(asyncio.sleep(1))
        await asyncio.gather(*(busy() for _ in range(5)))
        timer.cancel()
        return seen

    assert run_virtual(scenario()) == {0.0}


def test_threads_hold_the_clock_to_real_time() -> None:
    """While a thread works the clock does not jump: a timeout does not cut work that is really quick."""

    async def scenario() -> tuple[str, float]:
        release = threading.Event()
        loop = asyncio.get_running_loop()
        loop.call_soon(release.set)
        async with asyncio.timeout(30):
            answer = await asyncio.to_thread(lambda: "done" if release.wait(20) else "late")
        return answer, monotonic()

    answer, now = run_virtual(scenario())
    assert answer == "done"
    assert now < 20


def test_real_time_can_be_asked_for() -> None:
    """Inside real_time() a wait lasts; after it the clock jumps again."""

    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        started = time.monotonic()
        with loop.real_time():
            await asyncio.sleep(0.05)
        real = time.monotonic() - started
        await asyncio.sleep(100)
        return real

    assert 0.04 < run_virtual(scenario()) < 20


def test_the_wall_clock_goes_along() -> None:
    """Under run_virtual wall_us() starts at a fixed time and moves with the loop."""

    async def scenario() -> tuple[int, int]:
        before = wall_us()
        await asyncio.sleep(1.5)
        return before, wall_us()

    assert run_virtual(scenario()) == (EPOCH_US, EPOCH_US + 1_500_000)


def test_errors_and_leftovers_are_handled_like_asyncio_run() -> None:
    """An error passes through, and tasks left behind are cancelled."""
    cancelled: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.sleep(10**9)
        except asyncio.CancelledError:
            cancelled.append("yes")
            raise

    async def scenario() -> None:
        scenario_task = asyncio.ensure_future(forever())
        await asyncio.sleep(1)
        assert not scenario_task.done()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_virtual(scenario())
    assert cancelled == ["yes"]


def test_a_fake_wall_clock_moves_only_when_told() -> None:
    """advance, set and tick are the only ways."""
    clock = FakeWallClock(1_000)
    assert (clock(), clock()) == (1_000, 1_000)
    clock.advance(1.5)
    assert clock() == 1_501_000
    clock.advance(-1)
    assert clock() == 501_000
    clock.set(7)
    assert clock() == 7
    ticking = FakeWallClock(tick_us=3)
    assert [ticking() - EPOCH_US for _ in range(3)] == [0, 3, 6]


def test_a_fake_wall_clock_is_what_the_library_reads() -> None:
    """use_wall_clock(FakeWallClock()) freezes every stamp and time inside the block."""
    clock = FakeWallClock(42)
    with use_wall_clock(clock):
        assert wall_us() == 42
    assert wall_us() > 42


def test_the_package_needs_no_pytest() -> None:
    """Importing aiecs_resilient.testing and its clock does not import pytest; only the contract suite does."""
    import subprocess
    import sys

    code = "import sys, aiecs_resilient.testing, aiecs_resilient.testing.clock; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
