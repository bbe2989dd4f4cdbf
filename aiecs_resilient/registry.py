"""Names in YAML → classes, imported on use; open to other packages through entry points.

A package adds a layer or a backend by declaring it::

    [project.entry-points."aiecs_resilient.layers"]
    audit = "my_package.audit:Audit"

A backend class may say ``yaml_aliases = {"connection_string": "url"}``: how its parameters are called in YAML. Built-in
names cannot be taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Literal, cast

from .errors import ConfigurationError

LAYER_GROUP = "aiecs_resilient.layers"
BACKEND_GROUP = "aiecs_resilient.backends"

Build = Callable[..., object]
Level = Literal["volatile", "process", "host", "replicated", "unknown"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A name and where its class is.

    Attributes:
        target: ``module:Class``; a leading dot means this package.
        yaml_aliases: parameter of the constructor → its name in YAML.
        durability: what an acknowledgement of this store survives, as declared; a store that can be asked is asked when
            it is opened.
        caveat: on what that rests.
        remote: reached over a network, so that a call to it may hang.
    """

    name: str
    target: str
    yaml_aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    durability: Level = "unknown"
    caveat: str = ""
    remote: bool = True

    def load(self) -> Build:
        """The class; ConfigurationError if it cannot be imported."""
        module, _, attribute = self.target.partition(":")
        try:
            found: object = import_module(module, __package__)
            for part in attribute.split("."):
                found = cast("object", getattr(found, part))
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(f"{self.name!r} cannot be loaded from {self.target}: {error}") from error
        if not callable(found):
            raise ConfigurationError(f"{self.name!r} at {self.target} is no class")
        return found

    def aliases(self) -> Mapping[str, str]:
        """How the constructor's parameters are called in YAML; a plugin's class says it itself."""
        declared = cast("object", getattr(self.load(), "yaml_aliases", None))
        return cast("Mapping[str, str]", declared) if isinstance(declared, Mapping) else self.yaml_aliases


def _layer(name: str, target: str) -> tuple[str, Entry]:
    return name, Entry(name, target)


LAYERS: dict[str, Entry] = dict(
    [
        _layer("tracing", ".layers.tracing:Tracing"),
        _layer("metrics", ".layers.metrics:Metrics"),
        _layer("logging", ".layers.logging:Logging"),
        _layer("deadline", ".layers.deadline:Deadline"),
        _layer("read_only", ".layers.read_only:ReadOnly"),
        _layer("namespace", ".layers.namespace:Namespace"),
        _layer("limits", ".layers.limits:Limits"),
        _layer("rate_limit", ".layers.rate_limit:RateLimit"),
        _layer("cache", ".layers.cache:Cache"),
        _layer("batching", ".layers.batching:Batching"),
        _layer("compression", ".layers.compression:Compression"),
        _layer("encryption", ".layers.encryption:Encryption"),
        _layer("dual_write", ".layers.dual_write:DualWrite"),
        _layer("retry", ".layers.retry:Retry"),
        _layer("hedging", ".layers.hedging:Hedging"),
        _layer("circuit_breaker", ".layers.circuit_breaker:CircuitBreaker"),
        _layer("bulkhead", ".layers.bulkhead:Bulkhead"),
        _layer("timeout", ".layers.timeout:Timeout"),
        _layer("chaos", ".layers.chaos:Chaos"),
    ]
)
"""Our layers in the order in which they usually stand, outermost first."""

BACKENDS: dict[str, Entry] = {
    "memory": Entry(
        "memory",
        ".backends.memory:MemoryStorageBackend",
        durability="volatile",
        caveat="it is gone with the process",
        remote=False,
    ),
    "sqlite": Entry(
        "sqlite",
        ".backends.sqlite:SQLiteStorageBackend",
        durability="host",
        caveat="synchronous=FULL, on a disk that keeps what it has flushed",
        remote=False,
    ),
    "redis": Entry(
        "redis",
        ".backends.redis:RedisStorageBackend",
        {"redis_url": "url"},
        durability="process",
        caveat="with its append-only file on, which is asked when it is opened; with the machine it may lose its last second",
    ),
    "postgresql": Entry(
        "postgresql",
        ".backends.postgresql:PostgreSQLStorageBackend",
        {"connection_string": "url"},
        durability="host",
        caveat="with the server's fsync and synchronous_commit on",
    ),
    "objectstore": Entry(
        "objectstore",
        ".backends.objectstore:ObjectStorageBackend",
        durability="host",
        caveat="file:// on a disk that keeps what it has flushed; s3:// and gs:// survive the loss of a machine too",
    ),
    "file": Entry(
        "file",
        ".backends.objectstore:FileStorageBackend",
        durability="host",
        caveat="every file and folder flushed, on a disk that keeps what it has flushed",
        remote=False,
    ),
    "s3": Entry(
        "s3",
        ".backends.objectstore:S3StorageBackend",
        durability="replicated",
        caveat="as the service promises for the bucket",
    ),
    "gcs": Entry(
        "gcs",
        ".backends.objectstore:GCSStorageBackend",
        durability="replicated",
        caveat="as the service promises for the bucket",
    ),
}


@dataclass(frozen=True)
class Registry:
    """What names mean.

    Args:
        layers, backends: ours by default.
        plugins: look for entry points of installed packages too.
    """

    layers: Mapping[str, Entry] = field(default_factory=lambda: LAYERS)
    backends: Mapping[str, Entry] = field(default_factory=lambda: BACKENDS)
    plugins: bool = True

    def all_layers(self) -> dict[str, Entry]:
        """By name, ours first."""
        return _with_plugins(self.layers, LAYER_GROUP) if self.plugins else dict(self.layers)

    def all_backends(self) -> dict[str, Entry]:
        """By name, ours first."""
        return _with_plugins(self.backends, BACKEND_GROUP) if self.plugins else dict(self.backends)


def _with_plugins(ours: Mapping[str, Entry], group: str) -> dict[str, Entry]:
    return (
        {**{name: Entry(name, target) for name, target in _installed(group)}, **ours}
        if _installed(group)
        else dict(ours)
    )


@cache
def _installed(group: str) -> tuple[tuple[str, str], ...]:
    """Name and target of each entry point; what is installed does not change while a process runs."""
    return tuple(sorted({(point.name, point.value) for point in entry_points(group=group)}))
