"""The training pool: all events that any network may train or stop on, as arrays that the trainer maps into memory.

Held-out test events are not in it, so that no network, fitted transform or choice can meet them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.errors import UserError
from analysis.splitting import Scheme, fold_of, roles
from analysis.table import EventTable, TableSettings
from analysis.weights import effective_number

_CLOSE = 1e-3  # how exactly soft labels sum to one
ARRAYS = ("values", "present", "labels", "weights", "identity", "folds", "process", "extra")


@dataclass(frozen=True)
class PoolSettings:
    """What the pool needs to know of the analysis.

    Attributes:
        table: Processes, normalisations and features.
        objects: The object of each feature.
        classes: Names of the classes.
        count: Number of folds.
        scheme: How networks use the folds.
        salt: Salt of the folds.
        minimum: Fewest events of a class in a fold, and of those that have a target.
        targets: Functions of the regression targets.
        soft_labels: For each class the function of its probability; empty without soft labels.
    """

    table: TableSettings
    objects: tuple[str, ...]
    classes: tuple[str, ...]
    count: int
    scheme: Scheme
    salt: str
    minimum: int
    targets: tuple[str, ...] = ()
    soft_labels: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Pool:
    """Events for training and stopping, ordered by identity.

    Attributes:
        features: Names of the features; those that no event has are left out.
        objects: The object of each of them.
        dropped: Names of the features that no event has.
        classes: Names of the classes.
        processes: Names of the processes.
        values: float32 [N, F]; 0 where absent.
        present: bool [N, F].
        labels: int64 [N], index of the class.
        weights: float64 [N], signed physics weights.
        identity: uint64 [N].
        folds: int16 [N].
        process: int16 [N], index of the process.
        extra: float32 [N, E], NaN where absent: what only losses and weights know of an event.
        extra_names: Names of these columns.
        statistics: For each network: its folds and, per class, events, n_eff and Σw in training and stopping.
    """

    features: tuple[str, ...]
    objects: tuple[str, ...]
    dropped: tuple[str, ...]
    classes: tuple[str, ...]
    processes: tuple[str, ...]
    values: npt.NDArray[np.float32]
    present: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    identity: npt.NDArray[np.uint64]
    folds: npt.NDArray[np.int16]
    process: npt.NDArray[np.int16]
    extra: npt.NDArray[np.float32]
    extra_names: tuple[str, ...]
    statistics: Sequence[Mapping[str, Any]]

    def uses(self, network: int, count: int, scheme: Scheme) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Which events one network trains on and stops on, bool [N] each."""
        role = roles(network, count, scheme)
        return np.isin(self.folds, role.training), np.asarray(self.folds == role.stopping)


def prepare(table: EventTable, settings: PoolSettings) -> Pool:
    """Choose the events of the pool and check that every network has enough of them.

    Args:
        table: Selected events of all data sets that belong to a class.
        settings: Features, classes and folds.

    Raises:
        UserError: No events, too few of a class or with a target in a fold, a class whose weights sum to zero or below,
            or soft labels that are no probabilities.
    """
    chosen = table.take(~table.is_test & table.training & (table.label >= 0))
    if len(chosen) == 0:
        raise UserError(
            f"No event is left to train on: {len(table)} events pass selection.cuts, of which "
            f"{int(table.is_test.sum())} are held out for the test. The cutflow says where they go; loosen the cuts."
        )
    folds = fold_of(chosen.identity, settings.count, settings.salt)
    labels = chosen.label.astype(np.int64)
    _check_counts(labels, chosen.weight, folds, settings)
    values, present = chosen.matrix(settings.table.columns)
    kept: npt.NDArray[np.bool_] = np.asarray(present.any(axis=0))
    names = np.array(settings.table.columns)
    if not kept.any():
        raise UserError(
            "No feature is present in any event. Look at the functions in physics.py and at data.sentinels."
        )
    return Pool(
        features=tuple(str(n) for n in names[kept]),
        objects=tuple(o for o, k in zip(settings.objects, kept, strict=True) if k),
        dropped=tuple(str(n) for n in names[~kept]),
        classes=settings.classes,
        processes=settings.table.processes,
        values=np.ascontiguousarray(values[:, kept], dtype=np.float32),
        present=np.ascontiguousarray(present[:, kept]),
        labels=labels,
        weights=chosen.weight,
        identity=chosen.identity,
        folds=folds,
        process=chosen.process,
        extra=_extra(chosen, folds, settings),
        extra_names=settings.table.truth,
        statistics=[_statistics(n, labels, chosen.weight, folds, settings) for n in range(settings.count)],
    )


