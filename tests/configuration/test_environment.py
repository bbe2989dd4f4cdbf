"""Environment variables in a configuration: what is missing is said with its place, and types follow the text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from aiecs_resilient.configuration.environment import substitute

Knobs = Callable[..., dict[str, object]]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("${A}", "one"),
        ("x-${A}-${B:-two}", "x-one-two"),
        ("${EMPTY:-default}", "default"),
        ("${EMPTY}", ""),
        ("$${A}", "${A}"),
        ("a$b $ $$", "a$b $ $"),
        ("${B:-a:-b}", "a:-b"),
        ("${NESTED}", "${A}"),
    ],
)
def test_substitution_is_that_of_a_shell(text: str, result: str) -> None:
    """Defaults count for unset and empty; `$$` is a dollar sign; a value is not substituted again."""
    done = substitute(text, {"A": "one", "EMPTY": "", "NESTED": "${A}"})
    assert (done.text, done.errors) == (result, ())


@pytest.mark.parametrize("text", ["${", "${A", "${A:-${B}}", "${1A}", "${}", "${A B}"])
def test_what_is_no_variable_is_refused(text: str) -> None:
    """Half a variable is never taken for text."""
    assert substitute(text, {"A": "1", "B": "2"}).errors


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ('{count: "${N:-10}"}', "count", 10),
        ("\n      count: ${N:-10}", "count", 10),
        ('{share: "${R:-0.25}"}', "share", 0.25),
        ('{exact: "${X:-true}"}', "exact", True),
        ('{wait: "${W:-250ms}"}', "wait", 0.25),
        ('{wait: "${W:-3}"}', "wait", 3.0),
        ('{size: "${S:-1KiB}"}', "size", 1024),
        ('{label: "${L:-123}"}', "label", "123"),
        ('{mode: "${M:-fast}"}', "mode", "fast"),
        ('{pause: "${P:-null}"}', "pause", None),
        ('{waits: {get_session: "${W:-1s}"}}', "waits", {"get_session": 1.0}),
        ('{hosts: ["${H:-a}", b]}', "hosts", ("a", "b")),
    ],
)
def test_a_variable_becomes_what_its_option_needs(
    knobs: Knobs, options: str, name: str, value: object
) -> None:
    """In the environment everything is text: `${N:-10}` is a number where a number is needed, text where text is."""
    assert knobs(options)[name] == value
    assert type(knobs(options)[name]) is type(value)


def test_a_password_of_digits_stays_text(knobs: Knobs) -> None:
    """A variable that looks like a number fits a text option."""
    assert knobs('{password: "${PW}"}', PW="123")["password"] == "123"


def test_a_missing_variable_has_a_place(complaints: Callable[..., list[Any]]) -> None:
    """Where it stands, what it is called, which one was probably meant, and what to do."""
    text = "backends:\n  m: {type: remote, url: '${REDIS_ULR}'}\npipeline: [backend: m]\n"
    [problem] = complaints(text, REDIS_URL="x")
    assert (problem.place.line, problem.place.column, problem.nearest) == (2, 26, "REDIS_URL")
    assert "environment variable REDIS_ULR is not set" in str(problem)
    assert "${REDIS_ULR:-" in str(problem)


def test_an_unquoted_variable_in_braces_is_explained(complaints: Callable[..., list[Any]]) -> None:
    """YAML itself forbids it there, so the error says what to write."""
    [problem] = complaints("backends: {m: memory}\npipeline:\n  - knobs: {count: ${N:-1}}\n  - backend: m\n")
    assert problem.place.line == 3
    assert '"${NAME}"' in str(problem)
