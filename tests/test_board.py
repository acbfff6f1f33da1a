"""What a user sees of a step while it runs, and what of a branch that has failed."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toy import Law, replace, write_events
from workflow.execution import logs
from workflow.execution.board import Board, duration
from workflow.execution.executor import Failure


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def board(sizes: list[tuple[int, int]]) -> Board:
    return Board("SelectEvents", sizes, lambda: 2)


def test_the_line_counts_branches_workers_and_events(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("workflow.execution.board.time.monotonic", lambda: clock[-1])
    shown = board([(1, 1000), (2, 2000), (1, 1000), (3, 4000)])
    assert shown.line() == "SelectEvents: 0 of 7 done, 7 queued, 2 workers"
    shown.hear(0, "started", "")
    shown.hear(1, "started", "")
    assert shown.line() == "SelectEvents: 0 of 7 done, 3 running, 4 queued, 2 workers"
    clock.append(110.0)
    shown.end(0, well=True)
    assert shown.line() == "SelectEvents: 1 of 7 done, 2 running, 4 queued, 2 workers, 100 events/s, 70 s left"
    shown.end(1, well=False)
    shown.hear(2, "said", "half way")
    assert shown.line().startswith("SelectEvents: 1 of 7 done, 4 queued, 2 failed, 2 workers, ")
    assert shown.line().endswith(" | half way")


def test_a_late_message_of_a_group_that_has_ended_changes_nothing() -> None:
    shown = board([(1, 0), (1, 0)])
    shown.end(0, well=True)
    shown.hear(0, "started", "")
    assert shown.line().startswith("SelectEvents: 1 of 2 done, 1 queued, 2 workers")


def test_time_left_without_events_counts_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("workflow.execution.board.time.monotonic", lambda: clock[-1])
    shown = board([(1, 0)] * 4)
    shown.hear(0, "started", "")
    clock.append(600.0)
    shown.end(0, well=True)
    assert shown.line().endswith("2 workers, 30 min left")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (2e5, "2 d")]
)
def test_durations_have_one_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_on_a_terminal_one_line_is_written_over_and_another_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "40")
    with board([(1, 0), (1, 0)]) as shown:
        shown.hear(0, "started", "")
        shown.hear(0, "said", "a sentence that stays\n")
        shown.hear(0, "said", "x" * 100)
        shown.end(0, well=True)
        shown.end(1, well=True)
    lines = terminal.getvalue().split("\r\033[K")
    assert "a sentence that stays\n" in lines
    assert all(len(line) < 40 for line in lines if not line.endswith("\n"))
    assert lines[-1] == "SelectEvents: 2 done in 0.0 s\n"


def test_a_log_gets_few_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    monkeypatch.setattr("workflow.execution.board.time.monotonic", lambda: clock[-1])
    shown = board([(1, 0)] * 100)
    for group in range(100):
        clock.append(clock[-1] + 1)
        shown.end(group, well=True)
    assert 15 <= len(capsys.readouterr().err.splitlines()) <= 17


def test_a_log_keeps_what_a_process_and_its_children_print(tmp_path: Path) -> None:
    path = tmp_path / "new" / logs.NAME
    script = f"""
import subprocess, sys
from pathlib import Path
from workflow.execution.logs import logged
print("before")
with logged(Path({str(path)!r})):
    print("a line")
    subprocess.run(["echo", "of a child"])
    print("an error", file=sys.stderr)
print("after")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "before\nafter\n"
    assert done.stderr == ""
    assert sorted(logs.tail(path)) == ["a line", "an error", "of a child"]


def test_a_log_of_nothing_is_removed_and_an_earlier_one_is_continued(tmp_path: Path) -> None:
    with logs.logged(tmp_path / "a" / logs.NAME):
        pass
    assert not (tmp_path / "a" / logs.NAME).exists()
    assert logs.tail(tmp_path / "a" / logs.NAME) == []
    (tmp_path / logs.NAME).write_text("".join(f"{number}\n" for number in range(50)))
    with logs.logged(tmp_path / logs.NAME):
        pass
    assert logs.tail(tmp_path / logs.NAME)[-1] == "49"
    assert len(logs.tail(tmp_path / logs.NAME)) == logs.TAIL


def test_a_mistake_of_ours_leaves_its_traceback_in_the_log(tmp_path: Path) -> None:
    script = f"""
from workflow.execution.executor import Group, Message, run_group
heard = []
group = Group(7, "no.such_module", "Task", (), (0,), "a b", ("",), (None,), ({str(tmp_path)!r},), False)
failure = run_group(group, heard.append)
assert heard == [Message(7, "started")]
assert failure.message.startswith("ModuleNotFoundError: ")
assert not failure.expected
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert logs.tail(tmp_path / logs.NAME)[-1].startswith("ModuleNotFoundError: ")


def test_failures_that_differ_in_paths_and_numbers_are_of_one_kind() -> None:
    first, second, other = (
        Failure(f"cut: {path}, entry {number}: {what}", True)
        for path, number, what in (("/a/b_0.root", 3, "no x"), ("/a/b_1.root", 44, "no x"), ("/a/b_1.root", 44, "no y"))
    )
    assert first.kind == second.kind != other.kind


@pytest.mark.parametrize("workflow", ["local", "dask"])
def test_a_branch_that_fails_is_told_with_its_log_and_the_others_are_made(law: Law, workflow: str) -> None:
    write_events(law.home / "toy" / "data" / "signal_7.root", 20, 5.0, seed=8)
    mistake = '    if 0 < len(events) < 21:\n        print("few events")\n        raise KeyError("lost")\n'
    replace(law.home / "toy" / "physics.py", "def mass(events):\n", f"def mass(events):\n{mistake}")
    done = law("TrainFolds", "--analysis", law.analysis, "--workflow", workflow, ok=False)
    assert done.returncode != 0
    assert done.stderr.count("error: ComputeFeatures (signal signal_7.root from 0): mass(events) failed") == 1
    assert "Its log: " in done.stderr
    assert "    few events\n" in done.stderr
    assert done.stderr.count("error: ComputeFeatures (features): 1 of 9 branches failed (signal signal_7.root") == 1
    assert not list(law.store.glob("ComputeFeatures/background/*/log.txt"))


def test_what_branches_print_is_kept(law: Law) -> None:
    replace(law.home / "toy" / "physics.py", "def mass(events):\n", 'def mass(events):\n    print("hello")\n')
    law("ComputeFeatures", "--analysis", law.analysis)
    found = list(law.store.glob("ComputeFeatures/*/*/log.txt"))
    assert len(found) == 8
    assert {path.read_text() for path in found} == {"hello\n"}
