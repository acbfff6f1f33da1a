"""How networks become one score: against numpy and scipy, in all places where scores are made."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax

from models.combination import combined, predicted, spread
from models.ensemble import Ensemble, combine, load_member, predict, routed, save_member, score
from models.export import check_onnx, export_onnx
from models.losses import probabilities
from models.members import History, TrainedMember
from models.preprocessing import Target
from models.settings import Combination, ModelSettings, TargetSettings, TrainingSettings
from models.training import train
from tests.test_export import make_ensemble, make_inputs, make_member
from tests.test_training import MODEL, TRAINING, assert_equal, differ, make_events, make_plans
from workflow.tasks.plots import network_scores

Doubles = npt.NDArray[np.float64]


def drawn(networks: int, count: int = 200, seed: int = 1) -> npt.NDArray[np.float32]:
    """Probabilities ``[M, N, 3]``, some of them zero or one."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (networks, count, 3)) * np.where(random.random((networks, count, 1)) < 0.1, 100, 1)
    return softmax(logits, axis=2).astype(np.float32)


def reference(p: npt.NDArray[np.float32], how: Combination, losses: Doubles) -> Doubles:
    """The formulas of the docs in numpy."""
    exact = p.astype(np.float64)
    if how == "mean":
        found = exact.mean(axis=0)
    elif how == "logits":
        logs = np.log(np.maximum(exact, 1e-30)).mean(axis=0)
        found = np.exp(logs - logsumexp(logs, axis=-1, keepdims=True))
    elif how == "median":
        middle = np.median(exact, axis=0)
        total = middle.sum(axis=-1, keepdims=True)
        found = np.where(total > 0, middle / np.where(total > 0, total, 1), exact.mean(axis=0))
    else:
        found = np.average(exact, axis=0, weights=np.exp(-losses))
    return np.asarray(found)


@pytest.mark.parametrize("how", get_args(Combination))
@pytest.mark.parametrize("networks", [1, 4, 5])
def test_each_way_is_what_its_formula_says(how: Combination, networks: int) -> None:
    p, losses = drawn(networks), np.linspace(-0.3, 0.9, networks)
    shares = torch.from_numpy(np.exp(-losses))
    found = combined(torch.from_numpy(p), how, shares).numpy()
    assert found == pytest.approx(reference(p, how, losses), abs=1e-12)
    assert found.sum(axis=1) == pytest.approx(1, abs=1e-6)
    if networks == 1:
        assert found == pytest.approx(p[0].astype(np.float64), abs=1e-6)


@pytest.mark.parametrize("how", get_args(Combination))
def test_outputs_of_targets_are_no_probabilities(how: Combination) -> None:
    """The probabilities stay as they are without targets; of the targets it is the mean or the median of each."""
    p, losses = drawn(4), np.linspace(-0.3, 0.9, 4)
    outputs = np.random.default_rng(3).normal(100, 20, (4, 200, 2)).astype(np.float32)
    both = torch.from_numpy(np.concatenate([p, outputs], axis=2))
    found = predicted(both, 3, how, torch.from_numpy(np.exp(-losses))).numpy()
    expected = {"median": np.median(outputs, axis=0), "weighted": np.average(outputs, axis=0, weights=np.exp(-losses))}
    assert found[:, :3] == pytest.approx(reference(p, how, losses), abs=1e-12)
    assert found[:, 3:] == pytest.approx(expected.get(how, outputs.mean(axis=0)), rel=1e-6)


def test_scores_of_each_fold_with_targets() -> None:
    """Those that the plots show are the routed ones, also where the networks have other outputs."""
    events = make_events(300)
    targets = (Target("mass", TargetSettings("mass")),)
    signature = dataclasses.replace(events.signature, targets=targets)
    extra = np.random.default_rng(1).normal(100, 20, (300, 1)).astype(np.float32)
    own = dataclasses.replace(events, signature=signature, extra=extra, extra_names=("mass",))
    ensemble = Ensemble(tuple(train(own, make_plans(300)[:2])), "logits")
    folds = np.arange(300, dtype=np.int64) % 2
    expected, _, _ = score(ensemble, events.values, events.present, ensemble.folds[folds])
    table = SimpleNamespace(matrix=lambda _: (events.values, events.present))
    signal = signature.classes[1]
    found = network_scores(ensemble, SimpleNamespace(table=table), signal)
    assert np.array_equal(found[folds, np.arange(300)], expected[:, 1])


