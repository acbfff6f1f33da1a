"""TuneHyperparameters: a study of settings of the networks, beside the main job, on the same pool of events.

`TrainTrials` trains what is on trial; `SearchHyperparameters` leads the study, and sees nothing but the pool, in which
there are no test events; `TuneHyperparameters` judges its choice once, on the test events, and writes the page.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import law
import luigi

from analysis.config import Configuration, tried
from analysis.errors import UserError, nearest
from models.settings import (
    ModelSettings,
    TargetSettings,
    TrainingSettings,
    TuningSettings,
    check_tunable,
    default_space,
)
from workflow.base import Given, Task
from workflow.execution.executor import say
from workflow.identity import canonical, fingerprint
from workflow.store import atomic_write, read_json, store_folder, write_json
from workflow.tasks.beside import PageTask
from workflow.tasks.folds import PrepareFolds
from workflow.tasks.plots import write_plots
from workflow.tasks.publishing import page_sources
from workflow.tasks.tables import Sums, load_events, require_events
from workflow.tasks.train import Kept, TrainingWorkflow, of_one_network, train_branches, training_events

if TYPE_CHECKING:
    from analysis.splitting import Scheme
    from analysis.table import EventTable, TableSettings
    from models.tuning import Limits, Outcome


@dataclass(frozen=True)
class TrialSlice:
    """What a trial's networks are, how they are trained, and when they are stopped."""

    folds: int
    scheme: Scheme
    seed: int
    model: ModelSettings
    training: TrainingSettings
    targets: dict[str, TargetSettings]
    soft_labels: tuple[str | None, ...]
    signal: str | None
    limits: Limits


class TrainTrials(TrainingWorkflow):
    """Train the networks of some trials; one branch per trial. Branches of one process train together."""

    exclude_index = False

    proposals = luigi.Parameter(
        default="[]",
        description="the trials, as SearchHyperparameters proposes them: a JSON list of values and limits",
    )

    def about_branches(self) -> Sequence[tuple[dict[str, Any], Limits]]:
        return [(values, tuple((e, loss) for e, loss in limits)) for values, limits in json.loads(self.proposals)]

    @property
    def subject(self) -> str:
        return words(self.branch_data[0])

    def slice(self, config: Configuration) -> TrialSlice:
        values, limits = self.branch_data
        own = tried(config, values)
        return TrialSlice(
            folds=own.folds.count,
            scheme=own.folds.scheme,
            seed=own.seed,
            model=own.model,
            training=of_one_network(own.training),
            targets=dict(own.targets),
            soft_labels=own.soft_labels,
            signal=own.classes.signal if own.training.decorrelated else None,
            limits=limits,
        )

    def files(self) -> Sequence[str]:
        return ("trial.json", "networks/")

    def spread(self, branches: Sequence[int], slots: int) -> Sequence[Sequence[int]]:
        from models.tuning import spread

        found = [self.as_branch(branch).settings for branch in branches]
        return spread([(s.model, s.training) for s in found], slots)

    def run_branches(self, branches: Sequence[int]) -> None:
        train_branches(
            self,
            branches,
            run_trials,
            save_outcome,
            lambda own: [f".checkpoint-{fold}" for fold in range(own.folds)],
            quiet=True,
        )

    @staticmethod
    def compute(settings: TrialSlice, given: Given, out: Path) -> None:
        save_outcome(run_trials([settings], given)[0], out)


def run_trials(slices: Sequence[TrialSlice], given: Given, kept: Kept | None = None) -> list[Outcome]:
    """Train several trials, which require the same, together."""
    from analysis.pool import load_pool
    from models.training import best_device
    from models.tuning import Fold, Trial, train_trials
    from models.weighting import WeightsError

    pool = load_pool(given.made["pool"].path("pool"))
    one = slices[0]
    trials = [Trial(s.model, s.training, s.limits) for s in slices]
    folds = [Fold(fold, *pool.uses(fold, one.folds, one.scheme)) for fold in range(one.folds)]
    events = training_events(pool, one)
    try:
        return train_trials(events, trials, folds, one.seed, progress=say, checkpoints=kept, device=best_device())
    except WeightsError as error:
        raise UserError(str(error)) from error


