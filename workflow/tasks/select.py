"""SelectEvents: which entries the analysis keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from analysis.config import Configuration
from analysis.sources import Format, SelectionSettings, Source
from workflow.base import Given, branch_of, branches_of
from workflow.plan import EntryRange
from workflow.store import write_json
from workflow.tasks.branches import ChunkWorkflow, ShiftedWorkflow
from workflow.tasks.inputs import ListInputs, place_of, require_file, workflow_requires_files


@dataclass(frozen=True)
class Layout:
    """How a data set's files are read."""

    tree: str
    layout: Format
    sentinels: dict[str, float]
    start: int
    stop: int

    @staticmethod
    def of(config: Configuration, chunk: EntryRange) -> Layout:
        """The layout of one chunk."""
        data = config.data
        return Layout(config.tree_of(chunk.file.dataset), data.format, dict(data.sentinels), chunk.start, chunk.stop)

    def source(self, given: Given) -> Source:
        """The range of entries, in the file that a chunk's step is given."""
        path, uuid = place_of(given.own.about.file, given)
        return Source(path, self.tree, self.layout, self.start, self.stop, self.sentinels, uuid)


@dataclass(frozen=True)
class SelectSlice:
    """How a chunk is read, and what decides which of its entries are kept."""

    layout: Layout
    selection: SelectionSettings


class SelectEvents(ShiftedWorkflow[SelectSlice], ChunkWorkflow[SelectSlice]):
    """Apply the cuts; record identity, process, generator weight and cutflow; one branch per file and entry range."""

    exclude_index = False

    def workflow_requires(self) -> Any:
        reqs = super().workflow_requires()
        files = {chunk.file for chunk in self.branch_map.values()}
        chosen = branches_of((self.plan.file_number(file) for file in files), len(self.plan.files))
        reqs.inputs = ListInputs.req_different_branching(self, branch=-1, **chosen)
        reqs.update(workflow_requires_files(self, files))
        return reqs

    def requires(self) -> Any:
        file = self.branch_data.file
        inputs = branch_of(ListInputs, self, self.plan.file_number(file))
        return {"inputs": inputs, **require_file(self, file)}

    def slice(self, config: Configuration) -> SelectSlice:
        chosen = config.selection
        selection = replace(
            uncut(config, self.branch_data),
            cuts=chosen.cuts,
            training_cuts=chosen.training_cuts,
            categories=dict(chosen.categories),
            shift=self.shift,
        )
        return SelectSlice(Layout.of(config, self.branch_data), selection)

    def functions(self) -> Iterable[str]:
        s = self.settings.selection
        return (*s.cuts, *s.training_cuts, *s.categories.values(), *self.shift_functions())

    def files(self) -> Sequence[str]:
        return ("events.parquet", "cutflow.json")

    @staticmethod
    def compute(settings: SelectSlice, given: Given, out: Path) -> None:
        from analysis.columns import write_columns
        from analysis.damage import blaming
        from analysis.selection import select

        source = settings.layout.source(given)
        with blaming(source):
            selected = select(source, settings.selection, given.functions)
        write_columns(out / "events.parquet", selected.columns)
        write_json(
            out / "cutflow.json",
            {
                "cutflow": {name: asdict(flow) for name, flow in selected.cutflow.items()},
                "totals": {name: asdict(totals) for name, totals in selected.totals.items()},
            },
        )


def uncut(config: Configuration, chunk: EntryRange) -> SelectionSettings:
    """What is recorded of the entries of a chunk before any cut."""
    dataset = chunk.file.dataset
    return SelectionSettings(
        sample=config.sample_of(dataset),
        # With event numbers the name of the file decides nothing.
        file_key="" if config.identity.columns else chunk.file.key,
        identity=config.identity.columns,
        processes={p: dict(config.processes[p].where) for p in config.processes_of(dataset)},
        generator=None if config.data.datasets[dataset].collision else config.weights.generator,
        test_fraction=config.folds.test_fraction,
        test_salt=config.folds.test_salt,
    )
