"""What makes outputs differ, where they live, which files and chunks a run works on, and how mistakes are said."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from analysis.config import Analysis, Configuration
from analysis.errors import UserError
from workflow import identity, messages, plan
from workflow.identity import canonical, fingerprint
from workflow.plan import InputFile, Plan
from workflow.store import atomic_write, results_folder, staged, store_folder

# Values


@dataclass(frozen=True)
class Slice:
    """A step's settings."""

    rate: float
    names: tuple[str, ...] = ()


class Model(BaseModel):
    """A section of the configuration."""

    rate: float
    inner: dict[str, int] = {}


@given(st.integers(-(2**60), 2**60))
def test_whole_numbers_are_the_same_as_integer_and_as_float(number: int) -> None:
    exact = int(float(number))
    assert fingerprint({"x": float(number)}) == fingerprint({"x": exact})
    assert type(canonical(float(number))) is int


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.none()))
def test_order_of_keys_is_irrelevant(content: dict[str, Any]) -> None:
    assert fingerprint(content) == fingerprint(dict(reversed(content.items())))


def test_containers_are_reduced_to_what_they_hold() -> None:
    assert canonical(Slice(1.0, ("a", "b"))) == {"rate": 1, "names": ["a", "b"]}
    assert canonical(Model(rate=2.5, inner={"b": 1})) == {"rate": 2.5, "inner": {"b": 1}}
    assert canonical({frozenset({"b", "a"})}) == [["a", "b"]]


@pytest.mark.parametrize(
    ("one", "other"),
    [(True, 1), (None, 0), ("1", 1), (1.5, 1), (["a", "b"], ["b", "a"]), ([], None), ([1, [2]], [1, 2])],
)
def test_different_values_differ(one: Any, other: Any) -> None:
    assert fingerprint({"x": one}) != fingerprint({"x": other})


@pytest.mark.parametrize("value", [object(), np.float32(1), Path("a"), b"a", Slice])
def test_a_type_without_identity_is_an_error(value: Any) -> None:
    with pytest.raises(TypeError, match="no identity is defined"):
        canonical({"x": [value]})


# The store


