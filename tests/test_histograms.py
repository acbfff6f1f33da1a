"""Histograms of scores, against numpy, and as other programs read them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import uproot
from hypothesis import given
from hypothesis import strategies as st

from analysis.histograms import Histogram, score_histograms, write_histograms


@given(st.integers(0, 10_000))
def test_histograms_equal_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score, weight, process = rng.integers(0, 11, 50) / 10, rng.normal(1, 1, 50), rng.integers(0, 2, 50)
    edges = np.array([0.0, 0.1, 0.5, 1.0])
    histograms = score_histograms(score, weight, process, ["a", "b", "empty"], edges)
    for p, name in enumerate(["a", "b", "empty"]):
        part = process == p
        found = histograms[name]
        np.testing.assert_allclose(found.values, np.histogram(score[part], edges, weights=weight[part])[0])
        np.testing.assert_allclose(found.variances, np.histogram(score[part], edges, weights=weight[part] ** 2)[0])
        np.testing.assert_array_equal(found.entries, np.histogram(score[part], edges)[0])
    assert histograms["empty"].values.tolist() == [0.0, 0.0, 0.0]


def test_histograms_lose_no_event() -> None:
    edges = np.array([0.0, 0.5, 1.0])
    for score in (1.1, -0.1, np.nan):
        with pytest.raises(ValueError, match="1 of 1 scores are NaN or outside"):
            Histogram.fill(np.array([score]), np.ones(1), edges)
    with pytest.raises(ValueError, match="edges must be"):
        Histogram.fill(np.array([0.5]), np.ones(1), edges[::-1])
    with pytest.raises(ValueError, match="processes from 0 to 1, but there are 1 names"):
        score_histograms(np.full(2, 0.5), np.ones(2), np.arange(2), ["a"], edges)
    with pytest.raises(ValueError, match="values has the shape"):
        Histogram(edges, np.ones(3), np.ones(2), np.ones(2, dtype=np.int64))


def test_histograms_survive_json_and_become_hist() -> None:
    rng = np.random.default_rng(5)
    score, weight = rng.random(200), rng.normal(1, 1, 200)
    histogram = Histogram.fill(score, weight, np.array([0.0, 0.3, 0.6, 1.0]))
    back = Histogram.from_json(json.loads(json.dumps(histogram.to_json())))
    for name in ("edges", "values", "variances", "entries"):
        np.testing.assert_array_equal(getattr(back, name), getattr(histogram, name))
    other = histogram.to_hist()
    np.testing.assert_array_equal(other.values(), histogram.values)
    np.testing.assert_array_equal(other.variances(), histogram.variances)
    np.testing.assert_array_equal(other.axes[0].edges, histogram.edges)


def test_histograms_become_those_of_root(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    edges = np.array([0.0, 0.1, 0.5, 1.0])
    named = {name: Histogram.fill(rng.random(50), rng.normal(1, 1, 50), edges) for name in ("higgs", "data_obs")}
    write_histograms(tmp_path / "histograms.root", {"fit": named, "two_jets/score_higgs_ensemble": named})
    with uproot.open(tmp_path / "histograms.root") as file:
        for folder in ("fit", "two_jets/score_higgs_ensemble"):
            for name, histogram in named.items():
                found = file[f"{folder}/{name}"]
                assert found.classname == "TH1D"
                np.testing.assert_array_equal(found.values(), histogram.values)
                np.testing.assert_array_equal(found.variances(), histogram.variances)
                np.testing.assert_array_equal(found.axis().edges(), edges)
