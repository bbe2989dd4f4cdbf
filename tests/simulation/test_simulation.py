"""Histories of several processes over two failing stores, on virtual time, under the real ``dual_write`` code."""

from __future__ import annotations

import os

import pytest

from .history import run_history

SEEDS = int(os.environ.get("AIECS_SIMULATION_SEEDS", "60"))
BLOCK = 20


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_no_history_loses_doubles_or_reorders(first: int) -> None:
    """Whatever fails, in the end both stores hold every acknowledged write, once, in one order."""
    for seed in range(first, min(first + BLOCK, SEEDS)):
        history = run_history(seed)
        assert history.account.faults > 0
        assert sum(map(len, history.account.acknowledged.values())) > 50
        assert not history.violations, f"seed {seed}: {history.violations[:5]}"
