"""Runs the checks of this project and ends with one line that says how it went.

``checks.py [lint] [types] [tests] [-- PYTEST OPTIONS]`` is run by the environment's own Python. All checks run
even when an early one fails, so that one run shows everything; the exit status is 0 only if all were good.
The closing line counts tests; a failed linter or type checker counts as one more failure.
"""

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PYTHON: Final = sys.executable
CLOSING_LINE: Final = ROOT / ".make" / "closing-line"
# A run that hangs must end by itself: nobody watches it. Tests have their own, shorter limits.
CHECK_SECONDS: Final = 600
TESTS_SECONDS: Final = 1500

CHECKS: Final[dict[str, dict[str, list[str]]]] = {
    "lint": {
        "ruff check": ["ruff", "check", "."],
        "ruff format": ["ruff", "format", "--check", "."],
    },
    "types": {
        "mypy": ["mypy"],
        "basedpyright": ["basedpyright", "--pythonpath", PYTHON],
    },
}


@dataclass
class Outcome:
    """What has been counted so far."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, other: "Outcome") -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def main(arguments: list[str]) -> int:
    options: list[str] = []
    if "--" in arguments:
        split = arguments.index("--")
        arguments, options = arguments[:split], arguments[split + 1 :]
    unknown = set(arguments) - {*CHECKS, "tests"}
    if unknown or not arguments:
        sys.stderr.write(f"checks: choose from lint, types, tests; not {sorted(unknown) or 'nothing'}\n")
        return 2

    started = time.monotonic()
    total = Outcome()
    for group in arguments:
        total.add(run_tests(options) if group == "tests" else run_checks(CHECKS[group]))
    closing = f"{total} in {time.monotonic() - started:.0f} s"
    CLOSING_LINE.parent.mkdir(exist_ok=True)
    CLOSING_LINE.write_text(f"{closing}\n", encoding="utf-8")
    say(closing)
    return 1 if total.failed else 0


def run_checks(checks: dict[str, list[str]]) -> Outcome:
    good = [run_check(name, command) for name, command in checks.items()]
    return Outcome(failed=good.count(False))


def run_check(name: str, command: list[str]) -> bool:
    say(f"== {name}")
    started = time.monotonic()
    good = run(command, CHECK_SECONDS) == 0
    say(f"== {name}: {'good' if good else 'FAILED'} ({time.monotonic() - started:.1f} s)")
    return good


def run_tests(options: list[str]) -> Outcome:
    say("== pytest")
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        status = run(["pytest", f"--junitxml={results}", *options], TESTS_SECONDS)
        outcome = read_results(results)
    # No test found (5), a crash, a wrong option and a process that ended early, even with status 0, leave no
    # failed test behind, and are failures all the same.
    if outcome.failed == 0 and (status != 0 or outcome.passed == 0):
        outcome.failed = 1
    return outcome


def read_results(results: Path) -> Outcome:
    try:
        # Written by our own pytest a moment ago, so not a stranger's XML.
        suites = list(ElementTree.parse(results).getroot().iter("testsuite"))  # noqa: S314
    except (OSError, ElementTree.ParseError):
        return Outcome()

    def count(name: str) -> int:
        return sum(int(suite.get(name, 0)) for suite in suites)

    failed, skipped = count("failures") + count("errors"), count("skipped")
    return Outcome(passed=max(count("tests") - failed - skipped, 0), failed=failed, skipped=skipped)


def run(command: list[str], seconds: float) -> int:
    environment = {
        name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}
    }
    try:
        done = subprocess.run(  # noqa: S603  # only commands written in this file, and pytest options of the caller
            [PYTHON, "-m", *command], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        say(f"{command[0]} was ended after {seconds:.0f} s")
        return 1
    return done.returncode


def say(message: str) -> None:
    sys.stdout.write(f"{message}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
