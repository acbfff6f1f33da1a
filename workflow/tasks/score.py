"""ScoreEvents: a friend tree of scores for every input file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.config import Configuration
from workflow.base import branches_of
from workflow.tasks.branches import FileWorkflow
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


class ScoreEvents(FileWorkflow):
    """Apply the ensemble to the selected events; one branch per input file, whatever its process."""

    exclude_index = False
    libraries = ("torch",)

    def workflow_requires(self) -> Any:
        reqs = super().workflow_requires()
        files = set(self.branch_map.values())
        chunks = [i for i, chunk in enumerate(self.plan.chunks) if chunk.file in files]
        chosen = branches_of(self.branch_map, len(self.plan.files))
        reqs.networks = TrainFolds.req_different_branching(self, branch=-1)
        reqs.inputs = ListInputs.req_different_branching(self, branch=-1, **chosen)
        if chunks:
            chosen = branches_of(chunks, len(self.plan.chunks))
            reqs.events = SelectEvents.req_different_branching(self, branch=-1, **chosen)
            reqs.features = ComputeFeatures.req_different_branching(self, branch=-1, group="features", **chosen)
        return reqs

    def requires(self) -> Any:
        chunks = self.plan.chunks_of_file(self.branch_data)
        return {
            "networks": TrainFolds.req_different_branching(self, branch=-1),
            "inputs": ListInputs.req_different_branching(self, branch=self.branch),
            "events": [SelectEvents.req_different_branching(self, branch=c) for c in chunks],
            "features": [ComputeFeatures.req_different_branching(self, branch=c, group="features") for c in chunks],
        }

    def slice(self, config: Configuration) -> ScoreSlice:
        return ScoreSlice(self.branch_data.entries, config.folds.count, str(config.folds.salt))

    def files(self) -> Sequence[str]:
        return ("friend.root",)

    def compute(self, out: Path) -> None:
        from analysis.friends import score_chunk, write_friend
        from models.ensemble import combine, predict

        s: ScoreSlice = self.settings
        requirements = self.requires()
        ensemble = load_ensemble(requirements["networks"])

        def scores(values: Any, present: Any, folds: Any) -> Any:
            return combine(predict(ensemble, values, present), ensemble.folds, folds)

        parts = [
            score_chunk(
                events.path("events.parquet"),
                features.column_paths(),
                ensemble.signature.features,
                scores,
                folds=s.folds,
                salt=s.salt,
            )
            for events, features in zip(requirements["events"], requirements["features"], strict=True)
        ]
        write_friend(out / "friend.root", s.entries, ensemble.signature.classes, parts)
