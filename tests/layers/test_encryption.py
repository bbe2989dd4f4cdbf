"""The layer `encryption`: stores hold nothing readable, and nothing moved, changed or foreign is ever shown."""

import base64
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiecs_resilient import telemetry
from aiecs_resilient.backends.memory import MemoryStorageBackend
from aiecs_resilient.errors import ConfigurationError, ConflictError, DataCorruptionError
from aiecs_resilient.layers._keys import Keys, TamperedError, pack
from aiecs_resilient.layers.batching import Batching
from aiecs_resilient.layers.compression import Compression
from aiecs_resilient.layers.dual_write import DualWrite
from aiecs_resilient.layers.encryption import Encryption
from aiecs_resilient.layers.namespace import Namespace
from aiecs_resilient.operations import operation
from aiecs_resilient.records import Kind, Mutation

from .cancellation import cancel_everywhere
from .scripted import Delay, store
from .sealed import fill, read

SECRET = "the-secret-word"
KEY = base64.b64encode(bytes(range(32))).decode()
OTHER = bytes(range(1, 33)).hex()
KEYS = {"one": KEY}


def encrypted(inner: Any, **options: Any) -> Encryption:
    return Encryption(inner, secret_keys=options.pop("secret_keys", KEYS), **options)


async def plain(key: str) -> list[Any]:
    """What a store without the layer answers."""
    async with MemoryStorageBackend() as memory:
        await fill(memory, key, SECRET)
        return await read(memory, key)


async def test_values_come_back_as_they_were() -> None:
    """Wherever they stand, by every way in and out."""
    async with encrypted(MemoryStorageBackend()) as layer:
        await fill(layer, "s", SECRET)
        assert await read(layer, "s") == await plain("s")


async def test_the_store_holds_nothing_readable() -> None:
    """No value of any kind, in no form: neither in rows nor in the records that replication reads."""
    async with encrypted(MemoryStorageBackend()) as layer:
        await fill(layer, "s", SECRET)
        memory = layer.inner
        held = repr(await read(memory, "s")) + repr(await memory.read_records(open_only=False))
        assert SECRET not in held
        session = await memory.get_session("s")
        assert session is not None
        assert (session["user_id"], session["status"], session["request_count"]) == ("user-1", "paused", 1)


async def test_the_whole_chain_keeps_both_stores_equal() -> None:
    """Namespace, batching, compression, encryption, dual_write: what is read is what was written, both stores hold one form."""
    one, two = MemoryStorageBackend(name="one"), MemoryStorageBackend(name="two")
    pair = DualWrite(one, two, durable_at_least="volatile")
    async with Namespace(Batching(Compression(encrypted(pair))), tenant="acme") as chain:
        await fill(chain, "s", SECRET * 200)
        assert SECRET in repr(await read(chain, "s"))
        assert await read(one, "4:acme:s") == await read(two, "4:acme:s")
        assert SECRET not in repr(await read(one, "4:acme:s"))


async def swapped(memory: MemoryStorageBackend, kind: str, layer: Encryption) -> Awaitable[Any]:
    """Copies one encrypted value to another place, as somebody with the right to write to the store could; then reads it."""
    match kind:
        case "metadata":
            session = await memory.get_session("a")
            await memory.create_session("b", "u", session["metadata"])  # type: ignore[index]
            return layer.get_session("b")
        case "field":
            session = await memory.get_session("a")
            await memory.update_session("a", {"other": session["custom"]})  # type: ignore[index]
            return layer.get_session("a")
        case "field to metadata":
            session = await memory.get_session("a")
            await memory.update_session("a", {"metadata": session["custom"]})  # type: ignore[index]
            return layer.get_session("a")
        case "message":
            [message, *_] = await memory.get_conversation_history("a")
            await memory.add_conversation_message("a", "user", "", message["metadata"])
            return layer.get_conversation_history("a")
        case "checkpoint":
            checkpoint = await memory.get_checkpoint("a", "c")
            await memory.store_checkpoint("a", "x", checkpoint["data"], checkpoint["metadata"])  # type: ignore[index]
            return layer.get_checkpoint("a", "x")
        case "thread":
            checkpoint = await memory.get_checkpoint("a", "c")
            await memory.store_checkpoint("b", "c", checkpoint["data"], checkpoint["metadata"])  # type: ignore[index]
            return layer.get_checkpoint("b", "c")
        case "data to metadata":
            checkpoint = await memory.get_checkpoint("a", "c")
            await memory.store_checkpoint("a", "c", checkpoint["data"], checkpoint["data"])  # type: ignore[index]
            return layer.get_checkpoint("a", "c")
        case "writes":
            await memory.put_writes("a", "d", "task", await memory.get_writes("a", "c"))
            return layer.get_writes("a", "d")
        case _:
            await memory.store_task_context("b", await memory.get_task_context("a"))
            return layer.get_task_context("b")


