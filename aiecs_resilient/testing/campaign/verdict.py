"""What an episode proved: the checker's counts, what else was wrong, and enough to play it again."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import history

CHECKER = Path(history.__file__).with_name("check_history.py")
SHOWN = 5  # examples of each kind of finding


class CheckerError(RuntimeError):
    """The checker could not be run, or says that the history proves nothing."""


@dataclass(slots=True)
class Verdict:
    """The result of one episode; its text has all that is needed to understand and repeat it.

    Attributes:
        violations: by kind, as the checker counts them.
        details: examples of them.
        findings: what else was wrong: late calls, lies of health, strange errors, no faults, not healed.
        faults: injected, by kind.
        figures: of the episode, for people.
    """

    scenario: str
    stage: str
    seed: int
    seconds: float
    folder: Path
    violations: dict[str, int] = field(default_factory=dict[str, int])
    details: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    findings: list[str] = field(default_factory=list[str])
    faults: dict[str, int] = field(default_factory=dict[str, int])
    figures: dict[str, object] = field(default_factory=dict[str, object])

    @property
    def ok(self) -> bool:
        """Nothing lost, doubled, out of order, foreign, miscounted or different, and nothing else wrong."""
        return not self.findings and not any(self.violations.values())

    def __str__(self) -> str:
        lines = [
            f"{self.scenario} on {self.stage}, seed {self.seed}, {self.seconds:g} s: {'passed' if self.ok else 'FAILED'}",
            f"  faults {self.faults}",
            *(f"  {name} {value}" for name, value in self.figures.items()),
            *(f"  {count} {kind}: {self.details.get(kind, [])[:SHOWN]}" for kind, count in self.violations.items() if count),
            *(f"  {finding}" for finding in self.findings[: 4 * SHOWN]),
        ]  # fmt: skip
        if not self.ok:
            lines.append(f"  history and states are in {self.folder}")
        return "\n".join(lines)


async def judge(record: Path, states: Sequence[Path], verdict: Verdict) -> None:
    """Run the checker, a program of its own, and put its counts into the verdict.

    Raises:
        CheckerError: the history proves nothing.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", str(CHECKER), "--json", str(record), *map(str, states),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await process.communicate()
    if process.returncode not in (0, 1):
        raise CheckerError(
            f"{verdict.scenario}, seed {verdict.seed}: {errors.decode(errors='replace').strip()}"
        )
    result: dict[str, Any] = json.loads(out)
    verdict.violations = result["violations"]
    verdict.details = result["details"]
    names = ("acknowledged", "unknown", "not_applied", "reads", "flagged_stale")
    verdict.figures |= {name: result[name] for name in names}
