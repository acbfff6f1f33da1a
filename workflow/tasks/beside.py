"""Steps beside the main job, which they leave as it is: pages of their own, and networks judged anew, out of fold."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.config import Configuration
from analysis.errors import UserError
from models.settings import Combination
from workflow.tasks.export import load_ensemble
from workflow.tasks.folds import PrepareFolds
from workflow.tasks.plots import write_plots
from workflow.tasks.publishing import PublishedTask, page_sources
from workflow.tasks.tables import Sums, load_events, require_events
from workflow.tasks.train import TrainFolds

if TYPE_CHECKING:
    from analysis.importance import Judge
    from analysis.page import Table
    from analysis.plots import Plot
    from analysis.pool import Pool
    from analysis.table import EventTable, TableSettings

PAGE = ("table.txt", "page.html", "plots/")
"""Outputs of `write_page`."""


class PageTask(PublishedTask):
    """A step that writes a page of its own, and points results/<name>-<published> at it.

    Attributes:
        page: File name of the page.
    """

    exclude_index = True
    page = "page.html"

    @property
    @abstractmethod
    def published(self) -> str:
        """What the page is about, in a word or two."""

    def table(self) -> str:
        """What the terminal shows."""
        return self.path("table.txt").read_text()

    def conclude(self) -> None:
        """Print the table and where the page is, also if there was nothing to do."""
        link = self.folder
        with suppress(OSError):  # `run` has said so
            link = self.publish()
        sys.stdout.write(f"\n{self.table().rstrip()}\n\npage: {link / self.page}\n")
        sys.stdout.flush()


class JudgingTask(PageTask):
    """A step that judges networks out of fold, beginning with those of the main job."""

    exclude_index = True
    libraries: tuple[str, ...] = ("numpy", "torch")

    def requires(self) -> Any:
        return {
            **require_events(self, self.plan.config.training_datasets(), ("features", "factors")),
            "pool": PrepareFolds.req(self),
            "networks": TrainFolds.req(self, branches=()),
        }

    def outside(self) -> Any:
        return page_sources("page")


@dataclass(frozen=True)
class JudgedSlice:
    """Which events networks are judged on, and how."""

    table: TableSettings
    sums: Sums
    name: str
    classes: tuple[str, ...]
    signal: str
    scheme: str
    folds: int
    salt: str
    replicas: int
    seed: int
    combination: Combination

    @staticmethod
    def of(config: Configuration) -> JudgedSlice:
        """The slice of an analysis: the events of all classes."""
        from analysis.table import TableSettings

        processes = [p for p in config.processes if config.class_of(p) >= 0]
        return JudgedSlice(
            table=TableSettings.of(config, processes, config.feature_names),
            sums=Sums.of(config, config.training_datasets()),
            name=config.name,
            classes=config.class_names,
            signal=config.classes.signal,
            scheme=config.folds.scheme,
            folds=config.folds.count,
            salt=str(config.folds.salt),
            replicas=config.outputs.replicas,
            seed=config.seed,
            combination=config.training.combination,
        )


def check_method(config: Configuration, method: str) -> None:
    """Refuse integrated gradients of members that are several networks.

    Raises:
        UserError: Those of `config` are.
    """
    if method == "integrated_gradients" and config.model.missing == "separate":
        raise UserError(
            "--method integrated_gradients: with model.missing: separate no path leads from the network of one pattern "
            "of objects to that of another. Choose permutation."
        )


@dataclass(frozen=True)
class Judged:
    """Events that are not held out, with their folds and weights scaled to all events, and the main job's networks.

    Attributes:
        table: The events.
        folds: int64 [N].
        weight: float64 [N].
        settings: How they are judged.
        pool: Those of them that networks train and stop on.
        ensemble: The networks of the main job.
    """

    table: EventTable
    folds: Any
    weight: Any
    settings: JudgedSlice
    pool: Pool
    ensemble: Any

    @property
    def signal(self) -> int:
        """Index of the signal class."""
        return self.settings.classes.index(self.settings.signal)

    @cached_property
    def inputs(self) -> tuple[Any, Any]:
        """Values and presence of the features, [N, F] each."""
        return self.table.matrix(self.ensemble.signature.features)

    @cached_property
    def judge(self) -> Judge:
        """Compares scores [N, C] of these events with those of the main job's networks."""
        from analysis.importance import Judge
        from analysis.metrics import Sample

        own = self.table
        sample = Sample(self.scores(self.ensemble), own.label, self.weight, own.process, own.identity)
        return Judge(sample, self.signal, self.settings.replicas, self.settings.seed)

    @property
    def about(self) -> dict[str, Any]:
        """What figures of merit rest on, for the files that hold them."""
        s = self.settings
        return {"analysis": s.name, "signal": s.signal, "scheme": s.scheme, "events": len(self.table)}

    def scores(self, ensemble: Any) -> Any:
        """Scores [N, C] of each event by the networks that left its fold out."""
        from models.importance import out_of_fold

        return out_of_fold(ensemble, *self.inputs, self.folds)

    def merit(self, ensemble: Any) -> dict[str, Any]:
        """AUC and log-loss of other networks, and how much worse they are than the main job's."""
        scores = self.scores(ensemble)
        lost = self.judge.drop([scores])
        return {**self.judge.merit(scores), "auc_lost": lost["auc"], "log_loss_added": lost["log_loss"]}

    def ensembles(self, members: Sequence[Any], count: int) -> list[Any]:
        """Ensembles of networks that were trained together, so many each, combined as those of the main job."""
        from models.ensemble import Ensemble

        cuts = range(0, len(members), count)
        return [Ensemble(tuple(members[cut : cut + count]), self.settings.combination) for cut in cuts]