def test_logits_of_one_softmax_are_averaged() -> None:
    logits = torch.from_numpy(np.random.default_rng(2).normal(0, 2, (5, 300, 3)))
    found = combined(probabilities(logits, "cross_entropy"), "logits", torch.ones(5))
    assert found.numpy() == pytest.approx(torch.softmax(logits.mean(dim=0), dim=-1).numpy(), abs=1e-12)


def test_a_median_of_nothing_but_zeros_is_the_mean() -> None:
    certain = torch.eye(3).unsqueeze(1)  # three networks, each sure of another class
    assert combined(certain, "median", torch.ones(3)).numpy() == pytest.approx(np.full((1, 3), 1 / 3))


@pytest.mark.parametrize("networks", [1, 2, 7])
def test_the_spread_is_the_standard_deviation(networks: int) -> None:
    p = drawn(networks)
    found = spread(torch.from_numpy(p)).numpy()
    expected = p.astype(np.float64).std(axis=0, ddof=1) if networks > 1 else np.zeros(p.shape[1:])
    assert found == pytest.approx(expected, abs=1e-12)


def with_losses(ensemble: Ensemble, how: Combination) -> Ensemble:
    """The same networks with validation losses that differ, combined in some way."""
    members = [
        dataclasses.replace(member, history=History((0.7, 0.5), (0.8, 0.2 * position), (1e-3, 1e-4)))
        for position, member in enumerate(ensemble.members)
    ]
    return Ensemble(tuple(members), how)


