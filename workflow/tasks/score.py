"""ScoreEvents: a friend tree of scores for every input file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from analysis.config import Configuration
from models.settings import Combination
from workflow.base import Given, branch_of, branches_of
from workflow.tasks.branches import FileWorkflow, ShiftedWorkflow
from workflow.tasks.export import load_ensemble
from workflow.tasks.features import ComputeFeatures
from workflow.tasks.inputs import ListInputs
from workflow.tasks.select import SelectEvents
from workflow.tasks.train import TrainFolds


@dataclass(frozen=True)
class ScoreSlice:
    """What the scores of an event depend on beside its features and the networks."""

    entries: int
    folds: int
    salt: str
    combination: Combination
    form: Literal["ttree", "rntuple"]


class ScoreEvents(ShiftedWorkflow[ScoreSlice], FileWorkflow[ScoreSlice]):
    """Apply the ensemble to the selected events; one branch per input file, whatever its process."""

    exclude_index = False
    libraries = ("torch",)

    def workflow_requires(self) -> Any:
        reqs = super().workflow_requires()
        chunks = [number for file in self.branch_map.values() for number in self.plan.chunks_of_file(file)]
        chosen = branches_of(self.branch_map, len(self.plan.files))
        reqs.networks = TrainFolds.req_different_branching(self, branch=-1, branches=())
        reqs.inputs = ListInputs.req_different_branching(self, branch=-1, **chosen)
        if chunks:
            chosen = branches_of(chunks, len(self.plan.chunks))
            reqs.events = SelectEvents.req_different_branching(self, branch=-1, **chosen)
            reqs.features = ComputeFeatures.req_different_branching(self, branch=-1, group="features", **chosen)
        return reqs

    def requires(self) -> Any:
        chunks = self.plan.chunks_of_file(self.branch_data)
        return {
            "networks": branch_of(TrainFolds, self, -1, branches=()),
            "inputs": branch_of(ListInputs, self, self.branch),
            "events": [branch_of(SelectEvents, self, c, shift=self.shift) for c in chunks],
            "features": [branch_of(ComputeFeatures, self, c, group="features", shift=self.shift) for c in chunks],
        }

    @property
    def events(self) -> int:
        return int(self.branch_data.entries)

    def slice(self, config: Configuration) -> ScoreSlice:
        return ScoreSlice(
            entries=self.branch_data.entries,
            folds=config.folds.count,
            salt=str(config.folds.salt),
            combination=config.training.combination,
            form=config.outputs.friends,
        )

    def files(self) -> Sequence[str]:
        return ("friend.root",)

    @staticmethod
    def compute(settings: ScoreSlice, given: Given, out: Path) -> None:
        from analysis.friends import score_chunk, write_friend
        from models.ensemble import score

        ensemble = load_ensemble(given.made["networks"], settings.combination)

        def scores(values: Any, present: Any, folds: Any) -> Any:
            return score(ensemble, values, present, folds)

        parts = [
            score_chunk(
                events.path("events.parquet"),
                features.paths(),
                ensemble.signature.features,
                scores,
                folds=settings.folds,
                salt=settings.salt,
            )
            for events, features in zip(given.made["events"], given.made["features"], strict=True)
        ]
        signature = ensemble.signature
        write_friend(
            out / "friend.root", settings.entries, signature.classes, parts, signature.predicted, form=settings.form
        )
