"""Systematic variations of templates: completed, smoothed and pruned as each nuisance declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from analysis.histograms import Histogram
from analysis.metrics import FloatArray, IndexArray

SMOOTHED = 3
"""Fewest bins that can be smoothed."""


@dataclass(frozen=True)
class Treatment:
    """What is done to the templates of a variation.

    Attributes:
        symmetrise: Both sides get half their difference.
        smooth: The ratio to the nominal template is smoothed over the bins (353QH, twice), its yield kept.
        prune: Relative effects below this are removed, of the yield and of the shape of each process.
    """

    symmetrise: bool = False
    smooth: bool = False
    prune: float = 0.0


@dataclass(frozen=True, eq=False)
class Variation:
    """What a systematic uncertainty makes of histograms.

    Attributes:
        parameters: Parameters that vary it, and the processes that each of them varies.
        up: Histogram of each of these processes one standard deviation up.
        down: The same down; empty where it is the mirror image.
        treatment: What is done to the templates.
    """

    parameters: Mapping[str, tuple[str, ...]]
    up: Mapping[str, Histogram]
    down: Mapping[str, Histogram] = field(default_factory=dict)
    treatment: Treatment = Treatment()

    def named(self) -> dict[str, Histogram]:
        """The histograms by the names that Combine looks for: <process>_<parameter>Up and <process>_<parameter>Down."""
        owners = {process: parameter for parameter, own in self.parameters.items() for process in own}
        sides = (("Up", self.up), ("Down", self.down))
        return {f"{p}_{owners[p]}{side}": histogram for side, own in sides for p, histogram in own.items()}


@dataclass(frozen=True, eq=False)
class Varied:
    """The templates of one process that one parameter of the likelihood varies.

    Attributes:
        down: One standard deviation down; no bin is negative.
        up: The same up.
        pruned: What was removed as too small.
    """

    down: Histogram
    up: Histogram
    pruned: Literal["yield", "shape"] | None = None


LEAST = 1e-6
"""Smallest yield of a varied template, as a share of the nominal one: likelihoods take none that is empty."""


def settle(variation: Variation, nominal: Mapping[str, Histogram], bounds: IndexArray) -> dict[str, Varied]:
    """Make the templates of a variation fit for a likelihood.

    Args:
        variation: In the bins before merging.
        nominal: Histograms in the same bins, negative ones included.
        bounds: How bins are merged (`Histogram.merged`).

    Returns:
        Both sides for each process on which an effect is left; none for a process without events.
    """
    found = {}
    for process, raw in variation.up.items():
        if process not in nominal:
            continue
        base, up = nominal[process].merged(bounds), raw.merged(bounds)
        down = variation.down[process].merged(bounds) if process in variation.down else up
        high, low, pruned = _treated(
            base.values, up.values, down.values if process in variation.down else None, variation.treatment
        )
        kept = np.maximum(base.values, 0.0)
        if kept.sum() > 0 and not (same(high, kept) and same(low, kept)):
            found[process] = Varied(_with_values(down, low), _with_values(up, high), pruned)
    return found


def effects(nominal: Histogram, varied: Varied) -> dict[str, Any]:
    """Relative effects of a parameter on a template: on the yield, down and up, and the largest on the shape."""
    shapes, yields = [], {}
    total = nominal.values.sum()
    for side, histogram in (("down", varied.down), ("up", varied.up)):
        yields[side] = float(histogram.values.sum() / total - 1) if total > 0 else 0.0
        shapes.append(_deviation(nominal.values, split(nominal.values, histogram.values)[1]))
    return {**yields, "shape": max(shapes), "pruned": varied.pruned}


def split(nominal: FloatArray, varied: FloatArray) -> tuple[float, FloatArray]:
    """The factor of a yield, and the varied template with the nominal yield; 1 where no factor exists."""
    if nominal.sum() > 0 and varied.sum() > 0:
        factor = float(varied.sum() / nominal.sum())
        return factor, varied / factor
    return 1.0, varied


def same(one: FloatArray, other: FloatArray) -> bool:
    """Whether two templates are the same but for rounding."""
    return bool(np.allclose(one, other, rtol=1e-9, atol=0.0))


def _treated(
    nominal: FloatArray, up: FloatArray, down: FloatArray | None, treatment: Treatment
) -> tuple[FloatArray, FloatArray, Literal["yield", "shape"] | None]:
    """Both sides [B] in turn: completed, symmetrised, smoothed, without negative bins, pruned."""
    if down is None:
        down = 2 * nominal - up
    if treatment.symmetrise:
        half = (up - down) / 2
        up, down = nominal + half, nominal - half
    if treatment.smooth:
        up, down = _smoothed(nominal, up), _smoothed(nominal, down)
    up, down, nominal = (np.maximum(side, 0.0) for side in (up, down, nominal))
    up, down = (side if side.sum() > LEAST * nominal.sum() else LEAST * nominal for side in (up, down))
    sides = [split(nominal, side) for side in (up, down)]
    small_yield = all(abs(factor - 1) < treatment.prune for factor, _ in sides)
    small_shape = all(_deviation(nominal, shape) < treatment.prune for _, shape in sides)
    if small_yield and small_shape:
        return nominal, nominal, None
    if small_yield:
        return sides[0][1], sides[1][1], "yield"
    if small_shape:
        return sides[0][0] * nominal, sides[1][0] * nominal, "shape"
    return up, down, None


def _smoothed(nominal: FloatArray, varied: FloatArray) -> FloatArray:
    """Smooth the ratio to the nominal template over the bins that have one; the yield stays."""
    from cabinetry.smooth import smooth_353qh_twice

    there = nominal > 0
    if there.sum() < SMOOTHED or not varied[there].sum() > 0:
        return varied
    smooth = varied.copy()
    smooth[there] = smooth_353qh_twice(varied[there] / nominal[there]) * nominal[there]
    if not smooth[there].sum() > 0:
        return varied
    smooth[there] *= varied[there].sum() / smooth[there].sum()
    return smooth


def _deviation(nominal: FloatArray, shape: FloatArray) -> float:
    """The largest relative difference of two templates in a bin; 1 where a bin has been empty and is not."""
    there = nominal > 0
    largest = float(np.max(np.abs(shape[there] / nominal[there] - 1), initial=0.0))
    return max(largest, 1.0) if (shape[~there] > 0).any() else largest


def _with_values(histogram: Histogram, values: FloatArray) -> Histogram:
    """With other values; the statistical uncertainty stays that of the events that filled it."""
    return Histogram(histogram.edges, values, histogram.variances, histogram.entries)
