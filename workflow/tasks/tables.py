"""What the steps that look at many files require, and how they put it together to one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.config import Configuration
from workflow.base import Task, branches_of
from workflow.store import read_json
from workflow.tasks.features import GROUPS, ComputeFeatures, names_of
from workflow.tasks.inputs import ListInputs
from workflow.tasks.select import SelectEvents

if TYPE_CHECKING:
    from analysis.selection import Cutflow
    from analysis.table import EventTable, TableSettings
    from analysis.weights import Totals


@dataclass(frozen=True)
class Sums:
    """Data sets that declare their sum of generated weights: as a number, and the process of each, file or number."""

    declared: dict[str, float]
    owners: dict[str, str]

    @staticmethod
    def of(config: Configuration, datasets: Iterable[str]) -> Sums:
        """The declared numbers among some data sets."""
        generated = {name: config.generated_of(name) for name in datasets}
        return Sums(
            declared={name: float(value) for name, value in generated.items() if isinstance(value, (int, float))},
            owners={name: config.processes_of(name)[0] for name, value in generated.items() if value is not None},
        )


def require_events(task: Task[Any], datasets: Sequence[str], groups: Sequence[str], shift: str = "") -> dict[str, Any]:
    """Requirements of a step that reads all events of some data sets.

    Args:
        task: The step.
        datasets: Names of the data sets.
        groups: Groups of columns; one without functions requires nothing.
        shift: The function that shifts the events; empty for events as they are.
    """
    plan = task.plan
    chunks, files = plan.chunks_of(datasets), plan.files_of(datasets)
    requirements = {"inputs": ListInputs.req(task, branch=-1, **branches_of(files, len(plan.files)))}
    if chunks:
        chosen = branches_of(chunks, len(plan.chunks))
        requirements["events"] = SelectEvents.req(task, branch=-1, shift=shift, **chosen)
        for group in groups:
            own = plan.chunks_of(name for name in datasets if names_of(plan.config, group, name))
            if own:
                part = branches_of(own, len(plan.chunks))
                requirements[group] = ComputeFeatures.req(task, branch=-1, group=group, shift=shift, **part)
    return requirements


def load_events(made: Mapping[str, Any], settings: TableSettings, sums: Sums) -> tuple[EventTable, dict[str, Totals]]:
    """Put the column stores that `require_events` asked for together.

    Returns:
        The table, and the sums per process from before the selection.
    """
    from analysis.table import Chunk, load_table

    groups = [made[name] for name in GROUPS if name in made]
    chunks = []
    for number, events in made.get("events", {}).items():
        columns: dict[str, Path] = {}
        for group in groups:
            if number in group:
                columns |= group[number].paths()
        file = events.about.file
        chunks.append(Chunk(file.dataset, file.key, events.path("events.parquet"), columns))
    totals = load_totals(made, sums)
    return load_table(chunks, totals, settings), totals


def load_totals(made: Mapping[str, Any], sums: Sums) -> dict[str, Totals]:
    """Sums per process over all chunks and files, from before the selection."""
    from analysis.weights import Totals, collect_totals

    counted = [
        (
            events.about.file.dataset,
            {p: Totals(**t) for p, t in read_json(events.path("cutflow.json"))["totals"].items()},
        )
        for events in made.get("events", {}).values()
    ]
    generated = [
        (inputs.about.dataset, read_json(inputs.path("inputs.json"))["generated"]) for inputs in made["inputs"].values()
    ]
    return collect_totals(counted, generated, sums.declared, sums.owners)


def load_cutflows(made: Mapping[str, Any], settings: TableSettings, sums: Sums) -> dict[str, Cutflow]:
    """Add up the cutflows of all chunks, process by process, in expected events."""
    from analysis.selection import Cutflow

    flows: dict[str, Cutflow] = {}
    for events in made.get("events", {}).values():
        for process, flow in read_json(events.path("cutflow.json"))["cutflow"].items():
            flows[process] = flows.get(process, Cutflow()) + Cutflow(**flow)
    totals = load_totals(made, sums)
    return {name: flow.scaled(settings.normalisations[name].factor(name, totals[name])) for name, flow in flows.items()}
