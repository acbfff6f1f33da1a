"""What is recorded of how outputs were made: cost, machine, versions and the state of the code."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Set
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workflow.costs import Cost, Meter
from workflow.identity import ROOT
from workflow.store import atomic_write, store_folder

LIBRARIES = ("awkward", "coffea", "law", "luigi", "numpy", "onnxruntime", "pyarrow", "scipy", "torch", "uproot")
"""Libraries whose versions are recorded without being part of any identity."""

ROOMS = ("analysis", "models", "workflow")

SUBMITTED = "submitted.json"
"""File of a copy of the project that says what `source_version` said of the tree it was made from."""

KEYS = frozenset({"code", "files", "fingerprint", "label", "parts", "record", "started", "step", "subject", "title"})
"""What a record has to say to be of use; those of earlier versions say less."""
PARTS = frozenset({"code", "format", "functions", "labels", "libraries", "outside", "settings"})
"""What it has to say of the parts of an identity."""


def utc(seconds: float) -> str:
    """A time of the system's clock, as records show it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def circumstances(meter: Meter, before: Cost | None = None) -> dict[str, Any]:
    """When, where, at what cost and by which versions this process has made something.

    Args:
        meter: Started when the work began.
        before: What it had cost before.
    """
    return {
        "started": utc(meter.started),
        "cost": (meter.read() + (before or Cost())).record(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "versions": _versions(),
        "code": source_version(),
    }


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def read_record(path: Path, keys: Set[str] = KEYS) -> dict[str, Any] | None:
    """Provenance of some outputs; None if there is none, it can't be read, or it lacks one of the keys."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):  # gone, not to be read, or half of it
        return None
    understood = isinstance(record, dict) and record.keys() >= keys and record["parts"].keys() >= PARTS
    return record if understood else None


def user() -> str:
    """Who runs this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in containers
        return str(os.getuid())


@lru_cache(maxsize=1)
def processor() -> str:
    """Model of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@lru_cache(maxsize=1)
def source_version() -> dict[str, Any]:
    """Git commit of the project and how the tree differs from it.

    Returns:
        `commit`; `dirty`, whether tracked files or new ones of the project's packages differ; and `diff`, by which name
        the difference stands in the store (`code/<diff>.diff`). None where there is no git or no repository.
    """
    if (ROOT / SUBMITTED).exists():
        return dict(json.loads((ROOT / SUBMITTED).read_text()))
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None, "diff": None}
    difference = git("diff", "HEAD", "--no-color") or ""
    for name in (git("ls-files", "--others", "--exclude-standard", *ROOMS) or "").splitlines():
        difference += f"\nnew file: {name}\n{(ROOT / name).read_text(errors='replace')}"
    if not difference:
        return {"commit": commit.strip(), "dirty": False, "diff": None}
    name = hashlib.sha256(difference.encode()).hexdigest()[:16]
    path = store_folder() / "code" / f"{name}.diff"
    if not path.exists():
        atomic_write(path, difference)
    return {"commit": commit.strip(), "dirty": True, "diff": name}


def git(*arguments: str) -> str | None:
    """What git says of the project; None where there is no git or no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, errors="replace", check=False
        )
    except FileNotFoundError:  # a batch node without git
        return None
    return done.stdout if done.returncode == 0 else None
