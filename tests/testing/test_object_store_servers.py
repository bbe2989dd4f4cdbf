"""The emulated object stores: what clients rest on, and that nothing is left behind."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest

from aiecs_resilient.testing.servers import GCSServer, S3Server, ServerError


@pytest.fixture(scope="module")
def gcs() -> Iterator[GCSServer]:
    with GCSServer() as server:
        server.create_bucket("bucket")
        yield server


def _ask(
    server: GCSServer, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body if method == "PUT" else None, named)
        response = connection.getresponse()
        return (
            response.status,
            {name.lower(): value for name, value in response.getheaders()},
            response.read(),
        )
    finally:
        connection.close()


def test_generations_guard_writes(gcs: GCSServer) -> None:
    """0 means "not there", a number means exactly that generation; all else is 412 and changes nothing. As Google's own
    storage-testbench answers the same requests (docs/backends-objectstore.md)."""
    answers = list[int]()
    path = "/bucket/guarded"

    def put(body: bytes, generation: str | None) -> str:
        guard = {} if generation is None else {"x_goog_if_generation_match": generation}
        status, headers, _body = _ask(gcs, "PUT", path, body, **guard)
        answers.append(status)
        return headers.get("x-goog-generation", "")

    put(b"stale", "5")
    first = put(b"one", "0")
    put(b"again", "0")
    second = put(b"two", first)
    put(b"late", first)
    third = put(b"three", None)
    put(b"late", second)
    assert answers == [412, 200, 412, 200, 412, 200, 412]
    assert int(first) < int(second) < int(third)
    status, headers, body = _ask(gcs, "GET", path)
    assert (status, body, headers["x-goog-generation"]) == (200, b"three", third)
    assert _ask(gcs, "PUT", path, b"x", x_goog_if_generation_match="x")[0] == 400


def test_equal_bytes_are_not_equal_states(gcs: GCSServer) -> None:
    """Two uploads of the same bytes have different ETags and generations; If-None-Match answers 304 only for its own."""
    _status, one, _body = _ask(gcs, "PUT", "/bucket/same", b"x")
    _status, two, _body = _ask(gcs, "PUT", "/bucket/same", b"x")
    assert one["etag"] != two["etag"]
    assert _ask(gcs, "GET", "/bucket/same", If_None_Match=two["etag"])[0] == 304
    assert _ask(gcs, "GET", "/bucket/same", If_None_Match=one["etag"])[0] == 200


def test_listings_come_in_pages_by_bytes(gcs: GCSServer) -> None:
    """More than a thousand objects, behind a name, under a prefix, with names that XML must escape."""
    names = sorted([f"many/{n:04d}" for n in range(1_100)] + ["many/a&b<c>", "many/é"], key=str.encode)
    from urllib.parse import quote

    for name in names:
        assert _ask(gcs, "PUT", f"/bucket/{quote(name)}")[0] == 200
    _status, _headers, page = _ask(gcs, "GET", "/bucket?list-type=2&prefix=many/&start-after=many/0049")
    assert page.count(b"<Key>") == 1_000
    assert b"<IsTruncated>true" in page
    assert b"<Key>many/0050</Key>" in page
    assert b"<Key>many/0049</Key>" not in page
    _status, _headers, rest = _ask(
        gcs, "GET", "/bucket?list-type=2&prefix=many/&continuation-token=many/1049"
    )
    assert rest.count(b"<Key>") == 52
    assert b"many/a&amp;b&lt;c&gt;" in rest
    assert b"<IsTruncated>false" in rest


def test_what_is_not_there_is_told(gcs: GCSServer) -> None:
    """Bucket and object are told apart; deleting what is gone is 404 as at Google."""
    assert b"NoSuchBucket" in _ask(gcs, "GET", "/nowhere/x")[2]
    assert b"NoSuchKey" in _ask(gcs, "GET", "/bucket/x")[2]
    assert _ask(gcs, "DELETE", "/bucket/x")[0] == 404
    assert _ask(gcs, "POST", "/bucket/x")[0] in (405, 501)


@pytest.mark.parametrize("kind", [S3Server, GCSServer])
def test_they_can_be_killed_and_leave_nothing(kind: type[S3Server | GCSServer]) -> None:
    """Killed: connections are refused. Restarted: the same port, empty. Removed: no process, no folder."""
    server = kind()
    try:
        server.start()
        url, folder = server.url, server.folder
        server.create_bucket("bucket")
        server.kill()
        with pytest.raises(OSError, match=r"refused|reset"):  # the supervisor holds the port
            server.create_bucket("bucket")
        server.restart()
        assert server.url == url
        server.create_bucket("bucket")
        with pytest.raises(ServerError, match="refuses to create"):
            server.create_bucket("x")
        pids = server.pids
        assert pids
    finally:
        server.remove()
    assert not folder.exists()
    assert not server.running
