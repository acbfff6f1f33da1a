"""What is made of features before the first layer: transforms, absent values and embeddings, against references."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri
from sklearn.preprocessing import MinMaxScaler, QuantileTransformer, StandardScaler
from torch import Tensor

from models.embeddings import nearest_categories, piecewise_linear
from models.ensemble import Ensemble, load_member, predict, save_member
from models.events import TrainingEvents
from models.export import check_onnx, export_onnx
from models.fitting import fit_transforms
from models.networks import Classifier
from models.preprocessing import Signature, filled, presence
from models.quantiles import normal_quantile, weighted_quantiles
from models.settings import FeatureInput, InputSettings, ModelSettings, NumberInput, TrainingSettings
from models.training import train
from models.transforms import QUANTILES, Layout, Transform, stack_transforms
from tests.test_training import (
    SIGNATURE,
    assert_equal,
    assert_recordable,
    differ,
    garbage_outside,
    make_events,
    make_plans,
)

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

MIXED = InputSettings(
    "robust",
    {"met": "log", "pt1": "angle", "pt2": "quantile_normal", "eta2": FeatureInput("category", (-1.0, 0.0, 1.0))},
)
LEARNED = InputSettings("min_max", {"pt2": FeatureInput("category", 4, "embedding", 3), "met": "angle"})
SHORT = TrainingSettings(epochs=2, batch_size=100, learning_rate=5e-3, patience=None, negative_weights="signed")
# Narrower layers depend on the stack on some processors.
MODELS = [
    *(ModelSettings(hidden=(64, 64), inputs=InputSettings(name)) for name in get_args(NumberInput)[1:]),
    ModelSettings(hidden=(64, 64), inputs=MIXED),
    ModelSettings(hidden=(64, 64), inputs=LEARNED),
    ModelSettings(hidden=(64,), embedding="periodic", embedding_frequencies=3, embedding_dimension=5, inputs=LEARNED),
    ModelSettings(hidden=(64,), embedding="piecewise_linear", embedding_bins=5, embedding_dimension=3, inputs=MIXED),
    ModelSettings(type="tabm", hidden=(64,), submodels=2, embedding="piecewise_linear", embedding_bins=3),
]
NAMES = [f"{m.inputs.default}-{len(m.inputs.features)}-{m.embedding}-{m.type}" for m in MODELS]


def events_of(
    values: Floats,
    present: npt.NDArray[np.bool_] | None = None,
    weights: Doubles | None = None,
    labels: npt.NDArray[np.int64] | None = None,
) -> TrainingEvents:
    """Events of features a, b, …; all there, of weight one and of one class unless said."""
    count, features = values.shape
    names = tuple("abcdefgh"[:features])
    return TrainingEvents(
        Signature(names, names, ("s", "b")),
        values,
        np.ones(values.shape, dtype=np.bool_) if present is None else present,
        np.zeros(count, dtype=np.int64) if labels is None else labels,
        np.ones(count) if weights is None else weights,
        np.arange(count, dtype=np.uint64),
    )


def fitted(events: TrainingEvents, model: ModelSettings) -> tuple[Layout, Transform]:
    """The fit to all events."""
    layout = Layout(events.signature.features, model)
    return layout, fit_transforms(layout, events, [np.ones(len(events.labels), dtype=np.bool_)])[0]


def made(values: Floats, inputs: InputSettings, seen: Floats | None = None) -> Doubles:
    """Numbers ``[N, W]`` of events, by the fit to them or to others."""
    layout, transform = fitted(events_of(values if seen is None else seen), ModelSettings(inputs=inputs))
    found = layout.numbers(torch.from_numpy(values).unsqueeze(0), stack_transforms([transform]))
    return found[0].double().numpy()


def clipped(z: Doubles) -> Doubles:
    return np.asarray(z / np.sqrt(1 + (z / 3) ** 2))


def tails(seed: int = 1, count: int = 3000) -> Floats:
    """Momenta with long tails, numbers of both signs, and few whole ones."""
    random = np.random.default_rng(seed)
    columns = (random.lognormal(3, 1.5, count), random.standard_t(2, count), random.integers(0, 5, count))
    return np.stack(columns, axis=1).astype(np.float32)


class TestTransforms:
    def test_standardise(self) -> None:
        values = tails()
        expected = StandardScaler().fit_transform(values.astype(np.float64))
        assert made(values, InputSettings()) == pytest.approx(clipped(expected), rel=1e-4, abs=1e-5)
        assert made(values, InputSettings("z_score")) == pytest.approx(expected, rel=1e-4, abs=1e-5)

    def test_min_max(self) -> None:
        values = tails()
        found = made(values, InputSettings("min_max"))
        assert found == pytest.approx(MinMaxScaler().fit_transform(values.astype(np.float64)), abs=1e-6)
        beyond = made(values * 2 + 1, InputSettings("min_max"), seen=values)
        assert beyond.max() > 1.9

    def test_robust(self) -> None:
        values = tails()
        low, median, high = np.quantile(values.astype(np.float64), [0.25, 0.5, 0.75], axis=0)
        expected = clipped((values - median) / (high - low))
        assert made(values, InputSettings("robust")) == pytest.approx(expected, rel=1e-4, abs=1e-5)
        mostly = np.zeros((100, 1), dtype=np.float32)
        mostly[:3] = 8  # no interquartile range, but a range
        two = 2 / math.sqrt(1 + 4 / 9)
        assert made(mostly, InputSettings("robust"))[:4, 0] == pytest.approx([two, two, two, 0])

    def test_quantile_normal(self) -> None:
        """scikit-learn's, but for ties at the ends, which it sends to the ends."""
        values = tails()
        ours = made(values, InputSettings("quantile_normal"))
        theirs = QuantileTransformer(n_quantiles=QUANTILES, output_distribution="normal", subsample=None)
        expected = theirs.fit_transform(values.astype(np.float64))
        inner = np.abs(expected) < 5
        assert inner.mean() > 0.8
        # A straight line between far quantiles of a tail is one of float32's digits.
        assert ours[inner] == pytest.approx(expected[inner], abs=2e-4)
        middles = [(np.mean(values[:, 2] < k) + np.mean(values[:, 2] <= k)) / 2 for k in range(5)]
        found = [ours[values[:, 2] == k, 2][0] for k in range(5)]
        assert found == pytest.approx(ndtri(middles), abs=0.02)
        far = made(np.float32([[-3e38], [3e38], [0]]), InputSettings("quantile_normal"), seen=values[:, 1:2])
        assert far[:, 0].tolist() == pytest.approx(
            [ndtri(1e-7), -ndtri(1e-7), ndtri(np.mean(values[:, 1] < 0))], abs=0.01
        )

    def test_log(self) -> None:
        """Zero stays zero before the standardisation, and negative numbers mirror positive ones."""
        values = tails()
        unit = np.median(np.abs(values.astype(np.float64)), axis=0)
        logs = np.sign(values) * np.log1p(np.abs(values) / unit)
        expected = clipped((logs - logs.mean(axis=0)) / logs.std(axis=0))
        assert made(values, InputSettings("log")) == pytest.approx(expected, rel=1e-3, abs=1e-4)
        far = made(np.float32([[-3e38], [0], [3e38]]), InputSettings("log"), seen=values[:, :1])
        assert np.isfinite(far).all()
        assert (np.diff(far[:, 0]) > 0).all()
        assert np.isfinite(made(np.zeros((5, 1), dtype=np.float32), InputSettings("log"))).all()

    def test_angle(self) -> None:
        angles = np.float32([[0.5], [0.5 + 4 * np.pi], [-3.1], [3.1], [1e20]])
        found = made(angles, InputSettings(features={"a": "angle"}))
        assert found[:4] == pytest.approx(np.concatenate([np.sin(angles[:4]), np.cos(angles[:4])], axis=1), abs=1e-5)
        assert np.abs(found).max() <= 1

    def test_the_order_of_values_stays(self) -> None:
        values = tails(count=500)[:, :1]
        ladder = np.float32([-3e38, -1e8, -5, 0, 1e-3, 1, 20, 1e3, 1e8, 3e38]).reshape(-1, 1)
        for name in get_args(NumberInput):
            found = made(ladder, InputSettings(name), seen=values)[:, 0]
            assert np.isfinite(found).all()
            assert (np.diff(found) >= 0).all()

    def test_what_a_constant_or_an_absent_feature_becomes(self) -> None:
        values = np.full((10, 2), 0.1, dtype=np.float32)
        values[:, 0] = np.nan
        present = np.tile([False, True], (10, 1))
        for name in get_args(NumberInput):
            layout, fit = fitted(events_of(values, present), ModelSettings(inputs=InputSettings(name)))
            assert fit.tables["seen"].tolist() == [[0, 1]]
            tables = stack_transforms([fit])
            known, own = layout.known(torch.ones(1, 1, 2, dtype=torch.bool), tables)
            assert known.tolist() == own.tolist() == [[[False, True]]]
            assert layout.numbers(torch.tensor([[[7.0, 0.1]]]), tables)[0, 0, 1].isfinite()

    def test_weights_and_classes_count_as_in_the_standardisation(self) -> None:
        """Integer weights are repeated events; of each class the weights are scaled to the same sum."""
        random = np.random.default_rng(2)
        values, labels = tails(count=400), np.repeat([0, 1], 200)
        weights = random.normal(1, 1, 400) * np.array([0.01, 50])[labels]
        present = random.random(values.shape) < 0.8
        events = events_of(values, present, weights, labels)
        sizes = np.abs(weights)
        sizes = np.where(labels == 0, sizes / sizes[:200].sum(), sizes / sizes[200:].sum())
        moments, medians, bounds = (
            fitted(events, ModelSettings(inputs=InputSettings(name)))[1].tables
            for name in ("standardise", "robust", "min_max")
        )
        for feature in range(3):
            there = present[:, feature]
            x, mass = values[there, feature].astype(np.float64), sizes[there]
            mean = np.average(x, weights=mass)
            assert moments["standardise.shift"][0, feature] == pytest.approx(mean, rel=1e-6)
            spread = math.sqrt(np.cov(x, aweights=mass, ddof=0))
            assert moments["standardise.scale"][0, feature] == pytest.approx(spread, rel=1e-6)
            below = mass[x < medians["robust.shift"][0, feature]].sum() / mass.sum()
            upto = mass[x <= medians["robust.shift"][0, feature]].sum() / mass.sum()
            assert below - 0.02 <= 0.5 <= upto + 0.02
            assert bounds["min_max.shift"][0, feature] == x.min()

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
    def test_weighted_quantiles(self, numbers: list[float], seed: int) -> None:
        x, shares = np.sort(np.array(numbers)), np.linspace(0, 1, 9)
        equal = weighted_quantiles(x, np.full(len(x), 0.3), shares)
        assert equal == pytest.approx(np.quantile(x, shares), rel=1e-6, abs=1e-6)
        mass = np.random.default_rng(seed).uniform(0.1, 2, len(x))
        mirrored = -weighted_quantiles(-x[::-1], mass[::-1], 1 - shares)
        assert weighted_quantiles(x, mass, shares) == pytest.approx(mirrored, rel=1e-6, abs=1e-6)

    def test_normal_quantile(self) -> None:
        shares = np.concatenate([np.geomspace(1e-7, 0.5, 500), np.linspace(0.05, 0.1, 50)])
        assert normal_quantile(torch.from_numpy(shares)).numpy() == pytest.approx(ndtri(shares), rel=2e-7, abs=1e-7)


