"""From physics weights to training weights: negative weights, equal sums of processes, flat distributions.

All of it is fitted to a network's own training events. What balances the classes comes after it
(`models.losses.class_factors`); settings that change nothing here leave the physics weights as they are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models import hashing
from models.events import Mask, TrainingEvents, drawn
from models.members import MemberPlan
from models.settings import TrainingSettings

FEWEST = 10.0
"""Effective number of events (Σw)²/Σw² below which a bin is not flattened by itself."""
_CENTRAL = (0.01, 0.99)  # shares of the events between which the bins lie
_CHOICE = 11  # stream of random numbers


class WeightsError(ValueError):
    """The training weights that were asked for can't be made of these events."""


Doubles = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


def has_own_weights(plan: MemberPlan) -> bool:
    """Whether a network trains with other weights than physics weights times a factor for each class."""
    settings = plan.settings
    treated = settings.negative_weights in ("absolute", "ignore") or plan.ratios is not None
    return treated or settings.balance == "processes" or bool(settings.flatten)


def own_weights(events: TrainingEvents, plan: MemberPlan) -> Doubles:
    """The weights of the events of one network, before the classes are balanced.

    Args:
        events: The events.
        plan: The network.

    Returns:
        float64 ``[N]``; zero for events that the member neither trains nor stops on.

    Raises:
        WeightsError: If a process's weights sum to zero or below, or if no bin can be flattened.
    """
    try:
        return _own_weights(events, plan)
    except WeightsError as error:
        raise WeightsError(f"Fold {plan.fold}, member {plan.index}: {error}") from None


def _own_weights(events: TrainingEvents, plan: MemberPlan) -> Doubles:
    settings, (training, validation) = plan.settings, plan.balanced
    used = training | validation  # (N,)
    weights = _treated(np.where(used, events.weights, 0.0), plan)  # (N,)
    if not settings.flatten and settings.balance != "processes":
        return weights
    groups = _groups(events, settings, used)  # (N,)
    if settings.flatten:
        weights = weights * _flattening(events, plan, weights, groups)  # (N,)
    if settings.balance == "processes":
        for name, use in (("training", training), ("validation", validation)):
            weights[use] *= _equal_sums(events, weights[use], groups[use], events.labels[use], name)
    return weights


def kept(events: TrainingEvents, plan: MemberPlan) -> Mask:
    """The training events that a fixed ``down_sampling`` leaves to a network: bool ``[N]``.

    Of each class those with the smallest hashes of their identities, a share of them rounded up; networks of one fold
    and seed keep the same.
    """
    shares = plan.settings.down_sampling
    if shares is None or plan.settings.redraw is not False:
        return plan.training
    training: Mask = plan.training & (events.weights != 0)  # (N,)
    key = hashing.key(plan.seed, plan.fold, _CHOICE)
    for name, share in shares.items():
        own = np.flatnonzero(training & (events.labels == events.signature.classes.index(name)))  # (n,)
        hashes = hashing.splitmix64(_identities(events, own) ^ key).numpy()  # (n,)
        training[own[np.argsort(hashes, kind="stable")[int(drawn(len(own), share)) :]]] = False
    return training


def column(events: TrainingEvents, name: str) -> Doubles:
    """A feature or spectator, NaN where it is absent: float64 ``[N]``.

    Raises:
        WeightsError: There is none of that name.
    """
    if name in events.signature.features:
        place = events.signature.features.index(name)
        return np.where(events.present[:, place], events.values[:, place], np.nan).astype(np.float64)
    if name not in events.extra_names:
        raise WeightsError(
            f"flatten names {name!r}, which is neither a feature of the networks nor a spectator of them."
        )
    return events.further([name])[:, 0].astype(np.float64)


def _treated(weights: Doubles, plan: MemberPlan) -> Doubles:
    """Do with weights of the wrong sign what the settings say."""
    how = plan.settings.negative_weights
    if how == "absolute":
        return np.abs(weights)
    if how == "ignore":
        return np.maximum(weights, 0.0)
    if how == "reweighted" and plan.ratios is not None:
        return np.abs(weights) * np.maximum(np.where(weights != 0, plan.ratios, 0.0), 0.0)
    if how == "reweighted" and (weights < 0).any():
        raise ValueError("negative_weights is 'reweighted', and there are some; expected a plan with ratios.")
    return weights


