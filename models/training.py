"""Training: all folds and members as one stack, in one loop.

`train` reads from top to bottom. In the shape comments M is the number of members still training, K that of the
submodels of each, B the events of a batch, F the features, C the classes, P the parameters of one member, T those
that are trained and N the events. Members share the events and the arithmetic, nothing else: each has its own training
and validation events, class weights, standardisation, initial weights, batch order, learning rate, constants of the
optimiser, dropout and end. What a member becomes does not depend on who else is in the stack, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models import hashing
from models.calibration import temperature
from models.checkpoint import Checkpoint, Checkpoints, Place
from models.embeddings import described
from models.events import Table, TrainingEvents
from models.members import MemberPlan, Patterns, TrainedMember
from models.memory import reused_memory
from models.networks import Classifier, Step
from models.optimisation import clip
from models.patterns import separated
from models.pruning import Round
from models.refinement import Unkept, refine
from models.replay import Replay
from models.settings import check_pruning
from models.stack import Kind, Stack
from models.threads import single_threaded
from models.weighting import kept

Stop = Callable[[int, Mapping[int, Sequence[float]]], Collection[int]]
"""Whose training ends after an epoch, from the losses of a stack."""


def train(
    events: TrainingEvents,
    plans: Sequence[MemberPlan],
    *,
    progress: Callable[[str], None] | None = None,
    checkpoints: Checkpoints | None = None,
    stop: Stop | None = None,
    device: str = "cpu",
) -> list[TrainedMember]:
    """Train networks, as one stack all those that have a shape in common and stand at the same step.

    Args:
        events: The events; only those that a plan names have any influence on its network.
        plans: The networks to train.
        progress: Is called with one line of text after every epoch, and first with one that ends for each warning.
        checkpoints: Where to go on from, and where to keep what has been reached; they change no bit of the result.
        stop: Is told after every epoch how many a stack has done, and the validation losses so far of its networks by
            their places among the plans; says whose training ends there.
        device: torch's name of the device.

    Returns:
        The trained networks, in the order of the plans.

    Raises:
        ValueError: If an input has a wrong shape or a value that is not finite, or if a member has a class whose
            weights sum to zero or below among its training or its validation events.
        TrainingDiverged: If a loss becomes infinite or NaN.
    """
    _check(events, plans)
    for plan in plans:
        check_pruning(plan.model, plan.settings)
    if progress is not None:
        for warning in dict.fromkeys(warning for plan in plans for warning in plan.model.warnings):
            progress(f"{warning}\n")
    plans = [replace(plan, training=kept(events, plan)) for plan in plans]
    say, unkept = _of(progress, "signs of weights"), None if checkpoints is None else Unkept(checkpoints)
    plans = refine(events, plans, partial(train, progress=say, checkpoints=unkept, device=device), device)
    members = [separated(events, plan) if plan.model.missing == "separate" else (None, [plan]) for plan in plans]
    # Networks of further patterns are counted after all others.
    pairs = ((order + n * len(plans), own) for order, (_, parts) in enumerate(members) for n, own in enumerate(parts))
    numbered = dict(sorted(pairs, key=lambda pair: pair[0]))
    saved = {} if checkpoints is None else {place: checkpoints.load(place) for place in numbered}
    rounds = {place: Round.of(plan, saved.get(place)) for place, plan in numbered.items()}
    trained = _train_rounds(events, rounds, saved, progress=progress, checkpoints=checkpoints, stop=stop, device=device)
    return [
        _joined(events, patterns, parts, [trained[order + number * len(plans)] for number in range(len(parts))])
        for order, (patterns, parts) in enumerate(members)
    ]


def _joined(
    events: TrainingEvents, patterns: Patterns | None, plans: Sequence[MemberPlan], networks: Sequence[TrainedMember]
) -> TrainedMember:
    """Make a member of its networks, calibrated if there is one for each pattern."""
    if patterns is None:
        return networks[0]
    with single_threaded(), torch.no_grad():
        found = [
            replace(network, temperature=temperature(events, plan, network))
            for plan, network in zip(plans, networks, strict=True)
        ]
    return replace(found[0], patterns=patterns, others=tuple(replace(other, ratios=None) for other in found[1:]))


def prune(
    events: TrainingEvents,
    plans: Sequence[MemberPlan],
    members: Sequence[TrainedMember],
    *,
    progress: Callable[[str], None] | None = None,
    device: str = "cpu",
) -> list[TrainedMember]:
    """Prune networks that have been trained without, as `train` would have gone on with them.

    Args:
        events: The events that they were trained on.
        plans: What is asked for; with a pruning.
        members: The network of each plan.
        progress: Is called with one line of text after every epoch.
        device: torch's name of the device.

    Returns:
        The pruned networks, in the order of the plans: to the last bit those of `train`.

    Raises:
        ValueError: If a pruning leaves no network.
    """
    for plan in plans:
        check_pruning(plan.model, plan.settings)
    plans = [
        replace(plan, training=kept(events, plan), ratios=member.ratios)
        for plan, member in zip(plans, members, strict=True)
    ]
    following = [Round(plan, plan).after(member) for plan, member in zip(plans, members, strict=True)]
    rounds = {order: own for order, own in enumerate(following) if isinstance(own, Round)}
    done = {order: own for order, own in enumerate(following) if isinstance(own, TrainedMember)}
    done |= _train_rounds(events, rounds, {}, progress=progress, checkpoints=None, stop=None, device=device)
    return [done[order] for order in range(len(plans))]


def _train_rounds(
    events: TrainingEvents,
    rounds: dict[int, Round],
    saved: dict[int, Checkpoint | None],
    *,
    progress: Callable[[str], None] | None,
    checkpoints: Checkpoints | None,
    stop: Stop | None,
    device: str,
) -> dict[int, TrainedMember]:
    """Train networks, by their places among all plans, from where they stand to the end of their last round."""
    trained: dict[int, TrainedMember] = {}
    with single_threaded(), reused_memory(), torch.no_grad():
        while rounds:
            number = min(own.number for own in rounds.values())
            now = {order: own.plan for order, own in rounds.items() if own.number == number}
            say = progress if number == 0 else _of(progress, f"pruned, round {number}")
            own_stop = stop if number == 0 else None  # fine-tuning has epochs of its own
            how: dict[str, Any] = {"progress": say, "checkpoints": checkpoints, "stop": own_stop, "device": device}
            found = _train_round(events, now, saved, **how)
            for order, member in found.items():
                following = rounds.pop(order).after(member)
                saved.pop(order, None)
                if isinstance(following, Round):
                    rounds[order] = following
                else:
                    trained[order] = following
    return trained


def _of(progress: Callable[[str], None] | None, what: str) -> Callable[[str], None] | None:
    """Progress of a training beside that of the networks themselves."""
    return None if progress is None else lambda line: progress(f"{what}: {line}")


def _train_round(
    events: TrainingEvents,
    plans: Mapping[int, MemberPlan],
    saved: Mapping[int, Checkpoint | None],
    *,
    progress: Callable[[str], None] | None,
    checkpoints: Checkpoints | None,
    stop: Stop | None,
    device: str,
) -> dict[int, TrainedMember]:
    """Train networks, by their places among all plans, from where they stand to the end of their epochs."""
    stacks: dict[tuple[Kind, Place], dict[int, Checkpoint | None]] = {}
    for order, plan in plans.items():
        own = saved.get(order)
        place = Place(0, 0, 0) if own is None else own.place
        stacks.setdefault((Kind.of(plan), place), {})[order] = own
    trained: dict[int, TrainedMember] = {}
    for (_, place), members in stacks.items():
        first = plans[next(iter(members))]
        classifier = Classifier(first.model, events.signature, device, augmentation=first.settings.augmentation)
        stack = Stack(classifier, events, {order: plans[order] for order in members}, device)
        trained |= stack.restore(list(members.values()))
        if stack.states:
            trained |= _train_together(stack, place, progress, checkpoints, stop)
    return trained


def _train_together(
    stack: Stack,
    place: Place,
    progress: Callable[[str], None] | None,
    checkpoints: Checkpoints | None,
    stop: Stop | None,
) -> dict[int, TrainedMember]:
    """The loop: train a stack from one step on until the last of its members has ended."""
    trained: dict[int, TrainedMember] = {}
    members = len(stack.states)

    def keep(positions: Iterable[int], ended: bool = False) -> None:
        assert checkpoints is not None
        for position in positions:
            checkpoints.save(stack.states[position].order, stack.checkpoint(position, place, ended))

    replays: dict[int, Replay] = {}  # by the table of the window
    while stack.states:
        for number, window in enumerate(stack.windows.training(place.epochs, place.window), place.window):
            place = Place(place.epochs, number, place.step if number == place.window else 0)
            steps = stack.begin(place, window)
            step = Replay(partial(_take_step, stack, window.table), stack.device)
            replay = replays.setdefault(id(window.table), step)
            while place.step < steps:
                place = place._replace(step=place.step + replay.advance(steps - place.step))
                if checkpoints is not None and checkpoints.due():
                    keep(range(len(stack.states)))
                    checkpoints.saved()
        if stack.average is not None:
            stack.average.end_epoch(stack.parameters, place.epochs)
        stack.record(place.epochs, _validation_sums(stack))
        ended = stack.ended(place.epochs)
        if stop is not None:
            chosen = stop(place.epochs + 1, {state.order: state.validation_loss for state in stack.states})
            ended = [p for p, state in enumerate(stack.states) if p in ended or state.order in chosen]
        for position in ended:
            member = trained[stack.states[position].order] = stack.result(position)
            if progress is not None:
                names = member.signature.features
                for line in described(names, member.model, member.transform.tables, member.parameters):
                    progress(f"fold {member.fold}, member {member.index}: {line}\n")
        if progress is not None:
            progress(stack.line(place.epochs, members, len(trained)))
        place = Place(place.epochs + 1, 0, 0)
        if checkpoints is not None:
            keep(ended, ended=True)
        stack.leave(ended)
        if ended:
            replays.clear()  # those that stay have new tensors
    return trained


def _take_step(stack: Stack, table: Table) -> None:
    """One step of all members, from their events to new parameters; nothing in it waits for the device."""
    rows, rates, active = (x.index_select(0, stack.step)[0] for x in (stack.batches, stack.rates, stack.active))
    values, present, labels, weights = table.gather(rows)  # (M, B, F), (M, B, F), (M, B), (M, B)
    if stack.sampling == "weighted":
        weights = weights.sign()  # (M, B)
    weights = (weights * stack.factors.gather(1, labels)).to(stack.parameters.dtype)  # (M, B)
    step = Step(hashing.splitmix64(stack.keys + stack.time), stack.dropout, rows >= 0, regularisers=stack.regularisers)
    matrices = slice(stack.classifier.decaying)
    noisy = stack.regularisers.noisy_weights(stack.parameters, matrices.stop, step.keys, stack.kept)  # (M, P)
    goals = stack.regularisers.noisy_labels(labels, stack.factors.shape[1], step.keys)  # (M, B)
    told = None if stack.heads is None else stack.heads.told(table, rows, labels)
    soft = None if told is None else told.soft  # (M, 1, B, C)
    views = stack.classifier.views(noisy, stack.dtype)  # (M, ...) each
    trained = [views[parameter.name].requires_grad_() for parameter in stack.classifier.parameters if parameter.trained]

    with torch.enable_grad():
        outputs = stack.classifier.logits(views, stack.statistics, values, present, step)  # (M, K, B, outputs)
        logits = stack.classifier.of_classes(outputs)  # (M, K, B, C)
        sums = stack.losses(logits, goals, weights, soft)  # (M,)
        added = None
        if stack.heads is not None and told is not None:
            added = stack.heads.added(outputs, logits, told, weights, training=True)  # (M,)
        whole = sums if added is None else sums + added  # (M,)
        slopes = torch.autograd.grad((whole / stack.divisors).sum(), trained)  # (M, ...) each
    gradients = torch.cat([slope.flatten(1) for slope in slopes], dim=1).to(stack.parameters.dtype)  # (M, T)
    if stack.diagnostics is not None:
        stack.diagnostics.add(gradients)
    stack.regularisers.penalise(gradients[:, matrices], stack.parameters[:, matrices])
    if stack.kept is not None:
        gradients[:, matrices] *= stack.kept  # (M, D); what has no slope stays zero with every optimiser
    if stack.largest is not None:
        gradients = clip(gradients, stack.largest)  # (M, T)
    stack.optimiser.step(stack.parameters[:, : stack.classifier.trained], gradients, rates, active)

    if step.moved or stack.regularisers.norms is not None:
        own = stack.classifier.views(stack.parameters)  # (M, ...) each
        stack.regularisers.limit([own[p.name] for p in stack.classifier.parameters if p.decays], active)
        for name, moved in step.moved.items():
            own[name].copy_(moved)  # (M, ...)
    if stack.average is not None:
        stack.average.step(stack.parameters, active)
    changed = stack.losses.smoothing is not None or stack.regularisers.labels is not None
    shown = stack.losses.plain(logits, labels, weights, soft) if changed else sums  # (M,)
    stack.running += (shown if added is None else shown + added).detach()
    stack.step += 1
    stack.time += 1


def _validation_sums(stack: Stack) -> Tensor:
    """Return the class-balanced validation loss of each member, with that of its heads, summed over its events.

    Returns:
        float64 ``[M]``.
    """
    views = stack.classifier.views(stack.evaluated(), stack.dtype)  # (M, ...) each
    total = torch.zeros_like(stack.divisors)  # (M,)
    with stack.watched():
        for window in stack.windows.validation():
            for rows in torch.split(window.validation, stack.validation_rows, dim=1):  # (M, B)
                values, present, labels, weights = window.table.gather(rows)  # (M, B, F), (M, B, F), (M, B), (M, B)
                weights = (weights * stack.validation_factors.gather(1, labels)).to(stack.parameters.dtype)  # (M, B)
                if stack.diagnostics is not None:
                    stack.diagnostics.real = rows >= 0  # (M, B)
                outputs = stack.classifier.logits(views, stack.statistics, values, present)  # (M, K, B, outputs)
                logits = stack.classifier.of_classes(outputs)  # (M, K, B, C)
                if stack.heads is None:
                    total += stack.losses.plain(logits, labels, weights)
                    continue
                told = stack.heads.told(window.table, rows, labels)
                total += stack.losses.plain(logits, labels, weights, told.soft)
                added = stack.heads.added(outputs, logits, told, weights, training=False)  # (M,)
                if added is not None:
                    total += added
    return total


def best_device() -> str:
    """The device to train on: a GPU where torch finds one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def gpu_name() -> str | None:
    """The model of the GPU to train on; None without one."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _check(events: TrainingEvents, plans: Sequence[MemberPlan]) -> None:
    """Refuse shapes that do not fit and numbers that are not finite."""
    count, features, classes = len(events.labels), len(events.signature.features), len(events.signature.classes)
    if not plans:
        raise ValueError("There is no network to train; expected at least one plan.")
    columns: dict[str, tuple[npt.NDArray[Any], tuple[int, ...], type]] = {
        "values": (events.values, (count, features), np.float32),
        "present": (events.present, (count, features), np.bool_),
        "labels": (events.labels, (count,), np.int64),
        "weights": (events.weights, (count,), np.float64),
        "identity": (events.identity, (count,), np.uint64),
    }
    if events.extra is not None:
        columns["extra"] = (events.extra, (count, len(events.extra_names)), np.float32)
    if events.processes is not None:
        columns["processes"] = (events.processes, (count,), np.int64)
    for plan in plans:
        columns[f"training of fold {plan.fold}, member {plan.index}"] = (plan.training, (count,), np.bool_)
        columns[f"validation of fold {plan.fold}, member {plan.index}"] = (plan.validation, (count,), np.bool_)
    for name, (column, shape, kind) in columns.items():
        if column.shape != shape or column.dtype != kind:
            raise ValueError(
                f"{name} has shape {column.shape} and type {column.dtype}; expected {shape} and {np.dtype(kind)}."
            )
    _check_extra(events, plans)
    if (events.identity[1:] < events.identity[:-1]).any():
        raise ValueError("The events are not in the order of their identities; sort them by identity.")
    used = np.logical_or.reduce([use for plan in plans for use in (plan.training, plan.validation)])
    if not np.isfinite(events.weights[used]).all():
        raise ValueError("An event weight is not finite.")
    if ((events.labels[used] < 0) | (events.labels[used] >= classes)).any():
        raise ValueError(f"A label is not one of the {classes} classes.")
    for name, value, present in zip(events.signature.features, events.values.T, events.present.T, strict=True):
        if (used & present & ~np.isfinite(value)).any():
            raise ValueError(f"A value that is present is not finite, in: {name}.")


def _check_extra(events: TrainingEvents, plans: Sequence[MemberPlan]) -> None:
    """Refuse targets, soft labels and spectators that no column tells."""
    classes, soft = len(events.signature.classes), events.soft_labels
    spectators = [name for plan in plans for name in plan.settings.decorrelated]
    needed = {target.settings.function for target in events.signature.targets} | {*soft, *spectators} - {None}
    missing = sorted(str(name) for name in needed - set(events.extra_names))
    if missing:
        there = ", ".join(events.extra_names) or "none"
        raise ValueError(f"There is no extra column {missing[0]}; there are: {there}.")
    if soft and (len(soft) != classes or soft.count(None) > 1):
        raise ValueError(f"Soft labels are {soft}; expected a column for each of {classes} classes but one at most.")
    if spectators and events.signal not in range(classes):
        raise ValueError(f"The signal is class {events.signal}; expected one of {classes}, with decorrelation.")
