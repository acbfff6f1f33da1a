"""Fingerprints: what an output is made of, as one hash (contract 5 of the design).

A fingerprint covers the settings slice that a step receives, the code of the step and of the user's functions that it
calls, the identity of its inputs, the fingerprints of what it requires, the format version, and the major.minor
versions of the libraries that make numbers. What code counts: `workflow.tracing`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

FORMAT = 1
"""Version of the layout of all outputs; raising it makes everything anew.

What holds up every step (`workflow.base`, `workflow.store`, `workflow.tasks.branches`) is in no identity: raise this
where it changes an output.
"""

ROOT = Path(__file__).resolve().parent.parent


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Hash anything made of JSON types, dataclasses and pydantic models: 16 hexadecimal digits."""
    text = json.dumps(canonical(parts), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def canonical(value: Any) -> Any:
    """Reduce a value to JSON types whose text is the same for equal values.

    Raises:
        TypeError: A type whose identity is not defined.
    """
    if value is None or type(value) in (str, int, bool):  # most of what there is
        return value
    if isinstance(value, BaseModel):
        return {name: canonical(getattr(value, name)) for name in type(value).model_fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, (frozenset, set)):
        return sorted(canonical(v) for v in value)
    if isinstance(value, (list, tuple)):
        return [canonical(v) for v in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 1 and 1.0 are the same setting
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"no identity is defined for {type(value).__name__}: {value!r}")


def library_versions(names: Sequence[str]) -> dict[str, str]:
    """The major.minor versions of libraries that make numbers."""
    return {name: ".".join(_version(name).split("+")[0].split(".")[:2]) for name in names}


_version = cache(version)
"""importlib.metadata reads a file at every call."""
