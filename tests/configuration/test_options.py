"""The constructor's signature is the only place where options are written: names, types, units, defaults, words."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest
from configuration_fakes import Knobs as KnobsLayer
from configuration_fakes import Remote

from aiecs_resilient.configuration.annotations import NotWritableError, describe, writable
from aiecs_resilient.configuration.options import options_of
from aiecs_resilient.units import Bytes, Count, Ratio, Seconds

Knobs = Callable[..., dict[str, object]]


def test_assembly_supplies_what_is_no_option() -> None:
    """The wrapped backend, kept state, a store's name and what YAML cannot write are no options."""
    assert not {"self", "inner", "state", "chance"} & options_of(KnobsLayer).by_key.keys()
    assert options_of(Remote, aliases={"address": "url"}).by_key.keys() == {"url", "pool_size"}


def test_defaults_are_the_constructors(knobs: Knobs) -> None:
    """What a file leaves out has the value of the signature."""
    defaults = knobs("{}")
    assert (defaults["wait"], defaults["size"], defaults["mode"], defaults["pause"]) == (
        2.0,
        65_536,
        "safe",
        None,
    )


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ("{wait: 250ms}", "wait", 0.25),
        ("{wait: 3}", "wait", 3.0),
        ("{pause: 0s}", "pause", 0.0),
        ("{pause: null}", "pause", None),
        ("{size: 64KiB}", "size", 65_536),
        ("{size: 100}", "size", 100),
        ("{share: 1}", "share", 1.0),
        ("{floor: 0}", "floor", 0),
        ("{exact: true}", "exact", True),
        ("{label: text}", "label", "text"),
        ("{mode: fast}", "mode", "fast"),
        ("{hosts: [a, b]}", "hosts", ("a", "b")),
        ("{waits: {get_session: 1s, end_session: 0.5}}", "waits", {"get_session": 1.0, "end_session": 0.5}),
    ],
)
def test_each_kind_of_option_is_read(knobs: Knobs, options: str, name: str, value: object) -> None:
    """Units, words, lists and mappings arrive as the numbers and tuples that the constructor takes."""
    assert knobs(options)[name] == value


def test_the_docstring_describes_options() -> None:
    """What `Args:` say, over several lines and for several names, is the description in the schema."""
    options = options_of(KnobsLayer).by_key
    assert options["wait"].description == "seconds before anything happens."
    assert options["share"].description == options["size"].description == "two of a kind."


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Seconds, "a duration above 0 such as 250ms, 2s, 5m"),
        (Seconds | None, "a duration above 0 such as 250ms, 2s, 5m or null"),
        (Bytes, "a size above 0 such as 64KiB, 10MB"),
        (Count, "a whole number of at least 1"),
        (Ratio, "a number from 0 to 1"),
        (bool, "true or false"),
        (Mapping[str, Count], "a mapping, each value a whole number of at least 1"),
        (Sequence[str], "a list, each item text"),
        (Literal["a", "b"], "one of the allowed words"),
        (Annotated[int, "no unit"], "a whole number"),
    ],
)
def test_types_are_told_in_words(annotation: Any, words: str) -> None:
    """An error says what to write, not what a type checker calls it."""
    assert describe(annotation) == words


@pytest.mark.parametrize("annotation", [Callable[[], int], random.Random, Mapping[int, str], object, Any])
def test_what_yaml_cannot_write_is_no_option(annotation: Any) -> None:
    """A callable or an object is for code only."""
    with pytest.raises(NotWritableError):
        writable(annotation)
