"""What a likelihood model expects of a measurement: significance and upper limit, on Asimov data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from analysis.fits import Fits, UnconvergedError
from analysis.likelihood import TINY
from analysis.statistics import asimov_significance

LEVEL = 0.95
"""Confidence level of limits."""
BANDS = {"low_95": -2, "low_68": -1, "median": 0, "high_68": 1, "high_95": 2}
"""Quantiles of expected limits, in standard deviations."""


def expectation(workspace: Mapping[str, Any]) -> dict[str, Any]:
    """What is expected of a measurement, by the asymptotic formulas of Cowan, Cranmer, Gross, Vitells, arXiv:1007.1727.

    With the profile likelihood ratios q of the model on Asimov data: the significance Z = sqrt(q0) on data with mu = 1
    (eq. 53), and the upper limit on mu by CLs, whose quantile of N standard deviations under the background alone is
    the mu with sqrt(q_mu) = N + Φ⁻¹(1 − 0.05 Φ(N)) on data with mu = 0 (eq. 89, with CLs in place of CLs+b).

    Args:
        workspace: For pyhf, with the parameter of interest `mu`, and constraints that are all normal.

    Returns:
        ``significance``, and ``limit``: a value for each of `BANDS`. What is not defined is None: both where the signal
        expects no events, a value where no signal strength is excluded or a fit does not converge; ``reason`` says why.
    """
    from scipy.stats import norm

    fits = Fits(workspace)
    signal, background = fits.asimov(1.0), fits.asimov(0.0)
    own = slice(0, fits.events)
    rough = asimov_significance(np.maximum((signal - background)[own], 0.0), np.maximum(background[own], TINY))
    if not rough > 0:
        return {"significance": None, "limit": None, "reason": "the signal has no expected events"}
    failed, significance = False, None
    try:
        significance = float(np.sqrt(fits.fit(signal, 0.0).deviance))
    except UnconvergedError:
        failed = True

    @cache
    def root_of_q(strength: float) -> float:
        return float(np.sqrt(fits.fit(background, strength).deviance))

    def limit(deviations: int) -> float | None:
        nonlocal failed
        target = deviations + norm.ppf(1 - (1 - LEVEL) * norm.cdf(deviations))
        try:
            # As if the root of q rose in proportion to mu, as it does while the signal's own uncertainty is small.
            return _crossing(root_of_q, target, target / (significance or rough), fits.strengths[1] / 2)
        except UnconvergedError:
            failed = True
            return None

    limits = {name: limit(deviations) for name, deviations in BANDS.items()}
    reason = None
    if failed:
        reason = "a fit of the likelihood model does not converge"
    elif limits["median"] is None:
        reason = "within its uncertainties the model excludes no signal strength"
    return {"significance": significance, "limit": limits, "reason": reason}


def _crossing(rising: Callable[[float], float], target: float, start: float, largest: float) -> float | None:
    """Where a function that rises from 0 at 0 meets a target; None where it does not, up to twice the largest value."""
    from scipy.optimize import brentq

    below, above = 0.0, start
    while rising(above) < target:
        if above > largest:
            return None
        below, above = above, 2 * above
    return float(brentq(lambda value: (rising(value) if value else 0.0) - target, below, above, rtol=1e-3))
