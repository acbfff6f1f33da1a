"""LearningCurve: the AUC against the share of training events, and against width; beside the main job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import law
import luigi

from analysis.config import Configuration
from analysis.errors import UserError
from workflow.base import Given, Task
from workflow.store import write_json
from workflow.tasks.beside import PAGE, JudgedSlice, JudgingTask, load_judged, write_page
from workflow.tasks.train import (
    Kept,
    TrainingWorkflow,
    TrainSlice,
    plan_of,
    slices_of,
    train_branches,
    train_networks,
    training_events,
)

if TYPE_CHECKING:
    from analysis.growth import Point
    from models.members import TrainedMember

WHAT = (
    "The networks of the analysis, trained anew with shares of their training events, and with other widths of their "
    "hidden layers. Each share holds all smaller ones; the events to stop on and the number of epochs stay the same. "
    "AUC lost is the difference from the networks of the report; a negative one is a gain."
)


class CurveTask(Task[Any]):
    """Which points there are."""

    exclude_index = True

    shares = law.CSVParameter(
        cls=luigi.FloatParameter,
        default=(0.125, 0.25, 0.5, 1.0),
        description="shares of the training events, separated by commas; default: 0.125,0.25,0.5,1",
    )
    widths = law.CSVParameter(
        cls=luigi.FloatParameter,
        default=(0.25, 0.5, 1.0, 2.0),
        description="factors on the widths of the hidden layers, separated by commas; default: 0.25,0.5,1,2",
    )

    def points(self, config: Configuration) -> tuple[Point, ...]:
        """Those to be trained: what is configured, the main job trains.

        Raises:
            UserError: A share or a factor makes no sense, or there is nothing to compare.
        """
        from analysis.growth import Point, points

        for option, given, largest in (("--shares", self.shares, 1.0), ("--widths", self.widths, 64.0)):
            for value in given:
                if not 0 < value <= largest:
                    raise UserError(f"{option}: {value:g}; expected numbers above 0 and up to {largest:g}.")
        hidden = config.model.hidden
        found = tuple(p for p in points(hidden, self.shares, self.widths) if p != Point(1.0, hidden))
        if not found:
            raise UserError("--shares and --widths: all of it is as configured; expected others to compare with.")
        return found


@dataclass(frozen=True)
class PointSlice:
    """The networks of one point, and the share of their events that they train on."""

    networks: tuple[TrainSlice, ...]
    share: float


class TrainCurve(CurveTask, TrainingWorkflow):
    """Train all networks anew; one branch per point. Branches of one process train together."""

    exclude_index = False

    def about_branches(self) -> Sequence[Point]:
        return self.points(self.plan.config)

    @property
    def subject(self) -> str:
        return str(self.branch_data.name)

    def slice(self, config: Configuration) -> PointSlice:
        point: Point = self.branch_data
        model = replace(config.model, hidden=point.hidden)
        return PointSlice(tuple(replace(each, model=model) for each in slices_of(config)), point.share)

    def files(self) -> Sequence[str]:
        return ("networks/",)

    def spread(self, branches: Sequence[int], slots: int) -> Sequence[Sequence[int]]:
        from models.tuning import spread

        found = [self.as_branch(branch).settings.networks[0] for branch in branches]
        return spread([(s.model, s.training) for s in found], slots)

    def run_branches(self, branches: Sequence[int]) -> None:
        train_branches(
            self,
            branches,
            train_points,
            save_networks,
            lambda own: [f".checkpoint-{place}" for place in range(len(own.networks))],
            quiet=True,
        )

    @staticmethod
    def compute(settings: PointSlice, given: Given, out: Path) -> None:
        save_networks(train_points([settings], given)[0], out)


def train_points(
    slices: Sequence[PointSlice], given: Given, kept: Kept | None = None
) -> list[tuple[TrainedMember, ...]]:
    """Train the networks of several points, which require the same, stacked where their shapes agree.

    Raises:
        UserError: A share holds too little of a class, or a training diverges.
    """
    from analysis.growth import in_share
    from analysis.pool import load_pool

    pool = load_pool(given.made["pool"].path("pool"))
    plans = []
    for point in slices:
        chosen = in_share(pool.identity, point.share)
        own = [plan_of(each, pool) for each in point.networks]
        plans += [replace(plan, training=plan.training & chosen) for plan in own]
    events = training_events(pool, slices[0].networks[0])
    try:
        trained = train_networks(events, plans, kept=kept)
    except ValueError as error:
        raise UserError(f"--shares or --widths: {error}") from error
    members = iter(trained)
    return [tuple(next(members) for _ in point.networks) for point in slices]


def save_networks(networks: Sequence[TrainedMember], out: Path) -> None:
    """Write the output of one branch."""
    from models.ensemble import save_member

    (out / "networks").mkdir()
    for network in networks:
        save_member(out / "networks" / f"network-{network.fold}-{network.index}.safetensors", network)


@dataclass(frozen=True)
class CurveSlice:
    """What is compared."""

    points: tuple[Point, ...]
    hidden: tuple[int, ...]
    events: JudgedSlice


class LearningCurve(CurveTask, JudgingTask):
    """Train with fewer events and with other widths: the AUC against both, out of fold, as a page of its own."""

    exclude_index = False
    published = "learning_curve"

    def requires(self) -> Any:
        return {**super().requires(), "points": TrainCurve.req(self, branches=())}

    def slice(self, config: Configuration) -> CurveSlice:
        return CurveSlice(self.points(config), config.model.hidden, JudgedSlice.of(config))

    def files(self) -> Sequence[str]:
        return ("learning_curve.json", *PAGE)

    @staticmethod
    def compute(settings: CurveSlice, given: Given, out: Path) -> None:
        import numpy as np

        from analysis.growth import Point
        from analysis.growth_plots import curves, table
        from models.ensemble import Ensemble, load_member
        from models.networks import Classifier

        events = load_judged(given.made, settings.events)
        ensembles = {Point(1.0, settings.hidden): events.ensemble}
        for point, made in zip(settings.points, given.made["points"].values(), strict=True):
            members = [load_member(path) for path in sorted(made.path("networks").glob("*.safetensors"))]
            ensembles[point] = Ensemble(tuple(members), settings.events.combination)
        found = [
            {
                **asdict(point),
                "events": float(np.mean([member.events[0] for member in own.members])),
                "parameters": Classifier(own.members[0].model, own.signature).trained,
                **events.merit(own),
            }
            for point, own in sorted(ensembles.items(), key=lambda pair: (pair[0].share, pair[0].hidden))
        ]
        write_json(out / "learning_curve.json", {**events.about, "points": found})
        write_page(
            out,
            settings.events,
            "more events, wider layers",
            WHAT,
            [table(found)],
            curves(found, settings.hidden),
        )
