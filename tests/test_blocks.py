"""Losses, regularisers and stops: against formulas of their own, one by one and in random combinations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, rel_entr, softmax
from scipy.stats import kstest
from sklearn.metrics import log_loss
from torch import Tensor
from torch.nn import functional

from models import hashing
from models.checkpoint import Place
from models.events import TrainingEvents
from models.losses import Losses, probabilities, targets
from models.members import MemberPlan, TrainedMember
from models.networks import Classifier, Step
from models.regularisation import Regularisers
from models.settings import (
    Activation,
    Augmentation,
    Averaging,
    Balance,
    Connections,
    FeatureInput,
    Initialisation,
    InputKind,
    InputSettings,
    Loss,
    Missing,
    ModelSettings,
    NegativeWeights,
    NetworkType,
    Normalisation,
    NumberEmbedding,
    NumberInput,
    Optimiser,
    Resolution,
    Sampling,
    Schedule,
    TrainingSettings,
)
from models.stack import Stack
from models.training import _take_step, train
from tests.test_heads import told
from tests.test_training import SIGNATURE, assert_equal, differ, make_events, make_plans

Doubles = npt.NDArray[np.float64]


def reference(name: Loss, logits: Doubles, labels: Doubles, gamma: float, smoothing: float) -> Doubles:
    """The loss of each event, by the formulas of the documentation: ``[B]`` from logits ``[B, C]``."""
    classes = logits.shape[1]
    goals = np.full(logits.shape, smoothing / classes)
    goals[np.arange(len(labels)), labels.astype(int)] += 1 - smoothing
    if name == "binary_cross_entropy":
        p = expit(logits)
        return np.asarray(-(goals * np.log(p) + (1 - goals) * np.log(1 - p)).sum(axis=1))
    p = softmax(logits, axis=1)
    if name == "kullback_leibler":
        return np.asarray(rel_entr(goals, p).sum(axis=1))
    focus = (1 - p) ** gamma if name == "focal" else 1.0
    return np.asarray(-(goals * focus * np.log(p)).sum(axis=1))


def draw(seed: int, members: int = 3, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Logits ``[M, 2, B, C]``, labels and signed weights ``[M, B]``."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (members, 2, 32, classes))
    labels = random.integers(0, classes, (members, 32))
    return torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(random.normal(1, 1, (members, 32)))


def members_with(changes: Sequence[dict[str, Any]]) -> list[TrainingSettings]:
    return [TrainingSettings(**change) for change in changes]


class TestLosses:
    @pytest.mark.parametrize("name", get_args(Loss))
    @pytest.mark.parametrize("smoothed", [(0.0, 0.0, 0.0), (0.1, 0.0, 0.4)])
    @pytest.mark.parametrize("gammas", [(2.0, 2.0, 2.0), (0.0, 0.5, 3.0)])
    def test_against_formulas(self, name: Loss, smoothed: tuple[float, ...], gammas: tuple[float, ...]) -> None:
        """Values and gradients, of members with constants of their own."""
        if name != "focal":
            gammas = (2.0, 2.0, 2.0)
        logits, labels, weights = draw(1)
        logits.requires_grad_()
        changes = [
            {"loss": name, "label_smoothing": share} | ({"focal_gamma": gamma} if name == "focal" else {})
            for share, gamma in zip(smoothed, gammas, strict=True)
        ]
        losses = Losses(name, members_with(changes), "cpu")
        found, plain = losses(logits, labels, weights), losses.plain(logits, labels, weights)
        (slopes,) = torch.autograd.grad(found.sum(), logits)
        for member in range(3):

            def total(moved: Doubles, share: float, member: int = member) -> float:
                own = (labels[member].numpy(), gammas[member], share)
                each = [reference(name, part, *own) for part in moved]
                return float((weights[member].numpy() * np.array(each)).sum(axis=1).mean())

            at = logits[member].detach().numpy()
            assert found[member].item() == pytest.approx(total(at, smoothed[member]), rel=1e-9)
            assert plain[member].item() == pytest.approx(total(at, 0.0), rel=1e-9)
            for place in ((0, 3, 1), (1, 20, 0), (1, 31, 3)):
                up, down = at.copy(), at.copy()
                up[place] += 1e-5
                down[place] -= 1e-5
                slope = (total(up, smoothed[member]) - total(down, smoothed[member])) / 2e-5
                assert slopes[member][place].item() == pytest.approx(slope, rel=1e-4, abs=1e-6)

    def test_against_libraries(self) -> None:
        logits, labels, weights = draw(2, members=1)
        weights = weights.abs()
        ours = [Losses(name, [TrainingSettings(loss=name)], "cpu") for name in get_args(Loss)]
        one = logits[:, :1]
        p, truth = softmax(one[0, 0].numpy(), axis=1), labels[0].numpy()
        expected = log_loss(truth, p, sample_weight=weights[0].numpy(), normalize=False)
        assert ours[0](one, labels, weights).item() == pytest.approx(expected, rel=1e-9)
        each = [
            log_loss(truth == c, expit(one[0, 0, :, c].numpy()), sample_weight=weights[0].numpy(), normalize=False)
            for c in range(4)
        ]
        assert ours[1](one, labels, weights).item() == pytest.approx(sum(each), rel=1e-9)
        smooth = Losses("cross_entropy", [TrainingSettings(label_smoothing=0.2)], "cpu")
        torch_s = functional.cross_entropy(one[0, 0], labels[0], reduction="none", label_smoothing=0.2)
        assert smooth(one, labels, weights).item() == pytest.approx((torch_s * weights[0]).sum().item(), rel=1e-9)
        assert targets(labels, 4, None).sum().item() == labels.numel()

    def test_without_focus_it_is_the_cross_entropy_to_the_last_bit(self) -> None:
        logits, labels, weights = (x.float() if x.is_floating_point() else x for x in draw(3))
        plain = Losses("cross_entropy", members_with([{}] * 3), "cpu")
        focal = members_with([{"loss": "focal", "focal_gamma": gamma} for gamma in (0.0, 2.0, 0.0)])
        both = [loss(logits, labels, weights) for loss in (plain, Losses("focal", focal, "cpu"))]
        assert torch.equal(both[0] == both[1], torch.tensor([True, False, True]))

    @pytest.mark.parametrize("name", get_args(Loss))
    @pytest.mark.parametrize("gamma", [0.3, 2.0])
    def test_extreme_logits_have_finite_losses_and_slopes(self, name: Loss, gamma: float) -> None:
        """Events that are learned to the end, and events that are as wrong as can be."""
        logits = torch.tensor([[[[200.0, -200.0], [-200.0, 200.0], [0.0, 0.0], [1e4, 0.0]]]], requires_grad=True)
        own: dict[str, Any] = {"loss": name, "label_smoothing": 0.1} | (
            {"focal_gamma": gamma} if name == "focal" else {}
        )
        for settings_ in ([TrainingSettings(**own)], [TrainingSettings(**{**own, "label_smoothing": 0.0})]):
            loss = Losses(name, settings_, "cpu")(logits, torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4))
            (slopes,) = torch.autograd.grad(loss.sum(), logits)
            assert loss.isfinite().all()
            assert slopes.isfinite().all()

    def test_probabilities(self) -> None:
        logits = draw(4)[0]
        for name in ("cross_entropy", "focal"):
            assert probabilities(logits, name).numpy() == pytest.approx(softmax(logits.numpy(), axis=-1), rel=1e-9)
        sigmoids = expit(logits.numpy())
        expected = sigmoids / sigmoids.sum(axis=-1, keepdims=True)
        assert probabilities(logits, "binary_cross_entropy").numpy() == pytest.approx(expected, rel=1e-9)
        small = probabilities(torch.tensor([-300.0, -301.0]), "binary_cross_entropy")
        assert small.numpy() == pytest.approx(np.exp(log_softmax([0.0, -1.0])), rel=1e-5)

    def test_one_against_the_rest_learns_posteriors(self) -> None:
        """Sigmoids of a trained network sum to one on average, and are what cross-entropy learns."""
        events = make_events(4000)
        plans = make_plans(4000, model=ModelSettings(hidden=(16, 16), dropout=0.0))[:1]
        scores = []
        for loss in ("cross_entropy", "binary_cross_entropy"):
            training = TrainingSettings(epochs=15, batch_size=100, patience=None, loss=loss, negative_weights="signed")
            scores.append(predicted(train(events, [dataclasses.replace(plans[0], settings=training)])[0], events))
        assert np.corrcoef(scores)[0, 1] > 0.97
        assert np.abs(scores[0] - scores[1]).mean() < 0.05


def predicted(member: TrainedMember, events: TrainingEvents) -> Doubles:
    from models.ensemble import Ensemble, predict

    return predict(Ensemble((member,)), events.values, events.present)[0, :, 1].astype(np.float64)


def trained_alone(events: TrainingEvents, plan: MemberPlan, **change: Any) -> TrainedMember:
    return train(events, [dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, **change))])[0]


class TestNoise:
    def test_hashed_numbers_are_normal_and_follow_from_the_key(self) -> None:
        keys = torch.tensor([hashing.key(1), hashing.key(2), hashing.key(3)])
        drawn = hashing.normal(keys, 20_001)
        assert drawn.dtype == torch.float32
        assert drawn.abs().max() < 5.5
        for row in drawn:
            assert kstest(row.numpy(), "norm").pvalue > 1e-3
        assert np.abs(np.corrcoef(drawn.numpy()) - np.eye(3)).max() < 5 / math.sqrt(20_001)
        for row in range(3):
            assert torch.equal(hashing.normal(keys[row : row + 1], 20_001)[0], drawn[row])

    def test_inputs(self) -> None:
        """Only values that are there, by a strength for each member."""
        noise = Regularisers(members_with([{"input_noise": 0.5}, {}, {"input_noise": 0.1}]), "cpu")
        known = torch.rand(3, 4000, 4, generator=torch.Generator().manual_seed(1)) < 0.7
        inputs = torch.ones(3, 4000, 6, dtype=torch.float64)
        keys = torch.tensor([7, 7, 9])
        added = noise.noisy_inputs(inputs, known, keys) - inputs
        assert not added[..., 4:].any()
        assert not added[..., :4][~known].any()
        assert not added[1].any()
        for member, strength in ((0, 0.5), (2, 0.1)):
            assert kstest(added[member, :, :4][known[member]] / strength, "norm").pvalue > 1e-3
        again = noise.noisy_inputs(inputs, known, keys + torch.tensor([0, 0, 1])) - inputs
        assert torch.equal(again[0], added[0])
        assert not torch.equal(again[2], added[2])

    def test_labels(self) -> None:
        """A share is drawn from all classes, so that it stays what it was in one of C cases."""
        noise = Regularisers(members_with([{"label_noise": 0.3}, {}, {"label_noise": 0.9}]), "cpu")
        labels = (torch.arange(30_000) % 3).expand(3, -1)
        found = noise.noisy_labels(labels, 3, torch.tensor([1, 2, 3]))
        assert torch.equal(found[1], labels[1])
        for member, share in ((0, 0.3), (2, 0.9)):
            for label in range(3):
                counts = torch.bincount(found[member][labels[member] == label], minlength=3) / 10_000
                expected = torch.full((3,), share / 3)
                expected[label] += 1 - share
                assert (counts - expected).abs().max() < 5 * math.sqrt(0.25 / 10_000)

    def test_weights(self) -> None:
        """Matrices alone, and the parameters themselves stay."""
        noise = Regularisers(members_with([{"weight_noise": 0.2}, {}, {"weight_noise": 0.01}]), "cpu")
        rows = torch.zeros(3, 9000)
        found = noise.noisy_weights(rows, 5001, torch.tensor([1, 1, 3]))
        assert not rows.any()
        assert not found[:, 5001:].any()
        assert not found[1].any()
        for member, strength in ((0, 0.2), (2, 0.01)):
            assert kstest(found[member, :5001].numpy() / strength, "norm").pvalue > 1e-3

    @pytest.mark.parametrize("name", ["input_noise", "label_noise", "weight_noise"])
    def test_it_is_there_in_training_alone(self, name: str) -> None:
        """With a rate of almost nothing the validation loss is that without noise, and the training's differs."""
        events, plan = (
            make_events(),
            make_plans(training=TrainingSettings(epochs=1, learning_rate=1e-12, negative_weights="signed"))[0],
        )
        quiet, noisy = trained_alone(events, plan), trained_alone(events, plan, **{name: 0.3})
        assert noisy.history.validation_loss == pytest.approx(quiet.history.validation_loss, rel=1e-7)
        same = noisy.history.training_loss == pytest.approx(quiet.history.training_loss, rel=1e-7)
        assert same == (name == "label_noise")  # whose losses are told of the true labels


