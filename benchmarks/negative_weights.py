"""The four ways of negative weights on one analysis, and two bounds of the logits: out of fold, with uncertainties.

All networks stand on the same pool of events, fold scheme and seeds. The figure is the signed weighted AUC of the
signal against the rest, of network f on fold f, pooled, mean probability over the members; differences from `signed`
are paired in the same replicas of a Poisson bootstrap. The networks are held fixed in it: ``members alone`` shows how
much the AUC of a single member for each fold varies from member to member (standard deviation).
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.closure import closure, crossed
from analysis.config import load_analysis
from analysis.metrics import bootstrap_auc, bootstrap_counts, roc_auc
from analysis.pool import Pool, load_pool
from models.ensemble import Ensemble, predict
from models.events import TrainingEvents
from models.members import MemberPlan, TrainedMember
from models.preprocessing import Signature
from models.training import best_device, train

WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "signed": ({}, {"negative_weights": "signed"}),
    "signed, logit_bound 10": ({"logit_bound": 10.0}, {"negative_weights": "signed"}),
    "signed, logit_bound 4": ({"logit_bound": 4.0}, {"negative_weights": "signed"}),
    "absolute": ({}, {"negative_weights": "absolute"}),
    "ignore": ({}, {"negative_weights": "ignore"}),
    "reweighted": ({}, {"negative_weights": "reweighted"}),
}
"""What each way changes of model and training."""
Doubles = npt.NDArray[np.float64]


def make_pool(analysis: str, folder: Path) -> Pool:
    """The training pool of an analysis, made by the graph in a store of its own."""
    settings = {**os.environ, "EVENTFOLD_STORE": str(folder)}
    subprocess.run(["law", "run", "PrepareFolds", "--analysis", analysis], env=settings, check=True)
    (description,) = folder.glob("**/pool/pool.json")
    return load_pool(description.parent)


def networks(pool: Pool, analysis: str, members: int, way: str) -> list[TrainedMember]:
    """All networks of one way, as one stack."""
    config = load_analysis(analysis).config
    model, training = replace(config.model, **WAYS[way][0]), replace(config.training, **WAYS[way][1])
    events = TrainingEvents(
        signature=Signature(pool.features, pool.objects, pool.classes),
        values=pool.values,
        present=pool.present,
        labels=pool.labels,
        weights=pool.weights,
        identity=pool.identity,
    )
    folds = [(fold, *pool.uses(fold, config.folds.count, config.folds.scheme)) for fold in range(config.folds.count)]
    plans = [
        MemberPlan(fold, index, *uses, model, replace(training, members=1), config.seed)
        for fold, *uses in folds
        for index in range(members)
    ]
    return train(events, plans, device=best_device())


def out_of_fold(pool: Pool, trained: Sequence[TrainedMember], signal: int) -> Doubles:
    """Signal scores of network f on fold f, member by member: [members, N]."""
    members = 1 + max(member.index for member in trained)
    scores = np.empty((members, len(pool.labels)))
    for member in trained:
        rows = pool.folds == member.fold
        scores[member.index, rows] = predict(Ensemble((member,)), pool.values[rows], pool.present[rows])[0, :, signal]
    return scores


def main() -> None:
    """Train all ways and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--analysis", default="atlas_hww", help="example or folder; default: atlas_hww")
    parser.add_argument("--members", type=int, default=3, help="networks for each fold; default: 3")
    parser.add_argument("--replicas", type=int, default=1000, help="of the bootstrap; default: 1000")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), help="default: all; signed is always one"
    )
    chosen = parser.parse_args()
    with TemporaryDirectory() as folder:
        pool = make_pool(chosen.analysis, Path(folder))
        config = load_analysis(chosen.analysis).config
        signal = config.class_names.index(config.classes.signal)
        truth, weights = pool.labels == signal, np.asarray(pool.weights)
        negative = np.abs(weights[weights < 0]).sum() / np.abs(weights).sum()
        print(f"{chosen.analysis}: {len(truth)} events, {negative:.1%} of Σ|w| negative, {chosen.members} members")
        print(f"{'':24}{'AUC':>16}{'less signed':>18}{'members alone':>16}{'CPU-s':>8}")
        signed: Doubles | None = None
        closures = {}
        for way in dict.fromkeys(["signed", *chosen.ways]):
            begin = time.process_time()
            trained = networks(pool, chosen.analysis, chosen.members, way)
            took = time.process_time() - begin
            scores = out_of_fold(pool, trained, signal)
            blocks = bootstrap_counts(pool.identity, pool.process, chosen.replicas, config.seed)
            replicas = bootstrap_auc(scores.mean(axis=0), truth, weights, blocks)
            value = roc_auc(scores.mean(axis=0), truth, weights)
            each = [roc_auc(own, truth, weights) for own in scores]
            base = replicas if signed is None else signed[1:]
            first = value if signed is None else signed[0]
            signed = np.concatenate([[value], replicas]) if signed is None else signed
            gap = f"{value - first:+.4f} ± {np.std(replicas - base):.4f}"
            alone = np.std(each, ddof=1) if len(each) > 1 else np.nan
            print(f"{way:24}{value:8.4f} ± {np.std(replicas):.4f}{gap:>18}{alone:16.4f}{took:8.0f}", flush=True)
            if way == "reweighted":
                own = [member for member in trained if member.index == 0]
                uses = [pool.uses(member.fold, config.folds.count, config.folds.scheme)[0] for member in own]
                closures = closure(pool, crossed([member.ratios for member in own], uses, pool.folds))
        show(closures)


def show(closures: dict[str, Any]) -> None:
    """Print the closure of refined weights, class by class."""
    for name, found in closures.items():
        each = np.array([test["p_value"] for test in found["features"].values()])
        print(f"{name}: {found['negative']:.1%} of Σ|w| negative, {found['clipped']:.1%} clipped,", end=" ")
        print(f"refined/signed sum {found['sum']:.3f};", end=" ")
        print(f"p < 0.05 for {np.count_nonzero(each < 0.05)} of {len(each)} features")
        if found["smallest"] is not None:
            feature, p_value = found["smallest"]["feature"], found["smallest"]["p_value"]
            print(f"  smallest p: {feature} {found['features'][feature]['p_value']:.2g}, by Holm {p_value:.2g}")


if __name__ == "__main__":
    main()
