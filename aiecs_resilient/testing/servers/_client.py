"""The owner's end of the supervisor: starts it and speaks its one-line protocol."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ._errors import ServerError

if TYPE_CHECKING:
    from ._supervisor import Answer, Command

SCRIPT = Path(__file__).with_name("_supervisor.py")


class SupervisorClient:
    """One supervisor process. `folder` is given, or a temporary one that dies with the supervisor."""

    def __init__(self, *, folder: Path | None, prefix: str) -> None:
        self.temporary = folder is None
        self._lock = threading.Lock()
        # A server must not inherit what points a PostgreSQL client or server somewhere else, nor a locale whose
        # messages and sort order differ from machine to machine.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))
        }
        self._process = subprocess.Popen(  # noqa: S603 - our own script, no shell
            [sys.executable, "-I", "-S", str(SCRIPT), str(os.getpid()), str(folder or ""), prefix],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=environment | {"LC_ALL": "C"},
            start_new_session=True,  # a Ctrl-C in the terminal is for us; the supervisor learns of our end itself
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.folder = Path(self._read()["folder"])

    def status(self) -> Answer:
        return self._ask(command("status"))

    def processes(self) -> list[int]:
        """All processes of the server; looking for them costs some milliseconds."""
        return self._ask(command("processes"))["processes"]

    def reserve(self, port: int | None) -> int | None:
        """Hold that port, or any free one, until the end; returns which."""
        return self._ask(command("reserve", port=port))["port"]

    def spawn(self, argv: list[str], *, log: Path, user: int | None) -> None:
        """Run the main process, after killing what is left of the one before."""
        self._ask(command("spawn", argv=argv, log=str(log), user=user))

    def send_signal(self, signum: signal.Signals) -> None:
        """To the main process, if there is one."""
        self._ask(command("signal", signum=signum))

    def freeze(self) -> None:
        self._ask(command("freeze"))

    def thaw(self) -> None:
        self._ask(command("thaw"))

    def kill(self) -> None:
        self._ask(command("kill"))

    def _ask(self, command: Command) -> Answer:
        with self._lock:
            try:
                self._write(command)
            except (BrokenPipeError, ValueError) as error:
                raise ServerError("the server was removed, or its supervisor process killed") from error
            answer = self._read()
        if answer["error"] is not None:
            raise ServerError(answer["error"])
        return answer

    def _write(self, command: Command) -> None:
        self._stdin.write(json.dumps(command).encode() + b"\n")
        self._stdin.flush()

    def _read(self) -> Answer:
        line = self._stdout.readline()
        if not line:
            raise ServerError("the server's supervisor process was killed, and the server with it")
        return cast("Answer", json.loads(line))

    def end(self, *, delete: bool) -> None:
        """Let the supervisor kill everything and go; a temporary folder is deleted in any case."""
        with self._lock:
            with contextlib.suppress(BrokenPipeError):
                self._write(command("remove" if delete else "leave"))
            with contextlib.suppress(BrokenPipeError):
                self._stdin.close()
            self._stdout.close()
            try:
                self._process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                raise ServerError("the server's supervisor could not kill its server within 60 s") from None
        if self.temporary or delete:  # there is something to do only if the supervisor itself was killed
            shutil.rmtree(self.folder, ignore_errors=True)


def command(
    do: str,
    *,
    argv: Sequence[str] = (),
    log: str = "",
    user: int | None = None,
    signum: int = 0,
    port: int | None = None,
) -> Command:
    return {"do": do, "argv": [*argv], "log": log, "user": user, "signal": signum, "port": port}
