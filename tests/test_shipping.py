"""Copies of the submitting tree: what is in them, and that each state has one."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.errors import UserError
from tests.toy import Law
from workflow import pruning
from workflow.execution import shipping
from workflow.execution.clusters import Profile, bootstrap
from workflow.execution.executor import Group
from workflow.plan import open_plan
from workflow.store import store_folder

SETUP = """mkdir -p "${EVENTFOLD_VENV}" && touch "${EVENTFOLD_VENV}/made" && echo set up
"""


@pytest.fixture
def project(here: Law, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small project without git, whose setup.sh is short."""
    assert here.store == store_folder()
    folder = tmp_path / "project"
    for room in ("analysis", "models", "workflow"):
        (folder / room).mkdir(parents=True)
        (folder / room / "code.py").write_text(f"# {room}\n")
    for name in ("law.cfg", "requirements.lock", "pyproject.toml", "notes.txt"):
        (folder / name).write_text(name)
    (folder / "setup.sh").write_text(SETUP)
    monkeypatch.setattr("workflow.execution.shipping.ROOT", folder)
    monkeypatch.setattr("workflow.provenance.ROOT", folder)
    monkeypatch.delenv("EVENTFOLD_VENV", raising=False)
    shipping.source_version.cache_clear()
    yield folder
    shipping.source_version.cache_clear()


def ship(folder: Path) -> shipping.Shipped:
    """What a new run would ship."""
    shipping.ship.cache_clear()
    shipping.source_version.cache_clear()
    return shipping.ship(folder)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def git(project: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
    subprocess.run(["git", "-C", str(project), *identity, *arguments], check=True, capture_output=True)


def test_what_a_job_needs_is_copied_where_there_is_no_git(project: Path, here: Law) -> None:
    (project / "workflow" / "__pycache__").mkdir()
    (project / "workflow" / "__pycache__" / "code.pyc").touch()
    (here.home / "toy" / "corrections").mkdir()
    (here.home / "toy" / "corrections" / "muons.json").write_text("{}")
    found = ship(here.home / "toy")
    rooms = {f"{room}/code.py" for room in ("analysis", "models", "workflow")}
    expected = rooms | {"law.cfg", "requirements.lock", "pyproject.toml", "setup.sh", "submitted.json"}
    assert names(found.project) == expected
    assert names(found.analysis) == {"analysis.yaml", "physics.py", "corrections/muons.json"}, "no events"
    assert stat.S_IMODE(found.project.parent.stat().st_mode) == 0o700
    assert Path(dict(found.variables)["EVENTFOLD_VENV"], "made").exists()


def test_git_says_what_belongs_to_the_project(project: Path, here: Law) -> None:
    (project / ".gitignore").write_text("secret.txt\nmine/\n")
    (project / "removed.txt").touch()
    git(project, "init", "-q")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "all")
    (project / "removed.txt").unlink()
    (project / "workflow" / "code.py").write_text("# edited\n")
    for name in ("new.py", "secret.txt"):
        (project / name).touch()
    mine = project / "mine"
    (here.home / "toy").rename(mine)
    found = ship(mine)
    assert {"new.py", "notes.txt", "mine/physics.py"} <= names(found.project)
    assert not {"secret.txt", "removed.txt"} & names(found.project)
    assert found.analysis == found.project / "mine"
    assert (found.project / "workflow" / "code.py").read_text() == "# edited\n"
    assert '"dirty": true' in (found.project / "submitted.json").read_text()


def test_each_state_has_one_copy(project: Path, here: Law) -> None:
    folder = here.home / "toy"
    first, again = ship(folder), ship(folder)
    assert first == again
    (project / "setup.sh").chmod(0o755)
    second = ship(folder)
    (folder / "physics.py").write_text("# another\n")
    third = ship(folder)
    assert len({first.project, second.project, third.project}) == 3
    assert os.access(second.project / "setup.sh", os.X_OK)
    assert len({found.variables for found in (first, second, third)}) == 1, "all have one environment"
    (project / "requirements.lock").write_text("more")
    assert ship(folder).variables != first.variables
    assert not list((here.store / "clusters" / "code").glob(".stage-*"))
    gone = set(shipping.left())
    assert {found.project.parent for found in (first, second, third)} <= gone
    environments = [Path(dict(found.variables)["EVENTFOLD_VENV"]) for found in (first, ship(folder))]
    assert [path in gone for path in environments] == [True, False], "that of other packages goes"


def test_events_are_not_shipped_by_mistake(project: Path, here: Law, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflow.execution.shipping.LARGEST", 5_000_000)
    (project / "analysis" / "events.parquet").write_bytes(bytes(6_000_000))
    with pytest.raises(UserError, match=r"events\.parquet has 6 MB; at most 5 MB are copied"):
        ship(here.home / "toy")


def test_a_file_that_cannot_be_read_is_named(project: Path, here: Law, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "law.cfg":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=rf"can't be copied: .*Permission denied: '{project}/law\.cfg'"):
        ship(here.home / "toy")


def test_a_setup_that_fails_is_told(project: Path, here: Law) -> None:
    (project / "setup.sh").write_text("return 3\n")
    with pytest.raises(UserError, match=r"setup\.sh failed in the copy"):
        ship(here.home / "toy")


def test_jobs_run_the_copy(project: Path, here: Law) -> None:
    assert project.exists()
    found = ship(here.home / "toy")
    commands = bootstrap(Profile("x", kind="slurm", ship_code=True), [], found)
    assert commands[-1] == f"source {found.project}/setup.sh || exit 1"
    assert f"export EVENTFOLD_STORE={here.store}" in commands
    assert "export PYTHONSAFEPATH=1" in commands
    parameters = (("analysis", str(here.home / "toy")), ("set", "[]"))
    own = Group(0, "workflow.tasks.report", "Report", parameters, (0,), "toy", ("f",), (None,), ("/store/f",), False)
    assert dict(found.moved(own).parameters) == {"analysis": str(found.analysis), "set": "[]"}
    example = replace(own, parameters=(("analysis", "hww"),))
    assert found.moved(example) == example


@pytest.mark.parametrize("first", ["original", "copy"])
def test_a_copy_takes_no_name(project: Path, here: Law, first: str) -> None:
    assert project.exists()
    found = ship(here.home / "toy")
    opened: dict[str, Callable[[], object]] = {
        "original": lambda: open_plan(here.analysis, ()),
        "copy": lambda: open_plan(str(found.analysis), ()),
    }
    opened.pop(first)()
    assert (here.store / "names" / "toy.json").exists() == (first == "original")
    opened.popitem()[1]()
    assert str(here.home) in (here.store / "names" / "toy.json").read_text()


def test_pruning_removes_copies_and_logs_but_takes_none_for_an_output(here: Law) -> None:
    copy = "clusters/code/0123456789abcdef/project"
    files = [f"{copy}/setup.sh", "clusters/environments/0123456789abcdef/bin/python", "clusters/slurm/job.err"]
    files += ["runs/Report-0.json", "runs/Report-0.log", "jobs/TrainFolds/0123456789abcdef/1.log"]
    for name in files:
        (here.store / name).parent.mkdir(parents=True, exist_ok=True)
        (here.store / name).touch()
        os.utime(here.store / name, (0, 0))
    os.utime(here.store / copy, (0, 0))
    assert {"clusters", "jobs"}.isdisjoint(output.step for output in pruning.unreached(pruning.Reach(), 0))
    pruning.delete([])
    assert [name for name in files if (here.store / name).exists()] == []
