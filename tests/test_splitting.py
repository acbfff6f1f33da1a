"""Buckets: reference vectors, the vectors in the docs, and what buckets may and may not depend on."""

from __future__ import annotations

import hashlib
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.splitting import event_identity, fold_of, is_test, key_of, roles, salted, splitmix64

DOCS = Path(__file__).parents[1] / "docs" / "buckets.md"
MASK = 2**64 - 1
INT64 = st.integers(-(2**63), 2**63 - 1)
EVENTS = st.lists(st.tuples(INT64, INT64), min_size=1, max_size=30)


def columns_of(events: list[tuple[int, int]]) -> list[np.ndarray]:
    return list(np.array(events, dtype=np.int64).T)


def mix(x: int) -> int:
    """splitmix64 with Python's integers, written from the definition in the docs."""
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def key(text: str) -> int:
    return int(struct.unpack("<Q", hashlib.sha256(text.encode("utf-8")).digest()[:8])[0])


def identity_by_definition(sample: str, columns: list[int]) -> int:
    h = mix(key(sample))
    for column in columns:
        h = mix(h ^ (column & MASK))
    return h


def documented_vectors() -> list[tuple[str, list[int], int, bool, int]]:
    """The rows of the table of test vectors: sample, columns, identity, test bucket, fold."""
    row = re.compile(r"^\| `([^`]*)` \| `([^`]*)` \| `0x([0-9a-f]{16})` \| (yes|no) \| (\d+) \|$", re.MULTILINE)
    return [
        (sample, [int(c) for c in columns.split(", ")], int(identity, 16), test == "yes", int(fold))
        for sample, columns, identity, test, fold in row.findall(DOCS.read_text(encoding="utf-8"))
    ]


def test_splitmix64_gives_the_published_sequence() -> None:
    """Outputs of Vigna's reference implementation (prng.di.unimi.it/splitmix64.c) from the state 1234567."""
    state = np.uint64(1234567) + np.arange(5, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(state).tolist() == expected


@pytest.mark.parametrize("vector", documented_vectors(), ids=lambda v: f"{v[0]}-{v[1][-1]}")
def test_documented_vectors(vector: tuple[str, list[int], int, bool, int]) -> None:
    sample, columns, identity, test, fold = vector
    found = event_identity(sample, [np.array([c], dtype=np.int64) for c in columns])
    assert found.tolist() == [identity] == [identity_by_definition(sample, columns)]
    assert is_test(found, 0.25, "eventfold").tolist() == [test]
    assert fold_of(found, 5, "0").tolist() == [fold]


def test_documented_vectors_cover_both_buckets_and_every_fold() -> None:
    vectors = documented_vectors()
    assert {test for *_, test, _ in vectors} == {True, False}
    assert {fold for *_, fold in vectors} == set(range(5))
    assert any(min(columns) < 0 for _, columns, *_ in vectors)


@given(EVENTS, st.text(), st.text(), st.floats(0.01, 0.99), st.integers(2, 20))
def test_buckets_follow_the_definition(
    events: list[tuple[int, int]], sample: str, salt: str, fraction: float, count: int
) -> None:
    found = event_identity(sample, columns_of(events))
    by_definition = [identity_by_definition(sample, list(event)) for event in events]
    assert found.tolist() == by_definition
    uniform = [(mix(h ^ mix(key(f"test:{salt}"))) >> 11) / 2**53 for h in by_definition]
    assert is_test(found, fraction, salt).tolist() == [u < fraction for u in uniform]
    assert fold_of(found, count, salt).tolist() == [mix(h ^ mix(key(f"fold:{salt}"))) % count for h in by_definition]


@given(EVENTS, st.data())
def test_buckets_depend_on_neither_order_nor_chunks(events: list[tuple[int, int]], data: st.DataObject) -> None:
    columns = columns_of(events)
    whole = event_identity("ttbar", columns)
    order = np.array(data.draw(st.permutations(range(len(events)))))
    np.testing.assert_array_equal(event_identity("ttbar", [c[order] for c in columns]), whole[order])
    cut = data.draw(st.integers(0, len(events)))
    chunks = [event_identity("ttbar", [c[part] for c in columns]) for part in (slice(cut), slice(cut, None))]
    np.testing.assert_array_equal(np.concatenate(chunks), whole)
    np.testing.assert_array_equal(np.concatenate([fold_of(c, 5, "0") for c in chunks]), fold_of(whole, 5, "0"))


@given(INT64, INT64)
def test_sample_and_each_column_matter(run: int, event: int) -> None:
    one, other = (np.array([v], dtype=np.int64) for v in (run, event))
    assert event_identity("a", [one, other]) != event_identity("b", [one, other])
    assert event_identity("a", [one]) != event_identity("a", [one, other])
    if run != event:
        assert event_identity("a", [one, other]) != event_identity("a", [other, one])


def test_columns_need_not_be_contiguous() -> None:
    table = np.arange(20, dtype=np.int64).reshape(10, 2)
    np.testing.assert_array_equal(event_identity("a", [table[:, 1]]), event_identity("a", [table[:, 1].copy()]))


def test_identity_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="at least one column"):
        event_identity("a", [])
    with pytest.raises(ValueError, match=r"different lengths: \[2, 3\]"):
        event_identity("a", [np.zeros(2, np.int64), np.zeros(3, np.int64)])


