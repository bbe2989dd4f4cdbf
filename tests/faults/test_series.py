"""A long series of episodes: what is to be played, and that an interruption costs no episode."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from aiecs_resilient.cli import main
from aiecs_resilient.testing.campaign import SCENARIOS
from aiecs_resilient.testing.campaign.series import CHAINS, OWN_PROCESS, Episode, done, latest, planned


def line(seed: int, *, ok: bool) -> str:
    return json.dumps({"scenario": "primary killed", "chain": "redis-postgresql", "seed": seed, "ok": ok})


def test_every_scenario_is_played_on_every_chain_that_can_be_harmed_so() -> None:
    """A file has no server: what needs one at the fallback is left out there, and nothing else is."""
    episodes = planned([1], [*SCENARIOS, OWN_PROCESS], CHAINS)
    on_redis = {episode.scenario for episode in episodes if episode.chain == "redis-postgresql"}
    on_a_file = {episode.scenario for episode in episodes if episode.chain == "postgresql-sqlite"}
    assert on_redis == {*SCENARIOS, OWN_PROCESS}
    assert on_redis - on_a_file == {"fallback killed, then the primary", "both killed"}


def test_an_interrupted_series_has_seen_every_scenario() -> None:
    """Seed by seed, not scenario by scenario."""
    episodes = planned([1, 2], ["primary killed", "replies lost"], CHAINS)
    assert [episode.seed for episode in episodes] == [1, 1, 1, 1, 2, 2, 2, 2]


def test_the_last_verdict_of_an_episode_counts(tmp_path: Path) -> None:
    """Played again after a failure, it is what it became; a line that a kill tore is no verdict."""
    record = tmp_path / "campaign.jsonl"
    record.write_text(
        "\n".join([line(1, ok=False), line(2, ok=True), line(1, ok=True), line(3, ok=True)[:20]])
    )
    assert [entry["seed"] for entry in done(record)] == [1, 2, 1]
    found = latest(record)
    assert found[Episode("primary killed", "redis-postgresql", 1)]["ok"]
    assert len(found) == 2


def test_an_unknown_scenario_is_answered_with_the_known_ones() -> None:
    """Before a server is started."""
    result = CliRunner().invoke(main, ["campaign", "--only", "primary eaten"])
    assert result.exit_code == 2
    assert "primary killed" in " ".join(result.output.split())