def _groups(events: TrainingEvents, settings: TrainingSettings, used: Mask) -> Numbers:
    """What is flat and summed by itself: classes, or processes; -1 for events that are not used."""
    if settings.balance != "processes":
        return np.where(used, events.labels, -1)
    if events.processes is None:
        raise ValueError("balance is 'processes'; expected the process of each event.")
    return np.where(used, events.processes, -1)


def _flattening(events: TrainingEvents, plan: MemberPlan, weights: Doubles, groups: Numbers) -> Doubles:
    """The factor of each event that makes the training events of each group flat: float64 ``[N]``.

    Bins are equally wide between the values below which 1% and 99% of the training events lie; the outer ones hold what
    is beyond. All bins of a group that hold events then have the same sum. One in which negative weights prevail, or
    whose effective number of events is below `FEWEST`, takes the largest factor of those that have more. An event that
    lacks one of the variables keeps its weight.
    """
    settings, training = plan.settings, plan.balanced[0] & (weights != 0)  # (N,)
    columns = {name: column(events, name) for name in settings.flatten}  # (N,) each
    known = np.logical_and.reduce([groups >= 0, *(np.isfinite(values) for values in columns.values())])  # (N,)
    bins = np.zeros(len(weights), dtype=np.int64)  # (N,)
    for name, values in columns.items():
        bins *= settings.flatten_bins
        bins[known] += _bins(values[known], values[training & known], settings.flatten_bins, name)
    factors, count = np.ones(len(weights)), settings.flatten_bins ** len(settings.flatten)
    for group in np.unique(groups[training]):
        own, fitted = known & (groups == group), known & training & (groups == group)
        sums, squares = (np.bincount(bins[fitted], w, minlength=count) for w in (weights[fitted], weights[fitted] ** 2))
        full = (sums > 0) & (sums**2 >= FEWEST * squares)  # (bins,)
        if not full.any():
            raise WeightsError(
                f"flatten: no bin of {_name(events, settings, int(group))} holds {FEWEST:g} effective training events; "
                "expected fewer flatten_bins, or more events."
            )
        each = np.zeros(count)  # (bins,)
        each[full] = sums[full].mean() / sums[full]
        each[~full] = each[full].max()
        factors[own] = each[bins[own]]
    return factors


def _bins(values: Doubles, fitted: Doubles, count: int, name: str) -> Numbers:
    """Numbers of the bins that values are in, which are fitted to some of them."""
    if len(fitted) == 0:
        raise WeightsError(f"flatten: no training event has {name}.")
    low, high = np.quantile(fitted, _CENTRAL)
    if not high > low:
        raise WeightsError(f"flatten: {name} is {low:g} for nearly all training events; expected different values.")
    places: Numbers = np.clip(np.floor((values - low) / (high - low) * count), 0, count - 1).astype(np.int64)
    return places


def _equal_sums(events: TrainingEvents, weights: Doubles, processes: Numbers, labels: Numbers, purpose: str) -> Doubles:
    """The factor of each event with which the processes of a class sum to the same, and the class to what it did."""
    found, own = np.unique(processes, return_inverse=True)  # (P,), (n,)
    sums = np.bincount(own, weights=weights)  # (P,)
    for process, total in zip(found, sums, strict=True):
        if not total > 0:
            raise WeightsError(
                f"the weights of process {_process(events, int(process))} sum to {total:.6g} over "
                f"{np.count_nonzero(processes == process)} {purpose} events; balance: processes needs a sum above zero."
            )
    classes = np.zeros(len(found), dtype=np.int64)  # (P,)
    classes[own] = labels
    totals = np.bincount(classes, weights=sums)[classes] / np.bincount(classes)[classes]  # (P,)
    return np.asarray((totals / sums)[own])


def _name(events: TrainingEvents, settings: TrainingSettings, group: int) -> str:
    if settings.balance == "processes":
        return f"process {_process(events, group)}"
    return f"class {events.signature.classes[group]}"


def _process(events: TrainingEvents, number: int) -> str:
    return events.process_names[number] if number < len(events.process_names) else str(number)


def _identities(events: TrainingEvents, rows: Numbers) -> Tensor:
    """The identities of some events as torch holds them, int64 ``[n]``."""
    return torch.from_numpy(np.asarray(events.identity[rows]).view(np.int64))
