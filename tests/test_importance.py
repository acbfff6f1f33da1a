"""What features are worth: against brute force, exact answers of linear networks, and real retraining."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from analysis import page
from analysis.importance import Judge, counts_to_keep, ranking, rows, text
from analysis.importance_plots import curve, ranked
from analysis.metrics import Sample, bootstrap_auc, bootstrap_counts, evaluate, log_loss, paired_replicas, roc_auc
from models import importance
from models.ensemble import Ensemble, predict
from models.events import TrainingEvents
from models.importance import groups, integrated_gradients, of_fold, out_of_fold, permuted, without
from models.members import MemberPlan
from models.preprocessing import Signature
from models.settings import FeatureInput, InputSettings, ModelSettings, TrainingSettings
from models.training import train
from tests.test_heads import told
from tests.test_training import SIGNATURE, make_events, make_plans

MODEL = ModelSettings(hidden=(16, 16), dropout=0.0)
TRAINING = TrainingSettings(epochs=8, batch_size=100, learning_rate=5e-3, patience=None)
FOLDS = np.minimum(np.arange(1500) % 6, 4)


INPUTS = InputSettings("standardise", {"pt1": "angle", "eta2": FeatureInput("category", 3, "embedding")})


def toy(count: int = 1500) -> TrainingEvents:
    """Events of positive weights: met, pt1 and pt2 tell something, eta2 nothing, and l2 is often absent."""
    return positive(make_events(count))


def positive(events: TrainingEvents) -> TrainingEvents:
    return dataclasses.replace(events, weights=np.abs(events.weights))


@pytest.fixture(scope="module")
def trained() -> tuple[TrainingEvents, list[MemberPlan], Ensemble]:
    events, plans = toy(), make_plans(members=2, model=MODEL, training=TRAINING)
    return events, plans, Ensemble(tuple(train(events, plans)))


def judge_of(events: TrainingEvents, scores: Any, replicas: int = 200) -> Judge:
    sample = Sample(scores, events.labels, events.weights, events.labels, events.identity)
    return Judge(sample, signal=1, replicas=replicas, seed=2)


def test_groups_are_features_and_objects() -> None:
    found = groups(Signature(("a", "b", "c"), ("x", "y", "x"), ("s", "t")))
    assert [(g.kind, g.name, g.columns) for g in found] == [
        ("feature", "a", (0,)), ("feature", "b", (1,)), ("feature", "c", (2,)),
        ("object", "x", (0, 2)), ("object", "y", (1,)),
    ]  # fmt: skip


class TestPermutation:
    def test_values_and_presence_go_together_within_a_fold(self) -> None:
        events = make_events()
        own: dict[str, Any] = {"identity": events.identity, "folds": FOLDS}
        values, present = permuted(events.values, events.present, (2, 3), key=(1, 0), **own)
        assert np.array_equal(values[:, :2], events.values[:, :2])
        assert np.array_equal(present[:, :2], events.present[:, :2])
        for fold in range(5):
            mine = fold == FOLDS
            before, after = (np.column_stack([v[mine][:, 2:], p[mine][:, 2:]]) for v, p in (
                (events.values, events.present), (values, present)
            ))  # fmt: skip
            assert not np.array_equal(before, after)
            assert np.array_equal(before[np.lexsort(before.T)], after[np.lexsort(after.T)])
        again = permuted(events.values, events.present, (2, 3), key=(1, 0), **own)
        assert np.array_equal(again[0], values)
        for other in ((1, 1), (2, 0)):
            assert not np.array_equal(permuted(events.values, events.present, (2, 3), key=other, **own)[0], values)

    def test_it_follows_from_the_identities_alone(self) -> None:
        """An event gets the same partner in whatever order the events stand."""
        events = make_events(300)
        order = np.random.default_rng(1).permutation(300)
        folds = np.zeros(300, dtype=np.int64)
        first = permuted(events.values, events.present, (0,), identity=events.identity, folds=folds, key=(1,))[0]
        mixed = permuted(
            events.values[order], events.present[order], (0,), identity=events.identity[order], folds=folds, key=(1,)
        )[0]
        partner = {value: i for i, value in enumerate(events.values[:, 0].tolist())}
        got, mixed_got = ([partner[v] for v in x[:, 0].tolist()] for x in (first, mixed))
        assert sorted(got) == sorted(mixed_got) == list(range(300))

    def test_what_tells_nothing_is_worth_nothing(self, trained: Any) -> None:
        """And what tells most is worth most; the drop is that of scikit-learn's kind: score before less score after."""
        events, _, ensemble = trained
        scores = out_of_fold(ensemble, events.values, events.present, FOLDS)
        judge = judge_of(events, scores)
        drops = {}
        for group in groups(SIGNATURE):
            changed = [
                out_of_fold(
                    ensemble,
                    *permuted(
                        events.values, events.present, group.columns, identity=events.identity, folds=FOLDS, key=(r,)
                    ),
                    FOLDS,
                )
                for r in range(3)
            ]
            drops[group.kind, group.name] = judge.drop(changed)
            before = roc_auc(scores[:, 1], events.labels == 1, events.weights)
            after = [roc_auc(own[:, 1], events.labels == 1, events.weights) for own in changed]
            found = drops[group.kind, group.name]["auc"]
            assert found["value"] == pytest.approx(before - np.mean(after), abs=1e-12)
            assert found["spread"] == pytest.approx(np.std(after, ddof=1), abs=1e-12)
            assert found["low"] < found["value"] < found["high"]
        worth = {name: drop["auc"]["value"] for (kind, name), drop in drops.items() if kind == "feature"}
        assert max(worth, key=worth.__getitem__) == "met"
        assert abs(worth["eta2"]) < 0.03 < worth["met"]
        assert drops["object", "l2"]["log_loss"]["value"] > 0
        assert drops["object", "event"]["auc"]["value"] >= worth["met"]

    def test_scores_out_of_fold_are_those_of_the_networks_that_left_it_out(self, trained: Any) -> None:
        events, _, ensemble = trained
        scores = out_of_fold(ensemble, events.values, events.present, FOLDS)
        every = predict(ensemble, events.values, events.present)
        for fold in range(5):
            own = every[ensemble.folds == fold][:, fold == FOLDS]
            assert scores[fold == FOLDS] == pytest.approx(own.mean(axis=0), abs=1e-7)


