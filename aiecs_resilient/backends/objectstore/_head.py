"""The head of a key: the one object that changes, and all that changes with it in one step.

It holds clock and tombstones, what was written last (the *tail*: rows that no page holds yet), the roots of the trees that
hold the rest, the index entries that stand for the key, and the names of the latest commits, by which a writer that never
got its answer finds out whether it was served.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field, replace
from typing import Any

from ...codec import decode, encode
from ...errors import DataCorruptionError, UnsupportedOperationError
from .._engine import KeyRow
from ._tree import Root

FORMAT = 1
COMMITS_KEPT = 16
_UNLIMITED = 2**62


@dataclass(slots=True)
class Head:
    """One state of a key; never changed once it is shared.

    Attributes:
        tail: table and key → row, or None where a row that a page still holds was removed.
        roots: table → its tree.
        entries: index → path of the entry that stands for this key there.
        highest: table → the highest stamp it ever held: a delete above it takes the table whole.
        messages, checkpoints, marks: how many there are; checkpoints of the namespace "" only.
        walked: records up to this stamp have been looked at for forgetting; those that are left had to stay.
        garbage: roots of trees that are gone from here, whose pages and large values are still to be removed.
        objects: immutable objects that belong to this key, garbage included: more than that in its folder are leftovers.
        commits: names of the latest commits, newest last.
    """

    key: str
    row: KeyRow = field(default_factory=KeyRow)
    tail: dict[bytes, bytes | None] = field(default_factory=dict[bytes, bytes | None])
    roots: dict[bytes, Root] = field(default_factory=dict[bytes, Root])
    entries: dict[str, str] = field(default_factory=dict[str, str])
    highest: dict[bytes, int] = field(default_factory=dict[bytes, int])
    messages: int = 0
    checkpoints: int = 0
    marks: int = 0
    oldest_mark: int = 0
    walked: int = 0
    garbage: list[str] = field(default_factory=list[str])
    objects: int = 0
    commits: list[str] = field(default_factory=list[str])

    def copy(self) -> Head:
        """To be changed."""
        return replace(
            self,
            row=replace(self.row),
            tail=dict(self.tail),
            roots=dict(self.roots),
            entries=dict(self.entries),
            highest=dict(self.highest),
            garbage=list(self.garbage),
            commits=list(self.commits),
        )

    def pack(self) -> bytes:
        """For storing."""
        value = [
            FORMAT,
            self.key,
            list(astuple(self.row)),
            [[place, row] for place, row in self.tail.items()],
            [[table, *root] for table, root in self.roots.items()],
            self.entries,
            [list(item) for item in self.highest.items()],
            [self.messages, self.checkpoints, self.marks, self.oldest_mark, self.walked, self.objects],
            self.garbage,
            self.commits[-COMMITS_KEPT:],
        ]
        return encode(value, "head", limit=_UNLIMITED)


def read_head(data: bytes, path: str) -> Head:
    """What :meth:`Head.pack` made."""
    value: Any = decode(data, f"head {path!r}")
    try:
        if value[0] > FORMAT:
            raise UnsupportedOperationError(
                f"head {path!r} has format {value[0]}, this version knows {FORMAT}: update this process"
            )
        _format, key, row, tail, roots, entries, highest, counts, garbage, commits = value
        messages, checkpoints, marks, oldest_mark, walked, objects = counts
        return Head(
            key=key,
            row=KeyRow(*row),
            tail=dict(tail),
            roots={table: Root(*root) for table, *root in roots},
            entries=entries,
            highest=dict(highest),
            messages=messages,
            checkpoints=checkpoints,
            marks=marks,
            oldest_mark=oldest_mark,
            walked=walked,
            garbage=garbage,
            objects=objects,
            commits=commits,
        )
    except (TypeError, ValueError, IndexError) as error:
        raise DataCorruptionError(
            f"head {path!r} has a form that is not known ({error}); it is left as it is"
        ) from error
