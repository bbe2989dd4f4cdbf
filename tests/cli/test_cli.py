"""The command line: every subcommand starts, says what it does, and never shows a traceback for a bad file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from aiecs_resilient.cli import COMMANDS, main

Run = Callable[..., Result]

GOOD = """\
backends:
  m: {type: memory, retention: "${AIECS_TEST_RETENTION:-2h}"}
pipeline:
  - deadline: {total: 1500ms}
  - backend: m
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command on YAML text in a file of the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("AIECS_TEST_RETENTION", raising=False)

    def run_command(*arguments: str, text: str = GOOD) -> Result:
        Path("chain.yaml").write_text(text, encoding="utf-8")
        return CliRunner().invoke(main, list(arguments))

    return run_command


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(run: Run, name: str) -> None:
    """What it does, in a sentence."""
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_check_says_what_an_answer_survives(run: Run) -> None:
    """A good file: status 0, and what an acknowledgement is worth."""
    result = run("check", "chain.yaml")
    assert result.exit_code == 0
    assert result.output.splitlines()[0] == "chain.yaml: good"
    assert "nothing (m, memory: it is gone with the process)" in result.output


def test_check_shows_everything_that_is_wrong(run: Run) -> None:
    """A bad file: status 1, one line per error, with file, line and column."""
    result = run("check", "chain.yaml", text=GOOD.replace("total", "totla").replace("memory", "memroy"))
    assert result.exit_code == 1
    first, second = result.output.splitlines()
    assert first.startswith("chain.yaml:2:13: unknown backend type 'memroy'; allowed: ")
    assert first.endswith("did you mean 'memory'?")
    assert second.startswith("chain.yaml:4:16: unknown option 'totla' of deadline; allowed: total")


def test_check_names_rule_consequence_and_fix(run: Run) -> None:
    """An order that is always wrong fails the check with its reason."""
    result = run("check", "chain.yaml", text=GOOD.replace("  - backend", "  - deadline\n  - backend"))
    assert result.exit_code == 1
    assert "deadline stands twice" in result.output
    assert "effects multiply" in result.output
    assert "fix: keep one of them [layer-twice]" in result.output


def test_a_warning_does_not_fail_the_check(run: Run) -> None:
    """An order that is usually wrong is told, and counted."""
    result = run("check", "chain.yaml", text=GOOD.replace("  - backend", "  - metrics\n  - backend"))
    assert result.exit_code == 0
    assert "chain.yaml:5:5: warning: " in result.output
    assert "[usual-order]" in result.output
    assert "chain.yaml: good, 1 warning\n" in result.output


@pytest.mark.parametrize("command", ["check", "explain"])
def test_a_missing_file_is_one_line(run: Run, command: str) -> None:
    """No traceback, and the file that was probably meant."""
    result = run(command, "chian.yaml")
    assert result.exit_code == 1
    assert "chian.yaml: cannot be read" in result.output
    assert "did you mean 'chain.yaml'?" in result.output
    assert "Traceback" not in result.output


def test_explain_draws_the_chain(run: Run) -> None:
    """Outermost first, every option with its unit and where it came from."""
    lines = run("explain", "chain.yaml").output.splitlines()
    assert lines[0] == "chain.yaml"
    assert lines[1] == "├── deadline  line 4:5"
    assert "total: 1.5s  line 4:23" in lines[2]
    assert any(line.startswith("└── memory m  line 2:6") for line in lines)
    assert any("retention: 2h  line 2:32, default of unset AIECS_TEST_RETENTION" in line for line in lines)
    assert any("max_value_bytes: 64MiB  default" in line for line in lines)


def test_explain_names_the_variable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value from the environment says so."""
    monkeypatch.setenv("AIECS_TEST_RETENTION", "90s")
    assert "retention: 90s  line 2:32, from AIECS_TEST_RETENTION" in run("explain", "chain.yaml").output


def test_explain_draws_branches(run: Run) -> None:
    """The legs of a dual write are branches of the tree."""
    text = (
        "backends: {a: memory, b: memory}\npipeline:\n  - dual_write:\n"
        "      primary: [backend: a]\n      fallback: [timeout, backend: b]\n"
    )
    output = run("explain", "chain.yaml", text=text).output
    assert re.search(
        r"└── dual_write.*?├── primary\n\s+│\s+└── memory a.*?└── fallback\n\s+├── timeout", output, re.DOTALL
    )


def test_schema_is_printed_or_written(run: Run) -> None:
    """The same text on standard output and in a file."""
    printed = run("schema")
    assert printed.exit_code == 0
    assert run("schema", "--output", "schema.json").exit_code == 0
    assert Path("schema.json").read_text(encoding="utf-8") == printed.output
