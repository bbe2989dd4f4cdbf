"""The breaker as a state machine, without a store: windows, periods, probes, and ten thousand interleavings against a model."""

import random
from dataclasses import dataclass, field

import pytest

from aiecs_resilient.errors import ConfigurationError
from aiecs_resilient.layers._breaker import Admission, BreakerPolicy, BreakerState, Phase
from aiecs_resilient.layers._window import CountWindow, TimeWindow, Totals


def tripped(now: float = 0.0, **policy: float) -> BreakerState:
    """Open since ``now``."""
    state = BreakerState(BreakerPolicy(jitter=0.0, minimum_calls=1, **policy))  # type: ignore[arg-type]
    state.failed(admitted(state, now), 0.0, now)
    assert state.phase is Phase.OPEN
    return state


def admitted(state: BreakerState, now: float) -> Admission:
    admission = state.admit(now)
    assert admission is not None
    return admission


def test_a_window_of_calls_forgets_the_oldest() -> None:
    """Totals are those of the last N calls, checked against a plain list."""
    source = random.Random(1)
    window, held = CountWindow(7), list[tuple[bool, bool]]()
    for _ in range(500):
        entry = (source.random() < 0.5, source.random() < 0.3)
        window.add(*entry, now=0.0)
        held = [*held, entry][-7:]
        assert window.totals(0.0) == (len(held), sum(f for f, _ in held), sum(s for _, s in held))
    window.clear()
    assert window.totals(0.0) == (0, 0, 0)


def test_a_window_of_time_forgets_by_time() -> None:
    """Totals are those of the last seconds, to a tenth of the window, checked against a plain list."""
    source = random.Random(2)
    window, held, now = TimeWindow(10.0), list[tuple[float, bool, bool]](), 1_000.0
    for _ in range(2_000):
        now += source.choice([0.0, 0.01, 0.3, 2.0, 15.0])
        if source.random() < 0.7:
            entry = (source.random() < 0.5, source.random() < 0.3)
            window.add(*entry, now=now)
            held.append((now, *entry))
        totals = window.totals(now)
        for seconds, compare in ((9.0, int.__le__), (10.0, int.__ge__)):
            recent = [item for item in held if item[0] > now - seconds]
            exact = Totals(len(recent), sum(f for _, f, _ in recent), sum(s for _, _, s in recent))
            assert all(compare(have, got) for have, got in zip(exact, totals, strict=True))


def test_half_of_the_calls_failing_opens_it() -> None:
    """A rate, not a run: failures between successes count, which a counter of consecutive ones never sees."""
    state = BreakerState(BreakerPolicy(failure_rate=0.5, minimum_calls=10, window_calls=20))
    for number in range(100):
        admission = state.admit(0.0)
        if admission is None:
            break
        (state.failed if number % 2 else state.succeeded)(admission, 0.0, 0.0)
    assert state.phase is Phase.OPEN
    assert number == 10


def test_too_few_calls_are_no_reason() -> None:
    """The first failure after a start is not "100 % failed"."""
    state = BreakerState(BreakerPolicy(minimum_calls=5))
    for _ in range(4):
        state.failed(admitted(state, 0.0), 0.0, 0.0)
    assert state.phase is Phase.CLOSED
    state.failed(admitted(state, 0.0), 0.0, 0.0)
    assert state.phase is Phase.OPEN


def test_crawling_opens_it_too() -> None:
    """A store that answers everything, but late, is as bad as one that fails."""
    state = BreakerState(BreakerPolicy(slow_after=1.0, slow_rate=0.8, minimum_calls=5))
    for elapsed in (0.1, 1.0, 1.0, 1.0, 1.0):
        assert state.phase is Phase.CLOSED
        state.succeeded(admitted(state, 0.0), elapsed, 0.0)
    assert state.phase is Phase.OPEN


def test_a_good_result_never_opens_it() -> None:
    """The minimum reached by a success is judged at the next failure."""
    state = BreakerState(BreakerPolicy(minimum_calls=5))
    for _ in range(4):
        state.failed(admitted(state, 0.0), 0.0, 0.0)
    state.succeeded(admitted(state, 0.0), 0.0, 0.0)
    assert state.phase is Phase.CLOSED


