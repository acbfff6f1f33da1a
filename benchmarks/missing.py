"""Ways of treating missing objects, compared out of fold: AUC, paired with that of learned values.

Each way trains all folds on the pool of an analysis, which `law run PrepareFolds` makes; held-out test events are not
in it. With `--drop`, every lepton is left out of its event with that probability, with all that is made of it. See
benchmarks/README.md.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.metrics import bootstrap_auc, bootstrap_counts, roc_auc
from analysis.pool import Pool, load_pool
from models import hashing
from models.ensemble import Ensemble, combine, predict
from models.events import TrainingEvents
from models.members import MemberPlan
from models.preprocessing import Signature
from models.settings import ModelSettings, TrainingSettings
from models.training import best_device, train

WAYS: dict[str, dict[str, Any]] = {
    "learned": {},
    "learned, no indicator": {"indicator": False},
    "default, mean": {"missing": "default"},
    "default, mean, no indicator": {"missing": "default", "indicator": False},
    "default, median": {"missing": "default", "missing_value": "median"},
    "default, -10": {"missing": "default", "missing_value": -10.0},
    "separate": {"missing": "separate", "pattern_objects": ("lepton1", "lepton2")},
    "separate, all objects": {"missing": "separate"},
    "deep_sets": {"missing": "deep_sets"},
    "attention": {"missing": "attention"},
}
FOLDS, SEED, REPLICAS = 5, 1, 1000


def read(folder: Path, drop: float) -> tuple[Pool, TrainingEvents]:
    """The events of a pool, some of them without their leptons."""
    pool = load_pool(folder)
    present, identity = np.array(pool.present), np.asarray(pool.identity)
    leptons = [name for name in dict.fromkeys(pool.objects) if name.startswith("lepton")]
    gone = {}
    for number, name in enumerate(leptons):
        draws = hashing.uniform(hashing.key(SEED, number), len(identity)).numpy()
        gone[name] = draws < drop
        made = [name in feature or owner == name for feature, owner in zip(pool.features, pool.objects, strict=True)]
        present[:, made] &= ~gone[name][:, np.newaxis]
    pairs = [owner in ("dilepton", "ditau") for owner in pool.objects]
    present[:, pairs] &= ~np.logical_or.reduce(list(gone.values()))[:, np.newaxis]
    columns = {name: np.asarray(getattr(pool, name)) for name in ("values", "labels", "weights", "identity")}
    signature = Signature(pool.features, pool.objects, pool.classes)
    return pool, TrainingEvents(signature, present=present, **columns)


def out_of_fold(
    pool: Pool, events: TrainingEvents, model: ModelSettings, training: TrainingSettings
) -> npt.NDArray[np.float64]:
    """Scores of the last class by the networks that left the event's fold out, means over their members: ``[N]``."""
    plans = [
        MemberPlan(fold, member, *pool.uses(fold, FOLDS, "rotating"), model, training, SEED)
        for fold in range(FOLDS)
        for member in range(training.members)
    ]
    ensemble = Ensemble(tuple(train(events, plans, device=best_device())))
    probabilities = predict(ensemble, events.values, events.present)  # (M, N, C)
    routed, _ = combine(probabilities, ensemble.folds, pool.folds.astype(np.int64))  # (N, C)
    return routed[:, -1].astype(np.float64)


def compare(folder: Path, drop: float, ways: list[str], training: TrainingSettings) -> None:
    """Print one line for each way."""
    pool, events = read(folder, drop)
    truth, sizes = events.labels == len(pool.classes) - 1, np.array(events.weights)
    counts = list(bootstrap_counts(events.identity, events.labels, REPLICAS, SEED))
    share = 1 - events.present.mean()
    print(f"{folder}: {len(truth)} events, {100 * share:.0f}% of the values absent, drop {drop}")
    print("| way | AUC | difference to `learned` | training (s) |\n|---|---|---|---|")
    first: tuple[float, npt.NDArray[np.float64]] | None = None
    for way in ways:
        begun = time.monotonic()
        score = out_of_fold(pool, events, ModelSettings(**WAYS[way]), training)
        seconds = time.monotonic() - begun
        value, replicas = roc_auc(score, truth, sizes), bootstrap_auc(score, truth, sizes, counts)
        first = first or (value, replicas)
        gap = "" if way == ways[0] else f"{value - first[0]:+.4f} ± {np.std(replicas - first[1]):.4f}"
        print(f"| {way} | {value:.4f} ± {np.std(replicas):.4f} | {gap} | {seconds:.0f} |", flush=True)


def main() -> None:
    """Parse and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pool", type=Path, help="folder of PrepareFolds, with pool.json")
    parser.add_argument("--drop", type=float, default=0.0, help="probability of each lepton to be left out")
    parser.add_argument("--members", type=int, default=1, help="networks per fold, whose scores are averaged")
    parser.add_argument("--epochs", type=int, default=TrainingSettings.epochs)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="the first one is compared with")
    options = parser.parse_args()
    training = dataclasses.replace(TrainingSettings(), epochs=options.epochs, members=options.members)
    compare(options.pool, options.drop, options.ways, training)


if __name__ == "__main__":
    main()
