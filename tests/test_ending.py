"""What a training has reached is kept when its process is asked to end, and when its head is gone."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from workflow.execution.ending import Ending, postponed_end
from workflow.tasks.train import Kept


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
    kept.saved()
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
        kept.saved()
    assert answers == [False, True, False, False, True]


def test_training_does_not_end_before_all_networks_are_kept(tmp_path: Path) -> None:
    """The signal may come when only a network that has ended is saved: the others are at the next step."""
    ending = Ending()
    kept = Kept([tmp_path / "0", tmp_path / "1"], 1e6, ending)
    assert not kept.due()
    ending.asked = True
    kept.saved()
    assert kept.due()
    with pytest.raises(Exception, match="ended by SIGTERM"):
        kept.saved()
