"""What applying a write means, once, in Python: the reference that memory and SQLite run and Lua and SQL mirror.

The state of a key is a function of the *set* of its records, so two stores that hold the same records are equal, in
whatever order they arrived (dual-write.md, R2 to R5): sessions are kept per incarnation, fields are
last-writer-wins by (stamp, op_id), counters are sums over records that count once, deletes leave a stamp below which
everything is void.

``apply_one`` must run inside one atomic step of the store; :class:`Tables` is what it needs of that store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..errors import (
    ConflictError,
    IncompleteStoreError,
    InvalidValueError,
    StaleRouteError,
    StorageError,
    UnsupportedOperationError,
)
from ..records import FORMAT, THREAD_KINDS, VALUE_KINDS, Applied, Kind, Mutation, Route, Scope, SessionRow

CLOCK_LEAD_US = 1_000_000  # how far a proposed stamp may run ahead of the store's clock (R2)
NOTHING: Mapping[str, Any] = {}


@dataclass(slots=True)
class KeyRow:
    """One key's clock and tombstones. ``*_dead``: stamps up to this are void. ``*_expires``: UTC microseconds, 0 never."""

    clock: int = 0
    session_dead: int = 0
    thread_dead: int = 0
    session_expires: int = 0
    thread_expires: int = 0
    current: str = ""  # the incarnation that counts; "" for none


@dataclass(slots=True)
class RecordRow:
    """One operation as it was applied here. ``effect``: None nothing to replay; for value kinds it is read from the row it made."""

    op_id: str
    kind: str
    stamp: int
    rank: int
    home: str
    marked: bool
    fingerprint: bytes
    occurred_at: int
    answer: Any
    effect: Mapping[str, Any] | None
    expires_at: int = 0
    format: int = FORMAT


@dataclass(slots=True)
class ValueRow:
    """A checkpoint, a task's pending writes or a version of a context. ``body`` None: pruned at that stamp (a tombstone)."""

    stamp: int
    op_id: str
    occurred_at: int
    body: Mapping[str, Any] | None = field(default=None)


class Tables(Protocol):
    """One key's rows inside one atomic step. ``load`` methods return copies or None; ``save`` methods insert or replace."""

    def load_key(self) -> KeyRow: ...
    def save_key(self, row: KeyRow) -> None: ...
    def load_record(self, op_id: str) -> RecordRow | None: ...
    def save_record(self, row: RecordRow) -> None: ...
    def load_session(self, inc: str) -> SessionRow | None: ...
    def load_sessions(self) -> list[SessionRow]: ...
    def save_session(self, row: SessionRow) -> None: ...
    def drop_session(self, inc: str) -> None: ...
    def load_message(self, op_id: str) -> Mapping[str, Any] | None: ...
    def save_message(self, op_id: str, stamp: int, occurred_at: int, body: Mapping[str, Any]) -> None: ...
    def drop_messages(self, upto: int) -> int: ...
    def newest_context(self) -> int: ...
    def load_context(self, op_id: str) -> ValueRow | None: ...
    def save_context(self, row: ValueRow) -> None: ...
    def drop_contexts(self, upto: int) -> int: ...
    def load_checkpoint(self, ns: str, id: str) -> ValueRow | None: ...
    def save_checkpoint(self, ns: str, id: str, row: ValueRow) -> None: ...
    def checkpoint_ids(self, ns: str) -> list[str]: ...  # newest first, without tombstones
    def load_writes(self, ns: str, id: str, task: str) -> ValueRow | None: ...
    def save_writes(self, ns: str, id: str, task: str, row: ValueRow) -> None: ...
    def drop_writes(self, ns: str, id: str, upto: int) -> None: ...
    def drop_thread(self, upto: int) -> int: ...  # checkpoints, tombstones and writes
    def holds(self, scope: str) -> bool: ...  # anything that a delete of this scope would take away


def check_route(route: Route, mutation: Mutation) -> StaleRouteError | None:
    """The fence (R6): only the leader of the store's own epoch stamps; a follower takes nothing from an older epoch."""
    if mutation.epoch == 0 or (mutation.replay and mutation.epoch >= route.epoch):
        return None
    if not mutation.replay and (mutation.epoch, mutation.home) == (route.epoch, route.leader):
        return None
    return StaleRouteError(
        f"routed by epoch {mutation.epoch} to {mutation.home!r}, but this store is at epoch {route.epoch}, led by {route.leader!r}"
    )


def nothing_to_write_to(mutation: Mutation) -> IncompleteStoreError:
    """``must_act``: the answer would be "no such session", from a store that may lack it."""
    return IncompleteStoreError(
        f"there is nothing here that a {mutation.kind} of {mutation.key!r} could change, and this store may lack what only "
        "its peer holds; try again"
    )


