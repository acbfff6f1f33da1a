"""The parts of a training: settings, random numbers, preprocessing, losses; others have files of their own."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import get_args, get_type_hints

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from models import hashing
from models.dropout import Dropout
from models.losses import class_factors, cross_entropy
from models.networks import ACTIVATIONS, NETWORKS, Step
from models.objects import FRONTS
from models.optimisation import AVERAGES, OPTIMISERS
from models.preprocessing import Signature
from models.schedules import SCHEDULES
from models.settings import (
    CONSTANTS,
    Activation,
    Averaging,
    Missing,
    ModelSettings,
    Optimiser,
    Schedule,
    TrainingSettings,
)

SIGNATURE = Signature(("met", "pt1", "eta1", "pt2", "eta2"), ("event", "l1", "l1", "l2", "l2"), ("s", "b", "t"))


class TestSettings:
    def test_reads_without_heavy_libraries(self) -> None:
        program = "import sys, models.settings; print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
        assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == (
            "[]\n"
        )

    @pytest.mark.parametrize(
        ("kind", "wrong"),
        [
            (ModelSettings, {"hidden": (128, 1)}),
            (ModelSettings, {"dropout": 1.0}),
            (ModelSettings, {"dropout": -0.1}),
            (TrainingSettings, {"epochs": 0}),
            (TrainingSettings, {"batch_size": 0}),
            (TrainingSettings, {"learning_rate": 0.0}),
            (TrainingSettings, {"learning_rate": math.nan}),
            (TrainingSettings, {"weight_decay": -1.0}),
            (TrainingSettings, {"patience": 0}),
            (TrainingSettings, {"clip_norm": 0.0}),
            (TrainingSettings, {"members": 0}),
            (ModelSettings, {"initial_constant": math.nan, "initialisation": "constant"}),
            (ModelSettings, {"hidden": (8, 6), "connections": "residual"}),
            (ModelSettings, {"hidden": (8,), "connections": "residual"}),
            (ModelSettings, {"hidden": (), "connections": "densely_connected"}),
            (TrainingSettings, {"focal_gamma": -1.0, "loss": "focal"}),
            (TrainingSettings, {"label_smoothing": 1.0}),
            (TrainingSettings, {"label_noise": -0.1}),
            (TrainingSettings, {"input_noise": -0.1}),
            (TrainingSettings, {"weight_noise": math.inf}),
            (TrainingSettings, {"l1": -1.0}),
            (TrainingSettings, {"l2": math.nan}),
            (TrainingSettings, {"max_norm": 0.0}),
            (TrainingSettings, {"stop_gap": 0.0}),
            (TrainingSettings, {"stop_generalisation": -1.0}),
        ],
    )
    def test_refuses_values_and_names_the_key(
        self, kind: type[ModelSettings | TrainingSettings], wrong: dict[str, object]
    ) -> None:
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*; expected"):
            kind(**wrong)  # type: ignore[arg-type]

    def test_every_name_is_implemented(self) -> None:
        assert set(get_args(Activation)) == set(ACTIVATIONS)
        assert set(get_args(Schedule)) == set(SCHEDULES) == set(CONSTANTS["schedule"])
        assert set(get_args(Optimiser)) == set(OPTIMISERS) == set(CONSTANTS["optimiser"])
        assert set(get_args(Averaging)) == {"none", *AVERAGES} == set(CONSTANTS["averaging"])
        assert set(get_args(get_type_hints(ModelSettings)["type"])) == set(NETWORKS)
        assert set(get_args(Missing)) == set(FRONTS) == set(CONSTANTS["missing"])

    def test_schema_reads_them(self) -> None:
        pydantic = pytest.importorskip("pydantic")
        adapter = pydantic.TypeAdapter(ModelSettings)
        assert adapter.validate_python({"hidden": [8, 4]}) == ModelSettings(hidden=(8, 4))
        with pytest.raises(pydantic.ValidationError, match="activaton"):
            adapter.validate_python({"activaton": "relu"})
        with pytest.raises(pydantic.ValidationError, match="dropout is 2"):
            adapter.validate_python({"dropout": 2})


class TestHashing:
    def test_splitmix64_is_the_published_one(self) -> None:
        # The first outputs of the reference implementation (prng.di.unimi.it/splitmix64.c) from seed 1234567.
        golden = 0x9E3779B97F4A7C15
        states = [(1234567 + i * golden) % 2**64 for i in range(3)]
        counters = torch.from_numpy(np.array(states, dtype=np.uint64).view(np.int64))
        found = hashing.splitmix64(counters).numpy().view(np.uint64)
        assert found.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]

    @given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
    def test_scalars_and_tensors_agree(self, words: list[int]) -> None:
        tensor = hashing.splitmix64(torch.tensor(words))
        assert [hashing.key(word) for word in words] == tensor.tolist()

    def test_key_depends_on_every_word_and_its_place(self) -> None:
        keys = {hashing.key(*words) for words in [(1, 2), (2, 1), (1,), (1, 2, 0), (1, 3), (0, 2)]}
        assert len(keys) == 6

    def test_uniform_is_uniform(self) -> None:
        numbers = hashing.uniform(hashing.key(7), 50_000).numpy()
        assert numbers.min() >= 0
        assert numbers.max() < 1
        counts = np.histogram(numbers, bins=50, range=(0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 95  # χ² with 49 degrees of freedom: p = 10⁻⁴


class TestDropout:
    def test_it_drops_the_share_and_keeps_the_mean(self) -> None:
        dropout = Dropout([0.3, 0.6], [33], torch.float32, "cpu")
        masks = dropout(torch.ones(2, 5000, 33), torch.tensor([hashing.key(1), hashing.key(2)]))
        for mask, rate in zip(masks, (0.3, 0.6), strict=True):
            assert set(mask.flatten().tolist()) == {0.0, mask.max().item()}
            assert mask.max().item() == pytest.approx(1 / (1 - rate))
            sigma = math.sqrt(rate * (1 - rate))
            assert (mask == 0).float().mean().item() == pytest.approx(rate, abs=5 * sigma / math.sqrt(mask.numel()))
            per_unit, per_event = (mask == 0).float().mean(dim=0), (mask == 0).float().mean(dim=1)
            assert (per_unit - rate).abs().max() < 5 * sigma / math.sqrt(5000)
            assert per_event.std().item() == pytest.approx(sigma / math.sqrt(33), rel=0.05)
        assert len(torch.unique(masks[0], dim=0)) > 4500  # of 5,000 events, a few share a mask

    def test_units_and_layers_are_independent(self) -> None:
        dropout, ones = Dropout([0.5], [16], torch.float32, "cpu"), torch.ones(1, 20_000, 16)
        layers = [dropout(ones, torch.tensor([key]))[0] - 1 for key in (1, 2)]  # (B, H) of -1 and 1
        correlations = torch.cat(layers, dim=1).T @ torch.cat(layers, dim=1) / 20_000  # (2·H, 2·H)
        assert (correlations - torch.eye(32)).abs().max() < 5 / math.sqrt(20_000)

    def test_it_differs_by_step_layer_and_member_only(self) -> None:
        ones = torch.ones(2, 64, 32)

        def step(keys: list[int], rates: list[float]) -> Step:
            dropout = Dropout(rates, [32], torch.float32, "cpu")
            return Step(torch.tensor(keys), dropout, torch.ones(len(keys), 64, dtype=torch.bool))

        first = step([1, 2], [0.5, 0.5]).dropout(ones, 0)
        assert torch.equal(step([1, 2], [0.5, 0.5]).dropout(ones, 0), first)
        assert not torch.equal(step([1, 2], [0.5, 0.5]).dropout(ones, 1), first)
        assert not torch.equal(step([3, 4], [0.5, 0.5]).dropout(ones, 0), first)
        assert torch.equal(step([2], [0.5]).dropout(ones[:1], 0)[0], first[1])
        mixed = step([1, 2], [0.0, 0.5]).dropout(ones, 0)  # each member has a rate of its own
        assert torch.equal(mixed[0], ones[0])
        assert torch.equal(mixed[1], first[1])
        chosen = Dropout([0.0, 0.5], [32], torch.float32, "cpu")
        chosen.select(torch.tensor([1]))
        assert torch.equal(chosen(ones[:1], hashing.splitmix64(torch.tensor([2])))[0], first[1])


def _random_events(seed: int, count: int = 200) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    random = np.random.default_rng(seed)
    values = random.normal(3, 2, (count, 5)).astype(np.float32)
    present = np.ones((count, 5), dtype=np.bool_)
    present[:, 1:3] = random.random((count, 1)) < 0.9
    present[:, 3:] = random.random((count, 1)) < 0.5
    return values, present


class TestSignature:
    def test_signature(self) -> None:
        assert SIGNATURE.objects == ("event", "l1", "l2")
        assert SIGNATURE.membership().sum(axis=0).tolist() == [1, 2, 2]
        with pytest.raises(ValueError, match="one object for"):
            Signature(("a", "b"), ("x",), ("s", "b"))
        with pytest.raises(ValueError, match="same name"):
            Signature(("a", "a"), ("x", "x"), ("s", "b"))
        with pytest.raises(ValueError, match="at least two"):
            Signature(("a",), ("x",), ("s",))


class TestLosses:
    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.integers(2, 5))
    def test_cross_entropy_against_torch_with_negative_weights(self, seed: int, classes: int) -> None:
        random = np.random.default_rng(seed)
        logits = torch.from_numpy(random.normal(0, 5, (2, 4, 30, classes)))  # four submodels each
        labels = torch.from_numpy(random.integers(0, classes, (2, 30)))
        weights = torch.from_numpy(random.normal(0.2, 1, (2, 30)))
        found = cross_entropy(logits, labels, weights)
        for member in range(2):
            plain = [functional.cross_entropy(own, labels[member], reduction="none") for own in logits[member]]
            mean = torch.stack([(losses * weights[member]).sum() for losses in plain]).mean()
            assert found[member].item() == pytest.approx(mean.item(), rel=1e-9, abs=1e-9)

    @given(st.integers(0, 2**32 - 1), st.integers(2, 5))
    def test_class_factors_balance(self, seed: int, classes: int) -> None:
        random = np.random.default_rng(seed)
        labels = np.concatenate([np.arange(classes), random.integers(0, classes, 300)])
        weights = random.normal(1, 0.8, len(labels)) * 10.0 ** random.integers(-3, 3, classes)[labels]
        sums = np.bincount(labels, weights=weights)
        if (sums <= 1e-3 * np.bincount(labels, weights=np.abs(weights))).any():
            return
        balanced = weights * class_factors(weights, labels, classes)[labels]
        assert balanced.mean() == pytest.approx(1)
        assert np.bincount(labels, weights=balanced) == pytest.approx(len(labels) / classes)
        assert (np.sign(balanced) == np.sign(weights)).all()

    @pytest.mark.parametrize("weights", [[1.0, -1.0, 0.0], [1.0, -2.0, 0.5], [1.0, np.nan, 1.0], [1.0, 0.0, 0.0]])
    def test_class_factors_refuse_a_class_without_positive_sum(self, weights: list[float]) -> None:
        with pytest.raises(ValueError, match=r"weights of class 1 sum to .* over 2 events"):
            class_factors(np.array(weights), np.array([0, 1, 1]), 2)

    def test_class_factors_refuse_an_empty_class(self) -> None:
        with pytest.raises(ValueError, match="weights of class 2 sum to 0 over 0 events"):
            class_factors(np.ones(2), np.array([0, 1]), 3)
