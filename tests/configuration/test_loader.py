"""A file can make us do little: no objects, no bombs, no silent loss, and every fault of the text has a place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aiecs_resilient.configuration.errors import Problem, Problems
from aiecs_resilient.configuration.loader import MAX_DEPTH, MAX_FILE_BYTES, load_text
from aiecs_resilient.configuration.nodes import Scalar, Table
from aiecs_resilient.configuration.reader import read_plan
from aiecs_resilient.errors import ConfigurationError

Complaints = Callable[..., list[Problem]]

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        pytest.param("a: [1\nb: 2", (2, 2), "not valid YAML", id="unclosed list"),
        pytest.param("a:\n\t- b", (2, 1), "not valid YAML", id="tab"),
        pytest.param("a: *b", (1, 4), "undefined alias", id="alias to nothing"),
        pytest.param("a: !!python/object/apply:os.system [ls]", (1, 4), "tags such as", id="object"),
        pytest.param("a: !mine 1", (1, 4), "tags such as", id="own tag"),
        pytest.param("a: 1\n---\nb: 2", (2, 1), "not valid YAML", id="two documents"),
        pytest.param("a: b\x07c", (1, 5), "#x0007", id="control character"),
        pytest.param(b"a: b\nc: \xff", (2, 4), "not UTF-8", id="other encoding"),
        pytest.param("", (1, 1), "is empty", id="empty"),
        pytest.param("# nothing\n", (1, 1), "is empty", id="comment only"),
        pytest.param("just text", (1, 1), "a configuration is a mapping", id="no mapping"),
        pytest.param("? [a]\n: b", (1, 3), "a key must be a name", id="key that is a list"),
        pytest.param("a: " + "[" * (MAX_DEPTH + 5), (1, MAX_DEPTH + 4), "nested deeper", id="deep"),
        pytest.param("a: " + "[" * 100_000, (1, MAX_DEPTH + 4), "nested deeper", id="very deep"),
    ],
)
def test_bad_text_has_a_place(
    complaints: Complaints, text: str | bytes, place: tuple[int, int], words: str
) -> None:
    """What is no configuration at all is said with line and column, too."""
    problem = next(found for found in complaints(text) if words in str(found))
    assert (problem.place.line, problem.place.column) == place


def test_an_alias_bomb_is_bounded(complaints: Complaints) -> None:
    """Nine lines that stand for a thousand million values cost no more than the bound."""
    assert "more than 10,000 values" in str(complaints(BOMB)[0])


def test_a_file_is_bounded(complaints: Complaints) -> None:
    """A large file is refused before it is parsed."""
    assert "over 262,144 bytes" in str(complaints("#" * (MAX_FILE_BYTES + 1))[0])


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    """The likely file of the same folder is suggested."""
    (tmp_path / "production.yaml").write_text("", encoding="utf-8")
    with pytest.raises(
        ConfigurationError, match=r"cannot be read: No such file.*did you mean .*production\.yaml"
    ):
        read_plan(tmp_path / "prodution.yaml")


def test_the_parser_does_not_quote_the_file(complaints: Complaints) -> None:
    """The line of a syntax error may hold a password, so it is not shown."""
    assert "hunter2" not in str(complaints("url: redis://:hunter2@host: [")[0])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("0x1F", "0x1F"),
        ("012", "012"),
        ("2001-01-01", "2001-01-01"),
        ("1_000", "1_000"),
        ("true", True),
        ("~", None),
        ("-3", -3),
        ("1e3", 1000.0),
        ("'true'", "true"),
        ("!!str 5", "5"),
        ("9" * 50, "9" * 50),
    ],
)
def test_plain_values_surprise_nobody(text: str, value: object) -> None:
    """Only the few forms that everybody expects are anything else than text."""
    root = load_text(f"a: {text}", "x.yaml", Problems(), {})
    assert isinstance(root, Table)
    node = root.entries["a"].node
    assert isinstance(node, Scalar)
    assert (node.value, type(node.value)) == (value, type(value))


def test_an_alias_is_read_at_each_use(read: Callable[..., object]) -> None:
    """Two legs may share one list of options."""
    read(
        "backends: {a: memory, b: memory}\npipeline:\n  - dual_write:\n"
        "      primary: [knobs: &same {count: 4}, backend: a]\n      fallback: [knobs: *same, backend: b]\n"
    )
