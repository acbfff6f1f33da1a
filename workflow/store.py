"""The store: where outputs live under their fingerprints, and how they are written so that none is ever half there."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from workflow.identity import ROOT


def store_folder() -> Path:
    """`$EVENTFOLD_STORE`, by default `store/` in the repository."""
    return Path(os.environ.get("EVENTFOLD_STORE") or ROOT / "store").resolve()


def results_folder() -> Path:
    """`$EVENTFOLD_RESULTS`, by default `results/` in the repository."""
    return Path(os.environ.get("EVENTFOLD_RESULTS") or ROOT / "results").resolve()


def atomic_write(path: Path, content: str | bytes) -> None:
    """Write a small file aside and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


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
    stage = folder / f".stage-{uuid.uuid4().hex[:12]}"
    stage.mkdir()
    try:
        yield stage
        for name in names:
            if not os.path.lexists(stage / name):
                raise FileNotFoundError(f"{name} was not written (to {folder})")
        for name in names:
            target = folder / name
            if (stage / name).is_dir() and target.exists():
                target.rename(stage / f"{name}.old")
            (stage / name).rename(target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
