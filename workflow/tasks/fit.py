"""FitModel: a fit of the likelihood model, with pulls, impacts and correlations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.config import Configuration
from analysis.errors import UserError
from workflow.base import Given
from workflow.store import read_json, write_json
from workflow.tasks.beside import PAGE, PageTask
from workflow.tasks.plots import write_plots
from workflow.tasks.publishing import page_sources
from workflow.tasks.statistics import WriteStatistics

if TYPE_CHECKING:
    from analysis.style import Style


@dataclass(frozen=True)
class FitSlice:
    """What the page says, and how it looks."""

    name: str
    signals: tuple[str, ...]
    style: Style


class FitModel(PageTask):
    """Fit the likelihood model of the main job to its observed events: a page of its own beside it."""

    exclude_index = False
    libraries = ("numpy", "scipy", "pyhf", "cabinetry")

    @property
    def published(self) -> str:
        return "fit"

    def requires(self) -> Any:
        return {"statistics": WriteStatistics.req(self)}

    def slice(self, config: Configuration) -> FitSlice:
        from analysis.style import Style

        return FitSlice(
            name=config.name,
            signals=config.classes.processes[config.classes.signal],
            style=Style(config.outputs.style, config.outputs.label),
        )

    def outside(self) -> Any:
        return page_sources("page")

    def files(self) -> Sequence[str]:
        return ("fit.json", *PAGE)

    @staticmethod
    def compute(settings: FitSlice, given: Given, out: Path) -> None:
        from analysis.fits import Fits, UnconvergedError
        from analysis.histograms import Histogram
        from analysis.likelihood import FOLDER
        from analysis.nuisance_plots import SHOWN, described, impacts, nuisance_plots, tables, template_plots
        from analysis.page import Picture, as_text, render
        from analysis.style import styled

        statistics = given.made["statistics"]
        workspace = read_json(statistics.path("workspace.json"))
        histograms = read_json(statistics.path("histograms.json"))
        observed = histograms["observed"]
        fits = Fits(workspace)
        data = fits.observed(workspace)
        try:
            best = fits.fit(data)
        except UnconvergedError as error:
            raise UserError(
                f"The fit of the likelihood model of {settings.name} does not converge. Smooth or prune lopsided "
                "variations (outputs.nuisances.NAME.smooth, .prune), or use fewer bins (outputs.histogram.bins)."
            ) from error
        found = impacts(fits, data, best)
        content = {"observed": observed, **described(fits, best, found)}
        write_json(out / "fit.json", content)
        shown = [fits.names[impact.place] for impact in found][:SHOWN]
        with styled(settings.style):
            plots = nuisance_plots(fits, best, found)
            for channel in workspace["channels"]:
                folder = histograms["histograms"][f"{FOLDER}/{channel['name']}"]
                templates = {name: Histogram.from_json(own) for name, own in folder.items()}
                processes = {sample["name"]: sample["name"] in settings.signals for sample in channel["samples"]}
                plots += template_plots(channel["name"], templates, processes, shown)
            write_plots(plots, out / "plots")
            pictures = [Picture(plot.png(), plot.title, plot.caption) for plot in plots]
        (out / "table.txt").write_text(as_text(tables(content)))
        note = (
            f"The likelihood model (workspace.json) fitted to {fits.events} bins of "
            f"{'collision data' if observed == 'data' else 'Asimov data with a signal strength of 1'}. "
            "Uncertainties follow from the expected curvature of the likelihood; the statistical uncertainties of the "
            "simulation are fitted too, and not listed."
        )
        (out / "page.html").write_text(
            render(f"{settings.name}: fit of the signal strength", [note], tables(content), pictures)
        )
