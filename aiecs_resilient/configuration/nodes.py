"""A configuration as a tree whose every value knows where it was written: the same for a file and for a mapping."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .errors import Place
from .secrets import is_secret_name, redact

Plain = str | int | float | bool | None

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(
    r"[-+]?([0-9]+\.[0-9]*([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
)
_WORDS: dict[str, Plain] = {"": None, "~": None, "null": None, "true": True, "false": False}
_LONGEST_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value.

    Attributes:
        text: as written, after substitution.
        value: with its type.
        variables: environment variables it names; such a value fits a text option whatever it looks like, and is
            never shown in an error.
        defaulted: none of them was set.
        broken: already reported; what reads it says nothing more.
    """

    place: Place
    text: str
    value: Plain
    variables: tuple[str, ...] = ()
    defaulted: bool = False
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    place: Place
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a mapping, with its own place, and its value."""

    place: Place
    node: Node


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping."""

    place: Place
    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])


Node = Scalar | Items | Table


def resolve(text: str) -> Plain:
    """A plain scalar's type, by the few rules that surprise nobody: ``on``, ``yes``, ``1:30`` and ``0x1F`` stay text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INT.fullmatch(text):
        return int(text) if len(text) < 40 else text  # beyond that it is no setting of anything
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def is_broken(node: Node) -> bool:
    """Whether something in it was reported already."""
    match node:
        case Scalar():
            return node.broken
        case Items():
            return any(is_broken(item) for item in node.items)
        case Table():
            return any(is_broken(entry.node) for entry in node.entries.values())


def scalars(node: Node) -> Iterator[Scalar]:
    """All scalars in it."""
    match node:
        case Scalar():
            yield node
        case Items():
            for item in node.items:
                yield from scalars(item)
        case Table():
            for entry in node.entries.values():
                yield from scalars(entry.node)


def show(node: Node, name: str = "") -> str:
    """A value as an error may show it: no password, and nothing that came from the environment."""
    match node:
        case Items():
            return "a list"
        case Table():
            return "a mapping"
        case Scalar(variables=(first, *_), defaulted=False):
            return f"the value of ${{{first}}}"
        case Scalar(value=None):
            return "nothing"
        case Scalar():
            if is_secret_name(name):
                return "what is written there"
            text = redact(node.text)
            text = text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"
            if isinstance(node.value, str) and not isinstance(resolve(text), str):
                return f"the text {text!r} (without its quotes it would be none)"
            return repr(text)
