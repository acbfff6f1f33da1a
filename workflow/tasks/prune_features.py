"""PruneFeatures: what it costs to keep fewer features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import law
import luigi

from analysis.config import Configuration
from analysis.errors import UserError
from workflow.base import Given, Task
from workflow.execution.executor import say
from workflow.parameters import ChoiceParameter
from workflow.store import write_json
from workflow.tasks.export import load_ensemble
from workflow.tasks.folds import PrepareFolds
from workflow.tasks.judging import (
    PAGE,
    Judged,
    JudgedSlice,
    check_method,
    load_judged,
    require_judged,
    scheme_note,
    show_page,
    write_page,
)
from workflow.tasks.train import TrainFolds, TrainSlice, plan_of, slices_of, training_events

if TYPE_CHECKING:
    from analysis.pool import Pool

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


class PruneFeatures(Task[PruneFeaturesSlice]):
    """Train with fewer and fewer features, chosen by importance: the cost in AUC, as a page of its own."""

    exclude_index = False
    libraries = ("numpy", "torch")

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
    def subject(self) -> str:
        return str(self.method)

    def requires(self) -> Any:
        return {
            **require_judged(self),
            "pool": PrepareFolds.req(self),
            "networks": TrainFolds.req(self, branches=()),
        }

    def slice(self, config: Configuration) -> PruneFeaturesSlice:
        check_method(config, self.method)
        return PruneFeaturesSlice(self.method, tuple(self.kept), JudgedSlice.of(config), slices_of(config))

    def files(self) -> Sequence[str]:
        return ("pruning.json", *PAGE)

    def conclude(self) -> None:
        show_page(self)

    @staticmethod
    def compute(settings: PruneFeaturesSlice, given: Given, out: Path) -> None:
        from analysis.importance import text
        from analysis.importance_plots import curve
        from analysis.page import Table
        from analysis.pool import load_pool

        events = load_judged(given.made, settings.events)
        pool = load_pool(given.made["pool"].path("pool"))
        found = prune_features(
            settings, events, load_ensemble(given.made["networks"], settings.events.combination), pool
        )
        write_json(out / "pruning.json", found)
        cells = [
            [str(p["features"]), *(text(p[name]) for name in ("auc", "auc_lost", "log_loss"))] for p in found["points"]
        ]
        orders = [[str(fold), ", ".join(names)] for fold, names in enumerate(found["orders"])]
        points = [{"left": point["features"], "auc": point["auc"]} for point in found["points"]]
        write_page(
            out,
            f"{settings.events.name}: fewer features, by {settings.method.replace('_', ' ')}",
            [NOTE, scheme_note(settings.events)],
            [
                Table("Features kept", ["features", "AUC out of fold", "AUC lost", "log-loss"], cells),
                Table("Order of each fold's networks", ["fold", "features, from the most important on"], orders),
            ],
            [curve("features_kept", "features kept", NOTE, points)],
        )


def prune_features(settings: PruneFeaturesSlice, events: Judged, ensemble: Any, pool: Pool) -> dict[str, Any]:
    """What `pruning.json` holds.

    Raises:
        UserError: Numbers of features that are not there.
    """
    import numpy as np

    from analysis.importance import counts_to_keep
    from models.ensemble import Ensemble
    from models.importance import of_fold, out_of_fold, ranked
    from models.training import best_device, train

    training = training_events(pool, settings.networks[0])
    plans = [plan_of(each, pool) for each in settings.networks]
    try:
        numbers = counts_to_keep(len(pool.features), settings.kept)
    except ValueError as error:
        raise UserError(f"--kept: {error}.") from error
    orders = {
        plan.fold: ranked(
            of_fold(ensemble, plan.fold),
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
    trained = train(training, fewer, progress=say, device=best_device()) if fewer else []
    values, present = events.matrix(pool.features)
    judge = events.judge(out_of_fold(ensemble, values, present, events.folds))
    points = []
    for place, number in enumerate(numbers):
        own = ensemble
        if place:
            own = Ensemble(tuple(trained[(place - 1) * len(plans) : place * len(plans)]), ensemble.combination)
        scores = out_of_fold(own, values, present, events.folds)
        lost = judge.drop([scores])
        points.append(
            {"features": number, **judge.merit(scores), "auc_lost": lost["auc"], "log_loss_added": lost["log_loss"]}
        )
    return {
        "analysis": settings.events.name,
        "method": settings.method,
        "signal": settings.events.signal,
        "scheme": settings.events.scheme,
        "events": len(events.table),
        "points": points,
        "orders": [[pool.features[column] for column in orders[fold]] for fold in sorted(orders)],
    }
