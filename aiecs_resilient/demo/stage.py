"""What the demo is played on: two real servers, and the chain of the shipped configuration over them.

The servers are children of a supervisor that outlives us by the moment it takes to kill them, so nothing is left behind
even if we are killed; leaving the ``async with`` removes them and their folders.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final, Protocol

from ..interface import Backend
from ..storage import open_storage
from ..testing.servers import PostgreSQLServer, ValkeyServer
from .outside_check import Holding
from .outside_postgresql import read_postgresql
from .outside_redis import count_operations, read_redis
from .phases import Primary

PRODUCTION: Final = "production.yaml"


class Stage(Protocol):
    """A chain over two stores, one of which can be harmed. Tests have one of their own."""

    @property
    def storage(self) -> Backend: ...

    @property
    def primary(self) -> Primary: ...

    async def read_back(self) -> list[Holding]:
        """What both stores hold, read without the library."""
        ...

    async def done_by_primary(self, writes: Sequence[tuple[str, str]]) -> int:
        """How many of these writes, by key and op_id, the primary holds now; asked without the library."""
        ...


@dataclass(frozen=True, slots=True)
class RealStage:
    """Valkey as primary, PostgreSQL as fallback."""

    storage: Backend
    primary: ValkeyServer
    fallback: PostgreSQLServer
    config: Path

    async def read_back(self) -> list[Holding]:
        return [await read_redis(self.primary.url), await read_postgresql(self.fallback.url)]

    async def done_by_primary(self, writes: Sequence[tuple[str, str]]) -> int:
        return await count_operations(self.primary.url, writes)


@asynccontextmanager
async def real_stage(config: Path | None = None) -> AsyncGenerator[RealStage]:
    """Start both servers and open the chain; everything is closed and removed at the end, however it comes."""
    async with (
        ValkeyServer(appendonly=True, appendfsync="everysec") as valkey,
        PostgreSQLServer() as postgresql,
    ):
        path = config or production_config()
        with environment({"REDIS_URL": valkey.url, "DATABASE_URL": postgresql.url}):
            storage = open_storage(path)
        async with storage:
            yield RealStage(storage, valkey, postgresql, path)


@contextmanager
def environment(values: Mapping[str, str]) -> Generator[None]:
    """The configuration reads its addresses from the environment; afterwards that is as it was."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def production_config() -> Path:
    """The shipped configuration: of the checkout, where there is one, else the copy inside the package."""
    root = Path(str(files("aiecs_resilient")))
    for place in (root.parent / "config" / PRODUCTION, root / "config" / PRODUCTION):
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"{PRODUCTION} is neither in {root.parent / 'config'} nor in {root / 'config'}; name one with --config"
    )
