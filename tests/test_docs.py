"""The code in the documentation does what the text says: it is run on a tiny made-up result."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import awkward as ak
import jsonschema
import numpy as np
import numpy.typing as npt
import pytest
import uproot
import yaml

from analysis.config import load_analysis
from analysis.events import read
from analysis.features import compute
from analysis.friends import Scores, write_friend
from analysis.histograms import Histogram, write_histograms
from analysis.likelihood import Channel, Likelihood
from analysis.sources import Source
from analysis.splitting import event_identity, fold_of, is_test, key_of, purpose_key
from models.buckets import Buckets
from models.ensemble import Ensemble, predict, score
from models.export import export_onnx
from models.members import History, TrainedMember
from models.networks import Classifier
from models.preprocessing import Signature
from models.settings import ModelSettings, TrainingSettings
from models.transforms import Transform
from tests.programs import run_cpp, run_root
from workflow.costs import Cost, account

ROOT = Path(__file__).resolve().parent.parent
COUNT = 400
SCHEMA = json.loads((ROOT / "docs" / "summary.schema.json").read_text())


def blocks(page: str, language: str = "python") -> list[str]:
    """Code of a page, block by block."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def block(page: str, text: str, language: str = "python") -> str:
    """The one block of a page that holds a text."""
    found = [code for code in blocks(page, language) if text in code]
    assert len(found) == 1, f"{page}: {len(found)} blocks hold {text!r}"
    return found[0]


def block_of_cpp(text: str) -> str:
    """The one block of C++ of docs/outputs.md that holds a text."""
    return block("docs/outputs.md", text, "cpp")


def run(code: str, **names: Any) -> dict[str, Any]:
    """Execute a block with some names set, and return all names afterwards."""
    exec(compile(code, "documentation", "exec"), names)
    return names


def input_file(path: Path) -> dict[str, npt.NDArray[Any]]:
    """A file like higgsml.root with random values in every branch that the analysis reads."""
    random = np.random.default_rng(5)
    physics = (ROOT / "analysis" / "examples" / "higgsml" / "physics.py").read_text()
    columns: dict[str, npt.NDArray[Any]] = {
        name: random.uniform(1, 100, COUNT) for name in sorted(set(re.findall(r"\b(?:DER|PRI)_\w+", physics)))
    }
    for name in load_analysis("higgsml").config.data.sentinels:
        columns[name][random.random(COUNT) < 0.3] = -999
    columns["EventId"] = np.arange(100_000, 100_000 + COUNT, dtype=np.int32)
    columns["Label"] = random.integers(0, 2, COUNT).astype(np.int32)
    columns["Weight"] = random.uniform(0.5, 2, COUNT)
    with uproot.recreate(path) as file:
        file.mktree("events", {name: column.dtype for name, column in columns.items()}).extend(columns)
    return columns


def untrained(signature: Signature, fold: int) -> TrainedMember:
    """A network with random parameters."""
    model = ModelSettings(hidden=(5,))
    classifier = Classifier(model, signature)
    count = len(signature.features)
    return TrainedMember(
        fold=fold,
        index=0,
        seed=1,
        signature=signature,
        model=model,
        training=TrainingSettings(),
        transform=Transform(
            {
                "seen": np.ones((1, count), np.float32),
                "standardise.shift": np.full((1, count), 50, np.float32),
                "standardise.scale": np.full((1, count), 30, np.float32),
            }
        ),
        parameters={n: v[0].numpy().copy() for n, v in classifier.views(classifier.initial([fold])).items()},
        history=History((0.7,), (0.8,), (1e-3,)),
        precision="fp32",
        best_epoch=0,
        events=(10, 10),
    )


