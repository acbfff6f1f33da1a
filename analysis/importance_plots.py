"""Plots of rankings and of what pruning costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.plots import Plot, _text, figure_of

_COLORS = {"features": "#5790fc", "objects": "#f89c20"}


def ranked(name: str, title: str, axis: str, entries: Sequence[Mapping[str, Any]]) -> Plot:
    """Draw importances with their 68% intervals, the largest on top.

    Args:
        name: ``features`` or ``objects``.
        title: A few words.
        axis: What the importance is.
        entries: ``name``, and ``value``, ``low`` and ``high``; in their order.
    """
    places = np.arange(len(entries))[::-1]
    with figure_of((6.4, 0.9 + 0.24 * len(entries))) as (figure, ax):
        for place, entry in zip(places, entries, strict=True):
            if entry["low"] is not None:
                ax.plot([entry["low"], entry["high"]], [place, place], color=_COLORS[name], linewidth=1.4)
            ax.plot(entry["value"], place, "o", color=_COLORS[name], markersize=4)
        ax.axvline(0, color="#999999", linewidth=0.8, linestyle=":")
        ax.set_yticks(places, [_text(entry["name"]) for entry in entries])
        ax.tick_params(axis="y", which="minor", left=False, right=False)
        ax.set_ylim(-0.7, len(entries) - 0.3)
        ax.set_xlabel(axis)
    return Plot(
        name=name,
        section="features",
        title=title,
        caption=f"{title}, out of fold, with 68% intervals over events; the networks are held fixed.",
        figure=figure,
        numbers={"entries": [dict(entry) for entry in entries]},
    )


def curve(name: str, axis: str, caption: str, points: Sequence[Mapping[str, Any]]) -> Plot:
    """Draw the out-of-fold AUC against what is left, with its 68% interval.

    Args:
        name: File name.
        axis: What is left.
        caption: A sentence or two.
        points: ``left``, and ``auc`` with ``value``, ``low`` and ``high``.
    """
    left = [point["left"] for point in points]
    with figure_of((5.0, 3.8)) as (figure, ax):
        low, high = ([point["auc"][side] or point["auc"]["value"] for point in points] for side in ("low", "high"))
        ax.fill_between(left, low, high, color=_COLORS["features"], alpha=0.25, linewidth=0)
        ax.plot(left, [point["auc"]["value"] for point in points], "o-", color=_COLORS["features"], markersize=4)
        ax.set_xlabel(axis)
        ax.set_ylabel("AUC of the signal, out of fold")
    return Plot(name, "features", "Cost of pruning", caption, figure, {"points": [dict(point) for point in points]})
