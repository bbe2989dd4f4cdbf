"""The recorder's file survives a SIGKILL, and the checker catches every violation without trusting the library."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aiecs_resilient.errors import CircuitOpenError, StorageTimeoutError
from aiecs_resilient.operations import OperationContext
from aiecs_resilient.testing import check_history
from aiecs_resilient.testing.history import HistoryRecorder, digest, payload, tags

Line = dict[str, object]
State = dict[str, object]


class Story:
    """A handwritten history: each call takes one unit of time unless told otherwise."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.now = 0.0

    def begin(self, kind: str, key: str, value: object = None, *, op_id: str = "", process: str = "p") -> str:
        self.now += 1
        identifier = f"i{len(self.lines)}"
        line: Line = {"line": "invoke", "id": identifier, "process": process, "op_id": op_id, "kind": kind}
        self.lines.append(line | {"key": key, "value": value, "at": self.now})
        return identifier

    def end(
        self, identifier: str, outcome: str = "ok", *, answer: object = None, stale: bool = False
    ) -> None:
        self.now += 1
        line: Line = {"line": "outcome", "id": identifier, "outcome": outcome, "answer": answer}
        self.lines.append(line | {"stale": stale, "at": self.now})

    def append(self, session: str, op_id: str, outcome: str = "ok", process: str = "p") -> None:
        value = digest(payload(session, op_id, "text"))
        self.end(self.begin("append", session, value, op_id=op_id, process=process), outcome)

    def write(self, kind: str, key: str, value: object, outcome: str = "ok", process: str = "p") -> None:
        self.end(self.begin(kind, key, value, process=process), outcome)

    def read(self, kind: str, key: str, answer: object, *, stale: bool = False, process: str = "p") -> None:
        self.end(self.begin(kind, key, process=process), answer=answer, stale=stale)


def messages(session: str, *op_ids: str) -> list[dict[str, object]]:
    return [
        {"op_id": op_id, "position": at, "content": payload(session, op_id, "text")}
        for at, op_id in enumerate(op_ids)
    ]


def seen(session: str, *op_ids: str) -> list[list[str]]:
    return [[session, op_id] for op_id in op_ids]


def good() -> tuple[Story, State]:
    """Something of everything, and nothing wrong."""
    story = Story()
    story.write("create", "s", None)
    for op_id in ("a", "b"):
        story.append("s", op_id)
    story.append("s", "maybe", "unknown")
    story.append("s", "never", "not_applied")
    story.read("read_messages", "s", seen("s", "a", "b"))
    story.append("t", "c")
    story.write("increment", "n", 2)
    story.write("increment", "n", 3, "unknown")
    story.write("increment", "n", 5, "not_applied")
    story.read("read_counter", "n", 2)
    story.write("checkpoint", "k", digest("k1"))
    story.write("checkpoint", "k", digest("k2"), "unknown")
    story.write("context", "x", digest("x1"))
    story.write("context", "x", digest("x2"))
    story.read("read_context", "x", digest("x2"))
    story.read("read_checkpoint", "k", digest("k1"))
    state: State = {
        "store": "one",
        "sessions": {"s": messages("s", "a", "b", "maybe"), "t": messages("t", "c")},
        "counters": {"n": 5},
        "checkpoints": {"k": digest("k2")},
        "contexts": {"x": digest("x2")},
    }
    return story, state


