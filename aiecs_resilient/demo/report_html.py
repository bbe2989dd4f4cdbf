"""The result as one page that needs nothing else: style sheet and picture are inside, nothing is fetched, no script runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from . import report_chart, story
from .result import Result
from .units import count, duration
from .verdict import MEANINGS

STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")

TILES = (
    ("lost", "lost"),
    ("duplicated", "duplicated"),
    ("out_of_order", "out of order"),
    ("counters", "counters wrong"),
    ("differing", "store differences"),
)


def page(result: Result, *, made: datetime | None = None) -> str:
    """The whole document."""
    when = (made or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC")
    verdict = "good" if result.verdict.clean else "bad"
    title = "Nothing was lost" if result.verdict.clean else "Something is wrong"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · aiecs-resilient demo</title>
<style>
{STYLE}</style>
</head>
<body>
<main>
<header class="{verdict}">
<p class="brand">aiecs-resilient demo</p>
<h1>{title}</h1>
<p class="lead">{escape(story.headline(result))}</p>
</header>
{_tiles(result)}
{_problems(result)}
<section>
<h2>What it looked like</h2>
<figure>
{report_chart.draw(result)}
</figure>
{_moments(result)}
</section>
<section>
<h2>What happened</h2>
<p>{escape(story.opening(result))}</p>
<div class="chapters">
{_chapters(result)}
</div>
</section>
<section>
<h2>Phase by phase</h2>
{_phases(result)}
</section>
<section>
<h2>Why the zeros can be believed</h2>
<p>{escape(story.method(result))}</p>
{_checks(result)}
</section>
<footer>{escape(_footer(result, when))}</footer>
</main>
</body>
</html>
"""


def _tiles(result: Result) -> str:
    first = (
        f'<div class="tile"><b>{count(result.total.acknowledged)}</b><span>writes acknowledged</span></div>'
    )
    second = f'<div class="tile"><b>{count(result.total.by_fallback)}</b><span>served by {escape(result.fallback)}</span></div>'
    zeros = "".join(_zero(result.verdict.violations.get(name, 0), text) for name, text in TILES)
    errors = _zero(result.total.failed, "errors for callers", style="note")
    return f'<div class="tiles">{first}{second}{errors}{zeros}</div>'


def _zero(found: int, text: str, *, style: str = "bad") -> str:
    """A number that should be zero."""
    return f'<div class="tile {style if found else "good"}"><b>{count(found)}</b><span>{text}</span></div>'


def _problems(result: Result) -> str:
    lines = [*result.verdict.problems]
    lines += [f"{name}: {text}" for name, texts in result.verdict.details.items() for text in texts]
    if not lines:
        return ""
    return f'<ul class="problems">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>'


def _moments(result: Result) -> str:
    items = "".join(
        f'<li><i class="{moment.kind}">{number}</i><time>{moment.at:.2f} s</time> {escape(moment.text)}</li>'
        for number, moment in enumerate(result.moments, 1)
    )
    return f'<ol class="moments">{items}</ol>'


def _chapters(result: Result) -> str:
    outages = zip(story.chapters(result), result.outages, strict=True)
    return "\n".join(
        f"<article><h3>{escape(chapter.title)}</h3>"
        f'<div class="times"><span><b>{duration(outage.fail_over)}</b> to fail over</span>'
        f"<span><b>{duration(outage.longest)}</b> longest wait</span>"
        f"<span><b>{duration(outage.fail_back)}</b> to fail back</span></div>"
        f"<dl><dt>What failed</dt><dd>{escape(chapter.failed)}</dd>"
        f"<dt>What was at risk</dt><dd>{escape(chapter.risk)}</dd>"
        f"<dt>Why nothing was lost</dt><dd>{escape(chapter.kept)}</dd></dl></article>"
        for chapter, outage in outages
    )


def _phases(result: Result) -> str:
    head = ("phase", "seconds", "operations", "acknowledged", "by fallback", "errors", "p50", "p99", "max")
    rows: list[tuple[str, Sequence[str]]] = []
    for phase in result.phases:
        span, tally = phase.span, phase.tally
        cells = (
            f"{span.phase.number} {span.phase.title}",
            f"{span.end - span.start:.1f}",
            *(count(n) for n in (tally.operations, tally.acknowledged, tally.by_fallback, tally.failed)),
            *(duration(value) for value in (tally.latency.p50, tally.latency.p99, tally.latency.max)),
        )
        rows.append(("outage" if span.phase.outage else "", cells))
    total = result.total
    cells = (
        "all",
        f"{result.end:.1f}",
        *(count(n) for n in (total.operations, total.acknowledged, total.by_fallback, total.failed)),
        *(duration(value) for value in (total.latency.p50, total.latency.p99, total.latency.max)),
    )
    rows.append(("total", cells))
    errors = ", ".join(f"{count(n)} {name}" for name, n in total.errors)
    note = f'<p class="note">Errors that callers saw: {escape(errors)}.</p>' if errors else ""
    return _table(head, rows) + note


def _checks(result: Result) -> str:
    rows = [
        (
            "bad" if result.verdict.violations.get(name, 0) else "",
            (name.replace("_", " "), meaning, count(result.verdict.violations.get(name, 0))),
        )
        for name, meaning in MEANINGS.items()
    ]
    return _table(("checked", "meaning", "found"), rows, style="checks")


def _table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], *, style: str = "numbers") -> str:
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        f'<tr class="{kind}">{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for kind, cells in rows
    )
    return f'<div class="scroll"><table class="{style}"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _footer(result: Result, when: str) -> str:
    options, setting = result.options, result.setting
    return (
        f"Made {when} with --seconds {options.seconds:g} --sessions {options.sessions} --rate {options.rate:g} --seed {options.seed}. "
        f"Dialogues: {count(setting.conversations)} conversations in {setting.languages} languages from chatterbot-corpus. "
        f"Set-up {setting.setup:.1f} s, load {result.end:.1f} s, until both stores were level {setting.quiesce:.1f} s, "
        f"reading back and checking {setting.check:.1f} s."
    )