def test_half_open_lets_through_as_many_as_there_are_probes() -> None:
    """Not everybody: a herd would bring the store down again."""
    for probes in (1, 3):
        state = tripped(open_for=5.0, probes=probes)
        assert state.admit(4.9) is None
        through = [state.admit(5.0) for _ in range(100)]
        assert sum(admission is not None for admission in through) == probes


def test_all_probes_must_succeed_and_the_first_that_fails_decides() -> None:
    """Closing takes every probe, opening again one."""
    state = tripped(open_for=5.0, probes=3)
    probes = [admitted(state, 5.0) for _ in range(3)]
    state.succeeded(probes[0], 0.1, 5.1)
    assert state.admit(5.1) is None
    state.succeeded(probes[1], 0.1, 5.1)
    assert state.phase is Phase.HALF_OPEN
    state.succeeded(probes[2], 0.1, 5.2)
    assert state.phase is Phase.CLOSED
    again = tripped(open_for=5.0, probes=3)
    probes = [admitted(again, 5.0) for _ in range(3)]
    again.succeeded(probes[0], 0.1, 5.1)
    again.failed(probes[1], 0.1, 5.1)
    assert again.phase is Phase.OPEN
    again.succeeded(probes[2], 0.1, 5.2)
    assert again.phase is Phase.OPEN


def test_a_slow_probe_has_failed() -> None:
    """A store that still crawls is not back."""
    state = tripped(slow_after=1.0)
    state.succeeded(admitted(state, 5.0), 1.5, 6.5)
    assert state.phase is Phase.OPEN


def test_a_probe_that_never_returns_does_not_block_for_ever() -> None:
    """Its lease ends and another one goes; what it brings later is a stranger."""
    state = tripped(open_for=5.0, probe_lease=10.0)
    lost = admitted(state, 5.0)
    assert state.admit(14.9) is None
    assert state.probe_in(14.9) == pytest.approx(0.1)
    next_one = admitted(state, 15.0)
    state.failed(lost, 11.0, 16.0)
    assert state.phase is Phase.HALF_OPEN
    state.succeeded(next_one, 0.1, 16.0)
    assert state.phase is Phase.CLOSED


def test_a_cancelled_probe_frees_its_place() -> None:
    """It says nothing about the store, so the next call is the probe."""
    state = tripped(open_for=5.0)
    state.neutral(admitted(state, 5.0))
    assert state.phase is Phase.HALF_OPEN
    state.succeeded(admitted(state, 5.0), 0.1, 5.0)
    assert state.phase is Phase.CLOSED


def test_late_results_of_another_period_change_nothing() -> None:
    """Calls that were in flight when it opened end during the next periods: neither do they open nor close those."""
    state = BreakerState(BreakerPolicy(jitter=0.0, minimum_calls=1, open_for=5.0))
    late = [admitted(state, 0.0) for _ in range(4)]
    state.failed(late.pop(), 0.0, 0.0)
    state.succeeded(late.pop(), 0.0, 1.0)
    assert state.phase is Phase.OPEN
    probe = admitted(state, 5.0)
    state.failed(late.pop(), 0.0, 5.0)
    assert state.phase is Phase.HALF_OPEN
    state.succeeded(probe, 0.1, 5.1)
    state.failed(late.pop(), 0.0, 5.2)
    assert state.phase is Phase.CLOSED
    assert state.totals(5.2) == (0, 0, 0)


def test_the_open_period_grows_and_is_forgiven() -> None:
    """Doubled at each relapse up to its bound; after doing well for as long as it was open, it begins anew."""
    state = tripped(open_for=5.0, max_open_for=15.0)
    now = 0.0
    for period in (5.0, 10.0, 15.0, 15.0):
        assert state.probe_in(now) == period
        now += period
        state.failed(admitted(state, now), 0.0, now)
    now += 15.0
    state.succeeded(admitted(state, now), 0.0, now)
    state.failed(admitted(state, now + 14.0), 0.0, now + 14.0)  # too early: a relapse
    assert state.probe_in(now + 14.0) == 15.0
    now += 29.0
    state.succeeded(admitted(state, now), 0.0, now)
    state.failed(admitted(state, now + 15.0), 0.0, now + 15.0)
    assert state.probe_in(now + 15.0) == 5.0