def test_paired_replicas_are_those_of_the_evaluation() -> None:
    rng = np.random.default_rng(4)
    labels, weights = rng.integers(0, 3, 400), rng.normal(1, 0.4, 400)
    identity = rng.integers(0, 2**63, 400).astype(np.uint64)
    scores = [rng.dirichlet([1, 1, 1], 400) for _ in range(2)]
    samples = [Sample(own, labels, weights, labels, identity) for own in scores]
    areas, losses = paired_replicas(samples, 1, bootstrap_counts(identity, labels, 1000, 3))
    for own, area, loss in zip(samples, areas, losses, strict=True):
        expected = bootstrap_auc(
            own.probabilities[:, 1], labels == 1, weights, bootstrap_counts(identity, labels, 1000, 3)
        )
        assert area == pytest.approx(expected, abs=1e-12)
        found = evaluate(own, ("a", "b", "c"), "b", 1000, 3)["log_loss"]
        assert np.quantile(loss, [0.16, 0.84]) == pytest.approx([found["low"], found["high"]], abs=1e-12)
    judge = Judge(samples[0], 1, 1000, 3)
    merit = judge.merit(scores[1])
    assert merit["log_loss"]["value"] == pytest.approx(log_loss(scores[1], labels, weights))
    same = judge.drop([scores[0]])
    assert same["auc"] == {"value": 0.0, "low": 0.0, "high": 0.0, "spread": None}


