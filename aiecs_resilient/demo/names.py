"""How the journal and the check from outside call the same thing, so that what was acknowledged can be looked up.

Session ids of the demo hold no slash, so no two names meet. Standard library only: the check from outside imports this.
"""

from __future__ import annotations

from typing import Final

REFERENCE: Final = "ref"
"""In a message's metadata: an identity that the application keeps for itself, independent of the library's own."""


def owner(session: str) -> str:
    """Who the session belongs to, and its metadata."""
    return f"{session}/owner"


def status(session: str) -> str:
    return f"{session}/status"


def context(session: str) -> str:
    """The newest task context."""
    return f"{session}/context"


def requests(session: str) -> str:
    return f"{session}/requests"


def microseconds(session: str) -> str:
    """Processing time."""
    return f"{session}/microseconds"


def errors(session: str) -> str:
    return f"{session}/errors"


def checkpoint(thread: str, checkpoint_id: str) -> str:
    return f"{thread}/{checkpoint_id}"


def writes(thread: str, checkpoint_id: str, task: str) -> str:
    """A task's pending writes."""
    return f"{thread}/{checkpoint_id}/{task}"
