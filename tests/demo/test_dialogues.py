"""The dialogues are real, complete, and the same for the same seed."""

from itertools import islice
from pathlib import Path

import pytest

from aiecs_resilient.demo.dialogues import (
    Conversation,
    DialoguesNotInstalledError,
    chain_into_sessions,
    load_conversations,
)


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    return load_conversations()


def test_the_whole_corpus_is_there(conversations: list[Conversation]) -> None:
    """Nothing of the corpus is skipped, also not the few entries that are one line."""
    assert len(conversations) == 7644
    assert len({conversation.language for conversation in conversations}) == 28


def test_lines_stay_text(conversations: list[Conversation]) -> None:
    """YAML would read the answer "No" as false, and a year as a number."""
    lines = {line for conversation in conversations for line in conversation.lines}
    assert all(isinstance(line, str) and line for line in lines)
    assert "No." in lines or "No" in lines


def test_every_language_takes_part(conversations: list[Conversation]) -> None:
    """Languages take turns, so that a short run stores every script."""
    scripts = list(islice(chain_into_sessions(conversations, seed=3), 28))
    assert len({script.language for script in scripts}) == 28
    assert all(4 <= len(script.exchanges) <= 9 for script in scripts)


def test_a_seed_names_one_run(conversations: list[Conversation]) -> None:
    """Equal seeds give equal sessions, other seeds others."""
    first, again, other = (
        list(islice(chain_into_sessions(conversations, seed=seed), 100)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert len({script.session_id for script in first}) == 100


def test_a_corpus_without_conversations_is_one_clear_error(tmp_path: Path) -> None:
    """The message says how to get the dialogues."""
    (tmp_path / "english").mkdir()
    (tmp_path / "english" / "empty.yml").write_text("categories: [none]\n", encoding="utf-8")
    with pytest.raises(DialoguesNotInstalledError, match="pip install"):
        load_conversations(tmp_path)


def test_a_document_can_build_nothing_but_text(tmp_path: Path) -> None:
    """A tag that would call something in an unsafe loader is no more than the text behind it."""
    (tmp_path / "english").mkdir()
    (tmp_path / "english" / "evil.yml").write_text(
        "conversations:\n- - !!python/object/apply:os.getcwd []\n  - hello\n", encoding="utf-8"
    )
    assert load_conversations(tmp_path) == [Conversation("english", ("hello",))]
