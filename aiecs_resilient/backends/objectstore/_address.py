"""Where the store is: a URL and options, checked before anything is opened."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from ...errors import ConfigurationError, InvalidValueError

Scheme = Literal["file", "s3", "gs", "az"]

_SCHEMES: dict[str, Scheme] = {"file": "file", "s3": "s3", "gs": "gs", "gcs": "gs", "az": "az", "azure": "az"}
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """Options of the services; see :class:`.backend.ObjectStorageBackend`."""

    endpoint: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None
    service_account: str | None = None
    anonymous: bool = False
    allow_http: bool = False


@dataclass(frozen=True, slots=True)
class Address:
    """A checked address. ``root`` is the folder of ``file``; the others have a bucket and a prefix in it."""

    scheme: Scheme
    bucket: str
    prefix: str
    root: Path
    options: Credentials

    @property
    def shown(self) -> str:
        """For people, without secrets."""
        if self.scheme == "file":
            return f"file://{self.root}"
        return f"{self.scheme}://{self.bucket}{'/' if self.prefix else ''}{self.prefix}"


def read_address(url: str, options: Credentials) -> Address:
    """The address that this URL and these options mean; InvalidValueError or ConfigurationError with cause and fix."""
    parts = urlsplit(url)
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None:
        raise InvalidValueError(
            f"url must begin with file://, s3://, gs:// or az://, not with {parts.scheme or url[:20]!r}"
        )
    if parts.query or parts.fragment or parts.username or parts.password:
        raise InvalidValueError(
            f"url is an address only: {scheme}://bucket/prefix; credentials and settings are options of their own"
        )
    if scheme == "file":
        return Address(scheme, "", "", _folder(parts.netloc, parts.path), options)
    if not _BUCKET.fullmatch(parts.netloc):
        raise InvalidValueError(f"url must name a bucket: {scheme}://bucket/prefix, not {url!r}")
    prefix = unquote(parts.path).strip("/")
    if any(segment in ("", ".", "..") for segment in prefix.split("/")) and prefix:
        raise InvalidValueError(f"the prefix in {url!r} must not have empty, '.' or '..' segments")
    _check_endpoint(options)
    return Address(scheme, parts.netloc, prefix, Path(), options)


def _folder(host: str, path: str) -> Path:
    if host not in ("", "localhost") or not path.startswith("/"):
        raise InvalidValueError(
            "file:// takes an absolute folder, with three slashes: file:///var/lib/aiecs; for a relative one give its whole path"
        )
    text = unquote(path)
    if "\x00" in text:
        raise InvalidValueError("the folder of a file:// url cannot hold NUL")
    return Path(text)


def _check_endpoint(options: Credentials) -> None:
    if options.endpoint is None:
        return
    parts = urlsplit(options.endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise InvalidValueError("endpoint must be http://host:port or https://host:port, without credentials")
    if parts.scheme == "http" and not options.allow_http and not _is_loopback(parts.hostname):
        raise ConfigurationError(
            f"endpoint {options.endpoint!r} is not encrypted and not on this machine: use https://, or say allow_http: true"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
