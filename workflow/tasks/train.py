"""TrainFolds: one network per fold and member."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import luigi

from analysis.config import Configuration
from analysis.errors import UserError
from models.settings import ModelSettings, TargetSettings, TrainingSettings
from workflow.base import Given, Workflow
from workflow.costs import Meter
from workflow.execution.clusters import has_gpu
from workflow.execution.ending import Ending, postponed_end
from workflow.execution.executor import say
from workflow.store import atomic_write
from workflow.tasks.folds import PrepareFolds

if TYPE_CHECKING:
    from analysis.pool import Pool
    from analysis.splitting import Scheme
    from models.checkpoint import Checkpoint
    from models.events import TrainingEvents
    from models.members import MemberPlan, TrainedMember
    from workflow.tasks.tune import TrialSlice


@dataclass(frozen=True)
class TrainSlice:
    """What a network is and how it is trained."""

    fold: int
    member: int
    folds: int
    scheme: Scheme
    seed: int
    model: ModelSettings
    training: TrainingSettings
    targets: dict[str, TargetSettings]
    soft_labels: tuple[str | None, ...]
    signal: str | None


class TrainingWorkflow(Workflow[Any]):
    """A step whose branches train networks on the pool of events."""

    exclude_index = True
    libraries = ("torch",)
    wants_gpu = True

    checkpoint = luigi.FloatParameter(
        default=60.0,
        significant=False,
        description="seconds of training after which each network is kept, so that a run that was killed goes on from "
        "there; a run that is interrupted keeps each as it ends; changes no result; default: 60",
    )

    def workflow_requires(self) -> Any:
        reqs = super().workflow_requires()
        reqs.pool = PrepareFolds.req(self)
        return reqs

    def requires(self) -> Any:
        return {"pool": PrepareFolds.req(self)}

    def device(self) -> str:
        from models.training import gpu_name

        return gpu_name() or super().device()

    def group_branches(self, branches: Sequence[int], slots: int) -> list[list[int]]:
        # Processes of this machine would share its GPU, where one stack of all networks is faster.
        slots = 1 if self.workflow == "local" and has_gpu() else min(slots, len(branches))
        return [[branches[place] for place in group] for group in self.spread(branches, slots)]

    @abstractmethod
    def spread(self, branches: Sequence[int], slots: int) -> Sequence[Sequence[int]]:
        """Which branches one process trains: their places, at most so many groups."""


class TrainFolds(TrainingWorkflow):
    """Train the networks; one branch per fold and member. Branches of one process train as one stack."""

    exclude_index = False

    def about_branches(self) -> Sequence[tuple[int, int]]:
        config = self.plan.config
        return [(fold, member) for fold in range(config.folds.count) for member in range(config.training.members)]

    @property
    def subject(self) -> str:
        return f"fold {self.branch_data[0]}, member {self.branch_data[1]}"

    def slice(self, config: Configuration) -> TrainSlice:
        return _slice_of(config, *self.branch_data)

    def files(self) -> Sequence[str]:
        return ("network.safetensors",)

    def spread(self, branches: Sequence[int], slots: int) -> Sequence[Sequence[int]]:
        return [range(first, len(branches), slots) for first in range(slots)]

    def run_branches(self, branches: Sequence[int]) -> None:
        train_branches(self, branches, train_stack, save_network)

    @staticmethod
    def compute(settings: TrainSlice, given: Given, out: Path) -> None:
        save_network(train_stack([settings], given)[0], out)


def train_branches(
    step: Any,
    branches: Sequence[int],
    train: Callable[[Sequence[Any], Given, Kept], Sequence[Any]],
    save: Callable[[Any, Path], None],
    checkpoints: Callable[[Any], Sequence[str]] = lambda _: (".checkpoint",),
    *,
    quiet: bool = False,
) -> None:
    """Train the networks of some branches in this process, and write the outputs of each.

    Args:
        step: The workflow, with its `checkpoint`: seconds after which each network is kept.
        branches: The branches, which require the same.
        train: Trains those that no other run has made, by their slices, together.
        save: Writes the output of a branch.
        checkpoints: Names of the files, beside the outputs, in which the networks of a slice are kept, in the order in
            which `train` takes them.
        quiet: Say nothing of networks that go on from there.
    """
    with ExitStack() as claimed:
        # Always in the same order, lest two runs wait for each other.
        waiting = sorted((step.as_branch(branch) for branch in branches), key=lambda task: str(task.fingerprint))
        tasks = [task for task in waiting if claimed.enter_context(task.claimed())]
        if not tasks:
            return
        meter = Meter()
        # Not before: a process that only waits for a claim ends at once. The claims go before the process does.
        with postponed_end() as ending, claimed.pop_all():
            paths = [task.folder / name for task in tasks for name in checkpoints(task.settings)]
            kept = Kept(paths, step.checkpoint, ending, quiet=quiet)
            trained = train([task.settings for task in tasks], tasks[0].given(), kept)
            cost = meter.read().share(len(tasks))
            for task, own in zip(tasks, trained, strict=True):
                task.write([name.rstrip("/") for name in task.files()], partial(save, own), before=cost)
            kept.clear()


class Kept:
    """Checkpoints beside the outputs of some branches, written once some seconds have passed, and before an end."""

    def __init__(self, paths: Sequence[Path], seconds: float, ending: Ending, *, quiet: bool = False) -> None:
        self._paths, self._seconds, self._ending, self._quiet = paths, seconds, ending, quiet
        self._last = time.monotonic()

    def load(self, order: int) -> Checkpoint | None:
        """Where a network stood; None to begin anew, also if it can't be read."""
        from models.checkpoint import Checkpoint

        path = self._path(order)
        if not path.exists():
            return None
        try:
            found = Checkpoint.from_bytes(path.read_bytes())
        except ValueError as error:
            say(f"{path} is left aside: {error}\n")
            return None
        if not self._quiet:
            say(f"{path.parent.name}: goes on in epoch {found.place.epochs + 1}\n")
        return found

    def due(self) -> bool:
        """Whether so many seconds have passed, or the process has been asked to end."""
        now = time.monotonic()
        due = self._ending.asked or now - self._last >= self._seconds
        if due:
            self._last = now
        return due

    def save(self, order: int, checkpoint: Checkpoint) -> None:
        """Keep where a network stands."""
        atomic_write(self._path(order), checkpoint.to_bytes())

    def saved(self) -> None:
        """End the training, all of whose networks are kept now, if the process has been asked to end.

        Raises:
            _EndedError: That is so.
        """
        if self._ending.asked:
            raise _EndedError("The training was ended by SIGTERM; what its networks have reached is kept.")

    def clear(self) -> None:
        """Remove what is not needed any more."""
        for path in self._paths:
            for own in path.parent.glob(f"{path.name}*"):
                own.unlink(missing_ok=True)

    def _path(self, order: int) -> Path:
        """Of a branch's first network the path itself; those of its further ones end in their numbers."""
        number, place = divmod(order, len(self._paths))
        path = self._paths[place]
        return path.with_name(f"{path.name}-{number}") if number else path


