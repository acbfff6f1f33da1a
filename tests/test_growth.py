"""The AUC against training events and width, beside the main job; drawings and plots of trainings."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from analysis import drawing
from analysis.errors import UserError
from analysis.growth import Point, curves, in_share, judge, points, widened
from analysis.plots import Plot
from analysis.pool import Pool, load_pool
from analysis.splitting import event_identity
from analysis.training_plots import layers_over_epochs, spread_plot
from models.ensemble import Ensemble, load_member, score
from models.networks import Classifier
from models.settings import ModelSettings
from models.training import train
from tests.test_training import SIGNATURE, make_events, make_plans
from tests.toy import Law, ran
from workflow.tasks.growth import LearningCurve
from workflow.tasks.plots import layers_of

MODELS = {
    "dense": ModelSettings(hidden=(6, 5, 5)),
    "logistic": ModelSettings(hidden=()),
    "tabm": ModelSettings(type="tabm", hidden=(6, 6), submodels=3, normalisation="batch"),
    "residual": ModelSettings(hidden=(6, 6, 6), connections="residual", normalisation="layer"),
    "connected": ModelSettings(type="tabm", hidden=(6, 5, 4), connections="densely_connected", submodels=2),
}


def image(plot: Plot) -> Any:
    assert json.loads(json.dumps(plot.numbers, allow_nan=False)) == plot.numbers
    return Image.open(io.BytesIO(plot.png()))


class TestShares:
    IDENTITY = event_identity("toy", [np.arange(20_000, dtype=np.int64)])

    def test_each_share_holds_the_smaller_ones(self) -> None:
        chosen = [in_share(self.IDENTITY, share) for share in (0.125, 0.25, 0.5, 1.0)]
        assert [c.mean() for c in chosen] == pytest.approx([0.125, 0.25, 0.5, 1.0], abs=0.01)
        assert chosen[-1].all()
        for smaller, larger in pairwise(chosen):
            assert not (smaller & ~larger).any()

    def test_points_and_widths(self) -> None:
        assert points((1.0, 0.5), (2.0, 1.0)) == (Point(share=0.5), Point(), Point(width=2.0))
        assert widened((128, 3), 0.25) == (32, 2)

    def test_the_auc_is_that_of_scikit_learn(self) -> None:
        random = np.random.default_rng(1)
        labels = random.integers(0, 3, 2000)
        scores = (random.random(2000) + 0.3 * (labels == 1)).clip(0, 1.2).astype(np.float32) / 2
        weights = random.random(2000)
        pool = Pool(
            ("x",), ("o",), (), ("a", "b", "c"), np.zeros((2000, 1), np.float32), np.ones((2000, 1), np.bool_),
            labels, weights, self.IDENTITY[:2000], np.zeros(2000, np.int16), [],
        )  # fmt: skip
        found = judge(scores, pool, "b", 200, 1)
        for kind, own in (("weighted", weights), ("unweighted", None)):
            assert found[kind]["value"] == pytest.approx(roc_auc_score(labels == 1, scores, sample_weight=own))
            assert found[kind]["low"] < found[kind]["value"] < found[kind]["high"]


@pytest.mark.parametrize("name", MODELS)
def test_a_drawing_tells_all_parameters(name: str) -> None:
    model = MODELS[name]
    member = train(make_events(300), make_plans(300, model=model)[:1])[0]
    layers = layers_of(member)
    plot = drawing.network(layers)
    classifier = Classifier(model, SIGNATURE)
    assert plot.numbers["total"] == classifier.trained == sum(layer["count"] for layer in layers)
    assert [layer["name"] for layer in layers][1:-1] == [f"layer {i + 1}" for i in range(len(model.hidden))]
    named = [parameter for layer in classifier.layers for parameter in layer.parameters]
    assert sorted(named) == sorted(parameter.name for parameter in classifier.parameters)
    width, _ = image(plot).size
    assert width == 360
    texts = [text.get_text() for text in plot.figure.axes[0].texts]
    room = plot.figure.bbox
    for text in plot.figure.axes[0].texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= room.x1, text.get_text()
        assert 0 <= box.y0 < box.y1 <= room.y1, text.get_text()
    assert any(text.startswith("inputs: 6") for text in texts)
    assert ("+" in "".join(texts)) == (name == "residual")
    assert ("× 3" in texts) == (name == "tabm")


def test_layers_over_epochs() -> None:
    members = train(make_events(400), make_plans(400)[:2])
    histories = [
        {"fold": m.fold, "member": m.index, "epoch": [1, 2, 3, 4], "diagnostics": m.history.diagnostics}
        for m in members
    ]
    names = [layer.name for layer in Classifier(members[0].model, SIGNATURE).layers]
    plot = layers_over_epochs(histories, names)
    assert plot is not None
    image(plot)
    assert list(plot.numbers["gradient_norm"]) == ["inputs", "layer 1", "layer 2", "output"]
    assert list(plot.numbers["dead"]) == ["layer 1", "layer 2"]
    for name, own in plot.numbers["gradient_norm"].items():
        assert own == [list(m.history.diagnostics["gradient_norm"][name]) for m in members]
    assert layers_over_epochs([{**h, "diagnostics": {}} for h in histories], names) is None


def test_the_spread_is_drawn_with_its_quantiles() -> None:
    random = np.random.default_rng(1)
    score, is_signal = random.random(4000), random.random(4000) < 0.3
    spread = np.where(score < 0.5, 0.02, 0.08) * random.random(4000)
    plot = spread_plot(score, spread, is_signal, np.ones(4000), networks=5, bins=10)
    image(plot)
    inside = (score >= 0.1) & (score < 0.2)
    assert plot.numbers["by_score"][1] == pytest.approx(np.quantile(spread[inside], [0.16, 0.5, 0.84]))
    assert sum(plot.numbers["signal"]) == pytest.approx(1)
    assert "never a nuisance" in plot.caption
    few = spread_plot(score[:3], np.zeros(3), is_signal[:3], np.ones(3), networks=1)
    image(few)


def test_curves() -> None:
    auc = {kind: {"value": 0.8, "low": 0.79, "high": 0.82} for kind in ("weighted", "unweighted")}
    numbers = {"auc": auc, "events": 1500.0, "parameters": 100}
    found = dict.fromkeys(points((0.5, 1.0), (0.5, 1.0, 2.0)), numbers)
    by_events, by_width = curves(found, (16, 8))
    assert image(by_events).size == image(by_width).size
    assert [point["share"] for point in by_events.numbers["points"]] == [0.5, 1.0]
    assert [point["hidden"] for point in by_width.numbers["points"]] == [[8, 4], [16, 8], [32, 16]]
    assert len(curves(found, ())) == 1
    undefined = {kind: {"value": None, "low": None, "high": None, "note": "no"} for kind in auc}
    image(curves({point: {**numbers, "auc": undefined} for point in found}, (16,))[0])


def test_a_report_shows_a_learning_curve_that_was_asked_for(law: Law) -> None:
    """The main job by itself stays as it is. The point of all events and widths has the main job's networks."""
    chosen = ("--analysis", law.analysis, "--LearningCurve-shares", "0.5,1", "--LearningCurve-widths", "1,2")
    before = (law.results / "toy").resolve()
    done = law("LearningCurve", "--analysis", law.analysis, "--shares", "0.5,1", "--widths", "1,2")
    assert ran(done) == {"TrainCurve": 3}
    law("Report", "--analysis", law.analysis)  # which would show other points
    assert (law.results / "toy").resolve() == before
    assert "plot-auc_events" not in (before / "report.html").read_text()
    assert ran(law("Report", *chosen)) == {}
    page = (law.results / "toy" / "report.html").read_text()
    assert "plot-auc_events" in page
    assert "plot-auc_width" in page
    found = json.loads((law.results / "toy" / "learning_curve.json").read_text())
    assert [(p["share"], p["width"]) for p in found["points"]] == [(0.5, 1), (1, 1), (1, 2)]
    half, whole, _ = (p["events"] for p in found["points"])
    assert half < 0.7 * whole

    pool = load_pool(next((law.store / "PrepareFolds").glob("*/*/pool")))
    networks = [load_member(path) for path in (law.store / "TrainFolds").rglob("network.safetensors")]
    routed, _, _ = score(Ensemble(tuple(networks)), pool.values, pool.present, np.asarray(pool.folds, dtype=np.int64))
    scores = [np.load(path) for path in (law.store / "TrainCurve").rglob("scores.npy")]
    assert [np.array_equal(own, routed) for own in scores].count(True) == 1


@pytest.mark.parametrize(("shares", "widths"), [((0.0, 1.0), (1.0,)), ((1.5,), (1.0,)), ((1.0,), (-1.0,))])
def test_points_that_make_no_sense(shares: tuple[float, ...], widths: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"^--(shares|widths): .*; expected numbers above 0 and up to"):
        LearningCurve(analysis="hww", shares=shares, widths=widths).points()
