"""The suite itself: complete, and none of its tests hides another."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from importlib import import_module
from pkgutil import iter_modules

from aiecs_resilient.testing import contract


def _topics() -> list[type[contract.ContractBase]]:
    exported = [getattr(contract, name) for name in contract.__all__]
    return [item for item in exported if inspect.isclass(item)]


def test_no_topic_hides_a_test_of_another() -> None:
    """A test's name occurs once in all topics: of two mixins with the same name one would silently not run."""
    names = Counter(name for topic in _topics() for name in vars(topic) if name.startswith("test_"))
    assert [name for name, times in names.items() if times > 1] == []
    assert len(names) > 150


def test_every_test_says_what_it_protects() -> None:
    """Each test is async and begins with a sentence."""
    for topic in _topics():
        for name, test in vars(topic).items():
            if name.startswith("test_"):
                assert inspect.iscoroutinefunction(test), name
                assert re.match(r"[^\n]+\.(\n|$)", test.__doc__ or ""), name


def test_every_row_of_the_contract_has_a_topic() -> None:
    """C1 to C18 are each named by the module that holds their tests."""
    named: set[int] = set()
    for module in iter_modules(contract.__path__):
        doc = import_module(f"{contract.__name__}.{module.name}").__doc__ or ""
        for first, last in re.findall(r"C(\d+)(?: to C(\d+))?", doc):
            named |= set(range(int(first), int(last or first) + 1))
    assert named == set(range(1, 19))


def test_all_topics_are_part_of_the_whole() -> None:
    """StorageContract and ReplicaContract together are every topic there is."""
    whole = {*contract.StorageContract.__mro__, *contract.ReplicaContract.__mro__}
    assert set(_topics()) - whole == set()


def test_hostile_ids_are_distinct() -> None:
    """The pairwise test of ids compares as many ids as it seems to."""
    assert len(set(contract.HOSTILE_IDS)) == len(contract.HOSTILE_IDS)
    assert all(1 <= len(id) <= 512 for id in contract.HOSTILE_IDS)
