"""What the README shows is true: its Python runs, its YAML assembles, its commands exist."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from snippets import Snippet, commands, snippets

from aiecs_resilient.testing.servers import PostgreSQLServer, ValkeyServer

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
SHELL = {"bash", "sh", "shell", "console"}
COMMAND = Path(sys.executable).with_name("aiecs-resilient")
ALL = snippets(README)


def of(*languages: str) -> list[Snippet]:
    """The README's snippets of these languages."""
    return [snippet for snippet in ALL if snippet.language in languages]


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, str]]:
    """The addresses of real servers, under the names that the shipped configurations read."""
    with ValkeyServer() as valkey, PostgreSQLServer() as postgresql:
        yield {"REDIS_URL": valkey.url, "DATABASE_URL": postgresql.url}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one's own with `config/` in it, as the README assumes; what a snippet writes stays in it."""
    (tmp_path / "config").symlink_to(ROOT / "config")
    return tmp_path


def run(command: list[str], folder: Path, extra: dict[str, str]) -> None:
    """Runs it to a good end or fails with what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | extra
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"


def test_the_readme_shows_something() -> None:
    """A README whose snippets are not found would pass every other test here."""
    assert of("python")
    assert of("yaml")
    assert of(*SHELL)
    assert {"make demo", "make test"} <= {line for snippet in ALL for line in commands(snippet)}


def test_each_snippet_says_its_language() -> None:
    """A block without a language, or with one nobody checks, would be shown untested."""
    checked = {"python", "yaml", "text", "mermaid", "json", *SHELL}
    assert {str(snippet): snippet.language for snippet in ALL if snippet.language not in checked} == {}


@pytest.mark.parametrize("snippet", of("python"), ids=str)
def test_python_runs(snippet: Snippet, folder: Path, servers: dict[str, str]) -> None:
    """Each Python snippet runs by itself, against real servers, without a warning."""
    path = folder / "snippet.py"
    path.write_text(snippet.text, encoding="utf-8")
    runner = Path(__file__).with_name("run_snippet.py")
    run([sys.executable, "-W", "error", str(runner), str(path)], folder, servers)


@pytest.mark.parametrize("snippet", of("yaml"), ids=str)
def test_yaml_assembles(snippet: Snippet, folder: Path, servers: dict[str, str]) -> None:
    """Each YAML snippet is a whole configuration that `check` accepts."""
    path = folder / "snippet.yaml"
    path.write_text(snippet.text, encoding="utf-8")
    run([str(COMMAND), "check", str(path)], folder, servers)


@pytest.mark.parametrize("snippet", [*of(*SHELL), *snippets(ROOT / "CONTRIBUTING.md")], ids=str)
def test_commands_exist(snippet: Snippet, folder: Path) -> None:
    """Each `make` target, each subcommand, each extra that a shell snippet names is there."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in commands(snippet):
        program, *arguments = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
        if program == "make":
            assert {word for word in arguments if "=" not in word} <= targets, line
        elif program == "aiecs-resilient":
            named = [word for word in arguments if not word.startswith("-")][:1]
            run([str(COMMAND), *named, "--help"], folder, {})
        elif program == "pip":
            extras = {name for group in re.findall(r"\[([\w,-]+)\]", line) for name in group.split(",")}
            assert extras <= project["optional-dependencies"].keys(), line