class TestIntegratedGradients:
    @pytest.mark.parametrize(
        ("model", "loss"),
        [
            (MODEL, "cross_entropy"),
            (ModelSettings(type="tabm", hidden=(9, 7), submodels=3, normalisation="batch"), "binary_cross_entropy"),
            (ModelSettings(hidden=(9, 9), connections="residual", normalisation="layer"), "focal"),
            (ModelSettings(hidden=(9,), embedding="piecewise_linear", inputs=INPUTS), "cross_entropy"),
            (ModelSettings(hidden=(9,), missing="default", missing_value="median"), "cross_entropy"),
            (ModelSettings(hidden=(9,), missing="attention", object_width=8, attention_heads=2), "cross_entropy"),
        ],
    )
    def test_it_is_complete(self, model: ModelSettings, loss: Any) -> None:
        """Contributions sum up to the change of the log-odds (proposition 1 of the paper)."""
        events = toy() if model.inputs == MODEL.inputs else positive(told(1500))  # with a target too
        training = TrainingSettings(epochs=2, batch_size=100, loss=loss)
        member = train(events, [make_plans(model=model, training=training)[0]])[0]
        always = events.present.all(axis=0)
        smooth = model.embedding == "none"  # a gradient that jumps needs more points
        nodes, gap = (48, 1e-4) if smooth else (480, 1e-2)
        found = integrated_gradients(member, events.values, events.present, always=always, signal=1, nodes=nodes)
        assert found.gap < gap
        p = predict(Ensemble((member,)), events.values, events.present)[0, :, 1].astype(np.float64)
        odds, precise = np.log(p / (1 - p)), np.minimum(p, 1 - p) > 1e-3  # p is float32
        assert np.ptp((odds - found.change)[precise]) < 1e-3  # all but the baseline's, which is one number
        assert np.abs(found.features).max() > 0.1
        assert not found.features[~events.present].any()
        assert not found.presence[:, 0].any()  # always there
        assert np.array_equal(found.presence[:, 1] != 0, events.present[:, 2])

    def test_of_a_linear_network_it_is_weight_times_distance(self) -> None:
        events = toy()
        member = train(events, [make_plans(model=ModelSettings(hidden=()), training=TRAINING)[0]])[0]
        always = np.array([True, True, False, False])
        found = integrated_gradients(member, events.values, events.present, always=always, signal=1)
        slopes = member.parameters["weight0"][:, 1] - member.parameters["weight0"][:, 0]  # (F + O,)
        shift, scale = (member.transform.tables[f"standardise.{name}"][0] for name in ("shift", "scale"))
        z = (events.values.astype(np.float64) - shift) / scale
        z = z / np.sqrt(1 + (z / 3) ** 2)
        base = np.where(always, 0.0, member.parameters["absent"][0])
        expected = np.where(events.present, z - base, 0.0) * slopes[:4]
        assert found.features == pytest.approx(expected, abs=1e-5)
        assert found.presence[:, 1] == pytest.approx(events.present[:, 2] * slopes[5], abs=1e-6)
        l2 = groups(SIGNATURE)[-1]
        assert found.of(l2, SIGNATURE) == pytest.approx(found.features[:, 2:].sum(axis=1) + found.presence[:, 1])

    def test_the_mean_contribution_counts_classes_alike(self) -> None:
        events = toy(300)
        judge = judge_of(events, np.full((300, 2), 0.5))
        sizes = np.random.default_rng(1).normal(size=300)
        own = [
            np.average(np.abs(sizes)[events.labels == c], weights=events.weights[events.labels == c]) for c in (0, 1)
        ]
        found = judge.contribution(sizes)
        assert found["value"] == pytest.approx(np.mean(own))
        assert found["low"] < found["value"] < found["high"]


class TestLeaveOneOut:
    def test_a_feature_that_counts_as_absent_is_as_good_as_no_column(self) -> None:
        """A logistic regression, trained to its end: the same scores as one of events without the column."""
        events = toy()
        training = TrainingSettings(
            epochs=150, batch_size="all", learning_rate=0.2, schedule="cosine", weight_decay=0.0, patience=None
        )
        model = ModelSettings(hidden=(), dropout=0.0)
        plan = make_plans(model=model, training=training)[0]
        plans = [dataclasses.replace(plan, validation=plan.training)]  # so that its best epoch is the last
        left = train(events, without(plans, SIGNATURE, [3]))[0]
        small = Signature(SIGNATURE.features[:3], SIGNATURE.feature_objects[:3], SIGNATURE.classes)
        fewer = dataclasses.replace(
            events, signature=small, values=events.values[:, :3].copy(), present=events.present[:, :3].copy()
        )
        real = train(fewer, plans)[0]
        scores = predict(Ensemble((left,)), events.values, events.present)
        assert scores == pytest.approx(predict(Ensemble((real,)), fewer.values, fewer.present), abs=5e-3)
        assert min(left.history.validation_loss) == pytest.approx(min(real.history.validation_loss), abs=1e-4)

    def test_of_a_network_too_up_to_the_chance_of_its_start(self) -> None:
        events = toy()
        plans = make_plans(model=MODEL, training=TRAINING)
        keep = [1, 2, 3]
        small = Signature(SIGNATURE.features[1:], SIGNATURE.feature_objects[1:], SIGNATURE.classes)
        fewer = dataclasses.replace(
            events, signature=small, values=events.values[:, keep].copy(), present=events.present[:, keep].copy()
        )
        areas = []
        for own, networks in ((events, train(events, without(plans, SIGNATURE, [0]))), (fewer, train(fewer, plans))):
            scores = out_of_fold(Ensemble(tuple(networks)), own.values, own.present, FOLDS)
            areas.append(roc_auc(scores[:, 1], events.labels == 1, events.weights))
        whole = out_of_fold(Ensemble(tuple(train(events, plans))), events.values, events.present, FOLDS)
        assert areas[0] == pytest.approx(areas[1], abs=0.01)
        assert roc_auc(whole[:, 1], events.labels == 1, events.weights) > max(areas) + 0.05

    def test_an_object_without_features_is_absent(self) -> None:
        """Its presence input too, so that nothing is told by whether it is there."""
        events, plans = toy(), make_plans(model=MODEL, training=TRAINING)[:1]
        member = train(events, without(plans, SIGNATURE, (2, 3)))[0]
        other = events.present.copy()
        other[:, 2:] = ~other[:, 2:]
        scores = [predict(Ensemble((member,)), np.nan_to_num(events.values), p) for p in (events.present, other)]
        assert np.array_equal(scores[0], scores[1])