def contents(folder: Path) -> dict[str, str]:
    """Every file in a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_outputs_appear_together(tmp_path: Path) -> None:
    with staged(tmp_path / "out", ["a", "b"]) as stage:
        for name in ("a", "b", "scratch"):
            (stage / name).write_text(name)
        assert [p for p in (tmp_path / "out").iterdir() if p != stage] == []
    assert contents(tmp_path / "out") == {"a": "a", "b": "b"}


def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    def compute() -> None:
        with staged(tmp_path, ["a", "b"]) as stage:
            (stage / "a").write_text("new")
            (stage / "b").write_text("new")
            raise RuntimeError

    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError):
        compute()
    assert contents(tmp_path) == {"a": "old"}
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_missing_output_is_an_error_and_nothing_is_moved(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="b was not written"), staged(tmp_path, ["a", "b"]) as stage:
        (stage / "a").write_text("a")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "old").write_text("old")
    with staged(tmp_path, ["pool"]) as stage:
        (stage / "pool").mkdir()
        (stage / "pool" / "new").write_text("new")
    assert contents(tmp_path) == {"pool/new": "new"}
    assert list(tmp_path.iterdir()) == [tmp_path / "pool"]


@pytest.mark.parametrize("content", ["über", "über".encode()])
def test_small_files_are_replaced_whole(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "deep" / "a.json"
    atomic_write(path, "a much longer text")
    atomic_write(path, content)
    assert path.read_bytes() == "über".encode()
    assert list(path.parent.iterdir()) == [path]


def test_where_outputs_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, folder in (("EVENTFOLD_STORE", store_folder), ("EVENTFOLD_RESULTS", results_folder)):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        assert folder() == (tmp_path / variable).resolve()
        monkeypatch.setenv(variable, "")
        assert folder() == (identity.ROOT / variable.removeprefix("EVENTFOLD_").lower()).resolve()


# The plan


@pytest.fixture
def make_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """`make_plan(["a.root"], columns=["event"])`: a plan over files below `tmp_path`, with a store of its own."""
    monkeypatch.setenv("EVENTFOLD_STORE", str(tmp_path / "store"))
    (tmp_path / "physics.py").write_text("def met(events):\n    return events.met\n")

    def make(files: list[str], columns: tuple[str, ...] = ("event",), chunk: int = 100) -> Plan:
        config = {
            "name": "toy",
            "data": {
                "format": "flat",
                "tree": "events",
                "folder": str(tmp_path),
                "chunk": chunk,
                "datasets": {"one": {"files": files}, "two": {"files": ["two.root"]}},
            },
            "identity": {"columns": list(columns)},
            "processes": {n: {"data": [n], "normalisation": {"sum_to": 1.0}} for n in ("one", "two")},
            "classes": {"signal": "one", "processes": {"one": ["one"], "two": ["two"]}},
            "features": {"event": ["met"]},
        }
        return Plan(Analysis(tmp_path, Configuration.model_validate(config)))

    return make


def write_file(write_root: Callable[..., str], name: str, count: int, value: float = 0.0) -> str:
    """A ROOT file of some events."""
    return write_root({"event": np.arange(count), "met": np.full(count, value)}, name=name)


@given(entries=st.lists(st.integers(0, 50), max_size=5), size=st.integers(1, 20))
def test_chunks_hold_every_entry_once(entries: list[int], size: int) -> None:
    files = tuple(InputFile("a" if i % 2 else "b", i, f"{i}.root", n, None, None) for i, n in enumerate(entries))
    whole = Plan.__new__(Plan)
    whole.config = Configuration.model_construct(data=type("Data", (), {"chunk": size}))
    whole.files = files  # type: ignore[misc]
    held = [(c.file, entry) for c in whole.chunks for entry in range(c.start, c.stop)]
    assert held == [(file, entry) for file in files for entry in range(file.entries)]
    assert all(0 < c.stop - c.start <= size for c in whole.chunks)
    assert sorted(whole.chunks_of(["a"]) + whole.chunks_of(["b"])) == list(range(len(whole.chunks)))
    assert [n for file in files for n in whole.chunks_of_file(file)] == list(range(len(whole.chunks)))


@given(simulated=st.lists(st.booleans(), max_size=6))
def test_numbers_of_files_are_their_positions(simulated: list[bool]) -> None:
    files = tuple(
        InputFile("a" if i % 2 else "b", i // 2, f"{i}.root", 1, None if s else f"/{i}.root", None)
        for i, s in enumerate(simulated)
    )
    whole = Plan.__new__(Plan)
    whole.files = files  # type: ignore[misc]
    assert [whole.file_number(file) for file in files] == list(range(len(files)))
    made = [file for file in files if file.path is None]
    assert [whole.simulated_number(file) for file in made] == list(range(len(made)))


def test_files_of_one_base_name_get_keys_of_their_own(
    make_plan: Callable[..., Plan], write_root: Callable[..., str], tmp_path: Path
) -> None:
    write_file(write_root, "two.root", 3)
    places = ["a/x.root", "a/x~2.root", "b/x.root", "c/x.root"]
    for i, place in enumerate(places):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        write_file(write_root, place, 10 + i)
    files = make_plan(places).files
    assert [f.key for f in files] == ["x.root", "x~2.root", "x~3.root", "x~4.root", "two.root"]
    assert [f.entries for f in files] == [10, 11, 12, 13, 3]
    assert [f.number for f in files] == [0, 1, 2, 3, 0]
    with pytest.raises(UserError, match=r"two files called x\.root"):
        _ = make_plan(["a/x.root", "b/x.root"], columns=()).files


def test_a_file_is_listed_once(make_plan: Callable[..., Plan], write_root: Callable[..., str], tmp_path: Path) -> None:
    write_file(write_root, "two.root", 3)
    path = write_file(write_root, "one.root", 3)
    for twice in (
        ["one.root", "one.root"],
        ["one.root", "o*.root"],
        ["one.root", f"{tmp_path}/../{tmp_path.name}/one.root"],
    ):
        with pytest.raises(UserError, match=f"lists {path} more than once"):
            _ = make_plan(twice).files
    with pytest.raises(UserError, match=r"no file matches .*missing_\*"):
        _ = make_plan(["missing_*.root"]).files


def test_a_file_is_known_by_what_it_is(
    make_plan: Callable[..., Plan],
    write_root: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import analysis.events

    opened: list[str] = []
    inspect = analysis.events.inspect_file
    monkeypatch.setattr(analysis.events, "inspect_file", lambda path, tree: opened.append(path) or inspect(path, tree))
    two, one = write_file(write_root, "two.root", 3), write_file(write_root, "one.root", 3)
    first = make_plan(["one.root"]).files[0].identity
    assert sorted(opened) == [one, two]
    opened.clear()
    assert make_plan(["one.root"]).files[0].identity == first
    assert opened == []

    shutil.copyfile(one, tmp_path / "copy.root")
    assert make_plan(["copy.root"]).files[0].identity == first
    assert opened == [str(tmp_path / "copy.root")]

    opened.clear()
    write_file(write_root, "one.root", 3)  # the same content: ROOT draws a new UUID
    assert make_plan(["one.root"]).files[0].identity != first
    assert opened == [one]


def test_files_that_are_gone_are_forgotten(
    make_plan: Callable[..., Plan], write_root: Callable[..., str], tmp_path: Path
) -> None:
    two, one = write_file(write_root, "two.root", 3), write_file(write_root, "one.root", 3)
    _ = make_plan(["one.root"]).files
    Path(one).unlink()
    plan.forget_files()
    known = json.loads((tmp_path / "store" / "inventory.json").read_text())
    assert [key.rpartition(":")[0] for key in known] == [two]


def test_a_remote_file_is_asked_anew_in_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from analysis.sources import FileRecord

    monkeypatch.setenv("EVENTFOLD_STORE", str(tmp_path))
    for uuid in ("first", "second"):
        monkeypatch.setattr(
            "analysis.events.inspect_file", lambda _path, tree, uuid=uuid: FileRecord(uuid, 1, 1, tree, 1)
        )
        place = plan.Place("root://host//a.root", "events")
        found = plan._inspect([place], skip=False)[place]
        assert isinstance(found, FileRecord)
        assert found.uuid == uuid


# Messages


def fail(message: str) -> None:
    """Raise a user's mistake out of another, as calling a user's function does."""
    try:
        raise UserError("the inner one")
    except UserError as error:
        raise UserError(message) from error


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> logging.Logger:
    """luigi's logger, which prints to the captured stderr through the filter alone."""
    del capsys  # asked for first, so that the handler writes to it
    found = logging.getLogger("luigi-interface")
    monkeypatch.setattr(found, "filters", [])
    monkeypatch.setattr(found, "handlers", [logging.StreamHandler(sys.stderr)])
    monkeypatch.setattr(found, "propagate", False)
    monkeypatch.setattr(sys, "argv", ["law", "run"])
    messages.show_user_errors()
    messages.show_user_errors()
    assert len(found.filters) == 1
    return found


@pytest.mark.parametrize("as_text", [True, False])
def test_a_mistake_is_said_in_one_sentence_once(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str], as_text: bool
) -> None:
    for message in ("cut(events) failed.\nIn two lines.", "cut(events) failed.\nIn two lines.", "Another."):
        try:
            fail(message)
        except UserError:
            if as_text:
                logger.warning("Will not run Report() due to error in complete() method:\n%s", traceback.format_exc())
            else:
                logger.exception("Worker failed Report()")
    assert capsys.readouterr().err == "\nerror: cut(events) failed.\nIn two lines.\n\n\nerror: Another.\n\n"


def test_other_failures_keep_their_traceback(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        raise ZeroDivisionError("a defect")
    except ZeroDivisionError:
        logger.exception("Worker failed")
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "ZeroDivisionError: a defect" in shown
    monkeypatch.setattr(sys, "argv", ["law", "run", "--debug"])
    try:
        fail("A mistake.")
    except UserError:
        logger.exception("Worker failed")
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "error: A mistake." not in shown.splitlines()
