"""One store without a chain, as the specification creates it: ``StorageFactory.create_storage_backend``."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from .errors import ConfigurationError
from .interface import Backend


class StorageType(Enum):
    """The kinds of store; the values are the names in YAML too."""

    REDIS = "redis"
    POSTGRESQL = "postgresql"
    MEMORY = "memory"
    SQLITE = "sqlite"


ADDRESS_KEYS: Mapping[StorageType, tuple[str, str]] = MappingProxyType(
    {
        StorageType.REDIS: ("redis_url", "url"),
        StorageType.POSTGRESQL: ("postgresql_url", "url"),
        StorageType.SQLITE: ("sqlite_path", "path"),
    }
)
"""Where each store's address stands in the factory's ``config``, and how that option is called in YAML."""

_ADDRESSES = {key for key, _option in ADDRESS_KEYS.values()}


class StorageFactory:
    """Creates single stores. Chains come from :func:`aiecs_resilient.open_storage`."""

    @staticmethod
    def create_storage_backend(
        storage_type: StorageType | str, config: Mapping[str, object] | None = None
    ) -> Backend:
        """The store, not yet connected.

        Args:
            storage_type: a :class:`StorageType` or its value.
            config: the address (``redis_url``, ``postgresql_url`` or ``sqlite_path``) and options of the store
                (``pool_size``, …). Addresses and options of the other stores may stand there too, so that one ``config``
                serves them all.

        Raises:
            ConfigurationError: (a ValueError) an unsupported type, a missing address, an unknown key or a wrong value.
        """
        kind = _type_of(storage_type)
        given = dict(config or {})
        options: dict[str, object] = {"type": kind.value}
        if kind in ADDRESS_KEYS:
            key, option = ADDRESS_KEYS[kind]
            if given.get(key) in (None, ""):
                raise ConfigurationError(f"config needs {key!r}: where the {kind.value} store is")
            options[option] = given[key]
        mine = _option_names(kind)
        options |= {key: value for key, value in given.items() if key in mine}
        _refuse_unknown(given.keys() - mine - _ADDRESSES, mine, kind)
        return _build(kind, options)


def _type_of(storage_type: StorageType | str) -> StorageType:
    try:
        return StorageType(storage_type)
    except ValueError:
        allowed = ", ".join(kind.value for kind in StorageType)
        raise ConfigurationError(f"unsupported storage type: {storage_type!r}; allowed: {allowed}") from None


def _option_names(kind: StorageType) -> set[str]:
    from .configuration.options import options_of  # brings pydantic: only who creates something pays for it
    from .registry import BACKENDS

    entry = BACKENDS[kind.value]
    names = set(options_of(entry.load(), aliases=entry.aliases()).by_key)
    return names - {option for _key, option in ADDRESS_KEYS.values()}


def _refuse_unknown(keys: set[str], mine: set[str], kind: StorageType) -> None:
    """A misspelt option must not be dropped in silence; another store's option may stand beside ours."""
    others = keys and set[str]().union(*(_option_names(other) for other in StorageType if other is not kind))
    for key in sorted(keys - others):
        from .configuration.errors import nearest

        allowed = sorted(mine | _ADDRESSES)
        near = nearest(key, allowed)
        hint = "" if near is None else f"; did you mean {near!r}?"
        raise ConfigurationError(f"unknown key {key!r} in config; allowed: {', '.join(allowed)}{hint}")


def _build(kind: StorageType, options: dict[str, object]) -> Backend:
    from .assembly import open_backend
    from .configuration.reader import read_backend

    return open_backend(read_backend(kind.value, options))
