"""Whose data a call touches: the form of a tenant's keys, and the groups in which limits are kept apart.

A tenant's keys begin with ``<length>:<tenant>:``. The length makes them unambiguous, whatever characters tenant and id
have: no id of one tenant can spell a key of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast

from ..errors import InvalidValueError
from ..operations import (
    APPLY,
    BATCH_ADD_CONVERSATION_MESSAGES,
    BATCH_CREATE_SESSIONS,
    BATCH_GET_SESSIONS,
    CLOSE_MARKS,
    MOVE_ROUTE,
    OPERATION_OUTCOME,
    READ_RECORDS,
    STORE_STATE,
    Operation,
)
from ..records import Mutation

CONTROL = frozenset(op.name for op in (STORE_STATE, READ_RECORDS, CLOSE_MARKS, MOVE_ROUTE))
"""Names of the operations by which ``dual_write`` watches, repairs and moves. They are few, and on them hangs that stores get well: no limit holds them up."""

GroupBy = Literal["none", "key", "tenant"]
"""``none``: all callers are one; ``key``: by session or thread; ``tenant``: by the tenant that ``namespace`` wrote into keys."""

MAX_TENANT_BYTES = 64

_BATCHES = frozenset(
    op.name for op in (BATCH_CREATE_SESSIONS, BATCH_GET_SESSIONS, BATCH_ADD_CONVERSATION_MESSAGES)
)


def prefix_of(tenant: str) -> str:
    """What a tenant's keys begin with; InvalidValueError if no tenant can be called so."""
    if not tenant or not tenant.isprintable() or len(tenant.encode()) > MAX_TENANT_BYTES:
        raise InvalidValueError(
            f"a tenant's name must be 1 to {MAX_TENANT_BYTES} bytes of printable text, not {tenant!r}"
        )
    return f"{len(tenant)}:{tenant}:"


def tenant_of(key: str) -> str:
    """The tenant whose key this is; empty for a key without one."""
    length, colon, rest = key.partition(":")
    if not colon or not 0 < len(length) <= 2 or not (length.isascii() and length.isdigit()):
        return ""
    size = int(length)
    return rest[:size] if 0 < size < len(rest) and rest[size] == ":" else ""


def is_replay(op: Operation, args: Sequence[object]) -> bool:
    """Whether this brings a store what its peer has acknowledged already."""
    return op is APPLY and all(mutation.replay for mutation in _mutations(args))


def group_of(by: GroupBy, op: Operation, args: Sequence[object], kwargs: Mapping[str, object]) -> str:
    """The group that this call counts for; empty for calls that touch no key, the first item's for a batch."""
    if by == "none":
        return ""
    key = _key(op, args, kwargs)
    return tenant_of(key) if by == "tenant" else key


def _key(op: Operation, args: Sequence[object], kwargs: Mapping[str, object]) -> str:
    """The key, of a batch the first one's."""
    if op is APPLY:
        mutations = _mutations(args)
        return mutations[0].key if mutations else ""
    key = args[0] if args else kwargs.get(op.key or "key")
    if op.name in _BATCHES:
        items = cast("Sequence[object]", key)
        key = items[0] if items else ""
        if isinstance(key, dict):
            key = cast("dict[str, object]", key).get("session_id")
    elif op.key is None and op is not OPERATION_OUTCOME:
        return ""
    return key if isinstance(key, str) else ""


def _mutations(args: Sequence[object]) -> Sequence[Mutation]:
    return cast("Sequence[Mutation]", args[0]) if args else ()
