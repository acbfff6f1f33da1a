"""Drawings of networks and plots of trainings."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from analysis import drawing
from analysis.plots import Plot
from analysis.training_plots import layers_over_epochs, spread_plot
from models.networks import Classifier
from models.settings import ModelSettings
from models.training import train
from tests.test_training import SIGNATURE, make_events, make_plans
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
    assert width == 2 * 360  # of which a page shows two in each of its own
    plot.figure.draw_without_rendering()  # the image was drawn at another density
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
