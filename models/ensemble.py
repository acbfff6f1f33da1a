"""Trained networks on disk and at work: files of parameters, predictions, and their means.

A member is one safetensors file: tensors, and a JSON text that says what they are. Reading it executes nothing.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.members import History, TrainedMember
from models.networks import Classifier
from models.preprocessing import Signature, Target
from models.settings import Augmentation, InputSettings, ModelSettings, TargetSettings, TrainingSettings
from models.training import single_threaded
from models.transforms import Transform, stack_transforms

FORMAT = 4
"""Version of the file format; a file of another version is refused."""
BLOCK = 1024
"""Events that are predicted at once. Blocks are padded: the shape decides how products are summed."""


@dataclass(frozen=True)
class Ensemble:
    """Networks that share features, classes and architecture, in the order of fold and index.

    Raises:
        ValueError: If there is no member, if one occurs twice, or if two differ in what they are.
    """

    members: tuple[TrainedMember, ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("There is no network; expected at least one member.")
        ordered = sorted(self.members, key=lambda member: (member.fold, member.index))
        places = [(member.fold, member.index) for member in ordered]
        if len(set(places)) != len(places):
            raise ValueError(f"A member occurs twice among (fold, index) = {places}.")
        first = ordered[0]
        for member in ordered[1:]:
            kinds = [
                (own.signature, own.model, own.training.loss, own.training.augmentation) for own in (member, first)
            ]
            if kinds[0] != kinds[1]:
                raise ValueError(
                    f"Fold {member.fold}, member {member.index} differs from fold {first.fold}, member {first.index} "
                    "in features, classes, model, loss or augmentation; expected networks of one kind."
                )
        object.__setattr__(self, "members", tuple(ordered))

    @property
    def signature(self) -> Signature:
        """Features, objects and classes."""
        return self.members[0].signature

    @property
    def folds(self) -> npt.NDArray[np.int64]:
        """The fold that each member left out, ``[M]``."""
        return np.array([member.fold for member in self.members], dtype=np.int64)

    def stacked(self, device: str = "cpu") -> tuple[Classifier, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return the network, its parameters ``[M, ...]`` and the tables of its transforms, both by name."""
        model, training = self.members[0].model, self.members[0].training
        classifier = Classifier(model, self.signature, device, training.loss, training.augmentation)
        views = {}
        for name in (parameter.name for parameter in classifier.parameters):
            rows = [torch.from_numpy(member.parameters[name]) for member in self.members]
            views[name] = torch.stack(rows).to(device)  # (M, ...)
        tables = stack_transforms(member.transform for member in self.members)  # (M, 1 or Q, f) each
        return classifier, views, {name: table.to(device) for name, table in tables.items()}


def save_member(path: str | Path, member: TrainedMember) -> None:
    """Write a member; equal members give equal bytes.

    Args:
        path: The file, overwritten if it exists.
        member: What to write.
    """
    from safetensors.numpy import save_file

    description = {
        "format": FORMAT,
        "fold": member.fold,
        "index": member.index,
        "seed": member.seed,
        "signature": dataclasses.asdict(member.signature),
        "model": dataclasses.asdict(member.model),
        "training": dataclasses.asdict(member.training),
        "history": dataclasses.asdict(member.history),
        "precision": member.precision,
        "best_epoch": member.best_epoch,
        "events": member.events,
    }
    tensors = {f"parameters.{name}": value for name, value in member.parameters.items()}
    tensors |= {f"transform.{name}": table for name, table in member.transform.tables.items()}
    save_file(tensors, path, metadata={"eventfold": json.dumps(description, sort_keys=True)})


