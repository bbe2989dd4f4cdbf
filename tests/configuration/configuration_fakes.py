"""Layers and stores that stand for real ones, so that assembly is tested without any of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.interface import Backend, IStorageBackend, Json
from aiecs_resilient.layers._base import Layer
from aiecs_resilient.registry import BACKENDS, Entry, Registry
from aiecs_resilient.units import Bytes, Count, CountOrZero, Ratio, Seconds, SecondsOrZero

HERE = "configuration_fakes"


class Window:
    """State that must survive a reload."""


class Knobs(Layer):
    """One option of every kind.

    Args:
        wait: seconds before
            anything happens.
        share, size: two of a kind.
    """

    layer_name: ClassVar[str] = "knobs"

    def __init__(
        self,
        inner: Backend,
        *,
        wait: Seconds = 2.0,
        pause: SecondsOrZero | None = None,
        share: Ratio = 0.5,
        size: Bytes = 65_536,
        count: Count = 3,
        floor: CountOrZero = 0,
        exact: bool = False,
        label: str = "",
        mode: Literal["fast", "safe"] = "safe",
        hosts: Sequence[str] = (),
        waits: Mapping[str, Seconds] | None = None,
        password: str | None = None,
        chance: random.Random | None = None,
        state: Window | None = None,
    ) -> None:
        super().__init__(inner)
        self.given: dict[str, object] = {
            "wait": wait,
            "pause": pause,
            "share": share,
            "size": size,
            "count": count,
            "floor": floor,
            "exact": exact,
            "label": label,
            "mode": mode,
            "hosts": hosts,
            "waits": waits,
            "password": password,
        }
        self.state = state or Window()


class Plain(Layer):
    """No options."""


class Needy(Layer):
    """An option without a default."""

    def __init__(self, inner: Backend, *, key: str) -> None:
        super().__init__(inner)


class Moody(Layer):
    """Refuses a pair of options that are each right."""

    def __init__(self, inner: Backend, *, least: Count = 1, most: Count = 2, address: str = "") -> None:
        if least > most:
            raise ValueError(f"least {least} is above most {most}, at {address}")
        super().__init__(inner)


class Fork(MemoryStorageBackend):
    """Stands for dual_write: two branches and an option."""

    branches: ClassVar[tuple[str, ...]] = ("primary", "fallback")

    def __init__(
        self,
        primary: Backend,
        fallback: Backend,
        *,
        write: Literal["both", "primary"] = "both",
        durable_at_least: Literal["volatile", "process"] = "process",
    ) -> None:
        super().__init__(name="fork")
        self.legs = (primary, fallback)

    async def initialize(self) -> bool:
        for leg in self.legs:
            await leg.initialize()
        return await super().initialize()

    async def close(self) -> None:
        await super().close()
        for leg in self.legs:
            await leg.close()


class Remote(MemoryStorageBackend):
    """Stands for a store behind a network."""

    def __init__(self, address: str, *, name: str = "remote", pool_size: Count = 10) -> None:
        super().__init__(name=name)
        self.address = address
        self.pool_size = pool_size
        self.fails = address == "down"
        self.closings = 0

    async def initialize(self) -> bool:
        if self.fails:
            raise ConnectionError("nobody there")
        return await super().initialize()

    async def close(self) -> None:
        self.closings += 1
        await super().close()


class Foreign(IStorageBackend):
    """Only the sixteen methods of the specification."""

    async def create_session(self, session_id: str, user_id: str, metadata: Json | None = None) -> Json:
        return {}

    async def get_session(self, session_id: str) -> Json | None:
        return None

    async def update_session(self, *_: Any, **__: Any) -> bool:
        return False

    async def end_session(self, session_id: str, status: str = "completed") -> bool:
        return False

    async def add_conversation_message(self, *_: Any, **__: Any) -> bool:
        return True

    async def get_conversation_history(self, *_: Any, **__: Any) -> list[Json]:
        return []

    async def store_checkpoint(self, *_: Any, **__: Any) -> bool:
        return True

    async def get_checkpoint(self, thread_id: str, checkpoint_id: str | None = None) -> Json | None:
        return None

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[Json]:
        return []

    async def get_task_context(self, session_id: str) -> Any | None:
        return None

    async def store_task_context(self, *_: Any, **__: Any) -> bool:
        return True

    async def initialize(self) -> bool:
        return True

    async def close(self) -> None:
        return None

    async def health_check(self) -> Json:
        return {"status": "healthy", "storage_backend": "foreign", "redis_connected": False, "issues": []}

    async def get_metrics(self) -> Json:
        return {}

    async def cleanup_expired_sessions(self, max_idle_hours: int = 24) -> int:
        return 0


SIMPLE = (
    "tracing", "metrics", "logging", "deadline", "read_only", "namespace", "limits", "rate_limit", "cache", "batching", "compression", "encryption",
    "retry", "hedging", "circuit_breaker", "bulkhead", "timeout", "chaos",
)  # fmt: skip

REGISTRY = Registry(
    layers={
        **{name: Entry(name, f"{HERE}:Plain") for name in SIMPLE},
        "cache": Entry("cache", "aiecs_resilient.layers.cache:Cache"),
        "knobs": Entry("knobs", f"{HERE}:Knobs"),
        "needy": Entry("needy", f"{HERE}:Needy"),
        "moody": Entry("moody", f"{HERE}:Moody"),
        "missing": Entry("missing", "no_such_module_anywhere:Layer"),
        "dual_write": Entry("dual_write", f"{HERE}:Fork"),
    },
    backends={
        "memory": BACKENDS["memory"],
        "remote": Entry(
            "remote", f"{HERE}:Remote", {"address": "url"}, durability="process", caveat="if asked"
        ),
        "foreign": Entry("foreign", f"{HERE}:Foreign"),
    },
    plugins=False,
)
"""Fakes under the names of real layers; `knobs`, `needy` and `moody` for options."""