class Result:
    """A small result of `higgsml` in the layout of results/<name>/, and the arrays that it was made from."""

    def __init__(self, folder: Path) -> None:
        self.inputs, self.results = folder / "inputs", folder / "results"
        for path in (self.inputs, self.results / "scores"):
            path.mkdir(parents=True)
        self.columns = input_file(self.inputs / "higgsml.root")

        analysis = load_analysis("higgsml")
        config = analysis.config
        signature = Signature(config.feature_names, config.feature_objects, config.class_names)
        networks = Ensemble(tuple(untrained(signature, fold) for fold in range(5)))
        metadata = {"analysis": "higgsml", "signal": "higgs", "fingerprint": "abc"}
        buckets = Buckets(("EventId",), {"challenge": key_of("challenge")}, purpose_key("fold", "0"), 5)
        export_onnx(networks, self.results / "ensemble.onnx", metadata, buckets)

        source = Source(str(self.inputs / "higgsml.root"), "events", "flat", 0, COUNT, dict(config.data.sentinels))
        features = list(compute(signature.features, vars(analysis.physics), read(source), source).values())
        values = np.stack([np.ma.filled(f, 0) for f in features], axis=1)  # (N, F)
        present = np.stack([~np.ma.getmaskarray(f) for f in features], axis=1)  # (N, F)
        identity = event_identity("challenge", [self.columns["EventId"].astype(np.int64)])
        self.fold, self.test = fold_of(identity, 5, "0"), is_test(identity, 0.25, "eventfold")
        self.values, self.present, self.networks = values, present, networks
        self.routed, self.ensemble, self.spread = score(networks, values, present, self.fold.astype(np.int64))
        entries = np.arange(COUNT, dtype=np.int64)
        parts = [Scores(entries, self.fold, self.test, self.routed, self.ensemble, self.spread)]
        write_friend(self.results / "scores" / "higgsml.root", COUNT, config.class_names, parts)

        # A made-up score, since untrained networks would fill few bins.
        random = np.random.default_rng(2)
        edges = np.linspace(0, 1, 6)
        self.templates = {
            "background": Histogram.fill(random.beta(1, 3, 3000), np.full(3000, 0.1), edges),
            "htautau": Histogram.fill(random.beta(3, 1, 3000), np.full(3000, 0.01), edges),
        }
        folder = "score_higgs_ensemble"
        named = {name: histogram.to_json() for name, histogram in self.templates.items()}
        self.write("histograms", {"score": folder, "observed": "Asimov", "clipped": {}, "histograms": {folder: named}})
        write_histograms(self.results / "histograms.root", {folder: self.templates})
        self.write("workspace", Likelihood((Channel.of("score", self.templates, ("htautau",)),)).workspace())
        self.write("summary", summary())

    def write(self, name: str, content: object) -> None:
        """Write one of the JSON files."""
        (self.results / f"{name}.json").write_text(json.dumps(content))

    def run(self, text: str) -> dict[str, Any]:
        """Run the block of docs/outputs.md that holds a text."""
        return run(block("docs/outputs.md", text), inputs=self.inputs, results=self.results)


def summary() -> dict[str, Any]:
    """The parts of summary.json that the documentation reads, in the form that the schema demands."""
    estimate = {"value": 0.9, "low": 0.8, "high": 0.95}
    auc = {"weighted": estimate, "unweighted": estimate}
    process = {"class": "higgs", "entries": 3, "yield": 692.0, "uncertainty": 12.0, "effective": 2.5}
    significance = {**estimate, "with_simulation_uncertainty": estimate, "reason": None, "bins": 3}
    yields = {"htautau": {**process, "test_entries": 1, "test_scale": 4.0, "test_closure": 0.3}}
    jsonschema.validate(auc, {"$defs": SCHEMA["$defs"], "$ref": "#/$defs/auc"})
    jsonschema.validate(yields, {"$defs": SCHEMA["$defs"], **SCHEMA["properties"]["yields"]})
    jsonschema.validate(significance, {"$defs": SCHEMA["$defs"], **SCHEMA["properties"]["significance"]})
    return {"metrics": {"test": {"auc": auc}}, "yields": yields, "significance": significance}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return Result(tmp_path_factory.mktemp("result"))


