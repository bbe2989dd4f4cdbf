"""The listener of the fault proxy: accepts, refuses, flaps, and tells its connections what is wrong today."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections import Counter
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from ..servers._supervisor import LINUX, LOOPBACK, bind_any
from ._connection import Connection
from .faults import Fault, Flapping, Refused, Reset

BACKLOG = 1024


class FaultProxy:
    """Forwards `127.0.0.1:port` to a target, with the faults that `set` names; none at first.

    `seed` decides every random choice, per connection and direction. `injected` counts, by the fault's class, how
    often it really struck. `connections` are those open now; `set(..., connection=one)` injures only that one.
    """

    def __init__(self, target_host: str, target_port: int, *, seed: int = 0) -> None:
        self.target = (target_host, target_port)
        self.seed = seed
        self.injected: Counter[type[Fault]] = Counter()
        self._asked: set[type[Fault]] = set()
        self._faults: tuple[Fault, ...] = ()
        self._address: tuple[socket.AddressFamily, tuple[str, int]] | None = None
        self._held: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._port: int | None = None
        self._changed = asyncio.Event()
        self._open: dict[Connection, asyncio.Task[None]] = {}
        self._flapping: asyncio.Task[None] | None = None
        self._accepted = 0

    def __repr__(self) -> str:
        state = " ".join(map(repr, self._faults)) or "healthy"
        return f"<FaultProxy {LOOPBACK}:{self._port} -> {self.target[0]}:{self.target[1]} {state}>"

    @property
    def port(self) -> int:
        if self._port is None:
            raise RuntimeError("the proxy has no port before start(); use `async with`")
        return self._port

    @property
    def faults(self) -> tuple[Fault, ...]:
        return self._faults

    @property
    def connections(self) -> list[Connection]:
        return list(self._open)

    @property
    def accepted(self) -> int:
        """Connections accepted so far."""
        return self._accepted

    def through(self, url: str) -> str:
        """The same URL, by way of the proxy."""
        parts = urlsplit(url)
        user, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{user}{at}{LOOPBACK}:{self.port}").geturl()

    def set(self, *faults: Fault, connection: Connection | None = None) -> None:
        """From now on exactly these faults, for all connections or for one."""
        if connection is not None and any(isinstance(fault, Refused | Flapping) for fault in faults):
            raise ValueError("Refused and Flapping concern the listener, not one connection")
        self._asked.update(map(type, faults))
        if connection is not None:
            connection.use(faults)
        else:
            self._faults = faults
            self._switch_listener()
        self._announce()

    def heal(self) -> None:
        """No faults any more, on any connection; what was lost stays lost."""
        for connection in self._open:
            connection.use(None)
        self.set()

    def drop_connections(self) -> None:
        """Reset every open connection, now."""
        for connection in self._open:
            self.injected[Reset] += 1
            connection.drop()

    def never_struck(self) -> frozenset[type[Fault]]:
        """Kinds of faults that were set and never struck: with one of these, a scenario proved nothing."""
        return frozenset(kind for kind in self._asked if not self.injected[kind])

    async def start(self) -> None:
        if self._port is not None:
            raise RuntimeError("the proxy runs already")
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(*self.target, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        self._address = family, (str(address[0]), int(address[1]))
        self._held = bind_any()
        self._port = int(self._held.getsockname()[1])
        if not LINUX:  # elsewhere a held port cannot be listened on by a second socket
            self._held.close()
            self._held = None
        self._switch_listener()

    async def close(self) -> None:
        """Reset what is open and leave no socket and no task. May be called again."""
        if self._flapping is not None:
            self._flapping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flapping
            self._flapping = None
        self._deafen()
        while self._open:
            tasks = list(self._open.values())
            for connection in self._open:
                connection.drop()
            await asyncio.wait(tasks)
            await asyncio.sleep(0)  # for the callbacks that take the ended ones out of the table
        if self._held is not None:
            self._held.close()
            self._held = None
        self._port = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # For the connections.

    def count(self, fault: Fault) -> None:
        self.injected[type(fault)] += 1

    async def changed(self, within: float | None = None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._changed.wait()

    async def connect(self) -> socket.socket:
        assert self._address is not None
        family, address = self._address
        server = socket.socket(family, socket.SOCK_STREAM)
        try:
            server.setblocking(False)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(server, address)
        except BaseException:
            server.close()
            raise
        return server

    # The listener.

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _switch_listener(self) -> None:
        """Listen, stop listening, or alternate, as the faults want it."""
        if self._flapping is not None:
            self._flapping.cancel()
            self._flapping = None
        if self._port is None:
            return
        flapping = next((fault for fault in self._faults if isinstance(fault, Flapping)), None)
        refused = next((fault for fault in self._faults if isinstance(fault, Refused)), None)
        if refused is not None:
            self._refuse(refused)
        elif flapping is not None:
            self._flapping = asyncio.get_running_loop().create_task(self._flap(flapping))
        else:
            self._listen()

    async def _flap(self, fault: Flapping) -> None:
        while True:
            self._refuse(fault)
            await asyncio.sleep(fault.period)
            self._listen()
            await asyncio.sleep(fault.period)

    def _refuse(self, fault: Fault) -> None:
        self.count(fault)
        self._deafen()
        for connection in self._open:
            connection.drop()

    def _listen(self) -> None:
        if self._listener is not None:
            return
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((LOOPBACK, self.port))
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _deafen(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._accepted += 1
            connection = Connection(self, client, self._accepted)
            task = connection.start()
            self._open[connection] = task
            task.add_done_callback(functools.partial(self._forget, connection))

    def _forget(self, connection: Connection, _: asyncio.Task[None]) -> None:
        self._open.pop(connection, None)
