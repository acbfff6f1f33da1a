"""What a study tries next, and which of its parameters matter: Optuna's samplers behind two pure functions.

A study asks for its trials in batches. What a batch proposes follows from the trials of the batches before it and from
the seed alone, so that a study that was killed, or that is asked for more trials, goes on as if nothing had happened,
wherever and in whichever order its trials were trained. Optuna sees finished trials here, in memory; the study's file
is the caller's.

Only the process that leads a study imports Optuna: machines that train need none.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from models.settings import (
    CONSTANTS,
    ModelSettings,
    Parameter,
    TrainingSettings,
    TuningSettings,
    applies,
    chosen,
    with_values,
)
from models.tuning import limits_of

if TYPE_CHECKING:
    import optuna

STARTUP = 8
"""Trials that `tpe` and `gaussian_process` draw at random before they model anything."""
BEST = 0.25
"""Share of the trials that `importances` tells from the others."""

Values = dict[str, Any]
Record = dict[str, Any]
"""A trial as the study's file holds it: `number`, `values`, `limits` and `state`; once it has ended, `loss`, `folds`,
`curve` and `folder`; if it was refused, the `reason`. Number 0 is the one without values, as configured."""


@dataclass(frozen=True)
class Tried:
    """A trial that has ended.

    Attributes:
        values: Of each key that it varies.
        loss: What is minimised: at its end, or where it was stopped; None if there is none.
        epochs: How many it was trained.
        finished: Whether it was trained to its end.
    """

    values: Values
    loss: float | None
    epochs: int
    finished: bool


def next_batch(
    tuning: TuningSettings,
    scanned: Sequence[str],
    settings_of: Callable[[Values], tuple[ModelSettings, TrainingSettings]],
    study: Sequence[Record],
    first: int,
) -> list[Record]:
    """The trials of the next batch of a study.

    Args:
        tuning: The study, with its space.
        scanned: Keys that are varied one at a time; none to sample the space.
        settings_of: Settings with some values; raises a ValueError for a combination that makes no sense.
        study: The trials of the batches before.
        first: How many there are without the one that is as configured.

    Returns:
        Trials that are `asked` for, or `refused` at once; none where a grid or a scan has no more.
    """
    model, training = settings_of({})
    ended = [trial for trial in study if trial["state"] != "refused"]
    batch = first // tuning.batch
    if scanned:
        proposals = scan(scanned, tuning.space, model, training)[first : first + tuning.batch]
    else:
        known = [tried_of(trial, tuning.space, model, training) for trial in study]
        proposals = propose(tuning, model, training, known, batch)
    found: list[Record] = [] if study else [{"number": 0, "values": {}, "limits": [], "state": "asked"}]
    before = {repr(settings_of(trial["values"])): trial["limits"] for trial in ended}
    for number, values in enumerate(proposals, first + 1):
        record: Record = {"number": number, "values": values, "limits": [], "state": "asked"}
        try:
            settings = settings_of(values)
        except ValueError as error:
            found.append(record | {"state": "refused", "reason": str(error)})
            continue
        if not scanned:  # whose every value is wanted
            finished = [trial["curve"] for trial in ended if trial["state"] == "finished"]
            curves = [trial["curve"] for trial in ended if trial["state"] == "stopped"]
            limits = limits_of(tuning, settings[1].epochs, finished, curves)
            # What was tried before is tried in the same way, and so not again.
            record["limits"] = before.get(repr(settings), [list(pair) for pair in limits])
        found.append(record)
    return json.loads(_text(found))  # type: ignore[no-any-return]


def tried_of(trial: Record, space: Mapping[str, Parameter], model: ModelSettings, training: TrainingSettings) -> Tried:
    """A trial of the study's file; the values of the one as configured are those that the settings have."""
    values = trial["values"] or {
        key: configured(key, model, training) for key in space if applies(key, model, training)
    }
    return Tried(values, trial.get("loss"), len(trial.get("curve", ())), trial["state"] == "finished")


def best_of(study: Sequence[Record]) -> Record | None:
    """The finished trial of the smallest loss, of equals the first; None if there is none."""
    finished = [trial for trial in study if trial["state"] == "finished"]
    return min(finished, key=lambda trial: (trial["loss"], trial["number"]), default=None)


