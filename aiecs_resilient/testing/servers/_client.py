"""The owner's end of the supervisor: starts it and speaks its one-line protocol."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ._errors import ServerError

if TYPE_CHECKING:
    from ._supervisor import Answer, Command

SCRIPT = Path(__file__).with_name("_supervisor.py")


class SupervisorClient:
    """One supervisor process. `folder` is given, or a temporary one that dies with the supervisor."""

    def __init__(self, *, folder: Path | None, prefix: str) -> None:
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
        self.folder = Path(self._read()["folder"])

    def ask(self, command: Command) -> Answer:
        with self._lock:
            answer = self._converse(command)
        if "error" in answer:
            raise ServerError(answer["error"])
        return answer

    def _converse(self, command: Command) -> Answer:
        stream = self._process.stdin
        if stream is None or stream.closed:
            raise ServerError("this server was removed; make a new one")
        try:
            stream.write(json.dumps(command).encode() + b"\n")
            stream.flush()
        except BrokenPipeError as error:
            raise ServerError("the server's supervisor process was killed, and the server with it") from error
        return self._read()

    def _read(self) -> Answer:
        stream = self._process.stdout
        line = stream.readline() if stream is not None else b""
        if not line:
            raise ServerError("the server's supervisor process was killed, and the server with it")
        return cast("Answer", json.loads(line))

    def end(self, *, delete: bool) -> None:
        """Let the supervisor kill everything and go; a temporary folder is deleted in any case."""
        with self._lock:
            stdin, stdout = self._process.stdin, self._process.stdout
            if stdin is None or stdout is None or stdin.closed:
                return
            with contextlib.suppress(BrokenPipeError):
                stdin.write(json.dumps({"do": "remove" if delete else "leave"}).encode() + b"\n")
                stdin.flush()
            with contextlib.suppress(BrokenPipeError):
                stdin.close()
            stdout.close()
            try:
                self._process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGKILL)
                self._process.wait()
                raise ServerError("the server's supervisor could not kill its server within 60 s") from None
