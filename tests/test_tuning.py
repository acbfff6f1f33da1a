"""Studies of hyper-parameters: what a trial becomes, what is proposed next, and `law run TuneHyperparameters`."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from analysis.config import load_analysis, tried
from analysis.errors import UserError
from analysis.gain import compare
from analysis.metrics import Sample, evaluate
from analysis.splitting import event_identity
from analysis.studies import pasted
from models.checkpoint import Checkpoint
from models.search import Tried, grid, importances, next_batch, propose, scan, spaced
from models.settings import NOT_TUNED, ModelSettings, Parameter, TrainingSettings, TuningSettings, default_space
from models.training import train
from models.tuning import Fold, Outcome, Trial, limits_of, spread, train_trials
from tests.test_training import TRAINING, assert_equal, make_events, make_plans
from tests.toy import Law, spoil_test_events

optuna = pytest.importorskip("optuna")

MODELS = (ModelSettings(hidden=(16, 16)), ModelSettings(hidden=(32,)))
SPACE = {
    "training.learning_rate": Parameter(low=1e-3, high=1e-1, log=True),
    "model.dropout": Parameter(low=0.0, high=0.5),
    "model.hidden": Parameter(choices=((8,), (16, 16))),
}
STUDY = TuningSettings(space=SPACE, trials=12, batch=4)


def folds(count: int = 3) -> list[Fold]:
    """The first networks of `make_plans`."""
    return [Fold(plan.fold, plan.training, plan.validation) for plan in make_plans()[:count]]


def trials() -> list[Trial]:
    """Some that share shapes, and one that does not."""
    rates = (5e-3, 2e-2, 1e-3)
    found = [Trial(MODELS[0], dataclasses.replace(TRAINING, learning_rate=rate)) for rate in rates]
    return [*found, Trial(MODELS[1], TRAINING)]


def assert_same(left: Outcome, right: Outcome) -> None:
    """To the last bit."""
    assert left.summary() == right.summary()
    for one, other in zip(left.networks, right.networks, strict=True):
        assert_equal(one, other)


# Trials


def test_a_trial_is_what_the_analysis_would_train_alone_or_with_others() -> None:
    events = make_events()
    together = train_trials(events, trials(), folds(), 1)
    for trial, outcome in zip(trials(), together, strict=True):
        assert_same(outcome, train_trials(events, [trial], folds(), 1)[0])
    plans = make_plans(model=MODELS[0], training=trials()[1].training, seed=1)[:3]
    networks = train(events, plans)
    for one, other in zip(networks, together[1].networks, strict=True):
        assert_equal(one, other)
    best = [min(network.history.validation_loss) for network in networks]
    assert together[1].folds == tuple(best)
    assert together[1].loss == pytest.approx(np.mean(best), rel=1e-12)
    assert together[1].curve[0] == pytest.approx(np.mean([n.history.validation_loss[0] for n in networks]), rel=1e-12)
    assert list(together[1].curve) == sorted(together[1].curve, reverse=True)


@pytest.mark.parametrize("batch_size", [100, "all"])
def test_a_trial_above_a_limit_is_stopped_there_and_the_others_do_not_notice(batch_size: Any) -> None:
    """With `all`, its networks may be in several stacks."""
    events = make_events()
    free = [dataclasses.replace(t, training=dataclasses.replace(t.training, batch_size=batch_size)) for t in trials()]
    whole = train_trials(events, free, folds(), 1)
    curve = whole[2].curve
    limits = ((1, curve[0] + 1e-9), (2, curve[1] - 1e-9))
    limited = [*free[:2], dataclasses.replace(free[2], limits=limits), free[3]]
    found = train_trials(events, limited, folds(), 1)
    assert (found[2].state, found[2].curve, found[2].loss, found[2].networks) == ("stopped", curve[:2], curve[1], ())
    assert_same(found[2], train_trials(events, limited[2:3], folds(), 1)[0])
    for number in (0, 1, 3):
        assert_same(found[number], whole[number])


def test_a_stopped_trial_takes_no_further_step() -> None:
    said: list[str] = []
    trial = dataclasses.replace(trials()[0], limits=((2, 0.0),))
    train_trials(make_events(), [trial], folds(), 1, progress=said.append)
    assert len(said) == 2


def test_a_trial_that_diverges_is_told_and_the_others_do_not_notice() -> None:
    events = make_events()
    wild = dataclasses.replace(TRAINING, learning_rate=1e30, clip_norm=None, optimiser="sgd", weight_decay=1e20)
    tame = trials()
    found = train_trials(events, [tame[0], Trial(MODELS[0], wild), tame[1]], folds(), 1)
    assert found[1] == Outcome("diverged", None, (), ())
    for outcome, trial in zip((found[0], found[2]), tame[:2], strict=True):
        assert_same(outcome, train_trials(events, [trial], folds(), 1)[0])


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The process is gone."""


