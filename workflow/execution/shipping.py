"""Code that travels: copies of the submitting tree in the store, for jobs that can't see the tree itself.

A copy is what one state of the tree holds, uncommitted changes included: `clusters/code/<hash>/project`, and beside it
the folder of an analysis that lies elsewhere. The head sets it up before the first job, so that no two jobs do.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.errors import UserError
from workflow import claims
from workflow.identity import ROOT, fingerprint
from workflow.provenance import ROOMS, SUBMITTED, git, source_version
from workflow.store import STAGE, results_folder, store_folder

if TYPE_CHECKING:
    from workflow.execution.executor import Group

NEEDED = (*ROOMS, "setup.sh", "law.cfg", "requirements.lock", "pyproject.toml")
"""What a job needs of the project; copied where git does not say what belongs to it."""
LARGEST = 200_000_000
"""Bytes that a copy may have: more is data rather than code."""


@dataclass(frozen=True)
class Shipped:
    """A copy that was set up.

    Attributes:
        project: The copy of the project.
        analysis: The copy of the analysis's folder.
        variables: What a job's environment has to say of them.
    """

    project: Path
    analysis: Path
    variables: tuple[tuple[str, str], ...]

    def moved(self, group: Group) -> Group:
        """The same work for a process that runs the copy: no identity depends on where the analysis lies."""
        parameters = tuple(
            (name, str(self.analysis) if name == "analysis" and os.sep in value else value)
            for name, value in group.parameters
        )
        return replace(group, parameters=parameters)


@cache
def ship(folder: Path) -> Shipped:
    """Copy project and analysis as they are now, once per run and per state, and set the copy up.

    Args:
        folder: Of the analysis.

    Raises:
        UserError: There is too much to copy, or setup.sh fails in the copy.
    """
    sources = {Path("project", name): ROOT / name for name in _project()}
    inside = folder.is_relative_to(ROOT)
    place = Path("project", folder.relative_to(ROOT)) if inside else Path("analysis", folder.name)
    sources |= {place / name: folder / name for name in _files_below(folder)}
    contents = _read(sources)
    contents[Path("project", SUBMITTED)] = json.dumps(source_version()).encode(), False
    hashes = {str(path): (hashlib.sha256(content).hexdigest(), x) for path, (content, x) in contents.items()}
    state = fingerprint({"user": os.getuid(), "files": hashes})
    copy = _copies() / state
    if not copy.exists():
        _write(copy, contents)
    variables = {
        "EVENTFOLD_STORE": str(store_folder()),
        "EVENTFOLD_VENV": os.environ.get("EVENTFOLD_VENV")
        or str(_environment(contents[Path("project", "requirements.lock")][0])),
        # A job starts in the folder of the command, which may be the tree itself: no module is taken from there.
        "PYTHONSAFEPATH": "1",
    }
    _set_up(copy / "project", variables)
    return Shipped(copy / "project", copy / place, tuple(variables.items()))


def is_copy(folder: Path) -> bool:
    """Whether a folder was made by `ship`."""
    return folder.is_relative_to(_copies())


def left() -> list[Path]:
    """Copies, and environments of other packages than this project's, which nothing needs when no run is at work."""
    here = _environment((ROOT / "requirements.lock").read_bytes())
    return [*_copies().glob("*"), *(path for path in here.parent.glob("*") if path != here)]


def _copies() -> Path:
    return store_folder() / "clusters" / "code"


def _environment(lock: bytes) -> Path:
    """Where the environment of copies is, one for each set of packages."""
    packages = lock.decode(), os.environ.get("EVENTFOLD_TORCH", "")
    return store_folder() / "clusters" / "environments" / fingerprint({"packages": packages})


def _project() -> Iterator[str]:
    """Files of the project, relative to it: what git tracks or would, else what a job needs."""
    listed = (git("ls-files", "-z", "--cached", "--others", "--exclude-standard") or "").split("\0")
    if "setup.sh" in listed:  # else the project lies in somebody else's repository
        yield from (name for name in listed if (ROOT / name).is_file())
        return
    for name in NEEDED:
        if (ROOT / name).is_dir():
            yield from (f"{name}/{path}" for path in _files_below(ROOT / name))
        elif (ROOT / name).exists():
            yield name


def _files_below(folder: Path) -> Iterator[str]:
    """Files in a folder, relative to it, without events, results and what is hidden."""
    aside = {store_folder(), results_folder()}
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if name[0] != "." and name != "__pycache__" and Path(place, name) not in aside
        )
        for name in names:
            path = Path(place, name)
            if path.is_file() and path.suffix not in (".root", ".pyc"):
                yield str(path.relative_to(folder))


def _read(sources: dict[Path, Path]) -> dict[Path, tuple[bytes, bool]]:
    """Contents of files, and whether they can be executed.

    Raises:
        UserError: They are too large together, or one can't be read.
    """
    sizes = {path: path.stat().st_size for path in sources.values()}
    if sum(sizes.values()) > LARGEST:
        largest = max(sizes, key=sizes.__getitem__)
        raise UserError(
            f"ship_code: project and analysis hold {sum(sizes.values()) / 1e6:.0f} MB, of which {largest} has "
            f"{sizes[largest] / 1e6:.0f} MB; at most {LARGEST / 1e6:.0f} MB are copied. Keep events and results "
            "elsewhere, or let .gitignore name them."
        )
    try:
        return {name: (path.read_bytes(), os.access(path, os.X_OK)) for name, path in sources.items()}
    except OSError as error:
        raise UserError(f"ship_code: a file of project or analysis can't be copied: {error}.") from error


def _write(copy: Path, contents: dict[Path, tuple[bytes, bool]]) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    stage = copy.with_name(f"{STAGE}{uuid.uuid4().hex[:12]}")
    stage.mkdir(mode=0o700)
    try:
        for name, (content, executable) in contents.items():
            path = stage / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o700 if executable else 0o600)
        with suppress(OSError):  # another run was faster
            stage.rename(copy)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _set_up(project: Path, variables: dict[str, str]) -> None:
    """Source setup.sh in a copy: it makes the environment, where there is none yet, and law's index."""

    def wait(text: str) -> None:
        print(f"{project}: {text}", file=sys.stderr, flush=True)  # noqa: T201

    Path(variables["EVENTFOLD_VENV"]).parent.mkdir(parents=True, exist_ok=True)
    with claims.claim(_copies() / ".setup", wait):
        done = subprocess.run(
            ["bash", "-c", 'source "$1/setup.sh"', "bash", str(project)],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=2,  # what this process prints there is for whoever reads results
            check=False,
        )
    if done.returncode != 0:
        raise UserError(f"ship_code: setup.sh failed in the copy {project}; above it says why.")
