"""The run from beginning to end: set up, load through the phases, until both stores are level, read back, judge."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .. import telemetry
from ..testing.history import HistoryRecorder
from .dialogues import Conversation, chain_into_sessions, load_conversations
from .figures import caught_by
from .journal import Journal
from .options import DemoOptions
from .outside_check import Holding
from .phases import Conductor, StuckError
from .result import Result, Setting
from .screen import Screen
from .stage import Stage, real_stage
from .verdict import Verdict, judge
from .watch import StoreNames, Watch
from .workload import Pace, Workload

LEVEL_LIMIT: Final = 20.0  # seconds in which both stores have to be level once the load has ended
LEVEL_POLL: Final = 0.1
QUEUE_SECONDS: Final = 0.2  # in which a thawed server works off what was sent to it while it was frozen
WIND_DOWN_LIMIT: Final = 15.0  # seconds in which operations that have begun have to end


async def run_demo(options: DemoOptions, screen: Screen) -> Result:
    """Everything, on real servers."""
    begun = time.perf_counter()
    conversations = load_conversations()
    async with real_stage(options.config) as stage:
        setup = time.perf_counter() - begun
        servers = f"Valkey on :{stage.primary.port}, PostgreSQL on :{stage.fallback.port}"
        screen.note(f"{servers}, {stage.config.name}; up after {setup:.1f} s")
        return await play(stage, options, screen, conversations, setup=setup)


@contextmanager
def log_to(path: Path) -> Generator[None]:
    """The chain's own log goes to a file: on the screen it would bury what the demo tells."""
    logger, handler = logging.getLogger(telemetry.SCOPE), logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(handler)
        handler.close()


@dataclass(slots=True)
class _Played:
    """What the load left behind."""

    conductor: Conductor
    workload: Workload
    watch: Watch
    end: float = 0.0
    late: dict[int, int] = field(default_factory=dict[int, int])


async def play(
    stage: Stage,
    options: DemoOptions,
    screen: Screen,
    conversations: Sequence[Conversation],
    *,
    setup: float = 0.0,
) -> Result:
    """Load, faults, and the verdict, on servers that run already."""
    folder = Path(tempfile.mkdtemp(prefix="aiecs-resilient-demo-"))
    try:
        history = folder / "history.jsonl"
        with HistoryRecorder(history, process="demo") as recorder, log_to(folder / "chain.log"):
            names = await StoreNames.of(stage.storage)
            journal = Journal(recorder)
            problems: list[str] = []
            watch = Watch(stage.storage, journal, names, on_event=screen.event)
            async with watch:
                played = await _load(stage, options, screen, conversations, journal, watch, names, problems)
                level_at = time.perf_counter()
                await _until_level(watch, problems)
                await journal.settle(stage.storage)
            quiesce = time.perf_counter() - level_at
        check_at = time.perf_counter()
        holdings, verdict = await _check(stage, history, folder, problems)
        if not verdict.clean:
            _keep_evidence(folder, options, screen)
        return Result(
            options=options,
            names=names,
            setting=Setting(
                conversations=len(conversations),
                languages=len({conversation.language for conversation in conversations}),
                spoken=len(played.workload.languages),
                completed=played.workload.completed,
                setup=setup,
                quiesce=quiesce,
                check=time.perf_counter() - check_at,
            ),
            spans=played.conductor.spans,
            entries=journal.entries,
            happenings=watch.happenings,
            health=watch.samples,
            holdings=holdings,
            verdict=verdict,
            late=played.late,
            end=played.end,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _load(
    stage: Stage,
    options: DemoOptions,
    screen: Screen,
    conversations: Sequence[Conversation],
    journal: Journal,
    watch: Watch,
    names: StoreNames,
    problems: list[str],
) -> _Played:
    """The application at work while the conductor leads through the phases."""
    workload = Workload(
        stage.storage,
        journal,
        chain_into_sessions(conversations, seed=options.seed),
        sessions=options.sessions,
        pace=Pace.of(sessions=options.sessions, rate=options.rate),
        seed=options.seed,
    )

    async def look_for_late_writes() -> None:
        """Right after the thaw, before the chain asks the primary anything: what has it done of its old queue?"""
        await asyncio.sleep(QUEUE_SECONDS)
        takeovers = watch.of(telemetry.FAILOVER_COMPLETED)
        caught = caught_by(journal.entries, takeovers[-1].at if takeovers else None, names.fallback)
        writes = [(entry.key, entry.op_id) for entry in caught if entry.is_write]
        played.late[conductor.spans[-2].phase.number] = await stage.done_by_primary(writes)

    conductor = Conductor(
        stage.primary,
        journal,
        watch,
        seconds=options.seconds,
        on_phase=screen.phase,
        on_thaw=look_for_late_writes,
    )
    played = _Played(conductor, workload, watch)
    journal.start()
    with screen.load(journal, names, options.seconds):
        async with asyncio.TaskGroup() as together:
            users = together.create_task(workload.run())
            try:
                await conductor.run()
            except StuckError as error:
                problems.append(str(error))
            played.end = journal.now()
            workload.stop()
            try:
                async with asyncio.timeout(WIND_DOWN_LIMIT):
                    await asyncio.shield(users)
            except TimeoutError:
                users.cancel()
                problems.append(
                    f"{journal.in_flight} operations had not ended {WIND_DOWN_LIMIT:g} s after the load"
                )
    return played


async def _until_level(watch: Watch, problems: list[str]) -> None:
    """Wait until health says that both stores hold everything."""
    try:
        async with asyncio.timeout(LEVEL_LIMIT):
            while True:
                await watch.look()
                if watch.healthy:
                    return
                await asyncio.sleep(LEVEL_POLL)
    except TimeoutError:
        problems.append(
            f"the stores were not level {LEVEL_LIMIT:g} s after the load: health says {watch.latest}"
        )


async def _check(
    stage: Stage, history: Path, folder: Path, problems: Sequence[str]
) -> tuple[list[Holding], Verdict]:
    """Marks are closed lazily, in batches; until the last one is, the stores are read again."""
    async with asyncio.timeout(LEVEL_LIMIT):
        holdings = await stage.read_back()
    for _attempt in range(20):
        if not any(holding.open_marks for holding in holdings):
            break
        await asyncio.sleep(LEVEL_POLL)
        holdings = await stage.read_back()
    return holdings, await judge(history, holdings, folder, problems)


def _keep_evidence(folder: Path, options: DemoOptions, screen: Screen) -> None:
    """What the verdict rests on, beside the report, so that a failure can be looked into."""
    kept = options.report.absolute().with_suffix(".evidence")
    shutil.copytree(folder, kept, dirs_exist_ok=True)
    screen.note(f"history, log and the contents of both stores are kept in {kept}")
