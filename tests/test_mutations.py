"""Every leaf of a configuration, changed one at a time: what reads it is made anew with what follows, nothing else."""

from __future__ import annotations

import copy
import fnmatch
import json
from collections.abc import Iterator
from typing import Any

import luigi
import pytest

import workflow.base
from analysis.config import Analysis, Configuration, load_analysis
from tests.test_slices import IDLE
from workflow.plan import Plan
from workflow.tasks import Report

# Which steps read a key, by pattern: the first that fits counts. Steps are called as lines of progress call them.
SIMULATE, LIST, SELECT = "SimulateEvents", "ListInputs", "SelectEvents"
FEATURES, FACTORS, SPECTATORS = (f"ComputeFeatures ({group})" for group in ("features", "factors", "spectators"))
FOLDS, TRAIN, EXPORT, SCORE = "PrepareFolds", "TrainFolds", "ExportEnsemble", "ScoreEvents"
EVALUATE, PLOT, STATISTICS, REPORT = "EvaluateEnsemble", "PlotResults", "WriteStatistics", "Report"
READS = {SELECT, FEATURES, FACTORS, SPECTATORS}
SCORED = {EVALUATE, PLOT, STATISTICS}
READERS: dict[str, set[str]] = {
    "name": {EXPORT},
    "title": set(),
    "seed": {SIMULATE, TRAIN, EVALUATE},
    "data.format": READS,
    "data.tree": {LIST, *READS},
    "data.folder": set(),
    "data.on_bad_file": set(),
    "data.chunk": READS,
    "data.generated*": {LIST},
    "data.sentinels": READS,
    "data.simulation.scale": {SIMULATE, *READS, SCORE},
    "data.simulation.multiparton": {SIMULATE},
    "data.datasets.*.simulate.process": {SIMULATE},
    "data.datasets.*.simulate.events": {SIMULATE, *READS, SCORE},
    "data.datasets.*.simulate.parts": {SIMULATE, *READS, SCORE},
    "data.datasets.*.tree": {LIST, *READS},
    "data.datasets.*.sample": {SELECT, EXPORT},
    "data.datasets.*.generated": {LIST, FOLDS, *SCORED},
    "identity.columns": {SELECT, EXPORT},
    "identity.duplicates": {FOLDS, *SCORED},
    "processes.*.title": {PLOT},
    "processes.*.color": {PLOT},
    "processes.*.cross_section.*": {FOLDS, *SCORED},
    "classes.signal": {EXPORT, *SCORED},
    "classes.processes.*": {FOLDS, EXPORT, *SCORED},
    "selection.cuts": {SELECT},
    "selection.training_cuts": {SELECT},
    "selection.categories.*": {SELECT},
    "features.*": {FEATURES, FOLDS, EVALUATE, PLOT},
    "spectators": {SPECTATORS, EVALUATE, PLOT},
    "weights.luminosity": {FOLDS, *SCORED},
    "weights.generator": {SELECT},
    "weights.factors": {FACTORS, FOLDS, *SCORED},
    "folds.count": {FOLDS, TRAIN, EXPORT, SCORE, *SCORED},
    "folds.scheme": {FOLDS, TRAIN, EVALUATE, PLOT},
    "folds.salt": {FOLDS, EXPORT, SCORE, *SCORED},
    "folds.test_*": {SELECT},
    "folds.minimum": {FOLDS},
    "model.*": {TRAIN},
    "training.members": {TRAIN},
    "training.combination": {EXPORT, SCORE, PLOT},
    "training.negative_weights": {TRAIN, EVALUATE},
    "training.*": {TRAIN},
    "tuning.*": set(),
    "outputs.histogram.bins": SCORED,
    "outputs.replicas": {EVALUATE},
    "outputs.blind_above": {PLOT},
    "outputs.style": {PLOT},
    "outputs.label": {PLOT},
    "outputs.friends": {SCORE},
    "outputs.templates": {STATISTICS},
    "outputs.channels": {STATISTICS},
    "outputs.nuisances": {STATISTICS},
}

# A valid other value, where adding one or a letter gives none.
VALUES: dict[str, Any] = {
    "data.on_bad_file": "skip",
    "data.format": "flat",
    "data.sentinels": {"Jet_pt": -1.0},
    "data.chunk": 1000,
    "data.datasets.*.simulate.process": "another",
    "data.datasets.*.simulate.events": 12345,
    "data.datasets.*.tree": "Other",
    "data.datasets.*.sample": "other",
    "data.datasets.*.generated": 12345.0,
    "data.generated.index": 2,
    "data.generated.times": "genEventCount",
    "identity.duplicates": "drop",
    "processes.*.color": "#123456",
    "processes.*.cross_section.filter_efficiency": 0.5,
    "classes.signal": "top",
    "selection.training_cuts": ["in_a_category"],
    "selection.categories.*": "in_a_category",
    "folds.scheme": "standard",
    "model.activation": "relu",
    "model.type": "tabm",
    "model.normalisation": "layer",
    "model.missing": "separate",
    "training.schedule": "cosine",
    "training.precision": "bf16",
    "training.sampling": "balanced",
    "training.window": 5000,
    "model.initialisation": "orthogonal",
    "model.connections": "residual",
    "training.loss": "focal",
    "training.label_smoothing": 0.1,
    "training.label_noise": 0.1,
    "training.input_noise": 0.1,
    "training.weight_noise": 0.1,
    "training.l1": 0.1,
    "training.l2": 0.1,
    "training.max_norm": 3.0,
    "training.stop_*": 3.0,
    "training.optimiser": "nadam",
    "training.weight_decay": 0.2,
    "training.beta*": 0.8,
    "training.epsilon": 1e-6,
    "training.warm_up": 1.0,
    "training.averaging": "ema",
    "model.inputs.default": "robust",
    "model.inputs.features": {"met": "log"},
    "model.embedding": "periodic",
    "training.augmentation": {"reflection_z": True, "longitudinal": ["lepton1_eta"]},
    "training.combination": "median",
    "training.pruning": "magnitude",
    "model.logit_bound": 5.0,
    "training.down_sampling": {"top": 0.5},
    "training.balance": "processes",
    "training.flatten": ["met"],
    "training.negative_weights": "absolute",
    "outputs.style": "CMS",
    "outputs.friends": "rntuple",
    "outputs.templates": "routed",
    "outputs.channels": ["two_leptons"],
    "outputs.nuisances": {"luminosity": {"norm": 0.016}},
    "tuning.space": {"training.patience": {"low": 2, "high": 9}},
    "tuning.sampler": "grid",
    "tuning.pruner": "none",
}

