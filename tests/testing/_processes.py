"""Looking at processes and ports from outside, for tests that must not believe the code under test."""

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def state(pid: int) -> str:
    """The letter `ps` shows: R, S, T (stopped), Z (zombie)...; empty if there is no such process."""
    if Path("/proc/self/stat").exists():  # minimal installations of Linux have no `ps`
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return ""
    listed = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listed.stdout.strip()[:1]


def alive(pid: int) -> bool:
    """Whether that process exists and is not a zombie."""
    return state(pid) not in ("", "Z", "X")


def eventually(true: Callable[[], bool], *, within: float = 15.0) -> bool:
    """Whether it becomes true in time; other people's processes and folders send no event to wait for."""
    give_up = time.monotonic() + within
    while not true():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.01)
    return True


def is_free(port: int) -> bool:
    """Whether another program that looks for a free port could take this one."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