@pytest.mark.parametrize(
    "kind",
    [
        "metadata",
        "field",
        "field to metadata",
        "message",
        "checkpoint",
        "thread",
        "data to metadata",
        "writes",
        "context",
    ],
)
@pytest.mark.parametrize("strict", [True, False])
async def test_a_value_in_the_wrong_place_is_refused(kind: str, strict: bool) -> None:
    """The address is part of what is authenticated: rows cannot be swapped, strict or not."""
    async with MemoryStorageBackend() as memory:
        layer = encrypted(memory, strict=strict)
        await fill(layer, "a", SECRET)
        reading = await swapped(memory, kind, layer)
        with pytest.raises(DataCorruptionError, match="changed, or belongs elsewhere"):
            await reading
        assert layer.state.refused == 1


async def test_a_row_of_another_tenant_is_refused() -> None:
    """The tenant is in the address, because the namespace stands outside."""
    async with MemoryStorageBackend() as memory:
        mine, theirs = (Namespace(encrypted(memory), tenant=name) for name in ("mine", "theirs"))
        await theirs.store_task_context("s", SECRET)
        await memory.store_task_context("4:mine:s", await memory.get_task_context("6:theirs:s"))
        with pytest.raises(DataCorruptionError):
            await mine.get_task_context("s")


async def test_any_flipped_bit_is_noticed() -> None:
    """In header, iv, ciphertext or tag."""
    keys, address = Keys.parse(KEYS, None), pack(("context", "s"))
    sealed = keys.seal(address, "op", b"value")
    assert keys.unseal(address, sealed) == ("one", b"value")
    for at in range(len(sealed)):
        for bit in (1, 128):
            forged = sealed[:at] + bytes([sealed[at] ^ bit]) + sealed[at + 1 :]
            with pytest.raises((TamperedError, LookupError)):
                keys.unseal(address, forged)
    for end in range(len(sealed)):
        with pytest.raises((TamperedError, LookupError)):
            keys.unseal(address, sealed[:end])


def test_no_two_addresses_are_one() -> None:
    """Ids may hold anything, also what separates the parts of an address elsewhere."""
    places = [
        ("a", "bc"),
        ("ab", "c"),
        ("a", "b", "c"),
        ("a", "", "bc"),
        ("a\x00", "bc"),
        ("", "abc"),
        ("abc",),
    ]
    assert len({pack(place) for place in places}) == len(places)


def test_equal_values_differ_but_for_the_same_operation() -> None:
    """Nobody can see that two messages say the same; a write that is sent again is the same bytes again."""
    keys, address = Keys.parse(KEYS, None), pack(("context", "s"))
    first = keys.seal(address, "op", b"value")
    assert keys.seal(address, "op", b"value") == first
    others = [
        keys.seal(address, "op2", b"value"),
        keys.seal(pack(("context", "t")), "op", b"value"),
        keys.seal(address, "op", b"valuf"),
    ]
    ivs = {sealed[5:33] for sealed in (first, *others)}
    assert len(ivs) == 4


async def test_a_repeat_is_recognised() -> None:
    """The same op_id with the same value is one write, with another value a conflict; a restart changes nothing."""
    async with MemoryStorageBackend() as memory:
        for _ in range(2):
            async with operation("mine"):
                await encrypted(memory).add_conversation_message("s", "user", SECRET)
        assert len(await memory.get_conversation_history("s")) == 1
        with pytest.raises(ConflictError):
            async with operation("mine"):
                await encrypted(memory).add_conversation_message("s", "user", "other")


