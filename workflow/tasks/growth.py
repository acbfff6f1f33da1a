"""LearningCurve: the AUC against the share of training events and against width; beside the main job."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import law
import luigi

from analysis.config import Configuration
from analysis.errors import UserError
from models.settings import Combination
from workflow.base import Given, Task, Workflow
from workflow.costs import Meter
from workflow.execution.clusters import has_gpu
from workflow.store import read_json, write_json
from workflow.tasks.folds import PrepareFolds
from workflow.tasks.plots import write_plots
from workflow.tasks.train import TrainSlice, of_one_network, training_events

if TYPE_CHECKING:
    from analysis.growth import Point


@dataclass(frozen=True)
class PointSlice:
    """One point: its networks as they are trained, the share of events that they train on, and their combination."""

    networks: TrainSlice
    share: float
    combination: Combination


@dataclass(frozen=True)
class CurveSlice:
    """What is judged, and how."""

    points: tuple[Point, ...]
    hidden: tuple[int, ...]
    signal: str
    replicas: int
    seed: int


class _Curve(Task[Any]):
    """Which points there are."""

    shares = law.CSVParameter(
        cls=luigi.FloatParameter,
        default=(0.125, 0.25, 0.5, 1.0),
        description="shares of the training events; default: 0.125,0.25,0.5,1",
    )
    widths = law.CSVParameter(
        cls=luigi.FloatParameter,
        default=(0.25, 0.5, 1.0, 2.0),
        description="factors on the widths of the hidden layers; default: 0.25,0.5,1,2",
    )

    def points(self) -> tuple[Point, ...]:
        """All points.

        Raises:
            UserError: A share or a factor makes no sense.
        """
        from analysis.growth import points

        for option, given, largest in (("--shares", self.shares, 1.0), ("--widths", self.widths, 64.0)):
            for value in given:
                if not 0 < value <= largest:
                    raise UserError(f"{option}: {value:g}; expected numbers above 0 and up to {largest:g}.")
        return points(self.shares, self.widths)


class TrainCurve(_Curve, Workflow[PointSlice]):
    """Train the networks of all folds anew for one point, and score the pool out of fold; one branch per point."""

    exclude_index = False
    libraries = ("torch",)
    wants_gpu = True

    def about_branches(self) -> Sequence[Point]:
        return self.points()

    @property
    def subject(self) -> str:
        return str(self.branch_data.name)

    def workflow_requires(self) -> Any:
        reqs = super().workflow_requires()
        reqs.pool = PrepareFolds.req(self)
        return reqs

    def requires(self) -> Any:
        return {"pool": PrepareFolds.req(self)}

    def slice(self, config: Configuration) -> PointSlice:
        from analysis.growth import widened

        point: Point = self.branch_data
        return PointSlice(
            networks=TrainSlice(
                fold=-1,  # all of them
                member=0,
                folds=config.folds.count,
                scheme=config.folds.scheme,
                seed=config.seed,
                model=replace(config.model, hidden=widened(config.model.hidden, point.width)),
                training=of_one_network(config.training),
                targets=dict(config.targets),
                soft_labels=config.soft_labels,
                signal=config.classes.signal if config.training.decorrelated else None,
            ),
            share=point.share,
            combination=config.training.combination,
        )

    def files(self) -> Sequence[str]:
        return ("scores.npy", "point.json")

    def group_branches(self, branches: Sequence[int], slots: int) -> list[list[int]]:
        # Points that share shapes train as one stack.
        slots = 1 if self.workflow == "local" and has_gpu() else min(slots, len(branches))
        return [list(branches[i::slots]) for i in range(slots)]

    def run_branches(self, branches: Sequence[int]) -> None:
        with ExitStack() as claimed:
            # Always in the same order, lest two runs wait for each other.
            waiting = sorted((self.as_branch(branch) for branch in branches), key=lambda task: str(task.fingerprint))
            tasks = [task for task in waiting if claimed.enter_context(task.claimed())]
            if not tasks:
                return
            meter = Meter()
            found = train_points([task.settings for task in tasks], tasks[0].given())
            cost = meter.read().share(len(tasks))
            for task, scored in zip(tasks, found, strict=True):
                task.write(task.files(), partial(save_point, scored), before=cost)

    @staticmethod
    def compute(settings: PointSlice, given: Given, out: Path) -> None:
        save_point(train_points([settings], given)[0], out)


class LearningCurve(_Curve, Task[CurveSlice]):
    """The AUC against the share of training events, and against width, out of fold; trains networks of its own."""

    exclude_index = False
    libraries = ("numpy",)

    def requires(self) -> Any:
        return {"pool": PrepareFolds.req(self), "points": TrainCurve.req(self, branch=-1)}

    def slice(self, config: Configuration) -> CurveSlice:
        return CurveSlice(
            points=self.points(),
            hidden=config.model.hidden,
            signal=config.classes.signal,
            replicas=config.outputs.replicas,
            seed=config.seed,
        )

    def files(self) -> Sequence[str]:
        return ("learning_curve.json", "plots/")

    @staticmethod
    def compute(settings: CurveSlice, given: Given, out: Path) -> None:
        import numpy as np

        from analysis.growth import curves, judge
        from analysis.pool import load_pool

        pool = load_pool(given.made["pool"].path("pool"))
        found = {}
        for point, made in zip(settings.points, given.made["points"].values(), strict=True):
            scores = np.load(made.path("scores.npy"))[:, pool.classes.index(settings.signal)]
            auc = judge(scores, pool, settings.signal, settings.replicas, settings.seed)
            found[point] = {**read_json(made.path("point.json")), "auc": auc}
        content = [{**asdict(point), **numbers} for point, numbers in found.items()]
        write_json(out / "learning_curve.json", {"signal": settings.signal, "points": content})
        write_plots(curves(found, settings.hidden), out / "plots")


def train_points(slices: Sequence[PointSlice], given: Given) -> list[tuple[Any, dict[str, Any]]]:
    """Train the networks of some points, stacked where their shapes agree, and score the pool out of fold.

    Returns:
        For each point the scores, float32 [N, C], and what `point.json` says.

    Raises:
        UserError: A share holds too little of a class, or a training diverges.
    """
    import numpy as np

    from analysis.growth import in_share
    from analysis.pool import load_pool
    from models.ensemble import Ensemble, score
    from models.members import MemberPlan, TrainingDiverged
    from models.networks import Classifier
    from models.training import best_device, train

    pool = load_pool(given.made["pool"].path("pool"))
    events = training_events(pool, slices[0].networks)
    plans = []
    for own in slices:
        s, chosen = own.networks, in_share(pool.identity, own.share)
        for fold in range(s.folds):
            training, validation = pool.uses(fold, s.folds, s.scheme)
            plans.append(MemberPlan(fold, s.member, training & chosen, validation, s.model, s.training, s.seed))
    try:
        trained = train(events, plans, device=best_device())
    except TrainingDiverged as error:
        raise UserError(str(error)) from error
    except ValueError as error:
        smallest = min(own.share for own in slices)
        raise UserError(f"A share of {smallest:g} of the training events: {error} Choose larger --shares.") from error
    result = []
    for own in slices:
        members, trained = trained[: own.networks.folds], trained[own.networks.folds :]
        ensemble = Ensemble(tuple(members), own.combination)
        routed, _, _ = score(ensemble, pool.values, pool.present, np.asarray(pool.folds, dtype=np.int64))
        about = {
            "events": float(np.mean([member.events[0] for member in members])),
            "parameters": Classifier(own.networks.model, events.signature).trained,
        }
        result.append((routed, about))
    return result


def save_point(scored: tuple[Any, dict[str, Any]], out: Path) -> None:
    """Write the output of one branch."""
    import numpy as np

    np.save(out / "scores.npy", scored[0])
    write_json(out / "point.json", scored[1])
