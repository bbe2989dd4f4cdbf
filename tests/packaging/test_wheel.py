"""What a user installs is the wheel, so the wheel is what is looked at and tried here, not the checkout."""

import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def built(root: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist, and the wheel that was built from the sdist: so the sdist is complete, too."""
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, root]
    done = run(command, cwd=folder, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    """The one wheel."""
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the package from the wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("clean") / "env"
    made = run([sys.executable, "-m", "venv", "--without-pip", folder], cwd=folder.parent)
    assert made.returncode == 0, made.stderr
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet"]
    done = run([*pip, "--no-deps", "--no-index", "--disable-pip-version-check", wheel], cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    # A path in a .pth file is only searched: the editable install that lies there is not followed to the checkout.
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    return folder


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_file_of_the_package(wheel: Path, root: Path) -> None:
    """SQL, Lua, marker files and modules reach the user alike; nothing is forgotten and nothing is added."""
    package = root / "aiecs_resilient"
    files = (path for path in package.rglob("*") if path.is_file() and path.suffix not in {".pyc", ".pyo"})
    expected = {path.relative_to(root).as_posix() for path in files}
    found = {name for name in names_in(wheel) if not name.split("/")[0].endswith(".dist-info")}
    assert found == expected


def test_the_wheel_holds_layers_inside_the_package_and_types(wheel: Path) -> None:
    """The layers live in the package, and type checkers of users are told that it is typed."""
    names = names_in(wheel)
    assert "aiecs_resilient/py.typed" in names
    assert "aiecs_resilient/layers/__init__.py" in names


def test_the_wheel_claims_no_other_name(wheel: Path) -> None:
    """Installing it cannot shadow somebody's own `layers`, `tests` or `config`."""
    tops = {name.split("/")[0] for name in names_in(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"aiecs_resilient"}


def test_the_wheel_carries_the_licence(wheel: Path) -> None:
    """Apache-2.0 asks that its text goes with every copy."""
    (name,) = (name for name in names_in(wheel) if name.endswith(".dist-info/licenses/LICENSE"))
    with zipfile.ZipFile(wheel) as archive:
        assert "Apache License" in archive.read(name).decode()


def test_the_sdist_can_be_tested_and_holds_no_link(built: Path) -> None:
    """Who repackages us gets the tests and the commands as well, and no link that an archive cannot carry."""
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    assert {"Makefile", "LICENSE", "README.md", "requirements-dev.lock", ".ci/run"} <= names
    assert "tests/packaging/test_wheel.py" in names
    assert not any(name.split("/")[0] in {"layers", ".venv", ".git"} for name in names)
    assert not any(member.issym() or member.islnk() for member in members)


def test_the_installed_wheel_imports(installed: Path, run: Run) -> None:
    """Package and layers come from the wheel, whatever lies in the folder one stands in."""
    code = "import aiecs_resilient, aiecs_resilient.layers as layers; print(aiecs_resilient.__file__, layers.__file__)"
    done = run([installed / "bin" / "python", "-W", "error", "-c", code], cwd=installed)
    assert done.returncode == 0, done.stderr
    assert all(Path(name).is_relative_to(installed) for name in done.stdout.split())


def test_the_installed_command_explains_itself(installed: Path, run: Run) -> None:
    """The command of the wheel runs without the checkout."""
    done = run([installed / "bin" / "aiecs-resilient", "--help"], cwd=installed)
    assert done.returncode == 0, done.stderr
    assert "aiecs-resilient" in done.stdout


def test_the_version_is_said_once(wheel: Path, root: Path) -> None:
    """The wheel's name, its metadata and pyproject.toml agree."""
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    assert f"Version: {version}" in lines
    assert f"-{version}-" in wheel.name
