"""Where the server is and how to speak to it: checked before anything connects, and shown without secrets."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from ...errors import ConfigurationError

_SCHEMES = ("postgresql", "postgres")
_UNSAFE_MODES = (None, "allow", "prefer")


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """A checked connection URL. ``shown`` has no password and no query, and is all that errors and logs ever see."""

    url: str
    shown: str
    hosts: int
    chooses_host: bool

    def __repr__(self) -> str:
        return f"<Address {self.shown}>"


def read_address(url: str) -> Address:
    """Check a URL. Refuses what would quietly be sent in plain text over a network."""
    try:
        parts = urlsplit(url)
        query = parse_qs(parts.query, keep_blank_values=True)
    except ValueError as error:
        raise ConfigurationError(f"the PostgreSQL URL cannot be read: {error}") from None
    if parts.scheme not in _SCHEMES:
        raise ConfigurationError(
            f"the PostgreSQL URL begins with {parts.scheme!r}: write postgresql://user:password@host:port/database"
        )
    hosts = _hosts(parts, query)
    mode = query.get("sslmode", [os.environ.get("PGSSLMODE")])[-1]
    if mode in _UNSAFE_MODES and not all(_is_local(host) for host in hosts):
        raise ConfigurationError(
            f"the PostgreSQL URL for {_shown(parts)} leaves it open whether the connection is encrypted: add "
            "?sslmode=verify-full (or require), or ?sslmode=disable if the network is trusted"
        )
    return Address(url, _shown(parts), len(hosts), "target_session_attrs" in query)


def _hosts(parts: SplitResult, query: dict[str, list[str]]) -> list[str]:
    named = query.get("host") or [parts.netloc.rpartition("@")[2]]
    return [_without_port(unquote(host)) for host in ",".join(named).split(",")]


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.startswith("/") else host.partition(":")[0]


def _is_local(host: str) -> bool:
    if not host:
        host = os.environ.get("PGHOST", "")
    if host in {"", "localhost"} or host.startswith("/"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(parts: SplitResult) -> str:
    login, at, hosts = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{login.partition(':')[0]}{at}{hosts}{parts.path}"
