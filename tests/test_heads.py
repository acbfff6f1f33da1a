"""What networks learn beside hard labels: regression targets, soft labels, scores without a spectator."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import rel_entr, softmax
from sklearn.metrics import mean_absolute_error, mean_pinball_loss, mean_squared_error
from torch import Tensor

from analysis.decorrelation import distance_correlation
from models.decorrelation import CHUNK, Decorrelation, squared_distance_correlation
from models.ensemble import Ensemble, load_member, predict, save_member
from models.events import TrainingEvents
from models.export import check_onnx, difference, export_onnx
from models.losses import Losses
from models.members import MemberPlan, TrainedMember
from models.preprocessing import Signature, Target
from models.regression import regression_losses
from models.settings import ModelSettings, RegressionLoss, TargetSettings, TrainingSettings
from models.training import train
from tests.test_training import (
    MODEL,
    SIGNATURE,
    TABM,
    TRAINING,
    Memory,
    assert_equal,
    assert_recordable,
    differ,
    make_events,
    make_plans,
)


def losses_of(target: Target, found: Tensor, goals: Tensor) -> Tensor:
    levels = torch.tensor(target.settings.levels, dtype=torch.float64)
    return regression_losses(target.settings.loss, found, goals, levels)


TARGETS = (
    Target("mass", TargetSettings("true_mass", "quantile", (0.1, 0.5, 0.8))),
    Target("energy", TargetSettings("true_energy", "log_cosh", weight=0.5)),
)
SOFT = ("teacher", None)
QUIET = ModelSettings(hidden=(16,), dropout=0.0)


def told(count: int = 1500, *, targets: tuple[Target, ...] = TARGETS, soft: bool = False) -> TrainingEvents:
    """Toy events with a mass that half of them have, an energy, probabilities, and a spectator that the score knows."""
    events, random = make_events(count), np.random.default_rng(8)
    mass = 125 + 10 * events.values[:, 0] + random.normal(0, 5, count)
    mass[random.random(count) < 0.5] = np.nan
    energy = 1e3 * np.exp(0.3 * events.values[:, 1])
    teacher = 1 / (1 + np.exp(events.values[:, 0] - 0.5))
    teacher[random.random(count) < 0.2] = np.nan
    spectator = events.values[:, 0] + random.normal(0, 0.5, count)
    spectator[random.random(count) < 0.1] = np.nan
    extra = np.stack([mass, energy, teacher, spectator], axis=1).astype(np.float32)
    return dataclasses.replace(
        events,
        signature=dataclasses.replace(SIGNATURE, targets=targets),
        extra=extra,
        extra_names=("true_mass", "true_energy", "teacher", "spectator"),
        soft_labels=SOFT if soft else (),
        signal=0,
    )


EVERYTHING = dataclasses.replace(
    TRAINING, epochs=2, decorrelation={"spectator": 0.5}, loss="kullback_leibler", loss_weight=2.0
)


def numpy_loss(loss: RegressionLoss, apart: npt.NDArray[np.float64], levels: tuple[float, ...]) -> Any:
    """By the formulas, of found - goal ``[B, Q]``."""
    if loss == "quantile":
        return np.mean([np.where(-d > 0, q * -d, (q - 1) * -d) for q, d in zip(levels, apart.T, strict=True)], axis=0)
    return {"mean_squared": apart**2, "mean_absolute": np.abs(apart), "log_cosh": np.log(np.cosh(apart))}[loss][:, 0]


class TestRegressionLosses:
    @pytest.mark.parametrize("loss", get_args(RegressionLoss))
    def test_against_formulas(self, loss: RegressionLoss) -> None:
        target = Target("x", TargetSettings("f", loss))
        random = np.random.default_rng(1)
        found, goals = random.normal(0, 2, (2, 3, 50, target.size)), random.normal(0, 2, (2, 1, 50, 1))
        ours = losses_of(target, torch.from_numpy(found), torch.from_numpy(goals)).numpy()
        for member in range(2):
            for submodel in range(3):
                expected = numpy_loss(loss, found[member, submodel] - goals[member, 0], target.settings.levels)
                assert ours[member, submodel] == pytest.approx(expected, rel=1e-9, abs=1e-12)

    def test_against_scikit_learn(self) -> None:
        random = np.random.default_rng(2)
        found, goals, weights = random.normal(size=100), random.normal(size=100), random.uniform(0, 2, 100)

        def ours(**settings: Any) -> float:
            target = Target("x", TargetSettings("f", **settings))
            shaped = torch.from_numpy(found)[None, None, :, None], torch.from_numpy(goals)[None, None, :, None]
            return float(np.average(losses_of(target, *shaped)[0, 0].numpy(), weights=weights))

        own = {"sample_weight": weights}
        assert ours(loss="mean_squared") == pytest.approx(mean_squared_error(goals, found, **own))
        assert ours(loss="mean_absolute") == pytest.approx(mean_absolute_error(goals, found, **own))
        expected = mean_pinball_loss(goals, found, alpha=0.3, **own)
        assert ours(loss="quantile", quantiles=(0.3,)) == pytest.approx(expected)

    @pytest.mark.parametrize("level", [0.16, 0.5, 0.9])
    def test_the_pinball_loss_is_least_at_the_quantile(self, level: float) -> None:
        target = Target("x", TargetSettings("f", "quantile", (level,)))
        goals = torch.from_numpy(np.random.default_rng(3).exponential(1, 4001))[None, None, :, None]

        def loss(at: float) -> float:
            return float(losses_of(target, torch.full_like(goals, at), goals).mean())

        assert minimize_scalar(loss, bounds=(0, 5), method="bounded").x == pytest.approx(
            float(np.quantile(goals.numpy(), level)), abs=0.01
        )

    def test_extreme_differences_are_finite(self) -> None:
        found = torch.tensor([[[[1e4], [-1e4], [0.0]]]], requires_grad=True)
        for loss in ("mean_absolute", "log_cosh"):
            losses = losses_of(Target("x", TargetSettings("f", loss)), found, torch.zeros(1, 1, 3, 1))
            (slopes,) = torch.autograd.grad(losses.sum(), found)
            assert losses.isfinite().all()
            assert slopes.isfinite().all()

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"loss": "huber"}, "loss is 'huber'; expected one of mean_squared"),
            ({"quantiles": (0.5,)}, "quantiles is .* expected none, as loss is 'mean_squared'"),
            ({"loss": "quantile", "quantiles": (0.5, 0.2)}, "expected growing numbers between 0 and 1"),
            ({"loss": "quantile", "quantiles": ()}, "expected growing numbers between 0 and 1"),
            ({"weight": 0.0}, "weight is 0.0; expected a number above 0"),
        ],
    )
    def test_settings_that_make_no_sense_are_refused(self, change: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            TargetSettings("f", **change)


def reach(member: TrainedMember, events: TrainingEvents) -> npt.NDArray[np.float32]:
    return predict(Ensemble((member,)), events.values, events.present)[0]


class TestRegression:
    @pytest.mark.parametrize("model", [QUIET, dataclasses.replace(TABM, dropout=0.0)])
    def test_targets_are_learned_in_their_units(self, model: ModelSettings) -> None:
        """Out of sample: close to the truth, with the shares of events below each quantile that it is called by."""
        events, training = told(3000), dataclasses.replace(TRAINING, epochs=12, learning_rate=1e-2)
        plan = make_plans(3000, model=model, training=training)[0]
        found, test = reach(train(events, [plan])[0], events), ~(plan.training | plan.validation)
        assert found.shape == (3000, 2 + 4)
        assert found[:, :2].sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert events.extra is not None
        mass, energy = events.extra[:, 0], events.extra[:, 1]
        has = test & np.isfinite(mass)
        for column, level in zip(found[has, 2:5].T, (0.1, 0.5, 0.8), strict=True):
            assert np.mean(mass[has] < column) == pytest.approx(level, abs=0.12)
        assert np.std(found[has, 3] - mass[has]) < 0.65 * np.std(mass[has])
        assert (np.diff(found[:, 2:5], axis=1) >= 0).all()
        assert np.corrcoef(found[test, 5], energy[test])[0, 1] > 0.95
        assert np.mean(found[test, 5] / energy[test]) == pytest.approx(1, abs=0.05)

    def test_the_unit_changes_nothing_else(self) -> None:
        """A target in MeV in place of GeV gives the same network, but for its mean and scale."""
        events = told()
        assert events.extra is not None
        plan = make_plans(training=dataclasses.replace(TRAINING, epochs=2))[0]
        moved = dataclasses.replace(events, extra=events.extra * np.float32([1024, 1, 1, 1]))
        one, other = (reach(train(each, [plan])[0], events) for each in (events, moved))
        assert other[:, 2:5] == pytest.approx(1024 * one[:, 2:5], rel=1e-4)
        assert other[:, 5] == pytest.approx(one[:, 5], rel=1e-4)

    def test_without_weight_on_the_classes_they_are_not_learned(self) -> None:
        events, plan = told(), make_plans(model=QUIET)[0]
        alone = dataclasses.replace(plan, settings=dataclasses.replace(TRAINING, loss_weight=0.0))
        both, regression = train(events, [plan])[0], train(events, [alone])[0]
        assert not regression.parameters["bias1"][0, :2].any()  # where they started
        assert regression.parameters["bias1"][0, 2:].all()
        assert both.parameters["bias1"].all()

    def test_the_loss_is_the_weighted_mean_over_events_that_have_the_target(self) -> None:
        """The validation loss of a network that has hardly moved, against numpy."""
        targets = (Target("mass", TargetSettings("true_mass", "quantile", (0.8,))), TARGETS[1])
        events = told(targets=targets)
        still = dataclasses.replace(TRAINING, epochs=1, learning_rate=1e-12, weight_decay=0.0, loss_weight=0.0)
        plan = make_plans(training=still)[0]
        member = train(events, [plan])[0]
        assert events.extra is not None
        found, use = reach(member, events), plan.validation & (events.weights != 0)
        mean, scale = (member.parameters[f"target_{name}"][0] for name in ("mean", "scale"))
        sums = np.bincount(events.labels[use], weights=events.weights[use])
        expected = 0.0
        for target, place, column in zip(targets, (slice(0, 1), slice(1, 2)), events.extra[:, :2].T, strict=True):
            rows = use & np.isfinite(column)
            weights = (events.weights / sums[events.labels])[rows]
            apart = (found[rows, 2:][:, place] - column[rows, np.newaxis]) / scale[place]
            each = numpy_loss(target.settings.loss, apart.astype(np.float64), target.settings.levels)
            expected += target.settings.weight * np.average(each, weights=weights)
        assert member.history.validation_loss[0] == pytest.approx(expected, rel=1e-4)
        rows = plan.training & (events.weights != 0) & np.isfinite(events.extra[:, 1])
        sums = np.bincount(events.labels[rows], weights=np.abs(events.weights[rows]))
        own = np.abs(events.weights / sums[events.labels])[rows]
        assert mean[1] == pytest.approx(np.average(events.extra[rows, 1], weights=own), rel=1e-6)

    def test_a_target_that_no_event_has_is_refused(self) -> None:
        events, plan = told(), make_plans()[0]
        assert events.extra is not None
        extra = events.extra.copy()
        extra[plan.validation, 0] = np.nan
        with pytest.raises(ValueError, match=r"validation events: the weights of the 0 events that have .* 'mass'"):
            train(dataclasses.replace(events, extra=extra), [plan])
        with pytest.raises(ValueError, match="There is no extra column true_energy; there are: none"):
            train(dataclasses.replace(events, extra=None, extra_names=()), [plan])

    def test_files_and_onnx_hold_targets(self, tmp_path: Any) -> None:
        events, plans = told(), make_plans(members=2, training=dataclasses.replace(TRAINING, epochs=1))[:4]
        members = train(events, plans)
        for number, member in enumerate(members):
            save_member(tmp_path / f"{number}", member)
            found = load_member(tmp_path / f"{number}")
            assert found.signature == member.signature
            assert_equal(found, member)
        ensemble = Ensemble(tuple(members))
        export_onnx(ensemble, tmp_path / "ensemble.onnx", {})
        folds = np.arange(1500) % 2
        assert check_onnx(tmp_path / "ensemble.onnx", ensemble, events.values, events.present, folds) < 1e-5
        import onnx

        model = onnx.load(tmp_path / "ensemble.onnx")
        kinds = ("routed", "ensemble", "spread")
        names = [f"{name}{kind}" for name in ("", "mass_", "energy_") for kind in kinds]
        assert [output.name for output in model.graph.output] == names
        described = {entry.key: entry.value for entry in model.metadata_props}
        assert described["targets"] == '{"mass": ["mass_q10", "mass_q50", "mass_q80"], "energy": ["energy"]}'

    def test_differences_are_taken_relative_to_the_size_of_a_column(self) -> None:
        ours = np.array([[0.5, 1000.0], [0.2, -2000.0]], dtype=np.float32)
        assert difference(ours + np.float32([0.01, 0]), ours) == pytest.approx(0.01, rel=1e-4)
        assert difference(ours + np.float32([0, 1]), ours) == pytest.approx(1 / 2000, rel=1e-4)
        assert difference(ours * np.float32(np.nan), ours) == np.inf


class TestSoftLabels:
    def test_kullback_leibler_against_scipy(self) -> None:
        random = np.random.default_rng(4)
        logits, soft = random.normal(0, 2, (1, 1, 40, 3)), random.dirichlet([0.5, 1, 1], (1, 1, 40))
        weights = random.uniform(0, 2, (1, 40))
        loss = Losses("kullback_leibler", [TrainingSettings(loss="kullback_leibler")], "cpu")
        given = [torch.from_numpy(x) for x in (logits, np.zeros((1, 40), dtype=np.int64), weights, soft)]
        expected = (weights[0] * rel_entr(soft[0, 0], softmax(logits[0, 0], axis=1)).sum(axis=1)).sum()
        assert loss(*given).item() == pytest.approx(expected, rel=1e-9)
        cross = Losses("cross_entropy", [TrainingSettings()], "cpu")(*given).item()
        entropy = -(weights[0] * (soft[0, 0] * np.log(soft[0, 0])).sum(axis=1)).sum()
        assert loss(*given).item() == pytest.approx(cross - entropy, rel=1e-9)

    def test_of_hard_labels_it_is_the_cross_entropy(self) -> None:
        """Of a whole training, to the last bit; as soft labels that are 0 and 1, up to rounding."""
        events = told(targets=())
        plans = make_plans()[:1]
        other = [dataclasses.replace(plans[0], settings=dataclasses.replace(TRAINING, loss="kullback_leibler"))]
        hard = train(events, plans)[0]
        assert_equal(hard, train(events, other)[0])
        assert events.extra is not None
        extra = events.extra.copy()
        extra[:, 2] = events.labels == 0
        same = train(dataclasses.replace(events, extra=extra, soft_labels=SOFT), other)[0]
        assert same.history.validation_loss == pytest.approx(hard.history.validation_loss, rel=1e-4)

    def test_networks_learn_the_probabilities_of_another(self) -> None:
        """Also where classes are told by hard labels that say something else."""
        events = dataclasses.replace(told(3000, targets=(), soft=True), weights=np.ones(3000))
        assert events.extra is not None
        events.extra[:, 2] = 1 / (1 + np.exp(2 * events.values[:, 3]))
        training = TrainingSettings(
            epochs=8, batch_size=100, learning_rate=1e-2, loss="kullback_leibler", negative_weights="signed"
        )
        plan = make_plans(3000, model=QUIET, training=training)[0]
        events.present[:] = True
        found, test = reach(train(events, [plan])[0], events)[:, 0], ~(plan.training | plan.validation)
        assert np.abs(found - events.extra[:, 2])[test].mean() < 0.04

    def test_noise_of_labels_is_refused(self) -> None:
        plan = make_plans(training=dataclasses.replace(TRAINING, label_noise=0.1))[0]
        with pytest.raises(ValueError, match="label_noise draws hard labels anew"):
            train(told(targets=(), soft=True), [plan])
        with pytest.raises(ValueError, match="expected a column for each of 2 classes but one at most"):
            train(dataclasses.replace(told(targets=()), soft_labels=(None, None)), make_plans()[:1])


class TestDecorrelation:
    @pytest.mark.parametrize("members", [1, 3])
    def test_distance_correlation_against_numpy(self, members: int) -> None:
        random = np.random.default_rng(5)
        x, weights = random.normal(size=(members, 64)), random.uniform(0, 2, (members, 64))
        weights[:, 50:] = 0
        y = x**2 + random.normal(0, 0.3, x.shape) + 1e3
        found = squared_distance_correlation(*(torch.from_numpy(column) for column in (x, y, weights)))
        for member in range(members):
            expected = distance_correlation(x[member], y[member], weights[member])
            assert np.sqrt(found[member].item()) == pytest.approx(expected, rel=1e-9)
            few = distance_correlation(x[member, :50], y[member, :50], weights[member, :50])
            assert np.sqrt(found[member].item()) == pytest.approx(few, rel=1e-9)

    def test_whole_weights_are_events_that_come_again(self) -> None:
        """Against the definition without weights: dCov² = mean(A B) of doubly centred distances."""
        random = np.random.default_rng(6)
        x, y, counts = random.normal(size=30), random.normal(size=30), random.integers(0, 4, 30)

        def centred(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            far = np.abs(np.subtract.outer(values, values))
            return np.asarray(far - far.mean(axis=0) - far.mean(axis=1)[:, np.newaxis] + far.mean())

        a, b = (centred(np.repeat(values, counts)) for values in (x, y))
        expected = (a * b).mean() / np.sqrt((a * a).mean() * (b * b).mean())
        found = squared_distance_correlation(*(torch.from_numpy(v) for v in (x, y, counts.astype(np.float64))))
        assert found.item() == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("change", ["same", "no weights", "one event", "no spread"])
    def test_where_it_is_not_defined_it_and_its_slope_are_finite(self, change: str) -> None:
        scores = torch.full((1, 64), 0.5) if change == "same" else torch.rand(1, 64)
        spectator = torch.zeros(1, 64) if change == "no spread" else torch.rand(1, 64)
        weights = torch.zeros(1, 64) if change in ("no weights", "one event") else torch.ones(1, 64)
        if change == "one event":
            weights[0, 3] = 1
        scores.requires_grad_()
        found = squared_distance_correlation(scores, spectator, weights)
        (slopes,) = torch.autograd.grad(found.sum(), scores)
        assert found.item() == pytest.approx(0, abs=1e-6)
        assert slopes.isfinite().all()

    def test_only_background_events_that_have_the_spectator_enter(self) -> None:
        random = np.random.default_rng(7)
        penalty = Decorrelation([1], [[0.7], [2.0]], signal=0, device="cpu")
        scores, extra = random.random((2, CHUNK)), random.random((2, CHUNK, 2))
        extra[:, ::5, 1] = np.nan
        labels, weights = random.integers(0, 3, (2, CHUNK)), random.normal(0, 1, (2, CHUNK))
        weights[:, 200:] = 0
        given = [torch.from_numpy(x) for x in (scores, extra, labels, weights)]
        found = penalty(*given, CHUNK)
        for member, strength in enumerate((0.7, 2.0)):
            rows = (labels[member] != 0) & np.isfinite(extra[member, :, 1])
            own = distance_correlation(scores[member, rows], extra[member, rows, 1], np.abs(weights[member, rows]))
            assert found[member].item() == pytest.approx(200 * strength * own**2, rel=1e-6)

    def test_the_correlation_falls(self) -> None:
        """Out of sample, at a price in the separation of the classes."""
        events, training = (
            told(2000, targets=()),
            dataclasses.replace(TRAINING, epochs=6, batch_size=200, learning_rate=1e-2),
        )
        plan = make_plans(2000, model=QUIET, training=training)[0]
        left = []
        assert events.extra is not None
        rows = ~(plan.training | plan.validation) & (events.labels == 1) & np.isfinite(events.extra[:, 3])
        for strength in (0.0, 5.0):
            own = dataclasses.replace(training, decorrelation={"spectator": strength})
            score = reach(train(events, [dataclasses.replace(plan, settings=own)])[0], events)[rows, 0]
            spectator = events.extra[rows, 3].astype(np.float64)
            left.append(distance_correlation(score.astype(np.float64), spectator, np.abs(events.weights[rows])))
        assert left[0] > 0.6
        assert left[1] < 0.5 * left[0]

    def test_a_strength_of_zero_changes_no_bit(self) -> None:
        events, plan = told(targets=()), make_plans()[0]
        own = dataclasses.replace(plan, settings=dataclasses.replace(TRAINING, decorrelation={"spectator": 0.0}))
        assert_equal(train(events, [plan])[0], train(events, [own])[0])

    def test_what_makes_no_sense_is_refused(self) -> None:
        with pytest.raises(ValueError, match="batch_size is 'all'; expected a number, with decorrelation"):
            TrainingSettings(batch_size="all", decorrelation={"mass": 1.0})
        with pytest.raises(ValueError, match=r"decorrelation.mass is -1.0; expected a number of at least 0"):
            TrainingSettings(decorrelation={"mass": -1.0})
        plan = make_plans(training=dataclasses.replace(TRAINING, decorrelation={"spectator": 1.0}))[0]
        with pytest.raises(ValueError, match="The signal is class None; expected one of 2"):
            train(dataclasses.replace(told(), signal=None), [plan])


COMBINED = [
    (MODEL, EVERYTHING),
    (dataclasses.replace(MODEL, normalisation="batch"), dataclasses.replace(EVERYTHING, precision="bf16")),
    (TABM, dataclasses.replace(EVERYTHING, sampling="balanced", window=1000)),
    (MODEL, dataclasses.replace(EVERYTHING, sampling="weighted", averaging="ema", loss="binary_cross_entropy")),
    (MODEL, dataclasses.replace(EVERYTHING, averaging="swa", averaging_start=0.5, label_smoothing=0.1)),
    (
        dataclasses.replace(MODEL, logit_bound=5.0),
        dataclasses.replace(
            EVERYTHING,
            negative_weights="absolute",
            flatten=("spectator",),
            flatten_bins=3,
            down_sampling={"background": 0.6},
        ),
    ),
]


class TestStack:
    """Members share nothing, and nothing but their own events counts."""

    @pytest.mark.parametrize(("model", "training"), COMBINED)
    def test_alone_and_stacked_are_the_same_to_the_last_bit(
        self, model: ModelSettings, training: TrainingSettings
    ) -> None:
        events, plans = told(soft=True), make_plans(model=model, training=training)[2:]
        plans[1] = dataclasses.replace(
            plans[1], settings=dataclasses.replace(training, decorrelation={"spectator": 3.0}, loss_weight=0.5)
        )
        stacked = train(events, plans)
        for position in (1, 2):
            assert_equal(train(events, [plans[position]])[0], stacked[position])
        for member in stacked:  # averages leave mean and scale alone
            assert np.array_equal(
                member.parameters["target_scale"][0, :3], member.parameters["target_scale"][0, [0] * 3]
            )
            assert member.parameters["target_mean"][0, 0] == pytest.approx(130, abs=8)

    @pytest.mark.parametrize(("model", "training"), COMBINED)
    def test_events_outside_a_member_s_rows_have_no_influence(
        self, model: ModelSettings, training: TrainingSettings
    ) -> None:
        events, plan = told(soft=True), make_plans(model=model, training=training)[1]
        outside = np.flatnonzero(~(plan.training | plan.validation))
        assert events.extra is not None
        columns = {name: getattr(events, name).copy() for name in ("values", "present", "labels", "weights", "extra")}
        columns["values"][outside], columns["present"][outside] = np.nan, True
        columns["labels"][outside] = 1 - columns["labels"][outside]
        columns["weights"][outside] = np.inf
        for part, garbage in enumerate((np.inf, -1e30, np.nan)):
            columns["extra"][outside[part::3]] = garbage
        assert_equal(train(events, [plan])[0], train(dataclasses.replace(events, **columns), [plan])[0])

    @pytest.mark.parametrize("column", range(4))
    def test_each_column_has_influence(self, column: int) -> None:
        events, plan = told(soft=True), make_plans(training=EVERYTHING)[0]
        assert events.extra is not None
        extra = events.extra.copy()
        extra[:, column] = extra[::-1, column]
        assert differ(train(events, [plan])[0], train(dataclasses.replace(events, extra=extra), [plan])[0])

    def test_a_training_that_was_killed_goes_on_to_the_last_bit(self) -> None:
        events, plans = told(soft=True), make_plans(training=dataclasses.replace(EVERYTHING, epochs=4))[:2]
        expected, kept = train(events, plans), Memory(7)

        class KilledError(Exception):
            pass

        def progress(line: str) -> None:
            if line.startswith("epoch 2/"):
                raise KilledError

        with pytest.raises(KilledError):
            train(events, plans, checkpoints=kept, progress=progress)
        assert kept.files
        for one, other in zip(train(events, plans, checkpoints=kept), expected, strict=True):
            assert_equal(one, other)

    @pytest.mark.parametrize(("model", "training"), COMBINED)
    def test_a_step_can_be_recorded(self, model: ModelSettings, training: TrainingSettings) -> None:
        assert_recordable(model, training, told(soft=True))

    def test_extra_columns_that_nobody_asks_for_change_no_bit(self) -> None:
        plan: MemberPlan = make_plans()[0]
        assert_equal(train(make_events(), [plan])[0], train(told(targets=()), [plan])[0])

    def test_names_of_outputs(self) -> None:
        signature = dataclasses.replace(SIGNATURE, targets=TARGETS)
        assert signature.predicted == ("mass_q10", "mass_q50", "mass_q80", "energy")
        assert TargetSettings("f", "quantile", (0.025, 0.5)).outputs("m") == ("m_q2p5", "m_q50")
        with pytest.raises(ValueError, match="expected different names"):
            Signature(("a",), ("a",), ("s", "b"), (TARGETS[1], TARGETS[1]))