def load_member(path: str | Path) -> TrainedMember:
    """Read a member.

    Args:
        path: A file that `save_member` wrote.

    Returns:
        The member, equal to the one written.

    Raises:
        ValueError: If the file is no network of this format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a file of parameters, or is damaged: {error}.") from error
    description = json.loads(metadata.get("eventfold", "{}"))
    if description.get("format") != FORMAT:
        raise ValueError(f"{path} has format {description.get('format')}; expected format {FORMAT}: train again.")
    model, training = _tuples(description["model"]), _tuples(description["training"])
    model["inputs"] = InputSettings.restored(model["inputs"])
    if training["augmentation"] is not None:
        training["augmentation"] = Augmentation.restored(training["augmentation"])

    def named(prefix: str) -> dict[str, npt.NDArray[np.float32]]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    return TrainedMember(
        fold=description["fold"],
        index=description["index"],
        seed=description["seed"],
        signature=_signature(description["signature"]),
        model=ModelSettings(**model),
        training=TrainingSettings(**training),
        transform=Transform(named("transform.")),
        parameters=named("parameters."),
        history=History(**_tuples(description["history"])),
        precision=description["precision"],
        best_epoch=description["best_epoch"],
        events=(description["events"][0], description["events"][1]),
    )


def predict(
    ensemble: Ensemble, values: npt.NDArray[np.float32], present: npt.NDArray[np.bool_], device: str = "cpu"
) -> npt.NDArray[np.float32]:
    """Compute the class probabilities of every member for every event, and the regression targets.

    An event's probabilities depend, to the last bit, on its own values alone: not on its neighbours, on how a file
    was cut into chunks, or on the other members.

    Args:
        ensemble: The networks.
        values: Features ``[N, F]``, in the units of training; absent entries may hold anything.
        present: Which values are there, bool ``[N, F]``.
        device: torch's name of the device.

    Returns:
        float32 ``[M, N, C + R]``: the probabilities, then the outputs of the targets, in their units.

    Raises:
        ValueError: If a shape does not fit or a value that is present is not finite.
    """
    shape = (len(values), len(ensemble.signature.features))
    if values.shape != shape or present.shape != shape:
        raise ValueError(f"values and presence have shapes {values.shape}, {present.shape}; expected {shape}.")
    clean = np.where(present, values, np.float32(0)).astype(np.float32, copy=False)  # (N, F)
    if not np.isfinite(clean).all():
        row, column = np.argwhere(~np.isfinite(clean))[0]
        raise ValueError(f"Event {row}: {ensemble.signature.features[column]} is {clean[row, column]}, not finite.")
    classifier, views, statistics = ensemble.stacked(device)
    outputs = len(ensemble.signature.classes) + len(ensemble.signature.predicted)
    predictions = np.empty((len(ensemble.members), len(values), outputs), dtype=np.float32)
    with single_threaded(), torch.inference_mode():
        for start in range(0, len(values), BLOCK):
            count = min(BLOCK, len(values) - start)
            block = torch.zeros(1, BLOCK, shape[1])
            known = torch.zeros(1, BLOCK, shape[1], dtype=torch.bool)
            block[0, :count] = torch.from_numpy(clean[start : start + count])
            known[0, :count] = torch.from_numpy(present[start : start + count])
            inputs = (block.to(device), known.to(device))  # (1, B, F) each
            found = classifier.predictions(views, statistics, *inputs)  # (M, B, C + R)
            predictions[:, start : start + count] = found[:, :count].cpu().numpy()
    return predictions


def combine(
    predictions: npt.NDArray[np.float32],
    member_folds: npt.NDArray[np.int64],
    event_folds: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Average over members, by fold and over all.

    Args:
        predictions: ``[M, N, C + R]``.
        member_folds: The fold that each member left out, ``[M]``.
        event_folds: The fold of each event, ``[N]``.

    Returns:
        ``routed``, the mean over the members that left out the event's own fold, and ``ensemble``, the mean over all
        members: float32 ``[N, C + R]`` each.

    Raises:
        ValueError: If no member left out the fold of an event.
    """
    known = sorted(set(member_folds.tolist()))
    missing = sorted(set(event_folds.tolist()) - set(known))
    if missing:
        raise ValueError(f"No network left out fold {missing[0]}; there are networks for folds {known}.")
    routed = np.empty(predictions.shape[1:], dtype=np.float32)
    for fold in np.unique(event_folds):
        events = event_folds == fold
        routed[events] = _mean(predictions[member_folds == fold][:, events])
    return routed, _mean(predictions)


def _mean(predictions: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    mean: npt.NDArray[np.float32] = predictions.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def _signature(described: dict[str, Any]) -> Signature:
    """Read what `dataclasses.asdict` made of a signature."""
    targets = tuple(
        Target(target["name"], TargetSettings(**_tuples(target["settings"]))) for target in described.get("targets", ())
    )
    return Signature(**_tuples(described | {"targets": targets}))


def _tuples(mapping: dict[str, Any]) -> dict[str, Any]:
    """Turn JSON's lists back into tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in mapping.items()}
