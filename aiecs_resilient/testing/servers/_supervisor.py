"""Keeps one server process and kills it, with everything it started, when its owner is gone.

Run as a program of its own (`python -I -S _supervisor.py OWNER_PID FOLDER PREFIX`): a process
that was SIGKILLed cannot clean up after itself, so somebody else has to. It is the parent of the server and
adopts the server's orphans (PostgreSQL's backends survive a killed postmaster for a moment), so "everything
below me" is exactly "everything of this server". It reads one JSON command per line and answers one JSON line;
the end of its input, or a change of its parent, means that the owner died: kill everything, delete the folder
if it was a temporary one, exit.

It also holds the server's port: a socket that is bound but does not listen keeps other programs, and the source
ports of clients that reconnect in a hurry, away from the port while the server is down, and a client is
refused as if nothing were there.
"""

import contextlib
import ctypes
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NoReturn, TypedDict

LOOPBACK = "127.0.0.1"
# Below every usual range of ephemeral ports: a client that reconnects to a dead server on an ephemeral port can
# be given that very port as its source, connect to itself and keep the server from coming back.
PORTS = range(15_000, 32_000)
OWNER_CHECK_SECONDS = 0.5
KILL_SECONDS = 30.0
LINUX = sys.platform == "linux"
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class Command(TypedDict):
    do: str
    argv: list[str]
    log: str
    user: int | None
    signal: int
    port: int | None


class Answer(TypedDict):
    """The state after every command; `error` says why one was not obeyed, `processes` answers only `processes`."""

    error: str | None
    folder: str
    port: int | None
    pid: int | None
    exit_status: int | None
    processes: list[int]


class Supervisor:
    def __init__(self, owner: int, folder: Path, *, temporary: bool) -> None:
        self.owner = owner
        self.folder = folder
        self.delete_folder = temporary
        self.main: int | None = None
        self.exit_status: int | None = None
        self.port: int | None = None
        self.reserved: socket.socket | None = None

    def serve(self) -> None:
        """Obey until the owner says `remove`, closes its end or disappears."""
        buffer = b""
        while os.getppid() == self.owner:
            readable, _, _ = select.select([0], [], [], OWNER_CHECK_SECONDS)
            self.reap()
            if not readable:
                continue
            chunk = os.read(0, 65536)
            if not chunk:
                return
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                command: Command = json.loads(line)
                if command["do"] == "remove":
                    self.delete_folder = True
                    return
                if command["do"] == "leave":
                    return
                self.obey(command)

    def obey(self, command: Command) -> None:
        error = None
        processes: list[int] = []
        try:
            match command["do"]:
                case "reserve":
                    self.reserve(command["port"])
                case "spawn":
                    self.kill()
                    self.spawn(command["argv"], command["log"], command["user"])
                case "signal":
                    if self.main is not None:
                        os.kill(self.main, command["signal"])
                case "freeze":
                    self.freeze()
                case "thaw":
                    self.signal_all(signal.SIGCONT)
                case "kill":
                    self.kill()
                case "status":
                    self.reap()
                case "processes":
                    processes = [pid for pid, _ in descendants()]
                case other:
                    error = f"unknown command {other!r}"
        except OSError as failure:
            error = f"{type(failure).__name__}: {failure}"
        self.answer(error, processes)

    def answer(self, error: str | None = None, processes: list[int] | None = None) -> None:
        answer = Answer(
            error=error,
            folder=str(self.folder),
            port=self.port,
            pid=self.main,
            exit_status=self.exit_status,
            processes=processes or [],
        )
        with contextlib.suppress(BrokenPipeError):  # the owner died; its end of our input will say so
            os.write(1, json.dumps(answer).encode() + b"\n")

    def reserve(self, wanted: int | None) -> None:
        if self.reserved is not None:
            self.reserved.close()
            self.reserved = None
        held = bind(wanted) if wanted is not None else bind_any()
        self.port = int(held.getsockname()[1])
        # Elsewhere a second socket could not be bound to the same port, and the server could not start.
        if LINUX:
            self.reserved = held
        else:
            held.close()

    def spawn(self, argv: list[str], log: str, user: int | None) -> None:
        self.exit_status = None
        pid = os.fork()
        if pid == 0:
            execute(argv, log, user, supervisor=os.getppid())
        self.main = pid

    def reap(self) -> None:
        """Collect whoever ended; the main process's exit status is kept."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.main:
                    self.main = None
                    self.exit_status = os.waitstatus_to_exitcode(status)

    def signal_all(self, signum: int) -> None:
        for pid, _ in descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def freeze(self) -> None:
        """Stop every process, the main one first so that it starts no others meanwhile; return when all stand."""
        if self.main is not None:
            os.kill(self.main, signal.SIGSTOP)
        give_up = time.monotonic() + KILL_SECONDS
        while moving := [pid for pid, state in descendants() if not state.startswith(("T", "t"))]:
            for pid in moving:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            if time.monotonic() > give_up:
                raise TimeoutError(f"processes {moving} did not stop within {KILL_SECONDS:g} s of SIGSTOP")
            time.sleep(0.001)
            self.reap()

    def kill(self) -> None:
        """SIGKILL every process (stopped ones too) and return when none is left."""
        if self.main is not None:  # as in freeze: nobody new may appear behind our back
            os.kill(self.main, signal.SIGSTOP)
        give_up = time.monotonic() + KILL_SECONDS
        while alive := descendants():
            for pid, _ in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > give_up:
                raise TimeoutError(f"processes {alive} outlived SIGKILL by {KILL_SECONDS:g} s")
            time.sleep(0.001)
            self.reap()
        self.reap()

    def clean(self) -> None:
        """The end, whatever the reason: no process, no shared memory, no folder that was to go remains."""
        with contextlib.suppress(OSError):
            self.kill()
        if self.delete_folder:
            release_shared_memory(self.folder)
            shutil.rmtree(self.folder, ignore_errors=True)


def execute(argv: list[str], log: str, user: int | None, *, supervisor: int) -> NoReturn:
    """In the forked child: become the server. What goes wrong is written to the server's log."""
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(signum, signal.SIG_DFL)
        if user is not None:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        process_control(PR_SET_PDEATHSIG, signal.SIGKILL)  # after setuid, which would clear it
        if os.getppid() == supervisor:
            os.execv(argv[0], argv)  # noqa: S606 - no shell is what is wanted
    except OSError as error:
        os.write(2, f"cannot run {argv[0]}: {error}\n".encode())
    os._exit(127)


