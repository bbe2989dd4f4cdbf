"""moto's S3 on loopback, one request at a time. Run as a program by :class:`.s3.S3Server`.

moto checks a condition and then writes, in two steps; two requests at once could both pass. The lock here makes it what
the service promises, and a request whose body was cut short changes nothing.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

HOST = "127.0.0.1"
PID_HEADER = "X-Emulator-Pid"

StartResponse = Callable[..., Any]
Application = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


def one_at_a_time(application: Application) -> Application:
    """The same application, each request atomic."""
    lock, pid = threading.Lock(), str(os.getpid())

    def serve(environment: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [*headers, (PID_HEADER, pid)], *rest)

        if environment.get("PATH_INFO") == "/":
            start("200 OK", [("Content-Length", "0")])
            return []
        length = int(environment.get("CONTENT_LENGTH") or 0)
        body = environment["wsgi.input"].read(length)
        if len(body) < length:
            start("400 Bad Request", [("Content-Length", "0")])
            return []
        environment["wsgi.input"] = BytesIO(body)
        with lock:
            return [b"".join(application(environment, start))]

    return serve


def serve(port: int) -> None:
    """Until killed."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30
        disable_nagle_algorithm = True

        def log(self, type: str, message: str, *args: Any) -> None:
            """Nothing: a log line per request would be the slowest part."""

    application = one_at_a_time(DomainDispatcherApplication(create_backend_app))
    make_server(HOST, port, application, threaded=True, request_handler=Handler).serve_forever(
        poll_interval=3600
    )


if __name__ == "__main__":
    serve(int(sys.argv[1]))
