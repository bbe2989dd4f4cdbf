"""Text or mapping to nodes: a safe YAML composer that keeps places, and bounds on everything a file can make us do.

Only YAML's own structure is used (no constructor runs, tags are refused). Size, depth and the number of values after
following aliases are bounded, so that no "billion laughs" fits; a key given twice is an error, because one of the two
would be lost in silence.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

import yaml
from yaml.reader import ReaderError

from .environment import Substituted, substitute
from .errors import InvalidConfigurationError, Place, Problem, Problems, nearest
from .nodes import Entry, Items, Node, Plain, Scalar, Table, resolve

MAX_FILE_BYTES = 256 * 1024
MAX_VALUES = 10_000
MAX_DEPTH = 40
MAPPING = "configuration"
"""How a configuration given as a mapping is called in errors."""


def load(
    source: str | os.PathLike[str] | Mapping[str, object],
    problems: Problems,
    environment: Mapping[str, str] | None = None,
) -> Node:
    """The nodes of a file or a mapping. What prevents reading on is raised; everything else is noted in ``problems``."""
    variables = os.environ if environment is None else environment
    if isinstance(source, Mapping):
        return _Builder(problems, variables).from_object(source, Place(MAPPING), 0)
    return load_text(read_text(Path(source)), str(source), problems, variables)


def load_literal(source: Mapping[str, object], problems: Problems, name: str) -> Node:
    """The nodes of a mapping whose text means itself: a ``$`` in it is a dollar sign."""
    return _Builder(problems, None).from_object(source, Place(name), 0)


def read_text(path: Path) -> str:
    """A configuration file's text; ConfigurationError if it cannot be read or is no configuration's size."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        folder = path.parent
        names = sorted(item.name for item in folder.glob("*.y*ml")) if folder.is_dir() else []
        near = nearest(path.name, names)
        found = None if near is None else str(folder / near)
        problem = Problem(Place(str(path)), f"cannot be read: {error.strerror}", nearest=found)
        raise InvalidConfigurationError([problem]) from error
    if len(raw) > MAX_FILE_BYTES:
        message = f"over {MAX_FILE_BYTES:,} bytes, which is no configuration"
        raise InvalidConfigurationError([Problem(Place(str(path)), message)])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        place = Place(str(path), line, error.start - before.rfind(b"\n"))
        raise InvalidConfigurationError(
            [Problem(place, "not UTF-8", fix="save the file as UTF-8")]
        ) from error


def load_text(text: str, name: str, problems: Problems, environment: Mapping[str, str]) -> Node:
    """The nodes of YAML text; ``name`` is how errors call the file."""
    try:
        root = _Composer(text, name).get_single_node()
    except yaml.MarkedYAMLError as error:
        place = _place(name, error.problem_mark)
        line = text.splitlines()[place.line - 1 : place.line]
        bare = bool(line) and line[0][place.column - 2 : place.column] == "${"
        fix = 'inside { } or [ ] a variable needs quotes: "${NAME}"' if bare else None
        raise InvalidConfigurationError([Problem(place, _syntax(error), fix=fix)]) from error
    except ReaderError as error:
        before = text[: error.position]
        place = Place(name, before.count("\n") + 1, error.position - before.rfind("\n"))
        message = f"character #x{ord(text[error.position]):04x} is not allowed in YAML"
        raise InvalidConfigurationError([Problem(place, message)]) from error
    if root is None:
        message = "is empty: a configuration has `backends` and a `pipeline`"
        raise InvalidConfigurationError([Problem(Place(name, 1, 1), message)])
    return _Builder(problems, environment).from_yaml(root, name, ())


