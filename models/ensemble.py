"""Trained networks on disk and at work: files of parameters, predictions, and their combinations.

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

from models.combination import predicted, spread
from models.members import History, Patterns, TrainedMember
from models.networks import Classifier
from models.patterns import Routing
from models.preprocessing import Signature, Target
from models.settings import Augmentation, Combination, InputSettings, ModelSettings, TargetSettings, TrainingSettings
from models.threads import single_threaded
from models.transforms import Transform, stack_transforms

FORMAT = 7
"""Version of the file format; a file of another version is refused."""
_RATIOS = "refinement.ratios"
BLOCK = 1024
"""Events that are predicted at once. Blocks are padded: the shape decides how products are summed."""


@dataclass(frozen=True)
class Ensemble:
    """Networks that share features, classes and architecture, in the order of fold, index and snapshot.

    Snapshots of a member count as further networks of its fold.

    Attributes:
        members: The networks.
        combination: How they become one score.

    Raises:
        ValueError: If there is no member, if one occurs twice, or if two differ in what they are.
    """

    members: tuple[TrainedMember, ...]
    combination: Combination = "mean"

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("There is no network; expected at least one member.")
        networks = [network for member in self.members for network in member.networks]
        ordered = sorted(networks, key=_place)
        if len({_place(member) for member in ordered}) != len(ordered):
            places = [(member.fold, member.index) for member in ordered]
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

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """The weight of each network in the combination ``weighted``, in units of the largest, ``[M]``."""
        losses = np.array([member.validation_loss for member in self.members])
        weights: npt.NDArray[np.float64] = np.exp(losses.min() - losses)
        return weights

    def stacked(
        self, device: str = "cpu"
    ) -> tuple[Classifier, dict[str, torch.Tensor], dict[str, torch.Tensor], Routing | None]:
        """Return the network, its parameters ``[M', ...]`` and the tables of its transforms by name, and the routing.

        M' is M, unless members are several networks each, between which the routing chooses.
        """
        networks = [network for member in self.members for network in member.parts]
        model, training = self.members[0].model, self.members[0].training
        classifier = Classifier(model, self.signature, device, training.loss, training.augmentation)
        views = {}
        for name in (parameter.name for parameter in classifier.parameters):
            rows = [torch.from_numpy(network.parameters[name]) for network in networks]
            views[name] = torch.stack(rows).to(device)  # (M', ...)
        tables = stack_transforms(network.transform for network in networks)  # (M', 1 or Q, f) each
        routing = Routing(self.members, self.signature, device) if model.missing == "separate" else None
        return classifier, views, {name: table.to(device) for name, table in tables.items()}, routing


def save_member(path: str | Path, member: TrainedMember) -> None:
    """Write a member; equal members give equal bytes.

    Args:
        path: The file, overwritten if it exists.
        member: What to write.
    """
    from safetensors.numpy import save_file

    own = [_content(network) for network in member.parts]
    (description, tensors), others = own[0], own[1:]
    if member.patterns is not None:
        description |= {"patterns": dataclasses.asdict(member.patterns), "others": [text for text, _ in others]}
    for number, (_, found) in enumerate(others, 1):
        tensors |= {f"{number}.{name}": value for name, value in found.items()}
    if member.ratios is not None:
        tensors[_RATIOS] = member.ratios
    save_file(tensors, path, metadata={"eventfold": json.dumps(description, sort_keys=True)})


def _content(member: TrainedMember) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.float32]]]:
    """What a file says of one network, and its tensors."""
    description: dict[str, Any] = {
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
        "snapshots": list(member.snapshots),
        "temperature": member.temperature,
    }
    tensors = {f"parameters.{name}": value for name, value in member.parameters.items()}
    for epoch, parameters in member.snapshots.items():
        tensors |= {f"snapshot{epoch}.{name}": value for name, value in parameters.items()}
    tensors |= {f"transform.{name}": table for name, table in member.transform.tables.items()}
    return description, tensors


def load_member(path: str | Path, *, ratios: bool = False) -> TrainedMember:
    """Read a member.

    Args:
        path: A file that `save_member` wrote.
        ratios: Whether to read the mean signs too, one for each event of the pool; scores need none of them.

    Returns:
        The member, equal to the one written.

    Raises:
        ValueError: If the file is no network of this format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys() if ratios or name != _RATIOS}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a file of parameters, or is damaged: {error}.") from error
    description = json.loads(metadata.get("eventfold", "{}"))
    if description.get("format") != FORMAT:
        raise ValueError(f"{path} has format {description.get('format')}; expected format {FORMAT}: train again.")
    member = dataclasses.replace(_network(description, tensors, ""), ratios=tensors.get(_RATIOS))
    if "patterns" not in description:
        return member
    others = [_network(text, tensors, f"{number}.") for number, text in enumerate(description["others"], 1)]
    return dataclasses.replace(member, patterns=Patterns(**_tuples(description["patterns"])), others=tuple(others))


