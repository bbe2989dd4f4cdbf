"""The shapes that travel: one write as a record, what a store says of it, and the dicts that users get.

A write is a :class:`Mutation`. A store that accepts one gives it a stamp and works out its *effect* (which ids a prune
removed, which incarnation an increment counted in); record plus effect is what the peer store replays verbatim. The
same record, kept beside the effect in the same atomic step, is the duplicate check and the mark "the peer lacks this".

Bodies by kind, as a command (to the accepting store) and, where it differs, as an effect (to the peer). ``bytes`` are
values already encoded by :mod:`.codec`; no store ever looks inside them.

=============  ==========================================================  ==================================================
kind           command                                                     effect
=============  ==========================================================  ==================================================
create         user_id str, metadata bytes                                 same
update         fields {name: bytes}, requests int, time_us int, errors     + inc str: the incarnation (op_id of its create);
               int                                                         {} when there was none, or an ended one met status
end            status str                                                  + inc str; {} when there was no session
message        role str, content str, metadata bytes                       same
context        value bytes                                                 same
checkpoint     ns str, id str, data bytes, metadata bytes, parent str      same
writes         ns str, id str (checkpoint), task str, path str, value      same
               bytes
prune          ns str, keep int                                            ns str, ids [str]
delete         scope "session" | "thread" | "all", before int (0 = any):   scope; {} when nothing was there or it was busy
               only if the key's last stamp is below
=============  ==========================================================  ==================================================

An effect may also hold ``dead {"session": stamp, "thread": stamp}``: the accepting store found that what was there had
expired, and everything up to that stamp is void on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, NamedTuple

from .clock import iso
from .codec import decode

FORMAT = 1
"""Version of the record's form. A store leaves records of a higher one untouched: old and new processes work side by side."""


class Kind:
    """Kinds of mutation; the table above says what each carries."""

    CREATE = "create"
    UPDATE = "update"
    END = "end"
    MESSAGE = "message"
    CONTEXT = "context"
    CHECKPOINT = "checkpoint"
    WRITES = "writes"
    PRUNE = "prune"
    DELETE = "delete"


class Scope:
    """What a delete takes away, and which expiry a write renews."""

    SESSION = "session"
    THREAD = "thread"
    ALL = "all"


THREAD_KINDS = frozenset({Kind.CHECKPOINT, Kind.WRITES, Kind.PRUNE})
"""Kinds that belong to the thread of a key; the others belong to its session."""

VALUE_KINDS = frozenset({Kind.MESSAGE, Kind.CONTEXT, Kind.CHECKPOINT, Kind.WRITES})
"""Kinds whose effect is a row of its own: the record refers to that row instead of holding the bytes twice."""


@dataclass(slots=True, kw_only=True)
class Mutation:
    """One write, on its way to a store. Not changed after it is made.

    Attributes:
        key: session or thread id; both of one id share a clock and are removed together by clean-up.
        op_id: identity within the key.
        kind, body: see the table of this module.
        fingerprint: 16 bytes over kind, key and command, without times: tells a repeat from a reuse.
        occurred_at: UTC microseconds, shown in records.
        stamp: a proposal (UTC microseconds); with ``replay`` the stamp that the accepting store gave, taken verbatim.
        replay: this store did not accept it, it follows.
        rank: rises when the coordinator changes leg: of two stamps for one op_id the higher rank counts, then the higher stamp.
        epoch: the coordinator's routing epoch; 0 means that no dual write is involved and no fence is checked.
        home: name of the leg that accepts it (with ``epoch``); that store must be the leader of the epoch.
        mark: open a mark, because the peer does not have it yet.
        expected_version: stamp of the value that is to be replaced, 0 for "none yet"; checked by the accepting store only.
        expires_at: UTC microseconds after which the session or thread counts as gone, 0 for never.
        must_act: refuse, and record nothing, where there is nothing to write to: the store may lack what the write is for.
        answer: with ``replay``: what the accepting store answered.
    """

    key: str
    op_id: str
    kind: str
    body: Mapping[str, Any]
    fingerprint: bytes
    occurred_at: int
    stamp: int
    replay: bool = False
    rank: int = 0
    epoch: int = 0
    home: str = ""
    mark: bool = False
    expected_version: int | None = None
    expires_at: int = 0
    must_act: bool = False
    answer: Any = True
    format: int = FORMAT


@dataclass(slots=True, kw_only=True)
class Applied:
    """A store's account of one mutation.

    Attributes:
        stamp, rank: under which it stands there now.
        answer: True, False, an int, or a list: what the operation answers; the first answer again for a duplicate.
        effect: what the peer has to replay: None if nothing has to be, {} if a later write has replaced it already.
        occurred_at: of the first arrival.
        expires_at: the expiry that the accepting store gave it, 0 for none; replayed verbatim.
        duplicate: it had been applied before.
    """

    stamp: int
    rank: int
    answer: Any
    effect: Mapping[str, Any] | None
    occurred_at: int
    expires_at: int = 0
    duplicate: bool = False

    def replay_of(self, mutation: Mutation) -> Mutation | None:
        """The mutation as its peer has to replay it, or None if there is nothing to replay."""
        if self.effect is None:
            return None
        return replace(
            mutation,
            body=self.effect,
            occurred_at=self.occurred_at,
            stamp=self.stamp,
            rank=self.rank,
            expires_at=self.expires_at,
            answer=self.answer,
            replay=True,
            mark=False,
            must_act=False,
            expected_version=None,
        )