class TestCategories:
    inputs = InputSettings(features={"a": FeatureInput("category", 2)})

    def test_the_heaviest_have_inputs_of_their_own(self) -> None:
        values = np.float32([[3], [3], [3], [-1], [-1], [7], [0.5]])
        found = made(values, self.inputs)
        assert found.tolist() == [[0, 1, 0]] * 3 + [[1, 0, 0]] * 2 + [[0, 0, 1]] * 2

    def test_what_training_never_met_has_no_input(self) -> None:
        """The weights of the input of unknown values have then learned nothing."""
        values = np.float32([[3], [-1], [np.inf], [1e30]])
        assert made(values, self.inputs, seen=values[:2]).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]

    def test_declared_ones(self) -> None:
        declared = InputSettings(features={"a": FeatureInput("category", (5.0, 1.0))})
        assert made(np.float32([[1], [5], [9]]), declared).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
        fewer = made(np.float32([[1], [1], [2]]), InputSettings(features={"a": FeatureInput("category", 4)}))
        assert fewer.tolist() == [[1, 0, 0, 0, 0]] * 2 + [[0, 1, 0, 0, 0]]

    def test_whole_numbers_that_float32_does_not_tell_apart(self) -> None:
        """2^24 + 1 has become 2^24 already."""
        large = np.float32([[0], [2**24 + 1]])
        with pytest.raises(ValueError, match=r"a: a category is 16777216; expected numbers below 2\^24"):
            made(large, self.inputs)
        assert made(large, self.inputs, seen=large[:1])[1].tolist() == [0, 0, 0]

    def test_embeddings_are_rows_of_a_table(self) -> None:
        lines: list[str] = []
        plan = dataclasses.replace(make_plans()[0], model=embedded())
        member = train(make_categories(), [plan], progress=lines.append)[0]
        table = member.parameters["category_pt2"]
        assert table.shape == (5, 3)
        values = member.transform.tables["category.pt2.values"][:, 0]
        assert values.tolist() == [0, 1, 2, 3]
        said = [line for line in lines if "nearest categories" in line]
        assert len(said) == 1
        assert said[0].startswith("fold 0, member 0: pt2, nearest categories: 0 to ")
        assert "unknown to" in said[0]
        scores = predict(Ensemble((member,)), *probe([0, 1, 2, 3, 4, 77, 1e30]))[0]
        assert len(np.unique(scores[:4, 0])) == 4
        assert np.array_equal(scores[5], scores[4])
        assert np.array_equal(scores[6], scores[4])

    def test_nearest(self) -> None:
        table = np.float32([[0, 0], [1, 0], [5, 5], [0, 1.5]])
        found = nearest_categories(table, [1.0, 2.0, math.nan])
        assert found == [(1.0, 2.0, 1.0), (2.0, 1.0, 1.0), (None, 1.0, 1.5)]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"kind": "angle", "dimension": 2}, "dimension is 2; expected none, as kind is not category"),
            ({"kind": "robust", "categories": 4}, "kind robust has no such constant"),
            ({"kind": "category", "dimension": 2}, "encoding one_hot has no such constant"),
            ({"kind": "category", "encoding": "embedding", "dimension": 1}, "dimension is 1; expected at least 2"),
            ({"kind": "category", "categories": (1.0, 1.0)}, "expected from 1 to 256, or a list"),
            ({"kind": "category", "categories": (2.0**24,)}, "expected from 1 to 256, or a list"),
            ({"kind": "flag"}, "kind is 'flag'; expected one of standardise"),
        ],
    )
    def test_wrong_settings(self, arguments: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            FeatureInput(**arguments)

    def test_a_feature_that_there_is_not(self) -> None:
        with pytest.raises(ValueError, match=r"names 'ht'; expected one of met, pt1"):
            Layout(SIGNATURE.features, ModelSettings(inputs=InputSettings(features={"ht": "angle"})))


def embedded() -> ModelSettings:
    own = FeatureInput("category", 4, "embedding", 3)
    return ModelSettings(hidden=(9, 5), inputs=InputSettings(features={"pt2": own}))


def make_categories() -> TrainingEvents:
    """Events whose third feature is one of six whole numbers, two of them rare."""
    events = make_events()
    kinds = np.random.default_rng(3).choice(6, len(events.labels), p=[0.3, 0.25, 0.2, 0.2, 0.03, 0.02])
    events.values[:, 2] = kinds
    return events


def probe(categories: list[float]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Events that differ in the third feature alone."""
    values = np.zeros((len(categories), 4), dtype=np.float32)
    values[:, 2] = categories
    return values, np.ones(values.shape, dtype=np.bool_)


class TestAbsent:
    def test_learned_numbers_and_presence(self) -> None:
        numbers = torch.tensor([[[0.4, math.nan, 0.5], [math.inf, -7.0, -999.0]]])
        known = torch.tensor([[[True, False, True], [False, False, False]]])
        absent = torch.tensor([[[10.0, 20.0, 30.0]]])
        assert filled(numbers, known, absent)[0].tolist() == [[pytest.approx(0.4), 20.0, 0.5], [10.0, 20.0, 30.0]]
        membership = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        assert presence(known, membership)[0].tolist() == [[1, 1], [0, 0]]

    @pytest.mark.parametrize("model", [ModelSettings(hidden=(9, 5)), *MODELS], ids=["standardise", *NAMES])
    @pytest.mark.parametrize("garbage", [math.nan, math.inf, -999.0])
    def test_what_stands_in_an_absent_value_has_no_influence(self, model: ModelSettings, garbage: float) -> None:
        """Neither in the fit nor in the gradients."""
        events = make_events(400)
        spoilt = dataclasses.replace(events, values=np.where(events.present, events.values, np.float32(garbage)))
        classifier = Classifier(model, SIGNATURE)
        outcomes = []
        for own in (events, spoilt):
            fit = fit_transforms(classifier.layout, own, [np.ones(400, dtype=np.bool_)])
            views = classifier.views(classifier.initial([1]))
            trained = [views[p.name].requires_grad_() for p in classifier.parameters if p.trained]
            inputs = (torch.from_numpy(column).unsqueeze(0) for column in (own.values, own.present))
            logits = classifier.logits(views, stack_transforms(fit), *inputs)
            outcomes.append([logits.detach(), *torch.autograd.grad(logits.square().sum(), trained)])
        assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
        assert all(tensor.isfinite().all() for tensor in outcomes[1])


class TestEmbeddings:
    def stack(self, model: ModelSettings) -> tuple[Classifier, dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Classifier, parameters, tables and numbers ``[2, 64, 4]`` of two networks, in double precision."""
        classifier, events = Classifier(model, SIGNATURE), make_events(500)
        uses = [np.arange(500) % 2 == member for member in range(2)]
        fits = stack_transforms(fit_transforms(classifier.layout, events, uses))
        tables = {name: table.double() for name, table in fits.items()}
        views = classifier.views(classifier.initial([5, 6]).double())
        values = torch.from_numpy(events.values[:64]).double().expand(2, -1, -1)
        return classifier, views, tables, classifier.layout.numbers(values, tables)

    def test_periodic(self) -> None:
        """ReLU(W [sin 2πcx, cos 2πcx] + b), with c and W of each feature its own."""
        model = ModelSettings(embedding="periodic", embedding_frequencies=3, embedding_dimension=5)
        classifier, views, tables, numbers = self.stack(model)
        found = classifier.embeddings(views, tables, numbers).numpy()
        assert found.shape == (2, 64, 20)
        for member in range(2):
            c = views["frequencies"][member].view(4, 3).numpy()
            for feature in range(4):
                angles = 2 * np.pi * numbers[member, :, feature].numpy()[:, None] * c[feature]
                waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
                linear = (
                    waves @ views["embedding"][member, feature].numpy()
                    + views["embedding_bias"][member, feature].numpy()
                )
                assert found[member, :, 5 * feature : 5 * feature + 5] == pytest.approx(
                    np.maximum(linear, 0), abs=1e-12
                )

    def test_piecewise_linear(self) -> None:
        """Of eq. 1 in arXiv 2203.05556, with edges at the quantiles of each network's own events."""
        model = ModelSettings(embedding="piecewise_linear", embedding_bins=4, inputs=InputSettings("z_score"))
        classifier, _, tables, numbers = self.stack(model)
        found = piecewise_linear(numbers, tables).numpy()
        events = make_events(500)
        for member in range(2):
            for feature in range(4):
                rows = (np.arange(500) % 2 == member) & events.present[:, feature] & (events.weights != 0)
                mass = np.abs(events.weights)
                labels = events.labels
                sums = [mass[(np.arange(500) % 2 == member) & (labels == c)].sum() for c in range(2)]
                mass = mass / np.array(sums)[labels]
                order = np.argsort(events.values[rows, feature], kind="stable")
                x = events.values[rows, feature][order].astype(np.float64)
                edges = weighted_quantiles(x, mass[rows][order], np.linspace(0, 1, 5))
                shift, scale = (tables[f"z_score.{name}"][member, 0, feature].item() for name in ("shift", "scale"))
                b = (edges - shift) / scale
                z = numbers[member, :, feature].numpy()
                for t in range(4):
                    expected = (z - b[t]) / (b[t + 1] - b[t])
                    expected = expected if t == 0 else np.maximum(expected, 0)
                    expected = expected if t == 3 else np.minimum(expected, 1)
                    assert found[member, :, feature, t] == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert classifier.embeddings.width == 4 * 8

    def test_equal_quantiles_leave_bins_over(self) -> None:
        values = np.float32([0] * 61 + [1] * 30 + [2] * 10).reshape(-1, 1)
        model = ModelSettings(embedding="piecewise_linear", embedding_bins=10, inputs=InputSettings("min_max"))
        layout, fit = fitted(events_of(values), model)
        tables = stack_transforms([fit])
        numbers = layout.numbers(torch.tensor([[[0.0], [1.0], [1.5], [2.0]]]), tables)
        found = piecewise_linear(numbers, tables)[0, :, 0]
        assert found[:, :2].tolist() == [[0, 0], [1, 0], [1, 0.5], [1, 1]]
        assert not found[:, 2:].any()

    def test_first_frequencies(self) -> None:
        model = ModelSettings(embedding="periodic", embedding_frequencies=500, embedding_scale=0.3)
        classifier = Classifier(model, SIGNATURE)
        drawn = classifier.views(classifier.initial([3]))["frequencies"]
        assert drawn.std().item() == pytest.approx(0.3, rel=0.05)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"embedding_bins": 4}, "embedding none has no such constant"),
            ({"embedding": "periodic", "embedding_bins": 4}, "embedding_bins is one of piecewise_linear"),
            ({"embedding": "periodic", "embedding_dimension": 1}, "embedding_dimension is 1; expected at least 2"),
            ({"embedding": "periodic", "embedding_scale": 0.0}, "embedding_scale is 0.0; expected a number above 0"),
            ({"embedding": "sines"}, "embedding is 'sines'; expected one of none, periodic, piecewise_linear"),
        ],
    )
    def test_wrong_settings(self, arguments: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            ModelSettings(**arguments)


@pytest.mark.parametrize("model", MODELS, ids=NAMES)
class TestTraining:
    def test_alone_and_stacked_and_garbage_elsewhere(self, model: ModelSettings) -> None:
        """A network follows from its own events, to the last bit."""
        precision = "bf16" if model.embedding != "none" or model.inputs is MIXED else "fp32"
        training = dataclasses.replace(SHORT, precision=precision, input_noise=0.05)
        events, plans = make_events(600), make_plans(600, model=model, training=training)
        stacked = train(events, plans[:3])
        assert_equal(train(garbage_outside(events, plans[1]), [plans[1]])[0], stacked[1])
        plain = dataclasses.replace(plans[1], model=ModelSettings(hidden=(64, 64)))
        if model.inputs == InputSettings("z_score"):
            assert differ(stacked[1], train(events, [plain])[0])

    def test_steps_can_be_recorded(self, model: ModelSettings) -> None:
        assert_recordable(model, dataclasses.replace(SHORT, input_noise=0.1))

    def test_files(self, model: ModelSettings, tmp_path: Path) -> None:
        member = train(make_events(600), make_plans(600, folds=3, model=model, training=SHORT)[:1])[0]
        save_member(tmp_path / "member", member)
        assert_equal(load_member(tmp_path / "member"), member)
        assert load_member(tmp_path / "member").model == model


@pytest.mark.parametrize("model", [MODELS[7], MODELS[8]], ids=[NAMES[7], NAMES[8]])
def test_onnx(model: ModelSettings, tmp_path: Path) -> None:
    """Values far beyond those of training, at the very quantiles, and unknown categories among them."""
    events, other = make_events(600), make_events(2000, seed=4)
    for own in (events, other):
        own.values[:, 3] = np.round(own.values[:, 3])
    other.values[:20] *= 1e5
    other.values[20:40] = events.values[:20]
    ensemble = Ensemble(tuple(train(events, make_plans(600, folds=3, model=model, training=SHORT)[:2])))
    export_onnx(ensemble, tmp_path / "ensemble.onnx", {})
    folds = np.arange(2000) % 2
    assert check_onnx(tmp_path / "ensemble.onnx", ensemble, other.values, other.present, folds) < 1e-5
