"""Missing objects: fixed values, sets of like objects, attention, and a network for each pattern."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from analysis.config import load_analysis
from analysis.errors import UserError
from models.absent import stand_in
from models.calibration import temperature
from models.ensemble import Ensemble, load_member, predict, save_member
from models.events import TrainingEvents
from models.export import check_onnx
from models.export import export_onnx as export
from models.fitting import fit_transforms
from models.importance import integrated_gradients
from models.losses import class_factors
from models.members import MemberPlan, Patterns, TrainedMember
from models.networks import Classifier
from models.objects import Kind, Sets
from models.patterns import Router, _merged, fit_patterns, groups_of, separated
from models.preprocessing import Signature, Target
from models.settings import (
    Augmentation,
    InputSettings,
    ModelSettings,
    TargetSettings,
    TrainingSettings,
    alike,
    with_values,
)
from models.training import train
from models.transforms import Layout, stack_transforms
from models.weighting import own_weights
from tests.test_training import KilledError, Memory, assert_equal, assert_recordable, killed_after
from workflow.tasks.beside import check_method

FEATURES = ("met", "lepton1_pt", "lepton1_eta", "lepton2_pt", "lepton2_iso", "lepton2_eta", "jet_pt")
OWNERS = ("event", "lepton1", "lepton1", "lepton2", "lepton2", "lepton2", "jet")
SIGNATURE = Signature(FEATURES, OWNERS, ("background", "signal"))
TRAINING = TrainingSettings(epochs=3, batch_size=100, patience=None, negative_weights="signed")
OTHERS = InputSettings("quantile_normal", {"lepton1_eta": "angle", "met": "log"})
BINS: dict[str, Any] = {"embedding": "piecewise_linear", "embedding_dimension": 3, "embedding_bins": 4}
SEPARATE = ModelSettings(
    hidden=(8,), missing="separate", pattern_objects=("lepton2", "jet"), pattern_events=60, pattern_class_events=20
)


def make_events(count: int = 1200, seed: int = 1) -> TrainingEvents:
    """Leptons and jets that are there or not, some events with nothing at all, and weights of both signs."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    values = random.normal(labels[:, None] * 0.8, 1.0, (count, 7)).astype(np.float32)
    there = random.random((count, 4)) < np.array([0.9, 0.8, 0.5, 0.4]) + 0.1 * labels[:, None]
    present = np.repeat(there, (1, 2, 3, 1), axis=1)
    present[:, 4] &= random.random(count) < 0.9  # a value that is absent while its object is there
    weights = np.where(random.random(count) < 0.1, -1.0, 1.0) * random.uniform(0.5, 2, count)
    weights[random.random(count) < 0.05] = 0.0
    identity = np.sort(random.integers(0, 2**64, count, dtype=np.uint64))
    return TrainingEvents(SIGNATURE, values, present, labels, weights * np.array([0.1, 2.0])[labels], identity)


def make_plans(model: ModelSettings, count: int = 1200, folds: int = 3) -> list[MemberPlan]:
    fold = np.arange(count) % folds
    return [
        MemberPlan(f, 0, (fold != f) & (fold != (f + 1) % folds), fold == (f + 1) % folds, model, TRAINING, 5)
        for f in range(folds)
    ]


