"""Several processes on one store, and one of them killed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import _processes

TIMES = 50


async def test_four_processes_count_exactly(address: dict[str, Any]) -> None:
    """A hundred writers in four processes on one session: every increment and message is there, once, in one order."""
    async with _processes.storage_of(address) as storage:
        await storage.create_session("s", "u")
        _processes.finish([_processes.start("count", address, "s", TIMES) for _ in range(4)])
        session = await storage.get_session("s")
        assert session is not None
        assert session["request_count"] == 4 * TIMES
        said = [message["content"].split() for message in await storage.get_conversation_history("s", 0)]
        assert len(said) == 4 * TIMES
        for pid in {pid for pid, _n in said}:
            assert sorted(int(n) for who, n in said if who == pid) == list(range(TIMES))
        positions = [message["position"] for message in await storage.get_conversation_history("s", 0)]
        assert positions == sorted(set(positions))


async def test_many_processes_open_a_new_store_at_once(address: dict[str, Any]) -> None:
    """Each finds one store, whoever made it, with one incarnation."""
    _processes.finish([_processes.start("open", address, f"p{n}") for n in range(4)])
    async with _processes.storage_of(address) as storage:
        said = [message["content"] for message in await storage.get_conversation_history("s", 0)]
        assert sorted(said) == [f"p{n}" for n in range(4)]
        assert (await storage.store_state()).incarnation


async def test_a_killed_writer_loses_nothing_acknowledged(address: dict[str, Any]) -> None:
    """SIGKILL in the middle of the load: every acknowledged message is there, once, in order."""
    with _processes.start("talk", address, 10) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            lines = [process.stdout.readline() for _ in range(150)]
        finally:
            process.kill()
        lines += process.stdout.readlines()
        assert process.stderr.read() == ""
    acknowledged: dict[int, int] = {}
    for line in lines:
        if line.endswith("\n"):
            session, n = map(int, line.split())
            assert acknowledged.get(session, -1) == n - 1
            acknowledged[session] = n
    assert sum(last + 1 for last in acknowledged.values()) >= 150
    async with _processes.storage_of(address) as storage:
        for session, last in acknowledged.items():
            said = [m["content"] for m in await storage.get_conversation_history(f"s{session}", 0)]
            assert said[: last + 1] == [f"m{n}" for n in range(last + 1)]
            assert len(said) <= last + 2, "at most the one under way is there beyond what was acknowledged"
        assert await storage.add_conversation_message("s0", "user", "after") is True


async def test_a_process_sees_what_another_wrote(address: dict[str, Any]) -> None:
    """A read sees what any process had acknowledged before, also where this one has the key in memory."""
    async with _processes.storage_of(address) as storage:
        await storage.add_conversation_message("s", "user", "mine")
        assert len(await storage.get_conversation_history("s")) == 1
        _processes.finish([_processes.start("open", address, "other")])
        assert [m["content"] for m in await storage.get_conversation_history("s")] == ["mine", "other"]
        assert await storage.get_session("nobody") is None