class Memory:
    """Keeps checkpoints after every step, until so many steps have been done."""

    def __init__(self, steps: int) -> None:
        self.kept: dict[int, Checkpoint] = {}
        self.left = steps

    def load(self, order: int) -> Checkpoint | None:
        return self.kept.get(order)

    def due(self) -> bool:
        self.left -= 1
        return self.left >= 0

    def save(self, order: int, checkpoint: Checkpoint) -> None:
        self.kept[order] = checkpoint

    def saved(self) -> None:
        if self.left == 0:
            raise Interrupted


@pytest.mark.parametrize("steps", [3, 18, 27])
def test_trials_that_go_on_from_checkpoints_become_the_same(steps: int) -> None:
    events = make_events()
    free = train_trials(events, trials()[:2], folds(), 1)
    limit = ((2, free[1].curve[1] - 1e-9),)
    own = [trials()[0], dataclasses.replace(trials()[1], limits=limit)]
    memory = Memory(steps)
    with pytest.raises(Interrupted):
        train_trials(events, own, folds(), 1, checkpoints=memory)
    assert memory.kept
    found = train_trials(events, own, folds(), 1, checkpoints=memory)
    for left, right in zip(found, train_trials(events, own, folds(), 1), strict=True):
        assert_same(left, right)
    assert [outcome.state for outcome in found] == ["finished", "stopped"]


def test_work_is_shared_out_and_shapes_stay_together() -> None:
    wide = ModelSettings(hidden=(256, 256))
    settings = [(wide if i % 2 else MODELS[0], TRAINING) for i in range(8)]
    groups = spread(settings, 2)
    assert sorted(i for group in groups for i in group) == list(range(8))
    kinds = [{settings[i][0] for i in group} for group in groups]
    assert sum(len(kind) for kind in kinds) == 3  # one of the two kinds is in both
    assert spread(settings[:1], 5) == [[0]]


# When a trial is stopped


def curves(count: int, epochs: int, seed: int = 1) -> list[list[float]]:
    """Falling losses."""
    random = np.random.default_rng(seed)
    return [np.minimum.accumulate(random.uniform(0.2, 1, epochs)).tolist() for _ in range(count)]


def reported(curve: Sequence[float], finished: bool) -> Any:
    """A trial as Optuna's pruners see it."""
    states = optuna.trial.TrialState
    return optuna.trial.create_trial(
        state=states.COMPLETE if finished else states.PRUNED,
        value=curve[-1] if finished else None,
        intermediate_values=dict(enumerate(curve, 1)),
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_median_rule_is_that_of_optuna(seed: int) -> None:
    others, new = curves(7, 12, seed), curves(1, 12, seed + 100)[0]
    limits = dict(limits_of(TuningSettings(pruner="median"), 12, others, []))
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=3)
    study = optuna.create_study(pruner=pruner)
    for curve in others:
        study.add_trial(reported(curve, True))
    trial = study.ask()
    assert sorted(limits) == list(range(3, 12))
    for epoch, loss in enumerate(new[:-1], 1):
        trial.report(loss, epoch)
        assert trial.should_prune() == (loss > limits.get(epoch, math.inf)), epoch
    assert limits_of(TuningSettings(pruner="median"), 12, others[:4], []) == ()


