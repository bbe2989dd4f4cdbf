"""`layers` at the root is a way to find the layers, not a second package."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def without_links(root: Path, committed: list[Path], tmp_path: Path) -> Path:
    """The checkout as it looks where links cannot be made: git then writes a text file with the target."""
    for name in committed:
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, target)
    (tmp_path / "layers").write_text("aiecs_resilient/layers", encoding="utf-8")
    return tmp_path


@pytest.fixture
def link(root: Path) -> Path:
    """The link; where links cannot be made git leaves a text file, and an unpacked sdist has nothing there."""
    path = root / "layers"
    if not path.is_symlink():
        assert not path.is_dir(), "layers must be a link into the package, not a folder of its own"
        pytest.skip("this checkout was made without links")
    return path


def test_the_layers_are_one_step_from_the_root(link: Path) -> None:
    """`layers` leads to the folder in the package, by a path that holds in every checkout."""
    assert link.readlink() == Path("aiecs_resilient/layers")
    assert (link / "__init__.py").is_file()


def test_the_link_is_committed_as_a_link(root: Path, run: Run) -> None:
    """Every clone gets the link, not a copy that would drift away from the package."""
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    listed = run(["git", "ls-files", "--stage", "layers"], cwd=root)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["120000"]


def test_importing_the_link_fails_at_once(link: Path, run: Run, python: str) -> None:
    """`import layers` beside the link is an error, not a second copy of every class."""
    done = run([python, "-c", "import layers"], cwd=link.parent)
    assert done.returncode != 0
    assert "ImportError: attempted relative import beyond top-level package" in done.stderr


def test_a_checkout_without_links_works(without_links: Path, run: Run, python: str) -> None:
    """Nothing in the package goes through the link."""
    code = "import aiecs_resilient.layers as layers; print(layers.__file__)"
    done = run([python, "-c", code], cwd=without_links)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(without_links)
