"""SIGKILL in the middle of batches: whatever was acknowledged is there, once, in order."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiecs_resilient.testing.servers import PostgreSQLServer

from . import _talkers

PRODUCERS = 300


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A store and its address; with every fsync that it does in use."""
    if request.param == "sqlite":
        yield "sqlite", str(tmp_path / "store.db")
        return
    with PostgreSQLServer() as server:
        yield "postgresql", server.url


def killed(place: tuple[str, str]) -> list[str]:
    """What a process had acknowledged when it was killed, line by line."""
    command = [sys.executable, _talkers.__file__, *place, str(PRODUCERS)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(1_537)]
    finally:
        process.kill()
    assert process.stderr is not None
    with process.stdout, process.stderr:  # not communicate(): it does not see what readline() has buffered
        lines += process.stdout.readlines()
        assert process.stderr.read() == ""
    process.wait(timeout=60)
    return [line for line in lines if line.endswith("\n")]


async def test_every_acknowledged_message_is_there_once_in_order(place: tuple[str, str]) -> None:
    """Three hundred producers, killed while their batches are under way; at most what was under way is there beyond."""
    acknowledged: dict[int, int] = {}
    largest = 0
    for line in killed(place):
        number, n, largest = map(int, line.split())
        assert acknowledged.get(number, -1) == n - 1
        acknowledged[number] = n
    assert largest > 50, "they were not batched"
    async with _talkers.connect(*place) as storage:
        for session in range(_talkers.SESSIONS):
            held = await storage.get_conversation_history(f"s{session}", 0)
            said = [message["content"] for message in held]
            for number in range(session, PRODUCERS, _talkers.SESSIONS):
                mine = [text for text in said if text.startswith(f"{number}/")]
                last = acknowledged.get(number, -1)
                assert mine[: last + 1] == [f"{number}/{n}" for n in range(last + 1)]
                assert len(mine) <= last + 2, (
                    "at most the one under way is there beyond what was acknowledged"
                )
