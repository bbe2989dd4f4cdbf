"""``dual_write``: each history that its rules were made for, one by one, on virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.clock import use_wall_clock
from aiecs_resilient.errors import (
    ConfigurationError,
    DeadlineExceededError,
    IncompleteStoreError,
    InvalidValueError,
    StorageConnectionError,
    UnsupportedOperationError,
)
from aiecs_resilient.layers.dual_write import DualWrite
from aiecs_resilient.operations import deadline, operation
from aiecs_resilient.records import Route
from aiecs_resilient.testing.clock import run_virtual

from .world import Process, Server, dump


@dataclass
class World:
    """Two stores and one process over them, ready to use."""

    hot: Server
    cold: Server
    process: Process

    @property
    def storage(self) -> DualWrite:
        return self.process.storage

    async def other_process(self) -> Process:
        process = Process(1, self.hot, self.cold, random.Random(1))
        await process.start()
        return process

    async def settled(self) -> None:
        """Both stores up, complete, the primary leading and no mark open."""
        async with asyncio.timeout(60):
            while self.storage.router.degraded or self.hot.store._marks or self.cold.store._marks:
                await asyncio.sleep(0.05)

    async def taken_over(self) -> None:
        async with asyncio.timeout(60):
            while self.storage.router.leader.name != "cold":
                await asyncio.sleep(0.05)

    def same(self) -> None:
        assert dump(self.hot) == dump(self.cold)


def scene(play: Callable[[World], Awaitable[None]], **options: object) -> None:
    """Run one scene to its end and close everything."""

    async def run() -> None:
        rng = random.Random(0)
        hot, cold = Server("hot", rng), Server("cold", rng)
        process = Process(0, hot, cold, rng, **options)
        process.skew_us = 0
        world = World(hot, cold, process)
        with use_wall_clock(process.wall):
            await process.start()
            await play(world)
            await process.close()
        await asyncio.sleep(1)

    run_virtual(run())


async def contents(storage: DualWrite | MemoryStorageBackend, key: str) -> list[str]:
    return [message["content"] for message in await storage.get_conversation_history(key, 0)]


def test_a_write_is_on_both_stores_with_one_stamp_and_no_mark_stays_open() -> None:
    """Healthy: leader, then follower, then the mark is closed."""

    async def play(world: World) -> None:
        async with operation("m-1") as op:
            await world.storage.add_conversation_message("s", "user", "hello")
        assert (op.durability, op.degraded, op.served_by) == ("both", False, "hot")
        await world.settled()
        world.same()
        assert await contents(world.cold.store, "s") == ["hello"]

    scene(play)


def test_the_fallback_takes_over_and_the_caller_never_hears_of_it() -> None:
    """A killed primary costs no error; the answer says that it is degraded and who served it."""

    async def play(world: World) -> None:
        await world.storage.create_session("s", "u")
        world.hot.kill()
        async with operation() as op:
            assert await world.storage.update_session("s", {}, True)
        assert (op.served_by, op.degraded, op.durability) == ("cold", True, "one")
        assert world.storage.router.route == Route(2, "cold")
        health = await world.storage.health_check()
        assert health["status"] == "degraded"
        assert any("leads" in issue for issue in health["issues"])

    scene(play)


def test_the_primary_leads_again_only_after_it_has_everything() -> None:
    """Fail-back drains, fences, drains the rest, and then hands over: nothing lost, equal stores, epoch 3."""

    async def play(world: World) -> None:
        await world.storage.create_session("s", "u")
        world.hot.kill()
        for number in range(50):
            await world.storage.add_conversation_message("s", "user", str(number))
        world.hot.restart()
        await world.settled()
        assert world.storage.router.route == Route(3, "hot")
        assert await contents(world.hot.store, "s") == [str(number) for number in range(50)]
        world.same()

    scene(play)


def test_writes_go_on_without_an_error_while_the_lead_is_handed_back() -> None:
    """Callers wait for the hand-over; none is refused, none is lost."""

    async def play(world: World) -> None:
        world.hot.kill()
        written = 0
        await world.storage.add_conversation_message("s", "user", "0")
        world.hot.restart()
        while world.storage.router.route.epoch < 3:
            written += 1
            await world.storage.add_conversation_message("s", "user", str(written))
        await world.settled()
        assert await contents(world.storage, "s") == [str(number) for number in range(written + 1)]
        world.same()

    scene(play)


def test_a_reply_lost_on_the_leader_and_the_write_repeated_on_the_follower_is_one_write() -> None:
    """R3: one op_id with two stamps; the version that was acknowledged wins on both sides."""

    async def play(world: World) -> None:
        await world.storage.create_session("s", "u")
        link = world.process.links[0]
        link.loss = 1.0
        link.rng = random.Random(3)  # the first draw keeps the request, the second loses the reply
        while world.storage.router.leader.name == "hot":
            assert await world.storage.update_session("s", {"colour": "red"}, True)
        link.loss = 0.0
        await world.settled()
        session = await world.storage.get_session("s")
        assert session is not None
        world.same()
        records = [r for r in world.hot.store._keys["s"].records.values() if r.kind == "update"]
        assert session["request_count"] == len(records)

    scene(play)


def test_a_stopped_leader_that_runs_the_write_late_changes_nothing() -> None:
    """The request that timed out is applied when the server resumes: the record is recognised, its stamp gives way."""

    async def play(world: World) -> None:
        await world.storage.create_session("s", "u")
        world.hot.stop()
        async with operation("late") as op:
            await world.storage.add_conversation_message("s", "user", "first")
        assert op.served_by == "cold"
        await world.storage.add_conversation_message("s", "user", "second")
        world.hot.resume()
        await world.settled()
        assert await contents(world.hot.store, "s") == ["first", "second"]
        world.same()

    scene(play)


def test_a_leader_that_was_superseded_refuses_the_writes_of_a_process_that_has_not_heard() -> None:
    """The fence: once told, the old leader accepts nothing of the old epoch, and the writer follows the new one."""

    async def play(world: World) -> None:
        other = await world.other_process()
        world.process.links[0].cut = True
        await world.storage.add_conversation_message("s", "user", "by the first")
        world.process.links[0].cut = False
        with use_wall_clock(other.wall):
            async with operation() as op:
                await other.storage.add_conversation_message("s", "user", "by the second")
        assert op.served_by == "cold"
        await world.settled()
        assert set(await contents(world.storage, "s")) == {"by the first", "by the second"}
        world.same()
        await other.close()

    scene(play)


def test_what_only_the_dead_primary_holds_is_never_answered_as_not_found() -> None:
    """R7: acknowledged while the fallback was away, then the primary dies: an error, not an empty answer."""

    async def play(world: World) -> None:
        world.cold.kill()
        await world.storage.create_session("s", "u")
        world.hot.kill()
        world.cold.restart()
        with pytest.raises(IncompleteStoreError, match="behind"):
            await world.storage.get_session("s")
        world.hot.restart()
        await world.settled()
        assert await world.storage.get_session("s") is not None
        world.same()

    scene(play)


def test_a_write_to_what_only_the_dead_primary_holds_is_refused_not_answered_with_false() -> None:
    """R7 for writes: the session is acknowledged, so "no such session" would be a lie; nothing is counted anywhere."""

    async def play(world: World) -> None:
        world.cold.kill()
        await world.storage.create_session("s", "u")
        world.hot.kill()
        world.cold.restart()
        for write in (
            world.storage.update_session("s", increment_requests=True),
            world.storage.end_session("s"),
        ):
            with pytest.raises(IncompleteStoreError, match="may lack"):
                await write
        world.hot.restart()
        await world.settled()
        session = await world.storage.get_session("s")
        assert session is not None
        assert (session["request_count"], session["status"]) == (0, "active")
        assert not await world.storage.update_session("nowhere", increment_requests=True)
        world.same()

    scene(play)


def test_on_incomplete_flag_answers_and_says_so() -> None:
    """Who prefers an answer gets one that is marked as stale."""

    async def play(world: World) -> None:
        world.cold.kill()
        await world.storage.create_session("s", "u")
        world.hot.kill()
        world.cold.restart()
        async with operation() as op:
            assert await world.storage.get_session("s") is None
        assert op.stale

    scene(play, on_incomplete="flag")


def test_a_new_process_that_sees_only_the_fallback_does_not_pretend_to_know() -> None:
    """It cannot read the primary's marks, so an absence is a guess and is refused; what is there is flagged."""

    async def play(world: World) -> None:
        await world.storage.create_session("s", "u")
        await world.settled()
        world.hot.kill()
        other = await world.other_process()
        with use_wall_clock(other.wall):
            async with operation() as op:
                assert await other.storage.get_session("s") is not None
            assert op.stale
            with pytest.raises(IncompleteStoreError):
                await other.storage.get_session("unknown")
        await other.close()

    scene(play)


