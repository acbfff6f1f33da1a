"""A network for each pattern of present objects: `model.missing: separate`.

A pattern is a set of objects that are there, such as one lepton and two jets. A member then is several networks, each
of which trains and stops on the events of its patterns alone; all of them train as members of one stack. Patterns with
too few training events are merged with others, which their network tells apart as any network does: by learned values
and presence inputs. The classes are balanced over all events of the member, so that the scores of its networks are
posteriors of one prior; before they are pooled, each is calibrated on its stopping events (`models.calibration`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.events import Mask, TrainingEvents
from models.members import MemberPlan, Part, Patterns, TrainedMember
from models.preprocessing import Signature
from models.settings import ModelSettings


def groups_of(patterns: Patterns, signature: Signature, present: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Find the network of each event: that of the nearest known pattern.

    Args:
        patterns: Those of a member.
        signature: Features and objects.
        present: Which values are there, ``[N, F]``.

    Returns:
        int64 ``[N]``.
    """
    there = _there(signature.objects, signature, present)  # (N, O)
    found, rows = np.unique(there, axis=0, return_inverse=True)  # (P', O), (N,)
    groups: npt.NDArray[np.int64] = Router([patterns], signature)(torch.from_numpy(found).float())[0].numpy()  # (P',)
    return groups[rows.ravel()]


def fit_patterns(settings: ModelSettings, events: TrainingEvents, training: Mask) -> Patterns:
    """Find the patterns of a member's training events, and merge those that are too rare.

    A group of patterns is too small if it has fewer events of non-zero weight than ``pattern_events``, or fewer of a
    class than ``pattern_class_events``, or a class whose weights sum to zero or below. As long as there is one, the one
    with fewest events joins the group that it is nearest to: that has the pattern with the fewest objects more or less
    than one of its own; of equals, the group with most events, and then the one whose first pattern is more frequent.

    Args:
        settings: What the networks are.
        events: The events.
        training: Which of them the member trains on, ``[N]``.

    Raises:
        ValueError: ``pattern_objects`` names no object that any event has.
    """
    own, signature = settings.absence, events.signature
    objects = tuple(o for o in signature.objects if o in own["pattern_objects"] or not own["pattern_objects"])
    if not objects:
        raise ValueError(f"pattern_objects is {own['pattern_objects']!r}; no event has any of them.")
    rows = np.flatnonzero(training & (events.weights != 0))
    found, which = np.unique(_there(objects, signature, events.present[rows]), axis=0, return_inverse=True)
    classes = len(signature.classes)
    cells = which.ravel() * classes + events.labels[rows]  # (n,)
    size = len(found) * classes
    counts = np.bincount(cells, minlength=size).astype(np.float64).reshape(-1, classes)  # (P, C)
    sums = np.bincount(cells, events.weights[rows], size).astype(np.float64).reshape(-1, classes)  # (P, C)
    order = np.lexsort((*found.T, -counts.sum(axis=1)))
    found, counts, sums = found[order], counts[order], sums[order]
    groups = _merged(found, counts, sums, (own["pattern_events"], own["pattern_class_events"]))
    return Patterns(objects, tuple(tuple(pattern) for pattern in found.tolist()), tuple(groups))


def separated(events: TrainingEvents, plan: MemberPlan) -> tuple[Patterns, list[MemberPlan]]:
    """Plan the networks of a member, that of its most frequent patterns first.

    Raises:
        ValueError: One of them has no event to stop on, or they would learn more than hard labels.
    """
    more = [("targets", events.signature.targets), ("soft labels", events.soft_labels)]
    for name, found in (*more, ("decorrelation", plan.settings.decorrelated)):
        if found:
            raise ValueError(f"missing is 'separate', with {name}; expected none, as its networks learn hard labels.")
    if plan.settings.snapshots or plan.settings.combination == "weighted":
        raise ValueError(
            f"missing is 'separate', with {plan.settings.snapshots} snapshots and combination "
            f"{plan.settings.combination!r}; expected none, and another combination than 'weighted'."
        )
    patterns = fit_patterns(plan.model, events, plan.training)
    groups = groups_of(patterns, events.signature, events.present)  # (N,)
    plans = []
    for number in range(patterns.count):
        training, validation = ((use & (groups == number)) for use in (plan.training, plan.validation))
        if not (validation & (events.weights != 0)).any():
            raise ValueError(
                f"Fold {plan.fold}, member {plan.index}: the network of a pattern with {training.sum()} training "
                "events has none to stop on; expected some. Raise model.pattern_events."
            )
        part = Part(number, plan.training, plan.validation)
        plans.append(replace(plan, training=training, validation=validation, part=part))
    return patterns, plans


