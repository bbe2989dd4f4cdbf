"""The run in plain words, with its own numbers: what failed, what was at risk, and why nothing was lost."""

from __future__ import annotations

from dataclasses import dataclass

from .figures import Outage
from .phases import Fault
from .result import Result
from .units import count, duration, plural


@dataclass(frozen=True, slots=True)
class Chapter:
    """One outage, as three answers."""

    title: str
    failed: str
    risk: str
    kept: str


def headline(result: Result) -> str:
    """The verdict in one sentence."""
    acknowledged = count(result.total.acknowledged)
    if result.verdict.clean:
        return f"{acknowledged} writes acknowledged through two outages of {result.primary}. Not one lost, doubled or out of order."
    wrong = sum(result.verdict.violations.values())
    if wrong:
        return f"{acknowledged} writes acknowledged, and {plural(wrong, 'violation')} found. This must not happen."
    return f"The run did not come to a clean end: {result.verdict.problems[0]}"


def opening(result: Result) -> str:
    """What was done, before what happened."""
    setting, options = result.setting, result.options
    return (
        f"{plural(options.sessions, 'conversation')} at a time, {plural(result.sessions, 'session')} in all, in "
        f"{setting.spoken} languages, {count(result.total.operations)} operations in {result.end:.0f} seconds. The chain was "
        f"{result.primary} as primary, {result.fallback} as fallback, from one YAML file. Meanwhile the primary was killed, "
        "restarted, frozen and thawed. Then both stores were read back with plain Redis commands and plain SQL, and every "
        "acknowledged write was looked up in both."
    )


def chapters(result: Result) -> list[Chapter]:
    """One for each outage."""
    return [
        _killed(result, outage) if outage.fault is Fault.KILL else _frozen(result, outage)
        for outage in result.outages
    ]


def _killed(result: Result, outage: Outage) -> Chapter:
    primary, fallback = result.primary, result.fallback
    return Chapter(
        title=f"{primary} is killed",
        failed=(
            f"At {outage.failed_at:.1f} s {primary} got SIGKILL while it served {_load(result)}. All connections broke. It was "
            f"gone for {outage.returned_at - outage.failed_at:.1f} s, then restarted on the same port with the same files."
        ),
        risk=(
            f"{plural(outage.caught, 'operation')} had been sent and not answered. Nobody can know whether a store that dies "
            "between command and reply has done it: asking again may do it twice, not asking may lose it. And all that was "
            "written afterwards would be missing in the store that is meant to lead."
        ),
        kept=f"{_taken_over(outage, fallback)} {_returned(outage, primary, fallback)}",
    )


def _frozen(result: Result, outage: Outage) -> Chapter:
    primary, fallback = result.primary, result.fallback
    late = (
        f"When {primary} woke up it still carried out {plural(outage.late, 'write')} from its queue, seconds after "
        f"{fallback} had answered for them. They carried the same identities, so each counts once. "
        if outage.late
        else f"What {primary} still had in its queue when it woke up carries the same identities, so it counts once. "
    )
    return Chapter(
        title=f"{primary} is frozen",
        failed=(
            f"At {outage.failed_at:.1f} s {primary} was stopped with SIGSTOP for "
            f"{outage.returned_at - outage.failed_at:.1f} s: connections stay open, new ones are accepted, nothing answers."
        ),
        risk=(
            "This is worse than dead, because it comes back as if nothing had been. It then does what it was asked before it "
            "froze: writes that timed out, and that were done elsewhere meanwhile, are done again, late, behind newer ones. "
            f"{plural(outage.caught, 'operation')} were caught that way."
        ),
        kept=f"{_taken_over(outage, fallback)} {late}{_returned(outage, primary, fallback)}",
    )


def _load(result: Result) -> str:
    rate = sum(bucket.operations for bucket in result.buckets) / max(result.end, 1e-9)
    return f"about {rate:.0f} operations a second"


def _taken_over(outage: Outage, fallback: str) -> str:
    if outage.fail_over is None and not outage.led_already:
        return f"{fallback} did not take over."
    taken = "led already" if outage.fail_over is None else f"took over after {duration(outage.fail_over)}"
    errors = (
        "no caller saw an error"
        if not outage.tally.failed
        else f"callers saw {plural(outage.tally.failed, 'error')}"
    )
    return (
        f"{fallback} {taken}. What was under way was repeated there, each write under "
        f"the identity it had from the start; {errors}, and the longest wait was {duration(outage.longest)}. "
        f"{fallback} then acknowledged {plural(outage.missed, 'write')} alone, each with a mark: the other store lacks this."
    )


def _returned(outage: Outage, primary: str, fallback: str) -> str:
    if outage.fail_back is None:
        return f"{primary} did not lead again within the run."
    again = (
        f" ({plural(outage.replayed, 'record')} offered, the last seconds before the crash once more in case its file had "
        "lost its end; what it had already it recognised)"
        if outage.fault is Fault.KILL
        else f" ({plural(outage.replayed, 'record')} offered; what it had already it recognised)"
    )
    return (
        f"By those marks {primary} was brought level{again} while {fallback} went on serving, and it led again "
        f"{duration(outage.fail_back)} after its return."
    )


def method(result: Result) -> str:
    """Why the zeros can be believed."""
    sizes = " and ".join(f"{held.store} ({count(held.messages)} messages)" for held in result.holdings)
    return (
        f"Every call was written to a history file before it was made, and its answer after. Both stores were read whole, "
        f"{sizes}, by code that does not use this library. A separate program compared history and stores: every acknowledged "
        "message, checkpoint, pending write, task context and session in both stores, messages in the order of acknowledgement, "
        "counters equal to their sums, and nothing there that nobody wrote. Messages were recognised by a reference that the "
        "application put into their metadata, not by the library's own identity."
    )