def test_the_open_period_is_jittered() -> None:
    """Many processes that opened together do not probe together."""
    periods = []
    for seed in range(300):
        state = BreakerState(
            BreakerPolicy(minimum_calls=1, open_for=10.0, jitter=0.2), source=random.Random(seed)
        )
        state.failed(admitted(state, 0.0), 0.0, 0.0)
        periods.append(state.probe_in(0.0) or 0.0)
    assert 8.0 <= min(periods) < 8.2
    assert 11.8 < max(periods) <= 12.0


def test_forced_open_refuses_and_forced_closed_never_opens() -> None:
    """An operator's word counts more than the window; taken back, it begins anew."""
    state = BreakerState(BreakerPolicy(minimum_calls=1))
    state.force("open", 0.0)
    assert state.admit(1e9) is None
    assert state.probe_in(0.0) is None
    assert state.describe(0.0).startswith("forced open")
    state.force("closed", 0.0)
    for _ in range(50):
        state.failed(admitted(state, 0.0), 0.0, 0.0)
    assert state.phase is Phase.CLOSED
    assert state.totals(0.0).failed == 20
    state.force(None, 0.0)
    state.failed(admitted(state, 0.0), 0.0, 0.0)
    assert state.phase is Phase.OPEN


def test_observing_refuses_nobody_and_shows_what_would_be() -> None:
    """It goes through the phases; calls that would have been refused are counted and pass."""
    state = BreakerState(BreakerPolicy(minimum_calls=1, jitter=0.0, open_for=5.0))
    state.configure(state.policy, "observe", 0.0)
    state.failed(admitted(state, 0.0), 0.0, 0.0)
    assert state.phase is Phase.OPEN
    state.succeeded(admitted(state, 1.0), 0.0, 1.0)
    assert (state.phase, state.refused) == (Phase.OPEN, 1)
    probe, other = admitted(state, 5.0), admitted(state, 5.0)
    state.failed(other, 0.0, 5.0)
    state.succeeded(probe, 0.0, 5.0)
    assert state.phase is Phase.CLOSED
    assert "observe only" in state.describe(5.0)


def test_it_outlives_a_reload() -> None:
    """New numbers take effect on the same knowledge; an operator's hand is not lost; another window begins empty."""
    state = tripped(open_for=5.0)
    state.configure(BreakerPolicy(open_for=7.0, jitter=0.0), "auto", 1.0)
    assert state.phase is Phase.OPEN
    assert state.probe_in(1.0) == 4.0
    state.force("open", 1.0)
    state.configure(BreakerPolicy(), "auto", 2.0)
    assert state.admit(1e9) is None
    state.force(None, 2.0)
    state.failed(admitted(state, 2.0), 0.0, 2.0)
    state.configure(BreakerPolicy(window_calls=10), "auto", 2.0)
    assert state.totals(2.0) == (0, 0, 0)


def test_a_change_is_told_once_and_last() -> None:
    """Who is told sees the new phase and may act on it."""
    state, told = tripped(), list[tuple[Phase, Phase, Phase]]()
    state.on_change = lambda old, new: told.append((old, new, state.phase))
    state.succeeded(admitted(state, 60.0), 0.0, 60.0)
    assert told == [
        (Phase.OPEN, Phase.HALF_OPEN, Phase.HALF_OPEN),
        (Phase.HALF_OPEN, Phase.CLOSED, Phase.CLOSED),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"failure_rate": 0.0}, "failure_rate must be above 0 and at most 1"),
        ({"slow_rate": 1.1}, "slow_rate must be"),
        ({"minimum_calls": 0}, "minimum_calls must be at least 1"),
        ({"minimum_calls": 30}, r"minimum_calls \(30\) is above window_calls \(20\)"),
        ({"window_time": -1.0}, "window_time must be above 0 in seconds"),
        ({"open_for": 90.0}, r"max_open_for \(60 s\) is below open_for \(90 s\)"),
        ({"jitter": 2.0}, "jitter must be"),
        ({"probes": 0}, "probes must be"),
    ],
)
def test_bad_numbers_are_refused(options: dict[str, float], message: str) -> None:
    """With what is allowed."""
    with pytest.raises(ConfigurationError, match=message):
        BreakerPolicy(**options)  # type: ignore[arg-type]


# ------------------------------------------------------------------ against a model