@pytest.mark.parametrize("count", [0, 1, 2, 5, 9, 20])
def test_the_halving_rule_is_that_of_optuna(count: int) -> None:
    """One after the other, in Optuna's study too; the rungs of 27 epochs are 3 and 9."""
    tuning = TuningSettings(pruner="halving")
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=3, reduction_factor=3, bootstrap_count=0)
    study = optuna.create_study(pruner=pruner)
    finished: list[list[float]] = []
    stopped: list[list[float]] = []
    for curve in curves(count + 1, 27, count):
        limits = dict(limits_of(tuning, 27, finished, stopped))
        trial = study.ask()
        own: list[float] = []
        for epoch, loss in enumerate(curve[:9], 1):
            own.append(loss)
            trial.report(loss, epoch)
            pruned = trial.should_prune()
            assert pruned == (loss > limits.get(epoch, math.inf)), (epoch, limits)
            if pruned:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                stopped.append(own)
                break
        else:
            study.tell(trial, curve[-1])
            finished.append(curve)
    assert limits_of(TuningSettings(pruner="none"), 27, finished, stopped) == ()


# What is proposed


def loss_of(values: dict[str, Any]) -> float:
    """Smallest for a learning rate of 0.01; the width matters little, dropout not at all."""
    rate = values.get("training.learning_rate", 2e-3)
    return 0.5 + math.log10(rate / 0.01) ** 2 + 0.01 * (len(values.get("model.hidden", ())) == 1)


CONFIG = load_analysis("hww").config


def settings_of(values: dict[str, Any]) -> tuple[ModelSettings, TrainingSettings]:
    config = tried(CONFIG, values)
    return config.model, config.training


def run_study(tuning: TuningSettings, count: int) -> list[dict[str, Any]]:
    """A study whose trials need no training."""
    study: list[dict[str, Any]] = []
    for first in range(0, count, tuning.batch):
        study += next_batch(tuning, (), settings_of, study, first)
        for trial in study[first + bool(first) :]:
            loss = loss_of(trial["values"])
            trial.update(state="finished", loss=loss, curve=[loss + 0.1] * 29 + [loss], folds=[loss])
    return study


@pytest.mark.parametrize("sampler", ["random", "tpe", "gaussian_process", "grid"])
def test_a_longer_study_begins_as_a_shorter_one(sampler: Any) -> None:
    tuning = dataclasses.replace(STUDY, sampler=sampler, pruner="none")
    long = run_study(tuning, 12)
    assert long[:9] == run_study(dataclasses.replace(tuning, trials=8), 8)
    assert [trial["number"] for trial in long] == list(range(13))
    assert long[:5] != run_study(dataclasses.replace(tuning, seed=2), 4)
    for trial in long[1:]:
        assert 1e-3 <= trial["values"]["training.learning_rate"] <= 1e-1
        assert trial["values"]["model.hidden"] in ([8], [16, 16])


@pytest.mark.parametrize("sampler", ["tpe", "gaussian_process"])
def test_a_bayesian_sampler_finds_the_minimum(sampler: Any) -> None:
    space = {"training.learning_rate": SPACE["training.learning_rate"]}
    study = run_study(dataclasses.replace(STUDY, space=space, sampler=sampler, pruner="none"), 20)
    rates = [abs(math.log10(trial["values"]["training.learning_rate"] / 0.01)) for trial in study[1:]]
    assert np.mean(rates[-8:]) < 0.7 * np.mean(rates[:8])


def test_importance_is_that_of_what_decides() -> None:
    random = np.random.default_rng(1)
    known = []
    for _ in range(40):
        values = {
            "training.learning_rate": 10 ** random.uniform(-3, -1),
            "model.dropout": random.uniform(0, 0.5),
            "model.hidden": SPACE["model.hidden"].choices[random.integers(2)],  # type: ignore[index]
        }
        known.append(Tried(values, loss_of(values), 30, True))
    found = importances(SPACE, known)
    assert found is not None
    assert sum(found.values()) == pytest.approx(1)
    assert max(found, key=lambda key: found[key]) == "training.learning_rate"
    assert found["training.learning_rate"] > 0.6
    assert importances(SPACE, known[:4]) is None


def test_a_grid_holds_each_point_once_and_a_scan_one_key_after_the_other() -> None:
    model, training = ModelSettings(), TrainingSettings()
    points = grid(SPACE, model, training, 1)
    assert len(points) == 5 * 5 * 2
    assert {tuple(point["model.hidden"]) for point in points} == {(8,), (16, 16)}
    assert spaced("training.learning_rate", SPACE["training.learning_rate"])[::4] == [1e-3, 1e-1]
    assert spaced("training.patience", Parameter(low=2, high=5)) == [2, 3, 4, 5]
    found = scan(("model.hidden", "model.dropout"), SPACE, model, training)
    assert [list(point) for point in found] == [["model.hidden"]] * 2 + [["model.dropout"]] * 5
    tuning = dataclasses.replace(STUDY, sampler="grid", batch=30)
    assert len(propose(tuning, model, training, [], 1)) == 20
    assert propose(tuning, model, training, [], 2) == []


