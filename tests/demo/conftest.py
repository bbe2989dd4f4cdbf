"""One short load on a healthy memory stage, recorded, for tests of what is made of a recording."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from aiecs_resilient.demo.dialogues import Conversation, chain_into_sessions
from aiecs_resilient.demo.journal import Journal
from aiecs_resilient.demo.outside_check import Holding
from aiecs_resilient.demo.workload import Pace, Workload
from aiecs_resilient.testing.history import HistoryRecorder

from .fakes import memory_stage

TALK = [
    Conversation("english", ("Are you sure?", "No")),
    Conversation("english", ("What is AI?", "A field.", "Since when?", "1956")),
    Conversation("hebrew", ("בוקר טוב", "שלום")),
    Conversation("chinese", ("你好吗", "我很好")),
]


@dataclass
class Recording:
    folder: Path
    history: Path
    journal: Journal
    holdings: list[Holding]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    folder = tmp_path_factory.mktemp("recording")
    history = folder / "history.jsonl"

    async def record() -> Recording:
        with HistoryRecorder(history, process="demo") as recorder:
            journal = Journal(recorder)
            async with memory_stage() as stage:
                scripts = chain_into_sessions(TALK, seed=1)
                pace = Pace.of(sessions=20, rate=800)
                workload = Workload(stage.storage, journal, scripts, sessions=20, pace=pace, seed=1)
                journal.start()
                async with asyncio.TaskGroup() as together:
                    together.create_task(workload.run())
                    await until(lambda: workload.completed >= 20)
                    workload.stop()
                holdings = await stage.read_back()
                while any(held.open_marks for held in holdings):  # they are closed in batches
                    await asyncio.sleep(0.02)
                    holdings = await stage.read_back()
                return Recording(folder, history, journal, holdings)

    return asyncio.run(record())


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that sends no event."""
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110  what is counted here tells nobody
            await asyncio.sleep(0.01)
