"""What a step declares is what it reads: each field of each slice, and nothing beside them."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import luigi
import pytest

import workflow.tasks
from analysis.config import Configuration
from models.settings import CONSTANTS
from tests.toy import toy
from workflow.base import Given, Task
from workflow.lineage import walk
from workflow.tasks import LearningCurve, Report, SelectEvents

STEPS = [getattr(workflow.tasks, name) for name in workflow.tasks.__all__]
STEPS = [step for step in STEPS if issubclass(step, Task)]

# Every network is one of so many, and none knows how many or how they are combined: a slice holds 1 and "mean" always.
CONSTANT = {"TrainingSettings.members", "TrainingSettings.combination"}

IDLE = {name for choices in CONSTANTS.values() for own in choices.values() for name in own} - {
    *CONSTANTS["optimiser"]["adamw"]
} | {"flatten_bins", "label"}
"""Constants of choices that the defaults do not make."""


class Recorder:
    """Makes copies of slices that note which of their fields are read."""

    def __init__(self) -> None:
        self.declared: set[str] = set()
        self.read: set[str] = set()

    def __call__(self, value: Any) -> Any:
        """A copy that is equal in all but that; of the configuration as a whole, which the report shows, itself."""
        if isinstance(value, Mapping):
            return {key: self(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return tuple(self(item) for item in value)
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            return value
        kind = type(value)
        names = {field.name for field in dataclasses.fields(kind)}
        self.declared |= {f"{kind.__name__}.{name}" for name in names}

        def read(copy: Any, name: str) -> Any:
            # To copy or to write down all fields is to read none of them.
            if name in names and sys._getframe(1).f_globals["__name__"] != "dataclasses":
                self.read.add(f"{kind.__name__}.{name}")
            return object.__getattribute__(copy, name)

        copy = object.__new__(type(kind.__name__, (kind,), {"__getattribute__": read}))
        for name in names:
            object.__setattr__(copy, name, self(getattr(value, name)))
        return copy


def test_every_declared_field_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the steps of a small analysis, whose events have numbers of their own; whose have none; and beside them."""
    folder = toy(tmp_path / "toy")
    with (folder / "physics.py").open("a") as physics:
        physics.write('\n\ndef doubled(events):\n    return {"pt1": 2 * events.pt1}\n')
    nuisances = "{scale: {shift: {up: doubled}}, theory: {weight: {up: generator_correction}}}"
    monkeypatch.setenv("EVENTFOLD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("TOY_DATA", str(folder / "data"))
    luigi.task_register.Register.clear_instance_cache()
    recorder = Recorder()
    asked = (
        Report(analysis=str(folder), set=(f"outputs.nuisances={nuisances}",)),
        SelectEvents(analysis=str(folder), set=("identity.columns=[]",)),
        LearningCurve(analysis=str(folder), shares=(0.5,), widths=(2.0,)),
    )
    for task in asked:
        for step in walk(task):
            if step.present():
                continue
            names = [name.rstrip("/") for name in step.files()]
            step.write(names, partial(step.compute, recorder(step.settings), step.given()))
    assert {"SelectionSettings.cuts", "TrainingSettings.learning_rate", "TableSettings.duplicates"} <= recorder.read
    unread = recorder.declared - recorder.read
    assert {name for name in unread if name.partition(".")[2] not in IDLE} == CONSTANT


@dataclasses.dataclass(frozen=True)
class Example:
    """A slice."""

    used: int
    unused: int


def test_the_recorder_tells() -> None:
    recorder = Recorder()
    copy = recorder({"a": (Example(1, 2),)})["a"][0]
    assert isinstance(copy, Example)
    assert dataclasses.asdict(copy) == {"used": 1, "unused": 2}
    assert recorder.read == set()
    assert copy.used == 1
    assert recorder.declared - recorder.read == {"Example.unused"}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_a_step_computes_from_its_slice_alone(step: type[Task[Any]]) -> None:
    """`compute` is static: it has no task, and so no configuration, to read from; its slice is of a type of its own."""
    assert isinstance(inspect.getattr_static(step, "compute"), staticmethod)
    assert list(inspect.signature(step.compute).parameters) == ["settings", "given", "out"]
    declared = step.compute.__annotations__["settings"]
    assert declared == step.slice.__annotations__["return"]
    fields = {f.name: f.type for f in dataclasses.fields(getattr(sys.modules[step.__module__], declared))}
    assert step is Report or "Configuration" not in fields.values()
    assert not any(isinstance(field, Configuration) for field in get_type_hints(Given).values())
