"""Making mutations by hand, as a coordinator does, and looking at what a store remembers of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ...clock import wall_us
from ...codec import encode, fingerprint
from ...errors import StorageError
from ...interface import Backend, Json
from ...records import Applied, Kind, Mutation, Scope
from ._base import fresh


def mutation(kind: str, key: str, body: Json, **facts: Any) -> Mutation:
    """A mutation as a coordinator sends it; ``facts`` are its other attributes."""
    now = wall_us()
    given: dict[str, Any] = {"op_id": fresh("op"), "occurred_at": now, "stamp": now, **facts}
    return Mutation(key=key, kind=kind, body=body, fingerprint=fingerprint(kind, key, body), **given)


def create(key: str, user_id: str = "u", **facts: Any) -> Mutation:
    return mutation(Kind.CREATE, key, {"user_id": user_id, "metadata": pack({})}, **facts)


def update(key: str, requests: int = 1, fields: Json | None = None, **facts: Any) -> Mutation:
    body = {
        "fields": {name: pack(value) for name, value in (fields or {}).items()},
        "requests": requests,
        "time_us": 10,
        "errors": 0,
    }
    return mutation(Kind.UPDATE, key, body, **facts)


def end(key: str, status: str = "completed", **facts: Any) -> Mutation:
    return mutation(Kind.END, key, {"status": status}, **facts)


def message(key: str, content: str, **facts: Any) -> Mutation:
    body = {"role": "user", "content": content, "metadata": pack({})}
    return mutation(Kind.MESSAGE, key, body, **facts)


def checkpoint(key: str, id: str, value: Any, **facts: Any) -> Mutation:
    body = {"ns": "", "id": id, "data": pack(value), "metadata": pack({}), "parent": ""}
    return mutation(Kind.CHECKPOINT, key, body, **facts)


def writes(key: str, id: str, task: str, value: Any, **facts: Any) -> Mutation:
    body = {"ns": "", "id": id, "task": task, "path": "", "value": pack([(task, value)])}
    return mutation(Kind.WRITES, key, body, **facts)


def context(key: str, value: Any, **facts: Any) -> Mutation:
    return mutation(Kind.CONTEXT, key, {"value": pack(value)}, **facts)


def prune(key: str, keep: int, **facts: Any) -> Mutation:
    return mutation(Kind.PRUNE, key, {"ns": "", "keep": keep}, **facts)


def delete(key: str, scope: str = Scope.SESSION, before: int = 0, **facts: Any) -> Mutation:
    return mutation(Kind.DELETE, key, {"scope": scope, "before": before}, **facts)


def pack(value: Any) -> bytes:
    return encode(value, "value")


async def apply(storage: Backend, *mutations: Mutation) -> list[Applied]:
    """Apply them in one call; each must be accepted."""
    results = await storage.apply(mutations)
    applied = [result for result in results if isinstance(result, Applied)]
    assert len(applied) == len(mutations) == len(results), results
    return applied


async def refused(storage: Backend, item: Mutation) -> StorageError:
    """Apply one that must be refused; the refusal."""
    [result] = await storage.apply([item])
    assert isinstance(result, StorageError), result
    return result


def replays(mutations: list[Mutation], applied: list[Applied]) -> list[Mutation]:
    """What the peer has to be told, one for each that has an effect."""
    pairs = zip(mutations, applied, strict=True)
    return [replay for item, result in pairs if (replay := result.replay_of(item)) is not None]


async def records(storage: Backend, *keys: str, open_only: bool = False, since: int = 0) -> list[Mutation]:
    """All records of these keys, page by page."""
    found: list[Mutation] = []
    cursor: str | None = None
    while True:
        page = await storage.read_records(since=since, open_only=open_only, after=cursor, limit=50)
        found += [record for record in page.records if record.key in keys]
        if page.cursor is None:
            return found
        cursor = page.cursor


def random_history(chooser: random.Random, key: str, length: int) -> list[Mutation]:
    """A past in which everything happens that can happen to one key, deletes and prunes included."""
    makers: list[Callable[[int, int], Mutation]] = [
        lambda n, _: create(key, f"u{n}"),
        lambda n, _: update(key, 1, {"field": n, f"f{n % 3}": n}),
        lambda n, _: update(key, 2, {"status": f"s{n}"}),
        lambda n, _: end(key, f"end{n}"),
        lambda n, _: message(key, f"m{n}"),
        lambda n, _: context(key, n),
        lambda n, prunes: checkpoint(key, f"c{n % 4}/{prunes}", n),  # an id is not used again after a prune
        lambda n, prunes: writes(key, f"c{n % 4}/{prunes}", f"t{n % 2}", n),
        lambda n, _: prune(key, n % 3),
        lambda n, _: delete(key, chooser.choice([Scope.SESSION, Scope.THREAD, Scope.ALL])),
    ]
    history: list[Mutation] = []
    for n, maker in enumerate(chooser.choices(makers, [3, 6, 2, 1, 12, 4, 8, 4, 1, 1], k=length)):
        history.append(maker(n, sum(item.kind == Kind.PRUNE for item in history)))
    return history
