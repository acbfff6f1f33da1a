"""SimulateEvents: physics events for data sets that no file holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.config import Configuration
from workflow.base import Given, Workflow


@dataclass(frozen=True)
class Simulated:
    """One part of a simulated data set."""

    sample: str
    events: int
    part: int
    seed: int
    multiparton: bool


class SimulateEvents(Workflow[Simulated]):
    """Simulate collisions with Pythia 8 and a parametrised detector; one branch per data set and part."""

    exclude_index = False
    libraries = ("pythia8mc", "fastjet")

    def create_branch_map(self) -> list[tuple[str, int]]:
        return [(file.dataset, file.number) for file in self.plan.simulated]

    @property
    def branch_data(self) -> tuple[str, int]:
        assert self.branch >= 0, "a workflow is about no single part"
        file = self.plan.simulated[self.branch]
        return file.dataset, file.number

    @property
    def label(self) -> str:
        return str(self.branch_data[0])

    @property
    def subject(self) -> str:
        return f"part {self.branch_data[1]}"

    def slice(self, config: Configuration) -> Simulated:
        dataset, part = self.branch_data
        simulate = config.data.datasets[dataset].simulate
        assert simulate is not None, "the branch map holds simulated data sets only"
        return Simulated(
            sample=simulate.process,
            events=self.plan.events_per_part(dataset),
            part=part,
            seed=config.seed,
            multiparton=config.data.simulation.multiparton,
        )

    def files(self) -> Sequence[str]:
        return ("events.root",)

    @staticmethod
    def compute(settings: Simulated, given: Given, out: Path) -> None:  # noqa: ARG004
        from analysis.simulation import simulate, write_part

        s = settings
        part = simulate(s.sample, s.events, s.seed, part=s.part, multiparton=s.multiparton)
        write_part(part, out / "events.root")
