"""Whether features change under rotations and reflections as `training.augmentation` says that they do.

A feature that is neither invariant nor declared, or declared in the wrong list, makes events of augmentation that no
collision could give. Here the branches of a file are moved, the features are computed anew, and compared with what the
declaration makes of the old ones::

    python -m analysis.symmetries hww_vs_tt events.root
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

import awkward as ak
import numpy as np
import numpy.typing as npt

from analysis.config import load_analysis
from analysis.errors import UserError
from analysis.events import Events, inspect_file, read
from analysis.features import compute
from analysis.functions import Function
from analysis.sources import Source

TOLERANCE = 1e-3
"""Largest difference, of 1 or of the value itself, that rounding may make."""


class Declared(Protocol):
    """What an augmentation says of features (`models.settings.Augmentation`)."""

    @property
    def rotation(self) -> bool: ...
    @property
    def reflection_phi(self) -> bool: ...
    @property
    def reflection_z(self) -> bool: ...
    @property
    def moves(self) -> bool: ...
    @property
    def angles(self) -> tuple[str, ...]: ...
    @property
    def vectors(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def signed_angles(self) -> tuple[str, ...]: ...
    @property
    def longitudinal(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Branches:
    """Patterns of the branches that move; those in collections are called as in the file, such as `Muon_phi`.

    Attributes:
        angles: Azimuths.
        longitudinal: Pseudorapidities and z components.
        x: Horizontal components; what stands for x at the end of a name, y stands for in that of its partner.
    """

    angles: tuple[str, ...] = ("*phi", "*Phi")
    longitudinal: tuple[str, ...] = ("*eta", "*Eta", "*pz", "*Pz")
    x: tuple[str, ...] = ("*px", "*Px")


@dataclass(frozen=True)
class Move:
    """A rotation by an angle in radians behind reflections, whose signs are 1 or -1."""

    name: str
    turn: float = 0.0
    phi: int = 1
    z: int = 1


class _Moved(Events):
    """Events whose branches are moved as they are read."""

    def __init__(self, source: Source, move: Move, branches: Branches) -> None:
        original = read(source)
        super().__init__(original._array, source)
        self._move, self._branches = move, branches

    def _read(self, name: str) -> Any:
        column = super()._read(name)
        if not column.fields:
            return self._moved(name, column, lambda other: Events._read(self, other))
        moved = column
        for field in column.fields:
            own = self._moved(f"{name}_{field}", column[field], lambda other: column[other.removeprefix(f"{name}_")])
            moved = ak.with_field(moved, own, field)
        return moved

    def _moved(self, name: str, column: Any, partner: Any) -> Any:
        move, branches = self._move, self._branches
        if _matches(name, branches.angles):
            return _wrapped(move.phi * column + move.turn)
        if _matches(name, branches.longitudinal):
            return move.z * column
        if _matches(name, branches.x):
            return np.cos(move.turn) * column - np.sin(move.turn) * move.phi * partner(f"{name[:-1]}y")
        if name.endswith("y") and _matches(f"{name[:-1]}x", branches.x):
            return np.sin(move.turn) * partner(f"{name[:-1]}x") + np.cos(move.turn) * move.phi * column
        return column


def asymmetries(
    names: Sequence[str],
    functions: Mapping[str, Function],
    source: Source,
    declared: Declared,
    branches: Branches | None = None,
) -> dict[str, dict[str, float]]:
    """Compare features of moved events with what the augmentation makes of them.

    Args:
        names: The features.
        functions: The user's functions by name.
        source: Some events.
        declared: What changes how, and which symmetries are used.
        branches: The branches that move.

    Returns:
        For each symmetry that is used, the features that do not follow it, with the largest difference over the
        events, absolute below 1 and relative above; infinite where a value appears or goes.
    """
    before = compute(names, functions, read(source), source)
    moves = [Move("rotation", turn=1.0)] if declared.rotation else []
    moves += [Move("reflection_phi", phi=-1)] if declared.reflection_phi else []
    moves += [Move("reflection_z", z=-1)] if declared.reflection_z else []
    found: dict[str, dict[str, float]] = {}
    for move in moves:
        after = compute(names, functions, _Moved(source, move, branches or Branches()), source)
        gaps = {name: _gap(name, after[name], _expected(name, before, declared, move), declared) for name in names}
        found[move.name] = {name: gap for name, gap in gaps.items() if gap > TOLERANCE}
    return found


def _expected(name: str, before: Mapping[str, Any], declared: Declared, move: Move) -> Any:
    """What the augmentation makes of a feature."""
    own = before[name]
    if name in declared.angles:
        return move.phi * own + move.turn
    if name in declared.signed_angles:
        return move.phi * own
    if name in declared.longitudinal:
        return move.z * own
    for x, y in declared.vectors:
        if name == x:
            return np.cos(move.turn) * own - np.sin(move.turn) * move.phi * before[y]
        if name == y:
            return np.sin(move.turn) * before[x] + np.cos(move.turn) * move.phi * own
    return own


def _gap(name: str, found: Any, expected: Any, declared: Declared) -> float:
    """The largest difference between two masked columns."""
    there = ~np.ma.getmaskarray(found)
    if not np.array_equal(there, ~np.ma.getmaskarray(expected)):
        return float("inf")
    new, old = (np.ma.getdata(column)[there].astype(np.float64) for column in (found, expected))
    difference: npt.NDArray[np.float64] = new - old
    if name in declared.angles or name in declared.signed_angles:
        difference = np.asarray(_wrapped(difference))
    return float((np.abs(difference) / np.maximum(np.abs(old), 1)).max(initial=0))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _wrapped(angle: Any) -> Any:
    """The same angle in [-π, π)."""
    return angle - 2 * np.pi * np.floor((angle + np.pi) / (2 * np.pi))


def main(arguments: Sequence[str] | None = None) -> int:
    """Check an analysis on a file of its events; 0 if all features are as declared."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("analysis", help="name or folder of the analysis")
    parser.add_argument("file", help="a ROOT file of its events")
    defaults = Branches()
    for field, said in (("angles", "azimuths"), ("longitudinal", "pseudorapidities"), ("x", "x components")):
        patterns = getattr(defaults, field)
        parser.add_argument(f"--{field}", nargs="*", default=patterns, help=f"branches of {said}; default: %(default)s")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE, as of law run")
    chosen = parser.parse_args(arguments)
    try:
        analysis = load_analysis(chosen.analysis, chosen.set)
        declared, data = analysis.config.training.augmentation, analysis.config.data
        if declared is None or not declared.moves:
            raise UserError(f"Analysis {analysis.config.name!r}: key training.augmentation has no symmetry to check.")
        entries = min(inspect_file(chosen.file, data.tree).entries, data.chunk)
        source = Source(chosen.file, data.tree, data.format, 0, entries, data.sentinels)
        branches = Branches(tuple(chosen.angles), tuple(chosen.longitudinal), tuple(chosen.x))
        found = asymmetries(analysis.config.feature_names, vars(analysis.physics), source, declared, branches)
    except UserError as error:
        parser.exit(1, f"{error}\n")
    for symmetry, gaps in found.items():
        said = ", ".join(f"{name} ({gap:.2g})" for name, gap in gaps.items())
        sys.stdout.write(f"{symmetry}: {f'not as declared: {said}' if gaps else 'all features as declared'}\n")
    return int(any(found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
