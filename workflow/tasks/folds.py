"""PrepareFolds: the events that networks train and stop on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.config import Configuration
from workflow.base import Given, Task
from workflow.tasks.tables import Sums, load_events, require_events

if TYPE_CHECKING:
    from analysis.pool import PoolSettings


@dataclass(frozen=True)
class FoldsSlice:
    """What makes the pool."""

    pool: PoolSettings
    sums: Sums


class PrepareFolds(Task[FoldsSlice]):
    """Gather the events of all classes, without the held-out test events, as arrays with folds and weights."""

    exclude_index = False

    def requires(self) -> Any:
        return require_events(self, self.plan.config.training_datasets(), ("features", "factors", "truth"))

    def slice(self, config: Configuration) -> FoldsSlice:
        from analysis.pool import PoolSettings
        from analysis.table import TableSettings

        processes = [p for p in config.processes if config.class_of(p) >= 0]
        pool = PoolSettings(
            table=TableSettings.of(config, processes, config.feature_names, config.truth),
            objects=config.feature_objects,
            classes=config.class_names,
            count=config.folds.count,
            scheme=config.folds.scheme,
            salt=str(config.folds.salt),
            minimum=config.folds.minimum,
            targets=tuple(target.function for target in config.targets.values()),
            soft_labels=config.soft_labels,
        )
        return FoldsSlice(pool, Sums.of(config, config.training_datasets()))

    def files(self) -> Sequence[str]:
        return ("pool/",)

    @staticmethod
    def compute(settings: FoldsSlice, given: Given, out: Path) -> None:
        from analysis.pool import prepare, save_pool

        table, _ = load_events(given.made, settings.pool.table, settings.sums)
        (out / "pool").mkdir()
        save_pool(prepare(table, settings.pool), out / "pool")
