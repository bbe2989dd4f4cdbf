"""Names mean classes, found when they are used, and other packages can add theirs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from configuration_fakes import REGISTRY

from aiecs_resilient import registry as registry_module
from aiecs_resilient.configuration.options import options_of
from aiecs_resilient.errors import ConfigurationError
from aiecs_resilient.interface import Backend
from aiecs_resilient.layers._base import Layer
from aiecs_resilient.registry import BACKENDS, LAYERS, Entry, Registry
from aiecs_resilient.storage import open_storage

PLUGIN = """
from aiecs_resilient.layers._base import Layer
from aiecs_resilient.backends.memory import MemoryStorageBackend

class Audit(Layer):
    pass

class Shelf(MemoryStorageBackend):
    yaml_aliases = {"address": "url"}
    def __init__(self, address: str, *, name: str = "shelf") -> None:
        super().__init__(name=name)
        self.address = address
"""


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_is_called_as_in_yaml(name: str) -> None:
    """Its class is found, says the same name, and has options that YAML can write."""
    found = LAYERS[name].load()
    assert isinstance(found, type)
    assert issubclass(found, Backend)
    assert getattr(found, "layer_name", None) == name
    assert options_of(found, also_not=getattr(found, "branches", ())).all or issubclass(found, Layer)


@pytest.mark.parametrize("name", BACKENDS)
def test_each_backend_is_found(name: str) -> None:
    """Its class is found, says the same kind, and each alias renames a parameter that is there."""
    found = BACKENDS[name].load()
    assert isinstance(found, type)
    assert issubclass(found, Backend)
    assert getattr(found, "kind", None) == name
    options = options_of(found, aliases=BACKENDS[name].aliases())
    assert set(BACKENDS[name].aliases().values()) <= options.by_key.keys()


def test_what_cannot_be_loaded_says_so() -> None:
    """Name, place and reason."""
    for target in ("no_such_module:X", ".registry:NoSuchClass", ".registry:BACKEND_GROUP"):
        with pytest.raises(ConfigurationError, match="'odd'"):
            Entry("odd", target).load()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that brings a layer and a backend."""
    (tmp_path / "shelf_plugin.py").write_text(PLUGIN, encoding="utf-8")
    information = tmp_path / "shelf_plugin-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: shelf-plugin\nVersion: 1.0\n", encoding="utf-8"
    )
    (information / "entry_points.txt").write_text(
        "[aiecs_resilient.layers]\naudit = shelf_plugin:Audit\ntracing = shelf_plugin:Audit\n"
        "[aiecs_resilient.backends]\nshelf = shelf_plugin:Shelf\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    registry_module._installed.cache_clear()
    yield
    registry_module._installed.cache_clear()
    sys.modules.pop("shelf_plugin", None)


@pytest.mark.usefixtures("installed")
async def test_an_installed_package_adds_names() -> None:
    """Its layer and backend stand in a chain like ours, with the parameter's name it chose for YAML."""
    source = {
        "backends": {"mine": {"type": "shelf", "url": "left"}},
        "pipeline": ["audit", {"backend": "mine"}],
    }
    async with open_storage(source) as storage:
        await storage.create_session("s", "u")
        assert "Audit" in repr(storage)


@pytest.mark.usefixtures("installed")
def test_our_names_cannot_be_taken_over() -> None:
    """An installed package does not silently replace a layer of ours; without plugins its names are unknown."""
    assert Registry().all_layers()["tracing"] is LAYERS["tracing"]
    assert "audit" in Registry().all_layers()
    assert "audit" not in Registry(plugins=False).all_layers()


async def test_a_class_with_the_sixteen_methods_is_adapted() -> None:
    """A foreign store stands in a chain of ours under its name in YAML."""
    source = {"backends": {"theirs": {"type": "foreign"}}, "pipeline": ["metrics", {"backend": "theirs"}]}
    async with open_storage(source, registry=REGISTRY) as storage:
        assert await storage.get_session("s") is None
        assert await storage.get_conversation_history("s") == []
        assert (storage.name, storage.honours_op_id) == ("theirs", False)


def test_a_class_that_lacks_methods_is_refused_with_its_place() -> None:
    """Adapting says what is missing; assembly says where the store is declared."""
    registry = Registry(backends={"half": Entry("half", f"{__name__}:Half")}, plugins=False)
    source = {"backends": {"h": "half"}, "pipeline": [{"backend": "h"}]}
    with pytest.raises(
        ConfigurationError, match=r"configuration: backends\.h: backend 'h' of .*Half.*create_session"
    ):
        open_storage(source, registry=registry)


class Half:
    """One method only."""

    async def get_session(self, session_id: str) -> None:
        """None."""
