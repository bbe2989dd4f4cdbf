"""Makes an environment hold exactly what a lock file says, and the checkout itself.

``set_up.py DIR LOCK`` is run before every command that needs an environment, so it must cost nothing when
there is nothing to do (it compares fingerprints of content, never times of files) and must leave no half-made
environment behind: one whose set-up was interrupted carries a marker and is built anew. It needs nothing but
the standard library, because it runs before anything is installed.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
READY: Final = "ready.json"
UNFINISHED: Final = "unfinished"
# What decides how the checkout is installed; the settings of linters in the same file do not.
INSTALL_TABLES: Final = ("build-system", "project")


class SetUpError(Exception):
    """What went wrong and what to do about it, in one message."""


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        return complain("usage: set_up.py DIR LOCK")
    # Not resolved beyond the checkout: DIR may be a link to a bigger disk.
    directory, lock = ROOT / arguments[0], ROOT / arguments[1]
    try:
        with one_at_a_time(directory.name):
            set_up(directory, lock)
    except SetUpError as error:
        return complain(str(error))
    except KeyboardInterrupt:
        return complain(f"interrupted; {directory.name} is built anew next time", status=130)
    return 0


def set_up(directory: Path, lock: Path) -> None:
    wanted = {"environment": environment_fingerprint(directory, lock), "project": project_fingerprint()}
    present = read_state(directory)
    runs = interpreter_runs(directory)
    if runs and present == wanted:
        return

    started = time.monotonic()
    if not runs or present.get("environment") != wanted["environment"]:
        say(f"setting up {directory.name} with Python {sys.version.split()[0]} from {lock.name}")
        # One that was made by hand is brought up to the lock; one of ours for another lock is built anew, so
        # that nothing stays in it that the lock no longer names.
        if not (runs and not present and adopt(directory, lock)):
            build(directory, lock)
    install_checkout(directory)
    (directory / READY).write_text(json.dumps(wanted), encoding="utf-8")
    (directory / UNFINISHED).unlink(missing_ok=True)
    say(f"{directory.name} is ready ({time.monotonic() - started:.0f} s)")


def environment_fingerprint(directory: Path, lock: Path) -> str:
    """Content of the lock, interpreter and place: scripts in an environment name its absolute path."""
    digest = hashlib.sha256(lock.read_bytes())
    digest.update(f"{directory}\n{sys.executable}\n{sys.version_info[:2]}".encode())
    return digest.hexdigest()


def project_fingerprint() -> str:
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    installed = {name: tables.get(name) for name in INSTALL_TABLES}
    return hashlib.sha256(json.dumps(installed, sort_keys=True).encode()).hexdigest()


def read_state(directory: Path) -> dict[str, str]:
    if (directory / UNFINISHED).exists():
        return {"environment": "unfinished"}
    try:
        state: dict[str, str] = json.loads((directory / READY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state


def interpreter_runs(directory: Path) -> bool:
    probe = f"import sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
    try:
        return run([str(python_of(directory)), "-I", "-c", probe], quiet=True)
    except OSError:
        return False


def adopt(directory: Path, lock: Path) -> bool:
    try:
        return run([*pip_of(directory), "install", "--quiet", "--require-hashes", "-r", str(lock)])
    except SetUpError:
        return False


def build(directory: Path, lock: Path) -> None:
    clear(directory)
    (directory / UNFINISHED).touch()
    has_ensurepip = importlib.util.find_spec("ensurepip") is not None
    make = [sys.executable, "-I", "-m", "venv", *([] if has_ensurepip else ["--without-pip"]), str(directory)]
    if not run(make):
        raise SetUpError(
            f"{sys.executable} could not make an environment in {directory}: see the message above"
        )
    if not run([*pip_of(directory), "install", "--quiet", "--require-hashes", "-r", str(lock)]):
        raise SetUpError(
            f"installing {lock.name} failed: see pip's message above. If no package could be reached, tell pip "
            "where packages are, by its own settings (pip config, PIP_INDEX_URL, PIP_PROXY), and run this again."
        )


def clear(directory: Path) -> None:
    """Empties the environment, and only that: a folder that is something else is left alone."""
    if directory.exists() and any(directory.iterdir()):
        if not any((directory / mark).exists() for mark in ("pyvenv.cfg", READY, UNFINISHED)):
            raise SetUpError(f"{directory} exists and is not an environment: move it away and run this again")
        (directory / UNFINISHED).touch()
        for entry in directory.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != UNFINISHED:
                entry.unlink()
    directory.mkdir(parents=True, exist_ok=True)


def install_checkout(directory: Path) -> None:
    install = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-e", str(ROOT)]
    if not run([*pip_of(directory), *install]):
        raise SetUpError("installing the checkout itself failed: see pip's message above")


def pip_of(directory: Path) -> list[str]:
    """The command that installs into the environment; Debian's Python may come without ensurepip."""
    python = str(python_of(directory))
    if run([python, "-I", "-m", "pip", "--version"], quiet=True):
        return [python, "-I", "-m", "pip", "--disable-pip-version-check", "--no-input"]
    if run([sys.executable, "-I", "-m", "pip", "--python", python, "--version"], quiet=True):
        own = [sys.executable, "-I", "-m", "pip"]
        return [*own, "--disable-pip-version-check", "--no-input", "--python", python]
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    raise SetUpError(
        f"{sys.executable} can make environments but has no pip to fill them with. On Debian and Ubuntu: "
        f"apt install python{version}-venv. Elsewhere: install pip for this Python, or name another one "
        "(make ... PYTHON=/path/to/python3)."
    )


def python_of(directory: Path) -> Path:
    return directory / "bin" / "python"


def run(command: list[str], *, quiet: bool = False) -> bool:
    output = subprocess.DEVNULL if quiet else None
    done = subprocess.run(  # noqa: S603  # only commands written in this file
        command,
        cwd=ROOT,
        env=clean_environment(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
    )
    return done.returncode == 0


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what would make an environment see packages that are not its own."""
    leaking = {"PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "__PYVENV_LAUNCHER__"}
    return {name: value for name, value in environment.items() if name not in leaking}


@contextlib.contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Two ``make`` at once must not fill one environment together; the lock goes when the process goes."""
    place = ROOT / ".make"
    place.mkdir(exist_ok=True)
    with (place / f"{name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another set-up of {name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def say(message: str) -> None:
    sys.stdout.write(f"{message}\n")
    sys.stdout.flush()


def complain(message: str, *, status: int = 1) -> int:
    sys.stderr.write(f"set-up: {message}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
