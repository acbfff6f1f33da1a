"""Friend trees: one entry for each entry of the file, scores where they belong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import uproot

from analysis.columns import write_columns
from analysis.friends import KINDS, Scores, read_friend, score_chunk, write_friend
from analysis.splitting import event_identity, fold_of

CLASSES = ("background", "signal")


def scores(entries: list[int], seed: int = 1) -> Scores:
    rng = np.random.default_rng(seed)
    routed, ensemble, spread = rng.dirichlet([1, 1], (3, len(entries))).astype(np.float32)
    numbers = np.array(entries, dtype=np.int64)
    return Scores(numbers, (numbers % 5).astype(np.int16), numbers % 3 == 0, routed, ensemble, spread)


def test_friend_is_aligned_with_its_file(tmp_path: Path) -> None:
    """Chunks in any order, with gaps: an entry has its own scores or none."""
    first, second = scores([1, 2, 5], seed=1), scores([8, 11], seed=2)
    write_friend(tmp_path / "friend.root", 13, CLASSES, [second, first])
    with uproot.open(tmp_path / "friend.root") as file:
        tree = file["scores"].arrays(library="np")
    assert set(tree) == {
        *(f"score_{c}_{kind}" for c in CLASSES for kind in ("routed", "ensemble")),
        *(f"spread_{c}" for c in CLASSES),
        *("fold", "is_test", "selected"),
    }
    assert {name: tree[name].dtype for name in ("fold", "is_test", "selected", "score_signal_routed")} == {
        "fold": np.int16,
        "is_test": np.bool_,
        "selected": np.bool_,
        "score_signal_routed": np.float32,
    }
    assert np.flatnonzero(tree["selected"]).tolist() == [1, 2, 5, 8, 11]
    for part in (first, second):
        np.testing.assert_array_equal(tree["fold"][part.entry], part.fold)
        np.testing.assert_array_equal(tree["is_test"][part.entry], part.is_test)
        for c, name in enumerate(CLASSES):
            np.testing.assert_array_equal(tree[f"score_{name}_routed"][part.entry], part.routed[:, c])
            np.testing.assert_array_equal(tree[f"score_{name}_ensemble"][part.entry], part.ensemble[:, c])
            np.testing.assert_array_equal(tree[f"spread_{name}"][part.entry], part.spread[:, c])
    outside = ~tree["selected"]
    assert outside.sum() == 8
    assert set(tree["fold"][outside]) == {-1}
    assert not tree["is_test"][outside].any()
    for name in CLASSES:
        for kind in ("routed", "ensemble"):
            assert np.isnan(tree[f"score_{name}_{kind}"][outside]).all()
        assert np.isnan(tree[f"spread_{name}"][outside]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_read_friend(tmp_path: Path, kind: str) -> None:
    part = scores([0, 3])
    write_friend(tmp_path / "friend.root", 4, CLASSES, [part])
    found = read_friend(tmp_path / "friend.root", CLASSES)[kind]
    assert (found.shape, found.dtype) == ((4, 2), np.float32)
    np.testing.assert_array_equal(found[[0, 3]], getattr(part, kind))
    assert np.isnan(found[[1, 2]]).all()


@pytest.mark.parametrize("entries", [0, 3])
def test_friend_of_a_file_without_selected_events(tmp_path: Path, entries: int) -> None:
    write_friend(tmp_path / "friend.root", entries, CLASSES, [])
    with uproot.open(tmp_path / "friend.root") as file:
        assert file["scores"].num_entries == entries
        assert file["scores"]["selected"].array(library="np").tolist() == [False] * entries
    found = read_friend(tmp_path / "friend.root", CLASSES)["routed"]
    assert found.shape == (entries, 2)
    assert np.isnan(found).all()


def write_chunk(folder: Path, numbers: np.ndarray) -> dict[str, Path]:
    identity = event_identity("mc", [numbers])
    events = {"entry": 10 + 2 * numbers, "identity": identity, "is_test": numbers % 4 == 0, "unused": numbers}
    write_columns(folder / "events.parquet", events)
    pt = np.ma.MaskedArray(numbers.astype(np.float32), mask=numbers % 3 == 0)
    write_columns(folder / "pt.parquet", {"pt": pt})
    write_columns(folder / "met.parquet", {"met": -numbers.astype(np.float32)})
    return {"pt": folder / "pt.parquet", "met": folder / "met.parquet"}


@pytest.mark.parametrize("count", [20, 0])
def test_score_chunk_gives_the_networks_their_inputs(tmp_path: Path, count: int) -> None:
    numbers = np.arange(count, dtype=np.int64)
    columns = write_chunk(tmp_path, numbers)
    seen = {}

    def scorer(values: np.ndarray, present: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, ...]:
        seen.update(values=values, present=present, folds=folds)
        return values * 2, values * 3, values * 4

    found = score_chunk(tmp_path / "events.parquet", columns, ("met", "pt"), scorer, folds=5, salt="0")
    absent = numbers % 3 == 0
    np.testing.assert_array_equal(seen["present"], np.stack([np.ones_like(absent), ~absent], axis=1))
    np.testing.assert_array_equal(seen["values"], np.stack([-numbers, np.where(absent, 0, numbers)], axis=1))
    assert seen["values"].dtype == np.float32
    expected = fold_of(event_identity("mc", [numbers]), 5, "0")
    np.testing.assert_array_equal(seen["folds"], expected)
    np.testing.assert_array_equal(found.fold, expected)
    np.testing.assert_array_equal(found.entry, 10 + 2 * numbers)
    np.testing.assert_array_equal(found.is_test, numbers % 4 == 0)
    np.testing.assert_array_equal(found.routed, seen["values"] * 2)
    np.testing.assert_array_equal(found.ensemble, seen["values"] * 3)
    np.testing.assert_array_equal(found.spread, seen["values"] * 4)