def _check_counts(
    labels: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    folds: npt.NDArray[np.int16],
    settings: PoolSettings,
) -> None:
    """Fewer than `minimum` events of non-zero weight of a class in a fold are an error that shows all of them."""
    used = weights != 0
    counts = np.array(
        [
            [np.sum(used & (labels == c) & (folds == f)) for f in range(settings.count)]
            for c in range(len(settings.classes))
        ]
    )
    if counts.min() >= settings.minimum:
        return
    lines = []
    for c, name in enumerate(settings.classes):
        effective = [effective_number(weights[(labels == c) & (folds == f)]) for f in range(settings.count)]
        cells = "  ".join(f"{n} ({e:.0f})" for n, e in zip(counts[c], effective, strict=True))
        lines.append(f"  {name}: {cells}")
    raise UserError(
        f"At least {settings.minimum} events of each class are needed in each fold, after the selection and without "
        f"the test events. Events (effective number) per class in folds 0 to {settings.count - 1}:\n"
        + "\n".join(lines)
        + "\nUse more events, looser cuts or fewer folds (folds.count)."
    )


def _extra(chosen: EventTable, folds: npt.NDArray[np.int16], settings: PoolSettings) -> npt.NDArray[np.float32]:
    """The columns of the truth side by side, float32 [N, E], NaN where absent."""
    names = settings.table.truth
    extra = np.empty((len(chosen), len(names)), dtype=np.float32)
    for place, name in enumerate(names):
        extra[:, place] = np.ma.filled(chosen.columns[name].astype(np.float32), np.nan)
    used = chosen.weight != 0
    for name in settings.targets:
        there = used & np.isfinite(extra[:, names.index(name)])
        counts = [int(np.sum(there & (folds == fold))) for fold in range(settings.count)]
        if min(counts) < settings.minimum:
            raise UserError(
                f"Target {name}: {', '.join(map(str, counts))} events of folds 0 to {settings.count - 1} have it; at "
                f"least {settings.minimum} are needed in each. Look at the function in physics.py, or use fewer folds."
            )
    _check_soft_labels(extra, settings)
    return extra


def _check_soft_labels(extra: npt.NDArray[np.float32], settings: PoolSettings) -> None:
    """Probabilities are between 0 and 1, and those of an event sum to one."""
    named = [name for name in settings.soft_labels if name is not None]
    if not named:
        return
    shares = extra[:, [settings.table.truth.index(name) for name in named]].astype(np.float64)  # [N, C]
    total = shares.sum(axis=1)
    known = np.isfinite(total)
    rest = 1 - total if len(named) < len(settings.classes) else np.where(np.abs(total - 1) > _CLOSE, -1.0, 0.0)
    wrong = known & ((shares < -_CLOSE).any(axis=1) | (shares > 1 + _CLOSE).any(axis=1) | (rest < -_CLOSE))
    if wrong.any():
        first = ", ".join(f"{name} = {value:g}" for name, value in zip(named, shares[wrong][0], strict=True))
        raise UserError(
            f"Soft labels: those of {int(wrong.sum())} of {len(extra)} events are no probabilities, first {first}; "
            "numbers from 0 to 1 that sum to one over the classes are expected, or None for the label of the process."
        )


def _statistics(
    network: int,
    labels: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    folds: npt.NDArray[np.int16],
    settings: PoolSettings,
) -> dict[str, Any]:
    role = roles(network, settings.count, settings.scheme)
    result: dict[str, Any] = {"network": network, "training_folds": list(role.training), "stopping_fold": role.stopping}
    for purpose, rows in (("training", np.isin(folds, role.training)), ("stopping", folds == role.stopping)):
        per_class = {}
        for c, name in enumerate(settings.classes):
            own = weights[rows & (labels == c)]
            total = float(own.sum())
            if total <= 0:
                raise UserError(
                    f"Class {name!r}: the physics weights of its {len(own)} events for {purpose} of network {network} "
                    f"sum to {total:g}; a sum above 0 is needed to balance the classes. Negative weights prevail: use "
                    "more events or fewer folds."
                )
            per_class[name] = {"events": len(own), "effective": effective_number(own), "sum_of_weights": total}
        result[purpose] = per_class
    return result


def save_pool(pool: Pool, folder: Path) -> None:
    """Write a pool: one `.npy` file per array, and `pool.json`."""
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(pool, name))
    description = {
        "features": pool.features,
        "objects": pool.objects,
        "dropped": pool.dropped,
        "classes": pool.classes,
        "processes": pool.processes,
        "extra": pool.extra_names,
        "events": len(pool.labels),
        "statistics": list(pool.statistics),
    }
    (folder / "pool.json").write_text(json.dumps(description, indent=1) + "\n")


def load_pool(folder: Path) -> Pool:
    """Map a pool into memory; processes on one machine share the pages."""
    description = json.loads((folder / "pool.json").read_text())
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in ARRAYS}
    return Pool(
        features=tuple(description["features"]),
        objects=tuple(description["objects"]),
        dropped=tuple(description["dropped"]),
        classes=tuple(description["classes"]),
        processes=tuple(description["processes"]),
        extra_names=tuple(description["extra"]),
        statistics=description["statistics"],
        **arrays,
    )
