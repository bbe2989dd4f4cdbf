"""Many episodes, one after the other: every scenario on every chain, for several seeds, resumable after an interruption.

Each verdict becomes one line of a file as soon as it is known; an episode whose line is there and passed is not played again.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from ...errors import StorageError
from ..servers import PostgreSQLServer, ValkeyServer
from .chains import postgresql_sqlite, redis_postgresql
from .process import VictimError, run_killed
from .runner import NotHealedError, run
from .scenarios import SCENARIOS
from .stage import Stage
from .verdict import CheckerError, Verdict

ChainName = Literal["redis-postgresql", "postgresql-sqlite"]
CHAINS: tuple[ChainName, ...] = ("redis-postgresql", "postgresql-sqlite")
OWN_PROCESS = "own process killed"
RECORD = "campaign.jsonl"
UNPLAYABLE = (CheckerError, NotHealedError, StorageError, TimeoutError, VictimError)


@dataclass(frozen=True, slots=True)
class Episode:
    """One scenario on one chain under one seed."""

    scenario: str
    chain: ChainName
    seed: int

    @property
    def name(self) -> str:
        return f"{self.scenario} · {self.chain} · seed {self.seed}"


class Line(TypedDict):
    """What is kept of a verdict."""

    scenario: str
    chain: ChainName
    seed: int
    ok: bool
    faults: int
    acknowledged: int
    violations: Mapping[str, int]
    text: str


def planned(seeds: Iterable[int], scenarios: Iterable[str], chains: Iterable[ChainName]) -> list[Episode]:
    """Everything to be played, seed by seed, so that an interrupted series has seen every scenario."""
    return [
        Episode(scenario, chain, seed)
        for seed in seeds
        for scenario in scenarios
        for chain in chains
        if chain == "redis-postgresql" or scenario == OWN_PROCESS or not needs_a_fallback_server(scenario)
    ]


def needs_a_fallback_server(scenario: str) -> bool:
    """A file cannot be killed."""
    return any(need.startswith("fallback") for need in SCENARIOS[scenario].needs)


def done(record: Path) -> list[Line]:
    """The lines of an earlier, interrupted series. A torn last one is left out."""
    lines: list[Line] = []
    for raw in record.read_text().splitlines() if record.exists() else ():
        try:
            lines.append(json.loads(raw))
        except ValueError:
            continue
    return lines


def latest(record: Path) -> dict[Episode, Line]:
    """What became of each episode, when it was last played."""
    return {Episode(line["scenario"], line["chain"], line["seed"]): line for line in done(record)}


async def play(
    episodes: Iterable[Episode], *, seconds: float, folder: Path
) -> AsyncGenerator[tuple[Episode, Line]]:
    """Play them on servers of their own; each is in the record before it is yielded.

    Args:
        seconds: how long each scenario takes, healing not included.
        folder: where the record, and the histories of what failed, are kept.
    """
    record = folder / RECORD
    passed = {episode for episode, line in latest(record).items() if line["ok"]}
    async with ValkeyServer() as valkey, PostgreSQLServer(fsync=False) as postgresql:
        for episode in episodes:
            if episode in passed:
                continue
            async with _stage(episode, valkey, postgresql, folder) as stage:
                try:
                    verdict = await _one(episode, stage, seconds)
                except UNPLAYABLE as error:  # the others are still to be played
                    verdict = Verdict(episode.scenario, stage.name, episode.seed, seconds, folder)
                    verdict.findings.append(f"it could not be played to its end: {error!r}")
                    await stage.heal()
            line = _line(episode, verdict)
            _append(record, line)
            yield episode, line


async def _one(episode: Episode, stage: Stage, seconds: float) -> Verdict:
    if episode.scenario == OWN_PROCESS:
        return await run_killed(stage, seed=episode.seed)
    return await run(SCENARIOS[episode.scenario], stage, seed=episode.seed, seconds=seconds)


def _stage(
    episode: Episode, valkey: ValkeyServer, postgresql: PostgreSQLServer, folder: Path
) -> AbstractAsyncContextManager[Stage]:
    if episode.chain == "redis-postgresql":
        return redis_postgresql(valkey, postgresql, seed=episode.seed)
    return postgresql_sqlite(postgresql, folder, seed=episode.seed)


def _line(episode: Episode, verdict: Verdict) -> Line:
    return {
        "scenario": episode.scenario,
        "chain": episode.chain,
        "seed": episode.seed,
        "ok": verdict.ok,
        "faults": sum(verdict.faults.values()),
        "acknowledged": int(str(verdict.figures.get("acknowledged", 0))),
        "violations": verdict.violations,
        "text": str(verdict),
    }


def _append(record: Path, line: Line) -> None:
    with record.open("a") as file:
        file.write(json.dumps(line) + "\n")