def test_friend_trees(result: Result) -> None:
    found = result.run('/ "scores" /')
    np.testing.assert_array_equal(found["score"], result.ensemble[result.test, 1])
    np.testing.assert_array_equal(found["label"], result.columns["Label"][result.test])
    for label in (0, 1):
        everything = result.columns["Weight"][result.columns["Label"] == label].sum()
        assert found["weight"][found["label"] == label].sum() == pytest.approx(everything)


def test_onnx_scores_of_values_at_hand(result: Result) -> None:
    found = result.run("two events")
    names = result.networks.signature.features
    values, present = np.zeros((2, len(names)), np.float32), np.zeros((2, len(names)), np.bool_)
    for name, numbers in found["columns"].items():
        values[:, names.index(name)] = numbers
        present[:, names.index(name)] = np.isfinite(numbers)
    assert present.sum() == 3
    expected = predict(result.networks, np.nan_to_num(values), present).mean(axis=0)[:, 1]
    assert found["score"] == pytest.approx(expected, abs=1e-6)


def test_onnx_scores_of_a_file_are_those_of_the_friend_tree(result: Result) -> None:
    found = result.run("load_analysis")
    np.testing.assert_array_equal(found["fold"], result.fold[:100])
    np.testing.assert_allclose(found["routed"], result.routed[:100], atol=1e-6)
    np.testing.assert_allclose(found["ensemble"], result.ensemble[:100], atol=1e-6)
    np.testing.assert_allclose(found["spread"], result.spread[:100], atol=1e-6)
    assert np.abs(found["routed"] - found["ensemble"]).max() > 1e-3


PROGRAM = """
#include <onnxruntime_cxx_api.h>
#include <cmath>
#include <cstdio>
#include <vector>
int main() {{
{code}
std::printf("%.6f", score);
}}
"""


def test_onnx_scores_of_a_program_in_cpp(result: Result, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "higgsml").symlink_to(result.results)
    found = float(run_cpp(PROGRAM.format(code=block_of_cpp("Ort::Session")), tmp_path))
    values = np.full((1, result.values.shape[1]), np.nan, dtype=np.float32)
    values[0, 0] = 138.47
    fold = fold_of(event_identity("challenge", [np.array([100_000])]), 5, "0").astype(np.int64)
    routed, *_ = score(result.networks, np.nan_to_num(values), np.isfinite(values), fold)
    assert found == pytest.approx(routed[0, 1], abs=2e-6)


def test_onnx_scores_in_cpp_are_those_of_pytorch(result: Result, tmp_path: Path) -> None:
    """All events, absent values included."""
    (tmp_path / "ensemble.onnx").symlink_to(result.results / "ensemble.onnx")
    features = np.where(result.present, result.values, np.nan).astype(np.float32)
    assert 0 < np.isnan(features).mean() < 0.5
    features.tofile(tmp_path / "features.bin")
    np.full(COUNT, key_of("challenge")).tofile(tmp_path / "sample.bin")
    result.columns["EventId"].astype(np.int64).tofile(tmp_path / "EventId.bin")
    run_cpp((ROOT / "tests" / "onnx_scores.cpp").read_text(), tmp_path, str(COUNT), str(features.shape[1]))
    np.testing.assert_array_equal(np.fromfile(tmp_path / "fold.bin", dtype=np.int64), result.fold)
    for kind in ("routed", "ensemble", "spread"):
        found = np.fromfile(tmp_path / f"{kind}.bin", dtype=np.float32).reshape(COUNT, 2)
        np.testing.assert_allclose(found, getattr(result, kind), atol=1e-5)


