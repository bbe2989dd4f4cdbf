"""The command as a user runs it: real servers, a minute shortened, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

DEMO = [sys.executable, "-m", "aiecs_resilient", "demo"]


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A place for temporary folders of one run, which PostgreSQL's own user can reach (pytest's is closed to others)."""
    with tempfile.TemporaryDirectory(prefix="demo-test-") as name:
        place = Path(name)
        place.chmod(0o711)
        yield place


def gone(place: Path, *, within: float = 15.0) -> bool:
    """Whether the supervisor has cleared up in time; it does so after the command has ended."""
    give_up = time.monotonic() + within
    while folders(place) and time.monotonic() < give_up:
        time.sleep(0.02)
    return not folders(place)


def folders(place: Path) -> list[str]:
    """Temporary folders of servers that are still there."""
    return [path.name for path in place.iterdir()]


@pytest.mark.timeout(120)
def test_the_primary_is_lost_twice_and_nothing_is_missing(tmp_path: Path, temporary: Path) -> None:
    """Real Valkey, real PostgreSQL, the shipped configuration: status 0, a page, and no folder left."""
    report = tmp_path / "report.html"
    done = subprocess.run(
        [*DEMO, "--seconds", "10", "--sessions", "60", "--rate", "60", "--report", str(report)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Not one lost, doubled or out of order" in " ".join(done.stdout.split())
    assert "Nothing was lost" in report.read_text(encoding="utf-8")
    assert gone(temporary)


def _hear_interrupts() -> None:
    """A shell starts what runs in the background deaf to SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_an_interrupt_ends_it_and_takes_the_servers_along(
    tmp_path: Path, temporary: Path, number: signal.Signals, status: int
) -> None:
    """Ctrl-C in the middle: a clean end, no traceback, no server, no folder."""
    process = subprocess.Popen(
        [*DEMO, "--report", str(tmp_path / "report.html")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
        preexec_fn=_hear_interrupts,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "1/6" in line:
                break
        assert folders(temporary)
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == status, output + errors
    assert "Traceback" not in errors
    assert gone(temporary)
