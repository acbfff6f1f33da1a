"""Plots of rankings, of what pruning costs, and of what more events or wider layers bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import NullLocator

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


def curve(  # noqa: PLR0917
    name: str,
    title: str,
    axis: str,
    caption: str,
    points: Sequence[Mapping[str, Any]],
    labels: Sequence[str] = (),
) -> Plot:
    """Draw the out-of-fold AUC against what networks have, with the 68% intervals of the AUC and of its loss.

    Args:
        name: File name.
        title: A few words.
        axis: What they have.
        caption: A sentence or two.
        points: ``x``, and ``auc`` and ``auc_lost`` with ``value``, ``low`` and ``high`` each.
        labels: Of ticks at the points of a logarithmic axis; without any the axis is linear.
    """
    x = [point["x"] for point in points]
    with figure_of((5.0, 3.8)) as (figure, ax):
        low, high = ([point["auc"][side] or point["auc"]["value"] for point in points] for side in ("low", "high"))
        ax.fill_between(x, low, high, color=_COLORS["features"], alpha=0.25, linewidth=0)
        ax.plot(x, [point["auc"]["value"] for point in points], "o-", color=_COLORS["features"], markersize=4)
        for point in points:
            auc, lost = point["auc"]["value"], point["auc_lost"]
            if lost["low"] is not None:
                ends = [auc + lost["value"] - lost[side] for side in ("high", "low")]
                ax.plot([point["x"]] * 2, ends, "_-", color=_COLORS["features"], linewidth=1.4, markersize=7)
        if labels:
            ax.set_xscale("log")
            ax.xaxis.set_minor_locator(NullLocator())
            ax.set_xticks(x, labels)
        ax.set_xlabel(axis)
        ax.set_ylabel("AUC of the signal, out of fold")
    caption += (
        " The band is the 68% interval of the AUC over events; the bars are those of its difference from the networks "
        "of the report, on the same events."
    )
    return Plot(name, "features", title, caption, figure, {"points": [dict(point) for point in points]})
