"""How plots look: this project's style, or with the fonts and the label of an experiment, as mplhep has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLAIN: Any = {  # matplotlib's type is a literal of all its keys
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.labelsize": 9.0,
    "axes.linewidth": 0.8,
    "axes.titlesize": 9.0,
    "xaxis.labellocation": "right",
    "yaxis.labellocation": "top",
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "xtick.minor.visible": True,
    "ytick.minor.visible": True,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "hatch.linewidth": 0.7,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
"""Ticks and labels as the field draws them, in sizes for a web page."""

Experiment = Literal["plain", "CMS", "ATLAS", "LHCb"]
_STYLES = {"CMS": "CMS", "ATLAS": "ATLAS", "LHCb": "LHCb2"}


@dataclass(frozen=True)
class Style:
    """A style.

    Attributes:
        name: An experiment's, or `plain`.
        label: What stands behind the experiment's name, such as Preliminary.
    """

    name: Experiment = "plain"
    label: str = ""

    @property
    def parameters(self) -> Any:
        """matplotlib's parameters: the experiment's fonts, with a fallback for signs that they lack."""
        if self.name == "plain":
            return PLAIN
        import mplhep

        theirs = getattr(mplhep.style, _STYLES[self.name])
        mathematics = {key: value for key, value in theirs.items() if key.startswith("mathtext.")}
        return {**PLAIN, **mathematics, "font.family": [theirs[f"font.{theirs['font.family']}"][0], "DejaVu Sans"]}


_plain = Style()
_current: ContextVar[Style] = ContextVar("style", default=_plain)


@contextmanager
def styled(style: Style) -> Iterator[None]:
    """Draw and save plots in a style; what is saved outside has none of its fonts."""
    token = _current.set(style)
    try:
        yield
    finally:
        _current.reset(token)


def parameters() -> Any:
    """matplotlib's parameters of the style that plots are drawn in now."""
    return _current.get().parameters


def put_label(ax: Axes, *, simulation: bool) -> bool:
    """Put the label above the axes on the left, and say whether there is one: the plain style has none."""
    style = _current.get()
    if style.name == "plain":
        return False
    import mplhep

    text = " ".join(filter(None, ("Simulation" if simulation else "", style.label)))
    mplhep.label.exp_text(style.name, text, ax=ax, loc=0, fontsize=(11.0, 9.0, 9.0, 9.0))
    return True
