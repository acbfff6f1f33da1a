"""Which code counts: of a user's functions, and of the steps."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from analysis.errors import UserError
from workflow import tracing
from workflow.tracing import step_code, user_function, user_label


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """A project of its own: `project("analysis/pool.py", source)` writes a module and returns its path."""
    caches = (tracing._module, tracing._module_path, tracing._parser)
    monkeypatch.setattr(tracing, "ROOT", tmp_path)
    monkeypatch.setenv("EVENTFOLD_STORE", str(tmp_path / "store"))

    def write(name: str, source: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        # A process takes code for what it was when first asked; here it is to be asked anew.
        for cache in (*caches, tracing._symbols):
            cache.cache_clear()
        return path

    yield write
    for cache in (*caches, tracing._symbols):
        cache.cache_clear()


PHYSICS = '''
"""Physics of a test."""
import functools
import numpy as np
import analysis.examples.other.physics as other_physics
from analysis.examples.other.physics import shared as theirs
from analysis.features import feature as labelled
from analysis.kinematics import mass_of

try:
    from analysis.examples.other.physics import alone
except ImportError:
    alone = None

SCALE = 2.0
UNUSED = 3.0
TABLE = {"a": 1}
TABLE["b"] = 2
TABLE.update(c=3)


def decorate(function):
    return function


def _helper(x):
    return SCALE * x


@decorate
def feature(events):
    """A feature."""
    return _helper(events.x)  # of x


def unrelated(events):
    return events.y


def by_table(events):
    return TABLE["a"] * events.x


def imported(events):
    return theirs(events)


def imported_module(events):
    return other_physics.shared(events)


def imported_with_care(events):
    return alone(events)


def imported_inside(events):
    from analysis.examples.other.physics import shared

    return shared(events)


def library(events):
    return mass_of(events)


def dynamic(events):
    return globals()["unrelated"](events)


BINS = []
for edge in (10, 20):
    BINS.append(edge)

REGISTRY = {}


def register(cut):
    REGISTRY[cut.__name__] = cut
    return cut


@register
def registered(events):
    return events.w


def _fill():
    FILLED["a"] = 2


FILLED = {}
_fill()


def by_loop(events):
    return BINS[0] * events.x


def by_registry(events):
    return REGISTRY["registered"](events)


def by_fill(events):
    return FILLED["a"] * events.x


def branch(events, name):
    return events[name]


def own_branch(events):
    return branch(events, "pt1")


@labelled(label="A label")
def with_label(events):
    return events.l


def from_file(events):
    return _read("factors.json") * events.x


if SCALE > 1:
    def conditional(events):
        return events.z
'''
OTHER = """
def shared(events):
    return _inner(events)

def _inner(events):
    return events.pt

def alone(events):
    return events.eta
"""
KINEMATICS = """
from typing import TYPE_CHECKING
from analysis.vectors import square
if TYPE_CHECKING:
    from analysis.types import Vector

def mass_of(events):
    return square(events.m)
