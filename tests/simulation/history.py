"""One seeded history: processes work while servers and links fail, then everything heals and the two stores are compared.

``prune_checkpoints`` is not among the random writes: pruned twice by stores that saw different checkpoints, a thread may
keep one more on one side, which no replay repairs, only a sweep that compares the stores.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from aiecs_resilient.clock import use_wall_clock
from aiecs_resilient.errors import ConflictError, IncompleteStoreError, StorageError
from aiecs_resilient.operations import OperationContext, operation
from aiecs_resilient.testing.clock import run_virtual

from .world import Process, Server, dump

KEYS = 4
HEAL_SECONDS = 30.0


@dataclass
class Account:
    """What callers were told."""

    acknowledged: dict[str, list[tuple[str, float, float]]] = field(default_factory=lambda: defaultdict(list))
    unknown: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    refused: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    increments: Counter[str] = field(default_factory=Counter)
    maybe_increments: Counter[str] = field(default_factory=Counter)
    checkpoints: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    stale_reads: list[str] = field(default_factory=list)
    takeovers: int = 0
    faults: int = 0
    calls: int = 0


@dataclass
class History:
    """The result of one run: the account, both stores, and every violation found."""

    seed: int
    account: Account
    violations: list[str]
    epoch: int


def run_history(seed: int, *, processes: int = 3, seconds: float = 6.0, **options: Any) -> History:
    """Run the history of this seed to its end. Equal seeds give equal histories."""
    return run_virtual(_history(seed, processes, seconds, options))


async def _history(seed: int, count: int, seconds: float, options: dict[str, Any]) -> History:
    rng = random.Random(seed)
    primary = Server("hot", rng, skew_us=rng.randint(-200_000, 200_000))
    fallback = Server("cold", rng, skew_us=rng.randint(-200_000, 200_000))
    account = Account()
    processes = [Process(number, primary, fallback, rng, **options) for number in range(count)]
    for process in processes:
        await process.start()
    with use_wall_clock(processes[0].wall):
        for key in range(KEYS):
            await processes[0].storage.create_session(f"key-{key}", "user")
    for process in processes:
        for key in range(KEYS):
            process.run(lambda process, key=key: _work(process, f"key-{key}", account))
    await _trouble(rng, (primary, fallback), processes, account, seconds)
    for server in (primary, fallback):
        server.restart()
        server.resume()
    for process in processes:
        for link in process.links:
            link.cut, link.loss = False, 0.0
        for task in process.tasks:
            task.cancel()
        await asyncio.gather(*process.tasks, return_exceptions=True)
    last = Process(
        count, primary, fallback, rng, **options
    )  # one more looks at what is left, also after crashes
    await last.start()
    await _healed(last, primary, fallback)
    for process in (*processes, last):
        await process.close()
    await asyncio.sleep(1)
    violations = _compare(account, dump(primary), dump(fallback))
    return History(seed, account, violations, last.storage.router.route.epoch)


async def _healed(process: Process, *servers: Server) -> None:
    limit = asyncio.get_running_loop().time() + HEAL_SECONDS
    while asyncio.get_running_loop().time() < limit:
        router = process.storage.router
        if not router.degraded and not any(server.store._marks for server in servers):
            return
        await asyncio.sleep(0.1)


# ---------------------------------------------------------------------- the workload


async def _work(process: Process, key: str, account: Account) -> None:
    storage, rng = process.storage, process.rng
    number, last_acknowledged = 0, ""
    while True:
        await asyncio.sleep(rng.expovariate(20))
        number += 1
        op_id = f"{process.number}/{key}/{number}"
        choice = rng.random()
        account.calls += 1
        start = asyncio.get_running_loop().time()
        try:
            async with operation(op_id) as op:
                if choice < 0.5:
                    await storage.add_conversation_message(key, "user", op_id)
                    account.acknowledged[key].append((op_id, start, asyncio.get_running_loop().time()))
                    last_acknowledged = op_id
                elif choice < 0.65:
                    counted = await storage.update_session(key, {f"field-{process.number}": number}, True)
                    account.increments[key] += counted
                elif choice < 0.7:
                    await storage.store_checkpoint(key, op_id, {"n": number})
                    account.checkpoints[key].add(op_id)
                elif choice < 0.72:
                    await storage.end_session(key, f"ended by {process.number}")
                elif (
                    choice < 0.73 and key == "key-0"
                ):  # counters of this key are not summed: a create starts them afresh
                    await storage.create_session(key, f"user-{process.number}")
                else:
                    await _check_read(process, key, op, last_acknowledged, account)
        except IncompleteStoreError:
            continue
        except StorageError as error:
            assert not isinstance(error, ConflictError), error
            place = account.unknown if error.outcome == "unknown" else account.refused
            place[key].add(op_id)
            if 0.5 <= choice < 0.65 and error.outcome == "unknown":
                account.maybe_increments[key] += 1
        except asyncio.CancelledError:
            account.unknown[key].add(op_id)
            if 0.5 <= choice < 0.65:
                account.maybe_increments[key] += 1
            raise


async def _check_read(
    process: Process, key: str, op: OperationContext, wanted: str, account: Account
) -> None:
    """Read-your-writes, per process and key, unless the answer is flagged."""
    found = await process.storage.get_conversation_history(key, 0)
    if wanted and not op.stale and wanted not in {message["content"] for message in found}:
        account.stale_reads.append(
            f"process {process.number} did not read {wanted}, epoch {process.storage.router.route.epoch}"
        )


# ---------------------------------------------------------------------- the faults


async def _trouble(
    rng: random.Random,
    servers: tuple[Server, Server],
    processes: list[Process],
    account: Account,
    seconds: float,
) -> None:
    limit = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < limit:
        await asyncio.sleep(rng.uniform(0.1, 0.8))
        server = rng.choice(servers)
        process = rng.choice(processes)
        link = rng.choice(process.links)
        account.faults += 1
        match rng.randrange(8):
            case 0 | 1:
                server.kill()
                await asyncio.sleep(rng.uniform(0.05, 1.5))
                server.restart()
            case 2 | 3:
                server.stop()
                await asyncio.sleep(rng.uniform(0.05, 1.5))
                server.resume()
            case 4:
                link.cut = True
                await asyncio.sleep(rng.uniform(0.05, 1.0))
                link.cut = False
            case 5 | 6:
                for each in process.links:
                    each.loss = rng.uniform(0, 0.3)
                await asyncio.sleep(rng.uniform(0.1, 1.0))
                for each in process.links:
                    each.loss = 0.0
            case _:
                if sum(not each.crashed for each in processes) > 1 and not process.crashed:
                    await process.crash()


# ---------------------------------------------------------------------- the verdict


def _compare(account: Account, hot: dict[str, Any], cold: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for key in sorted(hot.keys() | cold.keys() | account.acknowledged.keys()):
        one, other = hot.get(key, {}), cold.get(key, {})
        for part in ("messages", "contexts", "checkpoints", "writes", "session"):
            if one.get(part) != other.get(part):
                found += [f"{key}: {part} differ: {one.get(part)} <> {other.get(part)}"]
        stored = [op_id for op_id, _stamp, _content in one.get("messages", [])]
        acknowledged = account.acknowledged[key]
        found += [f"{key}: lost {op_id}" for op_id, _start, _end in acknowledged if op_id not in set(stored)]
        found += [f"{key}: doubled {op_id}" for op_id, times in Counter(stored).items() if times > 1]
        found += [
            f"{key}: refused as not applied, yet there: {op_id}"
            for op_id in account.refused[key] & set(stored)
        ]
        if key != "key-0":
            kept = {id for id, _stamp, _op in one.get("checkpoints", [])}
            found += [f"{key}: checkpoint lost {id}" for id in account.checkpoints[key] - kept]
            session = one.get("session")
            if session is not None:
                low, high = account.increments[key], account.increments[key] + account.maybe_increments[key]
                if not low <= session.requests <= high:
                    found.append(f"{key}: counted {session.requests}, acknowledged {low}, at most {high}")
    return found + account.stale_reads