def test_both_stores_down_acknowledges_nothing_and_names_both() -> None:
    """No store, no acknowledgement; and nothing was applied, which the error says."""

    async def play(world: World) -> None:
        world.hot.kill()
        world.cold.kill()
        with pytest.raises(StorageConnectionError, match=r"hot.*cold") as caught:
            await world.storage.create_session("s", "u")
        assert caught.value.outcome == "not_applied"
        world.hot.restart()
        world.cold.restart()
        await world.storage.create_session("s", "u")

    scene(play)


def test_a_crash_between_the_two_stores_leaves_a_mark_that_the_next_process_works_off() -> None:
    """The leader has it, the follower does not, nobody was told: the mark brings it over."""

    async def play(world: World) -> None:
        other = await world.other_process()
        other.links[1].dead = True  # it will hang on its way to the follower

        async def write(process: Process) -> None:
            await process.storage.add_conversation_message("s", "user", "half-way")

        other.run(write)
        async with asyncio.timeout(5):
            while not world.hot.store._marks:
                await asyncio.sleep(0.01)
        await other.crash()
        await asyncio.sleep(1)
        await world.settled()
        assert await contents(world.cold.store, "s") == ["half-way"]
        world.same()

    scene(play)


def test_a_hand_over_that_stopped_midway_is_finished_by_the_next_process() -> None:
    """The fallback is fenced for the primary, and then the process died: the next one drains the rest and installs it."""

    async def play(world: World) -> None:
        world.hot.kill()
        await world.storage.add_conversation_message("s", "user", "only on the fallback")
        await world.process.crash()
        assert await world.cold.store.move_route(2, Route(3, "hot")) == Route(3, "hot")
        world.hot.restart()
        other = await world.other_process()
        with use_wall_clock(other.wall):
            await other.storage.add_conversation_message("s", "user", "after")
            assert other.storage.router.route == Route(3, "hot")
        assert world.hot.store._route == Route(3, "hot")
        assert await contents(world.hot.store, "s") == ["only on the fallback", "after"]
        await other.close()

    scene(play)


