"""Detached runs: a run in the background that survives logging out, and later runs of its target, which reattach to it.

`--detach` starts a keeper in a session of its own, which starts the same command without `--detach`, waits for it and
notes its exit code. What was asked for is known by task family and fingerprint: its note and its log in the store
(`runs/`) bear both. The keeper is announced as every run is (`workflow.claims`), by which others know that it lives.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from analysis.errors import UserError
from workflow import claims
from workflow.store import atomic_write, store_folder

KEPT = "EVENTFOLD_DETACHED"
"""Set in the environment of a run that is detached itself."""
POLL = 0.3
KILLED = 1
"""Exit code of a run that has reattached to one whose own code nobody knows."""


@dataclass(frozen=True)
class Run:
    """A detached run.

    Attributes:
        host: Where it runs.
        pid: The process that does the work.
        keeper: The process that waits for it.
        started: When, in UTC.
        code: Its exit code, once it has ended.
    """

    host: str
    pid: int
    keeper: int
    started: str
    code: int | None = None

    @property
    def here(self) -> bool:
        """Whether it runs on this machine."""
        return self.host == socket.gethostname()

    @property
    def alive(self) -> bool:
        """Whether it goes on."""
        return self.code is None and any(claims.is_at_work(self.host, pid) for pid in (self.keeper, self.pid))

    @property
    def place(self) -> str:
        """Where it runs, as a user reads it."""
        return f"process {self.pid} on {self.host}, since {self.started}"


def detach(task: Any) -> None:
    """Start the command of this process anew in the background, unless its target runs there already."""
    name, note, log = _files(task)
    note.parent.mkdir(parents=True, exist_ok=True)
    with claims.claim(note.with_suffix(".starting"), _say):
        run = _read(note)
        if run is not None and _lives(name, run):
            _say(f"{name} runs detached already ({run.place}); nothing was started.")
        else:
            note.unlink(missing_ok=True)
            run = _start(note, log)
            _say(f"{name} runs detached: {run.place}.")
    _say(f"Look again: the same command without --detach. Log: {log}")
    _say(f"End it: kill {run.pid}" + ("" if run.here else f" (on {run.host})"))


def reattach(task: Any) -> None:
    """End this process with the detached run of a task, if there is one; else return.

    Raises:
        UserError: It goes on on another machine.
    """
    if KEPT in os.environ:
        return
    name, note, log = _files(task)
    run = _read(note)
    if run is None:
        return
    if _lives(name, run):
        if not run.here:
            raise UserError(
                f"{name} runs detached on another machine ({run.place}). Start this command there to reattach, or look "
                f"at {log}."
            )
        if not os.access(log, os.R_OK):
            _say(f"{name} runs detached already ({run.place}), for somebody whose log you may not read.")
            return
        sys.exit(_follow(name, run, note, log))
    if run.code:
        _say(f"{name} was run detached ({run.place}) and has ended with exit code {run.code}. Log: {log}")
    elif run.code is None:
        _say(f"{name} was run detached ({run.place}), which was killed. Log: {log}")
    note.unlink(missing_ok=True)


def _lives(name: str, run: Run) -> bool:
    if run.code is None and not run.here:
        _say(f"{name} was run detached on another machine ({run.place}): looking for its signs of life ...")
    return run.alive


def left() -> list[Path]:
    """The notes and logs of detached runs, which nothing needs when none is at work."""
    return [path for path in _folder().glob("*") if path.suffix in (".json", ".log")]


def keep(note: Path, command: Sequence[str]) -> None:
    """Run a command that outlives the session it was started from, and note its exit code."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what is started from here ignores it too
    claims.announce()
    head = subprocess.Popen(command, env={**os.environ, KEPT: "1"})
    signal.signal(signal.SIGTERM, lambda *_: head.terminate())
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    run = Run(socket.gethostname(), head.pid, os.getpid(), started)
    _write(note, run)
    code = head.wait()
    _write(note, replace(run, code=code if code >= 0 else 128 - code))


def _start(note: Path, log: Path) -> Run:
    program = sys.argv[0].removesuffix(" run")  # law puts it there
    command = [sys.executable, shutil.which(program) or program, *sys.argv[1:], "--detach", "False"]
    log.unlink(missing_ok=True)
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as output:
        # -P: what lies in the current folder is no module.
        keeper = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(note), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    while (run := _read(note)) is None:
        if keeper.poll() is not None:
            raise UserError(f"The detached run could not be started: {log.read_text(errors='replace').strip()}")
        time.sleep(POLL / 10)
    return run


def _follow(name: str, run: Run, note: Path, log: Path) -> int:
    """Show the log of a run until it ends. Returns its exit code."""
    try:
        _say(f"{name} runs detached already ({run.place}): reattached. Ctrl-C leaves it running. Log: {log}\n")
        with log.open("rb") as text:
            while True:
                alive = (_read(note) == run) and run.alive
                shutil.copyfileobj(text, sys.stdout.buffer)
                sys.stdout.buffer.flush()
                if not alive:
                    break
                time.sleep(POLL)
    except KeyboardInterrupt:
        _say(f"\ndetached again: the run goes on ({run.place}). Look again: the same command. End it: kill {run.pid}")
        return 128 + signal.SIGINT
    ended = _read(note)
    if ended is None or ended.keeper != run.keeper or ended.code is None:
        _say(f"The detached run ({run.place}) has ended without an exit code: it was killed.")
        return KILLED
    return ended.code


def _files(task: Any) -> tuple[str, Path, Path]:
    """What a task is called, and where the note and the log of its detached run are."""
    name = f"{task.task_family}-{task.fingerprint}"
    return str(task.task_family), _folder() / f"{name}.json", _folder() / f"{name}.log"


def _folder() -> Path:
    return store_folder() / "runs"


def _read(note: Path) -> Run | None:
    with suppress(OSError, ValueError, TypeError):
        return Run(**json.loads(note.read_text()))
    return None


def _write(note: Path, run: Run) -> None:
    atomic_write(note, json.dumps(asdict(run)))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    keep(Path(sys.argv[1]), sys.argv[2:])
