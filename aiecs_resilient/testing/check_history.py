"""Checks a history of storage calls against what the stores hold in the end. It never imports the library.

    python check_history.py [--json] [--details N] HISTORY STATE.json [STATE2.json]

Exit status 0: every count of violations is zero. 1: some are not. 2: the input proves nothing (damaged, no write
acknowledged, or a kind of write that no state shows).

HISTORY has one JSON object per line, in any order; a torn last line is ignored (`history.py` writes such files):
  {"line": "invoke", "id", "process", "op_id", "kind", "key", "value", "at"}
  {"line": "outcome", "id", "outcome": "ok" | "not_applied" | "unknown" | "error", "answer", "stale", "at"}
`at` is a clock all processes share. An invocation without outcome is unknown (its process was killed); a second
outcome settles an unknown one. Writes: create, append, increment, checkpoint, context, delete. Reads:
read_messages (answer: [[session, op_id], ...], all of the session), read_counter, read_checkpoint, read_context.

A STATE is what one store holds, read by plain SQL or Redis commands; a section that is left out is not checked:
  {"store": "redis",
   "sessions": {SESSION: [{"op_id", "position", "content"}, ...]},     in the order in which the store serves them
   "counters": {NAME: number}, "checkpoints": {NAME: digest}, "contexts": {NAME: digest}}
A content made by `payload` ([session, op_id, text] as JSON) carries its owner; otherwise `op_id` is needed. A digest
is "sha256:" and the hexadecimal digest of a text's UTF-8, or of other values' JSON with sorted keys.
"""

import argparse
import hashlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

VIOLATIONS = {
    "lost": "acknowledged, and not in a store",
    "duplicated": "one operation, more than one effect",
    "out_of_order": "acknowledged before another began, and behind it in the session",
    "foreign": "another session's data",
    "counters": "not between the sum of the acknowledged and that plus the unknown",
    "stale_reads": "older than what the same process wrote or read before, and not flagged",
    "not_applied_present": "reported as not applied, and there",
    "unexplained": "there, and nobody wrote it, or not as it is",
    "differing": "one store has it differently from the other",
}
REGISTERS = {"checkpoint": "checkpoints", "context": "contexts"}
READS = {"append": "read_messages", "increment": "read_counter"}
SECTIONS = {"create": "sessions", "append": "sessions", "increment": "counters", **REGISTERS}


class UnusableError(Exception):
    """The input proves nothing, whatever the library did."""


class Message(TypedDict, total=False):
    op_id: str | None
    position: float
    content: str


class State(TypedDict):
    store: str
    sessions: dict[str, list[Message]]
    counters: dict[str, int]
    checkpoints: dict[str, str]
    contexts: dict[str, str]


class Line(TypedDict):
    line: str
    id: str
    process: str
    op_id: str
    kind: str
    key: str
    value: str | int | None
    outcome: str
    answer: object
    stale: bool
    at: float


@dataclass
class Call:
    process: str
    op_id: str
    kind: str
    key: str
    value: str | int | None
    invoked: float
    outcome: str = "unknown"
    responded: float = math.inf  # an unknown write may still take effect, at any time
    answer: object = None
    stale: bool = False

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"

    @property
    def refused(self) -> bool:
        return self.outcome == "not_applied"

    def __str__(self) -> str:
        return f"{self.kind} {self.op_id or self.value!r} of {self.process}"


@dataclass
class Case:
    """The history, sorted for the questions the checks ask, and what they found."""

    calls: list[Call]
    states: list[State]

    def __post_init__(self) -> None:
        self.found: dict[str, list[str]] = {name: [] for name in VIOLATIONS}
        self.deleted = {call.key for call in self.calls if call.kind == "delete" and not call.refused}
        self.by_key: dict[tuple[str, str], list[Call]] = defaultdict(list)
        for call in self.calls:
            self.by_key[call.kind, call.key].append(call)
        appends = [call for call in self.calls if call.kind == "append"]
        self.appends = {(call.key, call.op_id): call for call in appends}
        self.sessions_of = {call.op_id: call.key for call in appends}
        self.digests = {(call.kind, call.value): call.key for call in self.calls if call.kind in REGISTERS}

    def writes(self, kind: str) -> dict[str, list[Call]]:
        """By key, without keys that somebody deleted: what is gone there is gone rightly."""
        keys = [key for of, key in self.by_key if of == kind and key not in self.deleted]
        return {key: self.by_key[kind, key] for key in keys}

    def add(self, violation: str, text: str) -> None:
        self.found[violation].append(text)


# Reading.


