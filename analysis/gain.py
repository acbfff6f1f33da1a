"""What one classifier gains over another on the same events: paired differences with a bootstrap over events."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.metrics import bootstrap_auc, bootstrap_counts, estimate

Floats = npt.NDArray[np.float64]


def compare(
    probabilities: tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.floating[Any]]],
    *,
    label: npt.NDArray[np.integer[Any]],
    weight: Floats,
    process: npt.NDArray[np.integer[Any]],
    identity: npt.NDArray[np.uint64],
    signal: int,
    replicas: int,
    seed: int,
) -> dict[str, Any]:
    """Compare the scores of two classifiers, the one before and the one after a change.

    Both meet the same events, as often in each replica, so that what the events have in common drops out of the
    difference. The networks are held fixed: the intervals hold no variance of training.

    Args:
        probabilities: float ``[N, C]`` each, before and after.
        label: Index of the true class, ``[N]``.
        weight: Signed physics weights, ``[N]``.
        process: The strata of the bootstrap, ``[N]``.
        identity: The events' identities, ``[N]``.
        signal: Index of the signal class.
        replicas: Bootstrap replicas.
        seed: Of the bootstrap.

    Returns:
        For ``log_loss`` (weights normalised per class), ``auc_weighted`` and ``auc_unweighted`` (signal against the
        rest): ``before``, ``after`` and ``gain``, an estimate with its 68% interval, positive where the change is for
        the better; and ``events``, their number.
    """
    blocks = list(bootstrap_counts(identity, process, replicas, seed))
    nominal = [np.ones((1, len(label)))]
    is_signal = label == signal
    ones = np.ones(len(label))
    found: dict[str, Any] = {"events": len(label)}
    for name, better in (("log_loss", -1.0), ("auc_weighted", 1.0), ("auc_unweighted", 1.0)):
        values, drawn = [], []
        for own in probabilities:
            if name == "log_loss":
                values.append(float(_log_loss(own, label, weight, nominal)[0]))
                drawn.append(_log_loss(own, label, weight, blocks))
                continue
            score, factor = own[:, signal], weight if name == "auc_weighted" else ones
            values.append(float(bootstrap_auc(score, is_signal, factor, nominal)[0]))
            drawn.append(bootstrap_auc(score, is_signal, factor, blocks))
        gain = estimate(better * (values[1] - values[0]), better * (drawn[1] - drawn[0]))
        before, after = (estimate(value, replica) for value, replica in zip(values, drawn, strict=True))
        found[name] = {"before": before.to_json(), "after": after.to_json(), "gain": gain.to_json()}
    return found


def _log_loss(
    probabilities: npt.NDArray[np.floating[Any]],
    label: npt.NDArray[np.integer[Any]],
    weight: Floats,
    blocks: list[Floats],
) -> Floats:
    """Class-balanced log loss in each replica, ``[R]``; NaN where a class has no positive sum of weights."""
    classes = np.arange(probabilities.shape[1])
    tiny = np.finfo(probabilities.dtype).eps
    of_truth = probabilities[np.arange(len(label)), label]
    losses = -np.log(np.clip(of_truth, tiny, 1 - tiny).astype(np.float64))  # (N,)
    by_class = weight[:, np.newaxis] * (label[:, np.newaxis] == classes)  # (N, C)
    sums = np.concatenate([block @ by_class for block in blocks])  # (R, C)
    lost = np.concatenate([block @ (by_class * losses[:, np.newaxis]) for block in blocks])  # (R, C)
    ratios = np.divide(lost, sums, out=np.full(sums.shape, np.nan), where=sums > 0)  # (R, C)
    mean: Floats = ratios.mean(axis=1)
    return mean
