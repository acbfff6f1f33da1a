"""What steps beside the main job share that judge networks out of fold: the events, and a page of their own."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.config import Configuration
from analysis.errors import UserError
from models.settings import Combination
from workflow.base import Task
from workflow.store import write_json
from workflow.tasks.tables import Sums, load_events, require_events

if TYPE_CHECKING:
    from analysis.importance import Judge
    from analysis.page import Table
    from analysis.plots import Plot
    from analysis.table import EventTable, TableSettings

PAGE = ("table.txt", "page.html", "plots/")
"""Outputs of `write_page`."""


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
    """Events that are not held out, with their folds and weights scaled to all events.

    Attributes:
        table: The events.
        folds: int64 [N].
        weight: float64 [N].
        settings: How they are judged.
    """

    table: EventTable
    folds: Any
    weight: Any
    settings: JudgedSlice

    @property
    def signal(self) -> int:
        """Index of the signal class."""
        return self.settings.classes.index(self.settings.signal)

    def matrix(self, features: Sequence[str]) -> tuple[Any, Any]:
        """Values and presence of some features, [N, F] each."""
        return self.table.matrix(features)

    def judge(self, scores: Any) -> Judge:
        """Compare others with the scores [N, C] of these events."""
        from analysis.importance import Judge
        from analysis.metrics import Sample

        own = self.table
        sample = Sample(scores, own.label, self.weight, own.process, own.identity)
        return Judge(sample, self.signal, self.settings.replicas, self.settings.seed)


def require_judged(task: Task[Any]) -> dict[str, Any]:
    """Requirements of a step that judges networks out of fold."""
    return require_events(task, task.plan.config.training_datasets(), ("features", "factors"))


def load_judged(made: Mapping[str, Any], settings: JudgedSlice) -> Judged:
    """The events on which the report gives figures of merit out of fold; no test event is among them."""
    import numpy as np

    from analysis.evaluation import Scales
    from analysis.splitting import fold_of

    table, totals = load_events(made, settings.table, settings.sums)
    weight = table.weight * Scales.of(table, totals, ()).per_event(table)
    rows = ~table.is_test & (table.label >= 0)
    own = table.take(rows)
    folds = fold_of(own.identity, settings.folds, settings.salt).astype(np.int64)
    return Judged(own, folds, weight[rows], settings)


def scheme_note(settings: JudgedSlice) -> str:
    """Which events the figures rest on."""
    note = (
        f"All figures are out of fold ({settings.scheme}): each event is judged by the networks that left its fold "
        "out, and no held-out test event is used. Intervals are those of 68% over events; the networks are held fixed."
    )
    if settings.scheme == "standard":
        note += " With the standard scheme networks stopped on these folds, so that figures are slightly optimistic."
    return note


def write_page(
    out: Path, title: str, paragraphs: Sequence[str], tables: Sequence[Table], plots: Sequence[Plot]
) -> None:
    """Write table, page and plots."""
    from analysis.page import Picture, as_text, render

    (out / "table.txt").write_text(as_text(tables))
    (out / "plots").mkdir()
    for plot in plots:
        (out / "plots" / f"{plot.name}.png").write_bytes(plot.png())
        write_json(out / "plots" / f"{plot.name}.json", plot.numbers)
    pictures = [Picture(plot.png(), plot.title, plot.caption) for plot in plots]
    (out / "page.html").write_text(render(title, paragraphs, tables, pictures))


def show_page(task: Task[Any]) -> None:
    """Print the table, and where the page is."""
    sys.stdout.write(f"\n{task.path('table.txt').read_text()}\npage: {task.path('page.html')}\n")
    sys.stdout.flush()
