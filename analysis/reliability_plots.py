"""The plot of a score's reliability."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.plots import Group, Plot, figure_of

_STYLES = {"test": ("ensemble on test events", "#5790fc", "o"), "out_of_fold": ("out of fold", "#e42536", "s")}


def reliability_plot(found: Mapping[str, Mapping[str, Any]], signal: Group) -> Plot:
    """Draw the share of the signal among events of a score against their mean score, and how many there are.

    Args:
        found: What `analysis.reliability.reliability` returns, of ``test`` and of ``out_of_fold``.
        signal: The signal class.
    """
    with figure_of((4.3, 4.0), rows=(3, 1), margins=(0.62, 0.47, 0.12, 0.12)) as (figure, (ax, below)):
        ax.plot([0, 1], [0, 1], color="#717581", linewidth=0.8, linestyle="--")
        for part, (title, color, marker) in _STYLES.items():
            own = found[part]
            rows = [b for b, predicted in enumerate(own["predicted"]) if predicted is not None]
            values = [own["observed"][b]["value"] for b in rows]
            known = [own["observed"][b] if own["observed"][b]["low"] is not None else None for b in rows]
            errors = [
                [max(0.0, v - k["low"]) if k else 0.0 for v, k in zip(values, known, strict=True)],
                [max(0.0, k["high"] - v) if k else 0.0 for v, k in zip(values, known, strict=True)],
            ]
            x = [own["predicted"][b] for b in rows]
            ax.errorbar(x, values, yerr=errors, fmt=marker, color=color, markersize=4, capsize=2, label=title)
            shares = [share or 0.0 for share in own["share"]]
            below.stairs(shares, own["edges"], color=color, linewidth=1.2)
        ax.legend(loc="upper left")
        ax.set_ylabel(f"share of {signal.title}")
        below.set_ylabel("share")
        below.set_xlabel(f"score of {signal.title}")
        below.set_xlim(0, 1)
        below.set_ylim(0, None)
        figure.align_ylabels()
    return Plot(
        name="reliability",
        section="scores",
        title="Reliability",
        caption="The share of the signal among events of a score, against their mean score, with the classes as "
        "frequent as training.balance says: on the diagonal the score is a probability. Bars are intervals of 68%; "
        "below, the share of events in each bin.",
        figure=figure,
        numbers={part: dict(found[part]) for part in _STYLES},
    )
