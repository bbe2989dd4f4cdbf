"""What a store must do to be a leg of ``dual_write``: at most once, stamps, ranks, fence, marks (R1 to R6 of its rules)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from ...clock import wall_us
from ...errors import ConflictError, IncompleteStoreError, StaleRouteError, UnsupportedOperationError
from ...interface import Backend, Json
from ...records import FORMAT, Durability, RecordRef, Route, Scope
from . import _mutations as make
from ._base import ContractBase, contents, fresh, snapshot
from ._mutations import apply, records, refused

HOUR_US = 3_600_000_000


class ReplicationContract(ContractBase):
    """Applying records: for stores alone; a chain forwards these operations and need not be tested with them."""

    # ------------------------------------------------------------------ stamps and identities

    async def test_stamps_rise_within_a_key(self, storage: Backend) -> None:
        """Each accepted write gets a stamp above the last of its key, in the order of the call; proposals may tie or fall."""
        key, now = fresh(), wall_us()
        items = [make.message(key, f"m{n}", stamp=now - 1_000 * (n % 3)) for n in range(9)]
        applied = await apply(storage, *items)
        stamps = [result.stamp for result in applied]
        assert stamps == sorted(set(stamps))
        assert stamps[0] == now
        assert contents(await storage.get_conversation_history(key)) == [f"m{n}" for n in range(9)]

    async def test_a_proposal_cannot_run_ahead_of_the_clock(self, storage: Backend) -> None:
        """A proposed stamp an hour ahead is cut to about the store's own time."""
        key = fresh()
        [applied] = await apply(storage, make.message(key, "x", stamp=wall_us() + HOUR_US))
        assert applied.stamp <= wall_us() + 10_000_000

    async def test_too_old_a_write_is_refused(self, storage: Backend) -> None:
        """A write minted so long ago that its repeat might not be recognised is refused for good, not applied."""
        key = fresh()
        refusal = await refused(storage, make.message(key, "x", stamp=wall_us() - 24 * HOUR_US))
        assert isinstance(refusal, StaleRouteError)
        assert (refusal.transient, refusal.outcome) == (False, "not_applied")
        assert await storage.get_conversation_history(key) == []

    async def test_a_duplicate_is_told(self, storage: Backend) -> None:
        """The same op_id again, in one call or another: duplicate, with the first stamp, answer, effect and time."""
        key = fresh()
        item = make.message(key, "once")
        first, second = await apply(storage, item, replace(item, occurred_at=5, stamp=wall_us()))
        [third] = await apply(storage, replace(item, stamp=wall_us()))
        assert (first.duplicate, second.duplicate, third.duplicate) == (False, True, True)
        for later in (second, third):
            assert (later.stamp, later.answer, later.effect) == (first.stamp, first.answer, first.effect)
            assert later.occurred_at == first.occurred_at == item.occurred_at
        assert contents(await storage.get_conversation_history(key)) == ["once"]

    async def test_a_refusal_stays_with_its_item(self, storage: Backend) -> None:
        """In one call, a refused item neither stops nor undoes the others, also those of its own key."""
        key, other = fresh(), fresh()
        known = make.message(key, "known")
        await apply(storage, known)
        reused = make.message(key, "reused", op_id=known.op_id)
        late = make.context(key, 1, expected_version=7)
        results = await storage.apply(
            [make.message(key, "a"), reused, make.message(other, "b"), late, make.message(key, "c")]
        )
        assert [isinstance(result, ConflictError) for result in results] == [False, True, False, True, False]
        assert contents(await storage.get_conversation_history(key)) == ["known", "a", "c"]
        assert contents(await storage.get_conversation_history(other)) == ["b"]
        assert await storage.get_task_context(key) is None

    async def test_nothing_to_apply(self, storage: Backend) -> None:
        """An empty call answers an empty list."""
        assert await storage.apply([]) == []

    async def test_a_newer_form_is_left_untouched(self, storage: Backend) -> None:
        """A record of a format this version does not know is refused, not half understood."""
        key = fresh()
        item = make.message(key, "x", format=FORMAT + 1)
        for candidate in (item, replace(item, replay=True)):
            assert isinstance(await refused(storage, candidate), UnsupportedOperationError)
        assert await storage.get_conversation_history(key) == []

    async def test_answers_and_effects(self, storage: Backend) -> None:
        """Each kind answers as its operation does; what changed nothing has no effect and nothing to replay."""
        key = fresh()
        lost, gone, nothing = await apply(storage, make.update(key), make.end(key), make.delete(key))
        assert [(item.answer, item.effect) for item in (lost, gone, nothing)] == [(False, None)] * 3
        created, counted, ended, late = await apply(
            storage,
            make.create(key),
            make.update(key),
            make.end(key),
            make.update(key, fields={"status": "active"}),
        )
        assert (created.answer, counted.answer, ended.answer) == (True, True, True)
        assert (late.answer, late.effect) == (False, None)
        assert counted.effect is not None
        assert ended.effect is not None
        inc = counted.effect["inc"]
        assert inc == ended.effect["inc"]
        pruned_none, *_stored = await apply(
            storage, make.prune(key, 1), *(make.checkpoint(key, f"c{n}", n) for n in range(3))
        )
        [pruned] = await apply(storage, make.prune(key, 1))
        assert (pruned_none.answer, pruned_none.effect) == (0, None)
        assert pruned.answer == 2
        assert pruned.effect is not None
        assert sorted(pruned.effect["ids"]) == ["c0", "c1"]

    async def test_an_increment_counts_in_its_own_incarnation(self, storage: Backend) -> None:
        """A replayed increment of an earlier incarnation is not added to the present one."""
        key = fresh()
        old = make.create(key)
        await apply(storage, old, make.update(key), make.create(key))
        stray = make.update(key, 5, replay=True, stamp=wall_us() + 1_000_000)
        await apply(storage, replace(stray, body={**stray.body, "inc": old.op_id}))
        session = await storage.get_session(key)
        assert session is not None
        assert session["request_count"] == 0

    # ------------------------------------------------------------------ following

    async def test_a_replay_keeps_its_stamp(self, storage: Backend) -> None:
        """What the leader stamped is taken verbatim, however far from this store's clock, and the next stamp is above it."""
        key = fresh()
        for stamp in (5, wall_us() + 2 * HOUR_US):
            [applied] = await apply(storage, make.message(key, f"at {stamp}", stamp=stamp, replay=True))
            assert (applied.stamp, applied.duplicate) == (stamp, False)
        [next_one] = await apply(storage, make.message(key, "next"))
        assert next_one.stamp > stamp
        positions = [message["position"] for message in await storage.get_conversation_history(key)]
        assert positions == [5, stamp, next_one.stamp]

    async def test_a_replay_is_not_judged_again(self, storage: Backend) -> None:
        """A follower checks no version and no age: the leader has decided."""
        key = fresh()
        item = make.context(key, "x", stamp=7, replay=True, expected_version=99)
        [applied] = await apply(storage, item)
        assert applied.stamp == 7
        assert await storage.get_task_context(key) == "x"

    async def test_a_replay_answers_what_the_leader_answered(self, storage: Backend) -> None:
        """The direct repeat of a replayed operation gets the leader's answer."""
        key = fresh()
        item = make.prune(key, 0)
        follow = replace(item, replay=True, body={"ns": "", "ids": ["c1", "c2"]}, answer=2)
        await apply(storage, follow)
        [repeat] = await apply(storage, item)
        assert (repeat.duplicate, repeat.answer, repeat.stamp) == (True, 2, item.stamp)

    async def test_void_stays_void(self, storage: Backend) -> None:
        """What arrives after a delete with a lower stamp stays away; what has a higher one is there."""
        key, now = fresh(), wall_us()
        facts: dict[str, Any] = {"replay": True}
        await apply(storage, make.delete(key, Scope.ALL, stamp=now, **facts))
        early = now - 1_000
        await apply(
            storage,
            make.create(key, stamp=early, **facts),
            make.message(key, "early", stamp=early, **facts),
            make.context(key, "early", stamp=early, **facts),
            make.checkpoint(key, "early", 1, stamp=early, **facts),
            make.writes(key, "early", "t", 1, stamp=early, **facts),
        )
        state = await snapshot(storage, key)
        assert state["session"] is None
        assert (state["messages"], state["contexts"], state["checkpoints"]) == ([], [], [])
        assert await storage.get_writes(key, "early") == []
        await apply(storage, make.message(key, "later", stamp=now + 1, **facts))
        assert contents(await storage.get_conversation_history(key)) == ["later"]

    async def test_a_pruned_checkpoint_stays_pruned(self, storage: Backend) -> None:
        """A checkpoint or pending write that arrives after the prune that removed it stays away."""
        key, now = fresh(), wall_us()
        pruned = replace(make.prune(key, 0, stamp=now, replay=True), body={"ns": "", "ids": ["c"]})
        await apply(storage, pruned, make.checkpoint(key, "c", 1, stamp=now - 9, replay=True))
        await apply(storage, make.writes(key, "c", "t", 1, stamp=now - 8, replay=True))
        assert await storage.list_checkpoints(key) == []
        assert await storage.get_writes(key, "c") == []
        await apply(storage, make.checkpoint(key, "c", 2, stamp=now + 1, replay=True))
        assert [item["data"] for item in await storage.list_checkpoints(key)] == [2]

    # ------------------------------------------------------------------ one operation, two stamps

    @pytest.mark.parametrize(
        "kind", ["message", "context", "checkpoint", "writes", "update", "end", "create"]
    )
    async def test_of_two_stamps_the_higher_rank_wins(self, storage: Backend, kind: str) -> None:
        """A replay with a higher rank moves the operation to its stamp, with a lower one it does not; effects stay single."""
        key, now = fresh(), wall_us()
        await apply(storage, make.create(key, stamp=now - 500), make.checkpoint(key, "c", 0, stamp=now - 499))
        item = {
            "message": make.message(key, "x"),
            "context": make.context(key, "x"),
            "checkpoint": make.checkpoint(key, "c", "x"),
            "writes": make.writes(key, "c", "t", "x"),
            "update": make.update(key, 3, {"f": "x"}),
            "end": make.end(key),
            "create": make.create(key, "x"),
        }[kind]
        [mine] = await apply(storage, replace(item, stamp=now, rank=1))
        assert mine.effect is not None
        once = await _everything(storage, key)
        follow = replace(item, body=mine.effect, replay=True)
        for stamp, rank, stands in [
            (now + 5_000, 0, (mine.stamp, 1)),
            (mine.stamp - 1, 1, (mine.stamp, 1)),
            (now + 7_000, 1, (now + 7_000, 1)),
            (now + 6_000, 1, (now + 7_000, 1)),
            (now + 1_000, 2, (now + 1_000, 2)),
            (now + 9_000, 1, (now + 1_000, 2)),
        ]:
            [result] = await apply(storage, replace(follow, stamp=stamp, rank=rank))
            assert result.duplicate
            assert (result.stamp, result.rank) == stands
            assert _timeless(await _everything(storage, key)) == _timeless(once)
        if kind == "message":
            assert (await storage.get_conversation_history(key))[0]["position"] == now + 1_000

    async def test_a_direct_repeat_raises_the_rank_only(self, storage: Backend) -> None:
        """When the coordinator comes back by another leg the stored rank rises and the stamp stays."""
        key = fresh()
        item = make.message(key, "x")
        [first] = await apply(storage, item)
        [again] = await apply(storage, replace(item, rank=3, stamp=wall_us() + 500_000))
        [lower] = await apply(storage, replace(item, rank=1))
        assert (again.stamp, again.rank, again.duplicate) == (first.stamp, 3, True)
        assert (lower.stamp, lower.rank) == (first.stamp, 3)
        assert [record.rank for record in await records(storage, key)] == [3]

    # ------------------------------------------------------------------ marks

    async def test_marks_open_and_close(self, storage: Backend) -> None:
        """A write with mark is an open record until it is closed exactly as it stands; then it is known still."""
        key = fresh()
        before = await storage.store_state()
        items = [make.message(key, f"m{n}", mark=n > 0) for n in range(3)]
        applied = await apply(storage, *items)
        state = await storage.store_state()
        assert state.open_marks == before.open_marks + 2
        assert 0 < state.oldest_mark <= applied[1].stamp
        opened = await records(storage, key, open_only=True)
        assert [record.op_id for record in opened] == [item.op_id for item in items[1:]]
        assert [record.op_id for record in await records(storage, key)] == [item.op_id for item in items]
        newest = await records(storage, key, open_only=True, since=applied[2].stamp)
        assert [record.op_id for record in newest] == [items[2].op_id]
        refs = [RecordRef(key, result.op_id, result.stamp, result.rank) for result in opened]
        wrong = [
            replace(refs[0], stamp=refs[0].stamp + 1),
            replace(refs[0], rank=9),
            replace(refs[0], key=fresh()),
            replace(refs[0], op_id=fresh()),
            RecordRef(key, items[0].op_id, applied[0].stamp, 0),
        ]
        assert await storage.close_marks(wrong) == 0
        assert await storage.close_marks([*refs, refs[0]]) == 2
        assert await storage.close_marks(refs) == 0
        assert await records(storage, key, open_only=True) == []
        assert (await storage.store_state()).open_marks == before.open_marks
        [repeat] = await apply(storage, items[1])
        assert repeat.duplicate
        assert await storage.close_marks([]) == 0

    async def test_no_effect_no_mark(self, storage: Backend) -> None:
        """An operation that changed nothing opens no mark: there is nothing the peer lacks."""
        key, before = fresh(), await storage.store_state()
        await apply(
            storage, make.update(key, mark=True), make.end(key, mark=True), make.prune(key, 0, mark=True)
        )
        assert await records(storage, key, open_only=True) == []
        assert (await storage.store_state()).open_marks == before.open_marks

    async def test_a_recognised_replay_closes_the_mark(self, storage: Backend) -> None:
        """The peer replays what is marked here: it evidently has it, so this mark closes; unless ours must win there."""
        key, now = fresh(), wall_us()
        even, behind = make.message(key, "even", mark=True), make.message(key, "behind", mark=True, rank=2)
        applied = await apply(storage, even, behind)
        for item, result in zip((even, behind), applied, strict=True):
            await apply(
                storage,
                replace(item, replay=True, mark=False, stamp=result.stamp, rank=0 if item is even else 1),
            )
        assert [record.op_id for record in await records(storage, key, open_only=True)] == [behind.op_id]
        await apply(storage, replace(behind, replay=True, mark=False, stamp=now + 9_000, rank=3))
        assert await records(storage, key, open_only=True) == []

    async def test_a_follower_opens_no_mark(self, storage: Backend) -> None:
        """What is replayed here came from the peer."""
        key = fresh()
        await apply(storage, make.message(key, "x", replay=True))
        assert await records(storage, key, open_only=True) == []
        assert len(await records(storage, key)) == 1

    async def test_records_come_in_order_and_in_pages(self, storage: Backend) -> None:
        """Records of one key come by (stamp, op_id), every one once over all pages; `since` leaves out the older ones."""
        key = fresh()
        applied = await apply(storage, *(make.message(key, f"m{n}") for n in range(120)))
        found = await records(storage, key)
        assert [record.stamp for record in found] == [result.stamp for result in applied]
        assert all(record.replay and not record.mark for record in found)
        later = await records(storage, key, since=applied[100].stamp)
        assert [record.stamp for record in later] == [result.stamp for result in applied[100:]]

    # ------------------------------------------------------------------ the fence

    async def test_the_route_moves_by_compare_and_set(self, storage: Backend) -> None:
        """move_route installs a higher epoch if the store is still where the caller thinks, and says what holds."""
        start = (await storage.store_state()).route
        ours = Route(start.epoch + 1, "left")
        assert await storage.move_route(start.epoch, ours) == ours
        assert await storage.move_route(start.epoch, Route(start.epoch + 2, "right")) == ours
        assert await storage.move_route(ours.epoch, Route(ours.epoch, "right")) == ours
        assert (await storage.store_state()).route == ours

    async def test_of_concurrent_moves_one_wins(self, storage: Backend) -> None:
        """All who try at once learn the same winner."""
        start = (await storage.store_state()).route
        answers = await asyncio.gather(
            *(storage.move_route(start.epoch, Route(start.epoch + 1, f"leader-{n}")) for n in range(10))
        )
        assert len(set(answers)) == 1
        assert (await storage.store_state()).route == answers[0]

    async def test_the_fence_holds(self, storage: Backend) -> None:
        """Only the leader of the present epoch stamps; a follower takes nothing of an older epoch; epoch 0 is not fenced."""
        key, start = fresh(), (await storage.store_state()).route
        route = await storage.move_route(start.epoch, Route(start.epoch + 2, "left"))

        items = [
            make.message(key, "leader", epoch=route.epoch, home="left"),
            make.message(key, "other", epoch=route.epoch, home="right"),
            make.message(key, "older", epoch=route.epoch - 1, home="left"),
            make.message(key, "newer", epoch=route.epoch + 1, home="left"),
            make.message(key, "followed", epoch=route.epoch, home="right", replay=True),
            make.message(key, "followed newer", epoch=route.epoch + 1, home="right", replay=True),
            make.message(key, "followed older", epoch=route.epoch - 1, home="left", replay=True),
            make.message(key, "alone"),
        ]
        results = await storage.apply(items)
        taken = [
            item.body["content"]
            for item, result in zip(items, results, strict=True)
            if not isinstance(result, Exception)
        ]
        assert taken == ["leader", "followed", "followed newer", "alone"]
        for result in results:
            if isinstance(result, Exception):
                assert isinstance(result, StaleRouteError)
                assert (result.transient, result.outcome) == (True, "not_applied")
        assert sorted(contents(await storage.get_conversation_history(key))) == sorted(taken)
        assert (await storage.store_state()).route == route

    async def test_a_store_gives_an_account_of_itself(self, storage: Backend) -> None:
        """Incarnation, durability and clock are there and steady."""
        one, two = await storage.store_state(), await storage.store_state()
        assert one.incarnation == two.incarnation != ""
        assert isinstance(one.durability, Durability)
        assert abs(one.now_us - wall_us()) < 60_000_000

    # ------------------------------------------------------------------ clean-up and expiry

    async def test_a_delete_spares_what_came_alive(self, storage: Backend) -> None:
        """A delete with `before` removes only a key whose last stamp is below."""
        key = fresh()
        [applied] = await apply(storage, make.message(key, "x"))
        [spared] = await apply(storage, make.delete(key, Scope.ALL, before=applied.stamp))
        assert (spared.answer, spared.effect) == (False, None)
        assert contents(await storage.get_conversation_history(key)) == ["x"]
        [gone] = await apply(storage, make.delete(key, Scope.ALL, before=spared.stamp + 1))
        assert gone.answer is True
        assert await storage.get_conversation_history(key) == []

    async def test_idle_keys_are_found(self, storage: Backend) -> None:
        """read_idle names keys without a write since, not those written later, and never more than asked for."""
        idle, busy = fresh(), fresh()
        [first] = await apply(storage, make.message(idle, "x"))
        await apply(storage, make.message(busy, "x", stamp=first.stamp + 500_000))
        found = {item.key: item for item in await storage.read_idle(first.stamp + 1, 100_000)}
        assert idle in found
        assert busy not in found
        assert found[idle].scope == Scope.ALL
        assert len(await storage.read_idle(first.stamp + 1, 1)) == 1

    async def test_a_session_expires_as_data(self, storage: Backend) -> None:
        """After expires_at session, messages and contexts count as gone; the thread of the same id has its own expiry."""
        key, past = fresh(), wall_us() - 1_000
        gone: dict[str, Any] = {"stamp": past - 9, "expires_at": past, "replay": True}
        await apply(
            storage,
            make.checkpoint(key, "c", 1, expires_at=wall_us() + HOUR_US),
            make.create(key, **gone),
            make.message(key, "x", **gone),
            make.context(key, "x", **gone),
        )
        state = await snapshot(storage, key)
        assert state["session"] is None
        assert (state["messages"], state["contexts"]) == ([], [])
        assert await storage.get_task_context(key) is None
        assert key not in [session["session_id"] for session in await storage.list_sessions(user_id="u")]
        assert [item["data"] for item in state["checkpoints"]] == [1]
        idle = [item.scope for item in await storage.read_idle(0, 100_000) if item.key == key]
        assert idle == [Scope.SESSION]

    async def test_a_thread_expires_as_data(self, storage: Backend) -> None:
        """After expires_at checkpoints and pending writes count as gone; the session of the same id has its own expiry."""
        key, past = fresh(), wall_us() - 1_000
        gone: dict[str, Any] = {"stamp": past - 9, "expires_at": past, "replay": True}
        await apply(
            storage,
            make.message(key, "x", expires_at=wall_us() + HOUR_US),
            make.checkpoint(key, "c", 1, **gone),
            make.writes(key, "c", "t", 1, **gone),
        )
        assert await storage.get_checkpoint(key) is None
        assert await storage.get_checkpoint(key, "c") is None
        assert await storage.list_checkpoints(key) == []
        assert await storage.get_writes(key, "c") == []
        assert await storage.list_threads(after=key[:-1], limit=1) != [key]
        assert contents(await storage.get_conversation_history(key)) == ["x"]
        idle = [item.scope for item in await storage.read_idle(0, 100_000) if item.key == key]
        assert idle == [Scope.THREAD]

    async def test_life_after_expiry(self, storage: Backend) -> None:
        """The first write after an expiry starts from nothing and says so in its effect; it is itself visible."""
        key, past = fresh(), wall_us() - 1_000
        await apply(storage, make.create(key, stamp=past - 9, expires_at=past))
        [applied] = await apply(storage, make.message(key, "new", expires_at=wall_us() + HOUR_US))
        assert applied.effect is not None
        assert applied.effect["dead"] == {Scope.SESSION: past}
        assert contents(await storage.get_conversation_history(key)) == ["new"]
        assert await storage.get_session(key) is None
        [counted] = await apply(storage, make.update(key))
        assert counted.answer is False

    async def test_life_after_expiry_need_not_expire(self, storage: Backend) -> None:
        """What is written without an expiry after everything had expired stays: the old expiry went with what it ended."""
        key, past = fresh(), wall_us() - 1_000
        await apply(storage, make.create(key, stamp=past - 9, expires_at=past))
        await apply(storage, make.message(key, "new"))
        assert contents(await storage.get_conversation_history(key)) == ["new"]

    async def test_a_write_minted_before_an_expiry_lives_if_it_arrives_after(self, storage: Backend) -> None:
        """Its stamp is above what is void: it is not answered True and then invisible."""
        key, past = fresh(), wall_us() - 1_000
        await apply(storage, make.create(key, stamp=past - 9, expires_at=past))
        await apply(storage, make.message(key, "late", stamp=past - 5))
        assert contents(await storage.get_conversation_history(key)) == ["late"]

    async def test_a_write_that_must_act_is_refused_where_there_is_nothing(self, storage: Backend) -> None:
        """A store that may lack the session neither answers "no such session" nor remembers to have said so."""
        key = fresh()
        hasty = make.update(key)
        hasty.must_act = True
        [refused] = await storage.apply([hasty])
        assert isinstance(refused, IncompleteStoreError)
        assert (refused.transient, refused.outcome) == (True, "not_applied")
        assert await storage.operation_outcome(key, hasty.op_id) == "not_applied"
        await apply(storage, make.create(key))
        [applied] = await apply(storage, hasty)
        assert applied.answer is True


async def _everything(storage: Backend, key: str) -> dict[str, object]:
    return {**await snapshot(storage, key), "writes of c": await storage.get_writes(key, "c")}


def _timeless(value: Any) -> Any:
    """Without positions, versions and times: what a restamp may not change."""
    if isinstance(value, list):
        return [_timeless(item) for item in cast("Sequence[Any]", value)]
    if isinstance(value, dict):
        moving = {"position", "version", "timestamp", "created_at", "updated_at", "last_activity"}
        return {name: _timeless(item) for name, item in cast("Json", value).items() if name not in moving}
    return value