"""


@pytest.fixture
def physics(project: Callable[[str, str], Path]) -> Callable[..., str]:
    """Hash a function of the physics file after replacements: `physics("feature", ("2.0", "3.0"), file="other")`."""
    sources = {
        "analysis/examples/mine/physics.py": PHYSICS,
        "analysis/examples/other/physics.py": OTHER,
        "analysis/kinematics.py": KINEMATICS,
        "analysis/vectors.py": "def square(x):\n    return x * x\n",
        "analysis/types.py": "class Vector:\n    x = 1\n",
    }

    def digest(name: str, *changes: tuple[str, str], file: str = "analysis/examples/mine/physics.py") -> str:
        for path, source in sources.items():
            text = source
            for old, new in changes if path == file else ():
                assert text.count(old) == 1, f"{old!r} is not once in {path}"
                text = text.replace(old, new)
            written = project(path, text)
            if path == "analysis/examples/mine/physics.py":
                mine = written
        return user_function(mine, name)

    return digest


@pytest.mark.parametrize(
    "change",
    [
        ("  # of x", ""),
        ('"""A feature."""', '"""Another text, über x."""'),
        ('"""A feature."""', "# no docstring"),
        ("SCALE * x", "(SCALE *\n            x)"),
        ("return events.y", "return -events.y"),
        ("UNUSED = 3.0", "UNUSED = 4.0"),
        ("\ndef unrelated", "\n\n\ndef more(events):\n    return 1\n\n\ndef unrelated"),
    ],
)
def test_what_a_function_does_not_run_is_not_its_identity(physics: Callable[..., str], change: tuple[str, str]) -> None:
    assert physics("feature", change) == physics("feature")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("feature", ("_helper(events.x)", "_helper(events.y)")),
        ("feature", ("return SCALE * x", "return SCALE + x")),
        ("feature", ("SCALE = 2.0", "SCALE = 2.5")),
        ("feature", ("@decorate\n", "")),
        ("feature", ("    return function", "    return functools.cache(function)")),
        ("by_table", ('TABLE["b"] = 2', 'TABLE["b"] = 4')),
        ("by_table", ("TABLE.update(c=3)", "TABLE.update(c=4)")),
        ("dynamic", ("return events.y", "return -events.y")),
        ("conditional", ("return events.z", "return -events.z")),
        ("by_loop", ("(10, 20)", "(10, 30)")),
        ("by_registry", ("return events.w", "return -events.w")),
        ("by_fill", ('FILLED["a"] = 2', 'FILLED["a"] = 3')),
        ("own_branch", ('branch(events, "pt1")', 'branch(events, "pt2")')),
    ],
)
def test_what_a_function_runs_is_its_identity(physics: Callable[..., str], name: str, change: tuple[str, str]) -> None:
    assert physics(name, change) != physics(name)


@pytest.mark.parametrize(
    ("name", "followed"), [("imported", True), ("imported_module", True), ("imported_inside", True), ("feature", False)]
)
def test_helpers_are_followed_to_another_analysis(physics: Callable[..., str], name: str, followed: bool) -> None:
    changed = physics(name, ("events.pt", "2 * events.pt"), file="analysis/examples/other/physics.py")
    assert (changed != physics(name)) is followed


def test_an_import_under_a_condition_is_followed(physics: Callable[..., str]) -> None:
    change = ("events.eta", "abs(events.eta)")
    changed = physics("imported_with_care", change, file="analysis/examples/other/physics.py")
    assert changed != physics("imported_with_care")
    assert physics("feature", change, file="analysis/examples/other/physics.py") == physics("feature")


def test_labels_count_apart(physics: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "analysis" / "examples" / "mine" / "physics.py"
    before = physics("with_label"), user_label(path, "with_label")
    assert physics("with_label", ("A label", "Another")) == before[0]
    assert user_label(path, "with_label") != before[1]
    assert physics("with_label", ("return events.l", "return -events.l")) != before[0]
    assert user_label(path, "with_label") == before[1]


def test_a_file_of_the_analysis_that_a_function_names_counts(physics: Callable[..., str], tmp_path: Path) -> None:
    before = {name: physics(name) for name in ("from_file", "feature")}
    path = tmp_path / "analysis" / "examples" / "mine" / "factors.json"
    for content in ("[1.1]", "[1.2]"):
        path.write_text(content)
        after = {name: physics(name) for name in before}
        assert after["from_file"] != before["from_file"]
        assert after["feature"] == before["feature"]
        before = after


def test_a_name_from_another_analysis_does_not_bring_the_whole_of_it(physics: Callable[..., str]) -> None:
    change = ("events.eta", "abs(events.eta)")
    assert physics("imported", change, file="analysis/examples/other/physics.py") == physics("imported")


@pytest.mark.parametrize("name", ["library", "feature"])
def test_library_code_counts_where_it_is_used(physics: Callable[..., str], name: str) -> None:
    change = ("x * x", "x ** 2")
    assert (physics(name, change, file="analysis/vectors.py") != physics(name)) is (name == "library")


def test_types_are_no_code(physics: Callable[..., str]) -> None:
    assert physics("library", ("x = 1", "x = 2"), file="analysis/types.py") == physics("library")


def test_what_the_store_keeps_of_modules_is_what_they_hold(
    project: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closure() -> list[str]:
        project("analysis/b.py", "x = 1\n")  # as a new process: nothing is in memory
        return tracing.module_closure(["analysis.a"])

    project("analysis/a.py", "from analysis import b\nfrom analysis import c\n")
    first = closure()
    kept = sorted((tmp_path / "store" / "code").iterdir())
    assert len(kept) == len(first) == 2
    with monkeypatch.context() as patched:
        patched.setattr(tracing, "_parse", None)  # nobody parses again
        assert closure() == first
    for path in kept:
        path.write_text("{")  # damaged
    assert closure() == first
    assert all(path.read_text() != "{" for path in kept)
    reading = Path.read_bytes

    def edited_then(path: Path) -> bytes:
        content = reading(path)
        if path.name == "b.py":
            path.write_text("x = 2\n")  # while it is being read
        return content

    for path in kept:
        path.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", edited_then)
        closure()
    assert closure() == first
    project("analysis/c.py", "y = 2\n")  # which the import of `analysis.c` did not mean before
    assert len(closure()) == 3
    project("analysis/a.py", "from analysis import b\n")
    assert closure() == ["analysis.a\nfrom analysis import b", "analysis.b\nx = 1"]


def test_names_are_found_without_running_the_file(project: Callable[[str, str], Path]) -> None:
    path = project("physics.py", PHYSICS + "\nraise RuntimeError\n")
    names = tracing.defined_names(path)
    assert {"feature", "conditional", "theirs", "SCALE"} <= set(names)
    assert "mass_of" not in names


def test_a_mistake_in_the_syntax_of_physics_is_the_users(project: Callable[[str, str], Path]) -> None:
    path = project("physics.py", "def feature(events):\n    return (events.x\n")
    with pytest.raises(UserError, match=r"physics\.py, line 2: "):
        tracing.defined_names(path)
    path.unlink()
    with pytest.raises(UserError, match=r"physics\.py is missing"):
        user_function(path, "feature")


STEPS = {
    "workflow/tasks/train.py": """
        from typing import TYPE_CHECKING

        from models.settings import Settings
        from workflow.base import Task
        from workflow.tasks.tables import load

        if TYPE_CHECKING:
            from models.types import Trained

        class Train(Task):
            note = "a note"

            def requires(self):
                return {"pool": "all"}

            def compute(self, out) -> "Trained":
                from models.training import train
                return _write(train(load()))

        def _write(network):
            return network

        def other():
            return 1
        """,
    "workflow/tasks/tables.py": """
        def load():
            from analysis.table import read
            return read()

        def other():
            return 1
        """,
    "workflow/base.py": "class Task:\n    x = 1\n",
    "analysis/table.py": "def read():\n    return 1\n",
    "models/settings.py": "class Settings:\n    x = 1\n",
    "models/training.py": "import models.networks\n\ndef train(x):\n    return 1\n",
    "models/networks.py": "from models import losses\n\nx = 1\n",
    "models/losses.py": "x = 1\n",
    "models/types.py": "x = 1\n",
    "models/apart.py": "x = 1\n",
}


@pytest.mark.parametrize(
    ("file", "change", "counts"),
    [
        ("workflow/tasks/train.py", ("return network", "return None"), True),
        ("workflow/tasks/train.py", ("return 1", "return 2"), False),
        ("workflow/tasks/train.py", ("a note", "another note"), False),
        ("workflow/tasks/train.py", ('"all"', '"some"'), False),
        ("workflow/tasks/train.py", ("train(load())", "train(load(), 1)"), True),
        ("workflow/tasks/tables.py", ("return read()", "return -read()"), True),
        ("workflow/tasks/tables.py", ("return 1", "return 2"), False),
        ("analysis/table.py", ("return 1", "return 2"), True),
        ("models/training.py", ("return 1", "return 2"), True),
        ("models/training.py", ("return 1", "return 1  # one"), False),
        ("models/networks.py", ("x = 1", "x = 2"), True),
        ("models/losses.py", ("x = 1", "x = 2"), True),
        ("models/settings.py", ("x = 1", "x = 2"), False),
        ("models/types.py", ("x = 1", "x = 2"), False),
        ("models/apart.py", ("x = 1", "x = 2"), False),
        ("workflow/base.py", ("x = 1", "x = 2"), False),
    ],
)
def test_code_of_a_step(project: Callable[[str, str], Path], file: str, change: tuple[str, str], counts: bool) -> None:
    def digest() -> str:
        return step_code(tracing.ROOT / "workflow/tasks/train.py", "Train")

    for name, source in STEPS.items():
        project(name, source)
    before = digest()
    assert change[0] in STEPS[file]
    project(file, STEPS[file].replace(*change))
    assert (digest() != before) is counts
