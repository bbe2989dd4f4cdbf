"""The layer `compression`: smaller where it pays, the same values always, and nothing forged can blow it up."""

import os
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiecs_resilient.backends.foreign import adapt
from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.errors import (
    ConfigurationError,
    ConflictError,
    DataCorruptionError,
    UnsupportedOperationError,
)
from aiecs_resilient.layers.batching import Batching
from aiecs_resilient.layers.compression import Compression
from aiecs_resilient.layers.dual_write import DualWrite
from aiecs_resilient.operations import operation

from .cancellation import cancel_everywhere
from .scripted import Delay, store
from .sealed import TEXT, fill, read

BIG = "0123456789" * 200_000


async def plain(key: str, what: str = TEXT) -> list[Any]:
    """What a store without the layer answers."""
    async with MemoryStorageBackend() as memory:
        await fill(memory, key, what)
        return await read(memory, key)


@pytest.mark.parametrize("what", [TEXT, "short", BIG], ids=["long", "short", "in a thread"])
async def test_values_come_back_as_they_were(what: str) -> None:
    """Whatever their size, wherever they stand, by every way in and out."""
    async with Compression(MemoryStorageBackend()) as layer:
        await fill(layer, "s", what)
        assert await read(layer, "s") == await plain("s", what)


async def test_large_values_take_a_fraction() -> None:
    """In the store, in each kind of row; metrics say how much was saved."""
    async with Compression(MemoryStorageBackend()) as layer:
        await fill(layer, "s")
        for value in await read(layer.inner, "s"):
            assert TEXT not in repr(value)
        state = layer.state
        assert state.packed >= 10
        assert state.bytes_out < state.bytes_in / 10
        facts = (await layer.get_metrics())["layers"]["compression"]
        assert (facts["packed"], facts["bytes_in"]) == (state.packed, state.bytes_in)
        assert (await layer.health_check())["layers"]["compression"] == facts
        assert repr(layer).startswith(f"<Compression {state.packed} packed, to ")
        assert Compression(layer.inner, state=state).state is state


async def test_what_does_not_pay_is_left_alone() -> None:
    """Small values and noise are stored as they are, readable for everybody."""
    async with Compression(MemoryStorageBackend()) as layer:
        noise = os.urandom(5_000)
        await layer.store_task_context("small", {"a": 1})
        await layer.store_task_context("noise", noise)
        assert await layer.inner.get_task_context("small") == {"a": 1}
        assert await layer.inner.get_task_context("noise") == noise
        assert (layer.state.packed, layer.state.left) == (0, 2)


async def test_what_was_stored_before_is_read_as_it_is() -> None:
    """The layer can be put over a full store, and values are compressed as they are written anew."""
    async with MemoryStorageBackend() as memory:
        await fill(memory, "s")
        layer = Compression(memory)
        assert await read(layer, "s") == await plain("s")
        await layer.update_session("s", {"custom": TEXT})
        assert TEXT not in repr((await memory.get_session("s") or {})["custom"])


@pytest.mark.parametrize("packed", [b"anything", b"\x00abc", b"\x01" + bytes(8) + zlib.compress(b"")])
async def test_a_value_that_looks_like_ours_is_kept(packed: bytes) -> None:
    """Whoever stores what this layer writes gets it back and does not have it opened."""
    value = {Compression.mark: packed}
    async with Compression(MemoryStorageBackend()) as layer:
        await layer.create_session("s", "u", value)
        await layer.update_session("s", {"custom": value})
        await layer.add_conversation_message("s", "user", "hi", value)
        await layer.store_checkpoint("t", "c", value, value)
        await layer.store_task_context("s", value)
        session, checkpoint = await layer.get_session("s"), await layer.get_checkpoint("t")
        assert session is not None
        assert checkpoint is not None
        assert (session["metadata"], session["custom"]) == (value, value)
        assert (checkpoint["data"], checkpoint["metadata"]) == (value, value)
        assert (await layer.get_conversation_history("s"))[0]["metadata"] == value
        assert await layer.get_task_context("s") == value