def read_history(path: Path) -> list[Call]:
    calls: dict[str, Call] = {}
    outcomes: list[Line] = []
    lines = path.read_bytes().split(b"\n")
    for number, raw in enumerate(lines, 1):
        if not raw:
            continue
        try:
            line = cast("Line", json.loads(raw))
            if line["line"] == "outcome":
                outcomes.append(line)
                continue
            call = Call(line["process"], line["op_id"], line["kind"], line["key"], line["value"], line["at"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # what a SIGKILL left of the last one
                continue
            raise UnusableError(f"{path}:{number}: not a line of a history: {error!r}") from None
        if line["id"] in calls:
            raise UnusableError(f"{path}:{number}: the id {line['id']!r} was invoked twice")
        calls[line["id"]] = call
    for line in sorted(outcomes, key=lambda line: line["at"]):
        finish(calls.get(line["id"]), line, path)
    return sorted(merge(calls.values()), key=lambda call: call.invoked)


def read_state(path: Path) -> State:
    state = cast("State", json.loads(path.read_bytes()))
    if "store" not in state or not state.keys() & set(SECTIONS.values()):
        raise UnusableError(f"{path}: a state needs 'store' and at least one of {set(SECTIONS.values())}")
    return state


def merge(calls: Iterable[Call]) -> list[Call]:
    """A write that was called again under its identity is one write: begun with the first call, ok if any was."""
    merged: dict[tuple[str, ...], Call] = {}
    for number, call in enumerate(calls):
        named = call.op_id and not call.kind.startswith("read_")
        name = (call.kind, call.key, call.op_id) if named else (str(number),)
        one = merged.setdefault(name, call)
        if one is call or call.refused:
            continue
        if one.refused:
            merged[name] = call
            continue
        one.invoked = min(one.invoked, call.invoked)
        one.responded = min(one.responded, call.responded)
        one.outcome = "ok" if call.ok else one.outcome
    return list(merged.values())


def finish(call: Call | None, line: Line, path: Path) -> None:
    if call is None or call.outcome in ("ok", "not_applied"):
        raise UnusableError(f"{path}: an outcome for {line['id']!r}, which is not open")
    call.outcome = line["outcome"]
    call.answer, call.stale = line.get("answer"), line.get("stale", False)
    if call.ok or call.refused:
        call.responded = line["at"]


def owner(message: Message) -> tuple[str | None, str | None]:
    """(session, op_id) that a content carries."""
    try:
        parsed: object = json.loads(message.get("content", ""))
    except ValueError:
        return None, None
    match parsed:
        case [str() as session, str() as op_id, str()]:
            return session, op_id
        case _:
            return None, None


def identity(message: Message) -> str:
    return owner(message)[1] or message.get("op_id") or f"? {message.get('content', '')[:40]!r}"


def digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# What the stores hold.


def check_sessions(case: Case, state: State) -> None:
    store, sessions = state["store"], state["sessions"]
    places: dict[str, dict[str, int]] = {}
    for session, messages in sessions.items():
        place = places[session] = dict[str, int]()
        last = -math.inf
        for index, message in enumerate(messages):
            op_id = identity(message)
            if op_id in place:
                case.add("duplicated", f"{store}: {session}: append {op_id} at {place[op_id]} and {index}")
            else:
                place[op_id] = index
                check_message(case, store, session, message)
            position = message.get("position", last)
            if position < last:
                case.add("out_of_order", f"{store}: {session}: position {position} is served after {last}")
            last = position
    for session, calls in case.writes("create").items():
        if session not in sessions and any(call.ok for call in calls):
            case.add("lost", f"{store}: session {session}")
    for session, calls in case.writes("append").items():
        place = places.get(session, {})
        for call in calls:
            if call.ok and call.op_id not in place:
                case.add("lost", f"{store}: {session}: {call}")
        check_order(case, store, session, calls, place)


def check_message(case: Case, store: str, session: str, message: Message) -> None:
    op_id = identity(message)
    where = f"{store}: {session}: append {op_id}"
    call = check_owner(case, where, session, op_id, owner(message)[0])
    if call is None:
        return
    if message.get("op_id") not in (None, op_id):
        case.add("unexplained", f"{where} is stored under the identity {message.get('op_id')}")
    elif call.value is not None and "content" in message and digest(message["content"]) != call.value:
        case.add("unexplained", f"{where} has another content than was written")


def check_owner(case: Case, where: str, session: str, op_id: str | None, carried: str | None) -> Call | None:
    call = case.appends.get((session, op_id or ""))
    if carried not in (None, session) or (call is None and op_id in case.sessions_of):
        case.add("foreign", f"{where} belongs to {carried or case.sessions_of.get(op_id or '')}")
    elif call is None:
        case.add("unexplained", where)
    elif call.refused:
        case.add("not_applied_present", where)
    return call


def check_order(case: Case, store: str, session: str, calls: list[Call], place: dict[str, int]) -> None:
    """A acknowledged before B began: A stands before B. One sweep over B by beginning, A by acknowledgement."""
    present = [call for call in calls if call.op_id in place]
    acknowledged = sorted((call for call in present if call.ok), key=lambda call: call.responded)
    latest: Call | None = None
    done = 0
    for call in present:  # by beginning
        while done < len(acknowledged) and acknowledged[done].responded < call.invoked:
            if latest is None or place[acknowledged[done].op_id] > place[latest.op_id]:
                latest = acknowledged[done]
            done += 1
        if latest is not None and place[latest.op_id] > place[call.op_id]:
            case.add("out_of_order", f"{store}: {session}: {call} stands before {latest}, which was earlier")


def check_counters(case: Case, state: State) -> None:
    store, counters = state["store"], state["counters"]
    for name, calls in case.writes("increment").items():
        certain = sum(amount(call) for call in calls if call.ok)
        open_ = [amount(call) for call in calls if not call.ok and not call.refused]
        low, high = certain + sum(min(0, one) for one in open_), certain + sum(max(0, one) for one in open_)
        if not low <= (value := counters.get(name, 0)) <= high:
            case.add("counters", f"{store}: {name} is {value}, not between {low} and {high}")
    for name, value in counters.items():
        if value and ("increment", name) not in case.by_key:
            case.add("unexplained", f"{store}: counter {name} is {value}")


def amount(call: Call) -> int:
    return call.value if isinstance(call.value, int) else 1


def check_registers(case: Case, state: State, kind: str) -> None:
    """What stands there was written, and nobody's acknowledged write came entirely after it."""
    store, values = state["store"], state["checkpoints"] if kind == "checkpoint" else state["contexts"]
    for key, calls in case.writes(kind).items():
        newest = max((call for call in calls if call.ok), key=lambda call: call.invoked, default=None)
        if key not in values:
            if newest is not None:
                case.add("lost", f"{store}: {newest}")
            continue
        writers = [call for call in calls if call.value == values[key]]
        applied = [call for call in writers if not call.refused]
        if applied:
            if newest is not None and max(call.responded for call in applied) < newest.invoked:
                case.add("lost", f"{store}: {key}: {newest}, an older one stands there")
        elif writers:
            case.add("not_applied_present", f"{store}: {key}: {writers[0]}")
    for key, value in values.items():
        if not any(call.value == value for call in case.by_key.get((kind, key), [])):
            home = case.digests.get((kind, value))
            text = f"{store}: {kind} {key}: {value}"
            case.add("foreign" if home else "unexplained", f"{text} of {home}" if home else text)


def check_difference(case: Case, first: State, second: State) -> None:
    """After the backlog is drained two mirrored stores hold the same, in the same order."""
    for section in dict.fromkeys(SECTIONS.values()):
        if section in first and section in second:
            one, two = comparable(first, section), comparable(second, section)
            for key in sorted(one.keys() | two.keys()):
                if one.get(key) != two.get(key):
                    values = f"{one.get(key)!s:.200} / {two.get(key)!s:.200}"
                    case.add("differing", f"{first['store']} / {second['store']}: {section} {key}: {values}")


def comparable(state: State, section: str) -> dict[str, object]:
    if section != "sessions":
        return cast("dict[str, dict[str, object]]", state)[section]
    return {session: [*map(identity, messages)] for session, messages in state["sessions"].items()}


# What was read meanwhile.


def check_reads(case: Case) -> None:
    mine: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for call in case.calls:
        if call.key not in case.deleted:
            mine[call.process, call.key].append(call)
    for calls in mine.values():
        check_messages_read(case, calls)
        check_counters_read(case, calls)
        for kind in REGISTERS:
            check_registers_read(case, kind, calls)


def known_before(calls: list[Call], kind: str) -> Iterable[tuple[Call, list[Call]]]:
    """Each read of a process, with its writes and reads that newly ended before that one began."""
    read = READS.get(kind, f"read_{kind}")
    of_kind = [call for call in calls if call.kind in (kind, read) and call.ok]
    ended = sorted(of_kind, key=lambda call: call.responded)
    done = 0
    for call in of_kind:  # by beginning
        if call.kind == read:
            before = done
            while done < len(ended) and ended[done].responded < call.invoked:
                done += 1
            yield call, ended[before:done]


def seen(read: Call) -> list[tuple[str | None, str | None]]:
    answer = cast("list[tuple[str | None, str | None]] | None", read.answer)
    return [(session, op_id) for session, op_id in answer or []]


def check_messages_read(case: Case, calls: list[Call]) -> None:
    known: dict[str, Call] = {}
    for read, ended in known_before(calls, "append"):
        for call in ended:
            if call.kind == "append":
                known[call.op_id] = call
            else:
                known |= {op_id: call for _, op_id in seen(call) if op_id is not None}
        answer = seen(read)
        missing = known.keys() - {op_id for _, op_id in answer}
        if missing and not read.stale:
            example = min(missing)
            case.add("stale_reads", f"{read} of {read.key}: lacks {example}, known from {known[example]}")
        for session, op_id in answer:
            check_owner(case, f"{read} of {read.key} shows {op_id}, which", read.key, op_id, session)


def check_counters_read(case: Case, calls: list[Call]) -> None:
    if any(amount(call) < 0 for call in calls if call.kind == "increment"):
        return  # what goes down may be read lower than before
    own, floor = 0, 0
    for read, ended in known_before(calls, "increment"):
        own += sum(amount(call) for call in ended if call.kind == "increment")
        read_before = [call.answer for call in ended if call.kind == "read_counter"]
        floor = max([floor, own, *(one for one in read_before if isinstance(one, int))])
        value = read.answer if isinstance(read.answer, int) else 0
        if value < floor and not read.stale:
            case.add("stale_reads", f"{read} of {read.key}: {value}, after {floor} was known")


def check_registers_read(case: Case, kind: str, calls: list[Call]) -> None:
    """`floor`: whatever ended before this moment is older than something this process has written or read."""
    floor = -math.inf
    for read, ended in known_before(calls, kind):
        for call in ended:
            if call.kind == kind:
                floor = max(floor, call.invoked)
            elif writers := written(case, kind, call):
                floor = max(floor, min(one.invoked for one in writers))
        writers = written(case, kind, read)
        if read.answer is not None and not writers:
            home = case.digests.get((kind, cast("str", read.answer)))
            case.add("foreign" if home else "unexplained", f"{read} of {read.key}: {read.answer}")
        elif writers and all(one.refused for one in writers):
            case.add("not_applied_present", f"{read} of {read.key}: {writers[0]}")
        elif not read.stale and max((one.responded for one in writers), default=-math.inf) < floor:
            case.add("stale_reads", f"{read} of {read.key}: {read.answer}, a newer one was known")


def written(case: Case, kind: str, read: Call) -> list[Call]:
    return [call for call in case.by_key.get((kind, read.key), []) if call.value == read.answer]


# The verdict.


def check(calls: list[Call], states: list[State]) -> Case:
    case = Case(calls, states)
    acknowledged = {call.kind for call in calls if call.ok and call.kind in SECTIONS}
    if not acknowledged:
        raise UnusableError("not one write was acknowledged: this history proves nothing")
    for kind in sorted(acknowledged):
        if not any(SECTIONS[kind] in state for state in states):
            raise UnusableError(f"acknowledged writes of kind {kind}, but no state has {SECTIONS[kind]!r}")
    for state in states:
        if "sessions" in state:
            check_sessions(case, state)
        if "counters" in state:
            check_counters(case, state)
        for kind, section in REGISTERS.items():
            if section in state:
                check_registers(case, state, kind)
    if len(states) == 2:
        check_difference(case, *states)
    check_reads(case)
    return case


def summary(case: Case) -> dict[str, int]:
    writes = [call for call in case.calls if call.kind in SECTIONS or call.kind == "delete"]
    reads = [call for call in case.calls if call.kind.startswith("read_")]
    return {
        "acknowledged": sum(call.ok for call in writes),
        "unknown": sum(not call.ok and not call.refused for call in writes),
        "not_applied": sum(call.refused for call in writes),
        "reads": sum(call.ok for call in reads),
        "flagged_stale": sum(call.ok and call.stale for call in reads),
        "deleted_keys": len(case.deleted),
    }


def report(case: Case, details: int) -> str:
    lines = [f"{name:20} {count:>9}" for name, count in summary(case).items()]
    for name, meaning in VIOLATIONS.items():
        found = case.found[name]
        lines.append(f"{name:20} {len(found):>9}   {meaning}")
        lines += [f"    {text}" for text in found[:details]]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Check a history of calls against what the stores hold.")
    parser.add_argument("history", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("second", type=Path, nargs="?", help="the other store, where writes are mirrored")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--details", type=int, default=20, metavar="N", help="violations shown of each kind")
    options = parser.parse_args(arguments)
    try:
        states = [read_state(path) for path in (options.state, options.second) if path is not None]
        case = check(read_history(options.history), states)
    except (UnusableError, OSError, ValueError) as error:
        print(f"unusable: {error}", file=sys.stderr)  # noqa: T201 - a program that prints is what this is
        return 2
    clean = not any(case.found.values())
    counts = {name: len(found) for name, found in case.found.items()}
    shown = {name: found[: options.details] for name, found in case.found.items() if found}
    result = {"clean": clean, **summary(case), "violations": counts, "details": shown}
    print(json.dumps(result) if options.json else report(case, options.details))  # noqa: T201
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