# Event numbers of a real sample: consecutive, in luminosity blocks of 1,000. Everything below is deterministic.
NUMBERS = np.arange(100_000, dtype=np.int64)
SAMPLE = event_identity("ttbar", [np.ones_like(NUMBERS), NUMBERS // 1000, NUMBERS])


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("salt", ["eventfold", "another"])
def test_test_fraction(fraction: float, salt: str) -> None:
    found = int(is_test(SAMPLE, fraction, salt).sum())
    assert stats.binomtest(found, len(SAMPLE), fraction).pvalue > 1e-3


@pytest.mark.parametrize("count", [2, 4, 5, 8])
def test_folds_are_equal_and_independent_of_the_test_bucket(count: int) -> None:
    """Over 100 samples the p-values of both χ² tests are uniform; one sample alone would fluctuate.

    (`ttbar` with 8 folds and salt 0 has p = 3e-5 for its first 100,000 event numbers, and p = 0.15 for 4 million.)
    """
    equal, independent = [], []
    for name in ["ttbar", *(f"sample{i}" for i in range(99))]:
        identity = event_identity(name, [NUMBERS[:20_000] // 1000, NUMBERS[:20_000]])
        # The same salt for both: the two hashes differ by their purpose.
        fold, test = fold_of(identity, count, "0"), is_test(identity, 0.25, "0")
        cells = np.zeros((2, count))
        np.add.at(cells, (test.astype(int), fold), 1)
        equal.append(stats.chisquare(cells.sum(axis=0)).pvalue)
        independent.append(stats.chi2_contingency(cells, correction=False).pvalue)
    assert stats.kstest(equal, "uniform").pvalue > 1e-3
    assert stats.kstest(independent, "uniform").pvalue > 1e-3


def test_independence_test_can_tell() -> None:
    """One hash taken modulo twice empties folds: the defect that the two salted hashes avoid."""
    once = salted(SAMPLE, "fold", "0")
    test, fold = once % np.uint64(4) == 0, fold_of(SAMPLE, 4, "0")
    assert set(fold[~test]) == {1, 2, 3}


def test_salts_give_independent_folds() -> None:
    cells = np.zeros((5, 5))
    np.add.at(cells, (fold_of(SAMPLE, 5, "0"), fold_of(SAMPLE, 5, "1")), 1)
    assert stats.chi2_contingency(cells).pvalue > 1e-3


def test_keys_are_signed() -> None:
    """A file key stands in an int64 column, where there are no event numbers."""
    assert {key_of(f"file{i}.root") < 0 for i in range(10)} == {True, False}
    assert all(key_of(name) & MASK == key(name) for name in ("", "ttbar", "H→WW"))


@pytest.mark.parametrize("count", range(2, 9))
@pytest.mark.parametrize("scheme", ["rotating", "standard"])
def test_roles(scheme: str, count: int) -> None:
    if scheme == "rotating" and count == 2:
        with pytest.raises(ValueError, match="at least 3, not 2"):
            roles(0, count, "rotating")
        return
    trained = np.zeros((count, count), dtype=int)
    for network in range(count):
        role = roles(network, count, scheme)  # type: ignore[arg-type]
        trained[network, list(role.training)] += 1
        assert network not in role.training
        assert role.stopping not in role.training
        assert role.stopping == ((network + 1) % count if scheme == "rotating" else network)
        assert {*role.training, role.stopping, network} == set(range(count))
    # Every fold trains the same number of networks, and each of them once.
    assert trained.max() == 1
    assert set(trained.sum(axis=0)) == {count - 2 if scheme == "rotating" else count - 1}
