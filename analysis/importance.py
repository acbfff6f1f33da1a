"""What features are worth, in figures of merit: drops and contributions with intervals, rankings, and their order.

Events are judged out of fold, by the networks that met neither them nor what is done to them. All intervals are of the
bootstrap of `analysis.metrics`, with the networks held fixed; two scores of the same events have the same replicas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from analysis.metrics import FloatArray, Sample, Scores, bootstrap_counts, estimate, log_loss, paired_replicas, roc_auc

Method = Literal["permutation", "integrated_gradients", "leave_one_out"]
METHODS: tuple[Method, ...] = ("permutation", "integrated_gradients", "leave_one_out")
REPLICAS = 200
"""Of the bootstrap of a difference, the first ones: nearly all of the time of a ranking is theirs."""


@dataclass(frozen=True)
class Judge:
    """Figures of merit of scores of one sample of events.

    Attributes:
        sample: The events with the scores that others are compared with.
        signal: Index of the signal class.
        replicas: Of the bootstrap.
        seed: Of the bootstrap.
    """

    sample: Sample
    signal: int
    replicas: int
    seed: int

    def merit(self, scores: Scores) -> dict[str, Any]:
        """Weighted AUC of the signal and balanced log-loss of scores [N, C], each with its interval."""
        areas, losses = self._replicas([scores], self.replicas)
        auc, loss = self._values(scores)
        return {"auc": estimate(auc, areas[0]).to_json(), "log_loss": estimate(loss, losses[0]).to_json()}

    def drop(self, changed: Sequence[Scores]) -> dict[str, Any]:
        """How much worse scores have become.

        Args:
            changed: [N, C] each, one or several repetitions of one change.

        Returns:
            ``auc``: the fall of the AUC; ``log_loss``: the rise of the loss; each the mean over the repetitions with
            its interval, and ``spread``, the standard deviation of one repetition; ``None`` if there is one only.
        """
        areas, losses = self._replicas([self.sample.probabilities, *changed], min(self.replicas, REPLICAS))
        values = np.array([self._values(scores) for scores in (self.sample.probabilities, *changed)])  # [1 + K, 2]
        result: dict[str, Any] = {}
        for column, (name, own, sign) in enumerate((("auc", areas, 1), ("log_loss", losses, -1))):
            falls = sign * (values[0, column] - values[1:, column])  # [K]
            found = estimate(float(falls.mean()), sign * (own[0] - own[1:].mean(axis=0)))
            spread = float(falls.std(ddof=1)) if len(falls) > 1 else None
            result[name] = {**found.to_json(), "spread": spread}
        return result

    def contribution(self, contributions: FloatArray) -> dict[str, Any]:
        """The mean size of contributions [N], averaged over events within a class and then over classes."""
        own, classes = self.sample, np.arange(self.sample.probabilities.shape[1])
        weights = own.weight[:, np.newaxis] * (own.label[:, np.newaxis] == classes)  # [N, C]
        sizes = weights * np.abs(contributions)[:, np.newaxis]  # [N, C]
        once = np.ones((1, len(own.weight)))  # [1, N]
        sums = [
            (counts @ sizes, counts @ weights) for counts in (once, *self._counts(self.replicas))
        ]  # [R_b, C] twice, each
        tops, totals = (np.concatenate(parts) for parts in zip(*sums, strict=True))  # [1 + R, C] each
        means = np.divide(tops, totals, out=np.full(tops.shape, np.nan), where=totals > 0).mean(axis=1)  # [1 + R]
        return estimate(float(means[0]), means[1:]).to_json()

    def _values(self, scores: Scores) -> tuple[float, float]:
        s = self.sample
        return (
            roc_auc(scores[:, self.signal], s.label == self.signal, s.weight),
            log_loss(scores, s.label, s.weight),
        )

    def _replicas(self, scores: Sequence[Scores], replicas: int) -> tuple[FloatArray, FloatArray]:
        samples = [replace(self.sample, probabilities=own) for own in scores]
        return paired_replicas(samples, self.signal, self._counts(replicas))

    def _counts(self, replicas: int) -> Any:
        return bootstrap_counts(self.sample.identity, self.sample.process, replicas, self.seed)


def ranking(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Entries from the most important on: by the fall of the AUC, or else by the mean contribution; equals by name."""

    def worth(entry: Mapping[str, Any]) -> float:
        return float(entry["auc" if "auc" in entry else "contribution"]["value"])

    return [dict(entry) for entry in sorted(entries, key=lambda entry: (-worth(entry), entry["name"]))]


def counts_to_keep(features: int, asked: Sequence[int] = ()) -> list[int]:
    """Numbers of features to keep, from all on: two thirds each time, or those that are asked for.

    Raises:
        ValueError: One that was asked for is none from 1 to the number of features.
    """
    for number in asked:
        if not 1 <= number <= features:
            raise ValueError(f"{number} features can't be kept: there are {features}; expected numbers from 1 on")
    if asked:
        return sorted({features, *asked}, reverse=True)
    kept = [features]
    while kept[-1] > 1:
        kept.append(max(1, kept[-1] * 2 // 3))
    return kept


def text(found: Mapping[str, Any] | None) -> str:
    """A value with its 68% interval; a dash for none."""
    if found is None or found["value"] is None:
        return "–"
    if found["low"] is None:
        return f"{found['value']:.4f}"
    return f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"


def rows(entries: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a table of a ranking."""
    if "contribution" in entries[0]:
        return ["", "mean |contribution| [nats]"], [[entry["name"], text(entry["contribution"])] for entry in entries]
    headings = ["", "AUC lost", "log-loss added"]
    return headings, [[entry["name"], text(entry["auc"]), text(entry["log_loss"])] for entry in entries]
