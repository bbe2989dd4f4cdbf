"""Ids: any Unicode text of 1 to 512 characters, and no two ever meet (C10)."""

from __future__ import annotations

import random

import pytest

from ...errors import InvalidValueError
from ...interface import Backend
from ._base import ContractBase, contents, fresh, say

HOSTILE_IDS = [
    " ", "  ", ":", "::", "{", "}", "{}", "{a}", "{a}b", "*", "?", "[a]", "\\", "/", "//", ".", "..", "../..", "/etc/passwd",
    "a/../b", "%", "%s", "%00", "%2F", "_", "'", '"', "';--", "' OR 1=1 --", "$1", "${x}", "{{x}}", "`", "|", "&&",
    "\n", "\r\n", "\t", "\x00", "a\x00", "\x00a", "a\x00b", "\x01", "\x1b", "\x1b0", "\x1be", "\x1bh", "\x7f", "\x85",
    "a", "A", "á", "a\u0301", "\u00e5", "\u212b", "ﬁ", "fi", "ß", "ss", "İ", "i̇", "ı", "\u200b", "a\u200b", "\ufeff",
    "a\ufeff", "\u202e", "\u2028", "\ufffd", "\uffff", "\U0010ffff", "😀", "👩‍👩‍👧", "🇩🇪", "日本語", "العربية", "עברית", "ไทย",
    "null", "None", "true", "0", "-1", "1e3", "NaN", "undefined", "session", "sessions:1", "a:b", "a: b", "a :b", "ab:",
    "x" * 511, "x" * 512, "x" * 255, "x" * 256, "é" * 512, "😀" * 512, "\x00" * 512, ":" * 512, "x" * 511 + "y", "/" * 300,
]  # fmt: skip
"""Ids that naive keys, patterns, paths, SQL, C strings or Unicode folding would confuse."""

REFUSED_IDS = ["", "x" * 513, "\ud800", "a\udfff", "\ud83d", "x" * 10_000]


def random_ids(count: int, seed: int) -> list[str]:
    """Distinct short ids made of the characters that most often mean something to somebody."""
    chooser = random.Random(seed)  # noqa: S311  reproducible, not secret
    alphabet = "ab:{}*/.%\\\n\x00\x1be0h_é😀"
    found: set[str] = set()
    while len(found) < count:
        found.add("".join(chooser.choices(alphabet, k=chooser.randint(1, 6))))
    return sorted(found)


