"""ListInputs: what is in each input file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from analysis.config import Configuration, GeneratedSum
from workflow.base import Given, Task, branch_of, branches_of
from workflow.plan import InputFile
from workflow.store import write_json
from workflow.tasks.branches import FileWorkflow
from workflow.tasks.simulate import SimulateEvents

S = TypeVar("S")


@dataclass(frozen=True)
class Listed:
    """Which tree to look at and where the sum of generated weights stands, for the files of a data set."""

    tree: str
    generated: GeneratedSum | None


class HeaderWorkflow(FileWorkflow[S]):
    """A step that reads of each input file what is no event."""

    exclude_index = True

    def workflow_requires(self) -> Any:
        reqs = super().workflow_requires()
        reqs.update(workflow_requires_files(self, set(self.branch_map.values())))
        return reqs

    def requires(self) -> Any:
        return require_file(self, self.branch_data)

    def outside(self) -> Any:
        return self.branch_data.identity


class ListInputs(HeaderWorkflow[Listed]):
    """Check a file's header and length, its entries and its sum of generated weights; one branch per file."""

    exclude_index = False

    def slice(self, config: Configuration) -> Listed:
        dataset = self.branch_data.dataset
        generated = config.generated_of(dataset)
        return Listed(config.tree_of(dataset), generated if isinstance(generated, GeneratedSum) else None)

    def files(self) -> Sequence[str]:
        return ("inputs.json",)

    @staticmethod
    def compute(settings: Listed, given: Given, out: Path) -> None:
        from analysis.events import inspect_file, read_generated

        path, uuid = place_of(given.own.about, given)
        content = asdict(inspect_file(path, settings.tree)) | {"generated": read_generated(path, settings.generated)}
        if not uuid:
            # ROOT draws a new UUID at every write: a simulated file is known by its task instead.
            del content["uuid"]
        write_json(out / "inputs.json", content)


def require_file(task: Task[Any], file: InputFile) -> dict[str, Any]:
    """Requirement of a branch that reads an input file: the branch that simulates it; none for a file from outside."""
    if file.path is not None:
        return {}
    number = task.plan.simulated_number(file)
    return {"simulation": branch_of(SimulateEvents, task, number)}


def workflow_requires_files(task: Task[Any], files: set[InputFile]) -> dict[str, Any]:
    """Requirement of a workflow whose branches read input files."""
    numbers = [task.plan.simulated_number(file) for file in files if file.path is None]
    if not numbers:
        return {}
    chosen = branches_of(numbers, len(task.plan.simulated))
    return {"simulation": SimulateEvents.req_different_branching(task, branch=-1, **chosen)}


def place_of(file: InputFile, given: Given) -> tuple[str, str]:
    """Where an input file is, and its ROOT UUID; an empty one for a simulated file."""
    if file.path is not None and file.identity is not None:
        return file.path, file.identity.uuid
    return str(given.made["simulation"].path("events.root")), ""
