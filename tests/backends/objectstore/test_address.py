"""Addresses and options: what is accepted, and what is said about the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aiecs_resilient import open_storage
from aiecs_resilient.backends.objectstore import (
    FileStorageBackend,
    GCSStorageBackend,
    ObjectStorageBackend,
    S3StorageBackend,
)
from aiecs_resilient.backends.objectstore._address import Credentials, read_address
from aiecs_resilient.errors import ConfigurationError, InvalidValueError
from aiecs_resilient.testing.servers import S3Server


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("file:///var/lib/x", "file:///var/lib/x"),
        ("file://localhost/x/", "file:///x"),
        ("file:///with%20space/%C3%A9", "file:///with space/é"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("gs://my.bucket-1/p", "gs://my.bucket-1/p"),
        ("gcs://my-bucket", "gs://my-bucket"),
        ("az://container/p", "az://container/p"),
    ],
)
def test_addresses_are_understood(url: str, shown: str) -> None:
    """Schemes, buckets, prefixes, escaped characters."""
    assert read_address(url, Credentials()).shown == shown


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "must begin with"),
        ("/var/lib/x", "must begin with"),
        ("http://bucket", "must begin with"),
        ("file://x/y", "three slashes"),
        ("file:x", "three slashes"),
        ("file:///a%00b", "NUL"),
        ("s3://", "must name a bucket"),
        ("s3:///prefix", "must name a bucket"),
        ("s3://a", "must name a bucket"),
        ("s3://bucket/a/../b", "segments"),
        ("s3://bucket//a//b", "segments"),
        ("s3://key:secret@bucket/a", "options of their own"),
        ("s3://bucket/a?region=x", "options of their own"),
    ],
)
def test_bad_addresses_are_refused(url: str, words: str) -> None:
    """Each says what is wrong and what is right."""
    with pytest.raises(InvalidValueError, match=words):
        ObjectStorageBackend(url)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"endpoint": "bucket.example"}, "http://host:port"),
        ({"endpoint": "https://key:secret@example"}, "without credentials"),
        ({"endpoint": "http://storage.example:9000"}, "allow_http"),
        ({"request_timeout": 0}, "request_timeout"),
        ({"commit_timeout": -1}, "commit_timeout"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"leftover_age": 60}, "merely slow"),
        ({"retention": 0}, "retention"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str) -> None:
    """A plain connection to another machine, and what cannot work, is refused before anything is opened."""
    with pytest.raises((InvalidValueError, ConfigurationError), match=words):
        ObjectStorageBackend("s3://bucket/prefix", **options)


def test_plain_http_is_for_this_machine_or_on_request() -> None:
    """Loopback needs no permission, another machine does."""
    for endpoint in (
        "http://127.0.0.1:9000",
        "http://[::1]:9000",
        "http://localhost:9000",
        "https://storage.example",
    ):
        ObjectStorageBackend("s3://bucket", endpoint=endpoint)
    ObjectStorageBackend("s3://bucket", endpoint="http://storage.example", allow_http=True)


def test_each_kind_takes_its_own_scheme() -> None:
    """`type: s3` with a file's address is a mistake, not a file."""
    FileStorageBackend("file:///x")
    S3StorageBackend("s3://bucket")
    GCSStorageBackend("gs://bucket")
    for kind, url in (
        (S3StorageBackend, "file:///x"),
        (FileStorageBackend, "s3://bucket"),
        (GCSStorageBackend, "s3://bucket"),
    ):
        with pytest.raises(InvalidValueError, match=f"the {kind.kind} backend takes"):
            kind(url)


def test_secrets_are_not_shown() -> None:
    """Neither repr nor health nor an error carries a key."""
    backend = ObjectStorageBackend(
        "s3://bucket", access_key_id="AKIA-ID", secret_access_key="hush", session_token="hush"
    )
    for text in (repr(backend), repr(backend._address), repr(backend._address.options)):
        assert "hush" not in text
        assert "AKIA-ID" not in text


async def test_files_from_yaml(folder: Path) -> None:
    """`type: file` in a configuration."""
    path = folder / "storage.yaml"
    path.write_text(
        f"version: 1\nbackends:\n  here: {{type: file, url: 'file://{folder}/store', cache_size: 1MiB}}\n"
        "pipeline:\n  - backend: here\n"
    )
    async with open_storage(path) as storage:
        await storage.create_session("s", "u")
        health = await storage.health_check()
    assert (health["status"], health["durability"]) == ("healthy", "host")
    assert (folder / "store" / "heads").is_dir()


async def test_s3_from_a_mapping(s3: S3Server) -> None:
    """`type: s3` with an endpoint of one's own."""
    store = {
        "type": "s3",
        "url": "s3://tests/from-a-mapping",
        "endpoint": s3.url,
        "region": "us-east-1",
        "access_key_id": "any",
        "secret_access_key": "any",
    }
    async with open_storage(
        {"version": 1, "backends": {"s": store}, "pipeline": [{"backend": "s"}]}
    ) as storage:
        await storage.create_session("s", "u")
        assert (await storage.health_check())["durability"] == "replicated"
        assert await storage.get_session("s") is not None
