"""ListInputs: what is in each input file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from analysis.config import Configuration, GeneratedSum
from workflow.base import write_json
from workflow.plan import InputFile
from workflow.tasks.branches import FileWorkflow
from workflow.tasks.simulate import SimulateEvents


@dataclass(frozen=True)
class Listed:
    """Which tree to look at and where the sum of generated weights stands, for the files of a data set."""

    dataset: str
    tree: str
    generated: GeneratedSum | None


class ListInputs(FileWorkflow):
    """Check a file's header and length, its entries and its sum of generated weights; one branch per file."""

    exclude_index = False

    def workflow_requires(self) -> Any:
        reqs = super().workflow_requires()
        if any(file.path is None for file in self.branch_map.values()):
            reqs.simulation = SimulateEvents.req_different_branching(self, branch=-1)
        return reqs

    def requires(self) -> Any:
        simulation = self.simulation()
        return {} if simulation is None else {"simulation": simulation}

    def simulation(self) -> Any:
        """The branch that simulates this file; None for a file from outside."""
        file: InputFile = self.branch_data
        if file.path is not None:
            return None
        numbers = [f for f in self.plan.files if f.path is None]
        return SimulateEvents.req_different_branching(self, branch=numbers.index(file))

    def events_path(self) -> str:
        """Where the file is."""
        simulation = self.simulation()
        return str(self.branch_data.path if simulation is None else simulation.path("events.root"))

    def slice(self, config: Configuration) -> Listed:
        dataset = self.branch_data.dataset
        generated = config.generated_of(dataset)
        return Listed(dataset, config.tree_of(dataset), generated if isinstance(generated, GeneratedSum) else None)

    def outside(self) -> Any:
        return self.branch_data.identity

    def files(self) -> Sequence[str]:
        return ("inputs.json",)

    def compute(self, out: Path) -> None:
        from analysis.events import inspect_file, read_generated

        path = self.events_path()
        record = inspect_file(path, self.settings.tree)
        content = asdict(record) | {"generated": read_generated(path, self.settings.generated)}
        if self.branch_data.identity is None:
            # ROOT draws a new UUID at every write: a simulated file is known by its task instead.
            del content["uuid"]
        write_json(out / "inputs.json", content)