def test_the_fallback_dies_while_it_leads_and_the_primary_takes_over_again() -> None:
    """A second outage on the other side: what the primary may lack is not denied, and in the end all is there."""

    async def play(world: World) -> None:
        world.hot.kill()
        await world.storage.add_conversation_message("s", "user", "while cold led")
        world.cold.kill()
        world.hot.restart()
        await world.storage.add_conversation_message("s", "user", "after the second takeover")
        assert world.storage.router.route == Route(3, "hot")
        world.cold.restart()
        await world.settled()
        assert set(await contents(world.storage, "s")) == {"while cold led", "after the second takeover"}
        world.same()

    scene(play)


def test_end_beats_an_update_that_the_other_store_accepted() -> None:
    """R4: on both sides the session is ended, whatever came in which order."""

    async def play(world: World) -> None:
        await world.storage.create_session("s", "u")
        await world.settled()
        other = await world.other_process()
        for process, store in ((world.process, 1), (other, 0)):
            process.links[store].cut = True  # the first sees only hot, the second only cold
        await world.storage.end_session("s", "done")
        with use_wall_clock(other.wall):
            await other.storage.update_session("s", {"status": "busy"}, True)
        for process in (world.process, other):
            for link in process.links:
                link.cut = False
        await other.close()
        await world.settled()
        session = await world.storage.get_session("s")
        assert session is not None
        assert (session["status"], session["request_count"]) == ("done", 1)
        world.same()

    scene(play)


