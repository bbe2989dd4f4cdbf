"""The whole run without servers: phases, recovery, verdict, table and page."""

from __future__ import annotations

import asyncio
import io
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from aiecs_resilient.demo.options import DemoOptions
from aiecs_resilient.demo.outside_check import Holding
from aiecs_resilient.demo.report_html import page
from aiecs_resilient.demo.report_table import tables
from aiecs_resilient.demo.result import Result
from aiecs_resilient.demo.run import play
from aiecs_resilient.demo.screen import Screen
from aiecs_resilient.demo.story import headline
from aiecs_resilient.demo.verdict import Verdict

from .conftest import TALK
from .fakes import MemoryStage, memory_stage

SECONDS = 5.0


class Forgetful(MemoryStage):
    """A stage whose second store has lost one message at the end."""

    async def read_back(self) -> list[Holding]:
        holdings = await super().read_back()
        max(holdings[1].sessions.values(), key=len).pop()
        return holdings


def run(options: DemoOptions, kind: type[MemoryStage] = MemoryStage) -> tuple[Result, str]:
    output = io.StringIO()
    console = Console(file=output, width=140)

    async def go() -> Result:
        async with memory_stage() as stage:
            made = kind(stage.storage, stage.primary, stage.stores)
            return await play(made, options, Screen(console), TALK)

    result = asyncio.run(go())
    console.print(tables(result))
    return result, output.getvalue()


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, str]:
    report = tmp_path_factory.mktemp("report") / "report.html"
    return run(DemoOptions(seconds=SECONDS, sessions=40, rate=200, report=report))


def test_two_outages_lose_nothing(played: tuple[Result, str]) -> None:
    """Killed and frozen: the fallback takes over, the primary leads again, and all is there once and in order."""
    result, _output = played
    assert result.verdict.clean, result.verdict
    assert [span.phase.number for span in result.spans] == [1, 2, 3, 4, 5, 6]
    assert len(result.outages) == 2
    for outage in result.outages:
        assert outage.fail_over is not None
        assert outage.fail_back is not None
        assert outage.missed > 0
        assert outage.replayed > 0
    assert result.total.acknowledged > 300
    assert result.total.by_fallback > 50


def test_the_load_is_spread_over_all_phases(played: tuple[Result, str]) -> None:
    """A phase in which nothing was asked would prove nothing."""
    result, _output = played
    assert all(phase.tally.acknowledged for phase in result.phases)


def test_what_a_frozen_primary_does_late_is_seen(played: tuple[Result, str]) -> None:
    """The run must produce the fault it is about: a write that timed out and was applied afterwards."""
    result, _output = played
    assert result.outages[1].late


def test_the_terminal_tells_it(played: tuple[Result, str]) -> None:
    """Phases, events and the verdict, readable without the page."""
    _result, output = played
    for words in (
        "killed with SIGKILL",
        "takes over",
        "leads again",
        "frozen with SIGSTOP",
        "lost",
        "out of order",
        "✓",
    ):
        assert words in output


def test_a_lost_write_is_a_failure_with_evidence(tmp_path: Path) -> None:
    """One message gone from one store: the verdict is bad, table and page say so, and what it rests on is kept."""
    options = DemoOptions(seconds=SECONDS, sessions=20, rate=100, report=tmp_path / "report.html")
    result, output = run(options, Forgetful)
    assert not result.verdict.clean
    assert result.verdict.violations["lost"] == 1
    assert "✗" in output
    assert "must not happen" in headline(result)
    assert "Something is wrong" in page(result)
    assert (tmp_path / "report.evidence" / "history.jsonl").stat().st_size > 1000


class Links(HTMLParser):
    """Collects whatever a page could fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name for name, _value in attrs}
        if tag in {"script", "link", "img", "iframe", "object", "embed"} or names & {
            "src",
            "href",
            "onclick",
            "onload",
        }:
            self.found.append(tag)


def test_the_page_needs_nothing_else(played: tuple[Result, str]) -> None:
    """No script, no font, no picture from elsewhere: it can be mailed and opened offline."""
    html = page(played[0])
    links = Links()
    links.feed(html)
    assert not links.found
    assert "url(" not in html
    assert "@import" not in html
    assert set(re.findall(r"https?://[^\"'\s<]+", html)) == {"http://www.w3.org/2000/svg"}
    assert "prefers-color-scheme: dark" in html


def test_the_picture_is_well_formed_and_complete(played: tuple[Result, str]) -> None:
    """Outage windows, both latency curves, who served, breakers, health and every numbered moment."""
    result, _output = played
    html = page(result)
    picture = ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    styles = [element.get("class", "") for element in picture.iter()]
    texts = [element.text for element in picture.iter() if element.text]
    assert styles.count("outage") == 2
    assert {"p50", "p99", "by-primary", "by-fallback"} <= set(styles)
    assert {"who leads", "health says", "breaker hot", "breaker cold"} <= set(texts)
    assert sum(style.startswith("pin ") for style in styles) == len(result.moments) >= 8


def test_words_from_outside_cannot_become_markup(played: tuple[Result, str]) -> None:
    """Names of stores and examples of violations come from elsewhere."""
    result, _output = played
    evil = Verdict({"lost": 1}, {"lost": ["<script>alert(1)</script>"]})
    html = page(replace(result, verdict=evil))
    assert "<script" not in html
    assert "&lt;script&gt;" in html
