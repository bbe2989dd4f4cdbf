"""The Lua scripts, loaded by name from ``lua/*.lua``: parts first, the script itself last, concatenated.

A script's body runs anew at each call, and defining all functions that some mutation may need took longer than applying one:
each function captures every local that it mentions. So functions are fields of one table, and a part may be deferred
(``~``): its functions are defined when ``F.need_<part>()`` is called first.

They are sent once per server (``SCRIPT LOAD``) and called by their SHA-1; a server that has forgotten them, after a restart
or ``SCRIPT FLUSH``, says NOSCRIPT before it has done anything, so :mod:`._client` loads them again and repeats the call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

Command = tuple[bytes | int | str, ...]
"""One command for the server; numbers are sent as text."""

_PACKAGE = __name__.rpartition(".")[0]
_KEY = ("text", "key", "kinds")
_ROWS = ("session~", "messages~", "contexts~", "thread~")
_RECORD = (*_KEY, *_ROWS, "record")
_MERGE = ("merge_session~", "merge_message~", "merge_context~", "merge_thread~", "bury~", "redo~")


class Script:
    """One script: its text and the SHA-1 by which it is called."""

    __slots__ = ("name", "sha", "text")

    def __init__(self, name: str, parts: tuple[str, ...]) -> None:
        self.name = name
        self.text = "\n".join(_read(part) for part in (*parts, name)).encode()
        self.sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()

    def call(self, keys: Iterable[bytes], *args: bytes | int) -> Command:
        """The command that runs it."""
        keys = tuple(keys)
        return (b"EVALSHA", self.sha, len(keys), *keys, *args)

    def evaluate(self, call: Command) -> Command:
        """The same call with the text instead of its SHA-1."""
        return (b"EVAL", self.text, *call[2:])

    def __repr__(self) -> str:
        return f"<Script {self.name} {self.sha.decode()[:8]}, {len(self.text):,} bytes>"


@cache
def _read(part: str) -> str:
    name = part.removesuffix("~")
    text = files(_PACKAGE).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    if name == part:
        return text
    return f"\nfunction F.need_{name}()\nF.need_{name} = F.nothing\n{text}\nend\n"


class Scripts:
    """All of them. Built when a backend is initialized, not at import."""

    def __init__(self) -> None:
        self.apply = Script("apply", (*_RECORD, *_MERGE))
        self.read_records = Script("read_records", _RECORD)
        self.close_marks = Script("close_marks", _RECORD)
        self.forget = Script("forget", _RECORD)
        self.read_thread = Script("read_thread", ("text",))
        self.read_contexts = Script("read_contexts", ())
        self.bucket_state = Script("bucket_state", ("text",))
        self.bucket_totals = Script("bucket_totals", ("text",))
        self.bucket_idle = Script("bucket_idle", ("text",))
        self.bucket_names = Script("bucket_names", ())
        self.bucket_records = Script("bucket_records", ("text",))
        self.decide_route = Script("decide_route", ())
        self.raise_route = Script("raise_route", ())
        self.all = [value for value in vars(self).values() if isinstance(value, Script)]
        self.by_sha = {script.sha: script for script in self.all}


@cache
def load_scripts() -> Scripts:
    """The scripts, read and hashed once per process."""
    return Scripts()
