"""What batching gives: messages per second and latencies with durable acknowledgements, and concurrent reads, on real stores.

    python benchmarks/batching.py [--stores postgresql redis redis-fsync sqlite] [--producers 1 32 256 1024]
                                  [--rounds 5] [--messages 1500] [--no-reads] [--no-kill]

Each producer says one message after the other in a session of its own, and waits for each to be durable. Variants run
interleaved, so that a noisy machine disturbs all of them alike; printed are medians over the rounds, and ratios round by
round. ``single`` is the store without this layer: every message is a commit of its own (over SQLite the store has group
commit of its own; ``one by one`` is what it would be without). ``naive`` is the batcher of the interface document, which
acknowledges first and writes later: the last table kills a process under each and counts what had been acknowledged and is
gone. ``client`` is the processor time of this process per message.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiecs_resilient.backends.postgresql import PostgreSQLStorageBackend
from aiecs_resilient.backends.sqlite import SQLiteStorageBackend
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers import Layer
from aiecs_resilient.layers.batching import Batching
from aiecs_resilient.testing.servers import PostgreSQLServer, ValkeyServer

CONTENT = "What is the state of the order that I placed last week? " * 4
METADATA = {"channel": "web", "tokens": 57}

Say = Callable[[str, str], Awaitable[Any]]


class Naive(Layer):
    """The batcher of the interface document, with its insert filled in: it answers before anything is written."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.batch_size = 100
        self._batch_queue: list[dict[str, Any]] = []
        self._batch_lock = asyncio.Lock()

    async def add_conversation_message(
        self, session_id: str, role: str, content: str, metadata: dict[str, Any] | None = None
    ) -> bool:
        message = {"session_id": session_id, "role": role, "content": content, "metadata": metadata or {}}
        async with self._batch_lock:
            self._batch_queue.append(message)
            if len(self._batch_queue) >= self.batch_size:
                await self.inner.batch_add_conversation_messages(self._batch_queue)
                self._batch_queue.clear()
        return True


