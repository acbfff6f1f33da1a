"""Fixtures that several modules share: small ROOT files, tables of toy events, and the folder of public events."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import awkward as ak
import numpy as np
import pytest
import uproot
from filelock import FileLock

from analysis.splitting import event_identity, is_test
from analysis.table import EventTable
from tests.toy import Finished, Law, toy

if TYPE_CHECKING:
    from workflow.tasks.train import TrainFolds


FIRST = (
    *("main_jobs", "dask", "workflow", "law", "kill", "tuning", "ending", "reprocessing", "export", "bad_files"),
    *("edits", "stacks", "detached", "slurm", "training", "replay", "mutations"),
)
"""Test files that take longest: with `-n` they begin first, so that none is left for the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest in front; otherwise the order stays."""
    places = {f"test_{name}": place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(FIRST)))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of the public events, $EVENTFOLD_DATA."""
    folder = os.environ.get("EVENTFOLD_DATA", "")
    if not folder:
        pytest.skip("EVENTFOLD_DATA is not set: no public events to read")
    if not Path(folder).is_dir():
        pytest.skip(f"EVENTFOLD_DATA={folder} is no folder: no public events to read")
    return Path(folder)


@pytest.fixture
def write_root(tmp_path: Path) -> Callable[..., str]:
    """Write a ROOT file of one tree: `write_root({"met": array}, name="a.root", tree="events")` returns its path.

    Branches are numpy or awkward arrays; further objects of the file are keyword arguments.
    """

    def write(branches: Mapping[str, Any], name: str = "events.root", tree: str = "events", **others: Any) -> str:
        path = tmp_path / name
        with uproot.recreate(path) as file:
            types = {k: v.type.content if isinstance(v, ak.Array) else v.dtype for k, v in branches.items()}
            file.mktree(tree, types)
            if any(len(values) for values in branches.values()):
                file[tree].extend(dict(branches))
            for key, value in others.items():
                file[key] = value
        return str(path)

    return write


@pytest.fixture(scope="session")
def toy_table() -> Callable[..., EventTable]:
    """Make a table of events of three processes, of which `higgs` and `top` are classes 1 and 0 and `other` is none.

    `toy_table(count, seed)`: two features, `met` (always there) and `pt2` (absent in about half of the events), both
    larger for `higgs`; a tenth of the weights are negative.
    """

    def make(count: int = 3000, seed: int = 1) -> EventTable:
        rng = np.random.default_rng(seed)
        process = rng.integers(0, 3, count).astype(np.int16)
        identity = event_identity("toy", [np.arange(count, dtype=np.int64)])
        shift = (process == 1).astype(np.float32)
        table = EventTable(
            processes=("top", "higgs", "other"),
            process=process,
            label=np.array([0, 1, -1], dtype=np.int16)[process],
            weight=rng.exponential(1.0, count) * np.where(rng.random(count) < 0.1, -1.0, 1.0),
            identity=identity,
            is_test=is_test(identity, 0.25, "eventfold"),
            training=np.ones(count, dtype=np.bool_),
            category=np.where(rng.random(count) < 0.5, "one", "").astype(object),
            chunk=np.zeros(count, dtype=np.int32),
            entry=np.arange(count, dtype=np.int64),
            columns={
                "met": np.ma.MaskedArray(rng.normal(size=count).astype(np.float32) + shift),
                "pt2": np.ma.MaskedArray(rng.normal(size=count).astype(np.float32) + shift, rng.random(count) < 0.5),
            },
        )
        return table.take(np.argsort(identity))

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A toy analysis that has run once, also for all processes of `-n`; what changes it works on a copy."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    law, took = Law(home), home / "seconds.txt"
    with FileLock(home.with_suffix(".lock")):
        if not took.exists():
            shutil.rmtree(home, ignore_errors=True)
            toy(law.home / "toy")
            started = time.monotonic()
            law("Report", "--analysis", law.analysis)
            took.write_text(str(time.monotonic() - started))
    return Finished(law, float(took.read_text()))


@pytest.fixture
def law(finished: Finished, tmp_path: Path) -> Law:
    """The finished toy analysis, to be changed: `law("Report", ...)`, its folder at `law.home / "toy"`."""
    home = tmp_path / "home"
    shutil.copytree(finished.law.home, home, symlinks=True)
    shutil.rmtree(home / "store" / "names")  # it names the original, as does the register of results
    for register in (home / "store" / "published").iterdir():
        register.unlink()
    return Law(home)


@pytest.fixture
def here(law: Law, monkeypatch: pytest.MonkeyPatch) -> Law:
    """The same for this process too, which may ask for its steps: once, as a run does."""
    monkeypatch.setenv("EVENTFOLD_STORE", str(law.store))
    monkeypatch.setenv("EVENTFOLD_RESULTS", str(law.results))
    monkeypatch.setenv("TOY_DATA", str(law.home / "toy" / "data"))
    return law


@pytest.fixture
def section() -> Iterator[dict[str, str]]:
    """The keys of `[cluster_test]`, which are put into law's configuration when it is asked for."""
    from law.config import Config

    config = Config.instance()
    keys: dict[str, str] = {}
    config.add_section("cluster_test")
    yield keys
    config.remove_section("cluster_test")


class Networks(Protocol):
    """Networks that are not trained yet, for a workflow type and a cluster."""

    def __call__(self, kind: str, cluster: str = "test") -> TrainFolds: ...


@pytest.fixture
def networks(here: Law, monkeypatch: pytest.MonkeyPatch) -> Networks:
    """With a batch system's programs as if they were there."""
    from workflow.tasks.train import TrainFolds

    monkeypatch.setattr(shutil, "which", str)
    monkeypatch.setattr("law.task.proxy.global_cmdline_args", lambda **_: {})  # there is no command line

    def make(kind: str, cluster: str = "test") -> TrainFolds:
        task = TrainFolds(analysis=here.analysis, workflow=kind, cluster=cluster, set=("seed=9",))
        task.scheduler_messages = None  # nor a worker of luigi's
        return task

    return make