@dataclass
class Model:
    """The same rules, told naively: plain lists, everything worked out anew each time. Without jitter and forced modes."""

    policy: BreakerPolicy
    phase: str = "closed"
    period: int = 0
    results: list[tuple[bool, bool]] = field(default_factory=list)
    probes: list[tuple[int, float]] = field(default_factory=list)
    good: int = 0
    opened_at: float = 0.0
    length: float = 0.0
    closed_at: float = -1e18
    relapses: int = 0

    def admit(self, call: int, now: float) -> tuple[str, int] | None:
        if self.phase == "closed":
            return ("closed", self.period)
        if self.phase == "open" and now >= self.opened_at + self.length:
            self.phase, self.period, self.probes, self.good = "half-open", self.period + 1, [], 0
        if self.phase == "half-open":
            self.probes = [(known, ends) for known, ends in self.probes if ends > now]
            if len(self.probes) + self.good < self.policy.probes:
                self.probes.append((call, now + self.policy.probe_lease))
                return ("half-open", self.period)
        return None

    def result(self, call: int, ticket: tuple[str, int], kind: str, slow: bool, now: float) -> None:
        if ticket != (self.phase, self.period):
            return
        if self.phase == "half-open":
            if call not in [known for known, _ends in self.probes]:
                return
            self.probes = [(known, ends) for known, ends in self.probes if known != call]
            if kind == "neutral":
                return
            if kind == "failed" or slow:
                self.open(now)
            else:
                self.good += 1
                if self.good == self.policy.probes:
                    self.phase, self.period, self.results, self.closed_at = "closed", self.period + 1, [], now
        elif kind != "neutral":
            self.results = [*self.results, (kind == "failed", slow)][-self.policy.window_calls :]
            calls = len(self.results)
            failed, crawled = (sum(column) for column in zip(*self.results, strict=True))
            enough = calls >= self.policy.minimum_calls
            too_much = failed / calls >= self.policy.failure_rate or crawled / calls >= self.policy.slow_rate
            if (kind == "failed" or slow) and enough and too_much:
                self.open(now)

    def open(self, now: float) -> None:
        relapse = self.phase == "half-open" or now - self.closed_at < self.length
        self.relapses = self.relapses + 1 if relapse else 0
        self.length = min(self.policy.max_open_for, self.policy.open_for * 2**self.relapses)
        self.phase, self.period, self.opened_at = "open", self.period + 1, now


@pytest.mark.parametrize("batch", range(10))
def test_random_interleavings_agree_with_the_model(batch: int) -> None:
    """10,000 of them: calls begin and end in any order, with any result; phases agree, no herd passes, and it never stays half-open."""
    for seed in range(batch * 1_000, batch * 1_000 + 1_000):
        source = random.Random(seed)
        policy = BreakerPolicy(
            failure_rate=source.choice([0.25, 0.5, 1.0]),
            slow_rate=source.choice([0.5, 1.0]),
            minimum_calls=source.randint(1, 4),
            window_calls=source.randint(4, 8),
            open_for=2.0,
            max_open_for=16.0,
            jitter=0.0,
            probes=source.randint(1, 3),
            probe_lease=4.0,
        )
        state, model, now = BreakerState(policy), Model(policy), 0.0
        flying: list[tuple[int, Admission, tuple[str, int]]] = []
        for step in range(150):
            now += source.choice([0.0, 0.0, 0.25, 1.0, 3.0])
            if flying and source.random() < 0.5:
                call, admission, ticket = flying.pop(source.randrange(len(flying)))
                kind = source.choices(["succeeded", "failed", "neutral"], [5, 4, 1])[0]
                slow = kind != "neutral" and source.random() < 0.2
                if kind == "neutral":
                    state.neutral(admission)
                else:
                    (state.succeeded if kind == "succeeded" else state.failed)(
                        admission, 1.0 if slow else 0.1, now
                    )
                model.result(call, ticket, kind, slow, now)
            else:
                given, expected = state.admit(now), model.admit(step, now)
                assert (given is None) == (expected is None), (seed, step)
                if given is not None and expected is not None:
                    flying.append((step, given, expected))
            assert state.phase.value == model.phase, (seed, step)
            live = [held for _call, held, _ticket in flying if held in state._leases and held.expires > now]
            assert len(live) <= policy.probes, (seed, step)
        now += policy.max_open_for + policy.probe_lease
        for _ in range(policy.probes):
            state.succeeded(admitted(state, now), 0.1, now)
        assert state.phase is Phase.CLOSED, seed