async def test_what_a_store_knows_a_write_by_confirms_no_guess() -> None:
    """The fingerprint of a short secret could be tried out; it is keyed."""
    scripted = await store()
    seen: list[Mutation] = []
    original = scripted.apply

    async def apply(mutations: Any) -> Any:
        seen.extend(mutations)
        return await original(mutations)

    scripted.apply = apply  # type: ignore[method-assign]
    layers = encrypted(scripted), encrypted(scripted, secret_keys={"one": OTHER})
    for n, layer in enumerate(layers):
        async with operation(f"op{n}"):
            await layer.store_task_context("s", "yes")
    async with MemoryStorageBackend() as memory:
        async with operation("op"):
            await memory.store_task_context("s", "yes")
        [record] = (await memory.read_records(open_only=False)).records
    assert len({record.fingerprint, *(mutation.fingerprint for mutation in seen)}) == 3


async def test_keys_are_rotated() -> None:
    """A new key writes, the old one reads; without it the old values are refused, with its name."""
    async with MemoryStorageBackend() as memory:
        await encrypted(memory).store_task_context("old", SECRET)
        both = encrypted(memory, secret_keys={"one": KEY, "two": OTHER}, active_key="two")
        await both.store_task_context("new", SECRET)
        assert await both.get_task_context("old") == SECRET
        assert await both.get_task_context("new") == SECRET
        assert both.state.opened == {"one": 1, "two": 1}
        late = encrypted(memory, secret_keys={"two": OTHER})
        assert await late.get_task_context("new") == SECRET
        with pytest.raises(DataCorruptionError, match="its key 'one' is not among secret_keys"):
            await late.get_task_context("old")


async def test_a_repeat_across_a_rotation_is_a_conflict() -> None:
    """It is refused rather than applied twice or taken for the same: nobody without the old key can tell."""
    async with MemoryStorageBackend() as memory:
        for options in ({}, {"secret_keys": {"one": KEY, "two": OTHER}, "active_key": "two"}):
            async with operation("mine"):
                writing = encrypted(memory, **options).add_conversation_message("s", "user", SECRET)
                if options:
                    with pytest.raises(ConflictError):
                        await writing
                else:
                    await writing
        assert len(await memory.get_conversation_history("s")) == 1


async def test_another_key_of_the_same_name_opens_nothing() -> None:
    """A name is no key."""
    async with MemoryStorageBackend() as memory:
        await encrypted(memory).store_task_context("s", SECRET)
        with pytest.raises(DataCorruptionError):
            await encrypted(memory, secret_keys={"one": OTHER}).get_task_context("s")


PLAIN_READS: dict[str, Callable[[Encryption], Awaitable[Any]]] = {
    "session": lambda layer: layer.get_session("s"),
    "sessions": lambda layer: layer.list_sessions(),
    "batch": lambda layer: layer.batch_get_sessions(["s"]),
    "history": lambda layer: layer.get_conversation_history("s"),
    "checkpoint": lambda layer: layer.get_checkpoint("s"),
    "checkpoints": lambda layer: layer.list_checkpoints("s"),
    "writes": lambda layer: layer.get_writes("s", "c"),
    "context": lambda layer: layer.get_task_context("s"),
    "contexts": lambda layer: layer.list_task_contexts("s"),
}


@pytest.mark.parametrize("what", PLAIN_READS, ids=str)
async def test_strict_refuses_plaintext(what: str, events: list[telemetry.Event]) -> None:
    """Somebody who can write to the store cannot pass off words of their own; without strict they are read and counted."""
    async with MemoryStorageBackend() as memory:
        await fill(memory, "s", SECRET)
        layer = encrypted(memory)
        with pytest.raises(DataCorruptionError, match="not encrypted"):
            await PLAIN_READS[what](layer)
        assert [(event.name, event.attributes["reason"]) for event in events] == [
            (telemetry.CIPHERTEXT_REFUSED, "plaintext")
        ]
        lenient = encrypted(memory, strict=False)
        assert SECRET in repr(await PLAIN_READS[what](lenient))
        assert lenient.state.plain >= 1
        assert events[-1].name == telemetry.PLAINTEXT_READ


