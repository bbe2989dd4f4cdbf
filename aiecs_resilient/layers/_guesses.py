"""Would a store change nothing because nothing is there? From one that may lack operations that is a guess, not an answer.

It has to be found out before the write: once a store has recorded "there was nothing", that is what the identity of this
write answers for ever, also when the session turns out to be in the other store.
"""

from __future__ import annotations

from ..interface import Backend
from ..records import Kind, Mutation, Scope


async def finds_nothing(store: Backend, mutation: Mutation) -> bool:
    """Whether this write, made now for the first time, would find nothing to change in this store."""
    key, body = mutation.key, mutation.body
    match mutation.kind:
        case Kind.UPDATE | Kind.END:
            nothing = await store.get_session(key) is None
        case Kind.PRUNE:
            nothing = len(await store.list_checkpoints(key, body["keep"] + 1)) <= body["keep"]
        case Kind.DELETE if not body["before"]:  # clean-up does not mind what is not there
            nothing = await _holds_nothing(store, key, body["scope"])
        case _:
            return False
    return nothing and await store.operation_outcome(key, mutation.op_id) == "not_applied"


async def _holds_nothing(store: Backend, key: str, scope: str) -> bool:
    if scope == Scope.THREAD:
        return not await store.list_checkpoints(key, 1)
    return (
        await store.get_session(key) is None
        and not await store.get_conversation_history(key, 1)
        and not await store.list_task_contexts(key, 1)
    )
