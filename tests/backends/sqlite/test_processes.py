"""Several processes on one file, and one of them killed."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from aiecs_resilient.backends.sqlite import SQLiteStorageBackend

from . import _processes


async def test_four_processes_count_exactly(tmp_path: Path) -> None:
    """Increments of four processes at once on one session are all counted, once."""
    path = tmp_path / "store.db"
    async with SQLiteStorageBackend(path, busy_timeout=60) as storage:
        await storage.create_session("s", "u")
        processes = [_processes.start("count", path, "s", 50) for _ in range(4)]
        _assert_all_ended_well(processes)
        session = await storage.get_session("s")
        assert session is not None
        assert session["request_count"] == 200


async def test_many_processes_create_the_file_at_once(tmp_path: Path) -> None:
    """Each finds a complete schema, whoever made it, and the file has one incarnation."""
    path = tmp_path / "new folder" / "store.db"
    _assert_all_ended_well([_processes.start("open", path, f"p{n}") for n in range(5)])
    async with SQLiteStorageBackend(path) as storage:
        said = [message["content"] for message in await storage.get_conversation_history("s", 0)]
        assert sorted(said) == [f"p{n}" for n in range(5)]
        assert (await storage.store_state()).incarnation


async def test_a_killed_writer_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """SIGKILL in the middle of the load: every acknowledged message is there, once, in order; the file is whole."""
    path = tmp_path / "store.db"
    process = _processes.start("talk", path, 20)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(400)]
    finally:
        process.kill()
    rest, errors = process.communicate(timeout=30)
    assert errors == ""
    acknowledged: dict[int, int] = {}
    for line in [*lines, *rest.splitlines(keepends=True)]:
        if line.endswith("\n"):
            session, n = map(int, line.split())
            assert acknowledged.get(session, -1) == n - 1
            acknowledged[session] = n
    assert sum(last + 1 for last in acknowledged.values()) >= 400
    async with SQLiteStorageBackend(path) as storage:
        for session, last in acknowledged.items():
            said = [m["content"] for m in await storage.get_conversation_history(f"s{session}", 0)]
            assert said[: last + 1] == [f"m{n}" for n in range(last + 1)]
            assert len(said) <= last + 2, "at most the one under way is there beyond what was acknowledged"
        assert await storage.add_conversation_message("s0", "user", "after") is True


async def test_a_process_sees_what_another_wrote(tmp_path: Path) -> None:
    """A read sees what any process had acknowledged before."""
    path = tmp_path / "store.db"
    async with SQLiteStorageBackend(path) as storage:
        assert await storage.get_conversation_history("s") == []
        _assert_all_ended_well([_processes.start("open", path, "other")])
        assert [m["content"] for m in await storage.get_conversation_history("s")] == ["other"]


def _assert_all_ended_well(processes: list[_processes.subprocess.Popen[str]]) -> None:
    ended = []
    try:
        ended = [(process.communicate(timeout=90)[1], process.returncode) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    assert [code for _errors, code in ended] == [0] * len(processes), ended
