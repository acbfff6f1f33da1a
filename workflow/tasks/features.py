"""ComputeFeatures: one column per function, each under its own identity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from analysis.config import Configuration
from workflow.adoption import resolve
from workflow.base import Given, Made, branch_of, branches_of
from workflow.identity import fingerprint
from workflow.parameters import ChoiceParameter
from workflow.tasks.branches import ChunkWorkflow, ShiftedWorkflow
from workflow.tasks.inputs import require_file, workflow_requires_files
from workflow.tasks.select import Layout, SelectEvents

GROUPS = ("features", "factors", "spectators", "truth", "variations")
"""`truth` is what training needs of simulated events: regression targets, soft labels, spectators that it looks at;
`variations` is what other weights of simulated events are multiplied with."""


@dataclass(frozen=True)
class FeatureSlice:
    """How events are read, and which functions are called on them."""

    layout: Layout
    names: tuple[str, ...]
    shift: str = ""


@dataclass(frozen=True)
class Columns(Made):
    """The columns of one chunk.

    Attributes:
        files: File name of each column.
    """

    files: Mapping[str, str] = field(default_factory=dict)

    def paths(self) -> dict[str, Path]:
        """Path of each column."""
        return {name: self.path(file) for name, file in self.files.items()}


class ComputeFeatures(ShiftedWorkflow[FeatureSlice], ChunkWorkflow[FeatureSlice]):
    """Call the functions of one group on the selected events; one branch per file and entry range.

    Each column has an identity of its own, so that a new or changed function computes alone.
    """

    exclude_index = False

    group = ChoiceParameter(
        default="features",
        choices=GROUPS,
        option="--group",
        description="which functions to call; default: features",
    )

    @property
    def title(self) -> str:
        return f"{self.task_family} ({', '.join(filter(None, (self.group, self.shift)))})"

    def workflow_requires(self) -> Any:
        reqs = super().workflow_requires()
        chunks = branches_of(self.branch_map, len(self.plan.chunks))
        reqs.events = SelectEvents.req_different_branching(self, branch=-1, **chunks)
        reqs.update(workflow_requires_files(self, {chunk.file for chunk in self.branch_map.values()}))
        return reqs

    def requires(self) -> Any:
        events = branch_of(SelectEvents, self, self.branch, shift=self.shift)
        return {"events": events, **require_file(self, self.branch_data.file)}

    def slice(self, config: Configuration) -> FeatureSlice:
        return FeatureSlice(Layout.of(config, self.branch_data), names_of(config, self.group, self.label), self.shift)

    def functions(self) -> Iterable[str]:
        return (*self.settings.names, *self.shift_functions())

    @cached_property
    def columns(self) -> dict[str, str]:
        """File name of each column; its own identity is part of the name."""
        pieces = self.pieces(self.parts)
        return {name: _file(name, resolve(self.identity_of(pieces[name]))) for name in self.settings.names}

    def pieces(self, parts: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """The columns: each has an identity of its own, of which the other functions are no part."""
        settings = {name: value for name, value in parts["settings"].items() if name != "names"}
        shift = {name: code for name, code in parts["functions"].items() if name == settings.get("shift")}
        return {
            name: {**parts, "settings": settings, "functions": {name: parts["functions"][name], **shift}}
            for name in parts["settings"]["names"]
        }

    def paths_of(self, piece: str, address: str) -> list[Path]:
        return [self.folder / _file(piece, address)]

    def branch_fingerprint(self) -> str:
        """The identity of the group's columns together."""
        return fingerprint({"columns": sorted(self.columns.values())})

    @cached_property
    def folder(self) -> Path:
        """One folder per selected chunk, whatever the columns."""
        return self.label_folder / str(self.requires()["events"].fingerprint)

    @cached_property
    def record(self) -> Path:
        return self.folder / f"provenance-{self.fingerprint}.json"

    def files(self) -> Sequence[str]:
        return tuple(self.columns.values())

    def made(self) -> Columns:
        return Columns(self.folder, self.branch_data, self.columns)

    def make(self) -> None:
        """Compute the columns that are not there; all, if they are to be made again."""
        missing = tuple(name for name, file in self.columns.items() if not self.path(file).exists())
        chosen = replace(self.settings, names=missing or tuple(self.columns))
        self.write([self.columns[name] for name in chosen.names], partial(self.compute, chosen, self.given()))

    @staticmethod
    def compute(settings: FeatureSlice, given: Given, out: Path) -> None:
        from analysis.columns import read_columns, write_columns
        from analysis.damage import blaming
        from analysis.events import read
        from analysis.features import compute
        from analysis.functions import call_shift

        own = given.own
        assert isinstance(own, Columns), "what `made` says"
        source = settings.layout.source(given)
        entries = read_columns(given.made["events"].path("events.parquet"), ["entry"])["entry"]
        with blaming(source):
            events = read(source)
            if settings.shift:
                events = call_shift(settings.shift, given.functions[settings.shift], events, source)
            events = events.at(entries - source.start)
            columns = compute(settings.names, given.functions, events, source)
        for name, column in columns.items():
            write_columns(out / own.files[name], {name: column})


def _file(name: str, identity: str) -> str:
    return f"{name}-{identity}.parquet"


def names_of(config: Configuration, group: str, dataset: str) -> tuple[str, ...]:
    """Functions of a group that are called on the events of a data set."""
    data, processes = config.data.datasets[dataset], config.processes_of(dataset)
    if group == "features":
        return config.feature_names
    if group == "spectators":
        return config.spectators
    if data.collision:  # may lack the branches that corrections of simulation need
        return ()
    if group == "factors":
        return config.weights.factors
    if group == "variations":
        return tuple(name for name, varied in config.weight_variations.items() if set(varied) & set(processes))
    return config.truth if any(config.class_of(process) >= 0 for process in processes) else ()