def save_outcome(outcome: Outcome, out: Path) -> None:
    """Write the output of one branch."""
    from models.ensemble import save_member

    write_json(out / "trial.json", outcome.summary())
    (out / "networks").mkdir()
    for network in outcome.networks:
        save_member(out / "networks" / f"network-{network.fold}.safetensors", network)


@dataclass(frozen=True)
class SearchSlice:
    """The study, and the settings that it starts from."""

    tuning: TuningSettings
    scan: tuple[str, ...]
    model: ModelSettings
    training: TrainingSettings


class StudyTask(Task[Any]):
    """The parameters of a study."""

    exclude_index = True

    trials = luigi.IntParameter(
        default=0,
        description="how many trials there are in all, in place of tuning.trials; those that a study has are not "
        "repeated; default: as configured",
    )
    scan = law.CSVParameter(
        default=(),
        description="keys, separated by commas, that are varied one at a time over their values in tuning.space, all "
        "others as configured; default: none, all keys of the space together",
    )

    def tuning(self, config: Configuration) -> TuningSettings:
        """The study, with its space and its number of trials.

        Raises:
            UserError: A key can't be scanned, the number is none, or a member is several networks.
        """
        if config.model.missing == "separate":
            raise UserError(
                "model.missing is separate: a member then is several networks, each with a loss of its own, and trials "
                "can't be compared. Tune with another value, such as learned."
            )
        if self.trials < 0:
            raise UserError(f"--trials {self.trials}: a number above 0 was expected.")
        space = config.tuning.space or default_space(config.training)
        for key in self.scan:
            if key not in space:
                try:
                    check_tunable(key)
                except ValueError as error:
                    raise UserError(f"--scan {key}: {error}") from error
                raise UserError(f"--scan {key}: it is not in tuning.space. {nearest(key, space)}")
        return replace(config.tuning, space=dict(space), trials=self.trials or config.tuning.trials)


