"""The part of Google Cloud Storage's XML interface that object stores are built on, in memory, on loopback.

Run as a program by :class:`.gcs.GCSServer`. No emulator that pip installs does conditional writes over this interface (see
``docs/backends-objectstore.md``), so this one does, after Google's documentation of the XML API: objects with generations,
``x-goog-if-generation-match`` on PUT and DELETE, ``If-None-Match`` on GET, listing version 2 with ``prefix``,
``start-after``, ``max-keys`` and continuation tokens. Each request is atomic. It knows no credentials.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import sys
import threading
import time
from bisect import bisect_right
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1_000
HOST = "127.0.0.1"
PID_HEADER = "X-Emulator-Pid"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{2,62}")


@dataclass(frozen=True, slots=True)
class Stored:
    """One generation of an object."""

    data: bytes
    generation: int
    written_at: float

    @property
    def e_tag(self) -> str:
        """Of this generation, not of these bytes: two equal uploads differ."""
        return f'"{hashlib.sha256(self.data).hexdigest()[:24]}.{self.generation}"'


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


def refusal(status: int, code: str, message: str) -> Reply:
    """An error in the service's form."""
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Reply(status, body.encode(), (("Content-Type", "application/xml"),))


PRECONDITION_FAILED = refusal(
    412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold."
)


class Buckets:
    """Everything that is stored. One request at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets: dict[str, dict[str, Stored]] = {}
        # Generations rise, also from one run to the next, and say nothing about time.
        self._generations = itertools.count(time.time_ns() // 1_000)

    def answer(
        self,
        method: str,
        bucket: str,
        name: str,
        query: dict[str, list[str]],
        headers: dict[str, str],
        body: bytes,
    ) -> Reply:
        """One request, atomically."""
        with self._lock:
            if not name and method == "PUT":
                if not _BUCKET.fullmatch(bucket):
                    return refusal(400, "InvalidBucketName", "The specified bucket is not valid.")
                self._buckets.setdefault(bucket, {})
                return Reply(200)
            objects = self._buckets.get(bucket)
            if objects is None:
                return refusal(404, "NoSuchBucket", "The specified bucket does not exist.")
            if not name:
                return (
                    _listing(bucket, objects, query)
                    if method == "GET"
                    else refusal(405, "MethodNotAllowed", "")
                )
            return self._object(method, objects, name, headers, body)

    def _object(
        self, method: str, objects: dict[str, Stored], name: str, headers: dict[str, str], body: bytes
    ) -> Reply:
        held = objects.get(name)
        wanted = headers.get("x-goog-if-generation-match")
        if wanted is not None:
            if not wanted.isdigit():
                return refusal(400, "InvalidArgument", "x-goog-if-generation-match must be a number.")
            if int(wanted) != (0 if held is None else held.generation):
                return PRECONDITION_FAILED
        if method == "PUT":
            objects[name] = made = Stored(body, next(self._generations), time.time())
            return Reply(200, b"", _facts(made))
        if held is None:
            return refusal(404, "NoSuchKey", "The specified key does not exist.")
        match method:
            case "GET" | "HEAD":
                if headers.get("if-none-match") == held.e_tag:
                    return Reply(304, b"", _facts(held))
                return Reply(200, held.data, _facts(held))
            case "DELETE":
                del objects[name]
                return Reply(204)
            case _:
                return refusal(405, "MethodNotAllowed", "")


def _facts(stored: Stored) -> tuple[tuple[str, str], ...]:
    return (
        ("ETag", stored.e_tag),
        ("x-goog-generation", str(stored.generation)),
        ("x-goog-metageneration", "1"),
        ("Last-Modified", formatdate(stored.written_at, usegmt=True)),
        ("Content-Type", "application/octet-stream"),
    )


def _listing(bucket: str, objects: dict[str, Stored], query: dict[str, list[str]]) -> Reply:
    prefix = query.get("prefix", [""])[0]
    after = query.get("continuation-token", query.get("start-after", [""]))[0]
    most = min(int(query.get("max-keys", [str(PAGE)])[0]), PAGE)
    names = sorted((name for name in objects if name.startswith(prefix)), key=str.encode)
    start = bisect_right(names, after.encode(), key=str.encode) if after else 0
    page = names[start : start + most]
    items = "".join(_item(name, objects[name]) for name in page)
    more = start + most < len(names)
    token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
    body = (
        "<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>"
        f"<Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
        f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{token}{items}</ListBucketResult>"
    )
    return Reply(200, body.encode(), (("Content-Type", "application/xml"),))


def _item(name: str, stored: Stored) -> str:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(stored.written_at))
    return (
        f"<Contents><Key>{escape(name)}</Key><Generation>{stored.generation}</Generation>"
        f"<LastModified>{moment}.{int(stored.written_at % 1 * 1000):03d}Z</LastModified>"
        f"<ETag>{escape(stored.e_tag)}</ETag><Size>{len(stored.data)}</Size></Contents>"
    )


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    disable_nagle_algorithm = True
    buckets: Buckets

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        bucket, _, name = parts.path.lstrip("/").partition("/")
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # the client went away in the middle of it: nothing is stored
            self.close_connection = True
            return
        headers = {key.lower(): value for key, value in self.headers.items()}
        if not bucket:
            reply = Reply(200)
        else:
            query = parse_qs(parts.query, keep_blank_values=True)
            reply = self.buckets.answer(self.command, unquote(bucket), unquote(name), query, headers, body)
        self.send_response(reply.status)
        for key, value in reply.headers:
            self.send_header(key, value)
        self.send_header(PID_HEADER, str(os.getpid()))
        if reply.status not in (204, 304):
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD" and reply.body:
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_PUT = do_DELETE = _serve

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a log line per request would be the slowest part."""


class EmulatorServer(ThreadingHTTPServer):
    """A thread per connection; clients that go away are no news."""

    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def serve(port: int) -> None:
    """Until killed."""
    Handler.buckets = Buckets()
    with EmulatorServer((HOST, port), Handler) as server:
        server.serve_forever(poll_interval=3600)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
