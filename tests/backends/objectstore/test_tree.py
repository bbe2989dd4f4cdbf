"""The trees: whatever is done to them, they hold what a dict holds, in order, and no page more."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from aiecs_resilient.backends.objectstore import _tree as tree
from aiecs_resilient.codec import encode
from aiecs_resilient.errors import DataCorruptionError

END = b"\xff"


class Pages:
    """Stored pages; what was not fetched yet is missing, as in a real reader."""

    def __init__(self) -> None:
        self.stored: dict[str, tree.Page] = {}
        self._numbers = itertools.count()
        self.root: tree.Root | None = None
        self.written = 0

    def load(self, id: str) -> tree.Page:
        return self.stored[id]

    def name(self) -> str:
        return f"p{next(self._numbers)}"

    def change(self, changes: dict[bytes, bytes | None], page_bytes: int) -> None:
        writer = tree.Writer(self.load, self.name, page_bytes)
        self.root = writer.apply(self.root, sorted(changes.items()))
        for id in writer.replaced:
            del self.stored[id]
        for id, page in writer.written.items():
            self.stored[id] = tree.read_page(page.pack())
        self.written += len(writer.written)

    def reachable(self) -> set[str]:
        def walk(id: str) -> Iterator[str]:
            yield id
            for link in self.stored[id].links:
                yield from walk(link.id)

        return set() if self.root is None else set(walk(self.root.id))


def _some_changes(chooser: random.Random, step: int, model: dict[bytes, bytes]) -> dict[bytes, bytes | None]:
    if chooser.random() < 0.03:
        return dict.fromkeys(model) or {b"only": b""}
    kind = chooser.choice(["append", "random", "delete", "mixed"])
    changes: dict[bytes, bytes | None] = {}
    for n in range(chooser.randint(1, 80)):
        if model and (kind == "delete" or (kind == "mixed" and chooser.random() < 0.5)):
            changes[chooser.choice(list(model))] = None
        else:
            key = step * 1_000 + n if kind == "append" else chooser.randint(0, 60_000)
            changes[b"%08d" % key] = b"v" * chooser.randint(0, 300)
    return changes


@pytest.mark.parametrize("seed", range(15))
def test_a_tree_is_a_sorted_dict(seed: int) -> None:
    """After any changes: every row, every range, both ways; as many rows as it says; and nothing unreachable is kept."""
    chooser, pages, model = random.Random(seed), Pages(), dict[bytes, bytes]()
    for step in range(50):
        changes = _some_changes(chooser, step, model)
        pages.change(changes, chooser.choice([300, 2_000]))
        model |= {key: row for key, row in changes.items() if row is not None}
        for key in [key for key, row in changes.items() if row is None]:
            model.pop(key, None)
        rows = sorted(model.items())
        assert list(tree.scan(pages.load, pages.root, b"", END)) == rows
        assert (0 if pages.root is None else pages.root.rows) == len(rows)
        low, high = sorted(b"%08d" % chooser.randint(0, 60_000) for _ in range(2))
        between = [row for row in rows if low <= row[0] < high]
        assert list(tree.scan(pages.load, pages.root, low, high, reverse=True)) == between[::-1]
        for key in chooser.sample(sorted(model), min(5, len(model))):
            assert tree.get(pages.load, pages.root, key) == model[key]
        assert tree.get(pages.load, pages.root, b"nothing") is None
        assert pages.reachable() == pages.stored.keys()


@pytest.mark.parametrize("reverse", [False, True])
def test_a_reader_asks_once_per_level(reverse: bool) -> None:
    """A scan of a few rows in a cold process fetches each level in one round, and only the pages it may need."""
    pages = Pages()
    for start in range(0, 5_000, 100):
        pages.change({b"%08d" % n: b"v" * 20 for n in range(start, start + 100)}, 1_000)
    assert pages.root is not None
    assert pages.root.level == 2
    fetched: dict[str, tree.Page] = {}
    rounds = 0

    def load(id: str) -> tree.Page:
        if id not in fetched:
            raise tree.Missing([id])
        return fetched[id]

    while True:
        try:
            found = list(
                itertools.islice(tree.scan(load, pages.root, b"", END, reverse=reverse, rows=60), 60)
            )
            break
        except tree.Missing as missing:
            rounds += 1
            fetched |= {id: pages.stored[id] for id in missing.ids}
    assert len(found) == 60
    assert rounds == 3
    assert len(fetched) < 10


def test_appending_costs_the_same_at_any_length() -> None:
    """A hundred rows at the end of fifty thousand write as many pages as at the end of a thousand."""
    pages, costs = Pages(), list[int]()
    for start in range(0, 50_000, 100):
        before = pages.written
        pages.change({b"%08d" % n: b"v" * 200 for n in range(start, start + 100)}, 64 * 1024)
        costs.append(pages.written - before)
    assert max(costs[5:]) <= 4
    assert sum(costs[-100:]) <= 1.5 * sum(costs[10:110])


def test_a_damaged_page_is_told() -> None:
    """A page of an unknown form is an error, not an empty tree."""
    for value in (1, [0, [], None], [0, [b"a"], []], [1, [b"a"], [None]]):
        with pytest.raises(DataCorruptionError):
            tree.read_page(encode(value, "page"))