def run(folder: Path, story: Story, *states: State, last: bytes = b"") -> tuple[int, dict[str, int]]:
    """The checker as a program of its own; (exit status, violations that are not zero)."""
    history = folder / "history.jsonl"
    history.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in story.lines) + last)
    files = [folder / f"state{number}.json" for number in range(len(states))]
    for file, state in zip(files, states, strict=True):
        file.write_text(json.dumps(state))
    done = subprocess.run(
        [sys.executable, "-I", check_history.__file__, "--json", str(history), *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        return done.returncode, {done.stderr: 1}
    violations: dict[str, int] = json.loads(done.stdout)["violations"]
    return done.returncode, {name: count for name, count in violations.items() if count}


def test_a_good_history_passes_with_one_store_and_with_two(tmp_path: Path) -> None:
    """Unknown writes may be there or not, overlapping ones in any order."""
    story, state = good()
    assert run(tmp_path, story, state) == (0, {})
    assert run(tmp_path, story, state, state | {"store": "two"}) == (0, {})


def lose_message(story: Story, state: State) -> None:
    state["sessions"] = {"s": messages("s", "a"), "t": messages("t", "c")}


def lose_session(story: Story, state: State) -> None:
    story.write("create", "empty", None)


def lose_context(story: Story, state: State) -> None:
    state["contexts"] = {}


def revert_context(story: Story, state: State) -> None:
    state["contexts"] = {"x": digest("x1")}


def double_message(story: Story, state: State) -> None:
    state["sessions"] = {"s": messages("s", "a", "b", "b"), "t": messages("t", "c")}


def double_under_new_identity(story: Story, state: State) -> None:
    again = {"op_id": "fresh", "position": 9, "content": payload("s", "b", "text")}
    state["sessions"] = {"s": [*messages("s", "a", "b"), again], "t": messages("t", "c")}


def swap_messages(story: Story, state: State) -> None:
    state["sessions"] = {"s": messages("s", "b", "a"), "t": messages("t", "c")}


def unknown_before_acknowledged(story: Story, state: State) -> None:
    state["sessions"] = {"s": messages("s", "a", "maybe", "b"), "t": messages("t", "c")}


def serve_against_positions(story: Story, state: State) -> None:
    one, two = messages("s", "a", "b")
    state["sessions"] = {"s": [one | {"position": 5}, two], "t": messages("t", "c")}


def move_message(story: Story, state: State) -> None:
    state["sessions"] = {"s": messages("s", "a", "b"), "t": [*messages("t", "c"), *messages("s", "maybe")]}


def move_untagged_message(story: Story, state: State) -> None:
    stray = {"op_id": "maybe", "content": "text"}
    state["sessions"] = {"s": messages("s", "a", "b"), "t": [*messages("t", "c"), stray]}


def read_foreign(story: Story, state: State) -> None:
    story.read("read_messages", "t", [*seen("t", "c"), *seen("s", "a")])


def foreign_context(story: Story, state: State) -> None:
    story.write("context", "y", digest("y1"), "unknown")
    story.write("context", "z", digest("z1"))
    state["contexts"] = {"x": digest("x2"), "y": digest("z1"), "z": digest("z1")}


def count_too_much(story: Story, state: State) -> None:
    state["counters"] = {"n": 6}


def count_too_little(story: Story, state: State) -> None:
    state["counters"] = {"n": 1}


def count_nothing(story: Story, state: State) -> None:
    state["counters"] = {}


def forget_own_write(story: Story, state: State) -> None:
    story.read("read_messages", "s", seen("s", "a"))


def read_backwards(story: Story, state: State) -> None:
    story.read("read_messages", "s", seen("s", "a", "b"), process="q")
    story.read("read_messages", "s", seen("s", "a"), process="q")


def count_backwards(story: Story, state: State) -> None:
    story.read("read_counter", "n", 5, process="q")
    story.read("read_counter", "n", 2, process="q")


def forget_own_increment(story: Story, state: State) -> None:
    story.read("read_counter", "n", None)


def read_old_context(story: Story, state: State) -> None:
    story.read("read_context", "x", digest("x1"))


def read_no_context(story: Story, state: State) -> None:
    story.read("read_context", "x", None)


def context_backwards(story: Story, state: State) -> None:
    story.read("read_context", "x", digest("x2"), process="q")
    story.read("read_context", "x", digest("x1"), process="q")


def apply_refused_message(story: Story, state: State) -> None:
    state["sessions"] = {"s": messages("s", "a", "b", "never"), "t": messages("t", "c")}


def read_refused_message(story: Story, state: State) -> None:
    story.read("read_messages", "s", seen("s", "a", "b", "never"), process="q")


def apply_refused_context(story: Story, state: State) -> None:
    story.write("context", "y", digest("y1"), "not_applied")
    state["contexts"] = {"x": digest("x2"), "y": digest("y1")}


def invent_message(story: Story, state: State) -> None:
    state["sessions"] = {"s": messages("s", "a", "b", "invented"), "t": messages("t", "c")}


def alter_message(story: Story, state: State) -> None:
    one, two = messages("s", "a", "b")
    altered = two | {"content": payload("s", "b", "text, altered")}
    state["sessions"] = {"s": [one, altered], "t": messages("t", "c")}


def alter_checkpoint(story: Story, state: State) -> None:
    state["checkpoints"] = {"k": digest("something else")}


def invent_counter(story: Story, state: State) -> None:
    state["counters"] = {"n": 5, "m": 1}


@pytest.mark.parametrize(
    ("break_it", "violation"),
    [
        (lose_message, "lost"),
        (lose_session, "lost"),
        (lose_context, "lost"),
        (revert_context, "lost"),
        (double_message, "duplicated"),
        (double_under_new_identity, "duplicated"),
        (swap_messages, "out_of_order"),
        (unknown_before_acknowledged, "out_of_order"),
        (serve_against_positions, "out_of_order"),
        (move_message, "foreign"),
        (move_untagged_message, "foreign"),
        (read_foreign, "foreign"),
        (foreign_context, "foreign"),
        (count_too_much, "counters"),
        (count_too_little, "counters"),
        (count_nothing, "counters"),
        (forget_own_write, "stale_reads"),
        (read_backwards, "stale_reads"),
        (count_backwards, "stale_reads"),
        (forget_own_increment, "stale_reads"),
        (read_old_context, "stale_reads"),
        (read_no_context, "stale_reads"),
        (context_backwards, "stale_reads"),
        (apply_refused_message, "not_applied_present"),
        (read_refused_message, "not_applied_present"),
        (apply_refused_context, "not_applied_present"),
        (invent_message, "unexplained"),
        (alter_message, "unexplained"),
        (alter_checkpoint, "unexplained"),
        (invent_counter, "unexplained"),
    ],
)
def test_every_violation_is_caught(
    tmp_path: Path, break_it: Callable[[Story, State], None], violation: str
) -> None:
    """One wrong thing in a good history is one violation of its kind, and exit status 1."""
    story, state = good()
    break_it(story, state)
    status, violations = run(tmp_path, story, state)
    assert (status, set(violations)) == (1, {violation})


@pytest.mark.parametrize(
    "change",
    [
        {"sessions": {"s": messages("s", "a", "b"), "t": messages("t", "c")}},
        {"counters": {"n": 2}},
        {"checkpoints": {"k": digest("k1")}},
    ],
)
def test_stores_that_differ_are_caught(tmp_path: Path, change: State) -> None:
    """Each store alone could be right; both must hold the same."""
    story, state = good()
    assert run(tmp_path, story, state | change) == (0, {})
    assert run(tmp_path, story, state, state | change | {"store": "two"}) == (1, {"differing": 1})


def test_stores_with_the_same_messages_in_another_order_differ(tmp_path: Path) -> None:
    """Two overlapping writes may stand in either order, but in the same in both stores."""
    story = Story()
    both = [story.begin("append", "s", op_id=op_id) for op_id in ("a", "b")]
    for one in both:
        story.end(one)
    first: State = {"store": "one", "sessions": {"s": messages("s", "a", "b")}}
    second: State = {"store": "two", "sessions": {"s": messages("s", "b", "a")}}
    assert run(tmp_path, story, first) == run(tmp_path, story, second) == (0, {})
    assert run(tmp_path, story, first, second) == (1, {"differing": 1})


def test_an_old_answer_that_is_flagged_is_honest(tmp_path: Path) -> None:
    """`stale` is what makes the difference."""
    story, state = good()
    story.read("read_messages", "s", seen("s", "a"), stale=True)
    story.read("read_counter", "n", 0, stale=True)
    story.read("read_context", "x", None, stale=True)
    assert run(tmp_path, story, state) == (0, {})


def test_another_process_may_read_what_is_older(tmp_path: Path) -> None:
    """Reading one's own writes is promised per process."""
    story, state = good()
    story.read("read_messages", "s", seen("s", "a"), process="q")
    assert run(tmp_path, story, state) == (0, {})


def test_a_write_called_again_under_its_identity_is_one_write(tmp_path: Path) -> None:
    """Its place is judged from its first beginning, and a counter counts it once."""
    story = Story()
    story.append("s", "a", "unknown")
    story.append("s", "b")
    story.append("s", "a")
    for outcome in ("unknown", "ok"):
        story.end(story.begin("increment", "n", 7, op_id="i"), outcome)
    state: State = {"store": "one", "sessions": {"s": messages("s", "a", "b")}, "counters": {"n": 7}}
    assert run(tmp_path, story, state) == (0, {})
    assert run(tmp_path, story, state | {"counters": {"n": 14}}) == (1, {"counters": 1})


def test_an_unknown_that_is_settled_later_counts_as_settled(tmp_path: Path) -> None:
    """A second outcome narrows what the store may hold; a third is refused."""
    story, state = good()
    pending = story.begin("increment", "n", 1)
    story.end(pending, "unknown")
    story.end(pending, "ok")
    assert run(tmp_path, story, state) == (0, {})
    assert run(tmp_path, story, state | {"counters": {"n": 2}}) == (1, {"counters": 1})
    story.end(pending, "not_applied")
    assert run(tmp_path, story, state)[0] == 2


def test_what_was_deleted_is_not_lost(tmp_path: Path) -> None:
    """Keys that somebody deleted are left out, and their number is said."""
    story, state = good()
    story.write("delete", "s", None)
    state["sessions"] = {"t": messages("t", "c")}
    assert run(tmp_path, story, state) == (0, {})


def test_a_torn_last_line_is_a_killed_process_and_another_is_damage(tmp_path: Path) -> None:
    """Only the end of the file may be torn."""
    story, state = good()
    assert run(tmp_path, story, state, last=b'{"line": "invoke", "id') == (0, {})
    assert run(tmp_path, story, state, last=b'{"line": "invoke", "id\n{"line"')[0] == 2


def test_a_history_that_proves_nothing_is_refused(tmp_path: Path) -> None:
    """No acknowledged write, or a kind of write that no state shows: exit status 2, not 0."""
    nothing = Story()
    nothing.append("s", "a", "unknown")
    status, why = run(tmp_path, nothing, {"store": "one", "sessions": {}})
    assert status == 2
    assert "proves nothing" in "".join(why)
    story, state = good()
    status, why = run(tmp_path, story, {name: value for name, value in state.items() if name != "contexts"})
    assert status == 2
    assert "contexts" in "".join(why)
    assert run(tmp_path, story, {"sessions": {}})[0] == 2


def test_the_checker_runs_alone(tmp_path: Path) -> None:
    """Copied into an empty folder, isolated, without the package: it needs the standard library only."""
    story, state = good()
    run(tmp_path, story, state)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(check_history.__file__, alone)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "check_history.py", "../history.jsonl", "../state0.json"],
        cwd=alone,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "acknowledged" in done.stdout
    assert "aiecs_resilient" not in Path(check_history.__file__).read_text()


def test_what_the_recorder_writes_the_checker_reads(tmp_path: Path) -> None:
    """Outcomes come from how the block ended, flags from the operation's account."""
    path = tmp_path / "history.jsonl"
    with HistoryRecorder(path, process="p") as recorder:
        content = payload("s-\ud800é", "a", "text")
        with recorder.call("append", "s-\ud800é", op_id="a", value=digest(content)) as call:
            account = OperationContext("a")
            account.served_by, account.degraded = "hot", True
            call.flags(account)
        with (
            pytest.raises(CircuitOpenError),
            recorder.call("append", "s-\ud800é", op_id="b", value="x"),
        ):
            raise CircuitOpenError("open")
        with pytest.raises(StorageTimeoutError), recorder.call("increment", "n", value=1):
            raise StorageTimeoutError("late")
        with pytest.raises(asyncio.CancelledError), recorder.call("increment", "n", value=2):
            raise asyncio.CancelledError
        with recorder.call("read_messages", "s-\ud800é") as call:
            call.answer = tags([content])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    ended = [line for line in lines if line["line"] == "outcome"]
    assert [line["outcome"] for line in ended] == ["ok", "not_applied", "unknown", "unknown", "ok"]
    assert ended[0] | {"served_by": "hot", "degraded": True, "stale": False} == ended[0]
    assert all(line["wall"] > 1e9 for line in lines)
    state = {
        "store": "one",
        "sessions": {"s-\ud800é": [{"op_id": "a", "content": content}]},
        "counters": {"n": 3},
    }
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert check_history.main([str(path), str(tmp_path / "state.json")]) == 0


def test_tags_know_what_payload_made() -> None:
    """Anything else has no owner."""
    contents = [payload("s", "o", "t"), "plain", "[1, 2, 3]", '["s", "o"]', None, 7, "{"]
    assert tags(contents) == [("s", "o"), *[(None, None)] * 6]


def test_digests_do_not_depend_on_the_order_of_keys() -> None:
    """Stores give dicts back in an order of their own."""
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    assert digest("text") == check_history.digest("text")


KILLED = """
import sys
from aiecs_resilient.testing.history import HistoryRecorder
recorder = HistoryRecorder(sys.argv[1], process=sys.argv[2], flush_after=1000)
while True:
    one = recorder.invoke("increment", "n", value=1)
    print(one, flush=True)
    recorder.outcome(one, "ok")
"""


def test_a_sigkill_loses_no_beginning_and_only_the_last_ends(tmp_path: Path) -> None:
    """What was about to be done is on file before it is done, also with several processes on one file."""
    path = tmp_path / "history.jsonl"
    processes = [
        subprocess.Popen([sys.executable, "-c", KILLED, str(path), name], stdout=subprocess.PIPE, text=True)
        for name in ("p", "q")
    ]
    begun: list[str] = []
    for process in processes:
        assert process.stdout is not None
        begun += [process.stdout.readline().strip() for _ in range(200)]
        os.kill(process.pid, signal.SIGKILL)
        begun += process.stdout.read().split("\n")[:-1]
        process.wait()
        process.stdout.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    invoked = {line["id"] for line in lines if line["line"] == "invoke"}
    ended = {line["id"] for line in lines if line["line"] == "outcome"}
    assert invoked >= {one for one in begun if one}
    assert ended <= invoked
    assert len(invoked) - len(ended) <= 2 * len(processes)


def test_an_impossible_option_is_refused(tmp_path: Path) -> None:
    """A negative time would mean nothing."""
    with pytest.raises(ValueError, match="flush_after"):
        HistoryRecorder(tmp_path / "h", flush_after=-1)