class _Composer(yaml.SafeLoader):
    """Composes nodes and never constructs an object. Depth is bounded before recursion can end the process."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        super().__init__(text)
        self.name = name
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = cast("yaml.Event", self.peek_event())  # type: ignore[no-untyped-call]
        if self._depth > MAX_DEPTH:
            self._refuse(event, f"nested deeper than {MAX_DEPTH} levels")
        tag = cast("str | None", getattr(event, "tag", None))
        if tag not in (None, "!", "tag:yaml.org,2002:str"):
            self._refuse(event, f"tags such as {tag!r} are not allowed")
        self._depth += 1
        try:
            node = super().compose_node(parent, index)
        finally:
            self._depth -= 1
        if tag is not None and isinstance(node, yaml.ScalarNode):
            node.style = '"'  # a text by its tag is a text like a quoted one
        return node

    def _refuse(self, event: yaml.Event, message: str) -> None:
        raise InvalidConfigurationError([Problem(_place(self.name, event.start_mark), message)])


class _Builder:
    """Makes our nodes, counting them."""

    def __init__(self, problems: Problems, environment: Mapping[str, str] | None) -> None:
        self._problems = problems
        self._environment = environment
        self._count = 0

    def _one_more(self, place: Place) -> None:
        self._count += 1
        if self._count > MAX_VALUES:
            message = f"more than {MAX_VALUES:,} values (aliases count as often as they are used)"
            raise InvalidConfigurationError([Problem(place, message)])

    # ------------------------------------------------------------------ from YAML

    def from_yaml(self, node: yaml.Node, name: str, above: tuple[int, ...]) -> Node:
        place = _place(name, node.start_mark)
        self._one_more(place)
        if id(node) in above:
            raise InvalidConfigurationError(
                [Problem(place, "this part contains itself through an alias, so it would have no end")]
            )
        above = (*above, id(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node.value, node.style is None, place)
        if isinstance(node, yaml.SequenceNode):
            return Items(place, tuple(self.from_yaml(item, name, above) for item in node.value))
        entries: dict[str, Entry] = {}
        for key_node, value_node in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            key_place = _place(name, key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                self._problems.add(key_place, "a key must be a name, not a list or a mapping")
                continue
            key = str(key_node.value)
            if key in entries:
                first = entries[key].place
                self._problems.add(
                    key_place,
                    f"key {key!r} is given twice, first in line {first.line}",
                    fix="remove one of them",
                )
                continue
            entries[key] = Entry(key_place, self.from_yaml(value_node, name, above))
        return Table(place, entries)

    # ------------------------------------------------------------------ from a mapping

    def from_object(self, value: object, place: Place, depth: int) -> Node:
        self._one_more(place)
        if depth > MAX_DEPTH:
            message = f"nested deeper than {MAX_DEPTH} levels, or contains itself"
            raise InvalidConfigurationError([Problem(place, message)])
        if isinstance(value, Mapping):
            entries: dict[str, Entry] = {}
            for key, item in cast("Mapping[object, object]", value).items():
                if not isinstance(key, str):
                    self._problems.add(place, f"a key must be text, not {type(key).__name__}")
                    continue
                below = place.below(key)
                entries[key] = Entry(below, self.from_object(item, below, depth + 1))
            return Table(place, entries)
        if isinstance(value, str):
            return self._scalar(value, False, place)
        if value is None or isinstance(value, bool | int | float):
            return Scalar(place, "" if value is None else str(value), value)
        if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
            items = cast("Sequence[object]", value)
            return Items(
                place,
                tuple(self.from_object(item, place.below(n), depth + 1) for n, item in enumerate(items)),
            )
        if isinstance(value, os.PathLike):
            return Scalar(place, str(cast("object", value)), str(cast("object", value)))
        self._problems.add(place, f"{type(value).__name__} is nothing that YAML could hold")
        return Scalar(place, "", None, broken=True)

    # ------------------------------------------------------------------ scalars

    def _scalar(self, text: str, plain: bool, place: Place) -> Scalar:
        done = Substituted(text) if self._environment is None else substitute(text, self._environment)
        for message, missing in done.errors:
            fix = f"set it, or give a default: ${{{missing}:-…}}" if missing else None
            near = nearest(missing, self._environment) if missing and self._environment else None
            self._problems.note(Problem(place, message, nearest=near, fix=fix))
        value: Plain = resolve(done.text) if plain or done.variables else done.text
        return Scalar(place, done.text, value, done.variables, done.defaulted, bool(done.errors))


class _Mark(Protocol):
    line: int
    column: int


def _place(name: str, mark: _Mark | None) -> Place:
    return Place(name) if mark is None else Place(name, mark.line + 1, mark.column + 1)


def _syntax(error: yaml.MarkedYAMLError) -> str:
    """The parser's words without its extract of the file, which may hold a password."""
    return (
        f"not valid YAML: {error.problem}"
        if error.context is None
        else f"not valid YAML: {error.problem} ({error.context})"
    )