def process_control(option: int, value: int) -> None:
    if LINUX:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def descendants() -> list[tuple[int, str]]:
    """Living processes below this one, as (pid, state letter); zombies are not alive."""
    children: dict[int, list[tuple[int, str]]] = {}
    for pid, parent, state in processes():
        children.setdefault(parent, []).append((pid, state))
    found: list[tuple[int, str]] = []
    waiting = [os.getpid()]
    while waiting:
        for pid, state in children.get(waiting.pop(), []):
            waiting.append(pid)
            if not state.startswith(("Z", "X")):
                found.append((pid, state))
    return found


def processes() -> list[tuple[int, int, str]]:
    """(pid, parent, state) of all processes."""
    if not LINUX:
        listing = subprocess.run(
            ["/bin/ps", "-A", "-o", "pid=,ppid=,stat=,comm="], capture_output=True, text=True, check=False
        ).stdout
        rows = [line.split(None, 3) for line in listing.splitlines()]
        return [(int(row[0]), int(row[1]), row[2]) for row in rows if row[3] != "/bin/ps"]
    found: list[tuple[int, int, str]] = []
    for name in os.listdir("/proc"):  # noqa: PTH208 - hundreds of entries, asked often
        if name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                stat = Path("/proc", name, "stat").read_bytes()
                state, parent = stat[stat.rindex(b")") + 2 :].split(None, 2)[:2]
                found.append((int(name), int(parent), state.decode()))
    return found


def bind(port: int) -> socket.socket:
    """Hold a port the caller insists on; remains of earlier connections do not matter, a listener does."""
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((LOOPBACK, port))
    except OSError:
        held.close()
        raise
    return held


def bind_any() -> socket.socket:
    """Hold a port that nobody holds: bound exclusively first, opened to the server's own bind afterwards."""
    chooser = random.SystemRandom()
    failure: OSError | None = None
    for port in chooser.sample(PORTS, 200):
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            held.bind((LOOPBACK, port))
        except OSError as error:
            failure = error
            held.close()
            continue
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return held
    raise OSError(f"no free loopback port between {PORTS.start} and {PORTS.stop}: {failure}")


def release_shared_memory(folder: Path) -> None:
    """A killed PostgreSQL leaves one small System V segment, named in its pid file, that nothing else removes."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        _key, identifier = (folder / "data" / "postmaster.pid").read_text().splitlines()[6].split()
        ctypes.CDLL(None).shmctl(int(identifier), 0, None)  # 0 = IPC_RMID


def ended_by_signal(_signum: int, _frame: object) -> NoReturn:
    raise SystemExit(1)


def main() -> None:
    owner, folder, prefix = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    process_control(PR_SET_CHILD_SUBREAPER, 1)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, ended_by_signal)
    # Made here, not by the owner: from its first moment the folder has somebody who will delete it.
    supervisor = Supervisor(owner, Path(folder or tempfile.mkdtemp(prefix=prefix)), temporary=not folder)
    try:
        supervisor.answer()
        supervisor.serve()
    except Exception:  # noqa: BLE001 - the last resort of a program nobody watches: say it, then clean up
        supervisor.answer(traceback.format_exc())
    finally:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        supervisor.clean()


if __name__ == "__main__":
    main()
