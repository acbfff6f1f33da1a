"""RankFeatures: what each feature and object is worth to the networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import luigi

from analysis.config import Configuration
from workflow.base import Given
from workflow.execution.executor import say
from workflow.parameters import ChoiceParameter
from workflow.store import write_json
from workflow.tasks.beside import PAGE, Judged, JudgedSlice, JudgingTask, check_method, load_judged, write_page
from workflow.tasks.train import TrainSlice, plan_of, slices_of, train_networks, training_events

if TYPE_CHECKING:
    from models.importance import Group

METHODS = ("permutation", "integrated_gradients", "leave_one_out")
TEXTS = {
    "permutation": "What is lost when the values of a feature, or of all features of an object, are exchanged at "
    "random among the events of a fold. Values and presence travel together. Features that tell the same are worth "
    "little, as each stands in for the other: look at objects too.",
    "integrated_gradients": "The mean size of what an input contributes to the log-odds of the signal (arXiv "
    "1703.01365). The baseline is an event in which the numbers of what is always there are 0, which is the mean of "
    "what is standardised, and all else is absent. The "
    "contribution of an object holds that of the input which says that it is there.",
    "leave_one_out": "What is lost when networks are trained in which a feature, or all features of an object, count "
    "as absent in all events. An object of which all features are left out counts as absent itself.",
}


@dataclass(frozen=True)
class RankSlice:
    """How features are ranked; networks only where some are trained anew."""

    method: str
    repeats: int
    events: JudgedSlice
    networks: tuple[TrainSlice, ...]


class RankFeatures(JudgingTask):
    """Rank features and objects by what they are worth, out of fold: a page of its own beside the main job."""

    exclude_index = False

    method = ChoiceParameter(
        default="permutation",
        choices=METHODS,
        option="--method",
        description="permutation, integrated_gradients or leave_one_out; default: permutation",
    )
    repeats = luigi.IntParameter(default=5, description="of each permutation; default: 5")

    @property
    def published(self) -> str:
        return f"feature_importance-{self.method}"

    @property
    def subject(self) -> str:
        return str(self.method)

    def slice(self, config: Configuration) -> RankSlice:
        check_method(config, self.method)
        return RankSlice(
            method=self.method,
            repeats=self.repeats if self.method == "permutation" else 1,
            events=JudgedSlice.of(config),
            networks=slices_of(config) if self.method == "leave_one_out" else (),
        )

    def files(self) -> Sequence[str]:
        return ("ranking.json", *PAGE)

    @staticmethod
    def compute(settings: RankSlice, given: Given, out: Path) -> None:
        from analysis.importance import rows
        from analysis.importance_plots import ranked
        from analysis.page import Table

        events = load_judged(given.made, settings.events)
        found = rank(settings, events)
        write_json(out / "ranking.json", found)
        key = "contribution" if settings.method == "integrated_gradients" else "auc"
        axis = "mean |contribution| to the log-odds [nats]" if key == "contribution" else "AUC of the signal lost"
        kinds = ("features", "objects")
        write_page(
            out,
            settings.events,
            f"importance of features, {settings.method.replace('_', ' ')}",
            TEXTS[settings.method],
            [Table(kind.capitalize(), *rows(found[kind])) for kind in kinds],
            [
                ranked(kind, kind.capitalize(), axis, [{"name": e["name"], **e[key]} for e in found[kind]])
                for kind in kinds
            ],
        )


def rank(settings: RankSlice, events: Judged) -> dict[str, Any]:
    """What `ranking.json` holds."""
    from analysis.importance import ranking
    from models.importance import groups

    signature, judge = events.ensemble.signature, events.judge
    chosen = groups(signature)
    if settings.method == "leave_one_out":  # networks that see nothing can't be trained
        chosen = tuple(group for group in chosen if len(group.columns) < len(signature.features))
    extra: dict[str, Any] = {}
    if settings.method == "permutation":
        worth = _permuted(settings, events, chosen)
        extra["repeats"] = settings.repeats
    elif settings.method == "integrated_gradients":
        worth, extra["largest_gap"] = _contributions(events, chosen)
    else:
        worth = _left_out(settings, events, chosen)
    entries = [
        {"name": group.name, "features": [signature.features[c] for c in group.columns], **own}
        for group, own in zip(chosen, worth, strict=True)
    ]
    return {
        **events.about,
        "method": settings.method,
        **extra,
        "out_of_fold": judge.merit(judge.sample.probabilities),
        "features": ranking([e for e, g in zip(entries, chosen, strict=True) if g.kind == "feature"]),
        "objects": ranking([e for e, g in zip(entries, chosen, strict=True) if g.kind == "object"]),
    }


def _permuted(settings: RankSlice, events: Judged, chosen: Sequence[Group]) -> list[dict[str, Any]]:
    from models.importance import out_of_fold, permuted

    known: dict[tuple[int, ...], dict[str, Any]] = {}  # an object of one feature is that feature
    for group in chosen:
        if group.columns in known:
            continue
        say(f"{group.kind} {group.name}")
        exchanged = (
            permuted(
                *events.inputs,
                group.columns,
                identity=events.table.identity,
                folds=events.folds,
                key=(settings.events.seed, repeat),
            )
            for repeat in range(settings.repeats)
        )
        known[group.columns] = events.judge.drop(
            [out_of_fold(events.ensemble, *each, events.folds) for each in exchanged]
        )
    return [known[group.columns] for group in chosen]


def _contributions(events: Judged, chosen: Sequence[Group]) -> tuple[list[dict[str, Any]], float]:
    import numpy as np

    from models.importance import integrated_gradients

    ensemble, (values, present) = events.ensemble, events.inputs
    always = present.all(axis=0)
    totals = np.zeros((len(chosen), len(values)))
    gaps = []
    for member in ensemble.members:
        say(f"network {member.index} of fold {member.fold}")
        rows = events.folds == member.fold
        own = integrated_gradients(member, values[rows], present[rows], always=always, signal=events.signal)
        several = int((ensemble.folds == member.fold).sum())
        totals[:, rows] += [own.of(group, ensemble.signature) / several for group in chosen]
        gaps.append(own.gap)
    return [{"contribution": events.judge.contribution(total)} for total in totals], max(gaps)


def _left_out(settings: RankSlice, events: Judged, chosen: Sequence[Group]) -> list[dict[str, Any]]:
    from models.importance import without

    training = training_events(events.pool, settings.networks[0])
    plans = [plan_of(each, events.pool) for each in settings.networks]
    different = list(dict.fromkeys(group.columns for group in chosen))
    every = [plan for columns in different for plan in without(plans, training.signature, columns)]
    networks = train_networks(training, every)
    known = {
        columns: events.judge.drop([events.scores(own)])
        for columns, own in zip(different, events.ensembles(networks, len(plans)), strict=True)
    }
    return [known[group.columns] for group in chosen]
