"""One proxied connection: two pumps, each carrying bytes one way and letting the faults strike them.

Sockets are used directly, without streams or transports: a reset, a cut at an exact byte and a reader that stops
reading need the socket itself, with nothing buffered in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from typing import Literal, Protocol

from .faults import (
    Bandwidth,
    BlackHole,
    Corrupted,
    Cut,
    Directed,
    Drip,
    Fault,
    Latency,
    LateReply,
    ReplyLost,
    Reset,
    Silence,
    Sliced,
    SlowClose,
    Stall,
)

PIECE = 65_536
PACES_PER_SECOND = 50


class Owner(Protocol):
    """What a connection needs from its proxy."""

    seed: int

    @property
    def faults(self) -> tuple[Fault, ...]: ...

    def count(self, fault: Fault) -> None: ...

    async def changed(self, within: float | None = None) -> None:
        """Wait until faults are set or healed, or so many seconds."""
        ...

    async def connect(self) -> socket.socket: ...


class Ended(Exception):
    """Not an error: how a pump tells its connection to end."""

    def __init__(self, *, reset: bool) -> None:
        self.reset = reset


class Connection:
    """A client's connection through the proxy; `set` gives it faults of its own."""

    def __init__(self, owner: Owner, client: socket.socket, number: int) -> None:
        self.number = number
        self.owner = owner
        self._client = client
        self._server: socket.socket | None = None
        self._own: tuple[Fault, ...] | None = None
        self._task: asyncio.Task[None] | None = None
        self._reset = False
        # What an earlier fault decided for the rest of this connection's life: bytes that TCP lost never come back.
        self.swallowed = False
        self.muted = False
        self.doomed: ReplyLost | None = None
        self.next_request = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Connection {self.number} {' '.join(map(repr, self.faults)) or 'healthy'}>"

    @property
    def faults(self) -> tuple[Fault, ...]:
        return self.owner.faults if self._own is None else self._own

    def use(self, own: tuple[Fault, ...] | None) -> None:
        """Faults of this connection instead of the proxy's; None for the proxy's."""
        self._own = own

    def start(self) -> asyncio.Task[None]:
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"proxied-{self.number}")
        self._task.add_done_callback(self._close)
        return self._task

    def drop(self) -> None:
        """Reset it, from both ends."""
        self._reset = True
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            await self._pump()
        except* Ended as ended:
            self._reset = any(one.reset for one in ended.exceptions if isinstance(one, Ended))
        except* OSError:  # one end was reset, or the server is not there: so is the other end
            self._reset = True

    def _close(self, _: asyncio.Task[None]) -> None:
        # When the task is done, not in it: one that is cancelled before its first step never enters its `finally`.
        for end in (self._client, self._server):
            if end is not None:
                close(end, reset=self._reset)

    async def _pump(self) -> None:
        for fault in self.faults:
            if isinstance(fault, BlackHole):
                self.owner.count(fault)
                self.swallowed = True
        if self.swallowed:
            await self._swallow()
            return
        self._server = await self.owner.connect()
        async with asyncio.TaskGroup() as both:
            both.create_task(Pump(self, "request", self._client, self._server).run())
            both.create_task(Pump(self, "reply", self._server, self._client).run())

    async def _swallow(self) -> None:
        while await asyncio.get_running_loop().sock_recv(self._client, PIECE):
            continue


