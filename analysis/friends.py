"""Friend trees: the scores of a file's events, one entry for each entry of the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from analysis.columns import read_columns
from analysis.splitting import fold_of

TREE = "scores"
KINDS = ("routed", "ensemble", "spread")
Form = Literal["ttree", "rntuple"]

Scorer = Callable[
    [npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.int64]],
    tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]],
]


@dataclass(frozen=True)
class Scores:
    """Scores of the selected events of one chunk.

    Attributes:
        entry: Entry in the file, int64 [N].
        fold: Fold of each event, int16 [N].
        is_test: Held-out test events, bool [N].
        routed: Scores of the network that left the event's fold out, then its outputs of regression targets, float32
            [N, C + R].
        ensemble: Those of all networks together, float32 [N, C + R].
        spread: Their standard deviation over all networks, float32 [N, C + R].
    """

    entry: npt.NDArray[np.int64]
    fold: npt.NDArray[np.int16]
    is_test: npt.NDArray[np.bool_]
    routed: npt.NDArray[np.float32]
    ensemble: npt.NDArray[np.float32]
    spread: npt.NDArray[np.float32]


def score_chunk(
    events: Path, columns: Mapping[str, Path], features: Sequence[str], scorer: Scorer, *, folds: int, salt: str
) -> Scores:
    """Score the selected events of one chunk.

    Args:
        events: Column store of the selection.
        columns: Column store of each feature.
        features: Features in the order of the networks' inputs.
        scorer: From values [N, F], presence [N, F] and folds [N] to what is routed, of the ensemble, and its spread,
            [N, C + R] each.
        folds: Number of folds.
        salt: Salt of the folds.
    """
    selected = read_columns(events, ["entry", "identity", "is_test"])
    arrays = [np.ma.asarray(read_columns(columns[name])[name]) for name in features]
    values = np.stack([np.ma.filled(a, 0) for a in arrays], axis=1).astype(np.float32)  # (N, F)
    present = np.stack([~np.ma.getmaskarray(a) for a in arrays], axis=1)  # (N, F)
    fold = fold_of(selected["identity"].astype(np.uint64), folds, salt)
    return Scores(
        selected["entry"],
        fold,
        selected["is_test"].astype(np.bool_),
        *scorer(values, present, fold.astype(np.int64)),
    )


def write_friend(
    path: Path,
    entries: int,
    classes: Sequence[str],
    parts: Sequence[Scores],
    targets: Sequence[str] = (),
    *,
    form: Form = "ttree",
) -> None:
    """Write a friend tree named `scores`.

    Args:
        path: File to write.
        entries: Entries of the file that it befriends.
        classes: Names of the classes.
        parts: Scores of its chunks.
        targets: Names of the outputs of regression targets.
        form: What ROOT stores it as.

    The branches are `score_<class>_routed`, `score_<class>_ensemble`, `spread_<class>`, and `_routed`, `_ensemble` and
    `_spread` behind the name of a target's output (float32, NaN where not selected), `fold` (int16, -1 where
    not selected), `is_test` and `selected` (bool, false where not selected).
    """
    import uproot

    branches: dict[str, npt.NDArray[Any]] = {}
    for kind in KINDS:
        for name in _branches(classes, targets, kind):
            branches[name] = np.full(entries, np.nan, dtype=np.float32)
    branches["fold"] = np.full(entries, -1, dtype=np.int16)
    branches["is_test"] = np.zeros(entries, dtype=np.bool_)
    branches["selected"] = np.zeros(entries, dtype=np.bool_)
    for part in parts:
        for kind in KINDS:
            for column, name in enumerate(_branches(classes, targets, kind)):
                branches[name][part.entry] = getattr(part, kind)[:, column]
        branches["fold"][part.entry] = part.fold
        branches["is_test"][part.entry] = part.is_test
        branches["selected"][part.entry] = True
    with uproot.recreate(path) as file:
        make = file.mktree if form == "ttree" else file.mkrntuple
        tree = make(TREE, {name: values.dtype for name, values in branches.items()})
        if entries:
            tree.extend(branches)


def read_friend(path: Path, classes: Sequence[str], targets: Sequence[str] = ()) -> dict[str, npt.NDArray[np.float32]]:
    """Read the scores of all entries of a file, and their spread.

    Args:
        path: A friend tree's file.
        classes: Names of the classes.
        targets: Names of the outputs of regression targets.

    Returns:
        For each of `KINDS` float32 [entries, C + R]; NaN where an event is not selected.
    """
    import uproot

    names = {kind: _branches(classes, targets, kind) for kind in KINDS}
    with uproot.open(path) as file:
        arrays = file[TREE].arrays([name for own in names.values() for name in own], library="np")
    return {kind: np.stack([arrays[name] for name in own], axis=1) for kind, own in names.items()}


def _branches(classes: Sequence[str], targets: Sequence[str], kind: str) -> list[str]:
    """The branches of one of `KINDS`, column by column."""
    own = [f"spread_{name}" if kind == "spread" else f"score_{name}_{kind}" for name in classes]
    return [*own, *(f"{name}_{kind}" for name in targets)]