class TestPenalties:
    def test_slopes_are_those_of_the_penalties(self) -> None:
        strengths = [{"l1": 0.1}, {"l2": 0.3}, {"l1": 0.2, "l2": 0.4}]
        both = Regularisers(members_with(strengths), "cpu")
        weights = torch.randn(3, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        weights[:, 7] = 0
        weights.requires_grad_()
        penalties = [
            own.get("l1", 0) * row.abs().sum() + own.get("l2", 0) / 2 * row.square().sum()
            for own, row in zip(strengths, weights, strict=True)
        ]
        (expected,) = torch.autograd.grad(torch.stack(penalties).sum(), weights)
        found = torch.ones(3, 50, dtype=torch.float64)
        both.penalise(found, weights.detach())
        assert (found - 1 - expected).abs().max() < 1e-12

    @pytest.mark.parametrize("name", ["l1", "l2"])
    def test_they_shrink_matrices(self, name: str) -> None:
        training = TrainingSettings(
            epochs=10, batch_size=50, weight_decay=0.0, patience=None, negative_weights="signed"
        )
        events, plan = make_events(), make_plans(training=training)[0]
        free, bound = trained_alone(events, plan), trained_alone(events, plan, **{name: 0.3})
        sizes = [[np.abs(m.parameters[f"weight{i}"]).sum() for i in range(3)] for m in (free, bound)]
        assert all(after < 0.8 * before for before, after in zip(*sizes, strict=True))

    def test_a_step_of_each_is_what_torch_does(self) -> None:
        """The gradient of the whole loss, penalties included, before it is clipped."""
        events, plan = make_events(), make_plans(model=ModelSettings(hidden=(6,), dropout=0.0))[0]
        own = dataclasses.replace(plan.settings, l1=0.03, l2=0.2, clip_norm=None, label_smoothing=0.1)
        with torch.no_grad():
            stack = Stack(
                Classifier(plan.model, SIGNATURE), events, {0: dataclasses.replace(plan, settings=own)}, "cpu"
            )
            window = next(iter(stack.windows.training(0)))
            stack.begin(Place(0, 0, 0), window)
            rows = stack.batches[0]
            values, present, labels, weights = window.table.gather(rows)
            weights = (weights * stack.factors.gather(1, labels)).float()
            start = stack.parameters.clone()
            _take_step(stack, window.table)
        leaf = start.requires_grad_()
        logits = stack.classifier.logits(stack.classifier.views(leaf), stack.statistics, values, present)
        each = functional.cross_entropy(logits[0, 0], labels[0], reduction="none", label_smoothing=0.1)
        matrices = leaf[:, : stack.classifier.decaying]
        loss = (each * weights[0]).sum() / own.batch_size
        loss = loss + 0.03 * matrices.abs().sum() + 0.1 * matrices.square().sum()
        (slope,) = torch.autograd.grad(loss, leaf)
        assert stack.optimiser.state["first"].numpy() == pytest.approx(0.1 * slope.numpy(), rel=1e-4, abs=1e-7)

    def test_the_largest_norm_is_that_of_the_weights_into_a_unit(self) -> None:
        limits = Regularisers(members_with([{"max_norm": 0.5}, {}, {"max_norm": 2.0}]), "cpu")
        matrix, active = torch.randn(3, 10, 7, generator=torch.Generator().manual_seed(3)), torch.ones(3, 1)
        heads = torch.randn(3, 4, 10, 7, generator=torch.Generator().manual_seed(4))
        before = (matrix.clone(), heads.clone())
        limits.limit([matrix, heads], active)
        for found, start in zip((matrix, heads), before, strict=True):
            assert torch.equal(found[1], start[1])
            for member, largest in ((0, 0.5), (2, 2.0)):
                expected = torch.renorm(start[member].transpose(-2, -1).reshape(-1, 10), 2, 0, largest)
                assert (found[member].transpose(-2, -1).reshape(-1, 10) - expected).abs().max() < 1e-5
        again = matrix.clone()
        limits.limit([again], torch.zeros(3, 1))
        assert torch.equal(again, matrix)

    def test_the_largest_norm_holds_after_a_training(self) -> None:
        events, plan = (
            make_events(),
            make_plans(training=TrainingSettings(epochs=3, batch_size=50, negative_weights="signed"))[0],
        )
        bound = trained_alone(events, plan, max_norm=0.4)
        for layer in range(3):
            norms = np.linalg.norm(bound.parameters[f"weight{layer}"], axis=0)
            assert norms.max() == pytest.approx(0.4, rel=1e-5)


class TestStops:
    def member(self, **change: Any) -> TrainedMember:
        settings_ = {"epochs": 40, "batch_size": 50, "learning_rate": 0.02, "schedule": "constant", "patience": None}
        plan = make_plans(600, folds=3, model=ModelSettings(hidden=(17, 9), dropout=0.0))[0]
        return train(
            make_events(600),
            [dataclasses.replace(plan, settings=TrainingSettings(**settings_, **change, negative_weights="signed"))],
        )[0]

    def test_by_the_gap(self) -> None:
        """After the first epoch whose gap is too large; up to there nothing is changed."""
        free, stopped = self.member(), self.member(stop_gap=0.15)
        curves = free.history
        gaps = np.subtract(curves.validation_loss, curves.training_loss)
        last = int(np.argmax(gaps > 0.15))
        assert 0 < last < 39
        assert len(stopped.history.validation_loss) == last + 1
        assert stopped.history.validation_loss == curves.validation_loss[: last + 1]
        assert stopped.best_epoch == int(np.argmin(stopped.history.validation_loss)) + 1

    def test_by_the_generalisation_loss(self) -> None:
        """Prechelt's GL: 100 (E_va(t) / min E_va(t' <= t) - 1)."""
        free, stopped = self.member(), self.member(stop_generalisation=20.0)
        losses = np.array(free.history.validation_loss)
        excess = 100 * (losses / np.minimum.accumulate(losses) - 1)
        last = int(np.argmax(excess > 20))
        assert 0 < last < 39
        assert stopped.history.validation_loss == tuple(losses[: last + 1])

    def test_the_gap_compares_like_with_like(self) -> None:
        """Neither loss counts the smoothing or the noise of labels."""
        quiet = {"epochs": 1, "learning_rate": 1e-12}
        events, plan = make_events(), make_plans()[0]
        plain, smooth = (
            trained_alone(events, plan, **quiet, **own) for own in ({}, {"label_smoothing": 0.3, "label_noise": 0.4})
        )
        assert plain.history.training_loss == pytest.approx(smooth.history.training_loss, rel=1e-7)
        assert plain.history.validation_loss == pytest.approx(smooth.history.validation_loss, rel=1e-7)


class TestCombinations:
    """Whatever is put together trains, and no member can tell who is beside it."""

    events = make_events(300)
    beside = (events, told(300), told(300, targets=(), soft=True), told(300, soft=True))

    @settings(max_examples=100, deadline=None)
    @given(data=st.data())
    def test_a_step_of_random_blocks(self, data: st.DataObject) -> None:  # noqa: PLR0915 - one draw for each key
        def one(kind: Any) -> Any:
            return data.draw(st.sampled_from(get_args(kind)))

        def several(*values: Any) -> list[Any]:
            return [data.draw(st.sampled_from(values)) for _ in range(2)]

        loss: Loss = one(Loss)
        connections: Connections = one(Connections)
        kind: NetworkType = one(NetworkType)
        activation: Activation = one(Activation)
        normalisation: Normalisation = one(Normalisation)
        sampling: Sampling = one(Sampling)
        precision = data.draw(st.sampled_from(["fp32", "bf16"]))
        optimiser: Optimiser = one(Optimiser)
        averaging: Averaging = one(Averaging)
        default: NumberInput = one(NumberInput)
        embedding: NumberEmbedding = one(NumberEmbedding)
        kinds = {"pt1": one(InputKind), "eta2": FeatureInput("category", 3, "embedding")}
        inputs = InputSettings(default, data.draw(st.sampled_from([{}, kinds])))
        moves = Augmentation(
            rotation=True,
            reflection_z=True,
            angles=("met",),
            longitudinal=("eta2",),
            smearing={"pt1": Resolution(relative=0.1)},
        )
        augmentation = data.draw(st.sampled_from([None, moves]))
        missing: Missing = one(Missing)
        if missing in ("deep_sets", "attention"):
            inputs, embedding = InputSettings("z_score" if default == "z_score" else "standardise"), "none"
        indicator = data.draw(st.booleans())
        small = {"object_width": 4, "like_objects": (("event", "l2"),)}
        sizes: dict[str, dict[str, Any]] = {
            "learned": {},
            "default": {
                "missing_value": data.draw(
                    st.sampled_from(["median", -7.0] if inputs.features else ["mean", "median", -7.0])
                )
            },
            "separate": {"pattern_events": 20, "pattern_class_events": 5},
            "deep_sets": small,
            "attention": {**small, "attention_heads": 2},
        }
        schedules: list[Schedule] = several(*get_args(Schedule))
        starts: list[Initialisation] = several(*get_args(Initialisation))
        names = ("label_smoothing", "label_noise", "input_noise", "weight_noise", "l1", "l2")
        strengths = {name: several(0.0, 0.05) for name in names}
        events = self.events if missing == "separate" else data.draw(st.sampled_from(self.beside))
        if events.soft_labels:
            strengths["label_noise"] = [0.0, 0.0]
        penalties = several(0.0, 0.5, 2.0) if events.extra_names else [0.0, 0.0]
        shares = several(1.0, 0.5)
        recorded = data.draw(st.booleans())
        snapshots = 0 if missing == "separate" else data.draw(st.sampled_from([0, 1]))
        pruned = several("none") if missing == "separate" else several("none", "magnitude", "structured")
        bounded = data.draw(st.sampled_from([None, 5.0]))
        weights: dict[str, Any] = data.draw(
            st.sampled_from(
                [
                    {"negative_weights": "signed"},
                    {"negative_weights": "absolute"},
                    {"negative_weights": "reweighted"},
                    {"flatten": ("met",), "flatten_bins": 2},
                ]
            )
        )
        if sampling == "balanced":
            weights = {**weights, "shares": data.draw(st.sampled_from([None, {"signal": 0.3, "background": 0.7}]))}
        elif sampling == "plain":
            weights = {**weights, "down_sampling": data.draw(st.sampled_from([None, {"background": 0.5}]))}
        balances: list[Balance] = several("classes", "none")
        signs: list[NegativeWeights] = several("signed", "ignore")
        if "flatten" in weights:
            weights = {**weights, "negative_weights": signs[0]}
        drops, norms, clips, gammas = several(0.0, 0.3), several(None, 0.7), several(None, 1.0), several(2.0, 0.5)
        widths = (5, 5) if connections == "residual" else (6, 3)
        if inputs.features or embedding != "none":
            # Some processors' products of narrow layers depend on the stack, unless the inputs are few and even.
            widths = (16, 16)
        plans = []
        for number, plan in enumerate(make_plans(300)[:2]):
            model = ModelSettings(
                type=kind,
                hidden=widths,
                activation=activation,
                initialisation=starts[number],
                connections=connections,
                normalisation=normalisation,
                dropout=drops[number],
                submodels=2,
                inputs=inputs,
                embedding=embedding,
                logit_bound=bounded,
                missing=missing,
                indicator=indicator,
                **sizes[missing],
            )
            training = TrainingSettings(
                augmentation=augmentation,
                epochs=1,
                batch_size=200,  # one step
                loss=loss,
                focal_gamma=gammas[number] if loss == "focal" else None,
                sampling=sampling,
                precision=precision,
                optimiser=optimiser,
                averaging=averaging,
                schedule=schedules[number],
                schedule_milestones=(1,) if schedules[number] == "multi_step" else None,
                max_norm=norms[number],
                decorrelation={"spectator": penalties[number]},
                loss_weight=shares[number],
                clip_norm=clips[number],
                snapshots=snapshots if "warm_restarts" not in schedules and set(pruned) == {"none"} else 0,
                diagnostics=recorded,
                pruning=pruned[number],
                pruning_share=None if pruned[number] == "none" else 0.3,
                fine_tuning=None if pruned[number] == "none" else 1,
                balance=balances[number],
                **weights,
                **{name: values[number] for name, values in strengths.items()},
            )
            plans.append(dataclasses.replace(plan, model=model, settings=training))
        both = train(events, plans)
        for plan, member in zip(plans, both, strict=True):
            alone = train(events, [plan])[0]
            for network, other in zip(member.parts, alone.parts, strict=True):
                assert all(np.isfinite(value).all() for value in network.parameters.values())
                assert_equal(other, network)

    @pytest.mark.parametrize(
        "change",
        [
            {"loss": "focal"},
            {"loss": "binary_cross_entropy"},
            {"label_smoothing": 0.1},
            {"label_noise": 0.3},
            {"input_noise": 0.1},
            {"weight_noise": 0.1},
            {"l1": 0.01},
            {"l2": 0.01},
            {"max_norm": 0.5},
        ],
        ids=str,
    )
    def test_each_changes_what_is_learned(self, change: dict[str, Any]) -> None:
        plan = make_plans(300, training=TrainingSettings(epochs=2, batch_size=50, negative_weights="signed"))[0]
        assert differ(trained_alone(self.events, plan), trained_alone(self.events, plan, **change))


def test_a_step_without_regularisers_adds_none() -> None:
    """Evaluation and steps of the kind that have none see the inputs as they are."""
    model = ModelSettings(hidden=(6,))
    classifier = Classifier(model, SIGNATURE)
    rows = classifier.initial([1])
    ones = torch.ones(1, 1, 4)
    statistics = {"standardise.shift": 0 * ones, "standardise.scale": ones, "seen": ones}
    values, present = torch.ones(1, 64, 4), torch.ones(1, 64, 4, dtype=torch.bool)

    def logits(step: Step | None) -> Tensor:
        return classifier.logits(classifier.views(rows), statistics, values, present, step)

    key, real = torch.tensor([3]), torch.ones(1, 64, dtype=torch.bool)
    noise = Regularisers([TrainingSettings(input_noise=0.5)], "cpu")
    assert torch.equal(logits(None), logits(Step(key, None, real)))
    assert not torch.equal(logits(None), logits(Step(key, None, real, regularisers=noise)))
