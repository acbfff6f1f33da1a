"""Figures of merit of a classifier on weighted events, each with an interval from a bootstrap over events.

`evaluate` computes them all for one sample. Weights are signed physics weights and are never made positive or clipped;
a quantity that a sample does not define (a class whose weights sum to zero or below) is ``None`` with a note. Log-loss,
accuracy and confusion matrix use weights normalised per class, so that every class counts the same. Definitions,
conventions and sources: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from analysis.splitting import salted, splitmix64
from analysis.weights import effective_number

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IndexArray = npt.NDArray[np.intp]
Scores = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.integer[Any]]

EFFICIENCIES = (0.3, 0.5, 0.7, 0.9)

# Upper ends of Poisson(1) in steps of 2^-16: a uniform 16-bit integer u gives the count Σ_k [u >= _POISSON[k]]. Rounded
# like this, the mean is exactly 1 and the variance 1 - 3.1e-5; counts above 8 (probability 1.1e-6) do not occur.
_POISSON = np.array([24109, 48219, 60273, 64292, 65296, 65497, 65531, 65535], dtype=np.uint16)
_LANES = 4  # counts drawn from one 64-bit hash, 16 bits each
_BLOCK = 1 << 19  # counts per block: 4 MiB of float64, which stays in the cache


@dataclass(frozen=True)
class Sample:
    """Scored events of known class, as `evaluate` takes them.

    Attributes:
        probabilities: float [N, C], class probabilities; finite.
        label: int [N], index of the true class, 0 <= label < C.
        weight: float64 [N], signed physics weights; finite.
        process: int [N], the strata of the bootstrap.
        identity: uint64 [N], from `analysis.splitting.event_identity`.

    Raises:
        ValueError: Shapes that do not agree, a label outside the classes, or values that are not finite.
    """

    probabilities: Scores
    label: Labels
    weight: FloatArray
    process: Labels
    identity: npt.NDArray[np.uint64]

    def __post_init__(self) -> None:
        if self.probabilities.ndim != 2:
            raise ValueError(f"probabilities need the shape [N, C], not {self.probabilities.shape}")
        count, classes = self.probabilities.shape
        for name in ("label", "weight", "process", "identity"):
            shape = getattr(self, name).shape
            if shape != (count,):
                raise ValueError(f"{name} has the shape {shape}, but there are probabilities of {count} events")
        if count and not 0 <= int(self.label.min()) <= int(self.label.max()) < classes:
            raise ValueError(f"labels from {self.label.min()} to {self.label.max()}, but there are {classes} classes")
        _check_finite(probabilities=self.probabilities, weight=self.weight)


@dataclass(frozen=True)
class Estimate:
    """A value with its 68% interval; ``None`` where it is not defined, and a note that says why."""

    value: float | None
    low: float | None
    high: float | None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return ``{"value", "low", "high"}``, with ``"note"`` if there is one."""
        result: dict[str, Any] = {"value": self.value, "low": self.low, "high": self.high}
        return result | {"note": self.note} if self.note else result


@dataclass(frozen=True)
class RocCurve:
    """Signal against background efficiency, from the highest score downwards; arrays of shape [T + 1].

    Attributes:
        thresholds: The T distinct scores in falling order, after a first +inf.
        signal_efficiency: Σw of signal with score >= threshold over Σw of signal, from 0 to 1.
        background_efficiency: The same of the background.
    """

    thresholds: FloatArray
    signal_efficiency: FloatArray
    background_efficiency: FloatArray


@dataclass(frozen=True)
class WorkingPoint:
    """A cut ``score >= threshold``, chosen by the signal efficiency that it should reach.

    Attributes:
        target: Signal efficiency asked for.
        threshold: The highest score whose signal efficiency reaches the target.
        signal_efficiency: Signal efficiency above it.
        background_efficiency: Background efficiency above it.
        background_rejection: 1 / background efficiency; None where that is not positive.
        purity: S / (S + B) in physics weights; None where S + B is not positive.
    """

    target: float
    threshold: float
    signal_efficiency: float
    background_efficiency: float
    background_rejection: float | None
    purity: float | None


