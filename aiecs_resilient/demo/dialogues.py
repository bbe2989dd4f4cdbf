"""Real dialogues in 28 languages, chained into sessions.

Most conversations of the corpus have two lines; a session is several of one language in a row, as a user who asks one
thing after another. Languages take turns, so that every script and writing direction is stored while a server is down.
"""

from __future__ import annotations

import importlib.util
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import yaml

PACKAGE: Final = "chatterbot_corpus"
INSTALL: Final = "pip install 'aiecs-resilient[demo]'"

# Builds text, lists and dicts and nothing else: narrower than the safe loader, and the answer "No" stays a word.
_TEXT_LOADER: Final = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class DialoguesNotInstalledError(RuntimeError):
    """The corpus is not there; the message says how to get it."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Lines of two speakers in turn, the user first."""

    language: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """One session as it will be played."""

    session_id: str
    user_id: str
    language: str
    exchanges: tuple[tuple[str, ...], ...]  # a line of the user and, where there is one, the answer


def corpus_folder() -> Path:
    """Where the corpus keeps its YAML files."""
    package = importlib.util.find_spec(PACKAGE)  # finds it without importing it
    for place in (package.submodule_search_locations or []) if package is not None else []:
        folder = Path(place, "data")
        if folder.is_dir():
            return folder
    raise DialoguesNotInstalledError(
        f"the dialogues (package chatterbot-corpus) are missing; install them with: {INSTALL}"
    )


def load_conversations(folder: Path | None = None) -> list[Conversation]:
    """All conversations, in a stable order. The name of a file's folder is its language."""
    found: list[Conversation] = []
    for path in sorted((folder or corpus_folder()).glob("*/*.yml")):
        # S506: the loader above cannot build anything but text, lists and dicts
        document: object = yaml.load(path.read_text(encoding="utf-8"), Loader=_TEXT_LOADER)  # noqa: S506
        if not isinstance(document, dict):
            continue
        listed = cast("dict[str, object]", document).get("conversations")
        for entry in cast("list[object]", listed) if isinstance(listed, list) else []:
            lines = _lines(entry)
            if lines:
                found.append(Conversation(path.parent.name, lines))
    if not found:
        raise DialoguesNotInstalledError(
            f"no conversation in {folder or corpus_folder()}; install them with: {INSTALL}"
        )
    return found


def _lines(entry: object) -> tuple[str, ...]:
    """A few entries of the corpus are one line instead of a list of lines."""
    items = cast("list[object]", entry) if isinstance(entry, list) else [entry]
    return tuple(item.strip() for item in items if isinstance(item, str) and item.strip())


def chain_into_sessions(
    conversations: Sequence[Conversation], *, seed: int, exchanges: tuple[int, int] = (4, 9)
) -> Iterator[Script]:
    """Sessions without end: each of one language, with between ``exchanges`` exchanges; equal seeds give equal sessions."""
    draw = random.Random(seed)  # noqa: S311  a repeatable order, not a secret
    by_language: dict[str, list[Conversation]] = defaultdict(list)
    for conversation in conversations:
        by_language[conversation.language].append(conversation)
    languages = sorted(by_language)
    lines = {language: _exchanges_of(by_language[language], draw) for language in languages}
    number = 0
    while True:
        draw.shuffle(languages)
        for language in languages:
            number += 1
            count = draw.randint(*exchanges)
            yield Script(
                session_id=f"{language}-{number:05d}",
                user_id=f"user-{draw.randrange(10_000):04d}",
                language=language,
                exchanges=tuple(next(lines[language]) for _ in range(count)),
            )


def _exchanges_of(conversations: list[Conversation], draw: random.Random) -> Iterator[tuple[str, ...]]:
    """The exchanges of all conversations in a drawn order, then in another."""
    while True:
        order = conversations.copy()
        draw.shuffle(order)
        for conversation in order:
            for start in range(0, len(conversation.lines), 2):
                yield conversation.lines[start : start + 2]
