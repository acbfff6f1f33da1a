"""SumVariations and ReadSums: sums of varied weights from before any selection, counted and as files declare them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import luigi

from analysis.config import Configuration, GeneratedSum
from analysis.errors import UserError, nearest
from analysis.sources import SelectionSettings
from workflow.base import Given, Task, Workflow, branches_of
from workflow.store import read_json, write_json
from workflow.tasks.branches import ChunkWorkflow
from workflow.tasks.inputs import HeaderWorkflow, place_of, require_file, workflow_requires_files
from workflow.tasks.select import Layout, uncut

if TYPE_CHECKING:
    from analysis.weights import VariedSums

S = TypeVar("S")


@dataclass(frozen=True)
class SumSlice:
    """How a chunk is read, and by which function its weights vary."""

    layout: Layout
    selection: SelectionSettings
    function: str


class VariationWorkflow(Workflow[S]):
    """A step for one function that varies weights.

    Each function has steps of its own, so that a new one reads nothing anew for the others.
    """

    exclude_index = True

    function = luigi.Parameter(
        default="",
        description="a function of physics.py that outputs.nuisances names under `weight`; default: the first one",
    )

    @property
    def title(self) -> str:
        return f"{self.task_family} ({self.varied})"

    @property
    def known(self) -> Collection[str]:
        """The functions that the configuration names."""
        return self.plan.config.weight_variations

    @property
    def varied(self) -> str:
        """The function.

        Raises:
            UserError: The configuration names no such function.
        """
        if not self.known:
            raise UserError(f"{self.task_family}: key outputs.nuisances names no function for it under `weight`.")
        name = self.function or next(iter(self.known))
        if name not in self.known:
            raise UserError(
                f"--function {name}: key outputs.nuisances names no such function under `weight`. "
                f"{nearest(name, self.known)}"
            )
        return name


class SumVariations(VariationWorkflow[SumSlice], ChunkWorkflow[SumSlice]):
    """Add up what one function makes of the weights of all entries, selected or not; one branch per range of entries.

    Templates are normalised by their own sum of weights.
    """

    exclude_index = False

    def workflow_requires(self) -> Any:
        reqs = super().workflow_requires()
        reqs.update(workflow_requires_files(self, {chunk.file for chunk in self.branch_map.values()}))
        return reqs

    def requires(self) -> Any:
        return require_file(self, self.branch_data.file)

    def slice(self, config: Configuration) -> SumSlice:
        chunk = self.branch_data
        return SumSlice(Layout.of(config, chunk), uncut(config, chunk), self.varied)

    def functions(self) -> Iterable[str]:
        return (self.settings.function,)

    def outside(self) -> Any:
        return self.branch_data.file.identity

    def files(self) -> Sequence[str]:
        return ("sums.json",)

    @staticmethod
    def compute(settings: SumSlice, given: Given, out: Path) -> None:
        from analysis.damage import blaming
        from analysis.varied_weights import sums_of_variation

        source, name = settings.layout.source(given), settings.function
        with blaming(source):
            sums = sums_of_variation(source, settings.selection, name, given.functions[name])
        write_json(out / "sums.json", {process: asdict(own) for process, own in sums.items()})


class ReadSums(VariationWorkflow[GeneratedSum], HeaderWorkflow[GeneratedSum]):
    """Read the sum of weights that one function varies over all generated events, from files that declare it."""

    exclude_index = False

    @property
    def known(self) -> Collection[str]:
        return self.plan.config.varied_sums

    def slice(self, config: Configuration) -> GeneratedSum:
        return config.varied_sums[self.varied]

    def files(self) -> Sequence[str]:
        return ("sum.json",)

    @staticmethod
    def compute(settings: GeneratedSum, given: Given, out: Path) -> None:
        from analysis.events import read_generated

        path, _ = place_of(given.own.about, given)
        write_json(out / "sum.json", {"generated": read_generated(path, settings, "outputs.nuisances.NAME.generated")})


def require_sums(task: Task[Any]) -> dict[str, Any]:
    """Requirements of a step that needs the sums of all varied weights, by function."""
    plan, found = task.plan, {}
    for name, processes in plan.config.weight_variations.items():
        if chunks := plan.chunks_of(plan.config.datasets_of(processes)):
            chosen = branches_of(chunks, len(plan.chunks))
            found[_key(name)] = SumVariations.req(task, branch=-1, function=name, **chosen)
    for name in plan.config.varied_sums:
        files = plan.files_of(plan.config.datasets_of(plan.config.weight_variations[name]))
        chosen = branches_of(files, len(plan.files))
        found[_declared(name)] = ReadSums.req(task, branch=-1, function=name, **chosen)
    return found


def load_sums(made: Mapping[str, Any], name: str) -> dict[str, VariedSums]:
    """Sums of one function's weights per process, over all chunks."""
    from analysis.weights import VariedSums

    sums: dict[str, VariedSums] = {}
    for chunk in made.get(_key(name), {}).values():
        for process, own in read_json(chunk.path("sums.json")).items():
            sums[process] = sums.get(process, VariedSums()) + VariedSums(**own)
    return sums


def load_declared(made: Mapping[str, Any], name: str, owners: Mapping[str, str]) -> dict[str, float]:
    """Sums of one function's weights over all generated events per process, as far as files declare them.

    Args:
        made: What `require_sums` asked for.
        name: The function.
        owners: The process of each data set.
    """
    sums: dict[str, float] = {}
    for file in made.get(_declared(name), {}).values():
        process = owners[file.about.dataset]
        sums[process] = sums.get(process, 0.0) + read_json(file.path("sum.json"))["generated"]
    return sums


def _key(name: str) -> str:
    return f"sums of {name}"


def _declared(name: str) -> str:
    return f"declared sums of {name}"