@dataclass(frozen=True)
class KsTest:
    """Weighted two-sample Kolmogorov-Smirnov test.

    Attributes:
        statistic: Largest distance of the two cumulative distributions.
        p_value: Asymptotic p-value with effective numbers of events.
        permutation_p_value: p-value from permutations; None where none were asked for.
    """

    statistic: float
    p_value: float
    permutation_p_value: float | None


def evaluate(sample: Sample, classes: Sequence[str], signal: str, replicas: int, seed: int) -> dict[str, Any]:
    """Compute all figures of merit of one sample, each with its 68% bootstrap interval.

    One class against the rest takes the rest with its physics weights, so that the relative normalisation of the
    other classes is the one of their cross sections. The networks are held fixed, and so are the thresholds of the
    working points: intervals hold the sampling error of these events, not the variance of training.

    Args:
        sample: Scored events; class c is column c of the probabilities.
        classes: Names of the C classes.
        signal: The signal class.
        replicas: Bootstrap replicas, at least 1; 1,000 or more for intervals to be published.
        seed: Seed of the bootstrap; two models on the same events and seed have paired replicas.

    Returns:
        A JSON-ready dict without NaN. An *estimate* is ``{"value", "low", "high"}``, with ``"note"`` where something
        is ``None``:

        - ``auc``: ``{"weighted", "unweighted"}``, an estimate each, signal against the rest by the signal's probability
        - ``auc_per_class``: the same for each class against the rest, by its own probability
        - ``auc_against``: the same for the signal against each other class alone, by the signal's probability
        - ``log_loss``, ``accuracy``: estimates
        - ``confusion``, ``confusion_low``, ``confusion_high``: [C][C], row = true class, column = most probable class
        - ``working_points``: per efficiency ``target``, ``threshold`` and the estimates ``signal_efficiency``,
          ``background_efficiency``, ``background_rejection``, ``purity``
        - ``events``, ``effective_events``, ``sum_of_weights``, ``negative_dilution``: a number per class
        - ``notes``: a sentence for each class without a positive sum of weights

    Raises:
        ValueError: Classes that do not fit the probabilities, an unknown signal, or no replicas.
    """
    if len(classes) != sample.probabilities.shape[1] or len(set(classes)) != len(classes):
        raise ValueError(f"{sample.probabilities.shape[1]} columns of probabilities for the classes {list(classes)}")
    if signal not in classes:
        raise ValueError(f"the signal {signal!r} is none of the classes {list(classes)}")
    if replicas < 1:
        raise ValueError(f"{replicas} replicas: an interval needs at least one")

    chosen = classes.index(signal)
    aucs = _auc_tasks(sample, classes, chosen)
    sums = _class_sums(sample, classes, chosen)
    nominal = np.ones((len(sample.weight), 1))
    auc_values = [task.replicas(nominal)[:, 0] for task in aucs.values()]
    sum_values = sums.from_counts(nominal)
    auc_blocks: list[list[FloatArray]] = [[] for _ in aucs]
    sum_blocks = []
    for block in bootstrap_counts(sample.identity, sample.process, replicas, seed):
        counts = block.T
        for task, kept in zip(aucs.values(), auc_blocks, strict=True):
            kept.append(task.replicas(counts))
        sum_blocks.append(sums.from_counts(counts))

    auc_json = {
        key: task.to_json(value, np.concatenate(kept, axis=1))
        for (key, task), value, kept in zip(aucs.items(), auc_values, auc_blocks, strict=True)
    }
    weights = [sample.weight[sample.label == c] for c in range(len(classes))]
    totals = [float(w.sum()) for w in weights]
    return {
        "auc": auc_json["class", chosen],
        "auc_per_class": {name: auc_json["class", c] for c, name in enumerate(classes)},
        "auc_against": {name: auc_json["against", c] for c, name in enumerate(classes) if c != chosen},
        **sums.to_json(sum_values, np.concatenate(sum_blocks)),
        "events": {name: len(w) for name, w in zip(classes, weights, strict=True)},
        "effective_events": {name: effective_number(w) for name, w in zip(classes, weights, strict=True)},
        "sum_of_weights": dict(zip(classes, totals, strict=True)),
        "negative_dilution": {
            name: negative_dilution(w) if total > 0 else None
            for name, w, total in zip(classes, weights, totals, strict=True)
        },
        "notes": [_no_weight(name, total) for name, total in zip(classes, totals, strict=True) if not total > 0],
    }


