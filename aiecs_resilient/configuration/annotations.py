"""A parameter's type as YAML may fill it: units become parsers, everything else is held to its type without guessing.

Types that YAML cannot write (callables, objects) make no option; a parameter of such a type must have a default.
"""

from __future__ import annotations

import os
import types
from collections import abc
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import BeforeValidator, Field, WithJsonSchema

from ..units import Unit
from .nodes import resolve
from .units import (
    DURATION_PATTERN,
    SIZE_PATTERN,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


class EnvironmentText(str):
    """Text that came from the environment, where everything is text: it becomes what its option needs."""

    __slots__ = ()


class NotWritableError(TypeError):
    """This type cannot be written in YAML."""


def _typed(value: object) -> object:
    return resolve(value) if isinstance(value, EnvironmentText) else value


def _duration(value: object) -> object:
    value = _typed(value)
    return parse_duration(value) if isinstance(value, str) else value


def _size(value: object) -> object:
    value = _typed(value)
    return parse_size(value) if isinstance(value, str) else value


def _tuple(value: object) -> object:
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value


def _set(value: object) -> object:
    return frozenset(cast("list[object]", value)) if isinstance(value, list) else value


def _no_text(value: object) -> object:
    return None if isinstance(value, EnvironmentText) and resolve(value) is None else value


# Types that are put together at run time are no types to a checker.
_UNION: Any = Union
_LIST: Any = list
_TUPLE: Any = tuple
_SET: Any = frozenset
_DICT: Any = dict

_SEQUENCES = (list, tuple, abc.Sequence, abc.Iterable, abc.Collection)
_SETS = (set, frozenset, abc.Set)
_MAPPINGS = (dict, abc.Mapping, abc.MutableMapping)


def writable(annotation: Any) -> Any:
    """The annotation that validates what YAML holds for it; NotWritableError if YAML cannot hold it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        unit = next((item for item in arguments[1:] if isinstance(item, Unit)), None)
        return writable(arguments[0]) if unit is None else _with_unit(arguments[0], unit)
    if annotation is type(None):
        return None
    if annotation is str or annotation is Path or annotation is os.PathLike or origin is os.PathLike:
        return str
    if annotation in (int, float, bool):
        return Annotated[annotation, BeforeValidator(_typed)]
    if origin is Literal:
        return (
            annotation
            if all(isinstance(item, str) for item in arguments)
            else Annotated[annotation, BeforeValidator(_typed)]
        )
    if origin in (Union, types.UnionType):
        members = [writable(item) for item in arguments if item is not type(None)]
        joined = _UNION[tuple(dict.fromkeys(members))]
        return Annotated[joined | None, BeforeValidator(_no_text)] if type(None) in arguments else joined
    if origin is list:
        return _LIST[writable(arguments[0])]
    if origin in _SEQUENCES:
        return Annotated[_TUPLE[writable(arguments[0]), ...], BeforeValidator(_tuple)]
    if origin in _SETS:
        return Annotated[_SET[writable(arguments[0])], BeforeValidator(_set)]
    if origin in _MAPPINGS and arguments[0] is str:
        return _DICT[str, writable(arguments[1])]
    raise NotWritableError(f"{annotation!r} cannot be written in YAML")


def _with_unit(base: Any, unit: Unit) -> Any:
    limits = Field(ge=unit.ge, le=unit.le, gt=unit.above)
    if unit.of == "number":
        return Annotated[base, limits, BeforeValidator(_typed)]
    bounds = {"minimum": unit.ge, "maximum": unit.le, "exclusiveMinimum": unit.above}
    number: dict[str, Any] = {"type": "number" if unit.of == "duration" else "integer"}
    number |= {key: bound for key, bound in bounds.items() if bound is not None}
    parse, pattern = (_duration, DURATION_PATTERN) if unit.of == "duration" else (_size, SIZE_PATTERN)
    schema = WithJsonSchema({"anyOf": [number, {"type": "string", "pattern": pattern}]})
    return Annotated[base, limits, BeforeValidator(parse), schema]


def unit_of(annotation: Any) -> Unit | None:
    """The unit of a value, looking through ``| None`` and containers."""
    if get_origin(annotation) is Annotated:
        found = next((item for item in get_args(annotation)[1:] if isinstance(item, Unit)), None)
        if found is not None:
            return found
    return next((unit for item in get_args(annotation) if (unit := unit_of(item)) is not None), None)


def choices_of(annotation: Any) -> tuple[str, ...]:
    """The words a Literal allows, looking through ``| None``."""
    if get_origin(annotation) is Literal:
        return tuple(str(item) for item in get_args(annotation))
    return tuple(word for item in get_args(annotation) for word in choices_of(item))


def describe(annotation: Any) -> str:
    """What may be written for it, in words: ``a duration above 0 such as 250ms``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        unit = unit_of(annotation)
        return describe(arguments[0]) if unit is None else _describe_unit(arguments[0], unit)
    simple = {
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        type(None): "null",
    }
    if annotation in simple:
        return simple[annotation]
    if origin is Literal:
        return "one of the allowed words"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(item) for item in arguments))
    if origin in _SEQUENCES or origin in _SETS:
        return f"a list, each item {describe(arguments[0])}"
    if origin in _MAPPINGS:
        return f"a mapping, each value {describe(arguments[1])}"
    return "text"


def _describe_unit(base: Any, unit: Unit) -> str:
    if unit.of == "duration":
        what, example = "a duration", " such as 250ms, 2s, 5m"
    elif unit.of == "size":
        what, example = "a size", " such as 64KiB, 10MB"
    else:
        what, example = ("a whole number" if base is int else "a number"), ""

    def form(bound: float) -> str:
        return format_value(bound, unit)

    if unit.above is not None:
        limit = f" above {unit.above:g}" + (f" and at most {form(unit.le)}" if unit.le is not None else "")
    elif unit.ge is not None and unit.le is not None:
        limit = f" from {unit.ge:g} to {unit.le:g}"
    elif unit.ge is not None:
        limit = f" of at least {form(unit.ge)}" if unit.ge else ", not negative"
    else:
        limit = f" of at most {form(unit.le)}" if unit.le is not None else ""
    return f"{what}{limit}{example}"


def format_value(value: object, unit: Unit | None) -> str:
    """A value as YAML would write it: ``250ms``, ``64KiB``, ``true``, ``[a, b]``."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            if unit is not None and unit.of == "duration":
                return format_duration(value)
            if unit is not None and unit.of == "size":
                return format_size(int(value))
            return f"{value:g}" if isinstance(value, float) else str(value)
        case abc.Mapping():
            pairs = cast("abc.Mapping[str, object]", value).items()
            return "{" + ", ".join(f"{key}: {format_value(item, unit)}" for key, item in pairs) + "}"
        case list() | tuple() | frozenset():
            return "[" + ", ".join(format_value(item, unit) for item in cast("list[object]", value)) + "]"
        case _:
            return str(value)
