"""Fits of a likelihood model: the best parameters, their covariance, and what each does to the signal strength."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from analysis.likelihood import STATISTICAL
from analysis.metrics import FloatArray

STEP = 1e-3
"""Difference of parameters for derivatives, in the standard deviations that constrain them."""
CLOSE, TIGHT, LOOSE = 1e-10, 1e-6, 1e-4
"""A fit ends where a step would lower the deviance by no more than this, and this share of it; and is good by that."""
ITERATIONS = 200
"""Steps that a fit may take."""


class UnconvergedError(Exception):
    """A fit has found no minimum."""


@dataclass(frozen=True, eq=False)
class Fit:
    """The minimum of the deviance.

    Attributes:
        parameters: float64 [P], all of them.
        uncertainties: float64 [P], standard deviations from the expected curvature; 0 for fixed parameters.
        correlation: float64 [P, P]; 0 with fixed parameters.
        deviance: −2 ln of the likelihood over its largest value for any expectation.
    """

    parameters: FloatArray
    uncertainties: FloatArray
    correlation: FloatArray
    deviance: float


class Fits:
    """Fits of a model by Fisher scoring in a region of trust.

    A minimiser that has to learn the curvature, such as SLSQP or Minuit, fails where millions of events in a bin
    constrain some parameters a thousand times better than others. The expected curvature follows from the expected
    events and their derivatives. A fit starts from parameters as they are and ends in the minimum next to them.

    Args:
        workspace: For pyhf, with constraints that are all normal.

    Attributes:
        names: Of the parameters.
        nuisances: Places of those that are no signal strength and no statistical uncertainty of a bin.
        strengths: Bounds of the parameter of interest.
        events: How many of the data are events; auxiliary data follow.

    Raises:
        ValueError: A constraint of another kind.
    """

    def __init__(self, workspace: Mapping[str, Any]) -> None:
        import pyhf

        # Not by way of pyhf.Workspace, which checks everything against its schema first.
        chosen = workspace["measurements"][0]["config"]
        spec = {"channels": workspace["channels"], "parameters": chosen["parameters"]}
        model = pyhf.Model(spec, validate=False, poi_name=chosen["poi"])
        config = model.config
        self.strengths = config.suggested_bounds()[config.poi_index]
        self.names, self.poi = tuple(config.par_names), config.poi_index
        self._model, self.events = model, config.nmaindata
        self._start = np.array(config.suggested_init(), dtype=np.float64)
        self.width = np.ones(len(self._start))
        sigmas = []
        for name in config.auxdata_order:
            parameters = config.param_set(name)
            if parameters.pdf_type != "normal":
                raise ValueError(f"{name} has a {parameters.pdf_type} constraint; a normal one is expected")
            own = np.asarray(getattr(parameters, "sigmas", np.ones(parameters.n_parameters)), dtype=np.float64)
            self.width[config.par_slice(name)] = own
            sigmas.append(own)
        self._sigma = np.concatenate([*sigmas, np.zeros(0)])  # [A]
        self._varied = ~np.array(config.suggested_fixed(), dtype=np.bool_) & (self.width > 0)
        of_bins = np.array([name.startswith(STATISTICAL) for name in self.names])
        self.nuisances = [int(place) for place in np.flatnonzero(self._varied & ~of_bins) if place != self.poi]
        # All derivatives at once take about as long as one of them.
        size = 2 * len(self._start) + 1
        self._batched = pyhf.Model(spec, validate=False, poi_name=chosen["poi"], batch_size=size)

    def asimov(self, strength: float) -> FloatArray:
        """What the model expects with its nuisance parameters as they are, auxiliary data included, float64 [B + A]."""
        at = self._start.copy()
        at[self.poi] = strength
        return self._expected(at)

    def observed(self, workspace: Mapping[str, Any]) -> FloatArray:
        """The observed events of a workspace with the auxiliary data of the model, float64 [B + A]."""
        found = {observation["name"]: observation["data"] for observation in workspace["observations"]}
        events = [found[name] for name in self._model.config.channels]
        return np.concatenate([*events, self.asimov(1.0)[self.events :]])

    def fit(self, data: FloatArray, strength: float | None = None, fixed: Mapping[int, float] | None = None) -> Fit:
        """Find the parameters that describe data best.

        On Asimov data, which the model describes fully, the deviance is the profile likelihood ratio q.

        Args:
            data: float64 [B + A], events and auxiliary data.
            strength: A signal strength that is fixed; by default it is fitted, and may be negative.
            fixed: Values of other parameters that are fixed, by their places.

        Raises:
            UnconvergedError: No minimum was found.
        """
        from scipy.optimize import minimize

        held = {**({} if strength is None else {self.poi: strength}), **(fixed or {})}
        start, varied = self._start.copy(), self._varied.copy()
        for place, value in held.items():
            start[place], varied[place] = value, False
        free = np.flatnonzero(varied)
        if not len(free):
            nothing = np.zeros(len(start))
            return Fit(start, nothing, np.diag(nothing), self._deviance(data, start))

        def at(pulls: FloatArray) -> FloatArray:
            parameters = start.copy()
            parameters[free] += pulls * self.width[free]
            return parameters

        @lru_cache(maxsize=1)
        def derivatives(pulls: bytes) -> tuple[FloatArray, FloatArray]:
            slope, curvature = self._derivatives(data, at(np.frombuffer(pulls)))
            return slope[free], curvature[np.ix_(free, free)]

        found = minimize(
            lambda pulls: self._deviance(data, at(pulls)),
            np.zeros(len(free)),
            jac=lambda pulls: derivatives(pulls.tobytes())[0],
            hess=lambda pulls: derivatives(pulls.tobytes())[1],
            method="trust-exact",
            options={"gtol": 0.0, "maxiter": ITERATIONS},
            callback=_Ended(derivatives),
        )
        slope, curvature = derivatives(found.x.tobytes())
        if not _gain(slope, curvature) < LOOSE * found.fun + CLOSE:
            raise UnconvergedError
        covariance = 2 * np.linalg.pinv(curvature, hermitian=True)
        spread = np.sqrt(np.diag(covariance))
        uncertainties, correlation = np.zeros(len(start)), np.zeros((len(start), len(start)))
        uncertainties[free] = spread * self.width[free]
        correlation[np.ix_(free, free)] = covariance / np.outer(spread, spread)
        return Fit(at(found.x), uncertainties, correlation, max(float(found.fun), 0.0))

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
        """The slope [P] and the expected curvature [P, P] of the deviance, in widths of the parameters."""
        moves = np.diag(STEP * self.width)  # (P, P)
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
