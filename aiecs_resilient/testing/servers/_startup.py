"""Just enough of PostgreSQL's wire protocol to see that a server serves, and to run one statement.

So that starting a server needs neither psql, which minimal installations lack, nor a driver, whose own behaviour
the tests are there to examine.
"""

from __future__ import annotations

import socket
import struct

PROTOCOL_3 = 196_608


def execute(host: str, port: int, *, user: str, database: str, statement: str, timeout: float = 5.0) -> None:
    """Connect without a password, run the statement, wait for it to finish; OSError says what the server said."""
    with socket.create_connection((host, port), timeout=timeout) as connection:
        parameters = b"".join(part.encode() + b"\0" for part in ("user", user, "database", database)) + b"\0"
        connection.sendall(struct.pack("!II", len(parameters) + 8, PROTOCOL_3) + parameters)
        wait_until_idle(connection)
        query = statement.encode() + b"\0"
        connection.sendall(b"Q" + struct.pack("!I", len(query) + 4) + query)
        wait_until_idle(connection)
        connection.sendall(b"X" + struct.pack("!I", 4))


def wait_until_idle(connection: socket.socket) -> None:
    """Read messages until ReadyForQuery; an ErrorResponse becomes an OSError."""
    while True:
        kind = receive(connection, 1)
        (length,) = struct.unpack("!I", receive(connection, 4))
        body = receive(connection, length - 4)
        if kind == b"E":
            fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
            raise OSError(f"{fields.get(b'C', '')} {fields.get(b'M', '')}".strip())
        if kind == b"Z":
            return


def receive(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        chunk = connection.recv(count - len(received))
        if not chunk:
            raise ConnectionResetError("it closed the connection in the middle of an answer")
        received += chunk
    return received
