"""Writes down what was asked of a storage and what it answered, for a checker that does not trust us.

One JSON line when a call begins and one when it ends; `check_history.py` beside this file documents the lines and
reads them, without this package. The beginning is on file before the call is made, so an effect without a beginning
cannot be blamed on the recorder; ends are buffered for a moment, and a SIGKILL turns the last of them into "unknown",
which is never wrong. Several processes may append to one file.

    recorder = HistoryRecorder("history.jsonl")
    content = payload(session, op_id, "hello")
    with recorder.call("append", session, op_id=op_id, value=digest(content)) as call:
        async with operation(op_id=op_id) as op:
            await storage.add_conversation_message(session, "user", content)
        call.flags(op)
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

Kind = Literal[
    "create",  # key: session
    "append",  # key: session; value: digest of the content
    "increment",  # key: counter; value: by how much
    "checkpoint",  # key: any name for that checkpoint; value: digest
    "context",  # key: any name for that context; value: digest
    "delete",  # key: session, counter, checkpoint or context
    "read_messages",  # answer: tags() of what was read, in its order
    "read_counter",  # answer: number, or None
    "read_checkpoint",  # answer: digest, or None
    "read_context",  # answer: digest, or None
]
Outcome = Literal["ok", "not_applied", "unknown", "error"]
FLUSH_BYTES = 65_536


class Account(Protocol):
    """What a chain says about one operation; `OperationContext` is one."""

    @property
    def served_by(self) -> str | None: ...
    @property
    def degraded(self) -> bool: ...
    @property
    def stale(self) -> bool: ...


class Call:
    """One call in flight: say here what it answered, before the block ends."""

    def __init__(self) -> None:
        self.answer: object = None
        self.outcome: Outcome | None = None
        self.served_by: str | None = None
        self.degraded = False
        self.stale = False

    def flags(self, account: Account) -> None:
        self.served_by, self.degraded, self.stale = account.served_by, account.degraded, account.stale


class HistoryRecorder:
    """Appends to one file. `flush_after` is how many seconds the end of a call may stay in memory."""

    def __init__(self, path: str | Path, *, process: str | None = None, flush_after: float = 0.05) -> None:
        if flush_after < 0:
            raise ValueError(f"flush_after is a number of seconds, at least 0, not {flush_after}")
        self.process = process if process is not None else f"{os.getpid()}-{os.urandom(3).hex()}"
        self._flush_after = flush_after
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._lock = threading.Lock()
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._flushed = time.monotonic()
        self._count = 0
        self._closed = False

    def invoke(self, kind: Kind, key: str, *, op_id: str = "", value: str | int | None = None) -> str:
        """A call is about to be made. Returns the id to give to `outcome`."""
        with self._lock:
            self._count += 1
            identifier = f"{self.process}/{self._count}"
            line: dict[str, object] = {
                "line": "invoke",
                "id": identifier,
                "process": self.process,
                "op_id": op_id,
                "kind": kind,
            }
            self._add(line | {"key": key, "value": value})
            self._flush()
        return identifier

    def outcome(
        self,
        identifier: str,
        outcome: Outcome,
        *,
        answer: object = None,
        served_by: str | None = None,
        degraded: bool = False,
        stale: bool = False,
    ) -> None:
        """That call ended. A second outcome for the same id settles an unknown one."""
        with self._lock:
            line: dict[str, object] = {"line": "outcome", "id": identifier, "outcome": outcome}
            flags = {"served_by": served_by, "degraded": degraded, "stale": stale}
            self._add(line | {"answer": answer} | flags)
            if self._buffered >= FLUSH_BYTES or time.monotonic() - self._flushed >= self._flush_after:
                self._flush()

    @contextmanager
    def call(
        self, kind: Kind, key: str, *, op_id: str = "", value: str | int | None = None
    ) -> Generator[Call]:
        """Record the block as one call: ok if it ends well, else what the error says of its outcome."""
        identifier = self.invoke(kind, key, op_id=op_id, value=value)
        call = Call()
        try:
            yield call
        except BaseException as error:
            # Storage errors say what they did; a cancellation, or an error of anything else, leaves it open.
            outcome: Outcome = (
                "not_applied" if getattr(error, "outcome", None) == "not_applied" else "unknown"
            )
            self._end(identifier, call.outcome or outcome, call)
            raise
        self._end(identifier, call.outcome or "ok", call)

    def _end(self, identifier: str, outcome: Outcome, call: Call) -> None:
        self.outcome(
            identifier,
            outcome,
            answer=call.answer,
            served_by=call.served_by,
            degraded=call.degraded,
            stale=call.stale,
        )

    def flush(self) -> None:
        with self._lock:
            self._flush()

    def close(self) -> None:
        """Write what is buffered. May be called again."""
        with self._lock:
            if not self._closed:
                self._flush()
                os.close(self._file)
                self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add(self, line: dict[str, object]) -> None:
        # The monotonic clock orders events, of all processes of this machine; the other is for people.
        line |= {"at": time.monotonic(), "wall": time.time()}
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        self._buffer.append(data)
        self._buffered += len(data)

    def _flush(self) -> None:
        data = memoryview(b"".join(self._buffer))
        while data:
            data = data[os.write(self._file, data) :]
        self._buffer.clear()
        self._buffered = 0
        self._flushed = time.monotonic()


def payload(session: str, op_id: str, text: str) -> str:
    """Content that carries its session and operation, so that a stranger's is recognised wherever it turns up."""
    return json.dumps([session, op_id, text], ensure_ascii=False)


def tags(contents: Iterable[object]) -> list[tuple[str | None, str | None]]:
    """(session, op_id) that each content carries; (None, None) for what `payload` did not make."""
    return [tag(content) for content in contents]


def tag(content: object) -> tuple[str | None, str | None]:
    try:
        parsed: object = json.loads(content) if isinstance(content, str) else None
    except ValueError:
        return None, None
    match parsed:
        case [str() as session, str() as op_id, str()]:
            return session, op_id
        case _:
            return None, None


def digest(value: object) -> str:
    """Of a text its UTF-8, of any other value its JSON with sorted keys."""
    text = (
        value
        if isinstance(value, str)
        else json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    )
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