# Leaves that can't change alone (a process needs its cross section), that have one value so far, or that bring in
# further functions and steps (tests/test_targets.py).
FIXED = (
    "targets",
    "classes.soft_labels",
    "training.decorrelation",
    "data.datasets.*.files",
    "data.datasets.*.collision",
    "data.generated.histogram",
    "processes.*.data",
    "processes.*.where",
    "processes.*.normalisation",
    "tuning.pruner_*",
    *(f"*.{name}" for name in IDLE),
    "classes.processes.top",
    "classes.processes.diboson",
)


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping; an empty mapping is a leaf."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    else:
        yield ".".join(path), node


def other(key: str, value: Any) -> Any:
    """Another value for a leaf."""
    for pattern, replacement in VALUES.items():
        if fnmatch.fnmatch(key, pattern):
            return replacement
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value * 1.01
        case str():
            return f"{value}x"
        case [*items] if items:
            return items[:-1]
    raise ValueError(f"no other value is known for {key} = {value!r}")


class Graph:
    """The identities of all steps under a configuration; nothing runs and no file is read."""

    def __init__(self, analysis: Analysis, content: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
        plan = Plan(Analysis(analysis.folder, Configuration.model_validate(content)))
        patch.setattr(workflow.base, "open_plan", lambda *_: plan)
        luigi.task_register.Register.clear_instance_cache()
        self.own: dict[str, set[str]] = {}  # what each step receives itself
        self.identity: dict[str, set[str]] = {}
        self.requires: dict[str, set[str]] = {}
        self._seen: set[str] = set()
        self._visit(Report())

    def _visit(self, task: Any) -> None:
        if task.task_id in self._seen:
            return
        self._seen.add(task.task_id)
        required = luigi.task.flatten(task.requires())
        if getattr(task, "is_workflow", lambda: False)():
            required = list(task.get_branch_tasks().values())
        else:
            parts = {k: v for k, v in task.parts.items() if k != "requires"}
            self.own.setdefault(task.title, set()).add(json.dumps(parts, sort_keys=True))
            self.identity.setdefault(task.title, set()).add(task.fingerprint)
            self.requires.setdefault(task.title, set()).update(r.title for r in required)
        for step in required:
            self._visit(step)

    def changed(self, reference: Graph, what: str) -> set[str]:
        """Steps of which something is not as in the reference."""
        mine, theirs = getattr(self, what), getattr(reference, what)
        return {title for title in {*mine, *theirs} if mine.get(title) != theirs.get(title)}

    def following(self, steps: set[str]) -> set[str]:
        """Steps, and all that stands on them."""
        found = set(steps)
        while True:
            more = {title for title, required in self.requires.items() if required & found} - found
            if not more:
                return found
            found |= more


@pytest.mark.slow
def test_each_leaf_changes_what_reads_it_and_what_follows(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("EVENTFOLD_STORE", str(tmp_path_factory.mktemp("store")))
    analysis = load_analysis("hww")
    content = json.loads(analysis.config.model_dump_json())
    content["outputs"]["nuisances"] = {}  # variations bring in further steps (tests/test_variations.py)
    reference = Graph(analysis, content, monkeypatch)
    assert set(reference.own) == {SIMULATE, LIST, *READS, FOLDS, TRAIN, EXPORT, SCORE, *SCORED, REPORT}
    unread = []
    for key, value in leaves(content):
        if any(fnmatch.fnmatch(key, pattern) for pattern in FIXED):
            continue
        readers = next(steps for pattern, steps in READERS.items() if fnmatch.fnmatch(key, pattern))
        changed = copy.deepcopy(content)
        *path, last = key.split(".")
        node = changed
        for part in path:
            node = node[part]
        node[last] = other(key, value)
        graph = Graph(analysis, changed, monkeypatch)
        own = graph.changed(reference, "own")
        expected = set() if key.startswith("tuning.") else {*readers, REPORT}  # which shows all but that
        if own != expected:
            unread.append(f"{key}: read by {sorted(own)}, expected {sorted(expected)}")
        assert graph.changed(reference, "identity") == graph.following(own), key
    assert not unread, "\n".join(unread)
    assert Graph(analysis, content, monkeypatch).identity == reference.identity  # back to where the outputs are
