"""Every bad configuration gives one clear error: file, line, column, what is wrong, what is allowed, the nearest name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from configuration_fakes import REGISTRY

from aiecs_resilient.configuration.errors import InvalidConfigurationError, Problem
from aiecs_resilient.configuration.models import Plan
from aiecs_resilient.configuration.reader import read_plan
from aiecs_resilient.errors import ConfigurationError

Complaints = Callable[..., list[Problem]]
Read = Callable[..., Plan]

GOOD = "backends:\n  m: {type: memory}\npipeline:\n  - knobs: {count: 2}\n  - backend: m\n"

# What is replaced by what in GOOD; where the error stands; words in it; something allowed; the nearest name.
CASES: dict[str, tuple[str, str, tuple[int, int], str, str | None, str | None]] = {
    "unknown key": ("backends:", "backend:", (1, 1), "unknown key 'backend'", "backends", "backends"),
    "unknown option": ("count", "cuont", (4, 13), "unknown option 'cuont' of knobs", "count", "count"),
    "unknown option of a store": (
        "type: memory",
        "type: memory, retension: 1",
        (2, 21),
        "unknown option 'retension' of backend 'm'",
        "retention",
        "retention",
    ),
    "option of a layer without options": (
        "knobs: {count: 2}",
        "tracing: {on: 1}",
        (4, 15),
        "tracing has no options",
        None,
        None,
    ),
    "wrong type": (
        "count: 2",
        "count: two",
        (4, 20),
        "must be a whole number of at least 1, not 'two'",
        None,
        None,
    ),
    "text for a number": ("count: 2", "count: '2'", (4, 20), "without its quotes", None, None),
    "part of a number": ("count: 2", "count: 2.5", (4, 20), "a whole number", None, None),
    "yes for true": ("count: 2", "exact: yes", (4, 20), "true or false, not 'yes'", None, None),
    "number for true": ("count: 2", "exact: 1", (4, 20), "true or false, not '1'", None, None),
    "true for a number": ("count: 2", "count: true", (4, 20), "a whole number", None, None),
    "out of range": ("count: 2", "share: 1.5", (4, 20), "a number from 0 to 1, not '1.5'", None, None),
    "zero duration": ("count: 2", "wait: 0s", (4, 19), "a duration above 0", None, None),
    "duration without a unit": ("count: 2", "wait: '2'", (4, 19), "such as 250ms, 2s, 5m", None, None),
    "not a number": ("count: 2", "wait: .nan", (4, 19), "a duration", None, None),
    "wrong word": ("count: 2", "mode: sfae", (4, 19), "one of the allowed words", "safe", "safe"),
    "list for a number": ("count: 2", "count: [2]", (4, 20), "not a list", None, None),
    "wrong type inside a mapping": (
        "count: 2",
        "waits: {a: 1s, b: x}",
        (4, 31),
        "option 'waits.b' of knobs",
        None,
        None,
    ),
    "wrong type inside a list": (
        "count: 2",
        "hosts: [a, {}]",
        (4, 24),
        "option 'hosts[1]' of knobs",
        None,
        None,
    ),
    "missing option": (
        "knobs: {count: 2}",
        "needy",
        (4, 5),
        "needy needs the option 'key': text",
        None,
        None,
    ),
    "options that are no mapping": (
        "{count: 2}",
        "2",
        (4, 12),
        "options of knobs must be a mapping",
        None,
        None,
    ),
    "unknown layer": ("knobs:", "konbs:", (4, 5), "unknown layer 'konbs'", "knobs", "knobs"),
    "a backend for a layer": ("knobs: {count: 2}", "m", (4, 5), "is written `- backend: m`", "knobs", None),
    "unknown type of store": (
        "memory",
        "memroy",
        (2, 13),
        "unknown backend type 'memroy'",
        "memory",
        "memory",
    ),
    "store without a type": ("type: memory", "kind: memory", (2, 6), "needs a 'type'", "memory", None),
    "missing backend name": ("backend: m", "backend: n", (5, 14), "backend 'n' is not declared", "m", None),
    "backend without a name": ("backend: m", "backend", (5, 5), "`backend` needs a name", "m", None),
    "unused backend": (
        "pipeline:",
        "  n: memory\npipeline:",
        (3, 3),
        "backend 'n' is declared but no pipeline uses it",
        None,
        None,
    ),
    "cyclic backend names": (
        "m: {type: memory}",
        "m: {pipeline: [backend: n]}\n  n: {pipeline: [backend: m]}",
        (3, 27),
        "backend 'm' contains itself: m → n → m",
        None,
        None,
    ),
    "alias cycle": (
        "pipeline:\n",
        "pipeline: &p\n  - dual_write: {primary: *p}\n",
        (3, 11),
        "contains itself through an alias",
        None,
        None,
    ),
    "backend used twice": (
        "  - backend: m",
        "  - dual_write: {primary: [backend: m], fallback: [backend: m]}",
        (5, 61),
        "backend 'm' is used twice",
        None,
        None,
    ),
    "pipeline without an end": (
        "  - backend: m\n",
        "",
        (4, 5),
        "pipeline must end in `- backend: NAME`",
        "m",
        None,
    ),
    "something below the end": (
        "- backend: m",
        "- backend: m\n  - tracing",
        (6, 5),
        "nothing can stand below the backend",
        None,
        None,
    ),
    "options not indented": (
        "knobs: {count: 2}",
        "knobs:\n    count: 2",
        (4, 5),
        "indent 'count' below 'knobs'",
        None,
        None,
    ),
    "empty pipeline": (
        "pipeline:\n  - knobs: {count: 2}\n  - backend: m",
        "pipeline:",
        (3, 10),
        "a list of layers",
        None,
        None,
    ),
    "missing branch": (
        "- backend: m",
        "- dual_write: {primary: [backend: m]}",
        (5, 17),
        "dual_write needs 'fallback'",
        None,
        None,
    ),
    "wrong version": ("backends:", "version: 2\nbackends:", (1, 10), "version must be 1, not '2'", "1", None),
    "key given twice": ("count: 2", "count: 2, count: 3", (4, 23), "key 'count' is given twice", None, None),
    "a layer that cannot be loaded": ("knobs: {count: 2}", "missing", (4, 5), "cannot be loaded", None, None),
    "options that do not fit together": (
        "knobs: {count: 2}",
        "moody: {least: 3}",
        (4, 5),
        "least 3 is above most 2",
        None,
        None,
    ),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_is_one_clear_error(case: str, tmp_path: Path) -> None:
    """Place, cause, what is allowed and the nearest name, in one error and no other."""
    from aiecs_resilient.assembly import build

    old, new, place, words, allowed, near = CASES[case]
    assert old in GOOD
    path = tmp_path / "chain.yaml"
    path.write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InvalidConfigurationError) as caught:
        build(path, registry=REGISTRY)
    problem = caught.value.problems[0]
    assert words in str(problem)
    assert (problem.place.line, problem.place.column) == place
    assert str(problem).startswith(f"{path}:{place[0]}:{place[1]}: ")
    if allowed is not None:
        assert allowed in problem.allowed
    assert problem.nearest == near
    if near is not None:
        assert f"did you mean {near!r}?" in str(problem)


def test_the_good_one_is_good(read: Read) -> None:
    """Without this the cases above might all fail for another reason."""
    assert read(GOOD).pipeline.backend is not None


def test_everything_wrong_is_told_at_once_first_first(complaints: Complaints) -> None:
    """One run shows all errors, in the order of the file."""
    text = (
        "backends:\n  m: {type: remote, url: '${NOWHERE}', pool_sise: 3}\n"
        "pipeline:\n  - konbs\n  - knobs: {count: x, wait: y}\n  - backend: n\nextra: 1\n"
    )
    found = complaints(text)
    assert [(problem.place.line, problem.place.column) for problem in found] == [
        (2, 26),
        (2, 40),
        (4, 5),
        (5, 20),
        (5, 29),
        (6, 14),
        (7, 1),
    ]


def test_a_mapping_is_checked_alike() -> None:
    """Without lines, an error names the path inside the mapping."""
    source = {"backends": {"m": "memory"}, "pipeline": [{"knobs": {"cuont": 2}}, {"backend": "m"}]}
    with pytest.raises(
        ConfigurationError, match=r"configuration: pipeline\[0\]\.knobs\.cuont: unknown option 'cuont'"
    ):
        read_plan(source, registry=REGISTRY)


@pytest.mark.parametrize(
    "value",
    [object(), {1: 2}, b"bytes", float("inf")],
    ids=["an object", "a key of no text", "bytes", "infinity"],
)
def test_a_mapping_holds_only_what_a_file_could(value: object) -> None:
    """An object, a key that is no text, bytes or infinity are refused with their path."""
    source = {"backends": {"m": "memory"}, "pipeline": [{"knobs": {"wait": value}}, {"backend": "m"}]}
    with pytest.raises(ConfigurationError, match=r"pipeline\[0\]\.knobs\.wait"):
        read_plan(source, registry=REGISTRY)


def test_an_endless_mapping_is_refused() -> None:
    """A list that contains itself ends in an error, not in a crash."""
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(ConfigurationError, match="contains itself"):
        read_plan({"backends": {"m": "memory"}, "pipeline": endless}, registry=REGISTRY)
