"""Weighted histograms of scores: filled, joined, written as JSON and as ROOT's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.metrics import FloatArray, IndexArray, Labels, Scores

DATA = "data_obs"
"""The name of histograms of data, as Combine has it."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Weighted events per bin; the last bin holds its upper edge.

    Attributes:
        edges: float64 [B + 1], rising.
        values: float64 [B], Σw; negative where negative weights prevail.
        variances: float64 [B], Σw².
        entries: int64 [B], number of events.

    Raises:
        ValueError: Shapes that do not agree, or edges that do not rise.
    """

    edges: FloatArray
    values: FloatArray
    variances: FloatArray
    entries: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        _check_edges(self.edges)
        for name in ("values", "variances", "entries"):
            shape = getattr(self, name).shape
            if shape != (len(self.edges) - 1,):
                raise ValueError(f"{name} has the shape {shape}, but there are {len(self.edges) - 1} bins")

    @staticmethod
    def fill(score: Scores, weight: FloatArray, edges: FloatArray) -> Histogram:
        """Fill scores [N] with weights [N].

        Raises:
            ValueError: Scores outside the edges, which would be lost, or NaN.
        """
        row = bins_of(score, edges)
        count = len(edges) - 1
        return Histogram(
            edges=np.asarray(edges, dtype=np.float64),
            values=np.bincount(row, weight, count).astype(np.float64),
            variances=np.bincount(row, np.square(weight), count).astype(np.float64),
            entries=np.bincount(row, minlength=count).astype(np.int64),
        )

    def merged(self, bounds: IndexArray) -> Histogram:
        """Join neighbouring bins: bin i of the result holds the bins bounds[i] to bounds[i + 1] - 1."""
        starts = bounds[:-1]
        return Histogram(
            edges=self.edges[bounds],
            values=np.add.reduceat(self.values, starts),
            variances=np.add.reduceat(self.variances, starts),
            entries=np.add.reduceat(self.entries, starts),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the four arrays as lists."""
        names = ("edges", "values", "variances", "entries")
        return {name: getattr(self, name).tolist() for name in names}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Histogram:
        """Read what `to_json` returned.

        Raises:
            KeyError: An array is missing.
            ValueError: Arrays that do not fit each other.
        """
        edges, values, variances = (np.array(data[k], dtype=np.float64) for k in ("edges", "values", "variances"))
        return Histogram(edges, values, variances, np.array(data["entries"], dtype=np.int64))

    def to_hist(self) -> Any:
        """Return a `hist.Hist` with weighted storage and one axis named ``score``; it has no place for entries."""
        import hist

        axis = hist.axis.Variable(self.edges, name="score", label="score", flow=False)
        result = hist.Hist(axis, storage=hist.storage.Weight())
        result.view().value = self.values
        result.view().variance = self.variances
        return result


def score_histograms(
    score: Scores, weight: FloatArray, process: Labels, names: Sequence[str], edges: FloatArray
) -> dict[str, Histogram]:
    """Fill one histogram per process.

    Args:
        score: float [N], within the edges.
        weight: float64 [N], signed.
        process: int [N], index into the names.
        names: Names of the processes; one without events gets an empty histogram.
        edges: float64 [B + 1], rising.

    Raises:
        ValueError: Scores outside the edges, or NaN; a process without a name.
    """
    if len(process) and not 0 <= int(process.min()) <= int(process.max()) < len(names):
        raise ValueError(f"processes from {process.min()} to {process.max()}, but there are {len(names)} names")
    return {name: Histogram.fill(score[process == p], weight[process == p], edges) for p, name in enumerate(names)}


def write_histograms(path: Path, histograms: Mapping[str, Mapping[str, Histogram]]) -> None:
    """Write a ROOT file: a folder per key, and in it a TH1D with its Σw² per name, which holds no `entries` per bin.

    Args:
        path: The file, overwritten if it exists.
        histograms: By folder, whose name may hold slashes, and by name.
    """
    import uproot

    with uproot.recreate(path) as file:
        for folder, named in histograms.items():
            for name, histogram in named.items():
                file[f"{folder}/{name}"] = histogram.to_hist()


def bins_of(score: Scores, edges: FloatArray) -> IndexArray:
    """Return the bin of each score: [e_i, e_i+1), the last one closed."""
    _check_edges(edges)
    outside = np.count_nonzero(~((score >= edges[0]) & (score <= edges[-1])))
    if outside:
        raise ValueError(f"{outside} of {len(score)} scores are NaN or outside the bins from {edges[0]} to {edges[-1]}")
    return np.asarray(np.searchsorted(edges[1:-1], score, side="right"), dtype=np.intp)


def _check_edges(edges: FloatArray) -> None:
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"edges must be at least two rising numbers, found {edges.tolist()}")