def evaluate_auc(sample: Sample, classes: Sequence[str], signal: str, replicas: int, seed: int) -> dict[str, Any]:
    """Compute the AUC of the signal against the rest alone; arguments as `evaluate`, of whose result it is ``auc``."""
    chosen = classes.index(signal)
    task = _auc_tasks(sample, classes, chosen)["class", chosen]
    value = task.replicas(np.ones((len(sample.weight), 1)))[:, 0]
    blocks = [task.replicas(block.T) for block in bootstrap_counts(sample.identity, sample.process, replicas, seed)]
    return task.to_json(value, np.concatenate(blocks, axis=1))


def negative_dilution(w: FloatArray) -> float:
    """Return Σ|w|/Σw of weights [N]: 1 without negative weights, larger with them.

    Raises:
        ValueError: Weights that do not have a positive sum.
    """
    return float(np.abs(w).sum()) / _positive_sum(w, "sample")


def roc_auc(score: Scores, is_signal: BoolArray, weight: FloatArray) -> float:
    """Area under the ROC curve with signed weights: the weighted Mann-Whitney statistic, in O(N log N).

    Σ_s Σ_b w_s w_b [1(p_s > p_b) + ½·1(p_s = p_b)] / (W_s W_b), never clipped: negative weights can bring it outside
    [0, 1]. The trapezoids below `roc_curve` add up to the same number, also where that curve runs backwards.

    Args:
        score: float [N], higher for signal.
        is_signal: bool [N].
        weight: float64 [N], signed.

    Raises:
        ValueError: Signal or background weights that do not have a positive sum, or values that are not finite.
    """
    _check_finite(score=score, weight=weight)
    _positive_sum(weight[is_signal], "signal")
    _positive_sum(weight[~is_signal], "background")
    ranking = _Ranking.of(score, np.flatnonzero(is_signal), np.flatnonzero(~is_signal))
    return float(ranking.auc(np.ones((len(score), 1)), weight)[0, 0])


