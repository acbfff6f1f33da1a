"""A small analysis, and `law run` with a store of its own: what the tests of the graph and benchmarks/kill.py share."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import uproot

from analysis.splitting import event_identity, is_test

ROOT = Path(__file__).resolve().parents[1]

PHYSICS = """
import awkward as ak
from analysis.features import branch, feature

pt1 = branch("pt1", label="leading pT", unit="GeV")


@feature(label="second pT", unit="GeV")
def pt2(events):
    return events.pt2


@feature(unit="GeV")
def mass(events):
    return _scale(events.pt1) + events.x


def ratio(events):
    return events.x / events.pt1


def generator_correction(events):
    return 1 + 0.1 * events.truth


def positive(events):
    return events.pt1 > 0


def is_near(events):
    return events.pt1 < 30


def is_far(events):
    return events.pt1 >= 30


def _scale(values):
    return 2 * values
"""

YAML = """
name: toy
data:
  format: flat
  tree: events
  folder: ${{TOY_DATA}}
  chunk: 400
  sentinels: {{pt2: -7}}
  datasets:
    signal: {{files: [signal_*.root]}}
    background: {{files: [background_*.root]}}
identity: {{columns: [event]}}
processes:
  background: {{data: [background], normalisation: {{sum_to: 1000.0}}}}
  signal: {{data: [signal], normalisation: {{sum_to: 100.0}}}}
classes:
  signal: signal
  processes: {{background: [background], signal: [signal]}}
selection: {{cuts: [positive], categories: {{near: is_near, far: is_far}}}}
weights: {{factors: [generator_correction]}}
features:
  first: [pt1]
  second: [pt2]
  both: [mass]
folds: {{count: 3, minimum: 20}}
model: {{hidden: [8]}}
training: {{epochs: 3, batch_size: 128}}
outputs: {{blind_above: null}}
"""


@dataclass(frozen=True)
class Law:
    """Runs `law run` with a store of its own.

    Attributes:
        home: Folder of the toy analysis.
        place: Folder of the store and the results; by default `home`.
        project: A copy of the project to run; by default what the shell has set up.
    """

    home: Path
    place: Path = Path()
    project: Path | None = None

    @property
    def store(self) -> Path:
        return self.home / self.place / "store"

    @property
    def analysis(self) -> str:
        return str(self.home / "toy")

    @property
    def results(self) -> Path:
        return self.home / self.place / "results"

    def start(self, *arguments: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "EVENTFOLD_STORE": str(self.store),
            "EVENTFOLD_RESULTS": str(self.results),
            "TOY_DATA": str(self.home / "toy" / "data"),
            "COLUMNS": "300",  # lines of progress are cut at the width of the terminal
        }
        if self.project is not None:
            environment["PYTHONPATH"] = f"{self.project}:{environment.get('PYTHONPATH', '')}"
        return subprocess.Popen(
            ["law", "run", *arguments],
            # A shell starts what it puts in the background without Ctrl-C, which its children inherit.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            env=environment,
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def __call__(self, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, error = process.communicate()
        if ok:
            assert process.returncode == 0, error + out
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)


class OnTerminal:
    """A run on a terminal, where each line of progress is shown at once.

    Attributes:
        process: Its head process.
        said: What it has said so far.
    """

    def __init__(self, law: Law, *arguments: str) -> None:
        self.said = ""
        self._terminal, theirs = os.openpty()
        try:
            self.process = law.start(*arguments, stderr=theirs)
        finally:
            os.close(theirs)
        # Read all the time: who writes to a terminal that is full waits.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # how a terminal says that nobody writes to it any more
            while more := os.read(self._terminal, 65536):
                self.said += more.decode(errors="replace")

    def wait_until(self, said: Callable[[str], bool]) -> None:
        """Wait until what it has said is enough."""
        while not said(self.said):
            assert self._reader.is_alive(), self.said
            time.sleep(0.01)

    def wait_for_silence(self) -> None:
        """Wait until nobody can say anything any more, or a minute."""
        self._reader.join(timeout=60)

    def close(self) -> None:
        """Kill it, and wait until its workers are gone too, which hold its terminal."""
        self.process.kill()
        self.process.communicate()
        os.close(self._terminal)


def spoil_test_events(folder: Path) -> None:
    """Replace what is measured of held-out test events, and their truth, by garbage."""
    for path in sorted((folder / "data").glob("*.root")):
        with uproot.open(path) as file:
            columns = file["events"].arrays(library="np")
        sample = path.stem.partition("_")[0]
        test = is_test(event_identity(sample, [columns["event"].astype(np.int64)]), 0.25, "eventfold")
        assert 0 < test.sum() < len(test)
        for name in ("pt1", "pt2", "x", "truth"):
            columns[name] = np.where(test, 1e6, columns[name])
        with uproot.recreate(path) as file:
            file["events"] = columns


def linked_environment(folder: Path) -> Path:
    """What setup.sh takes for an environment that it has made: links, by which it can't harm the running one."""
    folder.mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name != ".eventfold":
            (folder / path.name).symlink_to(path)
    checksum = subprocess.check_output(["cksum"], input=(ROOT / "requirements.lock").read_bytes())
    (folder / ".eventfold").write_text(f"{checksum.decode().strip()} default\n")
    return folder


def ran(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """Branches that each workflow ran, from the lines of progress."""
    counts: dict[str, int] = {}
    for name, number in re.findall(r"^(\w+(?: \(\w+\))?): (\d+) done in", done.stderr, re.MULTILINE):
        counts[name] = counts.get(name, 0) + int(number)
    return counts


@dataclass(frozen=True)
class Finished:
    """A toy analysis that has run once, and how many seconds the run took."""

    law: Law
    seconds: float


def write_events(path: Path, count: int, shift: float, seed: int, *, recorded: bool = False) -> None:
    """A flat file of toy events; event numbers follow from the seed, so that files of one data set don't share any.

    Simulated ones hold a branch of generator truth, which recorded ones lack.
    """
    rng = np.random.default_rng(seed)
    pt2 = rng.exponential(20, count) + shift
    pt2[rng.random(count) < 0.4] = -7
    with uproot.recreate(path) as file:
        file["events"] = {
            "event": np.arange(count) + 1_000_000 * seed,
            "pt1": rng.exponential(30, count) + 1 + shift,
            "pt2": pt2,
            "x": rng.normal(shift / 5, 1, count),
            **({} if recorded else {"truth": rng.uniform(-1, 1, count)}),
        }


def toy(folder: Path) -> Path:
    """An analysis folder with two data sets of files."""
    data = folder / "data"
    data.mkdir(parents=True)
    for i in range(2):
        write_events(data / f"signal_{i}.root", 500, 5.0, seed=1 + i)
        write_events(data / f"background_{i}.root", 500, 0.0, seed=11 + i)
    (folder / "physics.py").write_text(PHYSICS)
    (folder / "analysis.yaml").write_text(YAML.format())
    return folder


def replace(path: Path, old: str, new: str) -> None:
    """Replace a text that stands in a file once."""
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {path}"
    path.write_text(text.replace(old, new))