class _EndedError(Exception):
    """The training stops here, since the process is about to end."""


def save_network(network: TrainedMember, out: Path) -> None:
    """Write the output of one branch."""
    from models.ensemble import save_member

    save_member(out / "network.safetensors", network)


def train_stack(slices: Sequence[TrainSlice], given: Given, kept: Kept | None = None) -> list[TrainedMember]:
    """Train the networks of several branches, which require the same, as one stack."""
    from analysis.pool import load_pool

    pool = load_pool(given.made["pool"].path("pool"))
    events, plans = training_events(pool, slices[0]), [plan_of(each, pool) for each in slices]
    folds = ", ".join(str(fold) for fold in sorted({s.fold for s in slices}))

    def progress(line: str) -> None:
        say(f"folds {folds}: {line}")

    return train_networks(events, plans, progress, kept)


def train_networks(
    events: TrainingEvents,
    plans: Sequence[MemberPlan],
    progress: Callable[[str], None] = say,
    kept: Kept | None = None,
) -> list[TrainedMember]:
    """Train networks on the best device of this machine.

    Raises:
        UserError: A training diverges, or its weights can't be made of these events.
    """
    from models.members import TrainingDiverged
    from models.training import best_device, train
    from models.weighting import WeightsError

    try:
        return train(events, plans, progress=progress, checkpoints=kept, device=best_device())
    except (TrainingDiverged, WeightsError) as error:
        raise UserError(str(error)) from error


def training_events(pool: Pool, one: TrainSlice | TrialSlice) -> TrainingEvents:
    """The events of a pool as the training of a network, or of others of its analysis, takes them."""
    import numpy as np

    from models.events import TrainingEvents
    from models.preprocessing import Signature, Target

    targets = tuple(Target(name, target) for name, target in one.targets.items())
    return TrainingEvents(
        signature=Signature(pool.features, pool.objects, pool.classes, targets),
        values=pool.values,
        present=pool.present,
        labels=pool.labels,
        weights=pool.weights,
        identity=pool.identity,
        extra=pool.extra if pool.extra_names else None,
        extra_names=pool.extra_names,
        soft_labels=one.soft_labels,
        signal=None if one.signal is None else pool.classes.index(one.signal),
        processes=np.asarray(pool.process, dtype=np.int64),
        process_names=pool.processes,
    )


def plan_of(s: TrainSlice, pool: Pool) -> MemberPlan:
    """The network of a branch."""
    from models.members import MemberPlan

    return MemberPlan(s.fold, s.member, *pool.uses(s.fold, s.folds, s.scheme), s.model, s.training, s.seed)


def slices_of(config: Configuration) -> tuple[TrainSlice, ...]:
    """All networks of an analysis, in the order of the branches."""
    places = [(fold, member) for fold in range(config.folds.count) for member in range(config.training.members)]
    return tuple(_slice_of(config, fold, member) for fold, member in places)


def _slice_of(config: Configuration, fold: int, member: int) -> TrainSlice:
    """What one network of an analysis is and how it is trained."""
    return TrainSlice(
        fold=fold,
        member=member,
        folds=config.folds.count,
        scheme=config.folds.scheme,
        seed=config.seed,
        model=config.model,
        training=of_one_network(config.training),
        targets=dict(config.targets),
        soft_labels=config.soft_labels,
        signal=config.classes.signal if config.training.decorrelated else None,
    )


def of_one_network(training: TrainingSettings) -> TrainingSettings:
    """Training settings as one network sees them: how many there are, how they are combined, what is only judged."""
    strengths = {name: training.decorrelation[name] for name in training.decorrelated}
    return replace(training, members=1, combination="mean", decorrelation=strengths)
