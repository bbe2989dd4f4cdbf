"""The machinery behind `make`: it must work on a bare machine, and must never call a failure a success."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def executable(path: Path, text: str) -> Path:
    """A small program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    """A copy of the machinery beside an empty project, so that a test cannot harm the checkout."""
    for name in ("find-python", "run", "set_up.py", "checks.py"):
        executable(tmp_path / "checkout" / ".ci" / name, (root / ".ci" / name).read_text(encoding="utf-8"))
    (tmp_path / "checkout" / "pyproject.toml").write_text("[project]\nname = 'x'\n", encoding="utf-8")
    (tmp_path / "checkout" / "some.lock").write_text("", encoding="utf-8")
    return tmp_path / "checkout"


def test_an_interpreter_is_believed_only_when_it_runs(checkout: Path, run: Run, tmp_path: Path) -> None:
    """Names that a version manager leaves on PATH and that fail are passed over."""
    executable(tmp_path / "bin" / "python3.13", "#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    executable(tmp_path / "bin" / "python3.12", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    done = run(
        [checkout / ".ci/find-python"], cwd=checkout, env={"PATH": f"{tmp_path / 'bin'}", "PYTHON": ""}
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).resolve() == Path(sys.executable).resolve()


def test_no_interpreter_is_one_clear_error(checkout: Path, run: Run, tmp_path: Path) -> None:
    """The message says what was tried and how to go on."""
    bare = {"PATH": str(tmp_path), "HOME": str(tmp_path), "PYENV_ROOT": str(tmp_path), "PYTHON": ""}
    done = run(["/bin/sh", checkout / ".ci/find-python"], cwd=checkout, env=bare)
    assert done.returncode == 1
    assert "No Python 3.11 or newer" in done.stderr
    assert "PYTHON=" in done.stderr


def test_a_named_interpreter_that_fails_is_not_replaced(checkout: Path, run: Run) -> None:
    """Who says PYTHON=… gets that one or an error, never another one in silence."""
    done = run([checkout / ".ci/find-python"], cwd=checkout, env={"PYTHON": "/nowhere/python3"})
    assert (done.returncode, done.stdout) == (1, "")
    assert "/nowhere/python3" in done.stderr


def test_set_up_leaves_a_strange_folder_alone(checkout: Path, run: Run, python: str) -> None:
    """A folder that is no environment is never emptied."""
    precious = executable(checkout / "env" / "precious", "mine")
    done = run([python, ".ci/set_up.py", "env", "some.lock"], cwd=checkout)
    assert done.returncode == 1
    assert "not an environment" in done.stderr
    assert precious.read_text(encoding="utf-8") == "mine"


def test_a_ready_environment_is_not_touched(checkout: Path, run: Run, python: str) -> None:
    """The second `make` costs no installation."""
    sys.path.insert(0, str(checkout / ".ci"))
    try:
        import set_up
    finally:
        sys.path.pop(0)
        sys.modules.pop("set_up", None)
    environment = checkout / "env"
    executable(environment / "bin" / "python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    state = {
        "environment": set_up.environment_fingerprint(environment, checkout / "some.lock"),
        "project": set_up.project_fingerprint(),
    }
    (environment / "ready.json").write_text(json.dumps(state), encoding="utf-8")
    done = run([python, ".ci/set_up.py", "env", "some.lock"], cwd=checkout)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("test", "closing", "status"),
    [
        ("def test_good(): pass", "1 passed, 0 failed, 0 skipped", 0),
        ("def test_bad(): assert False", "0 passed, 1 failed, 0 skipped", 1),
        ("def nothing_to_collect(): pass", "0 passed, 1 failed, 0 skipped", 1),
        ("import os; os._exit(0)", "0 passed, 1 failed, 0 skipped", 1),
        ("raise SystemError", "0 passed, 1 failed, 0 skipped", 1),
    ],
)
def test_the_closing_line_tells_the_truth(
    checkout: Path, run: Run, python: str, test: str, closing: str, status: int
) -> None:
    """The last line counts; no test found, a crash and a process that ended early are failures."""
    (checkout / "test_it.py").write_text(test, encoding="utf-8")
    done = run([python, ".ci/checks.py", "tests", "--", "-p", "no:xdist"], cwd=checkout)
    assert done.returncode == status, done.stdout
    assert done.stdout.splitlines()[-1].startswith(f"{closing} in ")


def test_a_failed_check_fails_the_run(checkout: Path, run: Run, python: str) -> None:
    """A linter's complaint is shown, counted, and does not keep the tests from running."""
    (checkout / "test_it.py").write_text("import os\ndef test_good(): pass\n", encoding="utf-8")
    done = run([python, ".ci/checks.py", "lint", "tests", "--", "-p", "no:xdist"], cwd=checkout)
    assert done.returncode == 1
    assert "F401" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 passed, ")
    assert ", 0 failed" not in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("make", "last", "status"),
    [
        ("echo '3 passed, 0 failed'", "3 passed, 0 failed", 0),
        (
            "mkdir .make; echo '2 passed, 1 failed' > .make/closing-line; echo 'make: Error' >&2; exit 2",
            "2 passed, 1 failed",
            2,
        ),
        (
            "echo 'make: no Python' >&2; exit 2",
            "0 passed, 1 failed: make test ended before the tests, with status 2",
            2,
        ),
        ("read -r line && exit 0; [ \"$CI $*\" = 'true test' ] && echo 'no terminal'", "no terminal", 0),
    ],
)
def test_the_build_server_learns_the_truth(
    checkout: Path, run: Run, tmp_path: Path, make: str, last: str, status: int
) -> None:
    """`.ci/run` calls `make test` without a terminal, hands on its status, and ends with the closing line."""
    executable(tmp_path / "bin" / "make", f"#!/bin/sh\n{make}\n")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = run([checkout / ".ci/run"], cwd=tmp_path, env={"PATH": path})
    assert (done.returncode, done.stdout.splitlines()[-1]) == (status, last)
