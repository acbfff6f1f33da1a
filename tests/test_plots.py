"""Plots show the right numbers, hide what is blinded, and draw without a warning."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import mplhep.error_estimation
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import rgb_to_hsv, to_rgb
from PIL import Image

from analysis.errors import UserError
from analysis.metrics import Sample, evaluate, ks_weighted, roc_auc
from analysis.plots import (
    Appearance,
    Group,
    Plot,
    PlotSettings,
    ScoredSample,
    Scores,
    Stack,
    Variable,
    category_auc,
    confusion,
    correlation,
    correlation_matrix,
    feature_distributions,
    groups,
    learning_curves,
    make_plots,
    overtraining,
    poisson_interval,
    roc,
    stacked_score,
    stacked_variable,
)
from analysis.style import Style, styled
from analysis.table import EventTable

Inputs = tuple[PlotSettings, EventTable, Scores, dict[str, Any]]
CLASSES = (Group("higgs", "higgs", "#e42536", signal=True), Group("top", "top", "#5790fc"))
PROCESSES = (
    Group("ggh", "H→WW→ℓνℓν", "#e42536", signal=True),
    Group("ttbar", r"$t\bar{t}$", "#5790fc"),
    Group("wz", "WZ", "#f89c20"),
    Group("data", "data", "#000000", collision=True),
)
PT = Variable("pt", r"$p_\mathrm{T}^{\ell_1}$", "GeV")


def history(fold: int, member: int = 0) -> dict[str, Any]:
    validation = [0.9, 0.7 + 0.01 * fold, 0.8]
    return {
        "fold": fold,
        "member": member,
        "epoch": [1, 2, 3],
        "training_loss": [0.9, 0.7, 0.6],
        "validation_loss": validation,
        "learning_rate": [1e-3, 5e-4, 1e-5],
        "best_epoch": 2,
    }


def stack(count: int = 3000, seed: int = 0, **changes: Any) -> Stack:
    rng = np.random.default_rng(seed)
    process = rng.integers(0, 4, count).astype(np.int16)
    weight = np.where(process == 3, 1.0, rng.normal(2.0, 1.5, count))  # some are negative
    return replace(Stack(process, weight, rng.random(count), PROCESSES, 0.8, 59.7), **changes)


def drawn(plot: Plot) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(plot.png())).convert("RGB"))


def label_boxes(plot: Plot) -> list[tuple[Any, list[Any]]]:
    """Per panel, the box of the y label and those of the tick labels beside it, in pixels."""
    plot.figure.draw_without_rendering()
    result = []
    for ax in plot.figure.axes:
        ticks = [t.get_window_extent() for t in ax.get_yticklabels(which="both") if t.get_text()]
        assert ticks
        result.append((ax.yaxis.label.get_window_extent(), ticks))
    return result


def analysis(count: int = 4000, seed: int = 1) -> Inputs:
    """A made-up analysis with collision data, a process in no class, absent objects and negative weights."""
    rng = np.random.default_rng(seed)
    process = rng.integers(0, 4, count).astype(np.int16)
    label = np.array([0, 1, -1, -1], dtype=np.int16)[process]
    weight = np.where(process == 3, 1.0, rng.normal(1.0, 0.6, count))
    columns = {
        "pt": np.ma.MaskedArray(rng.exponential(40, count).astype(np.float32)),
        "lepton2_pt": np.ma.MaskedArray(rng.exponential(20, count).astype(np.float32), rng.random(count) < 0.4),
        "jets": np.ma.MaskedArray(rng.integers(0, 6, count).astype(np.float32)),
        "never": np.ma.MaskedArray(np.zeros(count, np.float32), np.ones(count, bool)),
        "mll": np.ma.MaskedArray(rng.gamma(4, 20, count).astype(np.float32), rng.random(count) < 0.4),
    }
    table = EventTable(
        processes=tuple(g.name for g in PROCESSES),
        process=process,
        label=label,
        weight=weight,
        identity=rng.integers(0, 2**63, count).astype(np.uint64),
        is_test=rng.random(count) < 0.25,
        training=rng.random(count) < 0.9,
        category=np.full(count, "", dtype=object),
        chunk=np.zeros(count, dtype=np.int32),
        entry=np.arange(count),
        columns=columns,
    )
    signal = np.clip(rng.normal(np.where(label == 0, 0.6, 0.4), 0.15, (3, count)), 0, 1)
    scores = Scores(np.column_stack([signal.mean(0), 1 - signal.mean(0)]), signal, rng.integers(0, 3, count))
    settings_ = PlotSettings(
        processes=PROCESSES,
        classes=CLASSES,
        features=(PT, Variable("lepton2_pt", "second lepton", "GeV"), Variable("jets", "jets"), Variable("never", "x")),
        spectators=(Variable("mll", r"$m_{\ell\ell}$", "GeV"),),
        blind_above=0.8,
        luminosity=59.7,
    )

    def figures(rows: np.ndarray, probability: np.ndarray) -> dict[str, Any]:
        both = np.column_stack([probability, 1 - probability])[rows]
        sample = Sample(both, label[rows], weight[rows], process[rows], table.identity[rows])
        return evaluate(sample, ["higgs", "top"], "higgs", replicas=20, seed=1)

    learned = (label >= 0) & ~table.is_test & table.training
    metrics = {
        "test": figures((label >= 0) & table.is_test, scores.ensemble[:, 0]),
        "out_of_fold": figures(learned, signal[scores.fold, np.arange(count)]),
        "folds": [figures(learned & (scores.fold == f), signal[f]) for f in range(3)],
    }
    return settings_, table, scores, metrics


def make(
    settings_: PlotSettings, table: EventTable, scores: Scores, metrics: dict[str, Any], **changes: Any
) -> dict[str, Plot]:
    plots = make_plots(
        settings_,
        table,
        scores,
        test_scale={"ggh": 4.0, "ttbar": 4.1, "wz": 3.9},
        metrics=metrics,
        histories=[history(f) for f in range(3)],
        **changes,
    )
    assert len({p.name for p in plots}) == len(plots)
    return {p.name: p for p in plots}


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return analysis()


@pytest.fixture(scope="module")
def plots(inputs: Inputs) -> dict[str, Plot]:
    return make(*inputs, categories={"one_lepton": {"value": 0.8, "low": 0.78, "high": 0.82}})


class TestMakePlots:
    def test_draws_every_kind(self, plots: dict[str, Plot]) -> None:
        assert set(plots) == {
            "roc",
            "confusion",
            "category_auc",
            "stacked_score",
            "overtraining_higgs",
            "overtraining_top",
            "learning_curves",
            "stacked_mll",
            "feature_pt",
            "feature_lepton2_pt",
            "feature_jets",
            "feature_never",
            "correlation_signal",
            "correlation_background",
        }

    def test_images_are_of_light_weight_and_unknown_to_pyplot(self, plots: dict[str, Plot]) -> None:
        for plot in plots.values():
            image = drawn(plot)
            assert image.std() > 1, plot.name
            assert len(plot.png()) < 150_000, plot.name
        assert plt.get_fignums() == []

    def test_numbers_are_json_without_nan(self, plots: dict[str, Plot]) -> None:
        for plot in plots.values():
            assert json.loads(json.dumps(plot.numbers, allow_nan=False)) == plot.numbers

    def test_the_same_input_gives_the_same_image(self, inputs: Inputs, plots: dict[str, Plot]) -> None:
        again = make(*inputs)
        for name in ("roc", "stacked_score", "feature_pt", "correlation_signal"):
            assert again[name].png() == plots[name].png()

    def test_stack_holds_test_events_scaled_to_their_process(self, inputs: Inputs, plots: dict[str, Plot]) -> None:
        _, table, _, _ = inputs
        numbers = plots["stacked_score"].numbers
        for index, scale in enumerate((4.0, 4.1, 3.9)):
            expected = scale * table.weight[(table.process == index) & table.is_test].sum()
            assert sum(numbers["processes"][PROCESSES[index].name]["sum"]) == pytest.approx(expected)

    def test_stack_holds_collision_data_of_both_buckets(self, inputs: Inputs, plots: dict[str, Plot]) -> None:
        _, table, scores, _ = inputs
        shown = (table.process == 3) & (scores.ensemble[:, 0] < 0.8)
        counts = plots["stacked_score"].numbers["data"]["count"]
        assert sum(c for c in counts if c is not None) == shown.sum()

    def test_overtraining_compares_what_the_roles_say(self, inputs: Inputs, plots: dict[str, Plot]) -> None:
        _, table, scores, _ = inputs
        # Rotating, three folds: network 1 leaves fold 1 out, stops on fold 2 and trains on fold 0.
        usable = (table.label == 0) & ~table.is_test & table.training
        pooled = np.concatenate([scores.networks[f][usable & (scores.fold == (f - 1) % 3)] for f in range(3)])
        weight = np.concatenate([table.weight[usable & (scores.fold == (f - 1) % 3)] for f in range(3)])
        expected, _ = np.histogram(pooled, 20, (0, 1), weights=weight)
        got = np.array(plots["overtraining_higgs"].numbers["training"]["density"]) / 20
        np.testing.assert_allclose(got, expected / expected.sum(), atol=1e-12)

    def test_auc_is_that_of_the_evaluation(self, inputs: Inputs, plots: dict[str, Plot]) -> None:
        metrics = inputs[-1]
        assert plots["roc"].numbers["test"]["auc"] == metrics["test"]["auc"]["weighted"]
        assert [f["auc"] for f in plots["roc"].numbers["folds"]] == [m["auc"]["weighted"] for m in metrics["folds"]]


class TestFeatureDistributions:
    def column(self, count: int = 1000) -> tuple[np.ma.MaskedArray[Any, Any], np.ndarray, np.ndarray]:
        rng = np.random.default_rng(3)
        column = np.ma.MaskedArray(rng.normal(50, 20, count).astype(np.float32), rng.random(count) < 0.41)
        return column, rng.integers(-1, 2, count).astype(np.int16), rng.normal(1, 0.5, count)

    def plot(self, column: Any, label: Any, weight: Any) -> Plot:
        return feature_distributions([PT], {"pt": column}, label=label, weight=weight, classes=CLASSES)[0]

    def test_each_class_has_unit_area(self) -> None:
        numbers = self.plot(*self.column()).numbers
        for entry in numbers["classes"].values():
            assert np.sum(np.array(entry["density"]) * np.diff(numbers["edges"])) == pytest.approx(1)

    def test_density_and_uncertainty_follow_from_the_weights(self) -> None:
        column, label, weight = self.column()
        numbers = self.plot(column, label, weight).numbers
        edges = np.array(numbers["edges"])
        rows = (label == 1) & ~column.mask
        values = np.clip(column.data[rows].astype(float), edges[0], edges[-1])  # the outer bins take what lies beyond
        area = weight[rows].sum() * np.diff(edges)
        total, _ = np.histogram(values, edges, weights=weight[rows])
        square, _ = np.histogram(values, edges, weights=weight[rows] ** 2)
        np.testing.assert_allclose(numbers["classes"]["top"]["density"], total / area)
        np.testing.assert_allclose(numbers["classes"]["top"]["uncertainty"], np.sqrt(square) / area)

    def test_absent_fraction_is_given_and_drawn(self) -> None:
        column, label, weight = self.column()
        plot = self.plot(column, label, weight)
        magnitude = np.abs(weight)
        for index, group in enumerate(CLASSES):
            mine = label == index
            expected = magnitude[mine & column.mask].sum() / magnitude[mine].sum()
            assert plot.numbers["classes"][group.name]["absent"] == pytest.approx(expected)
            texts = [t.get_text() for t in plot.figure.axes[0].get_legend().get_texts()]
            assert f"{group.title}, absent: {100 * expected:.0f}%" in texts

    def test_whole_numbers_get_a_bin_each(self) -> None:
        values = np.array([0, 1, 1, 2, 4], dtype=np.float32)
        plot = self.plot(np.ma.MaskedArray(values), np.ones(5, np.int16), np.ones(5))
        assert plot.numbers["edges"] == [-0.5, 0.5, 1.5, 2.5, 3.5, 4.5]
        assert plot.numbers["classes"]["top"]["density"] == pytest.approx([0.2, 0.4, 0.2, 0.0, 0.2])

    @pytest.mark.parametrize("value", [0.1, 0.0, -1e7, 3.5e-9])
    def test_a_constant_is_drawn(self, value: float) -> None:
        plot = self.plot(np.ma.MaskedArray(np.full(9, value, np.float32)), np.zeros(9, np.int16), np.ones(9))
        plot.png()
        density = np.array(plot.numbers["classes"]["higgs"]["density"])
        assert np.sum(density * np.diff(plot.numbers["edges"])) == pytest.approx(1)

    def test_ticks_of_whole_numbers_are_whole(self) -> None:
        values = np.ma.MaskedArray(np.array([0, 1, 1, 1], dtype=np.float32))
        ax = self.plot(values, np.array([0, 0, 1, 1]), np.ones(4)).figure.axes[0]
        assert ax.get_xticks().tolist() == [0, 1]
        assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "1"]
        many = np.ma.MaskedArray(np.arange(30.0))
        ax = self.plot(many, np.zeros(30, int), np.ones(30)).figure.axes[0]
        assert len(ax.get_xticks()) < 20
        assert np.all(ax.get_xticks() % 1 == 0)

    def test_a_tail_of_one_class_leaves_bins_to_a_peak(self) -> None:
        rng = np.random.default_rng(0)
        label = np.repeat([0, 1], [9000, 1000])
        values = np.where(label == 0, rng.normal(91, 3, 10_000), rng.exponential(40, 10_000))
        values[-3:] = 1e5
        numbers = self.plot(np.ma.MaskedArray(values), label, np.ones(10_000)).numbers
        edges = np.array(numbers["edges"])
        share = np.where(label == 0, 1 / 9000, 1 / 1000) / 2
        for side in (values < edges[0], values > edges[-1]):
            assert share[side].sum() <= 0.005 + 1e-9  # each class counts the same, however many events it has
        assert share[values > edges[-1] - 1e-6 * edges[-1]].sum() >= 0.004
        assert len(edges) == 41
        assert np.sum(np.array(numbers["classes"]["higgs"]["density"]) * np.diff(edges) > 0.05) >= 3

    @pytest.mark.parametrize("width", [1e-6, 1.0, 1e6])
    def test_labels_stand_clear_at_any_scale(self, width: float) -> None:
        column, label, weight = self.column()
        plot = self.plot(column * width, label, weight)
        [(box, ticks)] = label_boxes(plot)
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.y1 <= plot.figure.bbox.height
        assert not any(box.overlaps(tick) for tick in ticks)
        ax = plot.figure.axes[0]
        assert ax.yaxis.get_offset_text().get_text() == ""
        assert ax.get_ylabel().startswith("fraction of events / ")
        edges, drawn = np.array(plot.numbers["edges"]), 0.0
        for entry in plot.numbers["classes"].values():
            drawn = max(drawn, np.max(np.array(entry["density"]) * np.diff(edges)))
        assert drawn < ax.get_ylim()[1] < 1.5 * drawn

    def test_heading_holds_the_label_as_plain_text_and_the_name(self) -> None:
        labels = {
            "pt": (r"$p_\mathrm{T}^{\ell_1}$", "p_T^ℓ₁ (pt)"),
            "dphi": (r"$\Delta\varphi(\ell, j)$ of jets", "Δφ(ℓ, j) of jets (dphi)"),
            "cost": ("cost in $", "cost in $ (cost)"),
            "met": ("met", "met"),
        }
        column, label, weight = self.column(50)
        variables = [Variable(name, text) for name, (text, _) in labels.items()]
        columns = dict.fromkeys(labels, column)
        plots = feature_distributions(variables, columns, label=label, weight=weight, classes=CLASSES)
        assert [p.title for p in plots] == [expected for _, expected in labels.values()]
        assert stacked_variable(stack(50), variables[1], np.ma.arange(50.0)).title == labels["dphi"][1]

    def test_never_present_and_without_positive_weight(self) -> None:
        column = np.ma.MaskedArray(np.ones(4, np.float32), [True, True, False, False])
        plot = self.plot(column, np.array([0, 0, 1, 1]), np.array([1.0, 1.0, 1.0, -3.0]))
        plot.png()
        assert plot.numbers["classes"]["higgs"]["absent"] == 1
        assert plot.numbers["classes"]["higgs"]["density"] is None
        assert plot.numbers["classes"]["top"]["density"] is None

    def test_a_label_that_is_no_math_is_shown_as_written(self) -> None:
        column, label, weight = self.column(50)
        variable = Variable("x", r"cost in $ and $\undefined{", "$")
        plot = feature_distributions([variable], {"x": column}, label=label, weight=weight, classes=CLASSES)[0]
        plot.png()


class TestStacked:
    def test_sums_are_the_yields(self) -> None:
        events = stack()
        values = np.ma.MaskedArray(np.random.default_rng(1).normal(90, 30, 3000), np.arange(3000) % 3 == 0)
        plot = stacked_variable(replace(events, blind_above=None), PT, values)
        for index, group in enumerate(PROCESSES[:3]):
            mine = events.process == index
            numbers = plot.numbers["processes"][group.name]
            assert sum(numbers["sum"]) + numbers["absent"] == pytest.approx(events.weight[mine].sum())
            assert sum(numbers["variance"]) == pytest.approx((events.weight[mine & ~values.mask] ** 2).sum())
        total = np.sum([numbers["sum"] for numbers in plot.numbers["processes"].values()], axis=0)
        np.testing.assert_allclose(plot.numbers["total"]["sum"], total)
        assert sum(plot.numbers["data"]["count"]) == ((events.process == 3) & ~values.mask).sum()

    @settings(max_examples=8, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.integers(0, 3),
                st.floats(-1e4, 1e4, width=32),
                st.floats(0, 1),
                st.none() | st.floats(-1e6, 1e6, width=32),
            ),
            max_size=30,
        )
    )
    def test_any_events_are_drawn_and_counted(self, events: list[tuple[int, float, float, float | None]]) -> None:
        process = np.array([e[0] for e in events], dtype=np.int16)
        weight = np.array([e[1] for e in events], dtype=np.float64)
        score = np.array([e[2] for e in events], dtype=np.float64)
        values = np.ma.MaskedArray([e[3] or 0.0 for e in events], [e[3] is None for e in events], dtype=np.float64)
        events_ = Stack(process, weight, score, PROCESSES)
        for plot in (stacked_score(events_, 10), stacked_variable(events_, PT, values)):
            plot.png()
            json.dumps(plot.numbers, allow_nan=False)
            for index, group in enumerate(PROCESSES[:3]):
                numbers = plot.numbers["processes"][group.name]
                expected = weight[process == index].sum()
                assert sum(numbers["sum"]) + numbers["absent"] == pytest.approx(expected, abs=1e-6)

    def test_bins_above_the_declared_score_hide_data(self) -> None:
        events = stack()
        plot = stacked_score(events, 20)
        data = plot.numbers["data"]
        expected, _ = np.histogram(events.score[events.process == 3], 20, (0, 1))
        for key in ("count", "low", "high"):
            assert data[key][16:] == [None] * 4
            assert None not in data[key][:16]
        np.testing.assert_array_equal(data["count"][:16], expected[:16])
        assert "hidden" in plot.caption
        assert "blinded" in [t.get_text() for t in plot.figure.axes[0].texts]

    def test_a_bin_that_reaches_above_the_declared_score_is_hidden(self) -> None:
        counts = stacked_score(stack(blind_above=0.77), 20).numbers["data"]["count"]
        assert [c is None for c in counts] == [False] * 15 + [True] * 5

    def test_hidden_data_leave_no_trace(self) -> None:
        events = stack()
        moved = events.score.copy()
        above = (events.process == 3) & (events.score > 0.8)
        moved[above] = np.linspace(0.85, 1.0, above.sum())
        fewer = np.flatnonzero(~above | (np.cumsum(above) < 5))
        hidden = [
            replace(events, score=moved),
            replace(events, **{name: getattr(events, name)[fewer] for name in ("process", "weight", "score")}),
        ]
        plot = stacked_score(events, 20)
        for other in hidden:
            again = stacked_score(other, 20)
            assert again.numbers == plot.numbers
            assert again.png() == plot.png()

    def test_other_variables_leave_out_all_events_above_the_declared_score(self) -> None:
        events = stack()
        values = np.ma.MaskedArray(np.random.default_rng(1).normal(90, 30, 3000))
        plot = stacked_variable(events, PT, values)
        kept = events.score <= 0.8
        assert sum(plot.numbers["data"]["count"]) == (kept & (events.process == 3)).sum()
        expected = events.weight[kept & (events.process == 1)].sum()
        assert sum(plot.numbers["processes"]["ttbar"]["sum"]) == pytest.approx(expected)
        assert "at most 0.8" in plot.caption
        assert plot.figure.axes[0].get_title(loc="left") == "signal score ≤ 0.8"
        assert stacked_score(events, 20).figure.axes[0].get_title(loc="left") == ""

    @pytest.mark.parametrize("ratio", [1.0, 1e-3, 1e-6])
    def test_the_axis_reaches_down_to_signal_and_small_processes(self, ratio: float) -> None:
        rng = np.random.default_rng(4)
        process = np.repeat([0, 1, 2], 2000).astype(np.int16)
        weight = np.array([ratio, 1.0, 0.1 * ratio])[process]
        events = Stack(process, weight, rng.random(6000), PROCESSES[:3])
        plot = stacked_score(events, 20)
        bottom, top = plot.figure.axes[0].get_ylim()
        sums = {name: np.array(p["sum"]) for name, p in plot.numbers["processes"].items()}
        assert bottom < sums["ggh"].min() / 2
        assert bottom < sums["wz"].max() / 2
        assert bottom > sums["wz"].min() / 100 or ratio == 1.0
        assert top > plot.numbers["total"]["sum"][0]

    def test_the_axis_reaches_down_to_the_bin_of_least_signal(self) -> None:
        process = np.array([0, 0, 1, 1], dtype=np.int16)
        weight = np.array([0.1, 1e-3, 1e3, 1e3])
        events = Stack(process, weight, np.array([0.2, 0.7, 0.2, 0.7]), PROCESSES[:2])
        assert stacked_score(events, 2).figure.axes[0].get_ylim()[0] < 1e-3 / 2

    def test_a_single_tiny_bin_does_not_stretch_the_axis(self) -> None:
        events = Stack(np.zeros(3, np.int16), np.array([1.0, 1.0, 1e-30]), np.array([0.1, 0.3, 0.9]), PROCESSES[:1])
        assert stacked_score(events, 10).figure.axes[0].get_ylim()[0] > 1e-8

    @pytest.mark.parametrize("scale", [1e-12, 0.6, 1.0, 1e11])
    @pytest.mark.parametrize("spread", [0.0, 1.0])
    def test_labels_stand_clear_of_ticks_and_edge(self, scale: float, spread: float) -> None:
        rng = np.random.default_rng(4)
        process = rng.integers(0, 3, 2000).astype(np.int16)
        weight = scale * rng.uniform(1, 1 + spread, 2000)
        for events in (Stack(process, weight, rng.random(2000), PROCESSES[:3]), stack(weight=np.full(3000, scale))):
            plot = stacked_variable(events, PT, np.ma.asarray(rng.normal(0, 1.5, len(events.process))))
            for box, ticks in label_boxes(plot):
                assert box.x0 >= 5  # a glance of white beside it
                assert box.y1 <= plot.figure.bbox.height
                assert not any(box.overlaps(tick) for tick in ticks)
            assert [t.get_text() for t in plot.figure.axes[0].yaxis.get_minorticklabels() if t.get_text()] == []

    def test_whole_numbers_have_no_bin_width(self) -> None:
        whole = stacked_variable(stack(), Variable("jets", "jets"), np.ma.asarray(np.arange(3000) % 5))
        assert whole.figure.axes[0].get_ylabel() == "events"
        assert whole.figure.axes[1].get_xticks().tolist() == [0, 1, 2, 3, 4]
        assert stacked_score(stack(), 20).figure.axes[0].get_ylabel() == "events / 0.05"

    def test_null_shows_all_data(self) -> None:
        events = stack(blind_above=None)
        assert sum(stacked_score(events, 20).numbers["data"]["count"]) == (events.process == 3).sum()

    def test_without_collision_data_nothing_is_hidden(self) -> None:
        events = stack()
        kept = events.process < 3
        rows = {name: getattr(events, name)[kept] for name in ("process", "weight", "score")}
        events = replace(events, groups=PROCESSES[:3], **rows)
        plot = stacked_score(events, 20)
        assert plot.numbers["data"] is None
        assert "hidden" not in plot.caption
        assert len(plot.figure.axes) == 1
        total = stacked_variable(events, PT, np.ma.MaskedArray(np.arange(kept.sum()))).numbers["total"]["sum"]
        assert sum(total) == pytest.approx(events.weight.sum())

    def test_luminosity_is_shown_where_it_is_known(self) -> None:
        assert "59.7 fb" in stacked_score(stack(), 20).figure.axes[0].get_title(loc="right")
        assert stacked_score(stack(luminosity=None), 20).figure.axes[0].get_title(loc="right") == ""


def test_poisson_intervals() -> None:
    # 68.27% central intervals; Table of Cousins' "Presenting Poisson data", as ROOT's kPoisson.
    low, high = poisson_interval(np.array([0.0, 1.0, 10.0]))
    np.testing.assert_allclose(low, [0, 0.1728, 6.8914], atol=1e-4)
    np.testing.assert_allclose(high, [1.8410, 3.2995, 14.2669], atol=1e-4)
    counts = np.arange(1.0, 40)
    expected = mplhep.error_estimation.poisson_interval(counts, counts)
    np.testing.assert_allclose(poisson_interval(counts), expected, rtol=1e-6)


class TestCorrelation:
    def test_agrees_with_numpy_pair_by_pair(self) -> None:
        rng = np.random.default_rng(5)
        data = rng.normal(0, 1, (500, 4)) @ rng.normal(0, 1, (4, 4)) * [1, 1e3, 1e-3, 1] + [1e4, 0, 0, -5]
        masks = rng.random((500, 4)) < [0, 0.3, 0.5, 0.1]
        weight = rng.normal(1, 1, 500)
        matrix = correlation_matrix([np.ma.MaskedArray(data[:, i], masks[:, i]) for i in range(4)], weight)
        for i, j in np.ndindex(4, 4):
            both = ~masks[:, i] & ~masks[:, j]
            covariance = np.cov(data[both][:, [i, j]].T, aweights=np.abs(weight[both]))
            expected = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
            assert matrix[i, j] == pytest.approx(expected, abs=1e-9)

    def test_undefined_pairs_are_none(self) -> None:
        values = np.arange(6.0)
        columns = {
            "a": np.ma.MaskedArray(values, [False] * 3 + [True] * 3),
            "b": np.ma.MaskedArray(values, [True] * 3 + [False] * 3),
            "c": np.ma.MaskedArray(np.full(6, 7.0)),
        }
        plot = correlation("signal", "signal", [Variable(n, n) for n in "abc"], columns, np.ones(6))
        plot.png()
        matrix = plot.numbers["matrix"]
        assert matrix[0][0] == pytest.approx(1)
        assert matrix[0][1] is None
        assert matrix[2] == [None] * 3


class TestRoc:
    def sample(self, seed: int, count: int = 300) -> ScoredSample:
        rng = np.random.default_rng(seed)
        is_signal = rng.random(count) < 0.4
        score = np.round(rng.normal(is_signal, 1.0), 1)  # with ties
        return ScoredSample(score, is_signal, rng.normal(1, 0.8, count), {"value": 0.7, "low": 0.6, "high": 0.8})

    def test_area_is_the_auc(self) -> None:
        test, pooled = self.sample(1), self.sample(2)
        numbers = roc(test, pooled, [self.sample(3), self.sample(4)]).numbers
        for sample, curve in ((test, numbers["test"]), (pooled, numbers["out_of_fold"])):
            area = np.trapezoid(curve["background_rejection"], curve["signal_efficiency"])
            assert area == pytest.approx(roc_auc(sample.score, sample.is_signal, sample.weight))

    def test_thinning_keeps_the_ends_and_the_area(self) -> None:
        rng = np.random.default_rng(0)
        is_signal = rng.random(20_000) < 0.5
        sample = ScoredSample(rng.normal(is_signal, 1.0), is_signal, np.ones(20_000), self.sample(1).auc)
        curve = roc(sample, sample, []).numbers["test"]
        points = np.array([curve["signal_efficiency"], curve["background_rejection"]])
        assert points.shape[1] <= 500
        np.testing.assert_allclose(points[:, [0, -1]], [[0, 1], [1, 0]], atol=1e-12)
        expected = roc_auc(sample.score, is_signal, sample.weight)
        assert np.trapezoid(points[1], points[0]) == pytest.approx(expected, abs=1e-4)

    def test_axes_say_what_is_drawn(self) -> None:
        ax = roc(self.sample(1), self.sample(2), []).figure.axes[0]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("signal efficiency", "1 − background efficiency")

    def test_legend_gives_the_interval_and_the_scheme(self) -> None:
        plot = roc(self.sample(1), self.sample(2), [self.sample(3)], "standard")
        texts = " ".join(t.get_text() for t in plot.figure.axes[0].get_legend().get_texts())
        assert "ensemble, test events: AUC 0.700 [0.600, 0.800]" in texts
        assert "out-of-fold, standard" in texts

    def test_undefined_curves_are_left_out(self) -> None:
        negative = replace(self.sample(1), weight=-np.ones(300), auc={"value": None, "low": None, "high": None})
        plot = roc(negative, self.sample(2), [negative])
        plot.png()
        assert plot.numbers["test"]["signal_efficiency"] is None
        assert "not defined" in " ".join(t.get_text() for t in plot.figure.axes[0].get_legend().get_texts())


class TestOvertraining:
    def inputs(self, shift: float = 0.0) -> dict[str, Any]:
        rng = np.random.default_rng(2)
        count = 600
        fold = rng.integers(0, 4, count)
        held_out = fold == np.arange(4)[:, np.newaxis]
        trained = ~held_out & (fold != ((np.arange(4) + 1) % 4)[:, np.newaxis])
        label = rng.integers(0, 2, count)
        scores = np.clip(rng.normal(0.5, 0.15, (4, count)) + shift * trained, 0, 1)
        return {
            "scores": scores,
            "trained": trained,
            "held_out": held_out,
            "label": label,
            "weight": rng.normal(1, 0.5, count),
            "classes": CLASSES,
        }

    def test_histograms_pool_networks_and_count_an_event_once_in_the_variance(self) -> None:
        inputs = self.inputs()
        numbers = overtraining(**inputs)[1].numbers
        bins = np.minimum((inputs["scores"] * 20).astype(int), 19)
        total, variance = np.zeros(20), np.zeros(20)
        for event in np.flatnonzero(inputs["label"] == 1):
            times = np.bincount(bins[inputs["trained"][:, event], event], minlength=20)
            total += times * inputs["weight"][event]
            variance += (times * inputs["weight"][event]) ** 2
        area = total.sum() / 20
        np.testing.assert_allclose(numbers["training"]["density"], total / area, atol=1e-12)
        np.testing.assert_allclose(numbers["training"]["uncertainty"], np.sqrt(variance) / area, atol=1e-12)
        for part in ("training", "out_of_fold"):
            assert np.sum(numbers[part]["density"]) / 20 == pytest.approx(1)

    def test_p_values_are_holm_corrected_over_networks_and_classes(self) -> None:
        inputs = self.inputs(shift=0.03)
        plots = overtraining(**inputs)
        raw = []
        for label in range(2):
            for network in range(4):
                a, b = (inputs[key][network] & (inputs["label"] == label) for key in ("trained", "held_out"))
                score, weight = inputs["scores"][network], inputs["weight"]
                raw.append(ks_weighted(score[a], weight[a], score[b], weight[b]).p_value)
        order = np.argsort(raw)
        expected = np.empty(8)
        expected[order] = np.minimum(1, np.maximum.accumulate(np.array(raw)[order] * np.arange(8, 0, -1)))
        got = [p for plot in plots for p in plot.numbers["ks_p_values"]]
        np.testing.assert_allclose(got, expected)
        assert min(raw) < min(got) < 1

    def test_learning_by_heart_is_seen(self) -> None:
        plots = overtraining(**self.inputs(shift=0.2))
        assert max(p for plot in plots for p in plot.numbers["ks_p_values"]) < 1e-3

    def test_a_class_without_positive_weight_is_left_out(self) -> None:
        inputs = self.inputs()
        inputs["weight"] = np.where(inputs["label"] == 1, -1.0, 1.0)
        plot = overtraining(**inputs)[1]
        plot.png()
        assert plot.numbers["training"]["density"] is None
        assert plot.numbers["ks_p_values"] == [None] * 4


def test_learning_curves_mark_the_kept_epoch() -> None:
    plot = learning_curves([history(0), history(1), history(1, member=1)])
    marks = [line for line in plot.figure.axes[0].lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [(m.get_xdata()[0], m.get_ydata()[0]) for m in marks] == [(2, 0.7), (2, 0.71), (2, 0.71)]
    assert [n["fold"] for n in plot.numbers["networks"]] == [0, 1, 1]
    labels = [t.get_text() for t in plot.figure.axes[0].get_legend().get_texts()]
    assert labels == ["network 0", "network 1", "training", "validation", "kept epoch"]


@pytest.mark.parametrize("folds", [2, 5, 6, 8, 10, 20])
def test_networks_have_colours_of_their_own_and_none_is_grey(folds: int) -> None:
    legend = learning_curves([history(f) for f in range(folds)]).figure.axes[0].get_legend()
    colors = [to_rgb(line.get_color()) for line in legend.get_lines()]
    networks, styles = colors[:folds], colors[folds:]
    assert len(set(networks)) == folds
    assert all(rgb_to_hsv(color)[1] > 0.2 for color in networks)
    assert all(rgb_to_hsv(color)[1] == 0 for color in styles)


def test_confusion_writes_shares_in_percent() -> None:
    plot = confusion([[0.75, 0.25], [None, None]], CLASSES)
    plot.png()
    assert [t.get_text() for t in plot.figure.axes[0].texts] == ["75.0%", "25.0%", "–", "–"]
    assert plot.numbers == {"classes": ["higgs", "top"], "matrix": [[0.75, 0.25], [None, None]]}


def test_category_without_an_auc_is_said() -> None:
    estimates = {
        "one_lepton": {"value": 0.8, "low": 0.7, "high": 0.85},
        "two_leptons": {"value": None, "low": None, "high": None},
        "three": {"value": 0.6, "low": None, "high": None},
    }
    plot = category_auc(estimates)
    plot.png()
    assert plot.numbers == estimates
    assert "not defined" in [t.get_text() for t in plot.figure.axes[0].texts]


def test_the_axis_of_an_auc_ends_at_one() -> None:
    estimates = {
        "a": {"value": 0.7, "low": 0.68, "high": 0.72},
        "b": {"value": 0.994, "low": 0.99, "high": 0.997},
    }
    plot = category_auc(estimates)
    assert plot.figure.axes[0].get_xlim()[1] == 1
    assert category_auc({"a": estimates["a"]}).figure.axes[0].get_xlim()[1] < 1


def appearance(count: int, color: str = "#123456") -> Appearance:
    """`count` simulated processes, of which p0 and p2 are the signal, and one of collision data."""
    names = [f"p{i}" for i in range(count)]
    return Appearance(
        titles={"observed": "", **dict.fromkeys(names, ""), "p3": "Z"},
        colors={"observed": None, **dict.fromkeys(names), "p3": color},
        collision=("observed",),
        classes={"other": ("p1",), "s_class": ("p2", "p0")},
        signal="s_class",
    )


@pytest.mark.parametrize("count", [4, 6, 7, 9])
def test_processes_and_classes_as_they_are_drawn(count: int) -> None:
    processes, classes = groups(appearance(count))
    assert [(g.title, g.signal) for g in classes] == [("other", False), ("s class", True)]
    by_name = {g.name: g for g in processes}
    assert [n for n, g in by_name.items() if g.collision] == ["observed"]
    assert [n for n, g in by_name.items() if g.signal] == ["p0", "p2"]
    assert (by_name["p3"].color, by_name["p3"].title) == ("#123456", "Z")
    assert len({g.color for g in processes}) == count + 1
    red, green, blue = to_rgb(by_name["p0"].color)
    assert red > 2 * max(green, blue)


def test_a_colour_that_is_none_names_its_key() -> None:
    with pytest.raises(UserError, match=r"processes\.p3\.color: 'reddish'"):
        groups(appearance(4, color="reddish"))


@pytest.mark.parametrize("name", ["CMS", "ATLAS", "LHCb"])
def test_an_experiment_gives_its_fonts_and_its_label(inputs: Inputs, name: Any) -> None:
    plain = make(*inputs)
    with styled(Style(name, "Preliminary")):
        plots = make(*inputs)
        for plot in plots.values():
            plot.png()  # a sign that no font has is a warning, and thereby an error
        assert plots["stacked_score"].png() != plain["stacked_score"].png()
    fonts = {text.get_fontfamily()[0].lower() for text in plots["roc"].figure.axes[0].get_xticklabels()}
    assert fonts == {"tex gyre termes" if name == "LHCb" else "tex gyre heros"}
    texts = [text.get_text() for text in plots["stacked_score"].figure.axes[0].texts]
    assert name in texts
    assert "Preliminary" in texts  # with collision data; without, it is a simulation
    assert "Simulation Preliminary" in [text.get_text() for text in plots["roc"].figure.axes[0].texts]
    assert plots["stacked_score"].numbers == plain["stacked_score"].numbers
