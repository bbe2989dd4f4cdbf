"""Our own process, killed in the middle of its writes: whatever it was doing, the next process finds everything in order.

Run as a program this is the victim: it opens a chain and works until somebody kills it::

    python -m aiecs_resilient.testing.campaign.process CONFIG.json HISTORY NAME SEED
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from ... import telemetry
from ...interface import Backend
from ...storage import open_storage
from ..history import HistoryRecorder
from .readback import read_back
from .runner import LEAST_ACKNOWLEDGED, until_drained, until_healthy
from .stage import Stage
from .verdict import Verdict, judge
from .workload import Load, Workload

START_SECONDS = 30.0
WORK_BYTES = 40_000  # of history, a few hundred lines, before it may be killed
AFTER_SECONDS = 0.3  # it is killed at a random moment within this time from then on
POLL = 0.01
BUSY = Load(sessions=24, pause=0.005)  # somebody is always in the middle of a write


class VictimError(RuntimeError):
    """The process that was to be killed ended by itself; the message has what it said."""


async def run_killed(stage: Stage, *, seed: int, kills: int = 5, folder: Path | None = None) -> Verdict:
    """Kill a working process again and again; after each time a new one opens the chain and puts everything in order.

    Args:
        seed: decides load and moments, as far as the timing of a real machine lets it.
        folder: as for :func:`.runner.run`.

    Raises:
        ValueError: the stage has no configuration that another process could open.
    """
    if stage.config is None:
        raise ValueError(
            f"{stage.name} has no configuration that another process could open; give Stage(config=…)"
        )
    place = folder or Path(tempfile.mkdtemp(prefix="aiecs-campaign-"))
    verdict = Verdict("own process killed", stage.name, seed, 0.0, place)
    config = place / "config.json"
    config.write_text(json.dumps(stage.config))
    chance = random.Random(seed)  # noqa: S311 - replayed from its seed, guards nothing
    record, sessions = place / "history.jsonl", list[str]()
    began = time.monotonic()
    with record.open("ab") as joined:
        for number in range(kills):
            name, part = f"k{seed}-{number}", place / f"history-{number}.jsonl"
            await _victim(config, part, name, seed + number, chance)
            joined.write(whole_lines(part))
            joined.flush()
            sessions += [f"{name}-{session}" for session in range(BUSY.sessions)]
            async with stage.chain() as storage:
                await until_healthy(storage)
                await until_drained(stage, storage)
                await _settle(storage, part, record)
    verdict.seconds = round(time.monotonic() - began, 1)
    verdict.faults = {"own process killed": kills}
    states = [await read_back(store, sessions, place) for store in stage.stores]
    await judge(record, states, verdict)
    if (acknowledged := int(str(verdict.figures["acknowledged"]))) < LEAST_ACKNOWLEDGED:
        verdict.findings.append(f"only {acknowledged} writes were acknowledged: this proves nothing")
    if folder is None and verdict.ok:
        shutil.rmtree(place)
    return verdict


async def _victim(config: Path, record: Path, name: str, seed: int, chance: random.Random) -> None:
    """Start it, let it work, kill it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, str(config), str(record), name, str(seed),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(START_SECONDS):
            while size(record) < WORK_BYTES:
                if process.returncode is not None:
                    _, errors = await process.communicate()
                    raise VictimError(
                        f"the process that was to be killed ended by itself: {errors.decode()[-2000:]}"
                    )
                await asyncio.sleep(POLL)
        await asyncio.sleep(chance.random() * AFTER_SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def size(record: Path) -> int:
    """0 as long as there is none."""
    return record.stat().st_size if record.exists() else 0


def whole_lines(record: Path) -> bytes:
    """Without what a SIGKILL left of the last one: other lines are to follow."""
    lines = record.read_bytes()
    return lines[: lines.rfind(b"\n") + 1]


async def _settle(storage: Backend, part: Path, record: Path) -> None:
    """Ask what became of the writes that nobody was told about, and note it: it can be held against the chain."""
    open_: dict[str, dict[str, str]] = {}
    for raw in whole_lines(part).splitlines():
        line = json.loads(raw)
        if line["line"] == "invoke" and line["op_id"]:
            open_[line["id"]] = line
        elif line["line"] == "outcome" and line["outcome"] != "unknown":
            open_.pop(line["id"], None)
    with HistoryRecorder(record) as recorder:
        for identifier, line in open_.items():
            outcome = await storage.operation_outcome(line["key"].partition("/")[0], line["op_id"])
            recorder.outcome(identifier, "ok" if outcome == "applied" else "not_applied")


async def work(storage: Backend, record: Path, name: str, seed: int) -> None:
    """What the victim does, until it is killed."""
    with HistoryRecorder(record, flush_after=0.0) as recorder:
        async with storage:
            await Workload(storage, recorder, BUSY, seed=seed, name=name).run()


def main(config: Path, record: Path, name: str, seed: int) -> None:
    """Be the victim."""
    logging.getLogger(telemetry.SCOPE).setLevel(logging.ERROR)
    asyncio.run(work(open_storage(json.loads(config.read_text())), record, name, seed))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
