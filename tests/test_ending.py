"""What a training has reached is kept when its process is asked to end, and when its head is gone."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from benchmarks.kill import wait_for_workers
from models.checkpoint import Checkpoint
from tests.toy import Finished, Law, OnTerminal
from workflow.execution.ending import Ending, postponed_end
from workflow.tasks.train import Kept

FOLDS = 3
EPOCHS = 400
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}


def ended(code: str) -> subprocess.CompletedProcess[str]:
    """Run some code in a process of its own."""
    script = f"import os, signal, sys, threading, time\nfrom workflow.execution.ending import *\n{code}"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


ASK = "os.kill(os.getpid(), signal.SIGTERM)"
"""The process asks itself to end."""


def test_an_end_waits_for_the_block() -> None:
    done = ended(f"""
with postponed_end() as ending:
    print(ending.asked)
    {ASK}
    {ASK}
    time.sleep(0.01)
    print(ending.asked, flush=True)
print("still there", flush=True)
""")
    assert (done.stdout, done.stderr) == ("False\nTrue\n", "")
    assert done.returncode == -signal.SIGTERM


def test_an_end_waits_for_a_block_that_fails() -> None:
    done = ended(f"""
with postponed_end() as ending:
    try:
        {ASK}
        raise ValueError("not shown")
    finally:
        print("cleaned up", flush=True)
""")
    assert (done.stdout, done.stderr) == ("cleaned up\n", "")
    assert done.returncode == -signal.SIGTERM


def test_without_a_signal_nothing_ends() -> None:
    done = ended(f"""
before = signal.getsignal(signal.SIGTERM)
with postponed_end() as ending:
    pass
print(ending.asked, signal.getsignal(signal.SIGTERM) == before == signal.SIG_DFL, flush=True)
{ASK}
print("still there", flush=True)
""")
    assert done.stdout == "False True\n"
    assert done.returncode == -signal.SIGTERM


def test_a_handler_from_before_is_called_after_the_block() -> None:
    done = ended(f"""
def end(number, frame):
    print("handled")
    sys.exit(7)

signal.signal(signal.SIGTERM, end)
with postponed_end():
    {ASK}
    time.sleep(0.01)
    print("at the end of the block")
print("still there")
""")
    assert done.stdout == "at the end of the block\nhandled\n"
    assert done.returncode == 7


def test_where_the_signal_is_ignored_it_stays_so() -> None:
    done = ended(f"""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with postponed_end() as ending:
    {ASK}
    time.sleep(0.01)
    print(ending.asked)
""")
    assert (done.stdout, done.returncode) == ("False\n", 0)


def test_an_end_that_hangs_does_not_wait_for_ever() -> None:
    done = ended(f"""
lock = threading.Lock()
lock.acquire()
with postponed_end(grace=0.2):
    {ASK}
    lock.acquire()
""")
    assert done.returncode == -signal.SIGALRM


def test_the_time_to_end_in_is_over_with_the_block() -> None:
    done = ended(f"""
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
with postponed_end(grace=0.2):
    {ASK}
time.sleep(0.5)
""")
    assert (done.stdout, done.returncode) == ("handled\n", 0)


def test_another_thread_postpones_nothing() -> None:
    done = ended(f"""
def run():
    with postponed_end() as ending:
        print(ending.asked, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, flush=True)
        {ASK}
        time.sleep(30)

thread = threading.Thread(target=run)
thread.start()
thread.join()
print("still there", flush=True)
""")
    assert done.stdout == "False True\n"
    assert done.returncode == -signal.SIGTERM


def test_the_handler_is_restored_here() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with postponed_end():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_kept_is_due_when_the_end_is_asked_for(tmp_path: Path) -> None:
    ending = Ending()
    kept = Kept([tmp_path / ".checkpoint"], 1e6, ending)
    assert not kept.due()
    ending.asked = True
    assert kept.due()
    with pytest.raises(Exception, match="ended by SIGTERM"):
        kept.saved()


def test_kept_is_due_after_some_seconds_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("workflow.tasks.train.time.monotonic", lambda: clock[-1])
    kept = Kept([tmp_path / ".checkpoint"], 60, Ending())
    answers = []
    for now in (159.0, 160.0, 161.0, 219.0, 220.0):
        clock.append(now)
        answers.append(kept.due())
        kept.saved()  # goes on
    assert answers == [False, True, False, False, True]


@pytest.fixture
def longer(finished: Finished, tmp_path: Path) -> Law:
    """The finished toy analysis in a place of its own; its networks are not those of `LONGER`."""
    return copied(finished, tmp_path / "home")


@pytest.fixture(scope="module")
def undisturbed(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The networks of a training that nothing has disturbed, by their path in the store."""
    law = copied(finished, tmp_path_factory.mktemp("undisturbed") / "home")
    before = networks(law)
    train(law)
    made = {name: content for name, content in networks(law).items() if name not in before}
    assert len(made) == FOLDS
    return made