def apply_one(
    tables: Tables, mutation: Mutation, *, now_us: int, route: Route, max_age_us: int
) -> Applied | StorageError:
    """Apply one mutation at most once. A refusal is returned, and then nothing has been changed."""
    refusal = check_route(route, mutation)
    if refusal is not None:
        return refusal
    if mutation.format > FORMAT:
        return UnsupportedOperationError(
            f"record of format {mutation.format}, this version knows {FORMAT}: update this process"
        )
    known = tables.load_record(mutation.op_id)
    if known is not None:
        return _repeat(tables, known, mutation)
    if mutation.replay:
        return _follow(tables, mutation)
    if mutation.stamp < now_us - max_age_us:
        return StaleRouteError(
            f"the write was minted {(now_us - mutation.stamp) / 1e6:.0f} s ago, over the limit of {max_age_us / 1e6:.0f} s: "
            "its identity may have been forgotten; issue it anew",
            transient=False,
        )
    return _accept(tables, mutation, now_us)


# ---------------------------------------------------------------------- the three ways in


def _repeat(tables: Tables, known: RecordRow, mutation: Mutation) -> Applied | StorageError:
    """It is here already (R3): of two stamps for one op_id the higher rank counts, then the higher stamp."""
    if not mutation.replay:
        if known.fingerprint != mutation.fingerprint:
            return ConflictError(
                f"op_id {mutation.op_id!r} was used before for another payload; mint a new one"
            )
        if mutation.rank > known.rank:
            known.rank = mutation.rank
            known.marked = known.marked or (mutation.mark and known.effect is not None)
            tables.save_record(known)
    else:
        theirs, mine = (mutation.rank, mutation.stamp), (known.rank, known.stamp)
        if theirs > mine:
            _redo(tables, known, mutation)
            known.stamp, known.rank, known.answer = mutation.stamp, mutation.rank, mutation.answer
        # The peer evidently has it. Only if it stands there under a losing stamp must it still hear of ours,
        # also if ours did nothing: then the peer has something to withdraw.
        known.marked = theirs < mine
        if known.marked and known.effect is None:
            known.effect = NOTHING
        tables.save_record(known)
    return Applied(
        stamp=known.stamp,
        rank=known.rank,
        answer=known.answer,
        effect=effect_of(tables, known),
        occurred_at=known.occurred_at,
        expires_at=known.expires_at,
        duplicate=True,
    )


def _follow(tables: Tables, mutation: Mutation) -> Applied:
    """Replay what the peer accepted: its stamp, its effect, its answer, verbatim."""
    row = tables.load_key()
    row.clock = max(row.clock, mutation.stamp)
    for scope, upto in mutation.body.get("dead", NOTHING).items():
        _bury(tables, row, scope, upto)
    if mutation.body.keys() - {"dead"}:  # else a later write has replaced it: only its identity is new here
        _MERGE[mutation.kind](tables, row, mutation, mutation.body)
    _renew_expiry(row, mutation.kind, mutation.expires_at)
    tables.save_key(row)
    return _record(tables, mutation, mutation.stamp, mutation.answer, mutation.body)


def _accept(tables: Tables, mutation: Mutation, now_us: int) -> Applied | StorageError:
    """Decide what happens, give it a stamp, do it."""
    row = tables.load_key()
    dead: dict[str, int] = {}
    if 0 < row.session_expires <= now_us and row.session_dead < row.session_expires:
        dead[Scope.SESSION] = row.session_expires
    if 0 < row.thread_expires <= now_us and row.thread_dead < row.thread_expires:
        dead[Scope.THREAD] = row.thread_expires
    # Above all that is void: a write minted before an expiry and arriving after it is alive.
    floor = max(row.clock, row.session_dead, row.thread_dead, *dead.values())
    stamp = max(min(mutation.stamp, now_us + CLOCK_LEAD_US), floor + 1)
    decision = _decide(tables, row, mutation, dead)
    if isinstance(decision, StorageError):
        return decision
    answer, effect = decision
    if effect is None and mutation.must_act:
        return nothing_to_write_to(mutation)
    if effect is not None and dead:
        effect = {**effect, "dead": dead}
    if effect is not None:  # a write without effect moves no clock: the peer never hears of it
        row.clock = stamp
        for scope, upto in dead.items():
            _bury(tables, row, scope, upto)
        stamped = replace(mutation, stamp=stamp)
        _MERGE[mutation.kind](tables, row, stamped, effect)
        _renew_expiry(row, mutation.kind, mutation.expires_at)
        tables.save_key(row)
    return _record(tables, mutation, stamp, answer, effect)


