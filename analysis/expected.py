"""What a likelihood model expects of a measurement: significance and upper limit, on Asimov data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from analysis.likelihood import TINY
from analysis.metrics import FloatArray
from analysis.statistics import asimov_significance

LEVEL = 0.95
"""Confidence level of limits."""
BANDS = {"low_95": -2, "low_68": -1, "median": 0, "high_68": 1, "high_95": 2}
"""Quantiles of expected limits, in standard deviations."""
STEP = 1e-3
"""Difference of parameters for derivatives, in the standard deviations that constrain them."""
CLOSE, TIGHT, LOOSE = 1e-10, 1e-6, 1e-4
"""A fit ends where a step would lower the deviance by no more than this, and this share of it; and is good by that."""
ITERATIONS = 200
"""Steps that a fit may take."""


class UnconvergedError(Exception):
    """A fit has found no minimum."""


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

    # Not by way of pyhf.Workspace, which checks everything against its schema first.
    config = workspace["measurements"][0]["config"]
    spec = {"channels": workspace["channels"], "parameters": config["parameters"]}
    profile = Profile(spec, config["poi"])
    signal, background = profile.asimov(1.0), profile.asimov(0.0)
    own = slice(0, profile.events)
    rough = asimov_significance(np.maximum((signal - background)[own], 0.0), np.maximum(background[own], TINY))
    if not rough > 0:
        return {"significance": None, "limit": None, "reason": "the signal has no expected events"}
    failed, significance = False, None
    try:
        significance = float(np.sqrt(profile.deviance(signal, 0.0)))
    except UnconvergedError:
        failed = True

    @cache
    def root_of_q(strength: float) -> float:
        return float(np.sqrt(profile.deviance(background, strength)))

    def limit(deviations: int) -> float | None:
        nonlocal failed
        target = deviations + norm.ppf(1 - (1 - LEVEL) * norm.cdf(deviations))
        try:
            # As if the root of q rose in proportion to mu, as it does while the signal's own uncertainty is small.
            return _crossing(root_of_q, target, target / (significance or rough), profile.strengths[1] / 2)
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


class Profile:
    """Fits of a model with a fixed signal strength, by Fisher scoring in a region of trust.

    A minimiser that has to learn the curvature fails where millions of events in a bin constrain some parameters a
    thousand times better than others. The expected curvature follows from the expected events and their derivatives.
    A fit starts from parameters as they are and ends in the minimum next to them.

    Args:
        spec: The model as pyhf reads it, with normal constraints.
        poi: Its parameter of interest.

    Attributes:
        strengths: Bounds of the parameter of interest.
        events: How many of the data are events; auxiliary data follow.

    Raises:
        ValueError: A constraint of another kind.
    """

    def __init__(self, spec: Mapping[str, Any], poi: str) -> None:
        import pyhf

        model = pyhf.Model(spec, validate=False, poi_name=poi)
        config = model.config
        self.strengths = config.suggested_bounds()[config.poi_index]
        self._model, self.events, self._poi = model, config.nmaindata, config.poi_index
        self._start = np.array(config.suggested_init(), dtype=np.float64)
        widths = np.ones(len(self._start))
        sigmas = []
        for name in config.auxdata_order:
            parameters = config.param_set(name)
            if parameters.pdf_type != "normal":
                raise ValueError(f"{name} has a {parameters.pdf_type} constraint; a normal one is expected")
            own = np.asarray(getattr(parameters, "sigmas", np.ones(parameters.n_parameters)), dtype=np.float64)
            widths[config.par_slice(name)] = own
            sigmas.append(own)
        self._sigma = np.concatenate([*sigmas, np.zeros(0)])  # [A]
        fixed = np.array(config.suggested_fixed(), dtype=np.bool_)
        fixed[self._poi] = True
        self._free = np.flatnonzero(~fixed & (widths > 0))
        self._width = widths
        # All derivatives at once take about as long as one of them.
        self._batched = pyhf.Model(spec, validate=False, poi_name=poi, batch_size=2 * len(self._free) + 1)

    def asimov(self, strength: float) -> FloatArray:
        """What the model expects with its nuisance parameters as they are, auxiliary data included, float64 [B + A]."""
        at = self._start.copy()
        at[self._poi] = strength
        return self._expected(at)

    def deviance(self, data: FloatArray, strength: float) -> float:
        """Smallest deviance, −2 ln of the likelihood over its largest value for any expectation, at a signal strength.

        On Asimov data, which the model describes fully, it is the profile likelihood ratio q.

        Args:
            data: float64 [B + A], events and auxiliary data.
            strength: The fixed signal strength.

        Raises:
            UnconvergedError: No minimum was found.
        """
        from scipy.optimize import minimize

        start = self._start.copy()
        start[self._poi] = strength

        def at(pulls: FloatArray) -> FloatArray:
            parameters = start.copy()
            parameters[self._free] += pulls * self._width[self._free]
            return parameters

        @lru_cache(maxsize=1)
        def derivatives(pulls: bytes) -> tuple[FloatArray, FloatArray]:
            return self._derivatives(data, at(np.frombuffer(pulls)))

        if not len(self._free):
            return self._deviance(data, start)
        found = minimize(
            lambda pulls: self._deviance(data, at(pulls)),
            np.zeros(len(self._free)),
            jac=lambda pulls: derivatives(pulls.tobytes())[0],
            hess=lambda pulls: derivatives(pulls.tobytes())[1],
            method="trust-exact",
            options={"gtol": 0.0, "maxiter": ITERATIONS},
            callback=_Ended(derivatives),
        )
        slope, curvature = derivatives(found.x.tobytes())
        if not _gain(slope, curvature) < LOOSE * found.fun + CLOSE:
            raise UnconvergedError
        return max(float(found.fun), 0.0)

    def _expected(self, at: FloatArray) -> FloatArray:
        return np.asarray(self._model.expected_data(at), dtype=np.float64)

    def _deviance(self, data: FloatArray, at: FloatArray) -> float:
        """Sums of small terms rather than a difference of large ones; infinite where the model can't make the data."""
        expected, count = self._expected(at), self.events
        events, aux = data[:count], (data[count:] - expected[count:])[self._sigma > 0]
        if not (expected[:count] >= 0).all() or ((expected[:count] == 0) & (events > 0)).any():
            return np.inf
        there = events > 0
        excess = expected[:count] - events
        poisson = excess[~there].sum()
        ratio = excess[there] / events[there]
        poisson += np.sum(events[there] * (ratio - np.log1p(ratio)))
        return float(2 * poisson + np.sum((aux / self._sigma[self._sigma > 0]) ** 2))

    def _derivatives(self, data: FloatArray, at: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The slope [P] and the expected curvature [P, P] of the deviance, in widths of the free parameters."""
        moves = np.diag(STEP * self._width)[self._free]  # (P, parameters)
        found = np.asarray(self._batched.expected_data(np.concatenate([at + moves, at - moves, at[np.newaxis]])))
        up, down, (expected,) = np.split(found, [len(moves), 2 * len(moves)])
        jacobian = ((up - down) / (2 * STEP)).T  # (B + A, P)
        weight = np.zeros(len(expected))
        events = expected[: self.events]
        weight[: self.events] = np.divide(1.0, events, out=np.zeros_like(events), where=events > 0)
        weight[self.events :] = np.divide(1.0, self._sigma**2, out=np.zeros_like(self._sigma), where=self._sigma > 0)
        return 2 * jacobian.T @ (weight * (expected - data)), 2 * (jacobian.T * weight) @ jacobian


@dataclass(frozen=True)
class _Ended:
    """Ends a minimisation where a step would gain next to nothing."""

    derivatives: Callable[[bytes], tuple[FloatArray, FloatArray]]

    def __call__(self, intermediate_result: Any) -> None:
        found = intermediate_result
        if _gain(*self.derivatives(found.x.tobytes())) < TIGHT * found.fun + CLOSE:
            raise StopIteration


def _gain(slope: FloatArray, curvature: FloatArray) -> float:
    """What a step to the minimum gains, were the curvature the same everywhere."""
    return float(slope @ np.linalg.lstsq(curvature, slope, rcond=None)[0]) / 2


def _crossing(rising: Callable[[float], float], target: float, start: float, largest: float) -> float | None:
    """Where a function that rises from 0 at 0 meets a target; None where it does not, up to twice the largest value."""
    from scipy.optimize import brentq

    below, above = 0.0, start
    while rising(above) < target:
        if above > largest:
            return None
        below, above = above, 2 * above
    return float(brentq(lambda value: (rising(value) if value else 0.0) - target, below, above, rtol=1e-3))