def copied(finished: Finished, home: Path) -> Law:
    shutil.copytree(finished.law.home, home, symlinks=True)
    shutil.rmtree(home / "store" / "names")  # it names the original, as does the register of results
    for register in (home / "store" / "published").iterdir():
        register.unlink()
    return Law(home)


def arguments(law: Law, epochs: int = EPOCHS) -> tuple[str, ...]:
    """A longer training; only its end can be the cause of a checkpoint."""
    chosen = ("--set", f"training.epochs={epochs}", "--set", "training.patience=null")
    return ("TrainFolds", "--analysis", law.analysis, *chosen, "--checkpoint", "1000000")


def train(law: Law) -> str:
    """Train to the end, and return what was said."""
    return law(*arguments(law)).stderr


def networks(law: Law) -> dict[str, bytes]:
    found = law.store.glob("TrainFolds/*/*/network.safetensors")
    return {str(path.relative_to(law.store)): path.read_bytes() for path in found}


def checkpoints(law: Law) -> list[Checkpoint]:
    """What was kept, which can be read."""
    return [Checkpoint.from_bytes(path.read_bytes()) for path in law.store.glob("TrainFolds/*/*/.checkpoint")]


class Head(OnTerminal):
    """A run that trains, on a terminal."""

    def wait_for(self, epoch: int) -> None:
        """Wait until each network has come so far or further."""

        def reached(said: str) -> bool:
            found = re.findall(r"folds ([\d, ]+): epoch (\d+)/", said)
            last = {fold: int(number) for folds, number in found for fold in folds.split(", ")}
            return len(last) == FOLDS and min(last.values()) >= epoch

        self.wait_until(reached)

    def end(self, store: Path) -> None:
        """Wait until it and its workers are gone."""
        self.process.wait(timeout=60)
        wait_for_workers(store)
        self.wait_for_silence()


@contextmanager
def started(law: Law, *arguments: str) -> Iterator[Head]:
    """Start a run on a terminal."""
    head = Head(law, *arguments)
    try:
        yield head
    finally:
        head.close()


@pytest.mark.parametrize(
    "signals",
    [(signal.SIGTERM, signal.SIGINT), (signal.SIGKILL, signal.SIGKILL)],
    ids=["asked", "killed"],
)
def test_a_training_whose_head_ends_is_kept_and_goes_on(
    longer: Law, undisturbed: dict[str, bytes], signals: tuple[signal.Signals, ...]
) -> None:
    """Twice: the second signal meets a training that goes on; it ends with the same bits."""
    law = longer
    before = networks(law)
    told = 0
    for number, epoch in zip(signals, (2, EPOCHS // 4), strict=True):
        with started(law, *arguments(law)) as head:
            head.wait_for(epoch)
            head.process.send_signal(number)
            head.end(law.store)
            assert head.process.returncode == CODES[number]
            assert "Traceback" not in head.said
            assert head.said.count("goes on") == told
        told = len(checkpoints(law))
        # One that was faster than the signal is done.
        assert told + len(networks(law).keys() - before.keys()) == FOLDS
        assert told > 0
        assert all(checkpoint.place.epochs >= epoch - 1 for checkpoint in checkpoints(law))
        assert not list(law.store.glob("TrainFolds/*/*/.lease"))
    assert train(law).count("goes on") == told
    assert {name: content for name, content in networks(law).items() if name not in before} == undisturbed
    assert not checkpoints(law)


def test_a_worker_that_is_ended_is_said_and_all_networks_are_kept(longer: Law) -> None:
    """The executor ends the other workers, whose networks are kept too."""
    with started(longer, *arguments(longer, epochs=100_000)) as head:
        head.wait_for(2)
        workers = psutil.Process(head.process.pid).children()
        max(workers, key=lambda p: sum(p.cpu_times()[:2])).terminate()
        head.end(longer.store)
    assert head.process.returncode == 40
    assert head.said.count("A worker process was killed or ended from outside") == 1
    assert "Traceback" not in head.said
    assert len(checkpoints(longer)) == FOLDS
    assert not list(longer.store.glob("TrainFolds/*/*/.lease"))


def test_a_run_that_waits_for_another_ends_at_once(longer: Law) -> None:
    """What it waits for may take hours."""
    with started(longer, *arguments(longer, epochs=100_000)) as first:
        first.wait_for(2)
        with started(longer, *arguments(longer, epochs=100_000)) as second:
            second.wait_until(lambda said: "another run" in said)
            workers = psutil.Process(second.process.pid).children(recursive=True)
            second.process.terminate()
            second.process.wait(timeout=60)
            _, alive = psutil.wait_procs(workers, timeout=15)
            assert not alive
        first.process.kill()
        first.end(longer.store)
    assert len(checkpoints(longer)) == FOLDS