def test_constants_are_tuned_beside_their_choice_alone() -> None:
    space = {
        "training.momentum": Parameter(low=0.1, high=0.9),
        "training.weight_decay": Parameter(low=1e-3, high=1.0, log=True),
        "training.optimiser": Parameter(choices=("sgd", "adam", "adamw")),
    }
    tuning = TuningSettings(space=space, batch=20)
    for batch in range(2):
        for values in propose(tuning, ModelSettings(), TrainingSettings(), [], batch):
            keys = {"sgd": {"momentum", "weight_decay"}, "adam": set(), "adamw": {"weight_decay"}}
            expected = {f"training.{name}" for name in (*keys[values["training.optimiser"]], "optimiser")}
            assert values.keys() == expected
            settings_of(values)
    points = grid(space, ModelSettings(), TrainingSettings(), 1)
    assert len(points) == 25 + 1 + 5


def test_what_makes_no_sense_is_refused_and_the_study_goes_on() -> None:
    space = {"training.momentum": Parameter(low=0.0, high=0.9), "training.nesterov": Parameter(choices=(True, False))}
    config = load_analysis("hww", ["training.optimiser=sgd"]).config

    def settings(values: dict[str, Any]) -> tuple[ModelSettings, TrainingSettings]:
        own = tried(config, values)
        return own.model, own.training

    tuning = TuningSettings(space=space, sampler="grid", batch=20)
    found = next_batch(tuning, (), settings, [], 0)
    refused = [trial for trial in found if trial["state"] == "refused"]
    assert [trial["values"] for trial in refused] == [{"training.momentum": 0.0, "training.nesterov": True}]
    assert "nesterov" in refused[0]["reason"]
    assert len(found) == 11


def test_what_was_tried_before_is_tried_in_the_same_way() -> None:
    """So that it is not trained again."""
    study = run_study(dataclasses.replace(STUDY, space={"model.hidden": SPACE["model.hidden"]}, sampler="random"), 4)
    tuning = dataclasses.replace(STUDY, space={"model.hidden": SPACE["model.hidden"]}, sampler="random")
    again = next_batch(tuning, (), settings_of, study, 4)
    known = {json.dumps(trial["values"]): trial["limits"] for trial in study}
    assert all(trial["limits"] == known.get(json.dumps(trial["values"]), trial["limits"]) for trial in again)
    assert any(json.dumps(trial["values"]) in known for trial in again)


# The configuration


