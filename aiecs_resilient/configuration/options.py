"""The options of a layer or backend, read from its constructor: the signature is the only place they are written."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic import Field as ModelField

from ..units import Unit
from .annotations import (
    EnvironmentText,
    NotWritableError,
    choices_of,
    describe,
    format_value,
    unit_of,
    writable,
)
from .errors import Place, Problems
from .nodes import Items, Node, Plain, Scalar, Table, is_broken, scalars, show
from .secrets import MASK, is_secret_name, redact

NOT_OPTIONS = frozenset({"self", "inner", "state", "name"})
"""What assembly supplies: the wrapped backend, state that survives a reload, and the name given in YAML."""

Call = Callable[..., object]


@dataclass(frozen=True, slots=True)
class Option:
    """One keyword of a constructor, as YAML sees it.

    Attributes:
        parameter: the keyword's name in code.
        key: its name in YAML; another one only where a backend has an alias (``redis_url`` is written ``url``).
    """

    parameter: str
    key: str
    annotation: Any
    required: bool
    default: object
    description: str = ""

    @property
    def unit(self) -> Unit | None:
        """What a bare number means."""
        return unit_of(self.annotation)

    def text(self, value: object) -> str:
        """The value as YAML would write it, without secrets."""
        if is_secret_name(self.key) and value is not None:
            return MASK
        return redact(format_value(value, self.unit))


@dataclass(frozen=True, slots=True)
class Value:
    """An option's value and where it came from.

    Attributes:
        place: None for a default.
        variables: environment variables it was made of; ``defaulted`` if none of them was set.
    """

    option: Option
    value: object
    place: Place | None = None
    variables: tuple[str, ...] = ()
    defaulted: bool = False


@dataclass(frozen=True)
class Options:
    """All options of one callable, and the model that validates them."""

    all: tuple[Option, ...]
    model: type[BaseModel]
    by_key: Mapping[str, Option] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_key", {option.key: option for option in self.all})

    def read(
        self, what: str, table: Table, problems: Problems, *, ignore: tuple[str, ...] = ()
    ) -> dict[str, Value]:
        """The values for what is written in ``table``; everything wrong is noted under the name ``what``."""
        given = {key: entry for key, entry in table.entries.items() if key not in ignore}
        for key, entry in given.items():
            if key not in self.by_key:
                known = (*ignore, *self.by_key)
                if known:
                    problems.add(entry.place, f"unknown option {key!r} of {what}", allowed=known, given=key)
                else:
                    problems.add(entry.place, f"unknown option {key!r}: {what} has no options")
        missing = [option.key for option in self.all if option.required and option.key not in given]
        for key in missing:
            problems.add(
                table.place, f"{what} needs the option {key!r}: {describe(self.by_key[key].annotation)}"
            )
        good = {key: e.node for key, e in given.items() if key in self.by_key and not is_broken(e.node)}
        values = self._validate(what, good, problems)
        return {
            option.parameter: _sourced(option, values[option.key], good[option.key])
            if option.key in values
            else Value(option, option.default)
            for option in self.all
            if option.key in values or not option.required
        }

    def _validate(self, what: str, nodes: Mapping[str, Node], problems: Problems) -> dict[str, object]:
        data = {key: plain(node) for key, node in nodes.items()}
        for option in self.all:  # what is missing was reported with its place
            if option.required and option.key not in data:
                data[option.key] = None
        try:
            model = self.model.model_validate(data)
        except ValidationError as error:
            for wrong in error.errors(include_url=False, include_context=False, include_input=False):
                key = str(wrong["loc"][0])
                if key in nodes:
                    self._note(what, self.by_key[key], nodes[key], wrong["loc"][1:], problems)
            return {}
        return {key: getattr(model, _field(self.by_key[key])) for key in nodes}

    def _note(
        self, what: str, option: Option, node: Node, path: tuple[int | str, ...], problems: Problems
    ) -> None:
        name, found = option.key, node
        for step in path:
            if isinstance(found, Table) and step in found.entries:
                found, name = found.entries[str(step)].node, f"{name}.{step}"
            elif isinstance(found, Items) and isinstance(step, int) and step < len(found.items):
                found, name = found.items[step], f"{name}[{step}]"
        choices = choices_of(option.annotation)
        problems.add(
            found.place,
            f"option {name!r} of {what} must be {describe(option.annotation)}, not {show(found, option.key)}",
            allowed=choices,
            given=found.text if choices and isinstance(found, Scalar) else None,
        )


def plain(node: Node) -> object:
    """A node as plain data; text from the environment stays recognisable, because there everything is text."""
    match node:
        case Scalar():
            return EnvironmentText(node.text) if node.variables else node.value
        case Items():
            return [plain(item) for item in node.items]
        case Table():
            return {key: plain(entry.node) for key, entry in node.entries.items()}


def _sourced(option: Option, value: object, node: Node) -> Value:
    parts = [scalar for scalar in scalars(node) if scalar.variables]
    variables = tuple(dict.fromkeys(name for scalar in parts for name in scalar.variables))
    defaulted = bool(parts) and all(scalar.defaulted for scalar in parts)
    return Value(option, value, node.place, variables, defaulted)


def _field(option: Option) -> str:
    """The field's name in the model: a prefix keeps clear of pydantic's own names."""
    return f"option_{option.parameter}"


def options_of(
    target: Call, *, aliases: Mapping[str, str] | None = None, also_not: tuple[str, ...] = ()
) -> Options:
    """The options of a class or function.

    Args:
        aliases: parameter → its name in YAML.
        also_not: parameters that are no options besides ``inner``, ``state`` and ``name``: the branches of a layer.
    """
    return _options_of(target, tuple((aliases or {}).items()), also_not)


@lru_cache(maxsize=256)
def _options_of(target: Call, aliases: tuple[tuple[str, str], ...], also_not: tuple[str, ...]) -> Options:
    function = (
        cast("Call", inspect.getattr_static(target, "__init__")) if isinstance(target, type) else target
    )
    hints = get_type_hints(function, include_extras=True)
    described = _descriptions(f"{inspect.getdoc(target) or ''}\n\n{inspect.getdoc(function) or ''}")
    renamed, options = dict(aliases), list[Option]()
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in NOT_OPTIONS or parameter.name in also_not or parameter.name.startswith("_"):
            continue
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        required = parameter.default is parameter.empty
        annotation = hints.get(parameter.name, Any)
        try:
            writable(annotation)
        except NotWritableError:
            if required:
                raise
            continue  # a clock, a tracer, a source of randomness: for code only
        key = renamed.get(parameter.name, parameter.name)
        default = None if required else cast("object", parameter.default)
        text = described.get(parameter.name, "")
        options.append(Option(parameter.name, key, annotation, required, default, text))
    return Options(tuple(options), _model(getattr(target, "__name__", "Options"), options))


def _model(name: str, options: list[Option]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for option in options:
        default: Any = ... if option.required else option.default
        details = ModelField(default, alias=option.key, description=option.description or None)
        fields[_field(option)] = (writable(option.annotation), details)
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=False)
    return create_model(name, __config__=config, **fields)


_ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8,}.*)*)", re.MULTILINE)


def _descriptions(doc: str) -> dict[str, str]:
    """What the docstring's ``Args:`` say of each parameter."""
    found: dict[str, str] = {}
    for section in re.findall(r"^Args:\n((?:^ {4,}.*\n?|^\n)+)", doc, re.MULTILINE):
        for names, text in _ENTRY.findall(section):
            for name in names.split(", "):
                found[name] = " ".join(text.split()).replace("``", "`")
    return found


__all__ = ["Option", "Options", "Plain", "Value", "options_of", "plain"]
