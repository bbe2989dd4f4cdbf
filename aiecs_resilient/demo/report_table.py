"""The result on the terminal: phases, outages, and the counts that must be zero."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .result import Result
from .story import headline
from .units import count, duration
from .verdict import MEANINGS

FIRST_ROWS = ("lost", "duplicated", "out_of_order", "counters", "differing")
"""Shown always; the others only where they are not zero."""

TITLES = {
    "lost": "lost",
    "duplicated": "duplicated",
    "out_of_order": "out of order",
    "counters": "counters wrong",
    "differing": "stores differ",
}


def tables(result: Result) -> RenderableType:
    """All of it, the verdict last: that is what remains on the screen."""
    return Group(phase_table(result), Text(), outage_table(result), Text(), verdict_table(result))


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=0,  # one blank between columns: it fits a terminal of 80
    )


def phase_table(result: Result) -> Table:
    table = _table("Phase by phase")
    table.add_column("phase", no_wrap=True)
    for name in ("s", "asked", "acked", "fallback", "errors", "p50", "p99", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    for phase in result.phases:
        span, tally = phase.span, phase.tally
        table.add_row(
            Text(f"{span.phase.number} {span.phase.title}", style="red" if span.phase.outage else ""),
            f"{span.end - span.start:.1f}",
            count(tally.operations),
            count(tally.acknowledged),
            Text(count(tally.by_fallback), style="yellow" if tally.by_fallback else "dim"),
            Text(count(tally.failed), style="red" if tally.failed else "dim"),
            duration(tally.latency.p50),
            duration(tally.latency.p99),
            duration(tally.latency.max),
        )
    total = result.total
    table.add_section()
    table.add_row(
        "all",
        f"{result.end:.1f}",
        count(total.operations),
        count(total.acknowledged),
        count(total.by_fallback),
        count(total.failed),
        duration(total.latency.p50),
        duration(total.latency.p99),
        duration(total.latency.max),
        style="bold",
    )
    return table


def outage_table(result: Result) -> Table:
    table = _table(f"Losing {result.primary}")
    table.add_column("outage", no_wrap=True)
    table.caption = (
        "in flight: asked when it failed · missed: held by the fallback alone · offered: replayed to it"
    )
    table.caption_justify = "left"
    for name in ("fail over", "fail back", "longest wait", "in flight", "missed", "offered"):
        table.add_column(name, justify="right", no_wrap=True)
    for outage in result.outages:
        table.add_row(
            outage.phase.fault.value,
            duration(outage.fail_over),
            duration(outage.fail_back),
            duration(outage.longest),
            count(outage.caught),
            count(outage.missed),
            count(outage.replayed),
        )
    return table


def verdict_table(result: Result) -> RenderableType:
    verdict = result.verdict
    table = _table("Compared with both stores, read back without the library")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("", style="dim")
    table.show_header = False
    table.add_row(
        "acknowledged",
        Text(count(result.total.acknowledged), style="bold"),
        "writes the application was told are safe",
    )
    table.add_row(
        "served by fallback", count(result.total.by_fallback), f"of these, while {result.primary} could not"
    )
    for name, meaning in MEANINGS.items():
        found = verdict.violations.get(name, 0)
        if name in FIRST_ROWS or found:
            style = "bold red" if found else "bold green"
            table.add_row(TITLES.get(name, name.replace("_", " ")), Text(count(found), style=style), meaning)
    lines: list[RenderableType] = [table]
    lines += [Text(f"  {problem}", style="red") for problem in verdict.problems]
    for name, examples in verdict.details.items():
        lines += [Text(f"  {name}: {example}", style="red") for example in examples[:3]]
    sign, style = ("✓", "bold green") if verdict.clean else ("✗", "bold red")
    lines.append(Text(f"{sign} {headline(result)}", style=style))
    return Group(*lines)
