"""The newest messages of a session, each encoded by itself, so that the next one is added without reading any of them."""

from __future__ import annotations

from collections.abc import Sequence

from ...codec import decode, encode
from ...interface import Json
from ._entries import Entry

_PER_MESSAGE = 50
"""Bytes that a message takes beside its encoding: its object, and its place in the list."""


class Tail(Entry):
    """What a history's newest ``limit`` messages are answered from.

    Attributes:
        messages: encoded, oldest first.
        newest: position of the last one, 0 if there is none.
        complete: there are no others.
    """

    __slots__ = ("complete", "messages", "newest")

    def __init__(
        self,
        messages: list[bytes],
        newest: int,
        *,
        complete: bool,
        position: int | None,
        clock: int | None,
    ) -> None:
        size = sum(map(len, messages)) + _PER_MESSAGE * len(messages)
        super().__init__(b"", position, clock, size)
        self.messages = messages
        self.negative = not messages
        self.newest = newest
        self.complete = complete

    def last(self, limit: int) -> list[Json] | None:
        """The newest ``limit`` (0 for all) as the store would answer; None if they are not all here."""
        if not self.complete and not 0 < limit <= len(self.messages):
            return None
        answer: list[Json] = decode(array(self.messages[-limit:] if limit else self.messages), "messages")
        return answer

    def followed_by(self, message: Json, most: int) -> Tail | None:
        """This and one more, ``most`` at most, good for no longer; None if that one does not come after all of these."""
        position = int(message["position"])
        if position <= self.newest:
            return None
        messages = [*self.messages, encode(message, "a message")]
        tail = Tail(
            messages[-most:],
            position,
            complete=self.complete and len(messages) <= most,
            position=position,
            clock=position,
        )
        tail.fresh_until, tail.refresh_from, tail.kept_until = (
            self.fresh_until,
            self.refresh_from,
            self.kept_until,
        )
        return tail


def tail_of(messages: Sequence[Json], *, complete: bool, position: int | None, clock: int | None) -> Tail:
    """As the store answered; InvalidValueError if a value cannot be kept."""
    return Tail(
        [encode(message, "a message") for message in messages],
        int(messages[-1]["position"]) if messages else 0,
        complete=complete,
        position=position,
        clock=clock,
    )


def array(items: Sequence[bytes]) -> bytes:
    """MessagePack's array of values that are encoded already."""
    count = len(items)
    if count < 16:
        head = bytes([0x90 | count])
    elif count < 1 << 16:
        head = b"\xdc" + count.to_bytes(2, "big")
    else:
        head = b"\xdd" + count.to_bytes(4, "big")
    return head + b"".join(items)