def propose(
    tuning: TuningSettings, model: ModelSettings, training: TrainingSettings, earlier: Sequence[Tried], batch: int
) -> list[Values]:
    """The values of the trials of one batch.

    Args:
        tuning: The study, with its space.
        model: What is not tuned.
        training: Likewise.
        earlier: All trials of the batches before, and others that are known.
        batch: The number of the batch.

    Returns:
        `tuning.batch` trials; fewer, or none, where a grid ends. Keys that mean nothing beside the choices of a trial
        are left out of it.
    """
    if tuning.sampler == "grid":
        points = grid(tuning.space, model, training, tuning.seed)
        return points[batch * tuning.batch : (batch + 1) * tuning.batch]

    study = _study(tuning, batch)
    for trial in earlier:
        if _inside(trial.values, tuning.space):
            # A Gaussian process sees nothing but finished trials, and would come back to where others were stopped.
            ended = replace(trial, finished=True) if tuning.sampler == "gaussian_process" else trial
            study.add_trial(_frozen(ended, tuning.space))
    from models.threads import single_threaded

    with single_threaded():  # the Gaussian process is torch's
        return [_suggest(study.ask(), tuning.space, model, training) for _ in range(tuning.batch)]


def grid(space: Mapping[str, Parameter], model: ModelSettings, training: TrainingSettings, seed: int) -> list[Values]:
    """All combinations of the values of a space, in random order: a part of them is a fair sample."""
    points = {}
    for values in itertools.product(*(spaced(key, parameter) for key, parameter in space.items())):
        point = dict(zip(space, values, strict=True))
        meant = {key: value for key, value in point.items() if _applies(key, point, model, training)}
        points[_text(meant)] = meant
    return [points[text] for text in sorted(points, key=lambda text: _hash(f"{seed} {text}"))]


def scan(
    keys: Sequence[str], space: Mapping[str, Parameter], model: ModelSettings, training: TrainingSettings
) -> list[Values]:
    """One key after the other, over its values; all others as they are configured."""
    points = [{key: value} for key in keys for value in spaced(key, space[key])]
    return [point for point in points if all(_applies(key, point, model, training) for key in point)]


def spaced(key: str, parameter: Parameter) -> list[Any]:
    """The values of a parameter on a grid."""
    if parameter.choices is not None:
        return list(parameter.choices)
    low, high = _ends(parameter)
    steps = [i / (parameter.points - 1) for i in range(parameter.points)]
    if parameter.log:
        values = [low * (high / low) ** step for step in steps[:-1]] + [high]
    else:
        values = [low + (high - low) * step for step in steps[:-1]] + [high]
    if whole(key):
        return list(dict.fromkeys(round(value) for value in values))
    return [float(f"{value:.6g}") for value in values]


def importances(space: Mapping[str, Parameter], tried: Sequence[Tried]) -> dict[str, float] | None:
    """How much each parameter decides whether a trial is among the best quarter, summing to one.

    PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023). Trials that were stopped enter with what they had reached,
    which is among the worse ones.

    Returns:
        By falling importance; None where the trials are too few to tell, or all alike.
    """
    import optuna

    known = [t for t in tried if t.loss is not None and t.values.keys() == space.keys() and _inside(t.values, space)]
    if len(known) < 2 / BEST or len({trial.loss for trial in known}) == 1:
        return None
    if len(space) == 1:
        return dict.fromkeys(space, 1.0)
    study = _quiet_study(optuna.samplers.RandomSampler(seed=0))
    for trial in known:
        study.add_trial(_frozen(replace(trial, finished=True), space))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(share) for key, share in found.items()} if all(map(math.isfinite, found.values())) else None


def configured(key: str, model: ModelSettings, training: TrainingSettings) -> Any:
    """The value of a key; for a constant that is left to its default, that."""
    section, _, name = key.partition(".")
    settings = model if section == "model" else training
    value = getattr(settings, name)
    if value is not None:
        return value
    owners = [choice for choice in CONSTANTS if hasattr(settings, choice)]
    return next((own[name] for choice in owners if name in (own := chosen(settings, choice))), None)


@cache
def whole(key: str) -> bool:
    """Whether a key takes whole numbers."""
    section, _, name = key.partition(".")
    hint = get_type_hints(ModelSettings if section == "model" else TrainingSettings)[name]
    kinds = set(get_args(hint)) or {hint}
    return int in kinds and float not in kinds


