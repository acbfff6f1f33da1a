"""The typed schema of an analysis: one folder with `analysis.yaml` and `physics.py`, parsed once into frozen objects.

Every error names the file and the key, says what was found and expected, and suggests the nearest valid name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from analysis.errors import UserError, nearest
from models.settings import (
    ModelSettings,
    TargetSettings,
    TrainingSettings,
    TuningSettings,
    alike,
    check_pruning,
    with_values,
)

EXAMPLES = Path(__file__).parent / "examples"

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen part of the configuration that knows all of its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class GeneratedSum(Section):
    """Where a file keeps the sum of generator weights from before any skim: a branch of a tree, or a histogram.

    Attributes:
        tree: Name of a tree.
        branch: A branch of it, whose entries are added up.
        index: Which element of each entry is meant; None where an entry is a number.
        times: A branch of the same tree with what each of them is multiplied with.
        histogram: Name of a histogram, whose bins are added up.
    """

    tree: str | None = None
    branch: str | None = None
    index: Annotated[int, Field(ge=0)] | None = None
    times: str | None = None
    histogram: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> GeneratedSum:
        if (self.histogram is None) == (self.tree is None) or (self.tree is None) != (self.branch is None):
            raise ValueError("give either `tree` and `branch`, or `histogram`")
        if self.histogram is not None and (self.index is not None or self.times is not None):
            raise ValueError("`index` and `times` are of a `branch`; leave them out")
        return self


class Simulate(Section):
    """How a simulated data set is made: generator sample, number of events, number of parallel parts."""

    process: Name
    events: Count
    parts: Count = 1


class DataSet(Section):
    """A set of files of one kind: files that are there (paths, globs, root:// URLs) or simulated ones."""

    files: tuple[str, ...] | None = None
    simulate: Simulate | None = None
    tree: str | None = None
    sample: str | None = None
    collision: bool = False
    generated: GeneratedSum | float | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> DataSet:
        if (self.files is None) == (self.simulate is None):
            raise ValueError("give either `files` or `simulate`")
        if self.files is not None and not self.files:
            raise ValueError("`files` is empty")
        return self


class Simulation(Section):
    """Settings shared by all simulated data sets; `scale` multiplies the number of events of each."""

    scale: Positive = 1.0
    multiparton: bool = False


class Data(Section):
    """Where the events are and how they are laid out."""

    format: Literal["nanoaod", "flat"]
    tree: str
    datasets: dict[Name, DataSet] = Field(min_length=1)
    folder: str = ""
    chunk: Count = 100_000
    generated: GeneratedSum | None = None
    sentinels: dict[str, float] = {}
    simulation: Simulation = Simulation()
    on_bad_file: Literal["stop", "skip"] = "stop"


class Identity(Section):
    """What makes an event unique within its sample. Without columns it is the file's base name and the entry."""

    columns: tuple[str, ...]
    duplicates: Literal["error", "drop", "keep"] = "error"


class CrossSection(Section):
    """A cross section in pb as the product of what was generated, a k-factor and a filter efficiency."""

    generated: Positive
    k_factor: Positive = 1.0
    filter_efficiency: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def value(self) -> float:
        """σ = generated · k · filter efficiency, in pb."""
        return self.generated * self.k_factor * self.filter_efficiency


class SumTo(Section):
    """Scale a process's weights so that they sum to a number before any selection."""

    sum_to: Positive


class Process(Section):
    """What was simulated (or, for collision data, recorded)."""

    data: tuple[Name, ...] = Field(min_length=1)
    title: str = ""
    color: str | None = None
    where: dict[str, int | float] = {}
    normalisation: Literal["cross_section", "as_is"] | SumTo = "as_is"
    cross_section: CrossSection | Positive | None = None

    @model_validator(mode="after")
    def _has_cross_section(self) -> Process:
        if (self.normalisation == "cross_section") != (self.cross_section is not None):
            raise ValueError("`normalisation: cross_section` and the key `cross_section` need each other")
        return self

    @property
    def picobarn(self) -> float | None:
        """The cross section in pb, if there is one."""
        section = self.cross_section
        return section.value if isinstance(section, CrossSection) else section


class Classes(Section):
    """What the network separates: each class is a group of processes; one of them is the signal."""

    signal: Name
    processes: dict[Name, tuple[Name, ...]] = Field(min_length=2)
    soft_labels: dict[Name, Name] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Classes:
        if self.signal not in self.processes:
            raise ValueError(f"the signal {self.signal!r} is not a class. {nearest(self.signal, self.processes)}")
        seen: dict[str, str] = {}
        for name, members in self.processes.items():
            if not members:
                raise ValueError(f"class {name!r} has no processes")
            for process in members:
                if process in seen:
                    raise ValueError(f"process {process!r} is in two classes, {seen[process]!r} and {name!r}")
                seen[process] = name
        for name in self.soft_labels:
            if name not in self.processes:
                raise ValueError(f"soft_labels names {name!r}, which is no class. {nearest(name, self.processes)}")
        if self.soft_labels and len(self.soft_labels) < len(self.processes) - 1:
            raise ValueError(
                f"soft_labels has functions for {', '.join(self.soft_labels)}; one is expected for each class, or for "
                "all but one, which has the rest"
            )
        return self


class Selection(Section):
    """Names of functions of `physics.py` that return a bool per event."""

    cuts: tuple[Name, ...] = ()
    training_cuts: tuple[Name, ...] = ()
    categories: dict[Name, Name] = {}


class Weights(Section):
    """Physics weights: luminosity in fb⁻¹, generator-weight branch, and factors (functions of `physics.py`)."""

    luminosity: Positive | None = None
    generator: str | None = None
    factors: tuple[Name, ...] = ()


class Folds(Section):
    """How events are divided. The folds' salt may be tuned, the test's never."""

    count: Annotated[int, Field(ge=2)] = 5
    scheme: Literal["rotating", "standard"] = "rotating"
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    salt: int | str = 0
    test_salt: str = "eventfold"
    minimum: Count = 50

    @model_validator(mode="after")
    def _enough(self) -> Folds:
        if self.scheme == "rotating" and self.count < 3:
            raise ValueError(f"rotating folds need a count of at least 3, not {self.count}")
        return self


class HistogramSettings(Section):
    """Binning of the signal-score histograms."""

    bins: Annotated[int, Field(ge=2)] = 20


class UpDown(Section):
    """What stands for one standard deviation up, and for one down unless that is the mirror image."""

    up: Name
    down: Name | None = None


class GeneratedSums(Section):
    """Where files keep the sums of the weights that `up` and `down` give."""

    up: GeneratedSum
    down: GeneratedSum | None = None


class NuisanceSettings(Section):
    """A systematic uncertainty: of yields alone (`norm`), by other weights, shifted events or another simulation.

    Attributes:
        norm: Log-normal, of yields: its relative size, or the factors one standard deviation down and up.
        weight: Functions that return what the weight of each event is multiplied with.
        shift: Functions that return shifted branches or collections.
        generated: Of `weight`: where files keep the sums of varied generator weights from before any skim.
        sample: Processes that are simulated in another way and stand for the one of `processes`.
        processes: What it is an uncertainty of; by default all that are simulated.
        correlated: Over what one parameter is shared: everything, nothing, or processes or categories alone.
        changes_norm: Whether weights or another sample change the yields before any selection too; else they keep them.
        symmetrise: Whether both sides get half their difference.
        smooth: Whether the ratio to the nominal template is smoothed over the bins.
        prune: Smallest relative effect that is kept, of the yield and of the shape of each process.
    """

    norm: Annotated[float, Field(gt=0, lt=1)] | tuple[Positive, Positive] | None = None
    weight: UpDown | None = None
    generated: GeneratedSums | None = None
    shift: UpDown | None = None
    sample: UpDown | None = None
    processes: tuple[Name, ...] = ()
    correlated: bool | tuple[Literal["processes", "categories"], ...] = True
    changes_norm: bool = False
    symmetrise: bool = False
    smooth: bool = False
    prune: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _one_kind(self) -> NuisanceSettings:
        kinds = [key for key in ("norm", "weight", "shift", "sample") if getattr(self, key) is not None]
        if len(kinds) != 1:
            found = f"found {' and '.join(kinds)}" if kinds else "found none of them"
            raise ValueError(f"expected one of `norm`, `weight`, `shift` and `sample`, {found}")
        if self.changes_norm and self.weight is None and self.sample is None:
            raise ValueError("`changes_norm` is of variations by `weight` and `sample`, leave it out")
        if self.generated is not None:
            if self.weight is None or self.changes_norm:
                raise ValueError("`generated` is what a variation by `weight` is normalised by, unless `changes_norm`")
            if (self.generated.down is None) != (self.weight.down is None):
                raise ValueError("`weight` and `generated` need the same keys, `up` and perhaps `down`")
        if self.sample is not None and len(self.processes) != 1:
            raise ValueError("`sample` stands for one process: `processes` names it, and no other")
        if self.norm is not None:
            given = [key for key in ("symmetrise", "smooth", "prune") if getattr(self, key)]
            if given:
                raise ValueError(f"`{given[0]}` is of templates, and `norm` varies none: leave it out")
        sides = self.sides
        if sides and sides.up == sides.down:
            raise ValueError(f"up and down are both {sides.up!r}; for a mirror image leave `down` out")
        if self.symmetrise and sides and sides.down is None:
            raise ValueError("`symmetrise` needs `down`: without it, down is the mirror image of up already")
        return self

    @property
    def factors(self) -> tuple[float, float]:
        """Factors of the yields, down and up; those of a size are each other's inverse."""
        if self.norm is None:
            raise ValueError("it is no uncertainty of yields alone")
        return (1 / (1 + self.norm), 1 + self.norm) if isinstance(self.norm, float) else self.norm

    @property
    def sides(self) -> UpDown | None:
        """The functions or processes of a variation; None for an uncertainty of yields alone."""
        return self.weight or self.shift or self.sample

    @property
    def kind(self) -> Literal["norm", "weight", "shift", "sample"]:
        """The way in which it is declared."""
        if self.sides is None:
            return "norm"
        return "weight" if self.weight else "shift" if self.shift else "sample"

    @property
    def names(self) -> tuple[str, ...]:
        """The functions or processes of a variation, one or two."""
        return tuple(name for name in (self.sides.up, self.sides.down) if name) if self.sides else ()

    def shared(self, axis: Literal["processes", "categories"]) -> bool:
        """Whether one parameter is shared over all processes, or over all categories."""
        return self.correlated if isinstance(self.correlated, bool) else axis in self.correlated


class Outputs(Section):
    """What is written at the end: histograms, likelihood model, blinding, bootstrap replicas."""

    histogram: HistogramSettings = HistogramSettings()
    channels: tuple[Name, ...] = ()
    friends: Literal["ttree", "rntuple"] = "ttree"
    style: Literal["plain", "CMS", "ATLAS", "LHCb"] = "plain"
    label: str = ""
    templates: Literal["ensemble", "routed"] = "ensemble"
    nuisances: dict[Name, NuisanceSettings] = {}
    blind_above: Annotated[float, Field(ge=0, le=1)] | None = 0.8
    replicas: Annotated[int, Field(ge=1000)] = 1000


class Configuration(Section):
    """`analysis.yaml` as a whole."""

    name: Name
    data: Data
    identity: Identity
    processes: dict[Name, Process] = Field(min_length=2)
    classes: Classes
    features: dict[Name, tuple[Name, ...]] = Field(min_length=1)
    title: str = ""
    seed: Annotated[int, Field(ge=0)] = 1
    selection: Selection = Selection()
    spectators: tuple[Name, ...] = ()
    targets: dict[Name, TargetSettings] = {}
    weights: Weights = Weights()
    folds: Folds = Folds()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    tuning: TuningSettings = TuningSettings()
    outputs: Outputs = Outputs()

    @model_validator(mode="before")
    @classmethod
    def _flat_space(cls, content: Any) -> Any:
        """Take keys of `tuning.space` as nested mappings too, which is what `--set` makes of them."""
        tuning = content.get("tuning") if isinstance(content, dict) else None
        if not isinstance(tuning, dict) or not isinstance(tuning.get("space"), dict):
            return content
        flat: dict[str, Any] = {}
        for key, value in tuning["space"].items():
            nested = isinstance(value, dict) and value and all(isinstance(inner, dict) for inner in value.values())
            flat |= {f"{key}.{name}": inner for name, inner in value.items()} if nested else {key: value}
        return {**content, "tuning": {**tuning, "space": flat}}

    @model_validator(mode="after")
    def _space_fits(self) -> Configuration:
        """Check the types of what is tuned; a combination that is refused shows when it is proposed."""
        for key, parameter in self.tuning.space.items():
            section, _, name = key.partition(".")
            hint = get_type_hints(ModelSettings if section == "model" else TrainingSettings)[name]
            if parameter.choices is None:
                if not {int, float} & set(_options(hint)):
                    raise ValueError(f"key tuning.space.{key}: a range is for numbers; expected choices")
                continue
            for choice in parameter.choices:
                try:
                    TypeAdapter(hint).validate_python(
                        choice, strict=isinstance(choice, bool) and bool not in _options(hint)
                    )
                except ValidationError as error:
                    problem = error.errors()[0]["msg"]
                    raise ValueError(
                        f"key tuning.space.{key}.choices: {choice!r} is no value of {key}: {problem}"
                    ) from None
        return self

    @model_validator(mode="after")
    def _processes_fit(self) -> Configuration:
        for name, process in self.processes.items():
            for dataset in process.data:
                if dataset not in self.data.datasets:
                    hint = nearest(dataset, self.data.datasets)
                    raise ValueError(
                        f"key processes.{name}.data names {dataset!r}, which is not in data.datasets. {hint}"
                    )
            if process.normalisation == "cross_section" and self.weights.luminosity is None:
                raise ValueError(
                    f"key weights.luminosity is missing: process {name!r} is normalised by its cross section"
                )
            recorded = [dataset for dataset in process.data if self.data.datasets[dataset].collision]
            if recorded and len(recorded) < len(process.data):
                raise ValueError(
                    f"key processes.{name}.data mixes collision data ({', '.join(recorded)}) with simulation: make two "
                    "processes of them"
                )
            if recorded and process.normalisation != "as_is":
                raise ValueError(f"key processes.{name}.normalisation: collision data are never scaled, leave it out")
        return self

    @model_validator(mode="after")
    def _classes_fit(self) -> Configuration:
        for name, members in self.classes.processes.items():
            for process in members:
                if process not in self.processes:
                    hint = nearest(process, self.processes)
                    raise ValueError(
                        f"key classes.processes.{name} names {process!r}, which is not in processes. {hint}"
                    )
                if self.is_collision(process):
                    raise ValueError(
                        f"key classes.processes.{name} names {process!r}, which holds collision data: they have no "
                        "truth to train on"
                    )
        return self

    @model_validator(mode="after")
    def _samples_fit(self) -> Configuration:
        """Check the processes that stand for others in `outputs.nuisances`."""
        for name, nuisance in self.outputs.nuisances.items():
            for process in nuisance.names if nuisance.sample else ():
                key = f"key outputs.nuisances.{name}.sample names {process!r}"
                if process not in self.processes:
                    raise ValueError(f"{key}, which is no process. {nearest(process, self.processes)}")
                if self.is_collision(process):
                    raise ValueError(f"{key}, which is collision data; another simulation is needed")
                if self.class_of(process) >= 0:
                    raise ValueError(
                        f"{key}, which belongs to a class; a process that only stands for others is needed"
                    )
        return self

    @model_validator(mode="after")
    def _nuisances_fit(self) -> Configuration:
        simulated = self.simulated
        if "data_obs" in simulated:
            raise ValueError("key processes.data_obs: this is what histograms of data are called, choose another name")
        # Histograms of all events are called as in a likelihood of one channel, whether that is built or not.
        channels = {category: self.parameters(category) for category in (None, *self.outputs.channels)}
        owners: dict[str, set[tuple[str, ...]]] = {}
        for category, own in channels.items():
            for key, parameters in own.items():
                apart = () if self.outputs.nuisances[key].shared("categories") else (category or "",)
                for parameter, processes in parameters.items():
                    owners.setdefault(parameter, set()).add((key, *processes, *apart))
        if twice := sorted(name for name, found in owners.items() if len(found) > 1):
            raise ValueError(f"key outputs.nuisances: two parameters would be called {twice[0]!r}; rename one")
        for own in channels.values():
            varied = [(p, process) for parameters in own.values() for p in parameters for process in parameters[p]]
            templates = [f"{process}_{parameter}{side}" for parameter, process in varied for side in ("Up", "Down")]
            templates += [*self.processes, "data_obs"]
            if twice := sorted({name for name in templates if templates.count(name) > 1}):
                raise ValueError(
                    f"key outputs.nuisances: two templates would be called {twice[0]!r}; rename a nuisance"
                )
        kinds = {"weight": self.weight_variations, "shift": self.shifts, "sample": self.alternatives}
        for one, other in itertools.combinations(kinds, 2):
            if both := sorted(kinds[one].keys() & kinds[other].keys()):
                raise ValueError(
                    f"key outputs.nuisances: {both[0]!r} is under `{one}` and under `{other}`; it can't be both"
                )
        for name, nuisance in self.outputs.nuisances.items():
            if name in ("mu", "r") or name.startswith("staterror"):
                raise ValueError(
                    f"key outputs.nuisances.{name}: the model has a parameter of this name, choose another"
                )
            for process in nuisance.processes:
                if process not in simulated:
                    reason = "only stands for another one" if process in self.alternatives else "is not simulated"
                    raise ValueError(
                        f"key outputs.nuisances.{name}.processes names {process!r}, which {reason}. "
                        f"{nearest(process, simulated)}"
                    )
        return self

    @model_validator(mode="after")
    def _varied_sums_fit(self) -> Configuration:
        """Check that sums of varied weights stand beside those of nominal ones."""
        for name, nuisance in self.outputs.nuisances.items():
            if nuisance.generated is None:
                continue
            for dataset in self.datasets_of(nuisance.processes or self.simulated):
                if self.generated_of(dataset) is None:
                    raise ValueError(
                        f"key outputs.nuisances.{name}.generated: data set {dataset!r} declares no sum of its nominal "
                        "weights. Declare it too (data.generated), or leave this key out."
                    )
        for one, other in itertools.combinations(self.outputs.nuisances.values(), 2):
            for function in set(one.names if one.weight else ()) & set(other.names if other.weight else ()):
                if one.generated != other.generated:
                    raise ValueError(
                        f"key outputs.nuisances: {function!r} is under `weight` twice, with different `generated`; "
                        "give both the same"
                    )
        return self

    @model_validator(mode="after")
    def _channels_fit(self) -> Configuration:
        channels, categories = self.outputs.channels, self.selection.categories
        for name in channels:
            if name not in categories:
                raise ValueError(
                    f"key outputs.channels names {name!r}, which is none of selection.categories. "
                    f"{nearest(name, categories)}"
                )
        if len(set(channels)) < len(channels):
            raise ValueError("key outputs.channels names a category twice")
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> Configuration:
        classes, size = len(self.classes.processes), self.training.batch_size
        if self.training.sampling == "balanced" and size != "all" and size < classes:
            raise ValueError(
                f"key training.batch_size: {size}; balanced batches hold each of the {classes} "
                "classes, so that they need at least as many events"
            )
        return self

    @model_validator(mode="after")
    def _pruning_fits(self) -> Configuration:
        try:
            check_pruning(self.model, self.training)
        except ValueError as error:
            raise ValueError(f"keys model and training.pruning: {error}") from None
        return self

    @model_validator(mode="after")
    def _weights_fit(self) -> Configuration:
        for name in self.training.flatten:
            if name not in (*self.feature_names, *self.spectators):
                hint = nearest(name, (*self.feature_names, *self.spectators))
                raise ValueError(
                    f"key training.flatten names {name!r}, which is neither in features nor in spectators. {hint}"
                )
        try:
            self.training.check_classes(self.class_names)
        except ValueError as error:
            raise ValueError(f"key training.{error}") from None
        return self

    @model_validator(mode="after")
    def _datasets_fit(self) -> Configuration:
        generators: dict[str, str] = {}
        for name, dataset in self.data.datasets.items():
            owners = self.processes_of(name)
            if not owners:
                raise ValueError(f"key data.datasets.{name}: this data set belongs to no process")
            if self.generated_of(name) is not None and (len(owners) > 1 or self.processes[owners[0]].where):
                raise ValueError(
                    f"key data.datasets.{name}: it has a sum of generated weights (`generated`), but its events are "
                    f"divided among processes {list(owners)}: the sum can't be"
                )
            if dataset.simulate is not None:
                other = generators.setdefault(dataset.simulate.process, name)
                if other != name:
                    raise ValueError(
                        f"key data.datasets.{name}.simulate: {other!r} simulates {dataset.simulate.process!r} already, "
                        "and the same seeds would give the same events; raise its `events` and `parts` instead"
                    )
        return self

    @model_validator(mode="after")
    def _features_fit(self) -> Configuration:
        listed = (*self.feature_names, *self.spectators)
        for name in listed:
            if listed.count(name) > 1:
                raise ValueError(f"keys features and spectators: {name!r} is listed more than once")
        if not self.feature_names:
            raise ValueError("key features: no feature is listed")
        return self

    @model_validator(mode="after")
    def _inputs_fit(self) -> Configuration:
        moved = () if self.training.augmentation is None else self.training.augmentation.features
        named = [("model.inputs.features", name) for name in self.model.inputs.features]
        for key, name in (*named, *(("training.augmentation", name) for name in moved)):
            if name not in self.feature_names:
                said = "is a spectator, which the network does not see" if name in self.spectators else "is no feature"
                raise ValueError(f"key {key} names {name!r}, which {said}. {nearest(name, self.feature_names)}")
        return self

    @model_validator(mode="after")
    def _targets_fit(self) -> Configuration:
        seen = [target.function for target in self.targets.values()]
        named = [(f"targets.{name}.function", target.function) for name, target in self.targets.items()]
        named += [(f"classes.soft_labels.{name}", function) for name, function in self.classes.soft_labels.items()]
        for key, function in named:
            if function in self.feature_names:
                raise ValueError(f"key {key}: {function!r} is a feature, so that the network would see what it learns")
        for function in seen:
            if seen.count(function) > 1:
                raise ValueError(f"key targets: two of them are of the function {function!r}")
        outputs = [*self.target_outputs, *(f"score_{name}" for name in self.class_names)]
        for name in outputs:
            if outputs.count(name) > 1:
                raise ValueError(f"key targets: two outputs would be called {name!r} in the friend trees; rename one")
        for name in self.training.decorrelation:
            if name not in self.spectators:
                hint = nearest(name, self.spectators)
                raise ValueError(f"key training.decorrelation names {name!r}, which is none of the spectators. {hint}")
        if self.classes.soft_labels and self.training.label_noise:
            raise ValueError("key training.label_noise draws hard labels anew; 0 is expected with classes.soft_labels")
        if not self.targets and self.training.loss_weight == 0:
            raise ValueError("key training.loss_weight is 0, but there are no targets: nothing would be trained")
        return self

    @property
    def simulated(self) -> tuple[str, ...]:
        """Processes that are simulated, without those that only stand for others in `outputs.nuisances`."""
        return tuple(name for name in self.nominal if not self.is_collision(name))

    @property
    def nominal(self) -> tuple[str, ...]:
        """Processes, without those that only stand for others in `outputs.nuisances`."""
        others = {name for nuisance in self.outputs.nuisances.values() if nuisance.sample for name in nuisance.names}
        return tuple(name for name in self.processes if name not in others)

    def parameters(self, category: str | None = None) -> dict[str, dict[str, tuple[str, ...]]]:
        """For each of `outputs.nuisances`, the parameters that it stands for, and what each of them varies.

        Args:
            category: A channel of the likelihood; None for the one of all events.
        """
        found: dict[str, dict[str, tuple[str, ...]]] = {}
        for name, nuisance in self.outputs.nuisances.items():
            processes = nuisance.processes or self.simulated
            ending = "" if category is None or nuisance.shared("categories") else f"_{category}"
            if nuisance.shared("processes"):
                found[name] = {f"{name}{ending}": processes}
            else:
                found[name] = {f"{name}_{process}{ending}": (process,) for process in processes}
        return found

    @property
    def shifts(self) -> dict[str, tuple[str, ...]]:
        """Functions that shift events, and the processes that each of them varies."""
        return self._varied("shift")

    @property
    def varied_sums(self) -> dict[str, GeneratedSum]:
        """Where files keep the sums of weights that functions vary, by function, as far as that is declared."""
        found: dict[str, GeneratedSum] = {}
        for nuisance in self.outputs.nuisances.values():
            if nuisance.generated is not None:
                places = (nuisance.generated.up, nuisance.generated.down)
                found |= {name: place for name, place in zip(nuisance.names, places, strict=False) if place}
        return found

    @property
    def weight_variations(self) -> dict[str, tuple[str, ...]]:
        """Functions that vary weights, and the processes that each of them varies."""
        return self._varied("weight")

    @property
    def alternatives(self) -> dict[str, tuple[str, ...]]:
        """Processes that stand for others, and those that they stand for."""
        return self._varied("sample")

    def _varied(self, kind: Literal["weight", "shift", "sample"]) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for nuisance in self.outputs.nuisances.values():
            for name in nuisance.names if nuisance.kind == kind else ():
                own = {*found.get(name, ()), *(nuisance.processes or self.simulated)}
                found[name] = tuple(process for process in self.processes if process in own)
        return found

    def datasets_of(self, processes: Sequence[str]) -> tuple[str, ...]:
        """Data sets that hold events of some processes."""
        return tuple(d for d in self.data.datasets if any(d in self.processes[p].data for p in processes))

    @property
    def target_outputs(self) -> tuple[str, ...]:
        """Names of the outputs of all regression targets, in the order of the network's."""
        return tuple(output for name, target in self.targets.items() for output in target.outputs(name))

    @property
    def soft_labels(self) -> tuple[str | None, ...]:
        """For each class the function of its probability; empty without soft labels."""
        labels = self.classes.soft_labels
        return tuple(labels.get(name) for name in self.class_names) if labels else ()

    @property
    def target_functions(self) -> tuple[str, ...]:
        """Functions of the regression targets, each once."""
        return tuple(dict.fromkeys(target.function for target in self.targets.values()))

    @property
    def truth(self) -> tuple[str, ...]:
        """What training needs of simulated events beside their features: functions, each once."""
        soft = [name for name in self.soft_labels if name is not None]
        flattened = [name for name in self.training.flatten if name in self.spectators]
        return tuple(dict.fromkeys([*self.target_functions, *soft, *self.training.decorrelated, *flattened]))

    @model_validator(mode="after")
    def _objects_fit(self) -> Configuration:
        model = self.model
        groups = {"pattern_objects": (model.pattern_objects or (),), "like_objects": model.like_objects or ()}
        for key, name in ((key, name) for key, own in groups.items() for group in own for name in group):
            if name not in self.features:
                hint = nearest(name, self.features)
                raise ValueError(f"key model.{key} names {name!r}, which is no object of features. {hint}")
        if model.missing == "deep_sets":
            kinds = alike(tuple(self.features), model.absence["like_objects"])
            if all(len(kind) == 1 for kind in kinds):
                raise ValueError(
                    "key model.missing: with deep_sets like objects share parameters, but no two names in features "
                    "differ in a number at the end; name those that are alike in model.like_objects"
                )
        return self

    @model_validator(mode="after")
    def _separate_fits(self) -> Configuration:
        if self.model.missing != "separate":
            return self
        more = {
            "targets": list(self.targets),
            "classes.soft_labels": list(self.classes.soft_labels),
            "training.decorrelation": list(self.training.decorrelated),
        }
        for key, found in more.items():
            if found:
                raise ValueError(
                    f"key {key}: the networks of model.missing: separate learn hard labels; expected none, found "
                    f"{', '.join(found)}"
                )
        if self.training.snapshots or self.training.combination == "weighted":
            raise ValueError(
                "keys training.snapshots and training.combination: with model.missing: separate, whose members are "
                "several networks, 0 and another one than weighted are expected"
            )
        if self.folds.scheme == "standard":
            raise ValueError(
                "key model.missing: separate networks are calibrated on the fold that they stop on, which with "
                "folds.scheme: standard is the one that they leave out; choose rotating"
            )
        return self

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Features in the order in which the network sees them."""
        return tuple(name for group in self.features.values() for name in group)

    @property
    def feature_objects(self) -> tuple[str, ...]:
        """The object of each feature, in the same order."""
        return tuple(obj for obj, group in self.features.items() for _ in group)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of the network's outputs."""
        return tuple(self.classes.processes)

    def class_of(self, process: str) -> int:
        """Index of the class that holds a process, or -1."""
        for index, members in enumerate(self.classes.processes.values()):
            if process in members:
                return index
        return -1

    def processes_of(self, dataset: str) -> tuple[str, ...]:
        """Names of the processes whose events a data set holds."""
        return tuple(name for name, process in self.processes.items() if dataset in process.data)

    def is_collision(self, process: str) -> bool:
        """Whether a process is collision data: recorded, not simulated."""
        return any(self.data.datasets[dataset].collision for dataset in self.processes[process].data)

    def training_datasets(self) -> tuple[str, ...]:
        """Data sets that belong to a class through one of their processes."""
        return tuple(d for d in self.data.datasets if any(self.class_of(p) >= 0 for p in self.processes_of(d)))

    def tree_of(self, dataset: str) -> str:
        """Name of the tree that holds a data set's events."""
        return self.data.datasets[dataset].tree or self.data.tree

    def generated_of(self, dataset: str) -> GeneratedSum | float | None:
        """Where the sum of all generated weights of a data set stands; None if its entries are all there is."""
        settings = self.data.datasets[dataset]
        if settings.collision:
            return None
        return settings.generated if settings.generated is not None else self.data.generated

    def sample_of(self, dataset: str) -> str:
        """The sample key: by default the data set's name."""
        return self.data.datasets[dataset].sample or dataset


def tried(config: Configuration, values: Mapping[str, Any]) -> Configuration:
    """A configuration with other values of some keys of `model` and `training`.

    Raises:
        ValueError: The combination makes no sense.
    """
    model, training = with_values(config.model, config.training, values)
    return Configuration.model_validate({**dict(config), "model": model, "training": training})


class Analysis:
    """A parsed analysis folder: its configuration and its physics functions."""

    def __init__(self, folder: Path, config: Configuration) -> None:
        self.folder = folder
        self.config = config

    @property
    def physics_path(self) -> Path:
        """The file with the user's functions."""
        return self.folder / "physics.py"

    @cached_property
    def physics(self) -> ModuleType:
        """The imported `physics.py`; imported on first use, since it may import heavy libraries."""
        return load_physics(self.physics_path)

    def check_functions(self, defined: Sequence[str]) -> None:
        """Check that every function that the configuration names is defined.

        Args:
            defined: The names that `physics.py` defines at module level.

        Raises:
            UserError: One is not; the key and the nearest names are given.
        """
        config = self.config
        named = [("selection.cuts", n) for n in config.selection.cuts]
        named += [("selection.training_cuts", n) for n in config.selection.training_cuts]
        named += [(f"selection.categories.{c}", n) for c, n in config.selection.categories.items()]
        named += [(f"features.{obj}", n) for obj, group in config.features.items() for n in group]
        named += [("spectators", n) for n in config.spectators]
        named += [("weights.factors", n) for n in config.weights.factors]
        nuisances = {name: own for name, own in config.outputs.nuisances.items() if not own.sample}
        named += [(f"outputs.nuisances.{name}", n) for name, own in nuisances.items() for n in own.names]
        named += [(f"targets.{name}.function", target.function) for name, target in config.targets.items()]
        named += [(f"classes.soft_labels.{name}", n) for name, n in config.classes.soft_labels.items()]
        for key, name in named:
            if name not in defined:
                hint = nearest(name, [d for d in defined if not d.startswith("_")])
                raise UserError(
                    f"{self.folder / 'analysis.yaml'}: key {key} names {name!r}, but {self.physics_path} has no such "
                    f"function. {hint} Write a function {name}(events), or correct the name."
                )


def load_physics(path: Path) -> ModuleType:
    """Import the physics functions of an analysis from their file.

    Raises:
        UserError: The file is missing or raises at import.
    """
    if path.is_relative_to(EXAMPLES):
        name = ".".join(("analysis", "examples", *path.relative_to(EXAMPLES).with_suffix("").parts))
    else:
        name = f"eventfold_physics_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.exists() or spec is None or spec.loader is None:
        raise UserError(f"{path} is missing: an analysis folder holds analysis.yaml and physics.py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"{path} could not be imported: {type(error).__name__}: {error}") from error
    return module


def find_folder(name: str) -> Path:
    """Find an analysis folder by the name of an example or by its path.

    Raises:
        UserError: Neither exists.
    """
    examples = sorted(p.parent.name for p in EXAMPLES.glob("*/analysis.yaml"))
    if name in examples:
        return EXAMPLES / name
    folder = Path(name).expanduser()
    if (folder / "analysis.yaml").is_file():
        return folder.resolve()
    if folder.is_dir():
        raise UserError(f"{folder} holds no analysis.yaml. An analysis folder has analysis.yaml and physics.py.")
    raise UserError(f"--analysis {name}: neither an example nor a folder. {nearest(name, examples)}")


def load_analysis(name: str, overrides: Sequence[str] = ()) -> Analysis:
    """Read, override and check an analysis.

    Args:
        name: An example's name or a folder.
        overrides: ``key.path=value`` strings; the values are YAML.

    Raises:
        UserError: Anything that the user can mend, naming file and key.
    """
    folder = find_folder(name)
    path = folder / "analysis.yaml"
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}, but a mapping of sections was expected.")
    for override in overrides:
        _apply(content, override)
    misplaced = _misplaced_booleans(Configuration, content, ())
    if misplaced:
        raise UserError(
            f"{path}: "
            + "; ".join(
                f"key {key} is {str(value).lower()}, but a number or a text was expected" for key, value in misplaced
            )
        )
    try:
        config = Configuration.model_validate(content)
    except ValidationError as error:
        raise UserError(_explain(path, error, overrides)) from error
    return Analysis(folder, config)


def data_folder(config: Configuration) -> Path | None:
    """The folder that relative file names start from, with environment variables expanded.

    Raises:
        UserError: A variable is not set, or the folder is not there.
    """
    text = config.data.folder
    if not text:
        return None
    expanded = os.path.expanduser(os.path.expandvars(text))
    if "$" in expanded:
        raise UserError(
            f"Analysis {config.name!r}: key data.folder is {text}, but that variable is not set. Export it as the "
            "folder of the downloaded files; docs/data.md says where they are published."
        )
    folder = Path(expanded)
    if not folder.is_dir():
        raise UserError(
            f"Analysis {config.name!r}: key data.folder is {text}, but the folder {folder} does not exist. "
            "docs/data.md says where the files are published."
        )
    return folder


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that occurs twice is an error: the first of the two would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} occurs twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _misplaced_booleans(annotation: Any, value: Any, steps: tuple[str, ...]) -> list[tuple[str, bool]]:
    """Keys that are true or false where the schema expects a number: Python would count them as 1 and 0."""
    if isinstance(value, bool):
        return [] if bool in _options(annotation) else [(".".join(steps), value)]
    found = []
    for option in _options(annotation):
        fields = _fields(option)
        if isinstance(value, dict) and fields is not None:
            for key in fields.keys() & value.keys():
                found += _misplaced_booleans(fields[key], value[key], (*steps, str(key)))
        elif isinstance(value, dict) and get_origin(option) in (dict, Mapping):
            for key, inner in value.items():
                found += _misplaced_booleans(get_args(option)[1], inner, (*steps, str(key)))
    return found


