"""PruneFeatures: what it costs to keep fewer features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import law
import luigi

from analysis.config import Configuration
from analysis.errors import UserError
from workflow.base import Given
from workflow.parameters import ChoiceParameter
from workflow.store import write_json
from workflow.tasks.beside import PAGE, Judged, JudgedSlice, JudgingTask, check_method, load_judged, write_page
from workflow.tasks.train import TrainSlice, plan_of, slices_of, train_networks, training_events

NOTE = (
    "Each network ranks the features for itself, on the fold on which it stopped, and is trained again with the best "
    "of them; the others count as absent in all events. So no choice has met the events that it is judged on, and "
    "networks of different folds may keep different features."
)


@dataclass(frozen=True)
class PruneFeaturesSlice:
    """By what features are ranked, how many are kept, and how networks are trained with them."""

    method: str
    kept: tuple[int, ...]
    events: JudgedSlice
    networks: tuple[TrainSlice, ...]


class PruneFeatures(JudgingTask):
    """Train with fewer and fewer features, chosen by importance: the cost in AUC, as a page of its own."""

    exclude_index = False

    method = ChoiceParameter(
        default="permutation",
        choices=("permutation", "integrated_gradients"),
        option="--method",
        description="by what each network ranks features, permutation or integrated_gradients; default: permutation",
    )
    kept = law.CSVParameter(
        cls=luigi.IntParameter,
        default=(),
        description="numbers of features to keep, separated by commas; default: all, and each time two thirds of them",
    )

    @property
    def published(self) -> str:
        return f"feature_pruning-{self.method}"

    @property
    def subject(self) -> str:
        return str(self.method)

    def slice(self, config: Configuration) -> PruneFeaturesSlice:
        check_method(config, self.method)
        return PruneFeaturesSlice(self.method, tuple(self.kept), JudgedSlice.of(config), slices_of(config))

    def files(self) -> Sequence[str]:
        return ("pruning.json", *PAGE)

    @staticmethod
    def compute(settings: PruneFeaturesSlice, given: Given, out: Path) -> None:
        from analysis.importance import text
        from analysis.importance_plots import curve
        from analysis.page import Table

        events = load_judged(given.made, settings.events)
        found = prune_features(settings, events)
        write_json(out / "pruning.json", found)
        cells = [
            [str(p["features"]), *(text(p[name]) for name in ("auc", "auc_lost", "log_loss"))] for p in found["points"]
        ]
        orders = [[str(fold), ", ".join(names)] for fold, names in enumerate(found["orders"])]
        points = [{"x": p["features"], "auc": p["auc"], "auc_lost": p["auc_lost"]} for p in found["points"]]
        write_page(
            out,
            settings.events,
            f"fewer features, by {settings.method.replace('_', ' ')}",
            NOTE,
            [
                Table("Features kept", ["features", "AUC out of fold", "AUC lost", "log-loss"], cells),
                Table("Order of each fold's networks", ["fold", "features, from the most important on"], orders),
            ],
            [curve("features_kept", "Cost of pruning", "features kept", NOTE, points)],
        )


def prune_features(settings: PruneFeaturesSlice, events: Judged) -> dict[str, Any]:
    """What `pruning.json` holds.

    Raises:
        UserError: Numbers of features that are not there.
    """
    import numpy as np

    from analysis.importance import counts_to_keep
    from models.importance import of_fold, ranked

    pool = events.pool
    training = training_events(pool, settings.networks[0])
    plans = [plan_of(each, pool) for each in settings.networks]
    try:
        numbers = counts_to_keep(len(pool.features), settings.kept)
    except ValueError as error:
        raise UserError(f"--kept: {error}.") from error
    orders = {
        plan.fold: ranked(
            of_fold(events.ensemble, plan.fold),
            training,
            plan.validation,
            signal=events.signal,
            gradients=settings.method == "integrated_gradients",
            repeats=5,
            seed=settings.events.seed,
        )
        for plan in {plan.fold: plan for plan in plans}.values()
    }

    def seen(fold: int, number: int) -> Any:
        return np.isin(np.arange(len(pool.features)), orders[fold][:number])

    fewer = [replace(plan, features=seen(plan.fold, number)) for number in numbers[1:] for plan in plans]
    trained = train_networks(training, fewer) if fewer else []
    ensembles = (events.ensemble, *events.ensembles(trained, len(plans)))
    return {
        **events.about,
        "method": settings.method,
        "points": [{"features": number, **events.merit(own)} for number, own in zip(numbers, ensembles, strict=True)],
        "orders": [[pool.features[column] for column in orders[fold]] for fold in sorted(orders)],
    }
