"""Plots of two models on the same events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.comparison import Common
from analysis.plots import Plot, figure_of

_COLORS = ("#5790fc", "#e42536")


def rejection_plot(found: Mapping[str, Sequence[float | None]], names: Sequence[str]) -> Plot:
    """Draw how much more background the second model rejects, against signal efficiency.

    Args:
        found: What `analysis.comparison.rejection_ratio` returns.
        names: Of the models.
    """
    with figure_of((4.8, 3.4), margins=(0.7, 0.47, 0.12, 0.12)) as (figure, ax):
        ax.axhline(1.0, color="#717581", linewidth=0.8, linestyle="--")
        ratio = [np.nan if value is None else value for value in found["ratio"]]
        ax.plot(found["signal_efficiency"], ratio, color=_COLORS[0], linewidth=1.6)
        ax.set_xlim(0, 1)
        ax.set_xlabel("signal efficiency")
        ax.set_ylabel("ratio of background rejections")
    return Plot(
        name="rejection_ratio",
        section="performance",
        title="Ratio of background rejections",
        caption=f"Background rejection of {names[1]} over that of {names[0]} at the same signal efficiency, weighted: "
        "above the line the second one is better.",
        figure=figure,
        numbers={key: list(values) for key, values in found.items()},
    )


def scores_plot(events: Common, names: Sequence[str], bins: int = 40) -> Plot:
    """Draw the signal score of one model against that of the other, of signal and of background."""
    edges = np.linspace(0, 1, bins + 1)
    numbers: dict[str, Any] = {"edges": edges.tolist()}
    with figure_of((7.2, 3.6), margins=(0.62, 0.47, 0.12, 0.3), columns=2) as (figure, axes):
        for ax, title, rows in zip(axes, ("signal", "background"), (events.is_signal, ~events.is_signal), strict=True):
            one, other = events.scores[:, rows]
            counts, *_ = np.histogram2d(one, other, bins=[edges, edges])
            numbers[title] = counts.astype(np.int64).tolist()
            ax.pcolormesh(
                edges, edges, np.where(counts > 0, counts, np.nan).T, norm="log", cmap="viridis", rasterized=True
            )
            ax.plot([0, 1], [0, 1], color="#717581", linewidth=0.8, linestyle="--")
            ax.set_title(title)
            ax.set_xlabel(f"score of {names[0]}")
            ax.set_ylabel(f"score of {names[1]}")
    return Plot(
        name="scores",
        section="scores",
        title="Scores side by side",
        caption="Test events by their signal scores in both models; the darker a cell, the fewer events.",
        figure=figure,
        numbers=numbers,
    )
