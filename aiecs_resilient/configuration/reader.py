"""Nodes → :class:`.models.Plan`. Goes on after an error, so that one run reports everything that is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from ..errors import ConfigurationError
from ..interface import Backend
from ..registry import Build, Registry
from .errors import Place, Problems
from .loader import MAPPING, load, load_literal
from .models import BackendPlan, LayerPlan, ObservabilityPlan, PipelinePlan, Plan
from .nodes import Entry, Items, Node, Scalar, Table, show
from .options import options_of
from .rules import check_order

Source = str | os.PathLike[str] | Mapping[str, object]
"""A path, or the structure of such a file as a mapping."""

VERSION = 1
_TOP = ("version", "backends", "pipeline", "observability")
BACKEND = "backend"
_END = "`- backend: NAME` or a branching layer such as dual_write"


def read_plan(
    source: Source, *, registry: Registry | None = None, environment: Mapping[str, str] | None = None
) -> Plan:
    """The validated plan of a configuration; ConfigurationError with everything that is wrong with it."""
    problems = Problems()
    root = load(source, problems, environment)
    name = MAPPING if isinstance(source, Mapping) else str(source)
    plan = _Reader(registry or Registry(), problems).plan(root, name)
    if plan is not None and not problems.found:
        for finding in check_order(plan):
            if finding.rule.severity == "error":
                problems.add(
                    finding.place, finding.message, fix=f"fix: {finding.rule.fix} [{finding.rule.id}]"
                )
    problems.raise_any()
    if plan is None:  # a reader that finds nothing to build without saying why would be a bug of ours
        raise ConfigurationError(f"{name}: no pipeline could be read")
    return plan


def read_backend(kind: str, options: Mapping[str, object]) -> BackendPlan:
    """The plan of one store whose options code gives, nothing substituted in them; ConfigurationError if they are wrong."""
    problems = Problems()
    store = _Reader(Registry(plugins=False), problems).store(kind, load_literal(options, problems, "config"))
    problems.raise_any()
    if store is None:
        raise ConfigurationError(f"config: no {kind} store could be read")
    return store


class _Reader:
    def __init__(self, registry: Registry, problems: Problems) -> None:
        self._registry = registry
        self._problems = problems
        self._stores: dict[str, BackendPlan | None] = {}  # None: declared, but with an error already reported
        self._chains: dict[str, Node] = {}
        self._declared: dict[str, Entry] = {}
        self._used: dict[str, Place] = {}

    def plan(self, root: Node, name: str) -> Plan | None:
        if not isinstance(root, Table):
            self._problems.add(root.place, f"a configuration is a mapping, not {show(root)}", allowed=_TOP)
            return None
        for key, entry in root.entries.items():
            if key not in _TOP:
                self._problems.add(entry.place, f"unknown key {key!r}", allowed=_TOP, given=key)
        self._check_version(root)
        self._read_backends(root)
        observability = self._read_observability(root)
        written = root.entries.get("pipeline")
        if written is None:
            self._problems.add(root.place, "the key 'pipeline' is missing: the layers, outermost first")
            return None
        pipeline = self._pipeline(written.node, "pipeline", ())
        if pipeline is None:
            return None
        for unused in [name for name in self._declared if name not in self._used]:
            self._problems.add(
                self._declared[unused].place,
                f"backend {unused!r} is declared but no pipeline uses it",
                fix=f"add `- backend: {unused}` where it belongs, or remove it",
            )
        return Plan(name, pipeline, observability)

    def _check_version(self, root: Table) -> None:
        entry = root.entries.get("version")
        if entry is None:
            return
        if not isinstance(entry.node, Scalar) or entry.node.value != VERSION:
            message = f"version must be {VERSION}, not {show(entry.node)}"
            self._problems.add(entry.node.place, message, allowed=[str(VERSION)])

    # ------------------------------------------------------------------ backends

    def _read_backends(self, root: Table) -> None:
        entry = root.entries.get("backends")
        if entry is None or not isinstance(entry.node, Table) or not entry.node.entries:
            place = root.place if entry is None else entry.node.place
            self._problems.add(
                place, "'backends' must map each name to its store: `hot: {type: redis, url: …}`"
            )
            return
        for name, declared in entry.node.entries.items():
            self._declared[name] = declared
            node = declared.node
            if isinstance(node, Table) and "pipeline" in node.entries:
                self._chains[name] = node.entries["pipeline"].node
                for key, other in node.entries.items():
                    if key != "pipeline":
                        message = f"unknown key {key!r}: a backend that is a pipeline has no other"
                        self._problems.add(other.place, message, allowed=["pipeline"])
            else:
                self._stores[name] = self.store(name, node)

    def store(self, name: str, node: Node) -> BackendPlan | None:
        known = self._registry.all_backends()
        table = Table(node.place, {"type": Entry(node.place, node)}) if isinstance(node, Scalar) else node
        if not isinstance(table, Table) or "type" not in table.entries:
            message = f"backend {name!r} needs a 'type'"
            close = None
            if isinstance(table, Table) and len(table.entries) == 1:
                close = next(iter(table.entries))
            self._problems.add(node.place, message, allowed=known, given=close)
            return None
        kind = table.entries["type"].node
        if not isinstance(kind, Scalar) or kind.broken or kind.text not in known:
            if not (isinstance(kind, Scalar) and kind.broken):
                given = kind.text if isinstance(kind, Scalar) else None
                self._problems.add(
                    kind.place, f"unknown backend type {show(kind)}", allowed=known, given=given
                )
            return None
        entry = known[kind.text]
        target = self._load(entry.load, kind.place)
        if target is None:
            return None
        if not isinstance(target, type):
            self._problems.add(kind.place, f"{entry.target} is no class")
            return None
        before = len(self._problems.found)
        options = options_of(target, aliases=entry.aliases()).read(
            f"backend {name!r} ({entry.name})", table, self._problems, ignore=("type",)
        )
        if len(self._problems.found) > before:
            return None
        return BackendPlan(name, entry, target, options, node.place, not issubclass(target, Backend))

    def _load(self, load_it: Callable[[], Build], place: Place) -> Build | None:
        try:
            return load_it()
        except ConfigurationError as error:
            self._problems.add(place, error.message, fix="install the package that brings it")
            return None

    # ------------------------------------------------------------------ pipelines

    def _pipeline(self, node: Node, path: str, inside: tuple[str, ...]) -> PipelinePlan | None:
        if not isinstance(node, Items) or not node.items:
            self._problems.add(
                node.place, f"{path} must be a list of layers that ends in {_END}, not {show(node)}"
            )
            return None
        layers: list[LayerPlan] = []
        end: BackendPlan | None = None
        ended: str | None = None
        good = True
        for item in node.items:
            if ended is not None:
                message = f"nothing can stand below {ended}: the list is outermost first"
                self._problems.add(item.place, message, fix=f"move it above {ended}")
                return None
            name, written = self._item(item)
            if name is None:
                good = False
                continue
            if name == BACKEND:
                ended = "the backend"
                inner = self._backend(written, item.place, path, inside)
                good = good and inner is not None
                if isinstance(inner, PipelinePlan):
                    layers += inner.layers
                    end = inner.backend
                else:
                    end = inner
                continue
            layer, branching = self._layer(name, item.place, written, f"{path}/{name}", inside)
            good = good and layer is not None
            ended = name if branching else None
            if layer is not None:
                layers.append(layer)
        if ended is None and good:
            last = node.items[-1]
            self._problems.add(last.place, f"{path} must end in {_END}", allowed=self._declared)
        return PipelinePlan(node.place, tuple(layers), end) if good and ended is not None else None

    def _item(self, item: Node) -> tuple[str | None, Node | None]:
        """The name and the options of one item of a pipeline."""
        if isinstance(item, Scalar) and isinstance(item.value, str):
            return (None if item.broken else item.text), None
        if isinstance(item, Table) and len(item.entries) == 1:
            [(name, entry)] = item.entries.items()
            return name, entry.node
        if isinstance(item, Table) and item.entries:
            first, *others = item.entries
            fix = f"indent {', '.join(map(repr, others))} below {first!r}, or give each layer its own '- '"
            self._problems.add(item.place, "an item of a pipeline is one layer", fix=fix)
        elif not (isinstance(item, Scalar) and item.broken):
            message = f"an item of a pipeline is a layer's name, or a name with options, not {show(item)}"
            self._problems.add(item.place, message, allowed=self._names())
        return None, None

    def _names(self) -> Sequence[str]:
        return [*self._registry.all_layers(), BACKEND]

    def _backend(
        self, written: Node | None, place: Place, path: str, inside: tuple[str, ...]
    ) -> BackendPlan | PipelinePlan | None:
        if isinstance(written, Scalar) and written.broken:
            return None
        if not isinstance(written, Scalar) or written.value is None:
            place = place if written is None else written.place
            self._problems.add(place, "`backend` needs a name: `- backend: NAME`", allowed=self._declared)
            return None
        name, place = written.text, written.place
        if name not in self._declared:
            self._problems.add(place, f"backend {name!r} is not declared", allowed=self._declared, given=name)
            return None
        if name in inside:
            circle = " → ".join((*inside[inside.index(name) :], name))
            self._problems.add(
                place, f"backend {name!r} contains itself: {circle}", fix="end one of them in a store"
            )
            return None
        first = self._used.setdefault(name, place)
        if first is not place:
            self._problems.add(
                place,
                f"backend {name!r} is used twice, first at {first}: one store cannot stand in two places",
                fix="declare a second backend under another name",
            )
            return None
        if name in self._chains:
            return self._pipeline(self._chains[name], f"{path}/{name}", (*inside, name))
        return self._stores[name]

    def _layer(
        self, name: str, place: Place, written: Node | None, path: str, inside: tuple[str, ...]
    ) -> tuple[LayerPlan | None, bool]:
        """The layer, None if something is wrong with it, and whether it branches."""
        known = self._registry.all_layers()
        if name not in known:
            fix = f"a backend is written `- backend: {name}`" if name in self._declared else None
            self._problems.add(place, f"unknown layer {name!r}", allowed=self._names(), given=name, fix=fix)
            return None, False
        target = self._load(known[name].load, place)
        if target is None:
            return None, name == "dual_write"
        branch_names = cast("tuple[str, ...]", getattr(target, "branches", ()))
        options = options_of(target, also_not=branch_names)
        if written is None or (isinstance(written, Scalar) and written.value is None and not written.broken):
            written = Table(place)
        if not isinstance(written, Table):
            example = next(iter(options.by_key), "option")
            message = f"options of {name} must be a mapping, not {show(written)}"
            self._problems.add(written.place, message, fix=f"write `{name}: {{{example}: …}}`")
            return None, bool(branch_names)
        before = len(self._problems.found)
        values = options.read(name, written, self._problems, ignore=branch_names)
        branches: dict[str, PipelinePlan] = {}
        for branch in branch_names:
            entry = written.entries.get(branch)
            if entry is None:
                self._problems.add(
                    written.place, f"{name} needs {branch!r}: a list of layers that ends in {_END}"
                )
                continue
            below = self._pipeline(entry.node, f"{path}/{branch}", inside)
            if below is not None:
                branches[branch] = below
        if len(self._problems.found) > before:
            return None, bool(branch_names)
        return LayerPlan(name, target, values, place, path, branches), bool(branch_names)

    # ------------------------------------------------------------------ observability

    def _read_observability(self, root: Table) -> ObservabilityPlan | None:
        entry = root.entries.get("observability")
        if entry is None:
            return None
        if not isinstance(entry.node, Table):
            self._problems.add(entry.node.place, f"observability must be a mapping, not {show(entry.node)}")
            return None
        from ..observability import ObservabilityOptions  # only a file that asks for it pays for it

        options = options_of(ObservabilityOptions).read("observability", entry.node, self._problems)
        return ObservabilityPlan(options, entry.place)


__all__ = ["Source", "read_plan"]