def _record(
    tables: Tables, mutation: Mutation, stamp: int, answer: Any, effect: Mapping[str, Any] | None
) -> Applied:
    record = RecordRow(
        op_id=mutation.op_id,
        kind=mutation.kind,
        stamp=stamp,
        rank=mutation.rank,
        home=mutation.home,
        marked=mutation.mark and effect is not None,
        fingerprint=mutation.fingerprint,
        occurred_at=mutation.occurred_at,
        answer=answer,
        effect=effect if effect is None or mutation.kind not in VALUE_KINDS else _reference(effect),
        expires_at=mutation.expires_at,
        format=mutation.format,
    )
    tables.save_record(record)
    return Applied(
        stamp=stamp,
        rank=mutation.rank,
        answer=answer,
        effect=effect,
        occurred_at=mutation.occurred_at,
        expires_at=mutation.expires_at,
    )


# ---------------------------------------------------------------------- what the accepting store decides

Decision = tuple[Any, Mapping[str, Any] | None] | StorageError
"""Answer and effect; effect None when nothing happens and so nothing is replayed."""


def _decide(tables: Tables, row: KeyRow, mutation: Mutation, dead: Mapping[str, int]) -> Decision:
    body = mutation.body
    current = None if Scope.SESSION in dead or not row.current else tables.load_session(row.current)
    thread_dead = dead.get(Scope.THREAD, row.thread_dead)
    match mutation.kind:
        case Kind.CREATE | Kind.MESSAGE | Kind.WRITES:
            return True, body
        case Kind.UPDATE:
            wrong = _version_conflict(mutation, current.touched[0] if current is not None else 0)
            if wrong is not None:
                return wrong
            if current is None or (current.ended is not None and "status" in body["fields"]):
                return False, None
            return True, {**body, "inc": current.inc}
        case Kind.END:
            return (False, None) if current is None else (True, {**body, "inc": current.inc})
        case Kind.CONTEXT:
            newest = 0 if Scope.SESSION in dead else tables.newest_context()
            return _version_conflict(mutation, newest) or (True, body)
        case Kind.CHECKPOINT:
            held = tables.load_checkpoint(body["ns"], body["id"])
            version = (
                held.stamp if held is not None and held.body is not None and held.stamp > thread_dead else 0
            )
            return _version_conflict(mutation, version) or (True, body)
        case Kind.PRUNE:
            ids = [] if Scope.THREAD in dead else tables.checkpoint_ids(body["ns"])[body["keep"] :]
            return len(ids), ({"ns": body["ns"], "ids": ids} if ids else None)
        case Kind.DELETE:
            scope = body["scope"]
            if body["before"] and row.clock >= body["before"] and scope not in dead:
                return False, None  # it came alive since clean-up looked
            return (True, {"scope": scope}) if scope in dead or tables.holds(scope) else (False, None)
        case _:
            return InvalidValueError(f"unknown kind of mutation {mutation.kind!r}")


def _version_conflict(mutation: Mutation, version: int) -> ConflictError | None:
    if mutation.expected_version is None or mutation.expected_version == version:
        return None
    return ConflictError(
        f"{mutation.key!r} is at version {version}, expected_version was {mutation.expected_version}: read it again and decide anew"
    )


# ---------------------------------------------------------------------- merging one effect, in any order


def _create(tables: Tables, row: KeyRow, m: Mutation, effect: Mapping[str, Any]) -> None:
    if m.stamp <= row.session_dead:
        return
    session = tables.load_session(m.op_id) or SessionRow(inc=m.op_id)
    session.created = m.stamp
    session.user_id, session.metadata, session.created_at = (
        effect["user_id"],
        effect["metadata"],
        m.occurred_at,
    )
    _touch(session, m)
    tables.save_session(session)
    _choose_current(tables, row)


def _update(tables: Tables, row: KeyRow, m: Mutation, effect: Mapping[str, Any]) -> None:
    session = _incarnation(tables, row, m, effect)
    if session is None:
        return
    session.requests += effect["requests"]
    session.time_us += effect["time_us"]
    session.errors += effect["errors"]
    for name, value in effect["fields"].items():
        held = session.fields.get(name)
        if held is None or (m.stamp, m.op_id) > held[:2]:
            session.fields[name] = (m.stamp, m.op_id, value)
    _touch(session, m)
    tables.save_session(session)