class TestLikeObjects:
    def test_by_numbers_and_by_declaration(self) -> None:
        objects = ("event", "lepton1", "jet1", "lepton2", "jet10")
        assert alike(objects, ()) == (("event",), ("lepton1", "lepton2"), ("jet1", "jet10"))
        assert alike(objects, (("event", "jet1"),)) == (("event", "jet1"), ("lepton1",), ("lepton2",), ("jet10",))

    def test_like_features_are_those_of_equal_names_without_the_objects(self) -> None:
        kind = Kind.of(("lepton1", "lepton2"), SIGNATURE)
        assert dict(kind.rows) == {1: 0, 2: 1, 3: 0, 4: 2, 5: 1}
        assert kind.size == 3
        assert Sets(ModelSettings(missing="deep_sets"), SIGNATURE, 7, "cpu").shared == (0, 1, 2, 1, 4, 2, 6)

    def test_like_features_are_standardised_together(self) -> None:
        events, use = make_events(), np.arange(1200) % 3 == 0
        layout = Layout(FEATURES, ModelSettings())
        own, found = (
            fit_transforms(layout, events, [use], shared)[0].tables for shared in (None, (0, 1, 2, 1, 4, 2, 6))
        )
        sizes = np.abs(events.weights[use])
        sizes /= np.bincount(events.labels[use], sizes)[events.labels[use]]
        x, there = events.values[use][:, [1, 3]].astype(np.float64), events.present[use][:, [1, 3]]
        w = sizes[:, None] * there
        mean = (w * x).sum() / w.sum()
        for column in (1, 3):
            assert found["standardise.shift"][0, column] == pytest.approx(mean, rel=1e-5)
            deviation = np.sqrt((w * (x - mean) ** 2).sum() / w.sum())
            assert found["standardise.scale"][0, column] == pytest.approx(deviation, rel=1e-5)
        alone = [0, 4, 6]
        assert (found["standardise.shift"][0, alone] == own["standardise.shift"][0, alone]).all()

    def test_none_is_an_error(self) -> None:
        lonely = Signature(("met", "pt"), ("event", "lepton"), ("a", "b"))
        with pytest.raises(ValueError, match="No object is like another"):
            Classifier(ModelSettings(missing="deep_sets"), lonely)


