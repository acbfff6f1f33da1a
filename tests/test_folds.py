"""Folds of real events: trained as one stack they reach what each reaches alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from analysis.metrics import roc_auc
from analysis.pool import Pool, load_pool
from models.ensemble import Ensemble, combine, predict
from models.events import TrainingEvents
from models.members import MemberPlan, TrainedMember
from models.preprocessing import Signature
from models.settings import ModelSettings, TrainingSettings
from models.training import train
from tests.toy import Law

FOLDS = 10
MODEL = ModelSettings(hidden=(48, 48), dropout=0.1)
TRAINING = TrainingSettings(epochs=8, patience=3, negative_weights="signed")


@pytest.fixture
def pool(law: Law, data_folder: Path) -> Pool:
    """All training events of `higgsml` in ten folds."""
    assert (data_folder / "higgsml").is_dir()
    run = law("PrepareFolds", "--analysis", "higgsml", "--set", f"folds.count={FOLDS}")
    assert run.returncode == 0, run.stderr
    (folder,) = law.store.glob("PrepareFolds/higgsml/*/pool")
    return load_pool(folder)


def out_of_fold_auc(pool: Pool, trained: list[TrainedMember]) -> float:
    """The weighted AUC of network f's scores of fold f."""
    ensemble = Ensemble(tuple(trained))
    probabilities = predict(ensemble, np.asarray(pool.values), np.asarray(pool.present))
    routed, _ = combine(probabilities, ensemble.folds, pool.folds.astype(np.int64))
    scores: npt.NDArray[np.float64] = routed[:, 1].astype(np.float64)
    return roc_auc(scores, pool.labels == 1, np.asarray(pool.weights))


def test_ten_folds_stacked_and_ten_folds_alone(pool: Pool) -> None:
    """The figure is 3·10⁻⁴; the networks are the same to the last bit."""
    events = TrainingEvents(
        Signature(pool.features, pool.objects, pool.classes),
        pool.values,
        pool.present,
        pool.labels,
        pool.weights,
        pool.identity,
    )
    plans = [MemberPlan(f, 0, *pool.uses(f, FOLDS, "rotating"), MODEL, TRAINING, seed=1) for f in range(FOLDS)]
    stacked = train(events, plans)
    alone = [train(events, [plan])[0] for plan in plans]
    together, apart = out_of_fold_auc(pool, stacked), out_of_fold_auc(pool, alone)
    assert 0.85 < together < 0.95
    assert abs(together - apart) < 3e-4
    for one, other in zip(stacked, alone, strict=True):
        assert all(np.array_equal(value, other.parameters[name]) for name, value in one.parameters.items())