@dataclass(slots=True, frozen=True)
class RecordRef:
    """Names one record as it stands: a mark is closed only if stamp and rank are still these."""

    key: str
    op_id: str
    stamp: int
    rank: int


@dataclass(slots=True, frozen=True)
class RecordPage:
    """Records as replayable mutations. Those of one key come in order of (stamp, op_id); ``cursor`` is None at the end."""

    records: list[Mutation]
    cursor: str | None


@dataclass(slots=True, frozen=True)
class Route:
    """Who leads. The higher epoch wins; only the leader of a store's own epoch may accept and stamp."""

    epoch: int
    leader: str


class Durability(IntEnum):
    """What an acknowledgement of one store survives."""

    VOLATILE = 0
    PROCESS = 1  # a killed server
    HOST = 2  # a power loss
    REPLICATED = 3  # the loss of a machine


@dataclass(slots=True, frozen=True)
class StoreState:
    """One store's own account of itself, in one round trip.

    Attributes:
        route: the routing it holds; epoch 0 and leader "" in a store that never took part in a dual write.
        incarnation: changes when the store may have lost its tail: run id, system id and timeline, file id.
        durability: what its acknowledgement survives.
        open_marks: how many records its peer lacks; may be counted only up to 10,000.
        oldest_mark: stamp of the oldest such record, 0 if none.
        now_us: the store's clock.
    """

    route: Route
    incarnation: str
    durability: Durability
    open_marks: int
    oldest_mark: int
    now_us: int


@dataclass(slots=True)
class SessionRow:
    """One incarnation of a session, merged: what every backend keeps, in its own form.

    ``created`` is (stamp, op_id) of the create or None while only later records have arrived; ``fields`` are
    last-writer-wins per name; ``ended`` beats any status in ``fields``; ``touched`` is (stamp, occurred_at) of the latest write.
    """

    inc: str
    created: int | None = None
    user_id: str = ""
    metadata: bytes = b"\x80"  # an empty map
    created_at: int = 0
    requests: int = 0
    time_us: int = 0
    errors: int = 0
    fields: dict[str, tuple[int, str, bytes]] = field(default_factory=dict[str, tuple[int, str, bytes]])
    ended: tuple[int, str, str] | None = None
    touched: tuple[int, int] = (0, 0)

    def status(self) -> str:
        """``ended`` beats whatever an update set."""
        if self.ended is not None:
            return self.ended[2]
        return str(decode(self.fields["status"][2])) if "status" in self.fields else "active"

    def owner(self) -> str:
        """The user, as created or as last updated."""
        return str(decode(self.fields["user_id"][2])) if "user_id" in self.fields else self.user_id


class MessageRow(NamedTuple):
    """One message as stored."""

    op_id: str
    stamp: int
    role: str
    content: str
    metadata: bytes
    occurred_at: int


class CheckpointRow(NamedTuple):
    """One checkpoint as stored."""

    id: str
    stamp: int
    data: bytes
    metadata: bytes
    occurred_at: int
    parent: str = ""


class ContextRow(NamedTuple):
    """One version of a task context as stored."""

    stamp: int
    value: bytes
    occurred_at: int


class IdleKey(NamedTuple):
    """A key that clean-up may remove: ``scope`` of it, if its last stamp is still below ``before``."""

    key: str
    before: int
    scope: str


def session_dict(session_id: str, row: SessionRow) -> dict[str, Any]:
    """The session shape of the contract; custom fields stand beside the fixed ones."""
    fields = row.fields
    updated = iso(row.touched[1] or row.created_at)
    session: dict[str, Any] = {
        "session_id": session_id,
        "user_id": row.owner(),
        "status": row.status(),
        "metadata": decode(fields["metadata"][2] if "metadata" in fields else row.metadata, "metadata"),
        "request_count": row.requests,
        "total_processing_time": row.time_us / 1_000_000,
        "error_count": row.errors,
        "created_at": iso(row.created_at),
        "updated_at": updated,
        "last_activity": updated,
    }
    for name, (_stamp, _op_id, value) in fields.items():
        if name not in session:
            session[name] = decode(value, name)
    return session


def message_dict(
    op_id: str, stamp: int, role: str, content: str, occurred_at: int, metadata: Any
) -> dict[str, Any]:
    """The message shape of the contract; ``position`` is the cursor for ``before=`` and ``after=``."""
    return {
        "message_id": op_id,
        "position": stamp,
        "role": role,
        "content": content,
        "timestamp": iso(occurred_at),
        "metadata": metadata,
    }


def checkpoint_dict(
    thread_id: str, checkpoint_id: str, data: Any, metadata: Any, occurred_at: int
) -> dict[str, Any]:
    """The checkpoint shape of the contract."""
    return {
        "checkpoint_id": checkpoint_id,
        "thread_id": thread_id,
        "data": data,
        "metadata": metadata,
        "created_at": iso(occurred_at),
    }