def roc_curve(score: Scores, is_signal: BoolArray, weight: FloatArray) -> RocCurve:
    """Efficiencies above every distinct score, with signed weights.

    Where negative weights prevail between two scores the curve runs backwards. It is shown so, neither sorted nor made
    monotonic, for only then is the area below it the AUC (docs/metrics.md, "ROC").

    Args:
        score: float [N], higher for signal.
        is_signal: bool [N].
        weight: float64 [N], signed.

    Raises:
        ValueError: Signal or background weights that do not have a positive sum, or values that are not finite.
    """
    _check_finite(score=score, weight=weight)
    signal_sum = _positive_sum(weight[is_signal], "signal")
    background_sum = _positive_sum(weight[~is_signal], "background")
    order = np.argsort(score, kind="stable")[::-1]
    falling = score[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    signal = np.cumsum(np.where(is_signal, weight, 0.0)[order])[last]
    background = np.cumsum(np.where(is_signal, 0.0, weight)[order])[last]
    return RocCurve(
        thresholds=np.concatenate([[np.inf], falling[last]]).astype(np.float64),
        signal_efficiency=np.concatenate([[0.0], signal / signal_sum]),
        background_efficiency=np.concatenate([[0.0], background / background_sum]),
    )


def log_loss(probabilities: Scores, labels: Labels, weight: FloatArray) -> float:
    """Cross entropy in nats, averaged over events within a class and then over classes.

    Args:
        probabilities: float [N, C]; kept away from zero by their type's epsilon, as scikit-learn does.
        labels: int [N], 0 <= label < C.
        weight: float64 [N], signed; normalised per class here.

    Raises:
        ValueError: A class without a positive sum of weights, or values that are not finite.
    """
    return _class_average(_event_losses(probabilities, labels), labels, weight, probabilities.shape[1])


def accuracy(probabilities: Scores, labels: Labels, weight: FloatArray) -> float:
    """Share of events whose most probable class is the true one, averaged over classes; arguments as `log_loss`.

    Raises:
        ValueError: A class without a positive sum of weights, or values that are not finite.
    """
    correct = (_most_probable(probabilities) == labels).astype(np.float64)
    return _class_average(correct, labels, weight, probabilities.shape[1])


def confusion_matrix(probabilities: Scores, labels: Labels, weight: FloatArray) -> FloatArray:
    """Share of each true class (row) that each class is the most probable for (column); arguments as `log_loss`.

    Returns:
        float64 [C, C]; rows add up to one. Entries can leave [0, 1] with negative weights.

    Raises:
        ValueError: A class without a positive sum of weights, or values that are not finite.
    """
    classes = probabilities.shape[1]
    _check_finite(probabilities=probabilities, weight=weight)
    normalised = _class_normalised(labels, weight, classes)
    matrix = np.zeros((classes, classes))
    np.add.at(matrix, (labels, _most_probable(probabilities)), normalised)
    return matrix


def working_points(
    score: Scores, is_signal: BoolArray, weight: FloatArray, efficiencies: Sequence[float] = EFFICIENCIES
) -> list[WorkingPoint]:
    """Cuts on the score that keep given shares of the signal, and what they keep of the background.

    With negative weights the signal efficiency need not fall steadily with the threshold; the highest threshold that
    reaches the target is taken.

    Args:
        score: float [N], higher for signal.
        is_signal: bool [N].
        weight: float64 [N], signed physics weights, which the purity needs.
        efficiencies: Signal efficiencies to reach, each in (0, 1].

    Raises:
        ValueError: As `roc_curve`, or an efficiency outside (0, 1].
    """
    if not all(0 < e <= 1 for e in efficiencies):
        raise ValueError(f"signal efficiencies {list(efficiencies)}: each must lie in (0, 1]")
    curve = roc_curve(score, is_signal, weight)
    signal_sum, background_sum = float(weight[is_signal].sum()), float(weight[~is_signal].sum())
    points = []
    for target in efficiencies:
        # The last efficiency is one but for rounding, which must not hide it from a target of one.
        i = int(np.argmax(curve.signal_efficiency >= target * (1 - 1e-12)))
        signal, background = float(curve.signal_efficiency[i]), float(curve.background_efficiency[i])
        kept = signal * signal_sum + background * background_sum
        points.append(
            WorkingPoint(
                target=float(target),
                threshold=float(curve.thresholds[i]),
                signal_efficiency=signal,
                background_efficiency=background,
                background_rejection=1 / background if background > 0 else None,
                purity=signal * signal_sum / kept if kept > 0 else None,
            )
        )
    return points


def ks_weighted(
    a: Scores, wa: FloatArray, b: Scores, wb: FloatArray, *, permutations: int = 0, seed: int = 0
) -> KsTest:
    """Compare two weighted samples by the largest distance of their cumulative distributions.

    The asymptotic p-value is Kolmogorov's with n = n_a n_b / (n_a + n_b) of the effective numbers: the plain number of
    entries raises far too many alarms on weighted events. Permutations exchange events with their weights, so they
    assume that weights are distributed alike in both samples; a permutation that leaves a sample without a positive
    sum of weights counts as extreme.

    Args:
        a: float [N_a], one sample.
        wa: float64 [N_a], its signed weights.
        b: float [N_b], the other sample.
        wb: float64 [N_b], its signed weights.
        permutations: Number of permutations; 0 for none.
        seed: Seed of the permutations.

    Raises:
        ValueError: A sample without a positive sum of weights, or values that are not finite.
    """
    from scipy import special

    _check_finite(a=a, wa=wa, b=b, wb=wb)
    _positive_sum(wa, "first sample")
    _positive_sum(wb, "second sample")
    pooled = np.concatenate([a, b])
    order = np.argsort(pooled, kind="stable")
    ordered = pooled[order]
    last = np.append(ordered[1:] != ordered[:-1], True)
    weight = np.concatenate([wa, wb])[order]
    everything = np.cumsum(weight)
    in_a = order < len(a)

    def distance(member: BoolArray) -> float:
        first = np.cumsum(np.where(member, weight, 0.0))
        sums = float(first[-1]), float(everything[-1] - first[-1])
        if min(sums) <= 0:
            return np.inf
        return float(np.abs(first / sums[0] - (everything - first) / sums[1])[last].max())

    statistic = distance(in_a)
    n_a, n_b = effective_number(wa), effective_number(wb)
    p_value = float(special.kolmogorov(np.sqrt(n_a * n_b / (n_a + n_b)) * statistic))
    if permutations == 0:
        return KsTest(statistic, p_value, None)
    rng = np.random.default_rng(seed)
    # A permutation that ties with the data counts as extreme; rounding must not decide.
    extreme = sum(distance(rng.permutation(in_a)) >= statistic - 1e-12 for _ in range(permutations))
    return KsTest(statistic, p_value, (1 + extreme) / (1 + permutations))


def bootstrap_counts(
    identity: npt.NDArray[np.uint64], stratum: Labels, replicas: int, seed: int
) -> Iterator[FloatArray]:
    """Draw how often each event occurs in each replica of a Poisson bootstrap, stratified by process.

    The Poisson(1) count of an event is a hash of its identity, the replica and the seed. It depends on neither order,
    selection nor model, so two models scored on the same events have paired replicas. Within each stratum the counts
    of a replica are then scaled to add up to the stratum's number of events (a stratum in which none was drawn keeps
    every event once).

    Args:
        identity: uint64 [N]; entries of one identity share their count.
        stratum: int [N], for instance the process.
        replicas: Number of replicas R.
        seed: Seed of the bootstrap.

    Yields:
        float64 [R_b, N], consecutive replicas, Σ R_b = R, at most 4 MiB unless four replicas take more. The memory
        order is Fortran's: the replicas of one event lie side by side, which `bootstrap_auc` makes use of.

    Raises:
        ValueError: Identity and stratum of different lengths.
    """
    if identity.shape != stratum.shape or identity.ndim != 1:
        raise ValueError(f"identities {identity.shape} and strata {stratum.shape}: both must have the shape [N]")
    key = salted(identity, "bootstrap", str(seed))[:, np.newaxis]  # [N, 1]
    _, row, size = np.unique(stratum, return_inverse=True, return_counts=True)
    members = (row == np.arange(len(size))[:, np.newaxis]).astype(np.float64)  # [S, N]
    step = max(_LANES, _BLOCK // max(1, len(identity)) // _LANES * _LANES)
    for start in range(0, replicas, step):
        stop = min(start + step, replicas)
        # Hashing a mixed counter keeps the streams of two events apart even if their keys differ by a few.
        counter = splitmix64(np.arange(start // _LANES, -(-stop // _LANES), dtype=np.uint64))
        uniform = splitmix64(key ^ counter).astype("<u8", copy=False).view("<u2")[:, : stop - start]  # [N, R_b]
        drawn = np.zeros(uniform.shape, dtype=np.uint8)
        for threshold in _POISSON:
            drawn += uniform >= threshold
        counts = drawn.astype(np.float64)
        total = members @ counts  # [S, R_b]
        empty = total == 0
        scale = size[:, np.newaxis] / np.where(empty, 1.0, total)
        counts *= scale[row]
        if empty.any():
            counts += empty[row]
        yield counts.T


def bootstrap_auc(
    score: Scores, is_signal: BoolArray, weight: FloatArray, counts_blocks: Iterable[FloatArray]
) -> FloatArray:
    """Evaluate `roc_auc` in every replica: one sort, then cumulative sums over all replicas of a block.

    Args:
        score: float [N].
        is_signal: bool [N].
        weight: float64 [N], signed.
        counts_blocks: float64 [R_b, N] each, from `bootstrap_counts`.

    Returns:
        float64 [R]; NaN in replicas whose signal or background weights do not have a positive sum.

    Raises:
        ValueError: Values that are not finite.
    """
    _check_finite(score=score, weight=weight)
    ranking = _Ranking.of(score, np.flatnonzero(is_signal), np.flatnonzero(~is_signal))
    blocks = [ranking.auc(counts.T, weight)[0] for counts in counts_blocks]
    return np.concatenate(blocks) if blocks else np.empty(0)


def paired_replicas(
    samples: Sequence[Sample], signal: int, counts_blocks: Iterable[FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """Evaluate several scores of the same events in every replica: weighted AUC of the signal, and `log_loss`.

    Args:
        samples: K times the same events in the same order, each with other probabilities.
        signal: Index of the signal class, against the rest.
        counts_blocks: float64 [R_b, N] each, from `bootstrap_counts`.

    Returns:
        float64 [K, R] each; NaN where a sum of weights is not positive.
    """
    one, classes = samples[0], samples[0].probabilities.shape[1]
    parts = [np.flatnonzero(rows) for rows in (one.label == signal, one.label != signal)]
    rankings = [_Ranking.of(sample.probabilities[:, signal], *parts) for sample in samples]
    by_class = one.weight[:, np.newaxis] * (one.label[:, np.newaxis] == np.arange(classes))  # [N, C]
    losses = [_event_losses(sample.probabilities, sample.label) for sample in samples]  # [N] each
    terms = np.column_stack([by_class, *(by_class * own[:, np.newaxis] for own in losses)])  # [N, C (1 + K)]
    areas, means = [], []
    for counts in counts_blocks:
        areas.append(np.stack([ranking.auc(counts.T, one.weight)[0] for ranking in rankings]))  # [K, R_b]
        sums = (counts @ terms).reshape(len(counts), 1 + len(samples), classes)  # [R_b, 1 + K, C]
        means.append(_ratio(sums[:, 1:], sums[:, :1]).mean(axis=2).T)  # [K, R_b]
    return np.concatenate(areas, axis=1), np.concatenate(means, axis=1)


def interval(values: FloatArray) -> tuple[float, float]:
    """Return the central 68% of replicas [R]: their 16% and 84% quantiles.

    Raises:
        ValueError: No values, or values that are not finite.
    """
    if not len(values):
        raise ValueError("an interval needs at least one replica")
    _check_finite(values=values)
    low, high = np.quantile(values, [0.16, 0.84])
    return float(low), float(high)


def estimate(value: float | None, replicas: FloatArray, note: str = "") -> Estimate:
    """Join a value and its replicas [R]; an undefined value keeps its note, undefined replicas void the interval."""
    if value is None or not np.isfinite(value):
        return Estimate(None, None, None, note or "not defined for these events")
    undefined = int(np.count_nonzero(~np.isfinite(replicas)))
    if undefined:
        return Estimate(value, None, None, f"not defined in {undefined} of {len(replicas)} replicas")
    return Estimate(value, *interval(replicas))


@dataclass(frozen=True)
class _Ranking:
    """Signal events and how many background events lie below each of them: all that the AUC needs of the scores.

    Attributes:
        signal: intp [S], rows of the signal events, by rising score.
        background: intp [B], rows of the background events, by rising score.
        below: intp [S], number of background events with a lower score.
        up_to: intp [S], number of background events with a lower or the same score.
    """

    signal: IndexArray
    background: IndexArray
    below: IndexArray
    up_to: IndexArray

    @staticmethod
    def of(score: Scores, signal: IndexArray, background: IndexArray) -> _Ranking:
        signal = signal[np.argsort(score[signal], kind="stable")]
        background = background[np.argsort(score[background], kind="stable")]
        below = np.searchsorted(score[background], score[signal], side="left")
        up_to = np.searchsorted(score[background], score[signal], side="right")
        return _Ranking(signal, background, below, up_to)

    def auc(self, counts: FloatArray, *weights: FloatArray | None) -> FloatArray:
        """Return the AUC for each weight [N] (None: one each) and replica, [len(weights), R], from counts [N, R].

        NaN where signal or background weights do not have a positive sum.
        """
        result = np.full((len(weights), counts.shape[1]), np.nan)
        signal_counts, background_counts = counts[self.signal], counts[self.background]  # [S, R], [B, R]
        cumulative = np.zeros((len(self.background) + 1, counts.shape[1]))
        ties = not np.array_equal(self.below, self.up_to)
        for weight, area in zip(weights, result, strict=True):
            signal, background = signal_counts, background_counts
            if weight is not None:
                signal = signal * weight[self.signal, np.newaxis]
                background = background * weight[self.background, np.newaxis]
            np.cumsum(background, axis=0, out=cumulative[1:])
            above = np.einsum("sr,sr->r", signal, cumulative[self.below])
            tied = np.einsum("sr,sr->r", signal, cumulative[self.up_to]) if ties else above
            signal_sum, background_sum = signal.sum(axis=0), cumulative[-1]
            defined = (signal_sum > 0) & (background_sum > 0)
            np.divide((above + tied) / 2, signal_sum * background_sum, out=area, where=defined)
        return result


@dataclass(frozen=True)
class _AucTask:
    """One AUC, weighted and unweighted, with the reasons why either is not defined."""

    ranking: _Ranking
    weight: FloatArray
    notes: tuple[str, str]

    def replicas(self, counts: FloatArray) -> FloatArray:
        """Return [2, R], weighted and unweighted, from counts [N, R]."""
        return self.ranking.auc(counts, self.weight, None)

    def to_json(self, value: FloatArray, replicas: FloatArray) -> dict[str, Any]:
        weighted, unweighted = (
            estimate(float(v), r, note).to_json() for v, r, note in zip(value, replicas, self.notes, strict=True)
        )
        return {"weighted": weighted, "unweighted": unweighted}


def _auc_tasks(sample: Sample, classes: Sequence[str], signal: int) -> dict[tuple[str, int], _AucTask]:
    """Return the AUCs of each class against the rest and of the signal against each other class alone."""

    def task(column: int, background: BoolArray, name: str) -> _AucTask:
        # Pairs, since a class may well be called "rest".
        parts = ((classes[column], sample.label == column), (name, background))
        ranking = _Ranking.of(sample.probabilities[:, column], *(np.flatnonzero(rows) for _, rows in parts))
        sums = [(part, float(sample.weight[rows].sum())) for part, rows in parts]
        weighted = "; ".join(_no_weight(part, total) for part, total in sums if not total > 0)
        unweighted = "; ".join(f"{part}: no events" for part, rows in parts if not rows.any())
        return _AucTask(ranking, sample.weight, (weighted, unweighted))

    others = [c for c in range(len(classes)) if c != signal]
    against_rest = {("class", c): task(c, sample.label != c, "rest") for c in range(len(classes))}
    return against_rest | {("against", c): task(signal, sample.label == c, classes[c]) for c in others}


@dataclass(frozen=True)
class _ClassSums:
    """Per-event terms whose weighted sums give log-loss, accuracy, confusion matrix and working points.

    Attributes:
        terms: float64 [N, K]: for each class its weights (C columns), its weights times the loss (C), its weights in
            each predicted class (C·C); then for each working point the signal's and the background's weights above it.
        classes: Names of the classes.
        signal: Index of the signal class.
        points: The working points; empty where they are not defined.
        targets: Signal efficiencies asked for.
    """

    terms: FloatArray
    classes: Sequence[str]
    signal: int
    points: list[WorkingPoint]
    targets: Sequence[float] = field(default=EFFICIENCIES)

    def from_counts(self, counts: FloatArray) -> FloatArray:
        """Return the sums [R, K] from counts [N, R]."""
        return counts.T @ self.terms

    def to_json(self, value: FloatArray, replicas: FloatArray) -> dict[str, Any]:
        """Return the results from the sums of all events, [1, K], and of the replicas, [R, K]."""
        count = len(self.classes)
        totals = value[0, :count]
        note = "; ".join(_no_weight(c, t) for c, t in zip(self.classes, totals, strict=True) if not t > 0)
        loss, matrix = self._loss(value), self._confusion(value)
        losses, matrices = self._loss(replicas), self._confusion(replicas)
        diagonals = np.diagonal(matrices, axis1=1, axis2=2).mean(axis=1)
        cells = [[estimate(float(matrix[0, i, j]), matrices[:, i, j]) for j in range(count)] for i in range(count)]
        return {
            "log_loss": estimate(float(loss[0]), losses, note).to_json(),
            "accuracy": estimate(float(np.diagonal(matrix[0]).mean()), diagonals, note).to_json(),
            "confusion": [[cell.value for cell in row] for row in cells],
            "confusion_low": [[cell.low for cell in row] for row in cells],
            "confusion_high": [[cell.high for cell in row] for row in cells],
            "working_points": self._working_points(value, replicas),
        }

    def _loss(self, sums: FloatArray) -> FloatArray:
        count = len(self.classes)
        return cast(FloatArray, _ratio(sums[:, count : 2 * count], sums[:, :count]).mean(axis=1))

    def _confusion(self, sums: FloatArray) -> FloatArray:
        count = len(self.classes)
        cells = sums[:, 2 * count : (2 + count) * count].reshape(-1, count, count)
        return _ratio(cells, sums[:, :count, np.newaxis])

    def _working_points(self, value: FloatArray, replicas: FloatArray) -> list[dict[str, Any]]:
        if not self.points:
            note = "signal or background without a positive sum of weights"
            nothing = Estimate(None, None, None, note).to_json()
            names = ("signal_efficiency", "background_efficiency", "background_rejection", "purity")
            return [{"target": t, "threshold": None} | dict.fromkeys(names, nothing) for t in self.targets]
        result = []
        count = len(self.classes)
        for i, point in enumerate(self.points):
            columns = slice((2 + count) * count + 2 * i, (2 + count) * count + 2 * i + 2)
            one, many = (self._point(sums[:, :count], sums[:, columns]) for sums in (value, replicas))
            notes = {
                "background_rejection": "no positive background weight above the threshold",
                "purity": "no positive weight above the threshold",
            }
            figures = {name: estimate(float(one[name][0]), many[name], notes.get(name, "")).to_json() for name in one}
            result.append({"target": point.target, "threshold": point.threshold} | figures)
        return result

    def _point(self, totals: FloatArray, above: FloatArray) -> dict[str, FloatArray]:
        signal_sum = totals[:, self.signal]
        background_sum = np.delete(totals, self.signal, axis=1).sum(axis=1)
        signal, background = above[:, 0], above[:, 1]
        return {
            "signal_efficiency": _ratio(signal, signal_sum),
            "background_efficiency": _ratio(background, background_sum),
            "background_rejection": _ratio(background_sum, background),
            "purity": _ratio(signal, signal + background),
        }


def _class_sums(sample: Sample, classes: Sequence[str], signal: int) -> _ClassSums:
    index = np.arange(len(classes))
    by_class = sample.weight[:, np.newaxis] * (sample.label[:, np.newaxis] == index)  # [N, C]
    losses = _event_losses(sample.probabilities, sample.label)[:, np.newaxis]
    predicted = _most_probable(sample.probabilities)[:, np.newaxis] == index  # [N, C]
    cells = (by_class[:, :, np.newaxis] * predicted[:, np.newaxis, :]).reshape(len(losses), len(classes) ** 2)
    is_signal, score = sample.label == signal, sample.probabilities[:, signal]
    defined = all(sample.weight[part].sum() > 0 for part in (is_signal, ~is_signal))
    points = working_points(score, is_signal, sample.weight) if defined else []
    above = [
        np.where(part & (score >= point.threshold), sample.weight, 0.0)
        for point in points
        for part in (is_signal, ~is_signal)
    ]
    terms = np.column_stack([by_class, by_class * losses, cells, *above])
    return _ClassSums(terms, classes, signal, points)


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Divide where the denominator is positive; NaN elsewhere."""
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    result: FloatArray = np.full(shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result


def _event_losses(probabilities: Scores, labels: Labels) -> FloatArray:
    of_truth = probabilities[np.arange(len(labels)), labels]
    tiny = np.finfo(probabilities.dtype).eps
    losses: FloatArray = -np.log(np.clip(of_truth, tiny, 1 - tiny).astype(np.float64))
    return losses


def _most_probable(probabilities: Scores) -> IndexArray:
    return cast(IndexArray, np.argmax(probabilities, axis=1))


def _class_average(values: FloatArray, labels: Labels, weight: FloatArray, classes: int) -> float:
    _check_finite(values=values, weight=weight)
    return float(values @ _class_normalised(labels, weight, classes)) / classes


def _class_normalised(labels: Labels, weight: FloatArray, classes: int) -> FloatArray:
    """Scale weights so that each class sums to one."""
    sums = np.array([_positive_sum(weight[labels == c], f"class {c}") for c in range(classes)])
    normalised: FloatArray = weight / sums[labels]
    return normalised


def _positive_sum(weight: FloatArray, name: str) -> float:
    total = float(weight.sum())
    if not total > 0:
        raise ValueError(_no_weight(name, total))
    return total


def _no_weight(name: str, total: float) -> str:
    return f"{name}: the weights sum to {total:.6g}, but a positive sum is needed"


def _check_finite(**arrays: Scores) -> None:
    for name, array in arrays.items():
        bad = np.count_nonzero(~np.isfinite(array))
        if bad:
            raise ValueError(f"{name}: {bad} of {array.size} values are infinite or NaN")
