"""Programs that other processes run on the same file."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from aiecs_resilient.backends.sqlite import SQLiteStorageBackend


def start(role: str, path: Path, *arguments: object) -> subprocess.Popen[str]:
    """Run one of the roles below in a process of its own; whoever starts it ends it."""
    command = [sys.executable, __file__, role, str(path), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def count(path: Path, session_id: str, times: int) -> None:
    """Increments, ten at once."""
    async with SQLiteStorageBackend(path, busy_timeout=60) as storage:
        for _ in range(times // 10):
            answers = await asyncio.gather(
                *(storage.update_session(session_id, increment_requests=True) for _ in range(10))
            )
            assert answers == [True] * 10


async def talk(path: Path, sessions: int) -> None:
    """Messages to many sessions at once for ever; each is printed only after it was acknowledged."""
    async with SQLiteStorageBackend(path) as storage:

        async def one(session: int) -> None:
            for n in range(1_000_000):
                assert await storage.add_conversation_message(f"s{session}", "user", f"m{n}") is True
                os.write(1, f"{session} {n}\n".encode())

        await asyncio.gather(*(one(session) for session in range(sessions)))


async def open_and_write(path: Path, who: str) -> None:
    """Initialize at the same time as others, write once."""
    async with SQLiteStorageBackend(path, busy_timeout=60) as storage:
        assert await storage.add_conversation_message("s", "user", who) is True


if __name__ == "__main__":
    role, path, *arguments = sys.argv[1:]
    match role:
        case "count":
            asyncio.run(count(Path(path), arguments[0], int(arguments[1])))
        case "talk":
            asyncio.run(talk(Path(path), int(arguments[0])))
        case "open":
            asyncio.run(open_and_write(Path(path), arguments[0]))
        case _:
            raise SystemExit(f"no role {role!r}")
