"""What a training has reached is kept when its process is asked to end, and when its head is gone."""

from __future__ import annotations

import signal
import subprocess
import sys

from workflow.execution.ending import postponed_end


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