def _end(tables: Tables, row: KeyRow, m: Mutation, effect: Mapping[str, Any]) -> None:
    session = _incarnation(tables, row, m, effect)
    if session is None:
        return
    if session.ended is None or (m.stamp, m.op_id) > session.ended[:2]:
        session.ended = (m.stamp, m.op_id, effect["status"])
    _touch(session, m)
    tables.save_session(session)


def _message(tables: Tables, row: KeyRow, m: Mutation, effect: Mapping[str, Any]) -> None:
    if m.stamp > row.session_dead:
        tables.save_message(m.op_id, m.stamp, m.occurred_at, effect)


def _context(tables: Tables, row: KeyRow, m: Mutation, effect: Mapping[str, Any]) -> None:
    if m.stamp > row.session_dead:
        tables.save_context(ValueRow(m.stamp, m.op_id, m.occurred_at, effect))


def _checkpoint(tables: Tables, row: KeyRow, m: Mutation, effect: Mapping[str, Any]) -> None:
    held = tables.load_checkpoint(effect["ns"], effect["id"])
    if m.stamp > row.thread_dead and (held is None or (m.stamp, m.op_id) > (held.stamp, held.op_id)):
        tables.save_checkpoint(effect["ns"], effect["id"], ValueRow(m.stamp, m.op_id, m.occurred_at, effect))


def _writes(tables: Tables, row: KeyRow, m: Mutation, effect: Mapping[str, Any]) -> None:
    ns, id, task = effect["ns"], effect["id"], effect["task"]
    held = tables.load_writes(ns, id, task)
    pruned = tables.load_checkpoint(ns, id)
    if pruned is not None and pruned.body is None and pruned.stamp > m.stamp:
        return
    if m.stamp > row.thread_dead and (held is None or (m.stamp, m.op_id) > (held.stamp, held.op_id)):
        tables.save_writes(ns, id, task, ValueRow(m.stamp, m.op_id, m.occurred_at, effect))


def _prune(tables: Tables, row: KeyRow, m: Mutation, effect: Mapping[str, Any]) -> None:
    for id in effect["ids"]:
        held = tables.load_checkpoint(effect["ns"], id)
        if held is None or (m.stamp, m.op_id) > (held.stamp, held.op_id):
            tables.save_checkpoint(effect["ns"], id, ValueRow(m.stamp, m.op_id, m.occurred_at, None))
        tables.drop_writes(effect["ns"], id, m.stamp)


def _delete(tables: Tables, row: KeyRow, m: Mutation, effect: Mapping[str, Any]) -> None:
    for scope in (Scope.SESSION, Scope.THREAD):
        if effect["scope"] in (scope, Scope.ALL):
            _bury(tables, row, scope, m.stamp)


_MERGE: dict[str, Callable[[Tables, KeyRow, Mutation, Mapping[str, Any]], None]] = {
    Kind.CREATE: _create,
    Kind.UPDATE: _update,
    Kind.END: _end,
    Kind.MESSAGE: _message,
    Kind.CONTEXT: _context,
    Kind.CHECKPOINT: _checkpoint,
    Kind.WRITES: _writes,
    Kind.PRUNE: _prune,
    Kind.DELETE: _delete,
}


def _incarnation(tables: Tables, row: KeyRow, m: Mutation, effect: Mapping[str, Any]) -> SessionRow | None:
    """The incarnation that accepted it; a shell if its create has not arrived yet. None if all that is void."""
    if m.stamp <= row.session_dead:
        return None
    return tables.load_session(effect["inc"]) or SessionRow(inc=effect["inc"])


def _touch(session: SessionRow, m: Mutation) -> None:
    session.touched = max(session.touched, (m.stamp, m.occurred_at))


def _choose_current(tables: Tables, row: KeyRow) -> None:
    """The create with the highest (stamp, op_id) is the session."""
    alive = [
        (s.created, s.inc)
        for s in tables.load_sessions()
        if s.created is not None and s.created > row.session_dead
    ]
    row.current = max(alive)[1] if alive else ""


def _bury(tables: Tables, row: KeyRow, scope: str, upto: int) -> None:
    """Everything of the scope with a stamp up to this is void, also what arrives later."""
    if scope == Scope.SESSION:
        row.session_dead = max(row.session_dead, upto)
        row.session_expires = row.session_expires if row.session_expires > upto else 0
        for session in tables.load_sessions():
            if session.created is not None and session.created <= upto:
                tables.drop_session(session.inc)
        tables.drop_messages(upto)
        tables.drop_contexts(upto)
        _choose_current(tables, row)
    else:
        row.thread_dead = max(row.thread_dead, upto)
        row.thread_expires = row.thread_expires if row.thread_expires > upto else 0
        tables.drop_thread(upto)