@pytest.mark.parametrize("form", ["ttree", "rntuple"])
def test_friends_in_root(result: Result, tmp_path: Path, form: Any) -> None:
    """The documented lines fill the same histogram as numpy, so that scores meet their own events."""
    (tmp_path / "results" / "higgsml" / "scores").mkdir(parents=True)
    parts = [Scores(np.arange(COUNT), result.fold, result.test, result.routed, result.ensemble, result.spread)]
    friend = tmp_path / "results" / "higgsml" / "scores" / "higgsml.root"
    write_friend(friend, COUNT, ("background", "higgs"), parts, form=form)
    with uproot.recreate(tmp_path / "higgsml.root") as file:
        make = file.mktree if form == "ttree" else file.mkrntuple
        make("events", {name: column.dtype for name, column in result.columns.items()}).extend(result.columns)
    code = block_of_cpp("AddFriend" if form == "ttree" else "RNTupleProcessor")
    shown = 'for (int bin = 1; bin <= 20; ++bin) std::printf("%.6f ", h{}GetBinContent(bin));'
    found = run_root(code + shown.format("->" if form == "ttree" else "."), tmp_path).split()
    if form == "ttree":
        rows, weight = result.test, result.columns["Weight"]
    else:
        rows, weight = result.columns["PRI_met"] > 20, np.ones(COUNT)
    expected, _ = np.histogram(result.ensemble[rows, 1], bins=20, range=(0, 1), weights=weight[rows])
    np.testing.assert_allclose(np.array(found, dtype=np.float64), expected, atol=1e-5)


def test_histograms_in_root(result: Result, tmp_path: Path) -> None:
    channel = Channel.of("score", result.templates, ("htautau",))
    write_histograms(tmp_path / "histograms.root", Likelihood((channel,)).histograms())
    code = """
    TFile file("histograms.root");
    auto *h = file.Get<TH1D>("fit/score/htautau");
    std::printf("%d", h->GetNbinsX());
    for (int bin = 1; bin <= h->GetNbinsX(); ++bin)
        std::printf(" %.9g %.9g %.9g", h->GetBinLowEdge(bin), h->GetBinContent(bin), h->GetBinError(bin));
    """
    count, *numbers = run_root(code, tmp_path).split()
    expected = channel.templates["htautau"]
    assert int(count) == len(expected.values) > 1
    edges, values, errors = np.array(numbers, dtype=np.float64).reshape(-1, 3).T
    np.testing.assert_allclose(edges, expected.edges[:-1])
    np.testing.assert_allclose(values, expected.values)
    np.testing.assert_allclose(errors, np.sqrt(expected.variances))


def test_summary(result: Result, capsys: pytest.CaptureFixture[str]) -> None:
    result.run('"summary.json"')
    assert capsys.readouterr().out.splitlines() == [
        "AUC on test events: 0.9000 (0.8000 to 0.9500)",
        "htautau: 692.0 ± 12.0 events from 3 entries",
        "expected significance: 0.9 ",
    ]


