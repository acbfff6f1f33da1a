"""The store: where outputs live under their fingerprints, and how they are written so that none is ever half there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from workflow.identity import ROOT

RETRIES = 10
STAGE = ".stage-"
"""How names of folders begin that are being written or deleted."""
LEFT_OVER = 24 * 3600
"""Age in seconds from which a folder of a killed run is in nobody's way any more."""


def store_folder() -> Path:
    """`$EVENTFOLD_STORE`, by default `store/` in the repository."""
    return _resolved(os.environ.get("EVENTFOLD_STORE") or str(ROOT / "store"))


def results_folder() -> Path:
    """`$EVENTFOLD_RESULTS`, by default `results/` in the repository."""
    return _resolved(os.environ.get("EVENTFOLD_RESULTS") or str(ROOT / "results"))


@cache
def _resolved(folder: str) -> Path:
    return Path(folder).resolve()


def link_results(name: str, folder: Path) -> Path:
    """Point results/<name> at a folder of the store by one atomic swap of a link; a folder in its place is moved aside.

    Returns:
        The link.
    """
    link = results_folder() / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_dir() and not link.is_symlink():
        shutil.move(link, link.with_name(f"{name}.old-{uuid.uuid4().hex[:6]}"))
    temporary = link.with_name(f".{name}.{uuid.uuid4().hex[:8]}")
    temporary.symlink_to(os.path.relpath(folder, link.parent))
    temporary.replace(link)
    return link


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a small file aside and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Read a JSON output."""
    return json.loads(path.read_text())


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write a JSON output, readable and without NaN."""
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


@contextmanager
def staged(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Write files (or folders) aside and move them into place together at the end.

    Args:
        folder: Where they will be.
        names: What must have been written when the block ends; nothing else is moved.

    Yields:
        An empty folder beside `folder` to write to. It is removed whatever happens.

    Raises:
        FileNotFoundError: The block ended without having written one of the names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    stage = folder / f"{STAGE}{uuid.uuid4().hex[:12]}"
    stage.mkdir()
    try:
        yield stage
        for name in names:
            if not os.path.lexists(stage / name):
                raise FileNotFoundError(f"{name} was not written (to {folder})")
        for name in names:
            _into_place(stage / name, folder / name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _into_place(source: Path, target: Path) -> None:
    """Rename a file or folder over what another run may have put there: the same content under the same identity."""
    if not source.is_dir() or source.is_symlink():
        source.replace(target)
        return
    for _ in range(RETRIES):
        try:
            source.rename(target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # A folder can't be renamed over a full one: the old one goes aside, unless another run is faster.
        with suppress(FileNotFoundError):
            target.rename(source.with_name(f"{source.name}.{uuid.uuid4().hex[:8]}.old"))
    raise FileExistsError(f"{target} is being replaced by other runs all the time")


def _sweep(folder: Path) -> None:
    """Remove what runs that were killed have left aside, once it is a day old."""
    for stage in folder.glob(f"{STAGE}*"):
        with suppress(FileNotFoundError):
            if time.time() - stage.stat().st_mtime > LEFT_OVER:
                shutil.rmtree(stage, ignore_errors=True)