def _study(tuning: TuningSettings, batch: int) -> optuna.Study:
    """An empty study with a sampler of its own for each batch."""
    import optuna

    seed = _hash(f"{tuning.seed} batch {batch}") % 2**32
    sampler: optuna.samplers.BaseSampler
    if tuning.sampler == "random":
        sampler = optuna.samplers.RandomSampler(seed=seed)
    elif tuning.sampler == "tpe":
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
    else:
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP, warn_independent_sampling=False)
    return _quiet_study(sampler)


def _quiet_study(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=sampler, direction="minimize")


def _suggest(
    trial: optuna.Trial, space: Mapping[str, Parameter], model: ModelSettings, training: TrainingSettings
) -> Values:
    """The values of one trial; choices come first, as other keys may mean nothing beside them."""
    values: Values = {}
    for key in sorted(space, key=lambda key: not _decides(key)):
        if not _applies(key, values, model, training):
            continue
        values[key] = _ask(trial, key, space[key])
    return {key: values[key] for key in space if key in values}


def _frozen(tried: Tried, space: Mapping[str, Parameter]) -> optuna.trial.FrozenTrial:
    """A trial that has ended, as Optuna knows it."""
    import optuna

    states = optuna.trial.TrialState
    state = states.COMPLETE if tried.finished and tried.loss is not None else states.PRUNED
    return optuna.trial.create_trial(
        state=state,
        value=tried.loss if state == states.COMPLETE else None,
        params={key: _label(space[key], value) for key, value in tried.values.items()},
        distributions={key: _distribution(key, space[key]) for key in tried.values},
        intermediate_values={} if tried.finished or tried.loss is None else {tried.epochs: tried.loss},
    )


def _distribution(key: str, parameter: Parameter) -> optuna.distributions.BaseDistribution:
    import optuna

    if parameter.choices is not None:
        return optuna.distributions.CategoricalDistribution([_text(choice) for choice in parameter.choices])
    low, high = _ends(parameter)
    if whole(key):
        return optuna.distributions.IntDistribution(round(low), round(high), log=parameter.log)
    return optuna.distributions.FloatDistribution(low, high, log=parameter.log)


def _ask(trial: optuna.Trial, key: str, parameter: Parameter) -> Any:
    """What Optuna proposes for a key; six digits, so that what is pasted is what was tried."""
    if parameter.choices is not None:
        labels = {_text(choice): choice for choice in parameter.choices}
        return labels[trial.suggest_categorical(key, list(labels))]
    low, high = _ends(parameter)
    if whole(key):
        return trial.suggest_int(key, round(low), round(high), log=parameter.log)
    return min(max(float(f"{trial.suggest_float(key, low, high, log=parameter.log):.6g}"), low), high)


def _label(parameter: Parameter, value: Any) -> Any:
    """A setting, as Optuna knows it."""
    return value if parameter.choices is None else _text(value)


def _inside(values: Mapping[str, Any], space: Mapping[str, Parameter]) -> bool:
    """Whether a space holds some values."""

    def holds(parameter: Parameter, value: Any) -> bool:
        if parameter.choices is not None:
            return _text(value) in [_text(choice) for choice in parameter.choices]
        low, high = _ends(parameter)
        return isinstance(value, (int, float)) and low <= value <= high

    return all(key in space and holds(space[key], value) for key, value in values.items())


def _ends(parameter: Parameter) -> tuple[float, float]:
    assert parameter.low is not None, "a range has both ends"
    assert parameter.high is not None, "a range has both ends"
    return parameter.low, parameter.high


def _applies(key: str, values: Mapping[str, Any], model: ModelSettings, training: TrainingSettings) -> bool:
    """Whether a key means anything beside the choices among some values."""
    choices = {name: value for name, value in values.items() if _decides(name)}
    try:
        return applies(key, *with_values(model, training, choices))
    except ValueError:  # refused as a whole
        return True


def _decides(key: str) -> bool:
    """Whether it depends on a key which others mean anything."""
    return key.partition(".")[2] in CONSTANTS or key == "model.type"


def _text(value: Any) -> str:
    return json.dumps(value)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