def _merged(
    found: npt.NDArray[np.bool_],
    counts: npt.NDArray[np.float64],
    sums: npt.NDArray[np.float64],
    floors: tuple[int, int],
) -> list[int]:
    """The group of each pattern ``[P, O]``, from counts and sums of weights of each class, ``[P, C]``."""
    distances = (found[:, None] != found[None]).sum(axis=2).astype(np.float64)  # (P, P)
    np.fill_diagonal(distances, np.inf)
    groups = {pattern: [pattern] for pattern in range(len(found))}
    counts, sums = counts.copy(), sums.copy()

    def size(group: int) -> float:
        return float(counts[group].sum())

    def small(group: int) -> bool:
        return size(group) < floors[0] or counts[group].min() < floors[1] or sums[group].min() <= 0

    while len(groups) > 1 and (weak := [group for group in groups if small(group)]):
        one = min(weak, key=lambda group: (size(group), -group))
        other = min((g for g in groups if g != one), key=lambda g: (distances[one, g], -size(g), g))
        groups[other] += groups.pop(one)
        counts[other] += counts[one]
        sums[other] += sums[one]
        distances[other] = distances[:, other] = np.minimum(distances[other], distances[one])
        distances[other, other] = np.inf
    ordered = sorted(groups, key=lambda group: (-size(group), group))
    return [number for p in range(len(found)) for number, group in enumerate(ordered) if p in groups[group]]


class Routing:
    """Calibrates the networks of several members, and takes for each event the one that has its pattern.

    Attributes:
        temperatures: Of each network, float32 ``[M', 1, 1, 1]``.
        router: Finds the network of each event in each member.
        starts: The place of each member's first network among all, int64 ``[M, 1]``.
    """

    def __init__(self, members: Sequence[TrainedMember], signature: Signature, device: str) -> None:
        """Lay out patterns and temperatures of members, each of which has its networks one after the other."""
        found = [member.temperature for one in members for member in one.parts]
        self.temperatures = torch.tensor(found, dtype=torch.float32, device=device)[:, None, None, None]
        self.router = Router([_patterns(member) for member in members], signature, device)
        counts = np.cumsum([0, *(len(member.parts) for member in members)])[:-1]
        self.starts = torch.from_numpy(counts).to(device).unsqueeze(1)  # (M, 1)

    def __call__(self, probabilities: Tensor, there: Tensor) -> Tensor:
        """Choose: ``[M, N, C]`` from those of all networks ``[M', N, C]`` and the presence of objects, ``[N, O]``."""
        chosen = self.router(there) + self.starts  # (M, N)
        return probabilities.gather(0, chosen.unsqueeze(2).expand(-1, -1, probabilities.shape[2]))  # (M, N, C)


def _patterns(member: TrainedMember) -> Patterns:
    if member.patterns is None:
        raise ValueError(f"Fold {member.fold}, member {member.index} has no patterns, but missing is 'separate'.")
    return member.patterns


class Router:
    """Finds the network of each event in each of several members.

    Attributes:
        known: Their known patterns, 1 and -1 for objects that are and are not there, 0 for others that make no pattern:
            float32 ``[M, O, P]``.
        groups: The network of each pattern, int64 ``[M, P]``.
    """

    def __init__(self, members: Sequence[Patterns], signature: Signature, device: str = "cpu") -> None:
        """Lay out the patterns of members; those with fewer than others repeat their first one, which changes nothing.

        Args:
            members: The patterns of each.
            signature: Features and objects.
            device: torch's name of the device.
        """
        longest = max(len(own.known) for own in members)
        known = torch.zeros(len(members), len(signature.objects), longest)  # (M, O, P)
        groups = torch.zeros(len(members), longest, dtype=torch.int64)  # (M, P)
        for member, own in enumerate(members):
            columns = [signature.objects.index(name) for name in own.objects]
            padded = (*own.known, *[own.known[0]] * (longest - len(own.known)))
            known[member, columns] = torch.tensor(padded).float().T * 2 - 1  # (O', P)
            groups[member] = torch.tensor((*own.groups, *[own.groups[0]] * (longest - len(own.groups))))
        self.known, self.groups = known.to(device), groups.to(device)

    def __call__(self, there: Tensor) -> Tensor:
        """Return the network of each event in each member, int64 ``[M, N]``, from presence ``[N, O]``, 0 or 1."""
        # The more objects agree, the nearer; of patterns that are as near the first one, by a fraction of an object.
        agree = torch.matmul(there * 2 - 1, self.known)  # (M, N, P)
        ranks = torch.arange(self.known.shape[2], device=there.device)  # (P,)
        nearest = (agree * self.known.shape[2] - ranks).argmax(dim=2)  # (M, N)
        return self.groups.gather(1, nearest)


def _there(objects: tuple[str, ...], signature: Signature, present: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which objects have any of their features, ``[N, O]``."""
    columns = [[f for f, owner in enumerate(signature.feature_objects) if owner == name] for name in objects]
    return np.stack([present[:, own].any(axis=1) for own in columns], axis=1)