def test_a_caller_in_a_hurry_does_not_move_the_leader() -> None:
    """Running into a short deadline of the caller's own is no evidence against the leader."""

    async def play(world: World) -> None:
        world.hot.stop()
        with pytest.raises(DeadlineExceededError):
            async with deadline(0.05):
                await world.storage.create_session("s", "u")
        assert world.storage.router.route == Route(1, "hot")
        world.hot.resume()

    scene(play)


def test_a_hung_leader_leaves_half_of_the_deadline_for_the_other_store() -> None:
    """The total time holds, and the write is acknowledged within it."""

    async def play(world: World) -> None:
        world.hot.stop()
        start = asyncio.get_running_loop().time()
        async with deadline(2.0):
            await world.storage.create_session("s", "u")
        assert asyncio.get_running_loop().time() - start < 2.0
        world.hot.resume()

    scene(play)


def test_operation_outcome_is_not_guessed_while_a_store_is_away() -> None:
    """ "Not applied" needs both stores' word; "applied" needs one."""

    async def play(world: World) -> None:
        async with operation("known"):
            await world.storage.add_conversation_message("s", "user", "x")
        await world.settled()
        world.hot.kill()
        assert await world.storage.operation_outcome("s", "known") == "applied"
        with pytest.raises(IncompleteStoreError):
            await world.storage.operation_outcome("s", "never")
        world.hot.restart()
        assert await world.storage.operation_outcome("s", "never") == "not_applied"

    scene(play)


def test_an_acknowledgement_never_rests_on_volatile_stores_unless_that_is_allowed() -> None:
    """Memory forgets with its process: by default it is refused before anything is written."""

    async def play() -> None:
        hot, cold = MemoryStorageBackend(name="hot"), MemoryStorageBackend(name="cold")
        async with DualWrite(hot, cold) as storage:
            with pytest.raises(StorageConnectionError, match="durable_at_least") as caught:
                await storage.create_session("s", "u")
            assert caught.value.outcome == "not_applied"
            assert await hot.get_session("s") is None

    run_virtual(play())


def test_two_stores_of_one_name_are_refused() -> None:
    """Routing is kept in the stores by name."""
    with pytest.raises(InvalidValueError, match="different"):
        DualWrite(MemoryStorageBackend(), MemoryStorageBackend())


def test_a_store_that_knows_no_op_id_cannot_be_a_leg() -> None:
    """Its replay would be a second effect."""
    foreign = MemoryStorageBackend(name="foreign")
    foreign.honours_op_id = False
    with pytest.raises(UnsupportedOperationError, match="op_id"):
        DualWrite(foreign, MemoryStorageBackend())


def test_stores_that_were_led_by_a_stranger_are_not_touched() -> None:
    """Renamed backends would leave records without a peer: a clear error instead."""

    async def play() -> None:
        hot, cold = MemoryStorageBackend(name="hot"), MemoryStorageBackend(name="cold")
        async with hot, cold:
            await hot.move_route(0, Route(4, "another"))
            with pytest.raises(ConfigurationError, match="another"):
                await DualWrite(hot, cold).initialize()

    run_virtual(play())


def test_a_store_that_hangs_does_not_make_health_hang() -> None:
    """I10: health says degraded within two seconds, also of a stopped server that accepts connections and never answers."""

    async def play(world: World) -> None:
        async def hang() -> dict[str, object]:
            return await asyncio.Event().wait()  # type: ignore[return-value]

        world.storage.router.primary.backend.health_check = hang
        started = asyncio.get_running_loop().time()
        report = await world.storage.health_check()
        assert asyncio.get_running_loop().time() - started <= 2.0
        assert report["status"] == "degraded"
        assert "no answer to a health check" in str(report["legs"]["primary"]["issues"])

    scene(play)
