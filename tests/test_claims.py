"""Claims: runs in one store keep out of each other's way, and none waits for one that is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.toy import Finished, Law, toy
from workflow import claims
from workflow.tasks import ComputeFeatures, PrepareFolds, TrainFolds
from workflow.tasks import train as train_module

TRACED = """

def _trace(name, events):
    trace = os.open({path!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(trace, f"{{name}} {{events.event[0]}}\\n".encode())
    os.close(trace)
"""


def trace(law: Law) -> Path:
    """Let the cut and a feature of the analysis write a line whenever they are called."""
    path = law.home / "trace.txt"
    physics = law.home / "toy" / "physics.py"
    text = "import os\n" + physics.read_text() + TRACED.format(path=str(path))
    for name, returns in (("positive", "return events.pt1 > 0"), ("mass", "return _scale")):
        assert text.count(returns) == 1
        text = text.replace(returns, f'_trace("{name}", events)\n    {returns}')
    physics.write_text(text)
    return path


def numbers(result: Path) -> Any:
    """`summary.json` without identity and title."""
    content = json.loads((result / "summary.json").read_text())
    return {key: value for key, value in content.items() if key not in ("fingerprint", "title")}


def test_two_runs_at_once_make_each_output_once(finished: Finished, tmp_path: Path) -> None:
    law = Law(tmp_path)
    toy(law.home / "toy")
    called = trace(law)
    runs = [
        law.start("Report", "--analysis", law.analysis),
        law.start("Report", "--analysis", law.analysis, "--set", "title=Again"),
    ]
    said = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert "Traceback" not in str(said)
    calls = called.read_text().splitlines()
    assert (len(calls), len(set(calls))) == (16, 16)  # a cut and a feature, for 8 chunks
    reference, experiment = sorted(law.results.iterdir())
    assert numbers(reference) == numbers(experiment) == numbers(finished.law.results / "toy")
    assert not [path for pattern in (".lease", ".stage-*") for path in law.store.rglob(pattern)]
    assert not list((law.store / "runs").iterdir())
    assert len(list((law.store / "TrainFolds").rglob("network.safetensors"))) == 3


def test_what_another_run_has_made_meanwhile_is_not_made_again(here: Law, monkeypatch: pytest.MonkeyPatch) -> None:
    step = TrainFolds(analysis=here.analysis)
    tasks = [step.as_branch(number) for number in range(3)]
    for task in tasks:
        task.stamp()
        with task.claimed() as free:
            assert free
        task.record.write_text(task.record.read_text())
        with task.claimed() as free:
            assert not free

    def train(*_: Any) -> Any:
        raise AssertionError("what is there is trained again")

    monkeypatch.setattr(train_module, "train_stack", train)
    step.run_branches([0, 1, 2])
    tasks[1].path("network.safetensors").unlink()
    with tasks[1].claimed() as free:
        assert free
    with pytest.raises(AssertionError, match="trained again"):
        step.run_branches([0, 1, 2])
    assert not list(here.store.rglob(".lease"))


def test_what_another_run_has_made_since_it_was_wanted_is_not_made_again(here: Law) -> None:
    columns = ComputeFeatures(analysis=here.analysis, group="features").as_branch(3)
    made = {path: path.read_bytes() for path in [columns.record, *(columns.path(name) for name in columns.files())]}
    for path in made:
        path.unlink()
    PrepareFolds(analysis=here.analysis).want_requirements()
    for path, content in made.items():
        path.write_bytes(content)
    assert not columns.complete()
    with columns.claimed() as free:
        assert not free


def holding(code: str, store: Path) -> subprocess.Popen[str]:
    """A process that has run some code and stays."""
    script = f"from pathlib import Path\nfrom workflow import claims\n{code}\nprint('held', flush=True)\ninput()\n"
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "EVENTFOLD_STORE": str(store)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start processes that hold something in the store `tmp_path`."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        started.append(holding(code, tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def claim_of(path: Path) -> str:
    return f"claim = claims.claim(Path({str(path)!r}), print)\nclaim.__enter__()"


Hold = Callable[[str], subprocess.Popen[str]]


def test_the_claim_of_a_killed_run_is_taken_over_at_once(tmp_path: Path, hold: Hold) -> None:
    lease = tmp_path / "Step" / ".lease"
    holder = hold(claim_of(lease))
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert lease.exists()
    said: list[str] = []
    started = time.monotonic()
    with claims.claim(lease, said.append):
        assert time.monotonic() - started < 2
    assert said == []
    assert not lease.exists()


def test_a_claim_that_is_held_is_waited_for_and_said_once(tmp_path: Path, hold: Hold) -> None:
    lease = tmp_path / "Step" / ".lease"
    holder = hold(claim_of(lease) + "\nimport threading\n")
    assert holder.stdin is not None
    said: list[str] = []
    inside = threading.Event()

    def wait() -> None:
        with claims.claim(lease, said.append):
            inside.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not inside.wait(4 * claims.POLL)
    assert said == [f"another run (process {holder.pid}) is making this, waiting for it"]
    holder.kill()
    holder.wait()
    waiting.join(timeout=10)
    assert inside.is_set()
    assert len(said) == 1


def test_a_mistake_gives_a_claim_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claims.claim(tmp_path / ".lease", print):
        raise ZeroDivisionError
    assert not (tmp_path / ".lease").exists()


def test_runs_at_work_are_listed_and_those_that_were_killed_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Hold
) -> None:
    monkeypatch.setenv("EVENTFOLD_STORE", str(tmp_path))
    assert claims.at_work() == []
    first, second = hold("claims.announce()"), hold("claims.announce()")
    assert sorted(claims.at_work()) == sorted(
        f"{claims.socket.gethostname()}-{process.pid}" for process in (first, second)
    )
    first.kill()
    first.wait()
    second.communicate("\n", timeout=20)  # ends by itself
    assert len(list((tmp_path / "runs").iterdir())) == 1
    assert claims.at_work() == []
    assert not list((tmp_path / "runs").iterdir())


def test_a_run_forgets_those_that_were_killed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Hold) -> None:
    monkeypatch.setenv("EVENTFOLD_STORE", str(tmp_path))
    monkeypatch.setattr(claims, "LEASE", 0.3)
    killed, alive = hold("claims.announce()"), hold("claims.announce()")
    killed.kill()
    killed.wait()
    host, runs = claims.socket.gethostname(), tmp_path / "runs"
    elsewhere = runs / f"{host}-2-77.lease"  # nobody knows without waiting
    elsewhere.write_bytes((runs / f"{host}-{killed.pid}.lease").read_bytes())
    latest = hold("claims.announce()")
    names = {elsewhere.stem, *(f"{host}-{process.pid}" for process in (alive, latest))}
    assert {path.stem for path in runs.iterdir()} == names


def test_leases_that_name_nobody_are_cleaned_up_once_they_are_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTFOLD_STORE", str(tmp_path))
    host = claims.socket.gethostname()
    old = time.time() - 2 * claims.LEASE
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "notes.txt").write_text("no lease")
    for name, text in (("other-host-77", ""), (f"{host}-78", ""), (f"{host}-79", "half a rec")):
        path = tmp_path / "runs" / f"{name}.lease"
        path.write_text(text)
        os.utime(path, (old, old))
    (tmp_path / "runs" / f"{host}-80.lease").touch()  # a run that begins
    assert claims.at_work() == [f"{host}-80"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["notes.txt", f"{host}-80.lease"]

    lease = tmp_path / ".lease"
    lease.touch()
    os.utime(lease, (old, old))
    said: list[str] = []
    with claims.claim(lease, said.append):
        assert said == []


def test_runs_of_other_machines_are_given_time_to_show_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTFOLD_STORE", str(tmp_path))
    monkeypatch.setattr(claims, "LEASE", 0.3)
    monkeypatch.setattr(claims.socket, "gethostname", lambda: "farm-2")
    claims.announce.__wrapped__()
    (lease,) = (tmp_path / "runs").iterdir()
    silent = lease.with_name("farm-3-77.lease")
    silent.write_bytes(lease.read_bytes())
    monkeypatch.setattr(claims.socket, "gethostname", lambda: "farm")  # whose name theirs begin with
    assert claims.at_work() == [lease.stem]


def test_a_record_has_changed_if_it_is_another_one_than_at_first(tmp_path: Path) -> None:
    record = tmp_path / "provenance.json"
    assert not claims.changed(record)  # nobody has asked yet
    assert claims.remember(record, claims.stamp(record)) is None
    assert not claims.changed(record)
    record.write_text("{}")
    assert claims.changed(record)
    assert claims.remember(record, claims.stamp(record)) is None
    assert claims.changed(record)  # what was first counts
