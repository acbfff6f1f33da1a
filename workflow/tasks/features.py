"""ComputeFeatures: one column per function, each under its own identity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import luigi

from analysis.config import Configuration
from workflow.base import branches_of
from workflow.identity import fingerprint
from workflow.tasks.branches import ChunkWorkflow
from workflow.tasks.select import Layout, SelectEvents, source_of


@dataclass(frozen=True)
class FeatureSlice:
    """How events are read, and which functions are called on them."""

    layout: Layout
    names: tuple[str, ...]


class ComputeFeatures(ChunkWorkflow):
    """Call the functions of one group on the selected events; one branch per file and entry range.

    Each column has an identity of its own, so that a new or changed function computes alone.
    """

    exclude_index = False

    group = luigi.ChoiceParameter(
        default="features",
        choices=("features", "factors", "spectators"),
        description="which functions to call; default: features",
    )

    @property
    def title(self) -> str:
        return f"{self.task_family} ({self.group})"

    def workflow_requires(self) -> Any:
        reqs = super().workflow_requires()
        chunks = branches_of(self.branch_map, len(self.plan.chunks))
        reqs.events = SelectEvents.req_different_branching(self, branch=-1, **chunks)
        return reqs

    def requires(self) -> Any:
        return {"events": SelectEvents.req_different_branching(self, branch=self.branch)}

    def slice(self, config: Configuration) -> FeatureSlice:
        return FeatureSlice(Layout.of(config, self.branch_data), names_of(config, self.group))

    def functions(self) -> Iterable[str]:
        return self.settings.names

    @cached_property
    def columns(self) -> dict[str, str]:
        """File name of each column; its own identity is part of the name."""
        shared = {key: value for key, value in self.parts.items() if key not in ("settings", "functions")}
        shared["layout"] = self.parts["settings"]["layout"]
        return {
            name: f"{name}-{fingerprint({**shared, 'function': self.plan.function_code(name), 'name': name})}.parquet"
            for name in self.settings.names
        }

    @cached_property
    def fingerprint(self) -> str:
        """The identity of the group's columns together."""
        if self.is_workflow():
            return fingerprint({"branches": sorted(t.fingerprint for t in self.get_branch_tasks().values())})
        return fingerprint({"columns": sorted(self.columns.values())})

    @property
    def folder(self) -> Path:
        """One folder per selected chunk, whatever the columns."""
        events = self.requires()["events"]
        return events.folder.parent.parent.parent / self.task_family / self.label / str(events.fingerprint)

    @property
    def provenance_name(self) -> str:
        return f"provenance-{self.fingerprint}.json"

    def files(self) -> Sequence[str]:
        return tuple(self.columns.values())

    def column_paths(self) -> dict[str, Path]:
        """Path of each column."""
        return {name: self.path(file) for name, file in self.columns.items()}

    def run(self) -> None:
        """Compute the columns that are not there; all, if they are to be made again."""
        missing = [name for name, file in self.columns.items() if not self.path(file).exists()]
        self.computed = missing or list(self.columns)
        self.write([self.columns[name] for name in self.computed])

    def compute(self, out: Path) -> None:
        from analysis.columns import read_columns, write_columns
        from analysis.events import read
        from analysis.features import compute

        s: FeatureSlice = self.settings
        events_task = self.requires()["events"]
        source = source_of(s.layout, events_task.requires()["inputs"])
        entries = read_columns(events_task.path("events.parquet"), ["entry"])["entry"]
        events = read(source).at(entries - source.start)
        functions = {name: getattr(self.plan.analysis.physics, name) for name in self.computed}
        for name, column in compute(self.computed, functions, events, source).items():
            write_columns(out / self.columns[name], {name: column})


def names_of(config: Configuration, group: str) -> tuple[str, ...]:
    """Functions of a group."""
    if group == "features":
        return config.feature_names
    return config.weights.factors if group == "factors" else config.spectators