class SearchHyperparameters(StudyTask):
    """Lead a study: propose trials batch by batch, have them trained, and choose the best by validation loss.

    The study is the file `study.json` in a folder that follows from all that determines the trials, but not from their
    number: a study that was killed goes on, and so does one that is asked for more trials.
    """

    exclude_index = False
    libraries = ("optuna",)

    def requires(self) -> Any:
        return {"pool": PrepareFolds.req(self)}

    def slice(self, config: Configuration) -> SearchSlice:
        return SearchSlice(self.tuning(config), tuple(self.scan), config.model, of_one_network(config.training))

    def outside(self) -> Any:
        # What the networks are, how they are trained and by which code: that of the trial as configured says it all.
        return self._trials([({}, [])]).as_branch(0).fingerprint

    @staticmethod
    def identity_of(parts: Mapping[str, Any]) -> str:
        """The identity of the study, of which the number of trials is no part."""
        settings = parts["settings"]
        tuning = {key: value for key, value in settings["tuning"].items() if key != "trials"}
        return fingerprint({**parts, "settings": {**settings, "tuning": tuning}})

    @cached_property
    def record(self) -> Path:
        return self.folder / f"provenance-{self.settings.tuning.trials}.json"

    def files(self) -> Sequence[str]:
        return (f"trials-{self.settings.tuning.trials}/",)

    def run(self) -> Iterator[Any]:  # type: ignore[override]
        """Batch after batch: luigi runs this anew whenever a batch of trials has been trained."""
        from models.search import next_batch

        tuning, journal = self.settings.tuning, self.folder / "study.json"
        study = read_json(journal)["trials"] if journal.exists() else []
        for first in range(0, tuning.trials, tuning.batch):
            if len(study) <= first + 1:
                study += next_batch(tuning, self.settings.scan, self._settings_of, study, first)
                _keep(journal, study)
            own = study[first + bool(first) : first + tuning.batch + 1]  # with the first batch, what is configured
            wanted = [t for t in own if t["number"] <= tuning.trials and t["state"] != "refused"]
            if not wanted:
                continue
            alike = self._alike(wanted)
            batch = self._trials([(trials[0]["values"], trials[0]["limits"]) for trials in alike])
            yield batch
            new = any("loss" not in trial for trial in wanted)
            for number, trials in enumerate(alike):
                branch = batch.as_branch(number)
                for trial in trials:
                    folder = str(branch.folder.relative_to(store_folder()))
                    trial.update(read_json(branch.path("trial.json")), folder=folder)
            if new:
                _keep(journal, study)
                say(f"{progress(study, tuning.trials)}\n")
        super().run()

    def _settings_of(self, values: Mapping[str, Any]) -> tuple[ModelSettings, TrainingSettings]:
        own = tried(self.plan.config, values)
        return own.model, own.training

    def _alike(self, trials: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """Trials that are the same in all but their number, each of which is trained once."""
        found: dict[str, list[dict[str, Any]]] = {}
        for trial in trials:
            found.setdefault(repr((self._settings_of(trial["values"]), trial["limits"])), []).append(trial)
        return list(found.values())

    def _trials(self, proposals: Sequence[tuple[Any, Any]]) -> Any:
        return TrainTrials.req(self, branch=-1, proposals=json.dumps(proposals))

    @staticmethod
    def compute(settings: SearchSlice, given: Given, out: Path) -> None:
        from models.search import best_of, importances, tried_of

        tuning = settings.tuning
        study = read_json(given.own.path("study.json"))["trials"]
        trials = [trial for trial in study if trial["number"] <= tuning.trials]
        best, configured = best_of(trials), trials[0]
        if best is None or all(trial["state"] == "refused" for trial in trials[1:]):
            raise UserError(
                f"None of {len(trials) - 1} trials could be trained to its end; the last one is {trials[-1]['state']}"
                f"{': ' + trials[-1]['reason'] if 'reason' in trials[-1] else ''}. Change tuning.space."
            )
        folder = out / f"trials-{tuning.trials}"
        folder.mkdir()
        for name, trial in (("best", best), ("configured", configured)):
            if trial["state"] == "finished":
                shutil.copytree(store_folder() / trial["folder"] / "networks", folder / name)
        found = None
        if not settings.scan:
            found = importances(
                tuning.space, [tried_of(trial, tuning.space, settings.model, settings.training) for trial in trials]
            )
        write_json(folder / "trials.json", {"trials": trials, "best": best["number"], "importance": found})


@dataclass(frozen=True)
class TuneSlice:
    """What the page shows, and how the choice is judged."""

    name: str
    title: str
    tuning: TuningSettings
    scan: tuple[str, ...]
    model: ModelSettings
    training: TrainingSettings
    table: TableSettings
    sums: Sums
    classes: tuple[str, ...]
    signal: str
    scheme: Scheme
    replicas: int
    seed: int


class TuneHyperparameters(PageTask, StudyTask):
    """Tune settings of the networks on validation folds, and write what came of it as tuning.html and tuning.json."""

    exclude_index = False
    libraries = ("numpy", "torch")
    page = "tuning.html"
    published = "tuning"

    @property
    def departs(self) -> bool:
        return bool(self.set or self.scan)

    def requires(self) -> Any:
        datasets = self.plan.config.training_datasets()
        return {"search": SearchHyperparameters.req(self), **require_events(self, datasets, ("features", "factors"))}

    def slice(self, config: Configuration) -> TuneSlice:
        from analysis.table import TableSettings

        processes = [p for p in config.processes if config.class_of(p) >= 0]
        return TuneSlice(
            name=config.name,
            title=config.title,
            tuning=self.tuning(config),
            scan=tuple(self.scan),
            model=config.model,
            training=of_one_network(config.training),
            table=TableSettings.of(config, processes, config.feature_names),
            sums=Sums.of(config, config.training_datasets()),
            classes=config.class_names,
            signal=config.classes.signal,
            scheme=config.folds.scheme,
            replicas=config.outputs.replicas,
            seed=config.seed,
        )

    def outside(self) -> Any:
        return page_sources("tuning")

    def files(self) -> Sequence[str]:
        return ("tuning.html", "tuning.json", "plots/")

    @staticmethod
    def compute(settings: TuneSlice, given: Given, out: Path) -> None:
        from analysis.studies import pasted, render_study, study_plots

        s = settings
        found = given.made["search"].path(f"trials-{s.tuning.trials}")
        study = read_json(found / "trials.json")
        best = next(trial for trial in study["trials"] if trial["number"] == study["best"])
        tuned = {key: canonical(value) for key, value in best["values"].items()}
        result = {
            "analysis": s.name,
            "fingerprint": given.fingerprint,
            "sampler": "scan" if s.scan else s.tuning.sampler,
            "pruner": "none" if s.scan else s.tuning.pruner,
            "space": {
                key: canonical(parameter) for key, parameter in s.tuning.space.items() if not s.scan or key in s.scan
            },
            "configured": configured_values(s),
            "best": {"number": best["number"], "values": tuned, "loss": best["loss"], **pasted(tuned)},
            "importance": study["importance"],
            "test": judge_on_test(s, given, found),
            "trials": [{k: v for k, v in trial.items() if k != "folder"} for trial in study["trials"]],
        }
        write_json(out / "tuning.json", result)
        plots = study_plots(result)
        write_plots(plots, out / "plots")
        (out / "tuning.html").write_text(render_study(s.title or s.name, result, plots))

    def table(self) -> str:
        from analysis.studies import study_table

        return study_table(read_json(self.path("tuning.json")))


def judge_on_test(settings: TuneSlice, given: Given, found: Path) -> dict[str, Any] | None:
    """The best and the configured networks on the same test events, which no choice has seen; None without both."""
    from analysis.evaluation import Scales
    from analysis.gain import compare

    if not (found / "configured").exists():
        return None
    table, totals = load_events(given.made, settings.table, settings.sums)
    weight = table.weight * Scales.of(table, totals, ()).per_event(table)
    rows = table.is_test & (table.label >= 0)
    test = table.take(rows)
    before, after = (ensemble_scores(found / name, test) for name in ("configured", "best"))
    return compare(
        (before, after),
        label=test.label,
        weight=weight[rows],
        process=test.process,
        identity=test.identity,
        signal=settings.classes.index(settings.signal),
        replicas=settings.replicas,
        seed=settings.seed,
    )


def ensemble_scores(folder: Path, table: EventTable) -> Any:
    """Mean probabilities of the networks of a folder, float32 [N, C]."""
    import numpy as np

    from models.ensemble import Ensemble, combine, load_member, predict

    networks = Ensemble(tuple(load_member(path) for path in sorted(folder.glob("network-*.safetensors"))))
    values, present = table.matrix(networks.signature.features)
    folds = np.full(len(values), networks.folds[0])
    classes = len(networks.signature.classes)  # behind them come regression targets
    return combine(predict(networks, values, present)[:, :, :classes], networks.folds, folds)[1]


def configured_values(settings: TuneSlice) -> dict[str, Any]:
    """What is configured of the keys that are tuned."""
    from models.search import configured

    return {
        key: canonical(configured(key, settings.model, settings.training))
        for key in settings.tuning.space
        if not settings.scan or key in settings.scan
    }


def progress(study: Sequence[dict[str, Any]], total: int) -> str:
    """How a study stands, in a sentence."""
    from models.search import best_of

    done = [trial for trial in study if "loss" in trial and trial["number"]]
    best, states = best_of(study), [trial["state"] for trial in study]
    counted = [f"{states.count(s)} {words}" for s, words in _STATES.items() if states.count(s)]
    line = f"{len(done) + states.count('refused')} of {total} trials" + (f" ({', '.join(counted)})" if counted else "")
    if best is None:
        return line
    configured = study[0]["loss"]
    line += f": best validation loss {best['loss']:.4f}, {words(best['values'])}"
    return line + (f"; as configured {configured:.4f}" if configured is not None and best["number"] else "")


_STATES = {"stopped": "stopped early", "diverged": "diverged", "refused": "refused"}


def words(values: Mapping[str, Any]) -> str:
    """Values of some keys, in a line."""
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in values.items()) or "as configured"


def _keep(journal: Path, study: Sequence[Mapping[str, Any]]) -> None:
    """Write a study aside, and rename it into place: a kill leaves it as it was."""
    atomic_write(journal, json.dumps({"trials": list(study)}, indent=1) + "\n")
