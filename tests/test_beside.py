"""RankFeatures, PruneFeatures and PruneNetworks: pages beside the main job, which they leave as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.errors import UserError
from tests.toy import Law
from workflow.store import results_folder
from workflow.tasks import PlotResults, PruneFeatures, PruneNetworks, RankFeatures, TrainFolds
from workflow.tasks.rank import METHODS


def made(task: Any, name: str) -> dict[str, Any]:
    """Make what a step makes, look where it stands, and read one of its files."""
    task.run()
    assert task.present()
    assert (results_folder() / f"toy-{task.published}").resolve() == task.folder.resolve()
    page = task.path("page.html").read_text()
    assert "data:image/png;base64," in page
    assert "no held-out test event" in page
    found: dict[str, Any] = json.loads(task.path(name).read_text())
    return found


def summary(law: Law) -> dict[str, Any]:
    """That of the main job."""
    found: dict[str, Any] = json.loads((law.results / "toy" / "summary.json").read_text())
    return found


@pytest.mark.parametrize("method", METHODS)
def test_features_are_ranked_on_the_events_of_the_report(method: str, here: Law) -> None:
    task = RankFeatures(analysis=here.analysis, method=method, repeats=2)
    found = made(task, "ranking.json")
    merit = summary(here)["metrics"]["out_of_fold"]
    expected = merit["auc_per_class"]["signal"]["weighted"]
    assert found["out_of_fold"]["auc"] == pytest.approx(expected, abs=1e-6)
    assert found["out_of_fold"]["log_loss"] == pytest.approx(merit["log_loss"], abs=1e-6)
    key = "contribution" if method == "integrated_gradients" else "auc"
    for kind, names in (("features", {"pt1", "pt2", "mass"}), ("objects", {"first", "second", "both"})):
        assert {entry["name"] for entry in found[kind]} == names
        worth = [entry[key]["value"] for entry in found[kind]]
        assert worth == sorted(worth, reverse=True)
        assert all(entry[key]["low"] <= entry[key]["value"] <= entry[key]["high"] for entry in found[kind])
    assert found.get("largest_gap", 0) < 1e-3
    table = task.path("table.txt").read_text()
    assert all(name in table for name in ("pt1", "second", "Features"))
    assert (task.path("plots") / "features.png").is_file()


def test_fewer_features_cost_more(here: Law) -> None:
    task = PruneFeatures(analysis=here.analysis)
    found = made(task, "pruning.json")
    assert [point["features"] for point in found["points"]] == [3, 2, 1]
    whole = found["points"][0]
    assert whole["auc"] == pytest.approx(summary(here)["metrics"]["out_of_fold"]["auc_per_class"]["signal"]["weighted"])
    assert whole["auc_lost"]["value"] == 0
    assert [sorted(order) for order in found["orders"]] == [["mass", "pt1", "pt2"]] * 3
    with pytest.raises(UserError, match="--kept: 7 features can't be kept"):
        PruneFeatures(analysis=here.analysis, kept=(7,)).run()


def test_smaller_networks_are_those_that_the_training_prunes(here: Law) -> None:
    """To the last bit; and they are smaller, in the file too."""
    import onnxruntime

    from models.ensemble import Ensemble, combine, load_member, predict

    task = PruneNetworks(analysis=here.analysis, kind="structured", shares=(0.5,), fine_tuning=1)
    found = made(task, "pruning.json")
    before, after = found["points"]
    assert (before["hidden"], after["hidden"]) == ([8], [4])
    assert before["parameters"] == 3 * (3 + 6 * 8 + 8 + 8 * 2 + 2)
    assert after["parameters"] == 3 * (3 + 6 * 4 + 4 + 4 * 2 + 2)
    assert all(point["non_zero"] <= point["parameters"] for point in found["points"])
    assert len(json.loads(task.path("speeds.json").read_text())["events_per_second"]) == 2
    changes = ("training.pruning=structured", "training.pruning_share=0.5", "training.fine_tuning=1")
    trained = TrainFolds(analysis=here.analysis, set=changes)
    networks = []
    for branch in trained.get_branch_tasks().values():
        branch.run()
        networks.append(load_member(branch.path("network.safetensors")))
    assert all(network.model.hidden == (4,) for network in networks)
    session = onnxruntime.InferenceSession(str(task.path("onnx") / "share_0.5.onnx"))
    values = np.random.default_rng(1).normal(20, 10, (50, 3)).astype(np.float32)
    fold = np.arange(50, dtype=np.int64) % 3
    ensemble = Ensemble(tuple(networks))
    routed, mean = session.run(["routed", "ensemble"], {"features": values, "fold": fold})
    own = combine(predict(ensemble, values, np.ones((50, 3), dtype=np.bool_)), ensemble.folds, fold)
    assert routed == pytest.approx(own[0], abs=1e-5)
    assert mean == pytest.approx(own[1], abs=1e-5)


def test_mistakes_are_told(here: Law) -> None:
    with pytest.raises(UserError, match="begins with networks that are not pruned"):
        PruneNetworks(analysis=here.analysis, set=("training.pruning=magnitude",)).requires()
    with pytest.raises(UserError, match=r"--shares, --rounds or --fine-tuning: pruning_share is 1\.5"):
        _ = PruneNetworks(analysis=here.analysis, shares=(1.5,)).settings
    with pytest.raises(UserError, match=r"keys model and training.pruning: .* not \[1\] of \[8\]"):
        _ = TrainFolds(
            analysis=here.analysis, set=("training.pruning=structured", "training.pruning_share=0.9"), branch=0
        ).settings


def test_plots_are_shown_by_their_paths(here: Law, capsys: pytest.CaptureFixture[str]) -> None:
    PlotResults(analysis=here.analysis, show=True).conclude()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 10
    for line in lines:
        path, _, title = line.partition("  ")
        assert path.endswith(".pdf")
        assert Path(path).read_bytes().startswith(b"%PDF")
        assert title