async def test_both_stores_hold_equal_bytes() -> None:
    """Through batching and dual_write, each store read by itself gives the same compressed values."""
    one, two = MemoryStorageBackend(name="one"), MemoryStorageBackend(name="two")
    async with Batching(Compression(DualWrite(one, two, durable_at_least="volatile"))) as chain:
        await fill(chain, "s")
        assert await read(chain, "s") == await plain("s")
        assert await read(one, "s") == await read(two, "s")
        assert TEXT not in repr(await read(one, "s"))


async def test_a_repeat_is_recognised_whatever_the_level() -> None:
    """A write is known by what its caller gave, not by how it was compressed."""
    async with MemoryStorageBackend() as memory:
        for level in (1, 9):
            async with operation("mine"):
                await Compression(memory, level=level).add_conversation_message("s", "user", TEXT)
        assert len(await memory.get_conversation_history("s")) == 1
        with pytest.raises(ConflictError):
            async with operation("mine"):
                await Compression(memory).add_conversation_message("s", "user", TEXT + "!")


@pytest.mark.parametrize(
    ("packed", "told"),
    [
        (b"", "form"),
        (b"\x07abc", "form"),
        (b"\x01abc", "form"),
        (b"\x01" + (5).to_bytes(8, "big") + b"not deflate", "cannot be read"),
        (b"\x01" + (5).to_bytes(8, "big") + zlib.compress(b"four"), "does not hold the 5 bytes"),
        (b"\x01" + (5).to_bytes(8, "big") + zlib.compress(bytes(10_000_000)), "does not hold the 5 bytes"),
        (b"\x01" + (1 << 60).to_bytes(8, "big") + zlib.compress(b"x"), "the most is"),
        (b"\x01" + (4).to_bytes(8, "big") + zlib.compress(b"four")[:-2], "does not hold"),
        (b"\x01" + (4).to_bytes(8, "big") + zlib.compress(b"four") + b"more", "does not hold"),
    ],
    ids=repr,
)
async def test_what_was_forged_or_broken_is_refused(packed: bytes, told: str) -> None:
    """It neither fills the memory nor passes for data."""
    async with MemoryStorageBackend() as memory:
        await memory.store_task_context("s", {Compression.mark: packed})
        with pytest.raises(DataCorruptionError, match=told):
            await Compression(memory).get_task_context("s")


def test_a_bomb_takes_no_memory() -> None:
    """It is opened only as far as it says that it goes."""
    bomb = b"\x01" + (5).to_bytes(8, "big") + zlib.compress(bytes(50_000_000))
    layer = Compression(MemoryStorageBackend())
    tracemalloc.start()
    try:
        with pytest.raises(DataCorruptionError):
            layer.unseal(("context", "s"), bomb)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


async def test_a_store_that_takes_no_records_is_refused() -> None:
    """When the chain is built, with the reason."""
    with pytest.raises(UnsupportedOperationError, match="takes no writes as records"):
        Compression(_foreign())


def _foreign() -> Any:
    class Foreign:
        """Sixteen methods that are never called."""

        def __getattr__(self, name: str) -> Any:
            async def method(*_args: Any, **_more: Any) -> None: ...

            return method

    return adapt(Foreign())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"min_size": 0}, {"min_saving": 1.5}, {"level": 0}, {"level": 10}], ids=str
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    """When the chain is built."""
    with pytest.raises(ConfigurationError, match="compression: "):
        Compression(MemoryStorageBackend(), **options)


async def test_the_account_is_that_of_the_store() -> None:
    """Who served it and how often it was asked is told as without the layer, also in a scope that read before."""
    async with Compression(MemoryStorageBackend(name="mem")) as layer:
        async with operation() as op:
            await layer.get_session("s")
            await layer.create_session("s", "u", {"a": TEXT})
        assert (op.served_by, op.attempts) == ("mem", 2)


@pytest.mark.parametrize("what", [TEXT, BIG], ids=["at once", "in a thread"])
async def test_a_cancellation_passes(what: str) -> None:
    """At whichever wait, also while a thread is at work."""

    async def scenario() -> tuple[Awaitable[object], Callable[[], Awaitable[None]]]:
        layer = Compression(await store(Delay(0.001)))

        async def check() -> None:
            assert await layer.get_session("s") is None

        return layer.store_task_context("s", what), check

    assert await cancel_everywhere(scenario) >= 1