class Pump:
    """Carries one direction."""

    def __init__(
        self,
        connection: Connection,
        direction: Literal["request", "reply"],
        source: socket.socket,
        target: socket.socket,
    ) -> None:
        self._connection = connection
        self._direction = direction
        self._source = source
        self._target = target
        self._loop = asyncio.get_running_loop()
        # Of its own, so that what strikes here does not depend on how connections and directions interleave.
        self._random = random.Random(f"{connection.owner.seed}/{connection.number}/{direction}")  # noqa: S311
        self._passed = 0
        self._counting: Cut | None = None

    async def run(self) -> None:
        while data := await self._loop.sock_recv(self._source, PIECE):
            if self._direction == "request":
                self._connection.next_request.set()
            for fault in self._active():
                data = await self._strike(fault, data)
            if self._direction == "reply" and self._connection.doomed is not None:
                self._count(self._connection.doomed)
                raise Ended(reset=True)
            if not self._is_lost():
                await self._send(data)
        for fault in self._active():
            if isinstance(fault, SlowClose):
                self._count(fault)
                await self._connection.owner.changed(within=fault.delay)
        if self._connection.swallowed:
            raise Ended(reset=False)
        if not self._is_lost():
            with contextlib.suppress(OSError):  # the other end has gone already
                self._target.shutdown(socket.SHUT_WR)

    def _active(self) -> list[Fault]:
        return [
            fault
            for fault in self._connection.faults
            if not isinstance(fault, Directed) or fault.direction in ("both", self._direction)
        ]

    def _is_lost(self) -> bool:
        return self._connection.swallowed or (self._connection.muted and self._direction == "reply")

    def _count(self, fault: Fault) -> None:
        self._connection.owner.count(fault)

    def _happens(self, probability: float) -> bool:
        return self._random.random() < probability

    async def _strike(self, fault: Fault, data: bytes) -> bytes:
        """What one fault does to a piece of data before it is sent on."""
        match fault:
            case Latency():
                self._count(fault)
                delay = self._random.uniform(fault.delay - fault.jitter, fault.delay + fault.jitter)
                await self._connection.owner.changed(within=delay)
            case Stall():
                self._count(fault)
                while fault in self._active():
                    await self._connection.owner.changed()
            case BlackHole():
                self._count(fault)
                self._connection.swallowed = True
            case Silence() if self._direction == "reply":
                self._count(fault)
                self._connection.muted = True
            case Reset() if self._happens(fault.probability):
                self._count(fault)
                raise Ended(reset=True)
            case Corrupted() if self._happens(fault.probability):
                self._count(fault)
                return self._flip_one_bit(data)
            case ReplyLost() if self._direction == "request" and fault.matching in data:
                if self._connection.doomed is None and self._happens(fault.probability):
                    self._connection.doomed = fault
            case LateReply() if self._direction == "reply" and self._happens(fault.probability):
                self._count(fault)
                self._connection.next_request.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(fault.hold):
                        await self._connection.next_request.wait()
            case Cut():
                await self._cut(fault, data)
            case _:  # strikes elsewhere: at the listener, in the other direction, in _send
                pass
        return data

    def _flip_one_bit(self, data: bytes) -> bytes:
        wrong = bytearray(data)
        wrong[self._random.randrange(len(wrong))] ^= 1 << self._random.randrange(8)
        return bytes(wrong)

    async def _cut(self, fault: Cut, data: bytes) -> None:
        if self._counting is not fault:
            self._counting, self._passed = fault, 0
        if self._passed + len(data) > fault.at:
            self._count(fault)
            await self._send(data[: fault.at - self._passed])
            raise Ended(reset=fault.reset)
        self._passed += len(data)

    async def _send(self, data: bytes) -> None:
        """Send on, as fast and in such pieces as the faults of this moment allow."""
        struck: Fault | None = None
        while data:
            piece, pause = data, 0.0
            for fault in self._active():
                match fault:
                    case Sliced():
                        size, wait = self._random.randint(fault.smallest, fault.largest), fault.pause
                    case Drip():
                        size, wait = 1, fault.interval
                    case Bandwidth(bytes_per_second=rate):
                        size = max(1, int(rate / PACES_PER_SECOND))
                        wait = min(size, len(piece)) / rate
                    case _:
                        continue
                piece, pause = piece[:size], max(pause, wait)
                if fault is not struck:
                    self._count(fault)
                    struck = fault
            await self._loop.sock_sendall(self._target, piece)
            data = data[len(piece) :]
            if pause:
                await self._connection.owner.changed(within=pause)


def close(end: socket.socket, *, reset: bool) -> None:
    if reset:  # lingering for 0 seconds makes close() send RST and throw away what is unsent
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()
