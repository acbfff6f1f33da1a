"""SimulateEvents: physics events for data sets that no file holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.config import Configuration
from workflow.base import Given, Workflow
from workflow.plan import InputFile


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
    libraries = ("pythia8mc", "fastjet", "numpy")

    def about_branches(self) -> Sequence[InputFile]:
        return self.plan.simulated

    @property
    def label(self) -> str:
        return str(self.branch_data.dataset)

    @property
    def subject(self) -> str:
        return f"part {self.branch_data.number}"

    @property
    def events(self) -> int:
        return int(self.branch_data.entries)

    def slice(self, config: Configuration) -> Simulated:
        file: InputFile = self.branch_data
        simulate = config.data.datasets[file.dataset].simulate
        assert simulate is not None, "the plan says so"
        return Simulated(
            sample=simulate.process,
            events=self.plan.events_per_part(file.dataset),
            part=file.number,
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