def test_costs(result: Result, capsys: pytest.CaptureFixture[str]) -> None:
    cost = Cost(7200.0, 3600.0, 1800.0, 512.0, joules={"NVML": 3600.0})
    records = [{"step": "TrainFolds", "record": str(i), "this_run": True, "cost": cost.record()} for i in range(2)]
    costs = account(records)
    (result.results / "run.json").write_text(json.dumps({"costs": costs}))
    result.run('"run.json"')
    assert capsys.readouterr().out.splitlines() == [
        "TrainFolds: 2.000 CPU-hours, 2.00 Wh",
        "in total: 2.000 CPU-hours, 2.00 Wh",
        "training took 1.0 GPU-hours; energy by NVML",
    ]
    section = (ROOT / "docs" / "outputs.md").read_text().partition("## run.json")[2]
    cells = re.findall(r"^\| (`.+`) \|", section, re.MULTILINE)
    assert set(costs["total"]) == {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_histograms(result: Result) -> None:
    found = result.run('"histograms.json"')
    for name in ("signal", "same"):
        np.testing.assert_array_equal(found[name].values(), result.templates["htautau"].values)
        np.testing.assert_array_equal(found[name].variances(), result.templates["htautau"].variances)


@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver is deprecated:DeprecationWarning")
def test_workspace(result: Result) -> None:
    """Asimov data: the fit finds the signal strength that they were made with."""
    found = result.run('"workspace.json"')
    assert found["mu"] == pytest.approx(1, abs=1e-3)
    assert 0 < found["p_value"] < 0.5


def test_the_branches_of_the_friend_tree_are_documented(result: Result) -> None:
    text = (ROOT / "docs" / "outputs.md").read_text()
    with uproot.open(result.results / "scores" / "higgsml.root") as file:
        names = file["scores"].keys()
    for name in names:
        assert f"`{re.sub('_(background|higgs)(?=_|$)', '_<class>', name)}`" in text, name


def test_every_block_of_the_outputs_is_run() -> None:
    files = ('"summary.json"', '"run.json"', '"histograms.json"', '"workspace.json"')
    texts = ('/ "scores" /', "two events", "load_analysis", *files)
    assert {block("docs/outputs.md", text) for text in texts} == set(blocks("docs/outputs.md"))
    assert {block_of_cpp(text) for text in ("AddFriend", "RNTupleProcessor", "Ort::Session")} == set(
        blocks("docs/outputs.md", "cpp")
    )


def test_the_first_analysis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files, analysis.yaml and physics.py as they stand in the page, up to the features."""
    page = "docs/first_analysis.md"
    monkeypatch.setenv("HOME", str(tmp_path))
    files, physics, look = blocks(page)
    (content,) = blocks(page, "yaml")
    names = run(files)
    (tmp_path / "first" / "analysis.yaml").write_text(content)
    (tmp_path / "first" / "physics.py").write_text(physics)
    found = run(look, folder=names["folder"])

    assert found["config"].data.folder == "~/first"
    assert yaml.safe_load(content)["name"] == "first"
    with uproot.open(tmp_path / "first" / "signal.root") as file:
        written = file["events"].arrays(library="np")
    kept = written["met"] > 10
    assert 0 < kept.sum() < len(kept)
    assert found["selected"].cutflow["signal"].entries == {"all": 3000, "some_met": kept.sum()}
    absent = written["jet_pt"][kept] == -999
    for name in ("jet_pt", "jet_met_ratio"):
        np.testing.assert_array_equal(np.ma.getmaskarray(found["columns"][name]), absent)
    ratio = (written["jet_pt"] / written["met"])[kept][~absent]
    assert found["columns"]["jet_met_ratio"].compressed() == pytest.approx(ratio, rel=1e-6)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_the_excerpt_of_physics_in_the_readme_runs() -> None:
    """Its imports suffice; the helper that it calls is one of the same file."""
    leptons = ak.zip({"pt": [[40.0, 20.0, 10.0], [30.0], []]})
    defined = run(block("README.md", "def lepton2_pt"), _leptons=lambda events: events)
    assert defined["lepton2_pt"](leptons).tolist() == [20.0, None, None]
    assert (defined["lepton2_pt"].label, defined["lepton2_pt"].unit) == (r"$p_\mathrm{T}^{\ell_2}$", "GeV")


@pytest.mark.data
def test_the_sums_of_the_challenge_are_those_of_its_file(data_folder: Path) -> None:
    text = (ROOT / "docs" / "data.md").read_text()
    with uproot.open(data_folder / "higgsml" / "higgsml.root") as file:
        events = file["events"].arrays(["Label", "Weight", "KaggleWeight"], library="np")
    rows = re.findall(r"^\| ([01]) \(\w+\) \| ([\d,]+) \| ([\d.,]+) \| ([\d.,]+) \|$", text, re.MULTILINE)
    assert len(rows) == 2
    for label, *figures in rows:
        entries, weight, kaggle = (float(figure.replace(",", "")) for figure in figures)
        mine = events["Label"] == int(label)
        assert entries == mine.sum()
        assert weight == pytest.approx(events["Weight"][mine].sum(), rel=1e-7)
        assert kaggle == pytest.approx(events["KaggleWeight"][mine].sum(), rel=1e-7)