def _renew_expiry(row: KeyRow, kind: str, expires_at: int) -> None:
    if kind in THREAD_KINDS:
        row.thread_expires = max(row.thread_expires, expires_at)
    elif kind != Kind.DELETE:
        row.session_expires = max(row.session_expires, expires_at)


# ---------------------------------------------------------------------- one operation, two stamps


def _redo(tables: Tables, known: RecordRow, winner: Mutation) -> None:
    """Both stores accepted it and the other one's version counts: withdraw what ours did, then do theirs, under their stamp.

    The two may differ in more than the stamp: an increment may have counted in another incarnation, or not at all.
    """
    row = tables.load_key()
    row.clock = max(row.clock, winner.stamp)
    theirs = winner.body.keys() - {"dead"}
    if known.kind not in VALUE_KINDS:
        _withdraw(tables, known)
        known.effect = winner.body
        if theirs:
            _MERGE[known.kind](tables, row, winner, winner.body)
    elif (effect := winner.body if theirs else effect_of(tables, known)) and effect.keys() - {"dead"}:
        _withdraw_value(tables, known.op_id, known.kind, effect)
        known.effect = _reference(effect)  # it may have come without its effect at first
        _MERGE[known.kind](tables, row, winner, effect)
    tables.save_key(row)


def _withdraw(tables: Tables, known: RecordRow) -> None:
    """Take back what a record did here, as far as its winner will not overwrite it anyway."""
    effect = known.effect
    if not effect or not effect.keys() - {"dead"}:
        return
    if known.kind == Kind.PRUNE:
        for id in effect["ids"]:
            _withdraw_value(tables, known.op_id, Kind.CHECKPOINT, {"ns": effect["ns"], "id": id})
    if known.kind not in (Kind.CREATE, Kind.UPDATE, Kind.END):
        return
    session = tables.load_session(known.op_id if known.kind == Kind.CREATE else effect["inc"])
    if session is None:
        return
    if known.kind == Kind.UPDATE:
        session.requests -= effect["requests"]
        session.time_us -= effect["time_us"]
        session.errors -= effect["errors"]
        session.fields = {name: held for name, held in session.fields.items() if held[1] != known.op_id}
    elif session.ended is not None and session.ended[1] == known.op_id:
        session.ended = None
    if session.touched[0] == known.stamp:  # the best that is still known of who touched it last
        stamps = [held[0] for held in session.fields.values()]
        stamps += [] if session.ended is None else [session.ended[0]]
        stamps += [] if known.kind == Kind.CREATE else [session.created or 0]
        session.touched = (max(stamps, default=0), session.touched[1])
    tables.save_session(session)


def _withdraw_value(tables: Tables, op_id: str, kind: str, effect: Mapping[str, Any]) -> None:
    """Put the row that this operation made below every other stamp, so that its winner finds the place free."""
    if kind == Kind.CHECKPOINT:
        held = tables.load_checkpoint(effect["ns"], effect["id"])
        if held is not None and held.op_id == op_id:
            tables.save_checkpoint(effect["ns"], effect["id"], replace(held, stamp=0))
    elif kind == Kind.WRITES:
        held = tables.load_writes(effect["ns"], effect["id"], effect["task"])
        if held is not None and held.op_id == op_id:
            tables.save_writes(effect["ns"], effect["id"], effect["task"], replace(held, stamp=0))


# ---------------------------------------------------------------------- records that refer to their row


def _reference(effect: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where the row stands that holds the bytes, so that the record need not hold them twice."""
    return {name: effect[name] for name in ("ns", "id", "task", "dead") if name in effect}


def effect_of(tables: Tables, record: RecordRow) -> Mapping[str, Any] | None:
    """What the peer has to replay for a record: kept with it, or read from the row it made; {} if that row was replaced."""
    kept = record.effect
    if kept is None or record.kind not in VALUE_KINDS:
        return kept
    body: Mapping[str, Any] | None = None
    held: ValueRow | None = None
    match record.kind:
        case Kind.MESSAGE:
            body = tables.load_message(record.op_id)
        case Kind.CONTEXT:
            held = tables.load_context(record.op_id)
        case Kind.CHECKPOINT if "id" in kept:
            held = tables.load_checkpoint(kept["ns"], kept["id"])
        case Kind.WRITES if "task" in kept:
            held = tables.load_writes(kept["ns"], kept["id"], kept["task"])
        case _:
            pass
    if held is not None and held.op_id == record.op_id:
        body = held.body
    dead = {"dead": kept["dead"]} if "dead" in kept else {}
    return dead if body is None else {**body, **dead}
