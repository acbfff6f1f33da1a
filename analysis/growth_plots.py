"""Plots and table of how the AUC grows: apart from what trains, so that another plot trains nothing anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.importance import text
from analysis.importance_plots import curve
from analysis.page import Table
from analysis.plots import Plot

NOTE = "Each point is one training, whose chance is in no interval."


def table(found: Sequence[Mapping[str, Any]]) -> Table:
    """All points, as `curves` takes them."""
    headings = ["training events", "share", "hidden layers", "parameters", "AUC out of fold", "AUC lost", "log-loss"]
    rows = [
        [
            f"{p['events']:,.0f}",
            f"{p['share']:g}",
            ", ".join(map(str, p["hidden"])) or "none",
            f"{p['parameters']:,}",
            *(text(p[name]) for name in ("auc", "auc_lost", "log_loss")),
        ]
        for p in found
    ]
    return Table("A network of each point", headings, rows)


def curves(found: Sequence[Mapping[str, Any]], hidden: Sequence[int]) -> list[Plot]:
    """The plots: AUC against events, and against widths, each where there is more than one point.

    Args:
        found: For each point its ``share`` and ``hidden``, the mean number of training ``events`` of a network, its
            number of ``parameters``, ``auc`` and ``auc_lost``.
        hidden: Widths of the hidden layers, as configured.
    """
    by_share = sorted((p for p in found if list(p["hidden"]) == list(hidden)), key=lambda p: float(p["share"]))
    by_width = sorted((p for p in found if p["share"] == 1), key=lambda p: list(p["hidden"]))
    plots = []
    if len(by_share) > 1:
        plots.append(
            curve(
                "auc_events",
                "AUC and training events",
                "training events of a network",
                f"AUC against the training events of a network. {NOTE}",
                [{"x": p["events"], "share": p["share"], **_merit(p)} for p in by_share],
                [_amount(p["events"]) for p in by_share],
            )
        )
    if len(by_width) > 1:
        plots.append(
            curve(
                "auc_width",
                "AUC and width",
                "width of the widest hidden layer",
                f"AUC against the widths of the hidden layers, all times one factor, with all training events. {NOTE}",
                [
                    {"x": max(p["hidden"]), "hidden": list(p["hidden"]), "parameters": p["parameters"], **_merit(p)}
                    for p in by_width
                ],
                [str(max(p["hidden"])) for p in by_width],
            )
        )
    return plots


def _merit(point: Mapping[str, Any]) -> dict[str, Any]:
    return {name: point[name] for name in ("auc", "auc_lost")}


def _amount(events: float) -> str:
    return f"{events / 1000:.3g}k" if events >= 1000 else f"{events:.0f}"
