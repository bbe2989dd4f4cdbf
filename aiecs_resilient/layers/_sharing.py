"""One request on behalf of many callers: how long it may take, whom a failure concerns, and what each is told afterwards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from ..errors import (
    BackendClosedError,
    CircuitOpenError,
    DeadlineExceededError,
    IncompleteStoreError,
    OverloadedError,
    StorageError,
)
from ..operations import OperationContext

E = TypeVar("E", bound=BaseException)

_ALIKE = (DeadlineExceededError, CircuitOpenError, OverloadedError, BackendClosedError)


def longest(contexts: Iterable[OperationContext]) -> float | None:
    """The deadline of what is done for all of them: whoever is in a hurry must not end it for the others."""
    latest = 0.0
    for context in contexts:
        if context.deadline is None:
            return None
        latest = max(latest, context.deadline)
    return latest


def befalls_all(error: Exception) -> bool:
    """Whether it would have befallen each of them alone: a store that is away, a deadline, a refusal of our own."""
    if not isinstance(error, StorageError) or isinstance(error, IncompleteStoreError):
        return False  # the one about what is missing depends on what was asked
    return error.transient or isinstance(error, _ALIKE)


def own_copy(error: E) -> E:
    """One for each who waits: an error of ours that is raised in many tasks would be written on by all of them."""
    if not isinstance(error, StorageError):
        return error
    own = type(error).__new__(type(error), *error.args)
    own.__dict__.update(error.__dict__)
    own.__cause__ = error
    return own


def account(context: OperationContext, store: str) -> None:
    """A chain below says itself who served; a store that was given records does not."""
    if context.served_by is None:
        context.served_by = store
        context.attempts += 1


def tell(context: OperationContext, facts: OperationContext) -> None:
    """What is true of the shared request is true of each that took part in it."""
    context.served_by = facts.served_by
    context.attempts += facts.attempts
    context.degraded = context.degraded or facts.degraded
    context.stale = context.stale or facts.stale
    if context.durability != "one":  # a call in several parts is as durable as the weakest
        context.durability = facts.durability