class TestSets:
    def stack(self, **change: Any) -> tuple[Classifier, dict[str, Tensor]]:
        classifier = Classifier(ModelSettings(hidden=(5,), object_width=6, **change), SIGNATURE)
        rows = classifier.initial([1, 2, 3]).double()
        rows += torch.from_numpy(np.random.default_rng(2).normal(0, 0.2, rows.shape))
        return classifier, classifier.views(rows)

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Values with what stands for absent ones, and presence, the first event without any object."""
        random = np.random.default_rng(3)
        there = random.random((3, 20, 4)) < 0.6
        there[:, 0] = False
        return torch.from_numpy(random.normal(0, 1, (3, 20, 7))), torch.from_numpy(there)

    @pytest.mark.parametrize("pooling", ["sum", "mean"])
    @pytest.mark.parametrize("heads", [None, 1, 3])
    @pytest.mark.parametrize("indicator", [True, False])
    def test_against_torch(self, pooling: str, heads: int | None, indicator: bool) -> None:
        """Linear layers and `nn.MultiheadAttention` with a mask of absent objects, event by event."""
        own = {"missing": "deep_sets"} if heads is None else {"missing": "attention", "attention_heads": heads}
        classifier, views = self.stack(**own, pooling=pooling, indicator=indicator)
        values, there = self.inputs()
        found = classifier.front(views, torch.cat([values, there.double()], dim=2))
        assert found.shape == (3, 20, classifier.front.width)
        rows = [[0], [0, 1], [0, 2, 1], [0]]  # of the objects' features in the matrices of their kinds
        columns, kinds = [[0], [1, 2], [3, 4, 5], [6]], [0, 1, 1, 2] if heads else [None, 0, 0, None]
        for member in range(3):
            tokens = {}
            for place, kind in enumerate(kinds):
                if kind is not None:
                    weight = views[f"token_weight{kind}"][member][rows[place]]
                    tokens[place] = values[member][:, columns[place]] @ weight + views[f"token_bias{kind}"][member]
            if heads:
                torch_s = nn.MultiheadAttention(6, heads, batch_first=True, dtype=torch.float64)
                with torch.no_grad():
                    torch_s.in_proj_weight.copy_(views["attention_weight"][member].T)
                    torch_s.in_proj_bias.copy_(views["attention_bias"][member, 0])
                    torch_s.out_proj.weight.copy_(views["mixing_weight"][member].T)
                    torch_s.out_proj.bias.copy_(views["mixing_bias"][member, 0])
                    every = torch.stack(list(tokens.values()), dim=1)
                    mask = ~there[member]
                    mask[mask.all(dim=1)] = False  # torch has no answer without any object; none is taken
                    mixed = every + torch_s(every, every, every, key_padding_mask=mask)[0]
                tokens = {place: mixed[:, place] for place in tokens}
            parts = []
            for kind in sorted({kind for kind in kinds if kind is not None}):
                places = [place for place, own_kind in enumerate(kinds) if own_kind == kind]
                total = sum(functional.silu(tokens[p]) * there[member][:, p, None] for p in places)
                count = there[member][:, places].sum(dim=1, keepdim=True).clamp(min=1)
                parts.append(total / count if pooling == "mean" else total)
            parts += [] if heads else [values[member][:, [0, 6]]]
            parts += [there[member].double()] if indicator else []
            assert (found[member] - torch.cat(parts, dim=1)).abs().max() < 1e-12

    @pytest.mark.parametrize("missing", ["deep_sets", "attention"])
    def test_values_of_absent_objects_and_the_order_of_like_ones_are_not_seen(self, missing: str) -> None:
        signature = Signature(("a1_pt", "a1_eta", "a2_pt", "a2_eta"), ("a1", "a1", "a2", "a2"), ("x", "y"))
        model = ModelSettings(hidden=(5,), missing=missing, object_width=4, indicator=False)  # type: ignore[arg-type]
        classifier = Classifier(model, signature)
        views = classifier.views(classifier.initial([1]).double())
        zeros, ones = torch.zeros(1, 1, 4).double(), torch.ones(1, 1, 4).double()
        statistics = {"standardise.shift": zeros, "standardise.scale": ones, "seen": ones}
        values = torch.randn(1, 50, 4, generator=torch.Generator().manual_seed(1)).double()
        present = (torch.arange(50) % 4)[None, :, None] // torch.tensor([2, 2, 1, 1]) % 2 == 1
        found = classifier.logits(views, statistics, values, present)
        swapped = classifier.logits(views, statistics, values[..., [2, 3, 0, 1]], present[..., [2, 3, 0, 1]])
        assert (found - swapped).abs().max() < 1e-12
        spoilt = classifier.logits(views, statistics, torch.where(present, values, 7.0), present)
        assert torch.equal(found, spoilt)


class TestDefault:
    @pytest.mark.parametrize("chosen", ["mean", "median", -7.5])
    def test_what_stands_in_is_seen_as_a_value(self, chosen: Any) -> None:
        """An event without a value has the logits of one that has the mean, the median or the constant."""
        events = make_events()
        model = ModelSettings(hidden=(6,), missing="default", missing_value=chosen, indicator=False)
        plan = make_plans(model)[0]
        member = train(events, [plan])[0]
        use = plan.training & (events.weights != 0)
        sizes = np.abs(events.weights[use])
        sizes /= np.bincount(events.labels[use], sizes)[events.labels[use]]
        expected = np.empty(7)
        for column in range(7):
            there = events.present[use][:, column]
            x, w = events.values[use][there, column].astype(np.float64), sizes[there]
            order = np.argsort(x)
            below = np.cumsum(w[order])
            median = x[order][np.argmax(below >= below[-1] / 2)]
            expected[column] = {"mean": np.average(x, weights=w), "median": median}.get(chosen, chosen)
        filled = np.where(events.present, events.values, expected.astype(np.float32))
        found = predict(Ensemble((member,)), events.values, events.present)
        assert np.abs(found - predict(Ensemble((member,)), filled, np.ones_like(events.present))).max() < 1e-5
        assert "absent" in member.parameters

    def test_a_feature_that_no_training_event_has(self) -> None:
        events = make_events()
        events.present[:, 6] = False
        use = np.ones(1200, dtype=np.bool_)
        for value in ("mean", "median", 3.0):
            model = ModelSettings(missing="default", missing_value=value)  # type: ignore[arg-type]
            layout = Layout(FEATURES, model)
            assert stand_in(layout, model, events, use, fit_transforms(layout, events, [use])[0])[6] == 0

    @pytest.mark.parametrize("value", ["median", -2.0])
    def test_other_inputs_make_of_it_what_they_make_of_a_value(self, value: Any) -> None:
        events, use = make_events(), np.ones(1200, dtype=np.bool_)
        inputs = InputSettings("quantile_normal", {"lepton1_eta": "angle", "met": "log", "jet_pt": "category"})
        model = ModelSettings(missing="default", missing_value=value, inputs=inputs)
        events.values[:, 6] = np.arange(1200) % 3
        layout = Layout(FEATURES, model)
        fit = fit_transforms(layout, events, [use])[0]
        found = stand_in(layout, model, events, use, fit)
        assert found.shape == (layout.width,)
        if value == -2.0:
            plain = torch.full((1, 1, 7), -2.0)
            assert found.tolist() == layout.numbers(plain, stack_transforms([fit]))[0, 0].tolist()
            assert found[-9:].tolist() == [0.0] * 9  # no category, and training knew all of them
        else:
            assert (np.abs(found[:4]) < 0.1).all()  # of quantile_normal, medians are near 0
            assert sorted(found[-9:].tolist()) == [0.0] * 8 + [1.0]


def test_without_indicator_presence_is_not_seen() -> None:
    with_it, without = (Classifier(ModelSettings(indicator=shown), SIGNATURE) for shown in (True, False))
    shapes = [{p.name: p.shape for p in classifier.parameters} for classifier in (with_it, without)]
    assert (shapes[0]["weight0"][0], shapes[1]["weight0"][0]) == (7 + 4, 7)


class TestPatterns:
    def test_merging_by_hand(self) -> None:
        found = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], dtype=np.bool_)
        counts = np.array([[100, 100], [40, 40], [15, 15], [3, 2]], dtype=np.float64)
        assert _merged(found, counts, counts, (50, 10)) == [0, 1, 0, 1]  # of as near ones, the larger
        assert _merged(found, counts, counts, (1, 1)) == [0, 1, 2, 3]
        assert _merged(found, counts, counts, (10**6, 1)) == [0, 0, 0, 0]
        negative = counts.copy()
        negative[1, 0] = -1.0
        assert _merged(found, counts, negative, (1, 1)) == [0, 0, 1, 2]
        assert _merged(found, counts, counts, (1, 16)) == [0, 1, 0, 1]

    @settings(max_examples=50, deadline=None)
    @given(st.data())
    def test_the_router_finds_the_nearest_pattern(self, data: st.DataObject) -> None:
        def several(count: int) -> list[tuple[bool, ...]]:
            pattern = st.tuples(*[st.booleans()] * 2)
            return data.draw(st.lists(pattern, min_size=1, max_size=count, unique=True))

        members = []
        for objects in (("lepton2", "jet"), ("event", "lepton1")):
            known = tuple(several(4))
            members.append(Patterns(objects, known, tuple(range(len(known)))))
        there = np.array(data.draw(st.lists(st.tuples(*[st.booleans()] * 4), min_size=1, max_size=20)))
        found = Router(members, SIGNATURE)(torch.from_numpy(there).float())
        for member, own in enumerate(members):
            columns = [SIGNATURE.objects.index(name) for name in own.objects]
            distances = (there[:, None, columns] != np.array(own.known)[None]).sum(axis=2)
            assert found[member].tolist() == distances.argmin(axis=1).tolist()

    def test_patterns_follow_from_the_training_events_alone(self) -> None:
        events, plan = make_events(), make_plans(SEPARATE)[0]
        patterns = fit_patterns(SEPARATE, events, plan.training)
        assert patterns.objects == ("lepton2", "jet")
        assert patterns.count > 2
        spoilt = dataclasses.replace(events, present=np.where(plan.training[:, None], events.present, True))
        assert fit_patterns(SEPARATE, spoilt, plan.training) == patterns
        with pytest.raises(ValueError, match="no event has any of them"):
            fit_patterns(dataclasses.replace(SEPARATE, pattern_objects=("tau",)), events, plan.training)

    def test_a_network_without_events_to_stop_on_is_an_error(self) -> None:
        events, plan = make_events(), make_plans(SEPARATE)[0]
        whole = events.present.all(axis=1)
        with pytest.raises(ValueError, match=r"none to stop on; expected some. Raise model\.pattern_events"):
            separated(events, dataclasses.replace(plan, validation=plan.validation & whole))


@pytest.fixture(scope="module")
def trained() -> tuple[TrainingEvents, list[MemberPlan], list[TrainedMember]]:
    """Members of several networks each."""
    events, plans = make_events(), make_plans(SEPARATE)
    return events, plans, train(events, plans)


class TestSeparate:
    def test_a_member_alone_and_after_kills_is_the_same(self, trained: Any) -> None:
        events, plans, members = trained
        kept = Memory(3)
        with pytest.raises(KilledError):
            train(events, plans, checkpoints=kept, progress=killed_after(1))
        for found in (train(events, [plans[1]])[0], train(events, plans, checkpoints=kept)[1]):
            assert found.patterns == members[1].patterns
            assert len(found.parts) > 2
            for left, right in zip(found.parts, members[1].parts, strict=True):
                assert_equal(left, right)
                assert left.temperature == right.temperature

    def test_networks_train_on_their_patterns_with_the_member_s_balance(self, trained: Any) -> None:
        """The validation loss of each is that of its own events, weighted as those of the whole fold are."""
        events, plans, members = trained
        plan, member = plans[0], members[0]
        groups = groups_of(member.patterns, SIGNATURE, events.present)
        used = events.weights != 0
        whole = plan.validation & used
        factors = class_factors(events.weights[whole], events.labels[whole], 2)
        for number, network in enumerate(member.parts):
            own = whole & (groups == number)
            assert network.events == ((plan.training & used & (groups == number)).sum(), own.sum())
            p = self.alone(network, events)[own, events.labels[own]]
            loss = -(events.weights[own] * factors[events.labels[own]] * np.log(p)).sum() / own.sum()
            assert min(network.history.validation_loss) == pytest.approx(loss, rel=1e-4)

    def alone(self, network: TrainedMember, events: TrainingEvents, divisor: float = 1.0) -> npt.NDArray[np.float64]:
        """The probabilities of one network for all events, logits divided by a number."""
        model = dataclasses.replace(
            network.model, missing="learned", pattern_objects=None, pattern_events=None, pattern_class_events=None
        )
        plain = dataclasses.replace(network, model=model, patterns=None, others=())
        logits = np.log(predict(Ensemble((plain,)), events.values, events.present)[0].astype(np.float64)) / divisor
        return np.asarray(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))

    def test_scores_are_those_of_the_pattern_s_network_calibrated(self, trained: Any) -> None:
        events, _, members = trained
        found = predict(Ensemble(tuple(members)), events.values, events.present)
        assert found.shape == (3, 1200, 2)
        for member, probabilities in zip(members, found, strict=True):
            groups = groups_of(member.patterns, SIGNATURE, events.present)
            for number, network in enumerate(member.parts):
                rows = groups == number
                expected = self.alone(network, events, network.temperature)
                assert probabilities[rows] == pytest.approx(expected[rows], abs=1e-5)

    def test_the_temperature_is_the_best_on_the_stopping_events(self, trained: Any) -> None:
        events, plans, members = trained
        _, parts = separated(events, plans[0])
        for part, network in zip(parts, members[0].parts, strict=True):
            whole, rows = part.balanced[1] & (events.weights != 0), part.validation & (events.weights != 0)
            factors = class_factors(events.weights[whole], events.labels[whole], 2)
            weights = (events.weights * factors[events.labels])[rows]

            def loss(divisor: float, network: TrainedMember = network, rows: Any = rows, w: Any = weights) -> float:
                p = self.alone(network, events, divisor)[rows, events.labels[rows]]
                return float(-(w * np.log(p)).sum())

            best = loss(network.temperature)
            assert all(best <= loss(other) + 1e-4 for other in np.geomspace(0.2, 5, 20))
            assert temperature(events, part, network) == network.temperature

    @pytest.mark.parametrize(
        "change",
        [{"balance": "processes"}, {"flatten": ("lepton1_pt",), "flatten_bins": 3}, {"negative_weights": "reweighted"}],
        ids=str,
    )
    def test_weights_of_their_own_are_those_of_the_whole_member(self, change: dict[str, Any]) -> None:
        """All networks of a member keep one prior: sums over patterns, not within each, are equal or flat."""
        events = make_events()
        random = np.random.default_rng(2)
        processes = 2 * events.labels + (random.random(len(events.labels)) < 0.3)
        events = dataclasses.replace(events, processes=processes, process_names=("a", "b", "c", "d"))
        settings = dataclasses.replace(TRAINING, **change)
        plan = dataclasses.replace(make_plans(SEPARATE)[0], settings=settings)
        member = train(events, [plan])[0]
        assert (member.ratios is not None) == (change == {"negative_weights": "reweighted"})
        plan = dataclasses.replace(plan, ratios=member.ratios)
        whole = own_weights(events, plan)
        patterns, parts = separated(events, plan)
        groups = groups_of(patterns, SIGNATURE, events.present)
        used = plan.validation & (whole != 0)
        factors = class_factors(whole[used], events.labels[used], 2)
        for number, (part, network) in enumerate(zip(parts, member.parts, strict=True)):
            assert np.array_equal(own_weights(events, part), whole)
            own = used & (groups == number)
            p = self.alone(network, events)[own, events.labels[own]]
            loss = -(whole[own] * factors[events.labels[own]] * np.log(p)).sum() / own.sum()
            assert min(network.history.validation_loss) == pytest.approx(loss, rel=1e-4)

    def test_files(self, trained: Any, tmp_path: Path) -> None:
        events, _, members = trained
        save_member(tmp_path / "a", members[0])
        found = load_member(tmp_path / "a")
        assert found.patterns == members[0].patterns
        assert [n.temperature for n in found.parts] == [n.temperature for n in members[0].parts]
        save_member(tmp_path / "b", found)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        scores = [predict(Ensemble((own,)), events.values, events.present) for own in (found, members[0])]
        assert np.array_equal(*scores)


@pytest.mark.parametrize(
    "change",
    [
        {"missing": "default", "missing_value": -7.0, "indicator": False, "inputs": OTHERS},
        {"missing": "deep_sets", "object_width": 5},
        {"missing": "attention", "object_width": 6, "attention_heads": 2, "pooling": "mean", "type": "tabm"},
        {"missing": "separate", "pattern_events": 60, "pattern_class_events": 20, **BINS},
    ],
    ids=lambda change: str(change["missing"]),
)
def test_onnx(change: dict[str, Any], tmp_path: Path) -> None:
    """The file agrees for every pattern, also for events with nothing at all, and with separate networks for copies."""
    model = ModelSettings(hidden=(6,), submodels=2, **change)
    events, moves = (
        make_events(),
        Augmentation(reflection_z=True, longitudinal=("lepton1_eta", "lepton2_eta"), copies=2),
    )
    own = dataclasses.replace(TRAINING, augmentation=moves if change["missing"] == "separate" else None)
    plans = [dataclasses.replace(plan, settings=own) for plan in make_plans(model)]
    ensemble = Ensemble(tuple(train(events, plans)))
    export(ensemble, tmp_path / "ensemble.onnx", {})
    present = events.present.copy()
    present[:10], present[10:20] = False, True
    folds = np.arange(1200) % 3
    assert check_onnx(tmp_path / "ensemble.onnx", ensemble, events.values, present, folds) < 1e-5
    assert check_onnx(tmp_path / "ensemble.onnx", ensemble, events.values, ~present, folds) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"missing": "default", "missing_value": float("nan")},
            "missing_value is nan; expected mean, median or a finite",
        ),
        ({"missing_value": "mean"}, "missing_value is 'mean', but missing learned has no such constant"),
        (
            {"missing": "attention", "object_width": 9},
            "object_width is 9; expected a multiple of the attention_heads, 4",
        ),
        ({"missing": "deep_sets", "object_width": 1}, "object_width is 1; expected at least 2"),
        ({"missing": "deep_sets", "like_objects": (("a", "b"), ("a", "c"))}, "expected groups of two or more objects"),
        ({"missing": "separate", "pattern_objects": ("a", "a")}, "expected different objects"),
        ({"missing": "separate", "pattern_events": 0}, "pattern_events is 0; expected at least 1"),
        (
            {"missing": "deep_sets", "inputs": InputSettings("log")},
            "inputs.default is 'log'; expected standardise or z_score, as missing is 'deep_sets'",
        ),
        (
            {"missing": "attention", "inputs": InputSettings("z_score", {"met": "angle"})},
            r"inputs.features is \['met'\]; expected none, as missing is 'attention'",
        ),
        (
            {"missing": "deep_sets", "embedding": "periodic"},
            "embedding is 'periodic'; expected none, as missing is 'deep_sets'",
        ),
        (
            {"missing": "default", "inputs": InputSettings(features={"njet": "category"})},
            "missing_value is 'mean'; expected median or a number, as njet is a category",
        ),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSettings(**change)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.missing=separate", "model.pattern_objects=[lepton3]"],
            "names 'lepton3', which is no object of features",
        ),
        (["model.missing=deep_sets", "model.like_objects=[[jet1, muon]]"], "model.like_objects names 'muon'"),
        (["model.missing=separate", "folds.scheme=standard"], "calibrated on the fold that they stop on"),
        (
            ["model.missing=deep_sets", "features={event: [met], lepton: [lepton1_pt]}"],
            "no two names in features differ",
        ),
        (
            ["model.missing=separate", "spectators=[lepton1_phi]", "training.decorrelation={lepton1_phi: 1}"],
            "key training.decorrelation: the networks of model.missing: separate learn hard labels",
        ),
        (["model.missing=separate", "training.pruning=magnitude"], "training.pruning: missing is 'separate'"),
        (["model.missing=separate", "training.snapshots=1"], "with model.missing: separate, whose members are several"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_analysis_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_analysis("hww", overrides)


MODES: list[dict[str, Any]] = [
    {"indicator": False},
    {"missing": "default", "missing_value": "median"},
    {"missing": "default", "missing_value": "median", "inputs": OTHERS, **BINS},
    {"missing": "deep_sets", "object_width": 5},
    {"missing": "attention", "object_width": 4, "attention_heads": 2, "pooling": "mean"},
    {"missing": "separate", "pattern_objects": ("lepton2",), "pattern_events": 60, "pattern_class_events": 20},
]


@pytest.mark.parametrize("change", MODES, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_alone_and_stacked_and_with_garbage_around_are_the_same_to_the_last_bit(
    change: dict[str, Any], precision: Any
) -> None:
    """Garbage: all of the events that a network does not use, and whatever stands in an absent value of the others."""
    training = dataclasses.replace(TRAINING, precision=precision, epochs=2)
    model = ModelSettings(hidden=(7, 5), **change)
    events, plans = make_events(), [dataclasses.replace(plan, settings=training) for plan in make_plans(model)]
    stacked = train(events, plans)
    outside = ~(plans[1].training | plans[1].validation)
    spoilt = TrainingEvents(
        SIGNATURE,
        np.where(events.present & ~outside[:, None], events.values, np.float32(np.nan)),
        events.present | outside[:, None],
        np.where(outside, 1 - events.labels, events.labels),
        np.where(outside, np.inf, events.weights),
        events.identity,
    )
    found = train(spoilt, [plans[1]])[0]
    assert found.patterns == stacked[1].patterns
    for left, right in zip(found.parts, stacked[1].parts, strict=True):
        assert_equal(left, right)
        assert left.temperature == right.temperature


@pytest.mark.parametrize("change", MODES[3:5], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_sets_can_be_recorded(change: dict[str, Any], precision: Any) -> None:
    model = ModelSettings(hidden=(7,), like_objects=(("event", "l2"),), **change)
    assert_recordable(model, dataclasses.replace(TRAINING, precision=precision))


@pytest.mark.parametrize("name", ["targets", "soft labels", "decorrelation"])
def test_separate_networks_learn_hard_labels_alone(name: str) -> None:
    events, plans = make_events(), make_plans(SEPARATE)
    if name == "targets":
        signature = dataclasses.replace(SIGNATURE, targets=(Target("mass", TargetSettings("true_mass")),))
        events = dataclasses.replace(events, signature=signature)
    elif name == "soft labels":
        events = dataclasses.replace(events, soft_labels=("probability", None))
    else:
        own = dataclasses.replace(TRAINING, decorrelation={"mass": 1.0})
        plans = [dataclasses.replace(plan, settings=own) for plan in plans]
    with pytest.raises(ValueError, match=f"missing is 'separate', with {name}; expected none"):
        separated(events, plans[0])


def test_steps_beside_the_main_job_say_what_separate_networks_can_not() -> None:
    config = load_analysis("hww", ["model.missing=separate"]).config
    with pytest.raises(UserError, match="no path leads from the network of one pattern"):
        check_method(config, "integrated_gradients")
    check_method(config, "permutation")
    member = train(make_events(), make_plans(SEPARATE)[:1])[0]
    with pytest.raises(ValueError, match="no path leads from one pattern to another"):
        integrated_gradients(member, np.zeros((1, 7)), np.ones((1, 7), bool), always=np.ones(7, bool), signal=1)
    with pytest.raises(ValueError, match="missing is 'separate'; expected another value"):
        with_values(ModelSettings(), TrainingSettings(), {"model.missing": "separate"})


@pytest.mark.parametrize("change", [{"snapshots": 1}, {"combination": "weighted"}], ids=str)
def test_separate_networks_have_no_snapshots_and_no_shares(change: dict[str, Any]) -> None:
    plan = dataclasses.replace(make_plans(SEPARATE)[0], settings=dataclasses.replace(TRAINING, **change))
    with pytest.raises(ValueError, match="expected none, and another combination than 'weighted'"):
        separated(make_events(), plan)
