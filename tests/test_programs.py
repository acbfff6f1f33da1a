"""What a main job leaves behind, file by file, opened by programs that share no code with it."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pyhf
import pytest

from tests.programs import read_datacard, read_pdf, run_browser, run_root
from tests.toy import Finished


@pytest.fixture(scope="module")
def results(finished: Finished) -> Path:
    return finished.law.results / "toy"


def test_onnxruntime_opens_the_networks(results: Path) -> None:
    session = onnxruntime.InferenceSession(results / "ensemble.onnx", providers=["CPUExecutionProvider"])
    assert {"features", "sample", "event"} == {each.name for each in session.get_inputs()}


def test_root_opens_every_file(results: Path, tmp_path: Path) -> None:
    """All scores, entry by entry, and all histograms."""
    friends = sorted((results / "scores").glob("*.root"))
    assert len(friends) == 4
    for path in (*friends, results / "histograms.root"):
        (tmp_path / path.name).symlink_to(path.resolve())
    code = "".join(
        f'{{ TFile file("{path.name}"); ROOT::RDataFrame frame("scores", &file);\n'
        'std::printf("%llu ", *frame.Filter("score_signal_ensemble >= 0 || !selected").Count()); }\n'
        for path in friends
    )
    code += 'TFile file("histograms.root"); std::printf("%.9g", file.Get<TH1D>("fit/score/signal")->Integral());'
    *counts, total = run_root(code, tmp_path).split()
    assert counts == ["500"] * 4
    content = json.loads((results / "histograms.json").read_text())
    assert float(total) == pytest.approx(sum(content["histograms"]["fit/score"]["signal"]["values"]))


@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver is deprecated:DeprecationWarning")
def test_the_datacard_is_the_workspace(results: Path) -> None:
    model = pyhf.Workspace(json.loads((results / "workspace.json").read_text())).model()
    added = [given for name, *given in read_datacard(results) if name == "add_process"]
    found = {process: histogram["values"] for histogram, process, _ in added}
    assert found.keys() == set(model.config.samples)
    expected = model.expected_actualdata(model.config.suggested_init())
    assert [sum(values) for values in zip(*found.values(), strict=True)] == pytest.approx(expected.tolist())


def test_every_plot_is_a_document(results: Path) -> None:
    plots = json.loads((results / "plots" / "index.json").read_text())
    assert len(plots) > 10
    for plot in plots:
        assert read_pdf(results / "plots" / f"{plot['name']}.pdf").strip(), plot["name"]


def test_a_browser_shows_every_picture(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text((results / "report.html").read_text())
    document, complaints = run_browser(page)
    assert complaints == []
    assert document.count("<img") >= len(json.loads((results / "plots" / "index.json").read_text()))
