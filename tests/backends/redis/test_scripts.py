"""The scripts: found again after the server forgot them, and clean Lua."""

from __future__ import annotations

import asyncio
import re

import pytest

from aiecs_resilient.backends.redis import RedisStorageBackend
from aiecs_resilient.backends.redis._scripts import Script, load_scripts


async def test_forgotten_scripts_are_loaded_again(backend: RedisStorageBackend) -> None:
    """After SCRIPT FLUSH every kind of call works at once, and has one effect."""
    client = backend._use()
    await backend.create_session("s", "u")
    await client.one("SCRIPT", "FLUSH")
    assert await backend.update_session("s", increment_requests=True) is True
    await client.one("SCRIPT", "FLUSH")
    assert await backend.get_task_context("s") is None
    await client.one("SCRIPT", "FLUSH")
    assert [session["request_count"] for session in await backend.list_sessions()] == [1]
    await client.one("SCRIPT", "FLUSH")
    assert (await backend.store_state()).open_marks == 0


async def test_flushes_between_writes_lose_and_double_nothing(backend: RedisStorageBackend) -> None:
    """While somebody flushes all the time, batches keep their order and every increment counts once."""
    await backend.create_session("s", "u")
    done = asyncio.Event()

    async def flush() -> None:
        while not done.is_set():
            await backend._use().one("SCRIPT", "FLUSH")

    async def batch(n: int) -> None:
        items = [{"session_id": f"b{n}", "role": "user", "content": str(i)} for i in range(20)]
        for _ in range(5):
            await backend.batch_add_conversation_messages(items)
            await backend.update_session("s", increment_requests=True)

    flushing = asyncio.create_task(flush())
    await asyncio.gather(*(batch(n) for n in range(8)))
    done.set()
    await flushing
    for n in range(8):
        history = await backend.get_conversation_history(f"b{n}", 0)
        assert [item["content"] for item in history] == [str(i) for i in range(20)] * 5
    session = await backend.get_session("s")
    assert session is not None
    assert session["request_count"] == 40


@pytest.mark.parametrize("script", load_scripts().all, ids=lambda script: script.name)
def test_scripts_define_no_globals(script: Script) -> None:
    """A forgotten `local` is refused by the server only when that line runs: every assigned name is declared around it."""
    shared: set[str] = set()
    own: set[str] = set()
    for line in script.text.decode().splitlines():
        code = re.sub(r"--.*|'[^']*'", "", line)
        declared = _names(r"local ([\w, ]+)", code) | _names(r"function[ \w.\[\]]*\(([\w, ]*)\)", code)
        declared |= _names(r"for ([\w, ]+) (?:in|=)", code) | _names(r"local function (\w+)", code)
        if line.startswith(("local ", "function ", "MERGE[", "DECIDE[")):
            own = set()
            shared |= _names(r"^local (?:function )?([\w, ]+)", code)
        own |= declared
        # A field of a table ends with a comma, or with the brace that another line opened.
        statement = not re.search(r"\blocal\b|\bfor\b|,\s*$|^[^{]*}\s*$", code)
        assigned = _names(r"^\s*([\w, ]+?) = ", code) if statement else set[str]()
        assert assigned <= own | shared, line


@pytest.mark.parametrize("script", load_scripts().all, ids=lambda script: script.name)
def test_scripts_call_only_what_they_have(script: Script) -> None:
    """Every shared function that is called is defined in one of the script's parts."""
    text = re.sub(r"--.*", "", script.text.decode())
    assert set(re.findall(r"F\.(\w+)\(", text)) <= set(
        re.findall(r"^function F\.(\w+)\(", text, re.MULTILINE)
    )


def _names(pattern: str, code: str) -> set[str]:
    return {name.strip() for found in re.findall(pattern, code) for name in found.split(",") if name.strip()}