async def test_a_store_fills_up_with_encrypted_values() -> None:
    """The way from plaintext to strict: what is written anew is encrypted, both are read meanwhile."""
    async with MemoryStorageBackend() as memory:
        await fill(memory, "old", SECRET)
        layer = encrypted(memory, strict=False)
        await fill(layer, "new", SECRET)
        assert SECRET in repr(await read(layer, "old"))
        assert SECRET in repr(await read(layer, "new"))
        assert SECRET in repr(await encrypted(memory).get_session("new"))


async def test_a_value_that_looks_like_ours_is_kept() -> None:
    """It is encrypted like any other, and comes back."""
    value = {Encryption.mark: b"\x01\x03one"}
    async with encrypted(MemoryStorageBackend()) as layer:
        await layer.add_conversation_message("s", "user", "hi", value)
        await layer.store_task_context("s", value)
        assert (await layer.get_conversation_history("s"))[0]["metadata"] == value
        assert await layer.get_task_context("s") == value


async def test_a_replayed_record_passes_as_it_is() -> None:
    """What a peer holds is sealed already; sealing it again would make two stores of one."""
    async with encrypted(MemoryStorageBackend()) as source, encrypted(MemoryStorageBackend()) as target:
        await source.add_conversation_message("s", "user", SECRET)
        [record] = (await source.read_records(open_only=False)).records
        record.replay = True
        assert record.kind == Kind.MESSAGE
        await target.apply([record])
        assert (await target.get_conversation_history("s"))[0]["content"] == SECRET


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"secret_keys": None}, "needs keys"),
        ({"secret_keys": {}}, "openssl rand"),
        ({"secret_keys": {"a": KEY, "b": OTHER}}, "active_key must say which of a, b"),
        ({"secret_keys": {"a": KEY}, "active_key": "b"}, "'b' is none of secret_keys: a"),
        ({"secret_keys": {"a": "short"}}, "'a' is not 32 bytes"),
        ({"secret_keys": {"a": KEY[:-4]}}, "'a' is not 32 bytes"),
        ({"secret_keys": {"a": "z" * 64}}, "'a' is not 32 bytes"),
        ({"secret_keys": {"": KEY}}, "name of a key"),
        ({"secret_keys": {"x" * 256: KEY}}, "name of a key"),
    ],
    ids=str,
)
def test_impossible_keys_are_refused(options: dict[str, Any], told: str) -> None:
    """When the chain is built, and without showing any of a key."""
    with pytest.raises(ConfigurationError, match=told) as caught:
        Encryption(MemoryStorageBackend(), **options)
    for text in (options["secret_keys"] or {}).values():
        assert text not in str(caught.value)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setattr("aiecs_resilient.layers.encryption.find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match=r"pip install .aiecs-resilient\[encryption\]"):
        encrypted(MemoryStorageBackend())


async def test_it_is_seen_in_reports_without_its_keys() -> None:
    """Name of the key, counts; never a key, in no report, repr or error."""
    async with encrypted(MemoryStorageBackend()) as layer:
        await layer.store_task_context("s", SECRET)
        await layer.get_task_context("s")
        facts = {
            "active_key": "one",
            "strict": True,
            "sealed": 1,
            "opened": {"one": 1},
            "plain": 0,
            "refused": 0,
        }
        assert (await layer.get_metrics())["layers"]["encryption"] == facts
        assert (await layer.health_check())["layers"]["encryption"] == facts
        assert repr(layer).startswith("<Encryption key 'one', strict, 0 refused over ")
        assert KEY not in repr(layer) + repr(vars(layer))
        assert repr(bytes(range(32))) not in repr(vars(layer))
        assert encrypted(layer.inner, state=layer.state).state is layer.state


@pytest.mark.parametrize("size", [100, 2_000_000], ids=["at once", "in a thread"])
async def test_a_cancellation_passes(size: int) -> None:
    """At whichever wait, also while a thread is at work."""
    value = os.urandom(size)

    async def scenario() -> tuple[Awaitable[object], Callable[[], Awaitable[None]]]:
        layer = encrypted(await store(Delay(0.001)))

        async def check() -> None:
            assert await layer.get_session("s") is None

        return layer.store_task_context("s", value), check

    assert await cancel_everywhere(scenario) >= 1
