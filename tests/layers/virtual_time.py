"""A loop whose clock jumps to the next timer instead of waiting for it: hours pass in no time, and in the same way each run."""

import asyncio
from typing import Any


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time. It has nothing to wait for but its own timers; waiting for anything else is an error."""

    _scheduled: list[Any]
    _ready: Any

    def __init__(self) -> None:
        self._now = 1_000.0
        super().__init__()

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass without running anything: a stalled loop."""
        self._now += seconds

    def _run_once(self) -> None:
        if not self._ready:
            pending = [handle for handle in self._scheduled if not handle.cancelled()]
            if not pending and not self._stopping:  # type: ignore[attr-defined]
                raise AssertionError("everything waits and no timer is set: this would hang for ever")
            if pending:
                self._now = max(self._now, min(handle.when() for handle in pending))
        super()._run_once()  # type: ignore[misc]


def current() -> VirtualLoop:
    """The running one."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop
