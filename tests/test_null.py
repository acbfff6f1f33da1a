"""Nothing to learn, nothing learned: with shuffled labels the out-of-fold AUC is one half."""

from __future__ import annotations

import numpy as np
from scipy import stats

from analysis.metrics import roc_auc
from analysis.splitting import event_identity, fold_of, roles
from models.ensemble import Ensemble, combine, predict
from models.events import TrainingEvents
from models.members import MemberPlan
from models.preprocessing import Signature
from models.settings import ModelSettings, TrainingSettings
from models.training import train

EVENTS, FEATURES, FOLDS, PERMUTATIONS = 1500, 6, 5, 20
MODEL = ModelSettings(hidden=(32, 32), dropout=0.0)
TRAINING = TrainingSettings(epochs=10, batch_size=128, weight_decay=0.0)


def out_of_fold_auc(seed: int, *, leak: bool = False) -> float:
    """Unweighted out-of-fold AUC after events have been given the labels, and the weights with them, of others.

    With a leak, network f trains and stops on fold f too.
    """
    rng = np.random.default_rng(7)
    labels = (rng.random(EVENTS) < 0.3).astype(np.int64)
    # Weights tell the classes apart, as those of real samples do; a fifth of the background's are negative.
    weights = np.where(labels == 1, 0.01, rng.exponential(2.0, EVENTS) * np.where(rng.random(EVENTS) < 0.2, -1, 1))
    values = rng.normal(size=(EVENTS, FEATURES)).astype(np.float32) + labels[:, np.newaxis].astype(np.float32)
    present = rng.random((EVENTS, FEATURES)) < 0.8
    shuffled = np.random.default_rng(seed).permutation(EVENTS)
    labels, weights = labels[shuffled], weights[shuffled]

    identity = np.sort(event_identity("null", [np.arange(EVENTS, dtype=np.int64)]))
    folds = fold_of(identity, FOLDS, "0")
    plans = []
    for network in range(FOLDS):
        role = roles(network, FOLDS, "rotating")
        training, stopping = np.isin(folds, role.training), folds == role.stopping
        if leak:
            training, stopping = np.ones(EVENTS, dtype=np.bool_), folds == network
        plans.append(MemberPlan(network, 0, training, stopping, MODEL, TRAINING, seed))
    signature = Signature(tuple(f"x{i}" for i in range(FEATURES)), ("event",) * FEATURES, ("background", "signal"))
    events = TrainingEvents(signature, values, present, labels, weights, identity)
    ensemble = Ensemble(tuple(train(events, plans)))
    routed, _ = combine(predict(ensemble, values, present), ensemble.folds, folds.astype(np.int64))
    return roc_auc(routed[:, 1].astype(np.float64), labels == 1, np.ones(EVENTS))


def test_shuffled_labels_give_an_auc_of_one_half() -> None:
    found = [out_of_fold_auc(seed) for seed in range(1, PERMUTATIONS + 1)]
    assert stats.ttest_1samp(found, 0.5).pvalue > 0.003, (np.mean(found), np.std(found, ddof=1))


def test_a_leak_would_show() -> None:
    """The test above can fail: networks that met the events they are judged on find a signal where there is none."""
    found = [out_of_fold_auc(seed, leak=True) for seed in range(1, 13)]
    assert stats.ttest_1samp(found, 0.5, alternative="greater").pvalue < 0.003, found