def load_judged(made: Mapping[str, Any], settings: JudgedSlice) -> Judged:
    """The events on which the report gives figures of merit out of fold; no test event is among them."""
    import numpy as np

    from analysis.evaluation import Scales
    from analysis.pool import load_pool
    from analysis.splitting import fold_of

    table, totals = load_events(made, settings.table, settings.sums)
    weight = table.weight * Scales.of(table, totals, ()).per_event(table)
    rows = ~table.is_test & (table.label >= 0)
    own = table.take(rows)
    return Judged(
        table=own,
        folds=fold_of(own.identity, settings.folds, settings.salt).astype(np.int64),
        weight=weight[rows],
        settings=settings,
        pool=load_pool(made["pool"].path("pool")),
        ensemble=load_ensemble(made["networks"], settings.combination, ratios=True),
    )


def write_page(  # noqa: PLR0917
    out: Path,
    settings: JudgedSlice,
    title: str,
    note: str,
    tables: Sequence[Table],
    plots: Sequence[Plot],
) -> None:
    """Write table, page and plots.

    Args:
        out: Where.
        settings: How networks were judged, which the page says.
        title: Of the page, behind the name of the analysis.
        note: What was done.
        tables: Of the page and the terminal.
        plots: Of the page.
    """
    from analysis.page import Picture, as_text, render

    (out / "table.txt").write_text(as_text(tables))
    write_plots(plots, out / "plots")
    pictures = [Picture(plot.png(), plot.title, plot.caption) for plot in plots]
    (out / "page.html").write_text(render(f"{settings.name}: {title}", [note, _basis(settings)], tables, pictures))


def _basis(settings: JudgedSlice) -> str:
    """Which events the figures rest on."""
    note = (
        f"All figures are out of fold ({settings.scheme}): each event is judged by the networks that left its fold "
        "out, and no held-out test event is used. Intervals are those of 68% over events; the networks are held fixed."
    )
    if settings.scheme == "standard":
        note += " With the standard scheme networks stopped on these folds, so that figures are slightly optimistic."
    return note