def _network(description: dict[str, Any], tensors: dict[str, npt.NDArray[np.float32]], place: str) -> TrainedMember:
    """One network, from what `_content` gave and the beginning of its tensors' names."""
    model, training = _tuples(description["model"]), _tuples(description["training"])
    model["inputs"] = InputSettings.restored(model["inputs"])
    if training["augmentation"] is not None:
        training["augmentation"] = Augmentation.restored(training["augmentation"])

    def named(kind: str) -> dict[str, npt.NDArray[np.float32]]:
        prefix = f"{place}{kind}."
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    return TrainedMember(
        fold=description["fold"],
        index=description["index"],
        seed=description["seed"],
        signature=_signature(description["signature"]),
        model=ModelSettings(**model),
        training=TrainingSettings(**training),
        transform=Transform(named("transform")),
        parameters=named("parameters"),
        history=History(**_tuples(description["history"])),
        precision=description["precision"],
        best_epoch=description["best_epoch"],
        events=(description["events"][0], description["events"][1]),
        snapshots={epoch: named(f"snapshot{epoch}") for epoch in description["snapshots"]},
        temperature=description["temperature"],
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
    classifier, views, statistics, routing = ensemble.stacked(device)
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
            found = classifier.predictions(views, statistics, *inputs, routing=routing)  # (M, B, C + R)
            predictions[:, start : start + count] = found[:, :count].cpu().numpy()
    return predictions


def score(
    ensemble: Ensemble,
    values: npt.NDArray[np.float32],
    present: npt.NDArray[np.bool_],
    event_folds: npt.NDArray[np.int64],
    device: str = "cpu",
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Score events: arguments as `predict`, and the fold of each event, ``[N]``.

    Returns:
        ``routed`` and ``ensemble`` as `combine` gives them, and the ``spread`` of all networks
        (`models.combination.spread`): float32 ``[N, C + R]`` each.

    Raises:
        ValueError: As `predict` and `combine`.
    """
    predictions = predict(ensemble, values, present, device)  # (M, N, C + R)
    classes = len(ensemble.signature.classes)
    pair = combine(predictions, ensemble.folds, event_folds, ensemble.combination, ensemble.shares, classes)
    return *pair, spread(torch.from_numpy(predictions)).float().numpy()


def combine(  # noqa: PLR0917
    predictions: npt.NDArray[np.float32],
    member_folds: npt.NDArray[np.int64],
    event_folds: npt.NDArray[np.int64],
    how: Combination = "mean",
    shares: npt.NDArray[np.float64] | None = None,
    classes: int | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Combine networks, by fold and all of them.

    Args:
        predictions: ``[M, N, C + R]``.
        member_folds: The fold that each member left out, ``[M]``.
        event_folds: The fold of each event, ``[N]``.
        how: The way (`models.combination`).
        shares: `Ensemble.shares`, ``[M]``, for ``weighted``.
        classes: How many columns are probabilities, the first ones; ``None`` for all.

    Returns:
        ``routed``, of the members that left out the event's own fold, and ``ensemble``, of all members: float32
        ``[N, C + R]`` each.

    Raises:
        ValueError: If no member left out the fold of an event.
    """
    own = routed(predictions, member_folds, event_folds, how, shares, classes)
    return own, _combined(predictions, how, shares, classes)


def routed(  # noqa: PLR0917
    predictions: npt.NDArray[np.float32],
    member_folds: npt.NDArray[np.int64],
    event_folds: npt.NDArray[np.int64],
    how: Combination = "mean",
    shares: npt.NDArray[np.float64] | None = None,
    classes: int | None = None,
) -> npt.NDArray[np.float32]:
    """Combine for each event the members that left out its fold: the first of the two that `combine` gives."""
    known = sorted(set(member_folds.tolist()))
    missing = sorted(set(event_folds.tolist()) - set(known))
    if missing:
        raise ValueError(f"No network left out fold {missing[0]}; there are networks for folds {known}.")
    scores = np.empty(predictions.shape[1:], dtype=np.float32)
    for fold in np.unique(event_folds):
        events = event_folds == fold
        own = member_folds == fold
        chosen = None if shares is None else shares[own]
        scores[events] = _combined(predictions[own][:, events], how, chosen, classes)
    return scores


def _combined(
    predictions: npt.NDArray[np.float32],
    how: Combination,
    shares: npt.NDArray[np.float64] | None,
    classes: int | None,
) -> npt.NDArray[np.float32]:
    weights = torch.ones(len(predictions), dtype=torch.float64) if shares is None else torch.from_numpy(shares)
    count = predictions.shape[-1] if classes is None else classes
    found: npt.NDArray[np.float32] = predicted(torch.from_numpy(predictions), count, how, weights).float().numpy()
    return found


def _place(member: TrainedMember) -> tuple[int, int, int]:
    """What tells networks apart: fold, index, and the epoch of a snapshot."""
    return member.fold, member.index, member.best_epoch if member.snapshot else 0


def _signature(described: dict[str, Any]) -> Signature:
    """Read what `dataclasses.asdict` made of a signature."""
    targets = tuple(
        Target(target["name"], TargetSettings(**_tuples(target["settings"]))) for target in described.get("targets", ())
    )
    return Signature(**_tuples(described | {"targets": targets}))


def _tuples(mapping: dict[str, Any]) -> dict[str, Any]:
    """Turn JSON's lists back into tuples, however deep they are."""
    return {name: _tuple(value) for name, value in mapping.items()}


def _tuple(value: Any) -> Any:
    if isinstance(value, dict):
        return _tuples(value)
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value
