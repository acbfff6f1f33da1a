"""Judging regression targets: bias, resolution and calibration of quantiles, each with an interval from a bootstrap.

Weights are signed physics weights, as in `analysis.metrics`; what a sample does not define is ``None`` with a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.metrics import bootstrap_counts, estimate

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Regressed:
    """A regression target, as far as its judgement goes.

    Attributes:
        function: The true value, a column of the table.
        loss: What the networks were trained on.
        outputs: Names of its outputs.
        quantiles: What they are; empty for one output that is none.
    """

    function: str
    loss: str
    outputs: tuple[str, ...]
    quantiles: tuple[float, ...]

    @property
    def central(self) -> int:
        """The output whose bias and resolution are judged: of quantiles the one nearest to the median."""
        return int(np.argmin([abs(q - 0.5) for q in self.quantiles])) if self.quantiles else 0


def places(targets: Mapping[str, Regressed]) -> dict[str, slice]:
    """Where the outputs of each target are among those of all."""
    edges = np.cumsum([0, *(len(target.outputs) for target in targets.values())]).tolist()
    return {name: slice(a, b) for name, a, b in zip(targets, edges, edges[1:], strict=False)}


def judge_target(
    target: Regressed,
    predicted: npt.NDArray[np.float32],
    truth: FloatArray,
    *,
    weight: FloatArray,
    process: npt.NDArray[np.integer[Any]],
    identity: npt.NDArray[np.uint64],
    replicas: int,
    seed: int,
) -> dict[str, Any]:
    """Compute the figures of one target on some events that have it.

    With r = predicted - true, of the output that `Regressed.central` names, and w the weights: ``bias`` is
    Σwr / Σw, ``resolution`` √(Σwr²/Σw - bias²), ``spread`` the same of the true values, which is the resolution of a
    network that knows nothing. ``calibration`` holds, for each quantile, the share Σw[true < predicted] / Σw, which
    should be the quantile itself.

    Args:
        target: What is judged.
        predicted: Its outputs, ``[N, Q]``.
        truth: ``[N]``.
        weight: Signed, ``[N]``.
        process: The strata of the bootstrap, ``[N]``.
        identity: ``[N]``.
        replicas: Of the bootstrap.
        seed: Likewise.
    """
    central = predicted[:, target.central].astype(np.float64)
    rest = central - truth
    # About the mean, lest the squares of large values hide their spread.
    centre = float(truth.mean()) if len(truth) else 0.0
    moved = truth - centre
    below = [(truth < column).astype(np.float64) for column in predicted.T] if target.quantiles else []
    sums = np.stack([np.ones_like(rest), rest, rest**2, moved, moved**2, *below], axis=1) * weight[:, np.newaxis]
    nominal = _figures(sums.sum(axis=0)[np.newaxis])[0]
    blocks = [_figures(counts @ sums) for counts in bootstrap_counts(identity, process, replicas, seed)]
    found = np.concatenate(blocks)
    note = f"the weights of the {len(truth)} events sum to {weight.sum():g} or do not define it"
    estimates = [estimate(float(value), column, note).to_json() for value, column in zip(nominal, found.T, strict=True)]
    return {
        "events": len(truth),
        "bias": estimates[0],
        "resolution": estimates[1],
        "spread": estimates[2],
        "calibration": [
            {"quantile": quantile, "below": share}
            for quantile, share in zip(target.quantiles, estimates[3:], strict=True)
        ],
    }


def _figures(sums: FloatArray) -> FloatArray:
    """Bias, resolution, spread and shares, NaN where they are not defined: ``[R, 3 + Q]`` from sums ``[R, 5 + Q]``."""
    total = np.where(sums[:, :1] > 0, sums[:, :1], np.nan)
    means = sums / total
    resolution = _root(means[:, 2] - means[:, 1] ** 2)
    spread = _root(means[:, 4] - means[:, 3] ** 2)
    return np.column_stack([means[:, 1], resolution, spread, means[:, 5:]])


def _root(squares: FloatArray) -> FloatArray:
    return np.sqrt(np.where(squares >= 0, squares, np.nan))
