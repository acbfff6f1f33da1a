"""The drawing of a network: its layers from top to bottom, with widths and numbers of parameters.

It follows from what the network says of its layers (`models.layers`), whatever its type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from analysis.plots import Plot, blank_figure

_WIDTH = 3.6  # inches: 360 pixels, so that a narrow page shows it at its size
_LINE, _PADDING, _GAP = 0.155, 0.08, 0.2
_LEFT, _RIGHT = 0.08, 3.05  # of the boxes; links that pass layers are drawn to their right
_BOX, _EDGE, _LINK = "#eef3fb", "#5790fc", "#e42536"
_CHARACTERS = 52


def network(layers: Sequence[Mapping[str, Any]], name: str = "network") -> Plot:
    """Draw the layers of one network.

    Args:
        layers: In order, each with ``name``, ``width``, ``count`` (of its parameters), ``steps`` (texts), ``sees``
            (names of layers), ``adds`` (the name of a layer, or empty) and ``copies`` (submodels side by side).
        name: Of the plot.

    Returns:
        A plot whose ``numbers`` hold the layers and the ``total`` number of parameters. Layers that differ in nothing
        but their names share a box.
    """
    groups = _groups(layers)
    texts = [_lines(group) for group in groups]
    heights = [len(lines) * _LINE + 2 * _PADDING for lines in texts]
    total = sum(int(layer["count"]) for layer in layers)
    height = sum(heights) + _GAP * (len(groups) - 1) + 0.15
    with blank_figure((_WIDTH, height)) as (figure, ax):
        top, spans = height - 0.05, []
        middles: dict[str, float] = {}
        for group, lines, own in zip(groups, texts, heights, strict=True):
            bottom = top - own
            _box(ax, bottom, own, lines, copies=int(group[0]["copies"]))
            spans.append((bottom, top))
            middles |= {str(layer["name"]): (bottom + top) / 2 for layer in group}
            top = bottom - _GAP
        for (above, _), (_, below) in pairwise(spans):
            _arrow(ax, ((_LEFT + _RIGHT) / 2, above), ((_LEFT + _RIGHT) / 2, below))
        _links(ax, groups, middles)
        for group, (bottom, top) in zip(groups, spans, strict=True):
            if group[0]["adds"]:
                _loop(ax, bottom, top, each=len(group) > 1)
    copies = int(layers[-1]["copies"])
    behind = "1 layer" if len(layers) == 2 else f"{len(layers) - 1} layers"
    caption = f"One network: {total:,} parameters, in {behind} behind its inputs."
    if copies > 1:
        caption += f" {copies} submodels share the matrices; the counts are those of all together."
    if any(layer["adds"] for layer in layers):
        caption += " Red: what a layer sees is added to what it gives."
    if any(len(layer["sees"]) > 1 for layer in layers):
        caption += " Red: layers on whose outputs later ones also draw."
    plain = [{key: list(x) if isinstance(x, tuple) else x for key, x in layer.items()} for layer in layers]
    numbers = {"total": total, "layers": plain}
    return Plot(name, "training", "Network", caption, figure, numbers)


def _groups(layers: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Layers that follow each other and differ only in name and in what they are linked to."""
    groups: list[list[Mapping[str, Any]]] = []
    for layer in layers:
        if groups and _kind(groups[-1][-1]) == _kind(layer):
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


def _kind(layer: Mapping[str, Any]) -> tuple[Any, ...]:
    return (layer["width"], layer["count"], tuple(layer["steps"]), bool(layer["adds"]), layer["copies"])


def _lines(group: Sequence[Mapping[str, Any]]) -> list[str]:
    """The text of a box: name and width, what happens, how many parameters."""
    first, last, count = group[0], group[-1], len(group)
    name = str(first["name"])
    if count > 1:
        kind, _, number = name.rpartition(" ")
        name = f"{kind}s {number} to {str(last['name']).rsplit(' ', 1)[-1]}"
    each = f"{count} × " if count > 1 else ""
    heading = f"{name}: {each}{first['width']}"
    steps = wrap(" → ".join(first["steps"]), _CHARACTERS)
    return [heading, *steps, f"{each}{first['count']:,} parameters"]


def _box(ax: Axes, bottom: float, height: float, lines: Sequence[str], copies: int) -> None:
    """A box with its text; of several submodels, with another one behind."""
    for shift in (0.05, 0.0) if copies > 1 else (0.0,):
        corner = (_LEFT + shift, bottom - shift)
        style = "round,pad=0,rounding_size=0.06"
        ax.add_patch(
            FancyBboxPatch(corner, _RIGHT - _LEFT, height, style, facecolor=_BOX, edgecolor=_EDGE, linewidth=0.9)
        )
    for number, line in enumerate(lines):
        place = bottom + height - _PADDING - (number + 0.5) * _LINE
        weight = "bold" if number == 0 else "normal"
        ax.text(_LEFT + 0.1, place, line, ha="left", va="center_baseline", fontsize=7.5, weight=weight)
    if copies > 1:
        place = bottom + height - _PADDING - 0.5 * _LINE
        ax.text(_RIGHT - 0.1, place, f"× {copies}", ha="right", va="center_baseline", fontsize=7.5, weight="bold")


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], **style: Any) -> None:
    ax.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=7, shrinkA=0, shrinkB=0, **{"color": "#444444", **style}
        )
    )


def _links(ax: Axes, groups: Sequence[Sequence[Mapping[str, Any]]], middles: Mapping[str, float]) -> None:
    """Links to further layers, each on a line of its own beside the boxes, from where it begins to all of its ends."""
    ends: dict[str, set[float]] = {}
    for group in groups:
        for layer in group:
            for name in layer["sees"][:-1]:
                ends.setdefault(name, set()).add(middles[layer["name"]])
    room = _WIDTH - 0.06 - _RIGHT
    for number, (name, places) in enumerate(ends.items()):
        x = _RIGHT + room * (number + 1) / (len(ends) + 0.2)
        start = middles[name] - 0.05
        ax.plot([_RIGHT, x, x], [start, start, min(places) + 0.05], color=_LINK, linewidth=0.9)
        for place in sorted(places):
            _arrow(ax, (x, place + 0.05), (_RIGHT, place + 0.05), color=_LINK, linewidth=0.9)


def _loop(ax: Axes, bottom: float, top: float, each: bool) -> None:
    """What passes a box by and is added behind it."""
    centre, x = (_LEFT + _RIGHT) / 2, _RIGHT + 0.16
    above, below = top + 0.6 * _GAP, bottom - 0.45 * _GAP
    ax.plot([centre, x, x], [above, above, below], color=_LINK, linewidth=0.9)
    _arrow(ax, (x, below), (centre, below), color=_LINK, linewidth=0.9)
    ax.text(x + 0.05, (bottom + top) / 2, "+\neach" if each else "+", color=_LINK, fontsize=7.5, va="center")
