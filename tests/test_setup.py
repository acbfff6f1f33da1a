"""setup.sh: in bash and zsh, from any directory, and what the documentation says of the configuration."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import get_type_hints

import pytest
from pydantic import BaseModel

from analysis.config import Configuration
from models.settings import CONSTANTS, ModelSettings, TrainingSettings
from tests.toy import linked_environment

ROOT = Path(__file__).resolve().parent.parent
SHELLS = ("bash", "zsh")


def source(shell: str, command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Source setup.sh in a shell that inherits nothing, and run a command there."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    linked = folder / "environment"
    if not linked.exists():
        linked_environment(linked)
    clean = {"HOME": str(folder), "PATH": os.defpath, "EVENTFOLD_VENV": str(linked), **environment}
    script = f"source '{ROOT / 'setup.sh'}' && {command}"
    return subprocess.run([shell, "-c", script], env=clean, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("shell", SHELLS)
def test_sourcing_from_another_directory_finds_law_and_its_tasks(shell: str, tmp_path: Path) -> None:
    done = source(shell, "command -v law && cut -d: -f2 $LAW_INDEX_FILE && pwd", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert lines[0] == str(tmp_path / "environment" / "bin" / "law")
    assert "Report" in lines
    assert lines[-1] == str(tmp_path)
    assert done.stderr == ""


def test_a_folder_that_setup_has_not_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("text")
    done = source("bash", "true", tmp_path, EVENTFOLD_VENV=str(tmp_path / "mine"))
    assert done.returncode != 0
    assert "was not made by setup.sh and is left alone" in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("shell", SHELLS)
def test_sourcing_twice_adds_nothing(shell: str, tmp_path: Path) -> None:
    variables = "echo $PATH:$PYTHONPATH"
    once = source(shell, variables, tmp_path)
    twice = source(shell, f"source '{ROOT / 'setup.sh'}' && {variables}", tmp_path)
    assert once.returncode == twice.returncode == 0
    assert once.stdout == twice.stdout


def test_data_folder_of_the_user_is_kept(tmp_path: Path) -> None:
    assert source("bash", "echo $EVENTFOLD_DATA", tmp_path, EVENTFOLD_DATA="/mine").stdout.strip() == "/mine"


def test_a_missing_python_is_said_plainly(tmp_path: Path) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    for tool in ("dirname", "cksum", "cat"):
        (bare / tool).symlink_to(str(shutil.which(tool)))
    done = source("/bin/bash", "true", tmp_path, PATH=str(bare), EVENTFOLD_VENV=str(tmp_path / "venv"))
    assert done.returncode != 0
    assert "Python 3.11, 3.12 or 3.13 is missing" in done.stderr


def keys(model: type) -> list[str]:
    """Names of the keys of a section and of all sections in it."""
    if not issubclass(model, BaseModel):
        return [name for name in get_type_hints(model) if not name.startswith("_")]
    found = []
    for name, field in model.model_fields.items():
        found.append(name)
        for inner in re.findall(r"analysis\.config\.(\w+)", str(field.annotation)):
            section = getattr(__import__("analysis.config", fromlist=[inner]), inner)
            found += keys(section) if isinstance(section, type) else []
    return found


def test_every_key_of_the_schema_is_documented() -> None:
    pages = (ROOT / "docs" / name for name in ("analysis.md", "tuning.md"))
    text = "".join(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL) for page in pages)
    documented = set(re.findall(r"[\w]+", " ".join(re.findall(r"`([^`]+)`", text))))
    schema = {*keys(Configuration), *keys(ModelSettings), *keys(TrainingSettings)}
    assert "histogram" in schema
    assert not schema - documented


def test_defaults_in_the_documentation_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "analysis.md").read_text()
    model, training = ModelSettings(), TrainingSettings()
    assert f"| {list(model.hidden)} |" in text
    assert f"| share of hidden units dropped in a step | {model.dropout} |" in text
    assert f"| {training.epochs}, {training.batch_size} |" in text
    assert f"| {training.optimiser}, {training.learning_rate:g} |" in text
    rows: dict[str, set[float]] = {}
    for entries, defaults in re.findall(r"^\| (`[^|]*`) \| .* \| ([^|]*) \|$", text, re.MULTILINE):
        names = re.findall(r"`(?:model|training|…)\.([a-z_0-9]+)`", entries)
        shown = [float(number) for number in re.findall(r"[\d.e-]*\d", defaults)]
        rows |= {names[0]: set(shown)} if len(names) == 1 else {n: {x} for n, x in zip(names, shown, strict=False)}
    for choices in CONSTANTS.values():
        for name in {name for own in choices.values() for name in own}:
            defaults = [own[name] for own in choices.values() if name in own]
            assert rows[name] == {
                float(value) for value in defaults if isinstance(value, float) or type(value) is int
            }, name


def test_every_dependency_has_a_reason() -> None:
    declared = re.findall(r'^    "([\w-]+)[=>]', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    reasons = (ROOT / "docs" / "dependencies.md").read_text()
    assert len(declared) > 20
    assert [name for name in declared if not re.search(rf"\b{re.escape(name)}\b", reasons)] == []


def test_links_in_the_documentation_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)#:]+)\)", prose):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
