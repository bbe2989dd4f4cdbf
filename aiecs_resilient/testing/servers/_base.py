"""What every development server has in common: a real process that can be killed, paused and restarted.

Servers are started by a small supervisor process, which outlives us by the moment it needs to kill the server
and delete its temporary folder; nothing is left behind even when we are SIGKILLed. All calls block (a Valkey is
up in about 0.1 s, a PostgreSQL in about 1 s); `async with` and the methods that begin with `a` do the same in a
thread.
"""

from __future__ import annotations

import abc
import os
import shutil
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from ._client import SupervisorClient
from ._errors import ServerError

LOOPBACK = "127.0.0.1"
MARKER = ".aiecs-resilient-server"
POLL_SECONDS = 0.005
PORT_ATTEMPTS = 5


class Server(abc.ABC):
    """A server on a loopback port with its files in one folder.

    `port=None` takes a free port, `folder=None` a temporary folder that is deleted with the server. A given folder
    belongs to the caller: leaving the `with` block stops the server and keeps it, only `remove()` deletes it.
    `start_timeout` and `stop_timeout` are in seconds.

        with ValkeyServer() as server:
            server.kill()      # SIGKILL, connections break
            server.restart()   # same port, same data
            server.pause()     # SIGSTOP: connections hang
            server.resume()
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]

    def __init__(
        self,
        *,
        port: int | None = None,
        folder: Path | None = None,
        start_timeout: float = 30.0,
        stop_timeout: float = 30.0,
    ) -> None:
        if port is not None and not 0 < port < 65536:
            raise ValueError(f"port must be between 1 and 65535, or None for a free one, not {port}")
        if start_timeout <= 0 or stop_timeout <= 0:
            raise ValueError("start_timeout and stop_timeout are seconds and must be above 0")
        self._wanted_port = port
        self._port: int | None = None
        self._wanted_folder = folder.absolute() if folder is not None else None
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._supervisor: SupervisorClient | None = None
        self._paused = False

    # What a kind of server has to say about itself.

    @property
    @abc.abstractmethod
    def url(self) -> str:
        """Where clients connect; equal before and after a restart."""

    @abc.abstractmethod
    def _prepare(self) -> None:
        """Before each start: write configuration and, the first time, the data folder."""

    @abc.abstractmethod
    def _command(self) -> list[str]:
        """Absolute path of the binary, and its arguments."""

    @abc.abstractmethod
    def _ping(self, pid: int) -> None:
        """Return if the server with this pid serves; raise OSError with the reason if it does not yet."""

    def _user(self) -> int | None:
        """The user to run as, where it must not be ours."""
        return None

    # State.

    @property
    def port(self) -> int:
        if self._port is None:
            raise ServerError(f"{self.name} has no port before start()")
        return self._port

    @property
    def folder(self) -> Path:
        """`data/` and `server.log` are in it."""
        return self._supervised().folder

    @property
    def pid(self) -> int:
        """Of the main process."""
        pid = self._supervised().status()["pid"]
        if pid is None:
            raise ServerError(f"{self.name} is not running{self._log_tail()}")
        return pid

    @property
    def pids(self) -> list[int]:
        """Of all its processes."""
        return self._supervised().processes()

    @property
    def running(self) -> bool:
        """Whether its main process exists; a paused one does."""
        return self._supervisor is not None and self._supervisor.status()["pid"] is not None

    @property
    def paused(self) -> bool:
        return self._paused and self.running

    def __repr__(self) -> str:
        state = "paused" if self.paused else "running" if self.running else "stopped"
        return f"<{type(self).__name__} {state}, {LOOPBACK}:{self._port}>"

    # Life.

    def start(self) -> None:
        """Start it and return when it serves."""
        if self.running:
            raise ServerError(f"{self.name} on port {self._port} is running already; use restart()")
        supervisor = self._supervised()
        attempts = 1 if self._wanted_port is not None or self._port is not None else PORT_ATTEMPTS
        for attempt in range(1, attempts + 1):
            if self._port is None or attempt > 1:
                self._port = supervisor.reserve(self._wanted_port)
            self._prepare()
            self._log_start = self._log_size()
            supervisor.spawn(self._command(), log=self._log(), user=self._user())
            self._paused = False
            try:
                self._wait_until_ready()
            except ServerError:
                supervisor.kill()
                # Only where the supervisor cannot hold the port can somebody have been quicker.
                if attempt == attempts or "in use" not in self._log_tail():
                    raise
            else:
                return

    def kill(self) -> None:
        """SIGKILL all its processes; returns when they are gone. Does nothing if it does not run."""
        self._supervised().kill()
        self._paused = False

    def stop(self) -> None:
        """Orderly shutdown; returns when it has ended. Does nothing if it does not run."""
        supervisor = self._supervised()
        if self._paused:
            self.resume()
        supervisor.send_signal(self.stop_signal)
        give_up = time.monotonic() + self._stop_timeout
        while supervisor.status()["pid"] is not None:
            if time.monotonic() > give_up:
                supervisor.kill()
                raise ServerError(
                    f"{self.name} did not shut down within {self._stop_timeout:g} s and was killed{self._log_tail()}"
                )
            time.sleep(POLL_SECONDS)
        supervisor.kill()  # whatever the main process left behind

    def pause(self) -> None:
        """SIGSTOP all its processes: open connections and new ones hang, none is refused."""
        if not self.running:
            raise ServerError(f"{self.name} is not running, so it cannot be paused")
        self._paused = True
        self._supervised().freeze()

    def resume(self) -> None:
        """SIGCONT all its processes."""
        self._supervised().thaw()
        self._paused = False

    def restart(self) -> None:
        """Start it again on the same port and data, after `kill`, `stop` or a crash; a running one is stopped."""
        if self.running:
            self.stop()
        self.start()

    def remove(self) -> None:
        """Kill it and delete its folder. May be called again; `start` afterwards begins with no data."""
        self._end(delete=True)
        if self._wanted_folder is not None and (self._wanted_folder / MARKER).exists():
            shutil.rmtree(self._wanted_folder)

    def _end(self, *, delete: bool) -> None:
        if self._supervisor is not None:
            self._supervisor.end(delete=delete)
        self._supervisor = None
        self._port = None
        self._paused = False

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._end(delete=False)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._wanted_folder is None:
            self.remove()
            return
        try:
            if self.running:
                self.stop()
        finally:
            self._end(delete=False)

    # The same for coroutines. asyncio is imported on use: it costs more than the rest of this module together.

    async def astart(self) -> None:
        import asyncio

        await asyncio.to_thread(self.start)

    async def astop(self) -> None:
        import asyncio

        await asyncio.to_thread(self.stop)

    async def akill(self) -> None:
        import asyncio

        await asyncio.to_thread(self.kill)

    async def arestart(self) -> None:
        import asyncio

        await asyncio.to_thread(self.restart)

    async def aremove(self) -> None:
        import asyncio

        await asyncio.to_thread(self.remove)

    async def __aenter__(self) -> Self:
        import asyncio

        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.__exit__, kind, error, trace)

    # Inside.

    def _supervised(self) -> SupervisorClient:
        if self._supervisor is None:
            if self._wanted_folder is not None:
                claim(self._wanted_folder)
            self._supervisor = SupervisorClient(
                folder=self._wanted_folder, prefix=f"aiecs-resilient-{self.name.lower()}-"
            )
        return self._supervisor

    def _run(self, argv: list[str], *, user: int | None) -> None:
        """Run a program of the server to its end, under the supervisor as well."""
        supervisor = self._supervised()
        self._log_start = self._log_size()
        supervisor.spawn(argv, log=self._log(), user=user)
        give_up = time.monotonic() + self._start_timeout
        while (status := supervisor.status())["pid"] is not None:
            if time.monotonic() > give_up:
                supervisor.kill()
                raise ServerError(f"{argv[0]} took over {self._start_timeout:g} s{self._log_tail()}")
            time.sleep(POLL_SECONDS)
        if status["exit_status"] != 0:
            raise ServerError(f"{argv[0]} failed with status {status['exit_status']}{self._log_tail()}")

    def _wait_until_ready(self) -> None:
        give_up = time.monotonic() + self._start_timeout
        while True:
            status = self._supervised().status()
            pid = status["pid"]
            if pid is None:
                raise ServerError(
                    f"{self.name} ended with status {status['exit_status']} instead of serving on port "
                    f"{self._port}{self._log_tail()}"
                )
            try:
                self._ping(pid)
            except OSError as error:
                if time.monotonic() > give_up:
                    raise ServerError(
                        f"{self.name} did not serve on port {self._port} within {self._start_timeout:g} s: "
                        f"{error}{self._log_tail()}"
                    ) from error
                time.sleep(POLL_SECONDS)
            else:
                return

    _log_start = 0

    def _log(self) -> Path:
        return self._supervised().folder / "server.log"

    def _log_size(self) -> int:
        return self._log().stat().st_size if self._log().exists() else 0

    def _log_tail(self, lines: int = 20) -> str:
        """The end of what was logged since the last start, ready to be appended to an error."""
        if self._supervisor is None or not self._log().exists():
            return ""
        with self._log().open("rb") as log:
            log.seek(self._log_start)
            text = log.read().decode(errors="replace").strip()
        tail = "\n".join(f"  {line}" for line in text.splitlines()[-lines:])
        return f"; the end of {self._log()}:\n{tail}" if tail else ""


def claim(folder: Path) -> None:
    """Take a folder of the caller's: a new or empty one, or one that an earlier server here marked as its own."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / MARKER
    if not marker.exists() and any(folder.iterdir()):
        raise ServerError(f"{folder} holds files of somebody else; give an empty folder or a former server's")
    marker.touch()
    if os.geteuid() == 0:
        folder.chmod(0o711)