def _apply(content: dict[str, Any], override: str) -> None:
    """Set one key of the raw configuration from ``key.path=value``."""
    key, equals, text = override.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override!r}: expected KEY=VALUE, for example --set training.epochs=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override!r}: the value is not valid YAML: {error}") from error
    node = content
    for part in keys[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {override!r}: {part!r} holds the value {child!r} and no keys below it.")
        node = child
    node[keys[-1]] = value


_STRUCTURES = {
    "tuple_type": "a list, such as [one, two],",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "dataclass_type": "a mapping of keys to values",
}
"""What pydantic's types are called in YAML."""


def _explain(path: Path, error: ValidationError, overrides: Sequence[str]) -> str:
    """Turn pydantic's errors into sentences with file, key, found, expected and nearest name."""
    lines = []
    errors = error.errors()
    for item in errors:
        if _says_less(item, errors):
            continue
        steps = [str(s) for s in item["loc"] if not _is_union_label(s)]
        key = ".".join(steps) or "(top level)"
        kind, found = item["type"], item["input"]
        if kind in ("extra_forbidden", "unexpected_keyword_argument"):
            valid = _valid_keys(Configuration, steps[:-1])
            lines.append(f"unknown key {key}. {nearest(steps[-1], valid)}")
        elif kind in ("missing", "missing_argument"):
            lines.append(f"key {key} is missing")
        elif kind == "literal_error":
            expected = item["ctx"]["expected"]
            hint = nearest(str(found), expected.replace("'", "").replace(" or ", ", ").split(", "))
            lines.append(f"key {key} is {found!r}, but one of {expected} was expected. {hint}")
        elif kind == "value_error":
            lines.append(f"{'' if key == '(top level)' else f'key {key}: '}{item['ctx']['error']}")
        elif kind in _STRUCTURES:
            lines.append(f"key {key} is {found!r}, but {_STRUCTURES[kind]} was expected")
        else:
            lines.append(f"key {key} is {found!r}: {item['msg'][0].lower()}{item['msg'][1:]}")
    seen = list(dict.fromkeys(line.rstrip() for line in lines))
    where = f"{path}" + (f" with --set {' '.join(overrides)}" if overrides else "")
    return f"{where}: " + ("; ".join(seen))


def _says_less(item: Any, errors: Sequence[Any]) -> bool:
    """Whether this error is of a branch of a union that was not meant: a name in place of a mapping, or vice versa."""
    *place, label = item["loc"] or ("",)
    others = [other for other in errors if other is not item and list(other["loc"][: len(place)]) == place]
    other_branch = {"literal_error": dict, "dataclass_type": str}.get(item["type"], ())
    return bool(others) and _is_union_label(label) and isinstance(item["input"], other_branch)


def _is_union_label(step: int | str) -> bool:
    """Pydantic labels the branches of a union and the keys of a mapping; a user knows no such key."""
    return isinstance(step, str) and (
        step in {"[key]", "float", "int", "str", "GeneratedSum", "SumTo", "CrossSection", "FeatureInput"}
        or step.startswith(("literal[", "constrained-", "function-"))
    )


def _valid_keys(annotation: Any, steps: Sequence[str]) -> list[str]:
    """The keys that are valid at a place of the configuration."""
    for option in _options(annotation):
        fields = _fields(option)
        if fields is not None:
            if not steps:
                return list(fields)
            if steps[0] in fields:
                return _valid_keys(fields[steps[0]], steps[1:])
        elif get_origin(option) in (dict, Mapping) and steps:
            return _valid_keys(get_args(option)[1], steps[1:])
    return []


def _options(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [o for a in get_args(annotation) if a is not NoneType for o in _options(a)]
    return [annotation]


def _fields(annotation: Any) -> dict[str, Any] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {name: field.annotation for name, field in annotation.model_fields.items()}
    if isinstance(annotation, type) and hasattr(annotation, "__dataclass_fields__"):
        hints = get_type_hints(annotation)
        return {field.name: hints[field.name] for field in dataclasses.fields(annotation)}
    return None
