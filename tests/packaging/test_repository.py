"""What is committed works on every machine: it names no registry, no mirror and no folder of one computer."""

import re
from pathlib import Path

import pytest

# Written backwards, so that this file does not name what it forbids.
REGISTRIES = [name[::-1] for name in ("gro.ipyp", "gro.detsohnohtyp", "gro.sjmpn")]
INDEX_OPTIONS = ["--" + "index-url", "--" + "extra-index-url", "--" + "find-links", "--" + "trusted-host"]
INDEX_OPTIONS_OF_UV = ["--no-emit-" + "index-url", "--no-emit-" + "find-links"]
HOMES = re.compile(r"(?<![\w.}$~-])/(?:home|Users|root|work)/\w[\w.-]*")


@pytest.fixture(scope="module")
def texts(root: Path, committed: list[Path]) -> dict[Path, str]:
    """Every committed text file."""
    found = {}
    for name in committed:
        content = (root / name).read_bytes()
        if b"\0" not in content:
            found[name] = content.decode("utf-8")
    return found


def test_no_file_names_a_registry(texts: dict[Path, str]) -> None:
    """Where packages come from is the machine's own setting."""
    named = {(str(path), host) for path, text in texts.items() for host in REGISTRIES if host in text}
    assert not named


def test_no_file_sets_an_index(texts: dict[Path, str]) -> None:
    """No index option is committed, except those that keep addresses out of the locks."""
    found = set()
    for path, text in texts.items():
        rest = text
        for allowed in INDEX_OPTIONS_OF_UV:
            rest = rest.replace(allowed, "")
        found |= {(str(path), option) for option in INDEX_OPTIONS if option in rest}
    assert not found


def test_no_file_names_a_folder_of_one_machine(texts: dict[Path, str], root: Path) -> None:
    """Nobody's home folder, and not the place of this checkout."""
    here = re.compile(re.escape(str(root)) + r"(?![\w-])")
    found = {
        (str(path), match.group())
        for path, text in texts.items()
        for pattern in (HOMES, here)
        for match in pattern.finditer(text)
    }
    assert not found


def test_nothing_that_is_made_is_committed(committed: list[Path]) -> None:
    """Environments, caches and build results stay out."""
    made = {"__pycache__", ".venv", ".venv-demo", "dist", "build", ".mypy_cache", ".ruff_cache", ".make"}
    assert not [path for path in committed if made & set(path.parts) or path.suffix == ".pyc"]
