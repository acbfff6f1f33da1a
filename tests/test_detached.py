"""Detached runs: they survive their session, later runs of the same target reattach, and no exit code is lost."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from analysis.errors import UserError
from tests.toy import Law, ran, replace
from workflow import detached
from workflow.tasks import Report

WAITING = """import os, time

def _wait():
    open({path!r} + "reached", "w").close()
    while not os.path.exists({path!r} + "go"):
        time.sleep(0.05)

"""


@pytest.fixture
def held(law: Law) -> Iterator[Law]:
    """The toy analysis with a feature that waits for the file `go`; what runs detached ends with the test."""
    yield from hold(law, "    return _scale")


@pytest.fixture
def held_late(law: Law) -> Iterator[Law]:
    """The same with a spectator, on which nothing stands but plots and report."""
    replace(law.home / "toy" / "analysis.yaml", "model: {hidden: [8]}", "spectators: [ratio]\nmodel: {hidden: [8]}")
    yield from hold(law, "    return events.x / ")


def hold(law: Law, line: str) -> Iterator[Law]:
    """Let a line of physics.py wait; at the end kill what runs detached."""
    physics = law.home / "toy" / "physics.py"
    replace(physics, line, f"    _wait()\n{line}")
    physics.write_text(WAITING.format(path=f"{law.home}/") + physics.read_text())
    yield law
    for path in (law.store / "runs").glob("*.json"):
        for pid in (json.loads(path.read_text())["keeper"], json.loads(path.read_text())["pid"]):
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)


def note(law: Law) -> dict[str, Any]:
    """The note of the one detached run of a store."""
    (path,) = (law.store / "runs").glob("*.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not met():
        assert time.monotonic() < deadline, "not met after a minute"
        time.sleep(0.05)


def attached(law: Law, *arguments: str) -> subprocess.Popen[str]:
    """A run that has reattached."""
    run = law.start("Report", "--analysis", law.analysis, *arguments)
    assert run.stderr is not None
    while "reattached" not in (line := run.stderr.readline()):
        assert line, run.communicate()
    return run


def test_a_detached_run_outlives_its_session_and_is_found_again(held_late: Law) -> None:
    held = held_late
    begun = held("Report", "--analysis", held.analysis, "--detach")
    run = note(held)
    assert f"kill {run['pid']}" in begun.stderr
    assert begun.stdout == ""
    (log,) = (held.store / "runs").glob("*.log")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert len({os.getsid(0), os.getsid(run["keeper"])}) == 2
    assert os.getsid(run["pid"]) == os.getsid(run["keeper"])
    until((held.home / "reached").exists)
    for process in (run["keeper"], run["pid"]):
        os.kill(process, signal.SIGHUP)

    again = held("Report", "--analysis", held.analysis, "--detach", "True")
    assert f"process {run['pid']} " in again.stderr
    assert "nothing was started" in again.stderr
    assert note(held) == run

    assert 'spectators [] → ["ratio"]' in held("Report", "--analysis", held.analysis, "--why").stdout
    status = held("Report", "--analysis", held.analysis, "--print-status", "0")
    assert "reattached" not in status.stderr

    first = attached(held)
    first.send_signal(signal.SIGINT)
    out, said = first.communicate()
    assert first.returncode == 130
    assert "the run goes on" in said
    assert psutil.pid_exists(run["pid"])
    assert not ran(subprocess.CompletedProcess([], 0, out, said))

    second = attached(held, "--workflow", "dask")
    (held.home / "go").touch()
    out, said = second.communicate()
    assert second.returncode == 0, said
    assert "ComputeFeatures (spectators): " in out
    assert out.rstrip().endswith(f"report: {held.results / 'toy' / 'report.html'}")
    assert note(held)["code"] == 0
    until(lambda: not list((held.store / "runs").glob("*.lease")))

    last = held("Report", "--analysis", held.analysis, "--detach")
    assert "report: " in last.stdout, "what is complete is shown at once"
    assert "detached" not in last.stderr


def test_another_target_does_not_reattach(held: Law) -> None:
    held("Report", "--analysis", held.analysis, "--detach")
    other = held("ListInputs", "--analysis", held.analysis, "--set", "seed=3")
    assert "reattached" not in other.stderr
    assert held("Prune").returncode == 0
    refused = held("Prune", "--yes", ok=False)
    assert f"-{note(held)['keeper']}" in refused.stderr, "Prune has to see it from its first second on"


def test_the_mistake_and_the_exit_code_are_kept(held: Law) -> None:
    replace(held.home / "toy" / "physics.py", "    _wait()\n", "    _wait()\n    raise RuntimeError('no such luck')\n")
    held("TrainFolds", "--analysis", held.analysis, "--detach")
    until((held.home / "reached").exists)
    run = held.start("TrainFolds", "--analysis", held.analysis)
    assert run.stderr is not None
    while "reattached" not in run.stderr.readline():
        assert run.poll() is None
    (held.home / "go").touch()
    out, said = run.communicate()
    assert run.returncode == 40, said
    assert "no such luck" in out
    after = held("TrainFolds", "--analysis", held.analysis, ok=False)
    assert "has ended with exit code 40" in after.stderr
    assert "no such luck" in after.stderr
    assert not list((held.store / "runs").glob("*.json"))


def test_a_run_that_was_killed_is_told_and_done_anew(held: Law) -> None:
    held("ComputeFeatures", "--analysis", held.analysis, "--detach")
    run = note(held)
    until((held.home / "reached").exists)
    follower = held.start("ComputeFeatures", "--analysis", held.analysis)
    assert follower.stderr is not None
    while "reattached" not in follower.stderr.readline():
        assert follower.poll() is None
    for process in (run["keeper"], run["pid"]):
        os.kill(process, signal.SIGKILL)
    _, said = follower.communicate()
    assert follower.returncode == detached.KILLED
    assert "without an exit code" in said
    (held.home / "go").touch()
    after = held("ComputeFeatures", "--analysis", held.analysis)
    assert "which was killed" in after.stderr
    assert ran(after)
    assert not list((held.store / "runs").glob("*.json"))


def test_kill_ends_it(held: Law) -> None:
    held("ComputeFeatures", "--analysis", held.analysis, "--detach")
    until((held.home / "reached").exists)
    os.kill(note(held)["pid"], signal.SIGTERM)
    until(lambda: note(held)["code"] is not None)
    assert note(held)["code"] == 143


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "training.epoch=3"), "epoch"),
        (("--workflow", "dask", "--cluster", "slurn"), "Did you mean 'slurm'"),
    ],
)
def test_a_mistake_shows_before_anything_is_started(law: Law, arguments: tuple[str, ...], message: str) -> None:
    done = law("Report", "--analysis", law.analysis, "--detach", "--set", "seed=9", *arguments, ok=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert not list((law.store / "runs").glob("*.json"))


def test_a_run_elsewhere_is_named(
    here: Law, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Report(analysis=here.analysis)
    path = Path(here.store / "runs" / f"Report-{task.fingerprint}.json")
    run = detached.Run("elsewhere", 12, 11, "2026-01-01T00:00:00Z")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(vars(run)))
    monkeypatch.setattr("workflow.claims.is_at_work", lambda host, pid: (host, pid) == ("elsewhere", 12))
    with pytest.raises(UserError, match=r"process 12 on elsewhere.*Start this command there"):
        detached.reattach(task)
    capsys.readouterr()
    detached.detach(task)
    said = capsys.readouterr().err
    assert "looking for its signs of life ...\n" in said
    assert "kill 12 (on elsewhere)" in said
    monkeypatch.setattr("workflow.claims.is_at_work", lambda host, pid: False)  # noqa: ARG005
    detached.reattach(task)
    assert not path.exists()