class TestRanking:
    @pytest.mark.parametrize("gradients", [False, True])
    def test_it_is_nested(self, trained: Any, gradients: bool) -> None:
        """Garbage in all events outside a network's training and stopping folds changes nothing."""
        events, plans, ensemble = trained
        plan = plans[2]
        own = of_fold(ensemble, plan.fold)
        outside = ~(plan.training | plan.validation)
        spoilt = dataclasses.replace(
            events,
            values=np.where(outside[:, np.newaxis], np.float32(np.nan), events.values),
            labels=np.where(outside, 1 - events.labels, events.labels),
            weights=np.where(outside, np.inf, events.weights),
        )
        settings: dict[str, Any] = {"signal": 1, "gradients": gradients, "repeats": 2, "seed": 5}
        found = importance.ranked(own, events, plan.validation, **settings)
        assert found == importance.ranked(own, spoilt, plan.validation, **settings)
        assert sorted(found) == [0, 1, 2, 3]
        assert found[0] == 0
        mean = own.members[0].transform.tables["standardise.shift"][0]
        level = np.where([True, False, False, False], mean, events.values)
        inside = dataclasses.replace(events, values=level.astype(np.float32))
        assert importance.ranked(own, inside, plan.validation, **settings)[0] != 0

    def test_order(self) -> None:
        entries = [{"name": n, "auc": {"value": v}} for n, v in (("b", 0.1), ("a", 0.1), ("c", 0.3))]
        assert [entry["name"] for entry in ranking(entries)] == ["c", "a", "b"]

    def test_numbers_of_features(self) -> None:
        assert counts_to_keep(26) == [26, 17, 11, 7, 4, 2, 1]
        assert counts_to_keep(1) == [1]
        assert counts_to_keep(5, [2, 3, 3]) == [5, 3, 2]
        with pytest.raises(ValueError, match="7 features can't be kept: there are 5"):
            counts_to_keep(5, [7])


def test_page_and_plots() -> None:
    found = {"value": 0.12345, "low": 0.1, "high": 0.2}
    entries = [{"name": "<b>", "auc": found, "log_loss": {**found, "low": None}}]
    assert text(None) == text({"value": None}) == "–"
    headings, cells = rows(entries)
    table = page.Table("Features", headings, cells)
    assert "<b>  0.1235 [0.1000, 0.2000]" in page.as_text([table]).replace("\n", " ")
    plot = ranked("features", "Features", "AUC lost", [{"name": "<b>", **found}])
    losses = ({"value": 0.01, "low": 0.0, "high": 0.02}, {"value": None, "low": None, "high": None})
    points = [{"x": n, "auc": found, "auc_lost": lost} for n, lost in zip((2, 1), losses, strict=True)]
    line = curve("curve", "Cost", "features", "What it costs.", points)
    assert plot.png().startswith(b"\x89PNG")
    html = page.render("A & B", ["text"], [table], [page.Picture(line.png(), line.title, line.caption)])
    assert "<b>" not in html
    assert "A &amp; B" in html
    assert html.count("data:image/png;base64,") == 1
