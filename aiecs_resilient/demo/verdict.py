"""Is anything lost, doubled, out of order or different? Answered by a program that never imports this library.

``aiecs_resilient/testing/check_history.py`` gets the history of what was acknowledged and what both stores hold, as
files, and runs as a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .outside_check import Holding

CHECKER: Final = Path(__file__).resolve().parent.parent / "testing" / "check_history.py"
CHECKER_LIMIT: Final = 60.0  # seconds
DETAILS: Final = 20

MEANINGS: Final[Mapping[str, str]] = {
    "lost": "acknowledged, and missing in a store",
    "duplicated": "one operation, more than one effect",
    "out_of_order": "messages not in the order of acknowledgement",
    "counters": "counters that are not the sum of what was acknowledged",
    "differing": "held differently by the two stores",
    "stale_reads": "reads older than the same user's own writes, unflagged",
    "not_applied_present": "reported as not done, and done",
    "foreign": "another session's data",
    "unexplained": "in a store, and nobody wrote it",
}
"""What the checker counts, in the order in which it is shown. All must be zero."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The checker's counts.

    Attributes:
        violations: by name, as in :data:`MEANINGS`.
        details: examples of each.
        problems: why there is no clean result although nothing was counted: a step that got stuck, marks left open.
    """

    violations: Mapping[str, int]
    details: Mapping[str, Sequence[str]]
    flagged_stale: int = 0
    problems: Sequence[str] = field(default_factory=tuple[str, ...])

    @property
    def clean(self) -> bool:
        return not self.problems and not any(self.violations.values())


async def judge(history: Path, holdings: Sequence[Holding], folder: Path, problems: Sequence[str]) -> Verdict:
    """Compare what was acknowledged with what the stores hold. Leaves its input in ``folder``."""
    states: list[Path] = []
    for holding in holdings:
        path = folder / f"{holding.store.lower()}.json"
        path.write_text(json.dumps(holding.as_state(), ensure_ascii=False), encoding="utf-8")
        states.append(path)
    found = list(problems)
    found += [
        f"{holding.store} still marks {holding.open_marks} operations as missing in the other store"
        for holding in holdings
        if holding.open_marks
    ]
    result = await _run_checker(history, states)
    if "violations" not in result:
        return Verdict({}, {}, problems=(*found, f"the checker could not judge: {result.get('error')}"))
    return Verdict(
        violations=result["violations"],
        details=result["details"],
        flagged_stale=int(result["flagged_stale"]),
        problems=tuple(found),
    )


async def _run_checker(history: Path, states: Sequence[Path]) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",  # isolated: nothing of ours is importable by accident
        str(CHECKER),
        "--json",
        f"--details={DETAILS}",
        str(history),
        *map(str, states),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(CHECKER_LIMIT):
            output, complaints = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode not in (0, 1):
        return {"error": complaints.decode(errors="replace").strip()}
    result: dict[str, Any] = json.loads(output)
    return result
