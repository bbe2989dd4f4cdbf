"""What the parts of the Redis backend share: the client while it is open, key names, scripts, and whose clock counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ...clock import wall_us
from .._store import StoreBackend
from ._keys import BUCKETS, Keys
from ._scripts import Command, Script, Scripts, load_scripts

if TYPE_CHECKING:
    from ._client import RedisClient


class RedisBase(StoreBackend):
    """Not a backend yet: :mod:`.redis` puts the parts together."""

    _keys: Keys
    _client: RedisClient | None = None
    _server_clock: Callable[[], int] | None = None  # tests own time by this; else it is the server's

    @property
    def _scripts(self) -> Scripts:
        return load_scripts()

    def _use(self) -> RedisClient:
        self._require_open()
        assert self._client is not None
        return self._client

    def _now(self) -> int:
        """For expiry at reads: the clock by which expiries are set."""
        return self._server_clock() if self._server_clock is not None else wall_us()

    def _clock_argument(self) -> bytes:
        """For scripts: empty for the server's own clock."""
        return b"" if self._server_clock is None else b"%d" % self._server_clock()

    def _groups(self) -> list[range]:
        """Buckets that one script call may touch together: all of them on a single server, one each on a cluster."""
        return [range(BUCKETS)]

    def _per_group(
        self, script: Script, keys: Callable[[range], Sequence[bytes]], *args: bytes | int
    ) -> list[Command]:
        return [script.call(keys(group), *args) for group in self._groups()]