class IdContract(ContractBase):
    """Ids are data."""

    async def test_every_id_keeps_its_own_data(self, storage: Backend) -> None:
        """No two hostile ids collide, as session, thread, checkpoint or task; each reads back what it was given."""
        ids = list(dict.fromkeys([*HOSTILE_IDS, *random_ids(80, seed=20)]))
        run = fresh("")
        keys = [id if len(id) > 460 else f"{id}{run}" for id in ids]
        assert len(set(keys)) == len(keys)
        await storage.batch_create_sessions([{"session_id": key, "user_id": key} for key in keys])
        mark = await storage.batch_add_conversation_messages(
            [{"session_id": key, "role": "user", "content": f"{run}{n}"} for n, key in enumerate(keys)]
        )
        assert mark == [True] * len(keys)
        for n, (key, session) in enumerate(zip(keys, await storage.batch_get_sessions(keys), strict=True)):
            assert session is not None
            assert (session["session_id"], session["user_id"]) == (key, key)
            assert contents(await storage.get_conversation_history(key, 1)) == [f"{run}{n}"]
        for key in keys:
            if len(key) > 460:
                await storage.delete_session(key)

    async def test_ids_may_begin_with_anything(self, storage: Backend) -> None:
        """The beginning of an id is as free as its end."""
        run = fresh("")
        keys = [f"{run}{id}" for id in HOSTILE_IDS if len(id) < 400]
        await storage.batch_create_sessions([{"session_id": key, "user_id": "u"} for key in keys])
        found = await storage.batch_get_sessions(keys)
        assert [session and session["session_id"] for session in found] == keys

    async def test_checkpoint_and_task_ids_never_meet(self, storage: Backend) -> None:
        """Within a thread, checkpoint and task ids are as free as thread ids, and so is the border between them."""
        thread = fresh("t")
        ids = list(dict.fromkeys([*HOSTILE_IDS[::3], *random_ids(30, seed=21)]))
        for n, id in enumerate(ids):
            await storage.store_checkpoint(thread, id, {"n": n})
            await storage.put_writes(thread, id, ids[-1 - n], [(ids[-1 - n], n)])
        for n, id in enumerate(ids):
            checkpoint = await storage.get_checkpoint(thread, id)
            assert checkpoint is not None
            assert (checkpoint["checkpoint_id"], checkpoint["data"]) == (id, {"n": n})
            assert await storage.get_writes(thread, id) == [(ids[-1 - n], n)]

    @pytest.mark.parametrize(
        ("one", "two"),
        [
            (("a:b", "c"), ("a", "b:c")),
            (("a", "b"), ("a:b", "")),
            (("a\x00", "b"), ("a", "\x00b")),
            (("{a", "}b"), ("{a}", "b")),
        ],
    )
    async def test_the_border_between_ids_is_kept(
        self, storage: Backend, one: tuple[str, str], two: tuple[str, str]
    ) -> None:
        """(thread, checkpoint) pairs whose joined text is equal stay apart."""
        run = fresh("")
        for thread, checkpoint in (one, two):
            await storage.store_checkpoint(f"{run}{thread}", checkpoint or "-", {"of": [thread, checkpoint]})
        for thread, checkpoint in (one, two):
            found = await storage.list_checkpoints(f"{run}{thread}")
            assert {"of": [thread, checkpoint]} in [item["data"] for item in found]

    @pytest.mark.parametrize("id", REFUSED_IDS, ids=["empty", "513", "high", "low", "half an emoji", "10000"])
    async def test_impossible_ids_are_refused(self, storage: Backend, id: str) -> None:
        """Empty, over 512 characters or with a lone surrogate: InvalidValueError on every operation, also on reads."""
        key = fresh()
        for call in (
            storage.create_session(id, "u"),
            storage.get_session(id),
            storage.update_session(id),
            storage.end_session(id),
            storage.delete_session(id),
            storage.add_conversation_message(id, "user", "x"),
            storage.get_conversation_history(id),
            storage.store_checkpoint(id, "c", {}),
            storage.store_checkpoint(key, id, {}),
            storage.get_checkpoint(id),
            storage.get_checkpoint(key, id),
            storage.list_checkpoints(id),
            storage.put_writes(key, "c", id, []),
            storage.get_writes(key, id),
            storage.store_task_context(id, 1),
            storage.get_task_context(id),
            storage.batch_get_sessions([key, id]),
            storage.batch_add_conversation_messages([{"session_id": id, "role": "user", "content": "x"}]),
        ):
            with pytest.raises(InvalidValueError) as caught:
                await call
            assert caught.value.outcome == "not_applied"

    async def test_a_bad_item_spoils_nothing_of_its_batch(self, storage: Backend) -> None:
        """A batch with one impossible item is refused before anything of it is written."""
        key = fresh()
        with pytest.raises(InvalidValueError):
            await storage.batch_create_sessions(
                [{"session_id": key, "user_id": "u"}, {"session_id": "", "user_id": "u"}]
            )
        assert await storage.get_session(key) is None

    async def test_prefixes_do_not_match(self, storage: Backend) -> None:
        """Deleting one id leaves those alone that begin or end like it or would match it as a pattern."""
        run = fresh("")
        victim = f"{run}*"
        others = [f"{run}", f"{run}**", f"{run}*:", f"{run}x", f"x{run}*", f"{run}%", f"{run}_"]
        for key in (victim, *others):
            await storage.create_session(key, "u")
            await say(storage, key, key)
        await storage.delete_session(victim)
        assert await storage.get_session(victim) is None
        for key in others:
            assert await storage.get_session(key) is not None
            assert contents(await storage.get_conversation_history(key)) == [key]
