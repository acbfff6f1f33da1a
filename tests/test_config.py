"""The schema: what parses, and that every mistake is one sentence with file, key and nearest name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.config import EXAMPLES, Analysis, data_folder, load_analysis
from analysis.errors import UserError, nearest

VALID = """
name: toy
data:
  format: flat
  tree: events
  datasets:
    mixed: {files: [mixed.root]}
    data: {files: [data.root], collision: true, sample: era2016}
identity: {columns: [event]}
processes:
  top: {data: [mixed], where: {label: 0}}
  higgs: {data: [mixed], where: {label: 1}, normalisation: {sum_to: 692}}
  data: {data: [data]}
classes: {signal: signal, processes: {background: [top], signal: [higgs]}}
features: {event: [met, ht], jet1: [jet1_pt]}
"""

PHYSICS = "def met(events): return events.met\nht = jet1_pt = met\ndef _helper(x): return x\n"

MISSING = object()


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Analysis]:
    """Load the valid analysis with one key changed: `load("folds.count", 7)`."""

    def change(key: str = "", value: Any = None, overrides: tuple[str, ...] = ()) -> Analysis:
        content = copy.deepcopy(yaml.safe_load(VALID))
        if key:
            *path, last = key.split(".")
            node = content
            for part in path:
                node = node.setdefault(part, {})
            if value is MISSING:
                del node[last]
            else:
                node[last] = value
        (tmp_path / "analysis.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        (tmp_path / "physics.py").write_text(PHYSICS)
        return load_analysis(str(tmp_path), overrides)

    return change


def test_what_a_valid_file_means(load: Callable[..., Analysis]) -> None:
    config = load().config
    assert config.feature_names == ("met", "ht", "jet1_pt")
    assert config.feature_objects == ("event", "event", "jet1")
    assert config.class_names == ("background", "signal")
    assert [config.class_of(p) for p in ("top", "higgs", "data")] == [0, 1, -1]
    assert config.processes_of("mixed") == ("top", "higgs")
    assert config.training_datasets() == ("mixed",)
    assert (config.sample_of("mixed"), config.sample_of("data")) == ("mixed", "era2016")
    assert (config.folds.count, config.folds.scheme, config.identity.duplicates) == (5, "rotating", "error")


def test_configuration_is_frozen(load: Callable[..., Analysis]) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().config.seed = 2


def test_cross_section_is_a_product(load: Callable[..., Analysis]) -> None:
    overrides = (
        "weights.luminosity=59.7",
        "processes.top.normalisation=cross_section",
        "processes.top.cross_section={generated: 3.1, k_factor: 2.5, filter_efficiency: 0.5}",
    )
    assert load(overrides=overrides).config.processes["top"].picobarn == pytest.approx(3.1 * 2.5 * 0.5)
    plain = (*overrides[:2], "processes.top.cross_section=4")
    assert load(overrides=plain).config.processes["top"].picobarn == 4


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("feature", {"event": ["met"]}, "'features'"),
        ("data.tre", "events", "'tree'"),
        ("data.datasets.mixed.file", ["a.root"], "'files'"),
        ("processes.higgs.titel", "H", "'title'"),
        ("folds.test_fracton", 0.3, "'test_fraction'"),
        ("training.epoch", 5, "'epochs'"),
        ("training.beta_1", 0.8, "'beta1'"),
        ("model.activaton", "relu", "'activation'"),
        ("model.inputs.defalt", "robust", "'default'"),
        ("training.augmentation.rotatin", True, "'rotation'"),
        ("outputs.histogram.bin", 10, "'bins'"),
    ],
)
def test_unknown_key_suggests_the_nearest(
    load: Callable[..., Analysis], tmp_path: Path, key: str, value: Any, hint: str
) -> None:
    with pytest.raises(UserError) as raised:
        load(key, value)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'analysis.yaml'}: unknown key {key}. Did you mean ")
    assert "__" not in message
    assert hint in message


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        # wrong type or value: the key, what was found, what was expected
        ("training.epochs", "many", "key training.epochs is 'many': input should be a valid integer"),
        ("folds.count", 1.5, "key folds.count is 1.5: input should be a valid integer"),
        ("features.event", "met", "key features.event is 'met', but a list, such as [one, two], was expected"),
        ("model.hidden", 3, "key model.hidden is 3, but a list"),
        ("training", 5, "key training is 5, but a mapping of keys to values was expected"),
        ("title", 5, "key title is 5: input should be a valid string"),
        ("data.sentinels", {"met": "x"}, "key data.sentinels.met is 'x': input should be a valid number"),
        ("weights.luminosity", float("nan"), "key weights.luminosity is nan: input should be a finite number"),
        ("weights.luminosity", -1, "key weights.luminosity is -1: input should be greater than 0"),
        ("processes.higgs.normalisation", {"sum_to": -3}, "key processes.higgs.normalisation.sum_to is -3"),
        ("selection.categories", {"1l": "met"}, "key selection.categories.1l is '1l'"),
        ("training.epochs", 0, "key training: epochs is 0; expected at least 1"),
        ("training.optimiser", "sdg", "'nadam' was expected. Did you mean 'sgd'?"),
        ("training.batch_size", 0, "key training: batch_size is 0; expected at least 1, or all"),
        ("training.momentum", 0.9, "key training: momentum is 0.9, but optimiser adamw has no such constant"),
        ("training.focal_gamma", 1.0, "key training: focal_gamma is 1.0, but loss cross_entropy has no such constant"),
        (
            "model.initial_constant",
            1.0,
            "key model: initial_constant is 1.0, but initialisation auto has no such constant",
        ),
        ("training.beta1", True, "key training.beta1 is true, but a number or a text was expected"),
        ("training.schedule_every", 2.5, "key training.schedule_every is 2.5"),
        ("training.schedule_milestones", 3, "key training.schedule_milestones is 3, but a list"),
        (
            "training",
            {"sampling": "balanced", "batch_size": 1},
            "key training.batch_size: 1; balanced batches hold each of the 2 classes",
        ),
        ("folds.count", 2, "key folds: rotating folds need a count of at least 3, not 2"),
        ("training.epochs", True, "key training.epochs is true, but a number or a text was expected"),
        ("data.sentinels", {"met": True}, "key data.sentinels.met is true"),
        ("model.inputs", {"features": {"met": {"kind": "angle", "dimension": 3}}}, "expected none, as kind is not"),
        ("model.inputs", {"features": {"mett": "angle"}}, "names 'mett', which is no feature. Did you mean 'met'?"),
        ("model.embedding_bins", 4, "key model: embedding_bins is 4, but embedding none has no such constant"),
        ("training.augmentation", {"rotation": True}, "key training.augmentation: rotation is True; expected some"),
        (
            "training.augmentation",
            {"reflection_z": True, "longitudinal": ["etta"]},
            "key training.augmentation names 'etta', which is no feature.",
        ),
        # wrong literal: the choices and the nearest
        ("model.inputs", {"features": {"met": "angel"}}, "key model.inputs.features.met is 'angel', but one of"),
        ("model.inputs", {"features": {"met": 3}}, "key model.inputs.features.met is 3, but one of"),
        ("model.inputs", {"default": "robst"}, "Did you mean 'robust'?"),
        ("folds.scheme", "rotatin", "one of 'rotating' or 'standard' was expected. Did you mean 'rotating'?"),
        ("model.activation", "sillu", "Did you mean 'silu' or 'selu'?"),
        ("identity.duplicates", "dorp", "key identity.duplicates is 'dorp'"),
        ("processes.higgs.normalisation", "cross_sction", "Did you mean 'cross_section'?"),
        # something is missing or there twice
        ("classes", MISSING, "key classes is missing"),
        ("data.tree", MISSING, "key data.tree is missing"),
        ("data.datasets.mixed", {}, "key data.datasets.mixed: give either `files` or `simulate`"),
        ("data.datasets.mixed", {"files": []}, "key data.datasets.mixed: `files` is empty"),
        ("data.generated", {"tree": "Runs"}, "key data.generated: give either `tree` and `branch`, or `histogram`"),
        (
            "training.flatten",
            ["mett"],
            "key training.flatten names 'mett', which is neither in features nor in spectators",
        ),
        ("training.down_sampling", {"signl": 0.5}, "key training.down_sampling is 'signl'; expected names of classes"),
        ("training.shares", {"signal": 0.5}, "key training: shares is {'signal': 0.5}, but sampling plain has no such"),
        ("spectators", ["met"], "keys features and spectators: 'met' is listed more than once"),
        # names that belong to nothing
        ("classes.signal", "signl", "key classes: the signal 'signl' is not a class. Did you mean 'signal'?"),
        (
            "classes.processes.signal",
            ["higs"],
            "key classes.processes.signal names 'higs', which is not in processes. Did you mean 'higgs'?",
        ),
        (
            "outputs.nuisances",
            {"x": {"norm": 0.1, "processes": ["tops"]}},
            "key outputs.nuisances.x.processes names 'tops', which is not simulated. Did you mean 'top'?",
        ),
        (
            "outputs.nuisances",
            {"mu": {"norm": 0.1}},
            "key outputs.nuisances.mu: the model has a parameter of this name",
        ),
        ("outputs.nuisances", {"x": {"norm": 1.5}}, "key outputs.nuisances.x.norm"),
        ("classes.processes.signal", ["higgs", "top"], "key classes: process 'top' is in two classes"),
        (
            "processes.top.data",
            ["mixd"],
            "key processes.top.data names 'mixd', which is not in data.datasets. Did you mean 'mixed'?",
        ),
        ("data.datasets.spare", {"files": ["a.root"]}, "key data.datasets.spare: this data set belongs to no process"),
        # what has no meaning
        ("classes.processes.signal", ["higgs", "data"], "names 'data', which holds collision data"),
        ("data.datasets.mixed.generated", 7.5, "key data.datasets.mixed: it has a sum of generated weights"),
        ("processes.top.normalisation", "cross_section", "key processes.top: `normalisation: cross_section` and"),
        (
            "processes.data.normalisation",
            {"sum_to": 7},
            "key processes.data.normalisation: collision data are never scaled",
        ),
        ("processes.data.data", ["data", "mixed"], "key processes.data.data mixes collision data (data) with"),
        ("processes.top.cross_section", 3.0, "key processes.top: `normalisation: cross_section` and"),
    ],
)
def test_mistakes_name_file_and_key(
    load: Callable[..., Analysis], tmp_path: Path, key: str, value: Any, said: str
) -> None:
    with pytest.raises(UserError) as raised:
        load(key, value)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'analysis.yaml'}: ")
    assert said in message
    assert "\n" not in message


def test_of_a_choice_of_forms_only_the_one_that_was_meant_is_spoken_of(load: Callable[..., Analysis]) -> None:
    """A name, or a mapping of keys to values."""
    with pytest.raises(UserError) as by_name:
        load("model.inputs", {"features": {"met": "angel"}})
    assert "mapping" not in str(by_name.value)
    with pytest.raises(UserError) as by_mapping:
        load("model.inputs", {"features": {"met": {"kind": "robust", "dimension": 3}}})
    assert "one of 'standardise'" not in str(by_mapping.value)


def test_cross_section_needs_a_luminosity(load: Callable[..., Analysis]) -> None:
    process = {"data": ["mixed"], "where": {"label": 0}, "normalisation": "cross_section", "cross_section": 3.0}
    with pytest.raises(UserError, match=r"analysis\.yaml: key weights\.luminosity is missing: process 'top'"):
        load("processes.top", process)


def test_all_mistakes_are_said_at_once(load: Callable[..., Analysis]) -> None:
    with pytest.raises(UserError) as raised:
        load("training", {"epoch": 5, "batch_size": "big"})
    assert "unknown key training.epoch." in str(raised.value)
    assert "key training.batch_size is 'big'" in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("features.jet1", ["jet1_tp"]),
        ("spectators", ["jet1_tp"]),
        ("selection.cuts", ["jet1_tp"]),
        ("selection.training_cuts", ["jet1_tp"]),
        ("selection.categories.one", "jet1_tp"),
        ("weights.factors", ["jet1_tp"]),
    ],
)
def test_a_name_without_a_function(load: Callable[..., Analysis], tmp_path: Path, key: str, value: Any) -> None:
    analysis = load(key, value)
    with pytest.raises(UserError) as raised:
        analysis.check_functions(["met", "ht", "jet1_pt", "_jet1_tp"])
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'analysis.yaml'}: key {key} names 'jet1_tp', but ")
    assert f"{tmp_path / 'physics.py'} has no such function. Did you mean 'jet1_pt'?" in message


def test_override_sets_one_key(load: Callable[..., Analysis]) -> None:
    overrides = ("training.epochs=5", "model.hidden=[8, 4]", "training.learning_rate=1e-3", "outputs.blind_above=null")
    config, plain = load(overrides=overrides).config, load().config
    assert (config.training.epochs, config.model.hidden, config.training.learning_rate) == (5, (8, 4), 1e-3)
    assert config.outputs.blind_above is None
    assert plain.training.epochs != 5
    assert config.data == plain.data


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.epoch=5", "analysis.yaml with --set training.epoch=5: unknown key training.epoch."),
        ("trainig.epochs=5", "unknown key trainig. Did you mean 'training'"),
        ("training.epochs", "expected KEY=VALUE"),
        ("=5", "expected KEY=VALUE"),
        ("training.epochs=[", "the value is not valid YAML"),
        ("name.first=5", "'name' holds the value 'toy' and no keys below it"),
    ],
)
def test_wrong_overrides(load: Callable[..., Analysis], override: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        load(overrides=(override,))
    assert said in str(raised.value)
    assert f"--set {override}" in str(raised.value).replace("'", "", 2)


def test_data_folder_expands_variables(
    load: Callable[..., Analysis], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load("data.folder", "${TOY_FOLDER}/events").config
    monkeypatch.delenv("TOY_FOLDER", raising=False)
    with pytest.raises(UserError, match=r"key data\.folder is \$\{TOY_FOLDER\}/events, but that variable is not set"):
        data_folder(config)
    monkeypatch.setenv("TOY_FOLDER", str(tmp_path))
    with pytest.raises(UserError, match=r"key data\.folder .* the folder .*/events does not exist"):
        data_folder(config)
    (tmp_path / "events").mkdir()
    assert data_folder(config) == tmp_path / "events"
    assert data_folder(load().config) is None


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no analysis\.yaml"):
        load_analysis(str(tmp_path))
    with pytest.raises(UserError, match=r"higsml: neither an example nor a folder\. Did you mean 'higgsml'\?"):
        load_analysis("higsml")
    (tmp_path / "analysis.yaml").write_text("name: [")
    with pytest.raises(UserError, match=r"analysis\.yaml is not valid YAML"):
        load_analysis(str(tmp_path))
    (tmp_path / "analysis.yaml").write_text("name: a\nseed: 1\nname: b\n")
    with pytest.raises(UserError, match=r"analysis\.yaml is not valid YAML: key 'name' occurs twice"):
        load_analysis(str(tmp_path))
    (tmp_path / "analysis.yaml").write_text("- name")
    with pytest.raises(UserError, match=r"analysis\.yaml holds list, but a mapping"):
        load_analysis(str(tmp_path))


def test_physics_that_can_not_be_imported(load: Callable[..., Analysis], tmp_path: Path) -> None:
    analysis = load()
    (tmp_path / "physics.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match=r"physics\.py could not be imported: ZeroDivisionError: division by zero"):
        _ = analysis.physics
    (tmp_path / "physics.py").unlink()
    with pytest.raises(UserError, match=r"physics\.py is missing"):
        _ = analysis.physics
    (tmp_path / "physics.py").write_text(PHYSICS)
    assert callable(analysis.physics.met)


@pytest.mark.parametrize("folder", sorted(p.parent for p in EXAMPLES.glob("*/analysis.yaml")), ids=lambda p: p.name)
def test_examples_are_valid(folder: Path) -> None:
    analysis = load_analysis(folder.name)
    assert analysis.config.name == folder.name
    analysis.check_functions(dir(analysis.physics))
    for name in analysis.config.feature_names:
        assert callable(getattr(analysis.physics, name))
        assert analysis.physics.__dict__[name].label


def test_nearest() -> None:
    assert nearest("epoch", ["epochs", "seed"]) == "Did you mean 'epochs'?"
    assert nearest("xyz", ["a", "b"]) == "Valid names: a, b."
    assert nearest("xyz", [f"n{i:02}" for i in range(13)]).endswith("n11, ….")
    assert nearest("xyz", []) == ""


def test_optimiser_schedule_and_averaging_with_their_constants(load: Callable[..., Analysis]) -> None:
    training = {
        "optimiser": "sgd",
        "momentum": 0.9,
        "nesterov": True,
        "batch_size": "all",
        "schedule": "multi_step",
        "schedule_milestones": [10, 20],
        "averaging": "swa",
        "averaging_start": 0.5,
        "warm_up": 2,
    }
    found = load("training", training).config.training
    assert found.constants == {"momentum": 0.9, "nesterov": 1.0, "weight_decay": 0.0}
    assert found.course == {"schedule_milestones": (10, 20), "schedule_factor": 0.1}
    assert found.average == {"averaging_start": 0.5}
    assert (found.batch_size, found.warm_up) == ("all", 2)
