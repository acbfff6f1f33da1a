"""Turned, mirrored and smeared events: what moves how, in training and averaged at evaluation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import kstest

from models.augmentation import Augmenter
from models.ensemble import Ensemble, load_member, predict, save_member
from models.export import check_onnx, export_onnx
from models.members import TrainedMember
from models.settings import Augmentation, InputSettings, ModelSettings, Resolution, TrainingSettings
from models.training import train
from tests.test_training import (
    SIGNATURE,
    assert_equal,
    assert_recordable,
    differ,
    garbage_outside,
    make_events,
    make_plans,
)

NAMES = ("phi", "px", "py", "dphi", "eta", "pt")
MOVES = Augmentation(
    rotation=True,
    reflection_phi=True,
    reflection_z=True,
    angles=("phi",),
    vectors=(("px", "py"),),
    signed_angles=("dphi",),
    longitudinal=("eta",),
    copies=12,
)
MODEL = ModelSettings(hidden=(64, 64), inputs=InputSettings(features={"met": "angle"}))
OF_EVENTS = Augmentation(
    rotation=True,
    reflection_phi=True,
    reflection_z=True,
    angles=("met",),
    longitudinal=("eta2",),
    copies=8,
    smearing={"pt1": Resolution(relative=0.1), "pt2": Resolution(absolute=0.2)},
)
TRAINING = TrainingSettings(epochs=2, batch_size=100, patience=None, augmentation=OF_EVENTS, negative_weights="signed")


def make(count: int = 640) -> torch.Tensor:
    """Events with one transverse vector, as angle and as components: ``[1, count, 6]``."""
    random = np.random.default_rng(1)
    pt, phi = random.uniform(1, 50, count), random.uniform(-np.pi, np.pi, count)
    columns = (phi, pt * np.cos(phi), pt * np.sin(phi), random.uniform(-3, 3, count), random.normal(0, 2, count), pt)
    return torch.from_numpy(np.stack(columns, axis=1)).unsqueeze(0)


def assert_consistent(values: npt.NDArray[np.float64]) -> None:
    """Angle and components are still those of one vector, whose size has not changed."""
    phi, px, py, _, _, pt = values.T
    assert px == pytest.approx(pt * np.cos(phi), abs=1e-9)
    assert py == pytest.approx(pt * np.sin(phi), abs=1e-9)
    assert phi.min() >= -np.pi
    assert phi.max() < np.pi


def test_copies_are_turned_and_mirrored() -> None:
    """Three angles, each with all four mirrorings; the first copy is the event."""
    augmenter, values = Augmenter(MOVES, NAMES), make()
    there = torch.ones(values.shape, dtype=torch.bool)
    copies = [augmenter.copy(values, there, number)[0].numpy() for number in range(12)]
    assert copies[0] == pytest.approx(values[0].numpy(), abs=1e-12)
    seen = set()
    for copy in copies:
        assert_consistent(copy)
        phi, z = copy[0, 3] / values[0, 0, 3].item(), copy[0, 4] / values[0, 0, 4].item()
        assert copy[:, 3:5] == pytest.approx(values[0, :, 3:5].numpy() * [phi, z])
        turn = np.round((copy[0, 0] - phi * values[0, 0, 0].item()) / (2 * np.pi / 3)) % 3
        seen.add((round(phi), round(z), int(turn)))
    assert len(seen) == 12


def test_events_are_moved_at_random() -> None:
    augmenter, values = Augmenter(MOVES, NAMES), make(12_800).expand(2, -1, -1)
    there = torch.ones(values.shape, dtype=torch.bool)
    keys = torch.tensor([5, 6])
    found = augmenter.draw(values, there, keys).numpy()
    for member in range(2):
        assert_consistent(found[member])
        signs = found[member, :, 3:5] / values[member, :, 3:5].numpy()
        assert np.abs(signs) == pytest.approx(1)
        assert np.abs(signs.mean(axis=0)).max() < 0.05
        turn = (found[member, :, 0] - signs[:, 0] * values[member, :, 0].numpy()) % (2 * np.pi)
        assert kstest(turn / (2 * np.pi), "uniform").pvalue > 1e-3
    assert not np.array_equal(found[0], found[1])
    alone = augmenter.draw(values[1:], there[1:], keys[1:]).numpy()
    assert np.array_equal(alone[0], found[1])
    assert not np.array_equal(augmenter.draw(values, there, keys + 1).numpy(), found)


def test_only_what_is_asked_for_moves() -> None:
    values = make()
    there = torch.ones(values.shape, dtype=torch.bool)
    mirrored = dataclasses.replace(MOVES, rotation=False, reflection_phi=False, copies=2)
    found = Augmenter(mirrored, NAMES).copy(values, there, 1)
    assert torch.equal(found[..., 4], -values[..., 4])
    assert torch.equal(found[..., [0, 1, 2, 3, 5]], values[..., [0, 1, 2, 3, 5]])


def test_half_a_vector_is_not_turned() -> None:
    """What stands in an absent component would come into the other one."""
    values, there = make(), torch.ones(1, 640, 6, dtype=torch.bool)
    there[:, ::2, 1] = False
    values[:, ::2, 1] = torch.nan
    found = Augmenter(dataclasses.replace(MOVES, reflection_phi=False), NAMES).copy(values, there, 5)
    assert torch.equal(found[:, ::2, 2], values[:, ::2, 2])
    assert (found[:, 1::2, 2] != values[:, 1::2, 2]).all()


def test_smearing() -> None:
    """In quadrature, of the named features alone."""
    own = Augmentation(smearing={"pt": Resolution(0.5, 0.1), "eta": Resolution(absolute=0.2)})
    values = make(12_800)
    found = Augmenter(own, NAMES).draw(values, torch.ones(values.shape, dtype=torch.bool), torch.tensor([3]))
    assert torch.equal(found[..., :4], values[..., :4])
    pulls = (found - values)[0, :, 5] / torch.sqrt(0.25 + (0.1 * values[0, :, 5]) ** 2)
    assert kstest(pulls, "norm").pvalue > 1e-3
    assert kstest((found - values)[0, :, 4] / 0.2, "norm").pvalue > 1e-3


def trained(**change: Any) -> TrainedMember:
    training = dataclasses.replace(TRAINING, **change)
    return train(make_events(600), make_plans(600, model=MODEL, training=training)[:1])[0]


def test_scores_do_not_change_when_an_event_is_turned_or_mirrored() -> None:
    """By the angles of the copies, of which there are two, with all four mirrorings."""
    member, events = trained(), make_events(500, seed=3)
    before = predict(Ensemble((member,)), events.values, events.present)
    for turn, phi, z in ((np.pi, 1, 1), (0, -1, 1), (0, 1, -1), (np.pi, -1, -1)):
        moved = events.values.copy()
        moved[:, 0] = phi * moved[:, 0] + turn
        moved[:, 3] *= z
        after = predict(Ensemble((member,)), moved, events.present)
        assert after == pytest.approx(before, abs=1e-5)
    one = dataclasses.replace(member, training=dataclasses.replace(TRAINING, augmentation=None))
    assert np.abs(predict(Ensemble((one,)), events.values, events.present) - before).max() > 1e-3


def test_alone_and_stacked_and_garbage_elsewhere() -> None:
    events, plans = make_events(600), make_plans(600, model=MODEL, training=TRAINING)
    stacked = train(events, plans[:3])
    assert_equal(train(garbage_outside(events, plans[1]), [plans[1]])[0], stacked[1])
    spoilt = dataclasses.replace(events, values=np.where(events.present, events.values, np.float32(np.nan)))
    assert_equal(train(spoilt, [plans[1]])[0], stacked[1])
    assert differ(trained(), trained(augmentation=None))
    assert differ(trained(), trained(augmentation=dataclasses.replace(OF_EVENTS, smearing={})))


def test_steps_can_be_recorded() -> None:
    assert_recordable(MODEL, TRAINING)


def test_files_and_onnx(tmp_path: Path) -> None:
    member = trained()
    save_member(tmp_path / "member", member)
    assert load_member(tmp_path / "member").training == TRAINING
    ensemble, other = (Ensemble((member,)), Ensemble((trained(augmentation=None),)))
    export_onnx(ensemble, tmp_path / "ensemble.onnx", {})
    events, folds = make_events(1000, seed=5), np.zeros(1000, dtype=np.int64)
    assert check_onnx(tmp_path / "ensemble.onnx", ensemble, events.values, events.present, folds) < 1e-5
    assert check_onnx(tmp_path / "ensemble.onnx", other, events.values, events.present, folds) > 1e-3
    with pytest.raises(ValueError, match="differs from fold"):
        Ensemble((member, dataclasses.replace(other.members[0], fold=1)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "expected a symmetry or a smearing"),
        ({"rotation": True, "longitudinal": ("eta",)}, "expected some angles or vectors"),
        ({"reflection_phi": True}, "expected some angles, vectors or signed_angles"),
        ({"reflection_z": True}, "expected some longitudinal"),
        ({"rotation": True, "angles": ("phi",), "longitudinal": ("phi",)}, "'phi'; expected each feature in one"),
        ({"rotation": True, "angles": ("phi",), "copies": 0}, "copies is 0"),
        ({"reflection_z": True, "longitudinal": ("eta",), "copies": 3}, "expected from 1 to the 2 that differ"),
    ],
)
def test_wrong_settings(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Augmentation(**arguments)


def test_wrong_resolutions_and_names() -> None:
    with pytest.raises(ValueError, match="expected a number above 0, or a relative one"):
        Resolution()
    with pytest.raises(ValueError, match="relative is -1"):
        Resolution(relative=-1.0)
    with pytest.raises(ValueError, match=r"training\.augmentation names 'phi'; expected one of met"):
        Augmenter(MOVES, SIGNATURE.features)
