"""Regression targets, soft labels and decorrelation in an analysis: from functions of physics.py to figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import uproot
from scipy.spatial.distance import jensenshannon

from analysis.columns import write_columns
from analysis.config import Analysis, load_analysis
from analysis.decorrelation import distance_correlation, jensen_shannon, remaining
from analysis.errors import UserError
from analysis.evaluation import judge
from analysis.plots import Variable, regression
from analysis.pool import load_pool, prepare, save_pool
from analysis.regression import Regressed, judge_target, places
from analysis.table import Chunk, EventTable, load_table
from analysis.weights import Totals
from tests.test_evaluation import SCALES, SCORES, scored
from tests.test_evaluation import SETTINGS as EVALUATION
from tests.test_pool import SETTINGS, assert_same_pools
from tests.toy import Law
from tests.toy import replace as edit

ToyTable = Callable[..., EventTable]
MASS = Regressed("true_mass", "quantile", ("mass_q16", "mass_q50", "mass_q84"), (0.16, 0.5, 0.84))
ENERGY = Regressed("true_energy", "log_cosh", ("energy",), ())
POOL = replace(
    SETTINGS,
    table=replace(SETTINGS.table, truth=("true_mass", "teacher")),
    targets=("true_mass",),
    soft_labels=(None, "teacher"),
)


def with_truth(table: EventTable, seed: int = 5) -> EventTable:
    """Half of the events have a mass; all have probabilities."""
    random = np.random.default_rng(seed)
    mass = np.ma.MaskedArray(random.normal(125, 10, len(table)).astype(np.float32), random.random(len(table)) < 0.5)
    teacher = np.ma.MaskedArray(random.random(len(table)).astype(np.float32), random.random(len(table)) < 0.2)
    return replace(table, columns={**table.columns, "true_mass": mass, "teacher": teacher})


class TestConfiguration:
    @staticmethod
    def load(*overrides: str) -> Analysis:
        return load_analysis("hww_mass", overrides)

    def test_what_the_example_means(self) -> None:
        config = self.load("training.decorrelation={lepton1_phi: 0}").config
        assert config.target_outputs == (
            "transverse_mass_q16",
            "transverse_mass_q50",
            "transverse_mass_q84",
            "missing_momentum",
        )
        assert config.truth == ("true_dilepton_mt", "true_met")
        flat = self.load("training.flatten=[lepton1_phi, met]").config
        assert flat.truth == (*config.truth, "lepton1_phi")
        soft = self.load("classes.soft_labels={diboson: true_met}").config.soft_labels
        assert soft == (None, "true_met")

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("targets.x={function: met}", "key targets.x.function: 'met' is a feature"),
            ("classes.soft_labels={higgs: met}", "key classes.soft_labels.higgs: 'met' is a feature"),
            (
                "classes.soft_labels={higs: true_met}",
                "names 'higs', which is no class. Did you mean 'higgs'",
            ),
            ("targets.x={function: true_met}", "two of them are of the function 'true_met'"),
            ("targets.score_higgs={function: lepton1_phi}", "two outputs would be called 'score_higgs'"),
            ("targets.x={function: f, loss: huber}", "key targets.x.loss is 'huber', but one of 'mean_squared'"),
            ("targets.x={function: f, quantile: [0.5]}", "unknown key targets.x.quantile. Did you mean 'quantiles'"),
            ("targets.x={function: f, quantiles: [0.5]}", "key targets.x: quantiles is (0.5,); expected none"),
            ("training.decorrelation={mas: 1}", "names 'mas', which is none of the spectators"),
            ("training.decorrelation={lepton1_phi: -1}", "decorrelation.lepton1_phi is -1.0; expected"),
        ],
    )
    def test_mistakes_name_the_key(self, override: str, said: str) -> None:
        with pytest.raises(UserError) as raised:
            self.load(override)
        assert said in str(raised.value)

    def test_what_makes_no_sense_together_is_refused(self) -> None:
        with pytest.raises(UserError, match="label_noise draws hard labels anew"):
            self.load("classes.soft_labels={higgs: true_met}", "training.label_noise=0.1")
        with pytest.raises(UserError, match="loss_weight is 0, but there are no targets"):
            self.load("targets={}", "training.loss_weight=0")
        config = self.load().config
        cuts = (*config.selection.cuts, *config.selection.categories.values())
        defined = [*cuts, *config.feature_names, *config.spectators, *config.weights.factors, *config.truth]
        self.load().check_functions(defined)
        with pytest.raises(UserError, match=r"key targets.x.function names 'true_mett'.*Did you mean 'true_met'"):
            self.load("targets.x={function: true_mett}").check_functions(defined)


class TestTableAndPool:
    def test_chunks_without_truth_have_none(self, tmp_path: Path) -> None:
        """Collision data and data sets of no class are never asked for it."""
        chunks = []
        for number, name in enumerate(("a", "b")):
            count = np.arange(3)
            write_columns(
                tmp_path / f"{name}.parquet",
                {
                    "entry": count,
                    "identity": (count + 10 * number).astype(np.uint64),
                    "is_test": np.zeros(3, dtype=np.bool_),
                    "training": np.ones(3, dtype=np.bool_),
                    "category": np.array(["", "", ""], dtype=object),
                    "process": np.array(["top", "top", "top"], dtype=object),
                    "generator_weight": np.ones(3),
                },
            )
            write_columns(
                tmp_path / f"mass_{name}.parquet", {"mass": np.ma.MaskedArray(np.float32([1, 2, 3]), [0, 1, 0])}
            )
            columns = {"mass": tmp_path / "mass_a.parquet"} if name == "a" else {}
            chunks.append(Chunk(name, name, tmp_path / f"{name}.parquet", columns))
        from analysis.weights import Normalisation

        settings = replace(
            SETTINGS.table,
            processes=("top",),
            labels=(0,),
            normalisations={"top": Normalisation(None)},
            columns=(),
            truth=("mass",),
        )
        table = load_table(chunks, {"top": Totals(6, 6.0, 6.0, 0.0)}, settings)
        assert table.columns["mass"].tolist() == [1.0, None, 3.0, None, None, None]

    def test_extra_columns_are_nan_where_there_is_none(self, toy_table: ToyTable, tmp_path: Path) -> None:
        table = with_truth(toy_table())
        pool = prepare(table, POOL)
        assert pool.extra_names == ("true_mass", "teacher")
        chosen = table.take(np.isin(table.identity, pool.identity))
        for place, name in enumerate(pool.extra_names):
            np.testing.assert_array_equal(pool.extra[:, place], np.ma.filled(chosen.columns[name], np.nan))
        save_pool(pool, tmp_path)
        found = load_pool(tmp_path)
        assert_same_pools(found, pool)
        assert found.extra_names == pool.extra_names
        assert prepare(toy_table(), SETTINGS).extra.shape == (len(pool.labels), 0)

    def test_too_few_events_with_a_target_are_refused(self, toy_table: ToyTable) -> None:
        table = with_truth(toy_table())
        table.columns["true_mass"][np.arange(len(table)) % 20 != 0] = np.ma.masked
        with pytest.raises(UserError, match=r"Target true_mass: \d+, .* events of folds 0 to 4 have it; at least 50"):
            prepare(table, POOL)

    @pytest.mark.parametrize("garbage", [1.5, -0.2])
    def test_soft_labels_that_are_no_probabilities_are_refused(self, toy_table: ToyTable, garbage: float) -> None:
        table = with_truth(toy_table())
        table.columns["teacher"][::3] = garbage
        with pytest.raises(UserError, match=rf"are no probabilities, first teacher = {garbage:g}"):
            prepare(table, POOL)
        both = replace(POOL, soft_labels=("true_mass", "teacher"), targets=())
        with pytest.raises(UserError, match="are no probabilities, first true_mass"):
            prepare(with_truth(toy_table()), both)


class TestFigures:
    def test_of_a_target_against_numpy(self) -> None:
        random = np.random.default_rng(1)
        truth = random.normal(125, 10, 4000)
        guess = truth + random.normal(2, 5, 4000)
        predicted = (guess[:, np.newaxis] + np.array([-5.0, -2.0, 4.0])).astype(np.float32)
        weight = random.normal(1, 0.6, 4000)
        process, identity = np.zeros(4000, dtype=np.int16), np.arange(4000, dtype=np.uint64)
        found = judge_target(
            MASS, predicted, truth, weight=weight, process=process, identity=identity, replicas=200, seed=1
        )
        rest = predicted[:, 1] - truth
        bias = np.average(rest, weights=weight)
        assert found["bias"]["value"] == pytest.approx(bias)
        assert found["resolution"]["value"] == pytest.approx(np.sqrt(np.average((rest - bias) ** 2, weights=weight)))
        middle = np.average(truth, weights=weight)
        assert found["spread"]["value"] == pytest.approx(np.sqrt(np.average((truth - middle) ** 2, weights=weight)))
        for share, column in zip(found["calibration"], predicted.T, strict=True):
            assert share["below"]["value"] == pytest.approx(np.average(truth < column, weights=weight))
        error = (found["bias"]["high"] - found["bias"]["low"]) / 2
        assert error == pytest.approx(np.sqrt(np.sum((weight * (rest - bias)) ** 2)) / weight.sum(), rel=0.2)
        assert found["bias"]["low"] < found["bias"]["value"] < found["bias"]["high"]

    def test_what_is_not_defined_has_a_note(self) -> None:
        none = np.zeros(0)
        found = judge_target(
            ENERGY,
            np.zeros((0, 1), np.float32),
            none,
            weight=none,
            process=none.astype(np.int16),
            identity=none.astype(np.uint64),
            replicas=10,
            seed=1,
        )
        assert found["bias"]["value"] is None
        assert "0 events" in found["bias"]["note"]
        assert found["calibration"] == []
        json.dumps(found, allow_nan=False)

    def test_which_events_enter_which_figure(self, toy_table: ToyTable) -> None:
        """Ensemble on test events, routed on the others; neither processes of no class nor events without a target."""
        table = with_truth(toy_table())
        targets = {"energy": replace(ENERGY, function="met"), "mass": MASS}
        assert places(targets) == {"energy": slice(0, 1), "mass": slice(1, 4)}
        events = scored(table)
        random = np.random.default_rng(3)
        predicted = {kind: random.normal(0, 1, (len(table), 4)).astype(np.float32) for kind in ("routed", "ensemble")}
        events = replace(events, predicted=predicted)
        settings = replace(EVALUATION, targets=targets, spectators={"true_mass": 0.5})
        found = judge(events, SCALES, SCORES, settings, [])
        weight = table.weight * SCALES.per_event(table)
        has = (table.label >= 0) & ~np.ma.getmaskarray(table.columns["true_mass"])
        for part, kind, rows in (
            ("test", "ensemble", has & table.is_test),
            ("out_of_fold", "routed", has & ~table.is_test),
        ):
            figures = found["targets"]["mass"][part]
            rest = predicted[kind][rows, 2] - table.columns["true_mass"].data[rows]
            assert figures["events"] == rows.sum()
            assert figures["bias"]["value"] == pytest.approx(np.average(rest, weights=weight[rows]), rel=1e-5)
            background = rows & (table.label == 0)
            assert found["spectators"]["true_mass"][part]["events"] == background.sum()
        json.dumps(found, allow_nan=False)
        assert "targets" not in judge(scored(table), SCALES, SCORES, EVALUATION, [])

    def test_distance_correlation_tells_dependence(self) -> None:
        random = np.random.default_rng(2)
        x, weight = random.normal(size=1500), random.uniform(0.5, 2, 1500)
        known, left = (remaining(score, x, weight, 1) for score in (np.abs(x), random.normal(size=1500)))
        assert known["distance_correlation"] > 5 * known["independent"]
        assert left["distance_correlation"] < 2 * left["independent"]
        assert distance_correlation(x, 3 * x - 7, weight) == pytest.approx(1)
        assert distance_correlation(x, np.ones_like(x), weight) == 0
        assert remaining(x[:1], x[:1], weight[:1], 1)["distance_correlation"] is None

    def test_jensen_shannon_against_scipy(self) -> None:
        random = np.random.default_rng(4)
        score = random.random(4001)
        spectator = random.normal(score, 1)
        cuts = np.quantile(spectator, np.linspace(0, 1, 21))
        sides = (score > np.median(score), score <= np.median(score))
        above, below = (np.histogram(spectator[side], cuts)[0] for side in sides)
        found = jensen_shannon(score, spectator, np.ones(4001))
        assert found == pytest.approx(jensenshannon(above, below, base=2) ** 2, rel=0.02)
        assert jensen_shannon(score, spectator, np.where(score > 0.5, -1.0, 1.0)) is None

    def test_plot(self) -> None:
        random = np.random.default_rng(5)
        truth = random.normal(100, 10, 500).astype(np.float32)
        plot = regression("mass", Variable("m", "$m$", "GeV"), truth + 2, truth, np.ones(500))
        found: list[float | None] = plot.numbers["bias"]
        assert [x for x in found if x is not None] == pytest.approx([2.0] * 12, abs=1e-4)
        assert plot.png().startswith(b"\x89PNG")


def test_an_analysis_with_everything(law: Law) -> None:
    """From physics.py to friend trees, ONNX, summary and report."""
    physics = law.home / "toy" / "physics.py"
    edit(
        physics,
        "def positive(events):",
        "def true_ratio(events):\n    return ak.mask(100 + 20 * events.truth, events.pt2 != -7)\n\n\n"
        "def teacher(events):\n    return 0.5 + 0.3 * events.truth\n\n\ndef positive(events):",
    )
    edit(law.home / "toy" / "analysis.yaml", "model: {hidden: [8]}", "spectators: [ratio]\nmodel: {hidden: [8]}")
    given = [
        "targets.energy={function: true_ratio, loss: quantile}",
        "classes.soft_labels={signal: teacher}",
        "training.loss=kullback_leibler",
        "training.decorrelation={ratio: 0.5}",
        "training.flatten=[ratio, pt1]",
        "training.flatten_bins=2",
        "training.balance=processes",
    ]
    law("Report", "--analysis", law.analysis, *(part for override in given for part in ("--set", override)))
    (results,) = law.results.glob("toy@*")
    summary: dict[str, Any] = json.loads((results / "summary.json").read_text())
    assert summary["targets"]["energy"]["outputs"] == ["energy_q16", "energy_q50", "energy_q84"]
    assert summary["spectators"]["ratio"]["strength"] == 0.5
    assert summary["prior"].endswith("each process flat in ratio and pt1")
    assert summary["onnx"]["largest_difference"] < 1e-5
    spread = summary["targets"]["energy"]["test"]["spread"]["value"]
    assert spread == pytest.approx(20 / np.sqrt(3), rel=0.2)
    with uproot.open(results / "scores" / "signal_0.root") as file:
        tree = file["scores"].arrays(library="np")
    found: npt.NDArray[np.float32] = tree["energy_q50_ensemble"]
    assert np.isfinite(found[tree["selected"]]).all()
    assert (tree["energy_q84_routed"] >= tree["energy_q16_routed"])[tree["selected"]].all()
    page = (results / "report.html").read_text()
    assert all(text in page for text in ('id="targets"', 'id="spectators"', "plot-regression_energy"))
