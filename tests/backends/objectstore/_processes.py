"""Programs that other processes run on the same store."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from aiecs_resilient.backends.objectstore import ObjectStorageBackend


def start(role: str, address: Mapping[str, object], *arguments: object) -> subprocess.Popen[str]:
    """Run one of the roles below in a process of its own; whoever starts it ends it."""
    command = [sys.executable, __file__, role, json.dumps(address), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(processes: list[subprocess.Popen[str]]) -> None:
    """All must have ended well."""
    try:
        for process in processes:
            _out, errors = process.communicate(timeout=90)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def storage_of(address: Mapping[str, Any]) -> ObjectStorageBackend:
    return ObjectStorageBackend(**address)


async def count(address: Mapping[str, Any], session_id: str, times: int) -> None:
    """Increments, twenty-five at once, and a message each."""
    async with storage_of(address) as storage:
        for first in range(0, times, 25):
            calls = [storage.update_session(session_id, increment_requests=True) for _ in range(25)]
            texts = [f"{os.getpid()} {n}" for n in range(first, first + 25)]
            said = [storage.add_conversation_message(session_id, "user", text) for text in texts]
            assert all(await asyncio.gather(*calls, *said))


async def talk(address: Mapping[str, Any], sessions: int) -> None:
    """Messages to many sessions at once for ever; each is printed only after it was acknowledged."""
    async with storage_of(address) as storage:

        async def one(session: int) -> None:
            for n in range(1_000_000):
                assert await storage.add_conversation_message(f"s{session}", "user", f"m{n}") is True
                os.write(1, f"{session} {n}\n".encode())

        await asyncio.gather(*(one(session) for session in range(sessions)))


async def open_and_write(address: Mapping[str, Any], who: str) -> None:
    """Initialize at the same time as others, write once."""
    async with storage_of(address) as storage:
        assert await storage.add_conversation_message("s", "user", who) is True


if __name__ == "__main__":
    role, place, *arguments = sys.argv[1:]
    match role:
        case "count":
            asyncio.run(count(json.loads(place), arguments[0], int(arguments[1])))
        case "talk":
            asyncio.run(talk(json.loads(place), int(arguments[0])))
        case "open":
            asyncio.run(open_and_write(json.loads(place), arguments[0]))
        case _:
            raise SystemExit(f"no role {role!r}")