@pytest.mark.parametrize("key", sorted(NOT_TUNED))
def test_what_moves_the_split_or_the_loss_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"{re.escape(key)} can't be tuned: {re.escape(NOT_TUNED[key][:30])}"):
        load_analysis("hww", [f"tuning.space={{{key}: {{low: 1, high: 2}}}}"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tuning.space={training.learnin_rate: {low: 1, high: 2}}", "Did you mean training.learning_rate"),
        ("tuning.space={selection.cuts: {choices: [a, b]}}", "keys of model and training can"),
        ("tuning.space={training.learning_rate: {low: 3, high: 2}}", "two numbers, the first one smaller, or choices"),
        (
            "tuning.space={training.learning_rate: {low: 0, high: 2, log: true}}",
            "low is 0.0; expected a number above 0",
        ),
        ("tuning.space={training.learning_rate: {low: 1, high: 2, choices: [1, 2]}}", "none beside choices"),
        ("tuning.space={model.hidden: {low: 1, high: 2}}", "a range is for numbers; expected choices"),
        ("tuning.space={model.hidden: {choices: [[a], [2]]}}", "is no value of model.hidden"),
        ("tuning.space={model.dropout: {choices: [0.1]}}", "expected at least two values"),
        ("tuning.sampler=bayes", "'gaussian_process' was expected"),
        ("tuning.pruner_trials=3", "pruner halving has no such constant; it has pruner_factor"),
        ("tuning.trials=0", "trials is 0; expected at least 1"),
    ],
)
def test_mistakes_are_one_sentence(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_analysis("hww", [text])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_of_the_space_may_be_nested_as_set_makes_them() -> None:
    override = "tuning.space.training.learning_rate={low: 1e-4, high: 1e-2, log: true}"
    space = load_analysis("hww", [override]).config.tuning.space
    assert space == {"training.learning_rate": Parameter(low=1e-4, high=1e-2, log=True)}


@pytest.mark.parametrize("optimiser", ["adamw", "adam", "sgd"])
def test_the_default_space_fits_each_optimiser(optimiser: Any) -> None:
    training = TrainingSettings(optimiser=optimiser)
    for values in propose(TuningSettings(space=default_space(training), batch=20), ModelSettings(), training, [], 0):
        tried(load_analysis("hww", [f"training.optimiser={optimiser}"]).config, values)


def test_what_is_pasted_is_what_was_tried() -> None:
    values = {"training.learning_rate": 1e-5, "model.hidden": [64, 64], "training.batch_size": "all"}
    found = pasted(values)
    assert yaml.safe_load(found["yaml"]) == {
        "training": {"learning_rate": 1e-5, "batch_size": "all"},
        "model": {"hidden": [64, 64]},
    }
    options = [option.strip() for option in found["command"].split("--set ") if option]
    config = load_analysis("hww", options).config
    assert (config.training.learning_rate, config.model.hidden, config.training.batch_size) == (1e-5, (64, 64), "all")


# The gain


def test_the_gain_is_the_paired_difference_of_the_figures_of_merit() -> None:
    random = np.random.default_rng(3)
    count = 800
    label = random.integers(0, 2, count)
    truth = random.normal(label, 1.2)
    both = []
    for noise in (1.0, 0.3):
        score = 1 / (1 + np.exp(-(truth + random.normal(0, noise, count))))
        both.append(np.column_stack([1 - score, score]))
    weight = random.uniform(0.5, 2, count) * np.where(random.random(count) < 0.1, -1, 1)
    identity = event_identity("toy", [np.arange(count)])
    process = label.astype(np.int16)

    def gain(before: Any, after: Any, replicas: int = 400) -> dict[str, Any]:
        return compare(
            (before, after), label=label, weight=weight, process=process, identity=identity, signal=1,
            replicas=replicas, seed=5,
        )  # fmt: skip

    found = gain(*both)
    for position, side in enumerate(("before", "after")):
        sample = Sample(both[position], label, weight, process, identity)
        expected = evaluate(sample, ("b", "s"), "s", 400, 5)
        for name, own in (
            ("log_loss", expected["log_loss"]),
            ("auc_weighted", expected["auc"]["weighted"]),
            ("auc_unweighted", expected["auc"]["unweighted"]),
        ):
            assert found[name][side] == pytest.approx(own, rel=1e-9)
    for name, sign in (("log_loss", -1), ("auc_weighted", 1), ("auc_unweighted", 1)):
        one = found[name]
        assert one["gain"]["value"] == pytest.approx(sign * (one["after"]["value"] - one["before"]["value"]))
        widths = [one[side]["high"] - one[side]["low"] for side in ("before", "after", "gain")]
        assert widths[2] < math.hypot(*widths[:2])  # what the events have in common drops out
        assert gain(both[0], both[0], 50)[name]["gain"] == {"value": 0.0, "low": 0.0, "high": 0.0}


# The graph


ONE = ("--set", "tuning.batch=2", "--set", "tuning.sampler=random", "--set", "training.epochs=9")
RATES = "training.learning_rate: {low: 1.0e-3, high: 0.1, log: true}"
SMALL = f"tuning.space={{{RATES}, model.hidden: {{choices: [[8], [12]]}}}}"
LONG = (*ONE[:4], "--set", SMALL, "--set", "training.epochs=30", "--set", "training.patience=null")


def study_file(law: Law) -> Path:
    """The one study of a store."""
    (path,) = (law.store / "SearchHyperparameters").glob("*/*/study.json")
    return path


def ended(law: Law) -> list[dict[str, Any]]:
    """The trials that have ended, as the study's file has them."""
    found = sorted((law.store / "SearchHyperparameters").glob("*/*/study.json"))
    return [trial for path in found for trial in json.loads(path.read_text())["trials"] if "loss" in trial]


def made(law: Law) -> dict[Path, int]:
    """When the outputs of all trials were made."""
    return {path: path.stat().st_mtime_ns for path in (law.store / "TrainTrials").glob("*/*/trial.json")}


def place(law: Law, name: str) -> Law:
    """The same analysis with another store."""
    other = Law(law.home, Path(name))
    shutil.copytree(law.store, other.store, symlinks=True)
    return other


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_as_if_nothing_had_happened(law: Law) -> None:
    command = ("SearchHyperparameters", "--analysis", law.analysis, *LONG)
    killed, undisturbed = place(law, "killed"), place(law, "undisturbed")
    process = killed.start(*command, "--trials", "4", "--TrainTrials-checkpoint", "0.2")
    while len(ended(killed)) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    before, first = made(killed), len(ended(killed))
    assert first < 5
    done = killed(*command, "--trials", "4")
    assert "4 of 4 trials" in done.stderr
    assert before.items() <= made(killed).items()  # no trial twice
    undisturbed(*command, "--trials", "2")
    assert len(ended(undisturbed)) == 3
    shorter = made(undisturbed)
    undisturbed(*command, "--trials", "4")
    assert shorter.items() <= made(undisturbed).items()
    assert study_file(killed).read_text() == study_file(undisturbed).read_text()
    assert study_file(killed).parent.name == study_file(undisturbed).parent.name
    for path in sorted((killed.store / "TrainTrials").glob("*/*/networks/*.safetensors")):
        assert path.read_bytes() == (undisturbed.store / path.relative_to(killed.store)).read_bytes()


def test_a_study_from_the_command_line_and_no_choice_meets_a_test_event(law: Law) -> None:
    command = ("--analysis", law.analysis, *ONE, "--trials", "3")
    report = (law.store / "Report").glob("*/*/provenance.json")
    before = {path: path.stat().st_mtime_ns for path in report}
    done = law("TuneHyperparameters", *command)
    assert "3 of 3 trials" in done.stderr
    (link,) = law.results.glob("toy-tuning@*")
    result = json.loads((link / "tuning.json").read_text())
    assert [trial["number"] for trial in result["trials"]] == [0, 1, 2, 3]
    assert result["best"]["loss"] == min(t["loss"] for t in result["trials"] if t["state"] == "finished")
    page = (link / "tuning.html").read_text()
    assert str(link / "tuning.html") in done.stdout
    for key in default_space(TrainingSettings()):
        assert f"<th>{key}</th>" in page
    assert "http" not in page.replace("http-equiv", "")
    if result["best"]["number"]:
        assert result["best"]["command"] in page
        assert result["best"]["command"] in done.stdout
    assert {path.name for path in (link / "plots").glob("*.json")} >= {"trials.json", "curves.json"}
    # The main job knows nothing of it, nor does Prune take it away.
    assert {path: path.stat().st_mtime_ns for path in (law.store / "Report").glob("*/*/provenance.json")} == before
    assert "TrainTrials" not in law("Prune").stdout
    assert law("TuneHyperparameters", *command).stderr == ""

    spoil_test_events(law.home / "toy")
    law("SearchHyperparameters", *command)
    one, other = (json.loads(path.read_text())["trials"] for path in sorted(law.store.glob("Search*/*/*/study.json")))
    assert [{**trial, "folder": ""} for trial in one] == [{**trial, "folder": ""} for trial in other]
    assert [trial.get("folder") for trial in one] != [trial.get("folder") for trial in other]


def test_a_scan_varies_one_key_and_mistakes_are_told(law: Law) -> None:
    wrong = law("TuneHyperparameters", "--analysis", law.analysis, "--scan", "training.dropout", ok=False)
    assert wrong.returncode != 0
    assert "--scan training.dropout: training.dropout can't be tuned" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    space = "tuning.space={model.dropout: {low: 0, high: 0.5, points: 3}, training.patience: {low: 3, high: 9}}"
    command = ("--analysis", law.analysis, "--scan", "model.dropout", "--set", space, "--set", "training.epochs=9")
    law("SearchHyperparameters", *command)
    assert [trial["values"] for trial in ended(law)] == [{}, *({"model.dropout": value} for value in (0.0, 0.25, 0.5))]
    assert {trial["state"] for trial in ended(law)} == {"finished"}
