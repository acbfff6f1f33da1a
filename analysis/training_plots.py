"""Plots of trainings: layers over the epochs, the spread of networks, and how the AUC grows with events and widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from analysis.plots import BoolArray, FloatArray, Floats, Plot, figure_of

_QUANTITIES = {"gradient_norm": "gradient norm", "dead": "dead units", "saturation": "flat (units, events)"}


def layers_over_epochs(histories: Sequence[Mapping[str, Any]], layers: Sequence[str]) -> Plot | None:
    """Draw gradient norm, dead units and saturation of each layer against the epoch.

    Args:
        histories: For each network ``fold``, ``member``, ``epoch`` (list, from 1) and ``diagnostics``: by quantity
            (``gradient_norm``, ``dead``, ``saturation``) and layer, a number per epoch.
        layers: Names of the layers in order.

    Returns:
        The plot; ``None`` if no network has recorded anything.
    """
    recorded = [history for history in histories if history["diagnostics"]]
    if not recorded:
        return None
    shown = [q for q in _QUANTITIES if any(history["diagnostics"].get(q) for history in recorded)]
    names = [name for name in layers if any(name in h["diagnostics"].get(q, {}) for h in recorded for q in shown)]
    # Layers have an order, and so have these colours.
    colors = dict(zip(names, mpl.colormaps["viridis"](np.linspace(0, 0.9, len(names))), strict=True))
    numbers: dict[str, Any] = {"networks": [{k: h[k] for k in ("fold", "member", "epoch")} for h in recorded]}
    size = (7.2, 0.7 + 1.55 * len(shown))
    with figure_of(size, rows=(1,) * len(shown), margins=(0.75, 0.42, 1.25, 0.1)) as (figure, drawn):
        axes = np.atleast_1d(drawn)
        for ax, quantity in zip(axes, shown, strict=True):
            numbers[quantity] = {}
            for name in names:
                own = [h["diagnostics"].get(quantity, {}).get(name) for h in recorded]
                if all(each is None for each in own):
                    continue
                numbers[quantity][name] = [None if each is None else list(each) for each in own]
                _band(ax, [each for each in own if each is not None], colors[name], name)
            ax.set_ylabel(_QUANTITIES[quantity], loc="center", fontsize=8)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.xaxis.set_minor_locator(NullLocator())
            if quantity == "gradient_norm":
                ax.set_yscale("log")
            else:
                top = max(0.1, 1.15 * ax.get_ylim()[1])
                ax.set_ylim(-0.03 * top, top)
                ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            if ax is not axes[-1]:
                ax.tick_params(labelbottom=False)
        axes[0].legend(loc="upper left", bbox_to_anchor=(1.01, 1.03), fontsize=7.5)
        axes[-1].set_xlabel("epoch")
    return Plot(
        name="layers",
        section="training",
        title="Layers",
        caption="Of each layer, the mean over the networks, with a band from the least to the greatest. Gradient norm: "
        "of a batch's loss before penalties and clipping, root mean square over the steps of an epoch. A unit is flat "
        "for an event where the slope of its activation is at most 0.01 (rectifiers: where it is off; sigmoid and "
        "tanh: within 0.01 and 0.005 of an end), and dead if it is so for all validation events.",
        figure=figure,
        numbers=numbers,
    )


def _band(ax: Axes, courses: Sequence[Sequence[float]], color: Any, label: str) -> None:
    """The mean of numbers per epoch over the networks that had such an epoch, and what lies between the outer ones."""
    longest = max(len(course) for course in courses)
    table = np.full((len(courses), longest), np.nan)
    for row, course in zip(table, courses, strict=True):
        row[: len(course)] = course
    epochs = np.arange(1, longest + 1)
    marker = "o" if longest == 1 else ""
    ax.plot(epochs, np.nanmean(table, axis=0), marker=marker, color=color, linewidth=1.3, label=label)
    ax.fill_between(epochs, np.nanmin(table, axis=0), np.nanmax(table, axis=0), color=color, alpha=0.18, linewidth=0)


def spread_plot(
    score: Floats, spread: Floats, is_signal: BoolArray, weight: FloatArray, *, networks: int, bins: int = 20
) -> Plot:
    """Draw the spread of the networks' signal probabilities: its distribution, and its course with the score.

    Args:
        score: float [N], the ensemble's signal score of test events.
        spread: float [N], the standard deviation of the signal probability over the networks.
        is_signal: bool [N].
        weight: float64 [N], signed.
        networks: How many there are.
        bins: Of both.
    """
    top = float(np.quantile(spread, 0.995)) if len(spread) and spread.max() > 0 else 1.0
    edges, places = np.linspace(0, max(top, 1e-6), bins + 1), np.linspace(0, 1, bins + 1)
    numbers: dict[str, Any] = {"edges": edges.tolist(), "score_edges": places.tolist(), "networks": networks}
    with figure_of((7.2, 3.4), columns=2, margins=(0.62, 0.47, 0.12, 0.1)) as (figure, (left, right)):
        for name, rows, color in (("signal", is_signal, "#e42536"), ("background", ~is_signal, "#5790fc")):
            filled = np.histogram(np.clip(spread[rows], 0, edges[-1]), edges, weights=weight[rows])[0]
            share = filled / filled.sum() if filled.sum() > 0 else None
            numbers[name] = None if share is None else share.tolist()
            if share is not None:
                left.stairs(share, edges, color=color, linewidth=1.3, label=name)
        left.set_xlim(0, edges[-1])
        left.xaxis.set_major_locator(MaxNLocator(5))
        left.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        left.set_ylim(min(0.0, left.get_ylim()[0]), None)
        left.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        left.set_xlabel("spread of the signal probability")
        left.set_ylabel("fraction of events")
        left.legend(loc="upper right")
        cells = np.clip(np.searchsorted(places, score, side="right") - 1, 0, bins - 1)
        quantiles = np.full((bins, 3), np.nan)
        for cell in range(bins):
            own = spread[cells == cell]
            if len(own) >= 10:
                quantiles[cell] = np.quantile(own, [0.16, 0.5, 0.84])
        low, middle, high = quantiles.T
        centres = (places[1:] + places[:-1]) / 2
        right.fill_between(centres, low, high, color="#5790fc", alpha=0.25, linewidth=0, label="central 68%")
        right.plot(centres, middle, color="#5790fc", linewidth=1.4, marker="o", markersize=3, label="median")
        right.set_xlim(0, 1)
        right.set_ylim(0, 1.3 * float(np.nanmax(high, initial=1e-6)))
        right.set_xlabel("signal score")
        right.set_ylabel("spread")
        right.legend(loc="upper right")
        numbers["by_score"] = [[None if np.isnan(x) else float(x) for x in row] for row in quantiles]
    return Plot(
        name="spread",
        section="scores",
        title="Spread of the networks",
        caption=f"Standard deviation of the signal probability over {networks} networks, event by event, of test "
        "events: weighted, each area one, the last bin with all beyond; and against the score of the ensemble, where "
        "ten events or more are in a bin. It is the variance of training, by other training events and random "
        "numbers: no systematic uncertainty, and never a nuisance of a fit.",
        figure=figure,
        numbers=numbers,
    )


def auc_curve(points: Sequence[Mapping[str, Any]], name: str, title: str, axis: str, caption: str) -> Plot:
    """Draw the AUC against what the networks had, on a logarithmic axis.

    Args:
        points: In order, each with ``x``, ``label`` of its tick, and ``auc``: ``weighted`` and ``unweighted``, each
            ``{"value", "low", "high"}``.
        name: Of the plot.
        title: Of the plot.
        axis: What x is.
        caption: Of the plot.
    """
    x: npt.NDArray[np.float64] = np.array([point["x"] for point in points], dtype=np.float64)
    with figure_of((4.3, 3.5), margins=(0.7, 0.47, 0.12, 0.12)) as (figure, ax):
        for number, (kind, color) in enumerate((("weighted", "#5790fc"), ("unweighted", "#f89c20"))):
            found = [point["auc"][kind] for point in points]
            known = np.array([each["value"] is not None for each in found])
            values, low, high = (
                np.array([each[key] for each, use in zip(found, known, strict=True) if use], dtype=np.float64)
                for key in ("value", "low", "high")
            )
            places = x[known] * (0.985, 1.015)[number]  # side by side
            error = np.maximum([values - low, high - values], 0)
            ax.errorbar(
                places, values, yerr=error, fmt="o-", color=color, markersize=4, linewidth=1.1, capsize=2, label=kind
            )
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(x, [point["label"] for point in points])
        ax.margins(x=0.08, y=0.12)
        ax.set_xlabel(axis)
        ax.set_ylabel("out-of-fold AUC")
        ax.legend(loc="lower right")
    return Plot(name, "training", title, caption, figure, {"points": [dict(point) for point in points]})