class OneByOne(Layer):
    """No two writes at once: what single commits are where the store shares them by itself."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self._lock = asyncio.Lock()

    async def add_conversation_message(
        self, session_id: str, role: str, content: str, metadata: dict[str, Any] | None = None
    ) -> bool:
        async with self._lock:
            return await self.inner.add_conversation_message(session_id, role, content, metadata)


# ---------------------------------------------------------------------- stores


def connect(store: str, address: str) -> Backend:
    """The backend alone."""
    if store == "postgresql":
        return PostgreSQLStorageBackend(address)
    if store == "sqlite":
        return SQLiteStorageBackend(address)
    from aiecs_resilient.backends.redis import RedisStorageBackend

    return RedisStorageBackend(address)


@contextmanager
def served(store: str) -> Iterator[str]:
    """A server, or a file, for as long as it is needed; its address."""
    if store == "postgresql":
        with PostgreSQLServer() as postgresql:
            yield postgresql.url
    elif store == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"{folder}/store.db"
    else:
        with ValkeyServer(appendfsync="always" if store == "redis-fsync" else "everysec") as valkey:
            yield valkey.url


def variants(store: str, backend: Backend) -> dict[str, Backend]:
    """What is compared; the first is what the others are compared with."""
    chosen = {"single": backend, "batching": Batching(backend), "naive": Naive(backend)}
    return {"one by one": OneByOne(backend), **chosen} if store == "sqlite" else chosen


@asynccontextmanager
async def opened(store: str, address: str) -> AsyncIterator[dict[str, Backend]]:
    """All variants over one open backend."""
    async with connect(store, address) as backend:
        found = variants(store, backend)
        for variant in found.values():
            await variant.initialize()
        yield found


# ---------------------------------------------------------------------- writes


@dataclass
class Figures:
    """Of one variant: a figure per round, and all latencies."""

    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    def line(self, name: str, base: Figures) -> str:
        cuts = statistics.quantiles(self.latencies, n=100)
        ratio = statistics.median(mine / theirs for mine, theirs in zip(self.rates, base.rates, strict=True))
        return (
            f"{name:12} {statistics.median(self.rates):9.0f} {ratio:7.2f} {statistics.median(self.cpu):9.0f} "
            f"{cuts[49] * 1e3:9.2f} {cuts[94] * 1e3:9.2f} {cuts[98] * 1e3:9.2f}"
        )


async def produce(
    backend: Backend, producers: int, messages: int, run: str, figures: Figures | None = None
) -> None:
    """One round."""
    each = max(1, messages // producers)
    latencies: list[float] = []

    async def one(number: int) -> None:
        session = f"{run}-{number}"
        for _ in range(each):
            asked = time.perf_counter()
            await backend.add_conversation_message(session, "user", CONTENT, METADATA)
            latencies.append(time.perf_counter() - asked)

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one(number) for number in range(producers)))
    took = time.perf_counter() - started
    if figures is not None:
        figures.rates.append(each * producers / took)
        figures.cpu.append((time.process_time() - cpu) / (each * producers) * 1e6)
        figures.latencies += latencies


async def compare_writes(store: str, address: str, producers: int, rounds: int, messages: int) -> None:
    """A table of variants."""
    async with opened(store, address) as found:
        figures = {name: Figures() for name in found}
        for number in range(rounds + 1):
            for name, variant in found.items():
                some = messages if producers > 1 else messages // 4
                run = f"{name}-{producers}-{number % 2}"
                await produce(variant, producers, some, run, figures[name] if number else None)
        print(f"\n{store}, {producers} producers")
        print(
            f"{'':12} {'msg/s':>9} {'ratio':>7} {'client µs':>9} {'p50 ms':>9} {'p95 ms':>9} {'p99 ms':>9}",
            flush=True,
        )
        base = next(iter(figures.values()))
        for name, held in figures.items():
            print(held.line(name, base), flush=True)


# ---------------------------------------------------------------------- reads


async def compare_reads(store: str, address: str, rounds: int, readers: int = 64) -> None:
    """Sixty-four tasks that each read a session, over and over."""
    async with opened(store, address) as found:
        for number in range(readers):
            await found["single"].create_session(f"r{number}", "user", METADATA)
        rates: dict[str, list[float]] = {"single": [], "batching": []}
        for number in range(rounds + 1):
            for name, held in rates.items():
                started = time.perf_counter()

                async def reader(session: str, backend: Backend = found[name]) -> None:
                    for _ in range(20):
                        await backend.get_session(session)

                await asyncio.gather(*(reader(f"r{n}") for n in range(readers)))
                if number:
                    held.append(readers * 20 / (time.perf_counter() - started))
        single, together = rates.values()
        ratio = statistics.median(mine / theirs for mine, theirs in zip(together, single, strict=True))
        print(
            f"\n{store}, {readers} concurrent reads: single {statistics.median(single):.0f}/s, "
            f"batching {statistics.median(together):.0f}/s, ratio {ratio:.2f}",
            flush=True,
        )


# ---------------------------------------------------------------------- killed


async def talk(store: str, address: str, variant: str, producers: int) -> None:
    """Say messages until killed, and print each as soon as it has been acknowledged."""
    async with opened(store, address) as found:
        backend = found[variant]

        async def one(number: int) -> None:
            for n in range(1_000_000):
                await backend.add_conversation_message(f"killed-{variant}-{number}", "user", f"m{n}")
                os.write(1, f"{number} {n}\n".encode())
                await asyncio.sleep(0)

        await asyncio.gather(*(one(number) for number in range(producers)))


async def kill(store: str, address: str, variant: str, producers: int, after: int) -> tuple[int, int]:
    """How many messages a killed process had acknowledged, and how many of them are gone."""
    command = [sys.executable, __file__, "--talk", store, address, variant, str(producers)]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines: list[bytes] = []
    try:
        async with asyncio.timeout(60):
            while len(lines) < after:
                lines.append(await process.stdout.readline())
    finally:
        process.kill()
    lines += (await process.stdout.read()).splitlines(keepends=True)
    await process.wait()
    acknowledged: dict[int, int] = {}
    for line in lines:
        if line.endswith(b"\n"):
            number, n = map(int, line.split())
            acknowledged[number] = n
    lost = 0
    async with connect(store, address) as backend:
        for number, last in acknowledged.items():
            said = await backend.get_conversation_history(f"killed-{variant}-{number}", 0)
            held = {message["content"] for message in said}
            lost += sum(f"m{n}" not in held for n in range(last + 1))
    return sum(last + 1 for last in acknowledged.values()), lost


async def compare_kills(store: str, address: str) -> None:
    """Naive beside ours."""
    print(f"\n{store}, a process of 200 producers killed")
    for variant in ("naive", "batching"):
        acknowledged, lost = await kill(store, address, variant, 200, 2_050)
        print(f"{variant:12} {acknowledged:6} acknowledged, {lost:4} of them lost", flush=True)


# ---------------------------------------------------------------------- all of it


async def run(options: argparse.Namespace) -> None:
    """Every table that was asked for."""
    for store in options.stores:
        with served(store) as address:
            for producers in options.producers:
                await compare_writes(store, address, producers, options.rounds, options.messages)
            if options.reads:
                await compare_reads(store, address, options.rounds)
            if options.kill:
                await compare_kills(store, address)


def main() -> None:
    """Read the options and measure."""
    if sys.argv[1:2] == ["--talk"]:
        store, address, variant, producers = sys.argv[2:]
        asyncio.run(talk(store, address, variant, int(producers)))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stores = ["postgresql", "redis", "redis-fsync", "sqlite"]
    parser.add_argument("--stores", nargs="+", choices=stores, default=stores)
    parser.add_argument("--producers", nargs="+", type=int, default=[1, 32, 256, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=1_500)
    parser.add_argument("--reads", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--kill", action=argparse.BooleanOptionalAction, default=True)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
