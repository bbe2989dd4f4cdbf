"""Object stores for development and tests: S3 (moto's) and Google Cloud Storage, as servers that can be killed and paused."""

from __future__ import annotations

import http.client
import importlib.util
import signal
import sys
from pathlib import Path
from typing import ClassVar

from ._base import LOOPBACK, Server
from ._errors import ServerError, ServerNotInstalledError

_PID_HEADER = "X-Emulator-Pid"


class ObjectStoreServer(Server):
    """What they have in common: they keep everything in memory, so a restarted one is empty; buckets are made by hand."""

    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    program: ClassVar[str]

    @property
    def url(self) -> str:
        """The ``endpoint`` of clients."""
        return f"http://{LOOPBACK}:{self.port}"

    def create_bucket(self, name: str) -> None:
        """Names have 3 to 63 characters."""
        status = self._ask("PUT", f"/{name}")[0]
        if status != 200:
            raise ServerError(f"{self.name} refuses to create the bucket {name!r}: status {status}")

    def _prepare(self) -> None:
        """Nothing: it has no files."""

    def _command(self) -> list[str]:
        # -P: its folder is not searched for modules, or `servers/…` would shadow top-level packages.
        return [sys.executable, "-P", str(Path(__file__).with_name(self.program)), str(self.port)]

    def _ping(self, pid: int) -> None:
        _status, found = self._ask("GET", "/")
        if found != str(pid):
            raise OSError(f"another server answers on port {self.port}")

    def _ask(self, method: str, path: str) -> tuple[int, str | None]:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=5)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            response.read()
            return response.status, response.getheader(_PID_HEADER)
        except http.client.HTTPException as error:
            raise OSError(f"it does not speak HTTP: {error}") from error
        finally:
            connection.close()


class S3Server(ObjectStoreServer):
    """moto's S3, each request atomic. Any credentials do; the region is ``us-east-1``."""

    name: ClassVar[str] = "S3"
    program: ClassVar[str] = "_s3_emulator.py"

    def _prepare(self) -> None:
        if importlib.util.find_spec("moto") is None or importlib.util.find_spec("werkzeug") is None:
            raise ServerNotInstalledError(
                "no moto for an S3 server; install it with: pip install 'moto[s3]' flask flask-cors"
            )


class GCSServer(ObjectStoreServer):
    """Google Cloud Storage's XML interface with generations, each request atomic. Credentials are not looked at."""

    name: ClassVar[str] = "GCS"
    program: ClassVar[str] = "_gcs_emulator.py"
