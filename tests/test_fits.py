"""Fits of the likelihood model, against cabinetry's by Minuit where that converges."""

from __future__ import annotations

from typing import Any

import cabinetry
import numpy as np
import pytest

from analysis.fits import Fits
from analysis.histograms import Histogram
from analysis.likelihood import Channel, Likelihood, Nuisance
from analysis.nuisance_plots import described, impacts, nuisance_plots, tables, template_plots
from analysis.variations import Variation

# jsonschema deprecates what pyhf 0.7.6 validates with, and pyhf what numpy 2.4 does; nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def histogram(values: list[float], error: float = 0.04) -> Histogram:
    array = np.array(values)
    count = np.full(len(array), 400, dtype=np.int64)
    return Histogram(np.linspace(0, 1, len(array) + 1), array, (error * array) ** 2, count)


@pytest.fixture(scope="module")
def workspace() -> dict[str, Any]:
    scale = Variation(
        {"scale": ("top",)},
        {"top": histogram([88.0, 63.0, 24.0])},
        {"top": histogram([93.0, 56.0, 35.0])},
    )
    channel = Channel.of(
        "score",
        {"higgs": histogram([4.0, 8.0, 16.0]), "top": histogram([90.0, 60.0, 30.0])},
        ["higgs"],
        data=histogram([97.0, 70.0, 52.0]),
        uncertainties=[Nuisance("luminosity", 1 / 1.05, 1.05, ("higgs", "top")), scale],
    )
    return Likelihood((channel,)).workspace()


def test_a_fit_is_that_of_minuit(workspace: dict[str, Any]) -> None:
    fits = Fits(workspace)
    data = fits.observed(workspace)
    best = fits.fit(data)
    model, theirs = cabinetry.model_utils.model_and_data(workspace)
    np.testing.assert_allclose(data, theirs)
    minuit = cabinetry.fit.fit(model, theirs)
    assert list(fits.names) == minuit.labels
    np.testing.assert_allclose(best.parameters, minuit.bestfit, atol=2e-3)
    # Theirs are from the observed curvature, ours from the expected one.
    np.testing.assert_allclose(best.uncertainties, minuit.uncertainty, rtol=0.05)
    np.testing.assert_allclose(best.correlation, minuit.corr_mat, atol=0.05)
    assert 1.2 < best.parameters[fits.poi] < 1.6


def test_impacts_are_those_of_cabinetry(workspace: dict[str, Any]) -> None:
    fits = Fits(workspace)
    data = fits.observed(workspace)
    found = impacts(fits, data, fits.fit(data))
    model, theirs = cabinetry.model_utils.model_and_data(workspace)
    ranking = cabinetry.fit.ranking(model, theirs)
    assert {fits.names[impact.place] for impact in found} == {"scale", "luminosity"}
    assert [impact.size for impact in found] == sorted((impact.size for impact in found), reverse=True)
    for impact in found:
        row = ranking.labels.index(fits.names[impact.place])
        expected = [
            ranking.prefit_down[row],
            ranking.prefit_up[row],
            ranking.postfit_down[row],
            ranking.postfit_up[row],
        ]
        np.testing.assert_allclose([*impact.before, *impact.after], expected, rtol=0.06, atol=5e-3)


def test_a_fit_of_asimov_data_ends_in_the_truth(workspace: dict[str, Any]) -> None:
    fits = Fits(workspace)
    best = fits.fit(fits.asimov(1.7))
    assert best.parameters[fits.poi] == pytest.approx(1.7, rel=1e-4)
    assert best.deviance == pytest.approx(0, abs=1e-6)
    deficit = fits.asimov(0.0)
    deficit[2] -= 5
    assert fits.fit(deficit).parameters[fits.poi] < 0


def test_a_fixed_parameter_stays(workspace: dict[str, Any]) -> None:
    fits = Fits(workspace)
    place = fits.names.index("scale")
    held = fits.fit(fits.asimov(1.0), strength=2.0, fixed={place: 0.5})
    assert held.parameters[place] == 0.5
    assert held.parameters[fits.poi] == 2.0
    assert held.uncertainties[place] == held.uncertainties[fits.poi] == 0
    assert held.deviance > fits.fit(fits.asimov(1.0), strength=2.0).deviance > 0


def test_a_page_has_tables_and_plots(workspace: dict[str, Any]) -> None:
    fits = Fits(workspace)
    data = fits.observed(workspace)
    best = fits.fit(data)
    found = impacts(fits, data, best)
    content = described(fits, best, found)
    strength, nuisances = tables(content)
    assert strength.rows[0][1] == f"{best.parameters[fits.poi]:.4g}"
    assert [row[0] for row in nuisances.rows] == list(content["impacts"])
    plots = nuisance_plots(fits, best, found)
    assert [plot.name for plot in plots] == ["impacts", "pulls", "correlations"]
    assert all(plot.png().startswith(b"\x89PNG") and plot.png() == plot.png() for plot in plots)
    assert set(plots[1].numbers) == {"scale", "luminosity"}


def test_templates_are_drawn_with_their_variations() -> None:
    templates = {
        "higgs": histogram([4.0, 8.0]),
        "top": histogram([90.0, 60.0]),
        "ww": histogram([10.0, 0.0]),
        "top_scaleUp": histogram([99.0, 54.0]),
        "top_scaleDown": histogram([81.0, 60.0]),
    }
    processes = {"higgs": True, "top": False, "ww": False}
    (plot,) = template_plots("score", templates, processes, ["luminosity", "scale"])
    assert plot.name == "variation_score-scale"
    assert set(plot.numbers) == {"edges", "background"}
    np.testing.assert_allclose(plot.numbers["background"]["up"], [0.09, -0.1])
    np.testing.assert_allclose(plot.numbers["background"]["down"], [-0.09, 0])
    np.testing.assert_allclose(plot.numbers["background"]["statistical"], [0.04 * np.hypot(90, 10) / 100, 0.04])
    assert plot.png().startswith(b"\x89PNG")


def test_a_model_without_systematic_uncertainties_has_no_impacts() -> None:
    bare = Likelihood(
        (Channel.of("score", {"higgs": histogram([4.0, 8.0]), "top": histogram([90.0, 60.0])}, ["higgs"]),)
    ).workspace()
    fits = Fits(bare)
    best = fits.fit(fits.asimov(1.0))
    assert impacts(fits, fits.asimov(1.0), best) == []
    assert [table.title for table in tables(described(fits, best, []))] == ["Signal strength"]
    assert {plot.name for plot in nuisance_plots(fits, best, [])} <= {"correlations"}
