"""Events per second of selection and features, against bare uproot that reads the same branches of the same file.

Both run in turn in this process, on one core, after a warm-up; the file is in the page cache. See benchmarks/README.md.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import timeit
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import uproot

from analysis.config import Analysis, load_analysis
from analysis.events import inspect_file, read
from analysis.features import compute
from analysis.selection import select
from analysis.simulation import simulate, write_part
from analysis.sources import SelectionSettings, Source

SIMULATED, ENTRIES = 2_000, 200_000
"""Events that are simulated, and entries of the default file, drawn from them with replacement."""


def simulated_file(analysis: Analysis, dataset: str, folder: str) -> str:
    """Write a file of a simulated data set."""
    made = analysis.config.data.datasets[dataset].simulate
    if made is None:
        raise SystemExit(f"{analysis.config.name} simulates nothing: name a file of data set {dataset!r} with --file.")
    part = simulate(made.process, SIMULATED, seed=1)
    drawn = np.random.default_rng(1).integers(0, SIMULATED, ENTRIES)
    path = f"{folder}/{dataset}.root"
    write_part(replace(part, events={name: column[drawn] for name, column in part.events.items()}), path)
    return path


def prepare(analysis: Analysis, dataset: str, path: str) -> tuple[list[Source], SelectionSettings]:
    """The file's chunks and the settings that SelectEvents passes on."""
    config, tree = analysis.config, analysis.config.tree_of(dataset)
    entries, size = inspect_file(path, tree).entries, config.data.chunk
    ranges = [(start, min(start + size, entries)) for start in range(0, entries, size)]
    settings = SelectionSettings(
        sample=config.sample_of(dataset),
        file_key=Path(path).name,
        identity=config.identity.columns,
        processes={p: config.processes[p].where for p in config.processes_of(dataset)},
        generator=config.weights.generator,
        cuts=config.selection.cuts,
        training_cuts=config.selection.training_cuts,
        categories=config.selection.categories,
        test_fraction=config.folds.test_fraction,
        test_salt=config.folds.test_salt,
    )
    return [Source(path, tree, config.data.format, *r, config.data.sentinels) for r in ranges], settings


def full(analysis: Analysis, sources: list[Source], settings: SelectionSettings, log: list[Any] | None = None) -> int:
    """Do the work of SelectEvents and ComputeFeatures; returns the number of selected events."""
    functions, selected = vars(analysis.physics), 0
    for source in sources:
        entries = select(source, settings, functions).columns["entry"]
        compute(analysis.config.feature_names, functions, read(source, log).at(entries - source.start), source)
        selected += len(entries)
    return selected


def bare(sources: list[Source], key: str, branches: list[str]) -> None:
    """Read the branches with uproot and do nothing else."""
    with uproot.open(sources[0].path) as file:
        for s in sources:
            file[key].arrays(branches, library="ak", entry_start=s.start, entry_stop=s.stop)


def row(name: str, values: Any, digits: int) -> str:
    """Median, minimum and maximum."""
    return f"{name:31}" + "".join(f"{x:12,.{digits}f}" for x in (np.median(values), min(values), max(values)))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="selection + features against bare uproot, on the same branches")
    parser.add_argument("--analysis", default="hww", help="an example or an analysis folder; default: hww")
    parser.add_argument("--file", help="a file of its first data set; by default one is simulated")
    parser.add_argument("--repetitions", type=int, default=15, help="measurements of each; default: 15")
    chosen = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core, whatever threads a library starts
    analysis, log = load_analysis(chosen.analysis), list[Any]()
    dataset = next(iter(analysis.config.data.datasets))
    with tempfile.TemporaryDirectory() as folder:
        sources, settings = prepare(analysis, dataset, chosen.file or simulated_file(analysis, dataset, folder))
        with mock.patch("analysis.selection.read", partial(read, log=log)):
            selected = full(analysis, sources, settings, log)  # the warm-up tells which branches are read
        branches = sorted({item.branch for item in log})
        key = inspect_file(sources[0].path, sources[0].tree).tree
        calls = partial(bare, sources, key, branches), partial(full, analysis, sources, settings)
        calls[0]()
        # In turn, so that what else the machine does falls on both alike.
        pairs = [[timeit.timeit(call, number=1) for call in calls] for _ in range(chosen.repetitions)]
    bare_times, full_times = np.array(pairs).T
    entries, features = sources[-1].stop, len(analysis.config.feature_names)
    print(f"{analysis.config.name}, {dataset}: {entries} entries, {selected} selected, {len(branches)} branches,")
    print(f"{features} features, {chosen.repetitions} repetitions, one core, Python {platform.python_version()},")
    print(", ".join(f"{name} {version(name)}" for name in ("uproot", "awkward", "coffea", "numpy")))
    print(f"{'':31}{'median':>12}{'min':>12}{'max':>12}")
    print(row("bare uproot, events/s", entries / bare_times, 0))
    print(row("selection + features, events/s", entries / full_times, 0))
    print(row("ratio, paired", bare_times / full_times, 3))


if __name__ == "__main__":
    main()