class TestEnsembles:
    @pytest.mark.parametrize("how", get_args(Combination))
    def test_routed_and_ensemble_against_loops(self, how: Combination) -> None:
        ensemble = with_losses(make_ensemble(members=3), how)
        values, present, folds = make_inputs(100)
        p = predict(ensemble, values, present)
        found = score(ensemble, values, present, folds)
        losses = 0.2 * np.arange(9)
        assert found[1] == pytest.approx(reference(p, how, losses), abs=1e-6)
        for event, fold in enumerate(folds):
            own = ensemble.folds == fold
            expected = reference(p[own][:, event : event + 1], how, losses[own])[0]
            assert found[0][event] == pytest.approx(expected, abs=1e-6)
        assert found[2] == pytest.approx(p.std(axis=0, ddof=1), abs=1e-6)
        assert all(scores.dtype == np.float32 for scores in found)

    def test_the_default_is_the_mean_to_the_last_bit(self) -> None:
        p, folds, events = drawn(6), np.array([0, 0, 1, 1, 2, 2]), np.arange(200) % 3
        own, whole = combine(p, folds, events)
        assert np.array_equal(whole, p.mean(axis=0, dtype=np.float64).astype(np.float32))
        for fold in range(3):
            mean = p[folds == fold][:, events == fold].mean(axis=0, dtype=np.float64).astype(np.float32)
            assert np.array_equal(own[events == fold], mean)
        assert np.array_equal(routed(p, folds, events), own)

    def test_weights_come_from_the_epoch_that_was_kept(self) -> None:
        member = make_member(MODEL, 0)
        assert member.validation_loss == 0.6
        first = dataclasses.replace(member, best_epoch=1)
        assert first.validation_loss == 0.8
        other = dataclasses.replace(make_member(MODEL, 1), best_epoch=1)
        assert Ensemble((member, other)).shares == pytest.approx([1, math.exp(-0.2)])

    @settings(max_examples=25, deadline=None)
    @given(st.integers(1, 300), st.sampled_from(get_args(Combination)), st.integers(0, 2**31))
    def test_an_event_s_score_depends_on_that_event_alone(self, count: int, how: Combination, seed: int) -> None:
        p, random = drawn(6, count, seed), np.random.default_rng(seed)
        folds, shares = np.array([0, 0, 1, 1, 2, 2]), random.random(6)
        events, order = random.integers(0, 3, count), random.permutation(count)
        whole = combine(p, folds, events, how, shares)
        again = combine(np.ascontiguousarray(p[:, order]), folds, events[order], how, shares)
        assert all(np.array_equal(one[order], other) for one, other in zip(whole, again, strict=True))
        part = combine(np.ascontiguousarray(p[:, : count // 2]), folds, events[: count // 2], how, shares)
        assert all(np.array_equal(one[: count // 2], other) for one, other in zip(whole, part, strict=True))

    @pytest.mark.parametrize("how", ["logits", "median", "weighted"])
    def test_onnx_combines_alike(self, how: Combination, tmp_path: Path) -> None:
        """Folds of different numbers of networks; another way would be noticed."""
        members = with_losses(make_ensemble(ModelSettings(hidden=(5,)), members=3), how).members[:-1]
        ensemble, inputs = Ensemble(members, how), make_inputs(600)
        export_onnx(ensemble, tmp_path / "ensemble.onnx", {})
        assert check_onnx(tmp_path / "ensemble.onnx", ensemble, *inputs) < 1e-5
        other = Ensemble(members, "median" if how != "median" else "mean")
        assert check_onnx(tmp_path / "ensemble.onnx", other, *inputs) > 1e-3
        properties = {entry.key: entry.value for entry in onnx.load(tmp_path / "ensemble.onnx").metadata_props}
        assert properties["combination"] == how


class TestSnapshots:
    TRAINING = dataclasses.replace(TRAINING, epochs=7, schedule="warm_restarts", schedule_every=2, patience=None)

    def member(self, **change: object) -> TrainedMember:
        training = dataclasses.replace(self.TRAINING, **change)
        return train(make_events(400), make_plans(400, training=training)[:1])[0]

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"schedule_every": 2}, (2, 4, 6)),
            ({"schedule_every": 1, "schedule_stretch": 2}, (1, 3, 7)),
            ({"schedule_every": 2, "warm_up": 1.5}, (3, 5)),
            ({"schedule": "constant", "schedule_every": None}, (1, 2, 3, 4, 5, 6, 7)),
        ],
        ids=str,
    )
    def test_when_they_are_taken(self, change: dict[str, object], expected: tuple[int, ...]) -> None:
        assert dataclasses.replace(self.TRAINING, **change).snapshot_epochs == expected  # type: ignore[arg-type]

    def test_they_are_the_networks_of_their_epochs(self) -> None:
        """A training that ends there has the same parameters; without snapshots no bit differs."""
        with_them = self.member(snapshots=2)
        assert set(with_them.snapshots) == {4, 6} - {with_them.best_epoch}
        without = self.member()
        assert not differ(with_them, without)
        assert with_them.history == without.history
        shorter = self.member(epochs=4, snapshots=1, schedule_every=2)
        parameters, own = (x.snapshots.get(4, x.parameters) for x in (shorter, with_them))
        assert all(np.array_equal(value, own[name]) for name, value in parameters.items())

    def test_that_of_the_best_epoch_counts_once(self) -> None:
        found = self.member(schedule="constant", schedule_every=None, snapshots=7)
        assert set(found.snapshots) == set(range(1, 8)) - {found.best_epoch}
        assert [n.best_epoch for n in found.networks] == [found.best_epoch, *found.snapshots]
        assert [n.snapshot for n in found.networks] == [False] + [True] * 6
        losses = [n.validation_loss for n in found.networks]
        assert losses[0] == min(found.history.validation_loss)
        assert losses[1:] == [found.history.validation_loss[epoch - 1] for epoch in found.snapshots]

    def test_a_training_that_ends_early_has_its_last_ones(self) -> None:
        change = {"schedule": "constant", "schedule_every": None, "epochs": 40, "learning_rate": 0.05, "patience": 2}
        found = self.member(snapshots=3, **change)
        last = len(found.history.validation_loss)
        assert 3 < last < 40
        assert set(found.snapshots) == {last - 2, last - 1, last} - {found.best_epoch}

    def test_an_ensemble_holds_them_as_further_networks_of_their_fold(self, tmp_path: Path) -> None:
        members = train(
            make_events(400), make_plans(400, folds=3, training=dataclasses.replace(self.TRAINING, snapshots=3))
        )
        for member in members:
            save_member(tmp_path / f"{member.fold}", member)
            assert_equal(load_member(tmp_path / f"{member.fold}"), member)
        ensemble = Ensemble(tuple(load_member(tmp_path / f"{fold}") for fold in range(3)), "weighted")
        assert len(ensemble.members) == sum(1 + len(member.snapshots) for member in members) > 6
        assert len(Ensemble(ensemble.members).members) == len(ensemble.members)
        events = make_events(400)
        folds = np.arange(400) % 3
        p = predict(ensemble, events.values, events.present)
        assert np.abs(p[0] - p[1]).max() > 1e-3
        export_onnx(ensemble, tmp_path / "ensemble.onnx", {})
        assert check_onnx(tmp_path / "ensemble.onnx", ensemble, events.values, events.present, folds) < 1e-5

    @pytest.mark.parametrize(("schedule", "most", "what"), [("warm_restarts", 3, "periods"), ("cosine", 7, "epochs")])
    def test_more_than_there_can_be_are_refused(self, schedule: str, most: int, what: str) -> None:
        with pytest.raises(ValueError, match=rf"snapshots is 8; expected from 0 to {most}, the number of {what}"):
            TrainingSettings(epochs=7, schedule=schedule, schedule_every=2 if most == 3 else None, snapshots=8)  # type: ignore[arg-type]
