"""What is learned of single numbers and of categories before the first layer: `model.embedding`, `encoding: embedding`.

All of it is computed in the type of the inputs, also where the layers behind it round to bfloat16: sines and bins need
the digits. It is no matter of weight decay, penalties and noise on weights, which act on the layers.

In the shape comments W is the number of numbers of an event, n that of the single ones among them, k the number of
components of each, d its dimension and E the number of the network's inputs that come of them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models.initialisation import Parameter, Start
from models.settings import FeatureInput, ModelSettings, chosen
from models.transforms import LARGEST, Group, Layout, Tables

Arrays = Mapping[str, npt.NDArray[np.float32]]


class Embeddings:
    """The embeddings of a stack; without any the inputs are the numbers.

    Attributes:
        parameters: Those of one member.
        width: How many inputs come of the numbers.
    """

    def __init__(self, settings: ModelSettings, layout: Layout) -> None:
        """Lay out the parameters of networks of some kind."""
        self._kind, self._layout = settings.embedding, layout
        own = chosen(settings, "embedding")
        self._single = layout.single if self._kind != "none" else 0
        parameters: list[Parameter] = []
        self.width = layout.measured
        if self._single:
            self._dimension = int(own["embedding_dimension"])
            components = layout.bins
            if self._kind == "periodic":
                count = int(own["embedding_frequencies"])
                start = Start("normal", float(own["embedding_scale"]))
                parameters.append(Parameter("frequencies", (1, self._single * count), start, exact=True))
                components = 2 * count
            limit = 1 / math.sqrt(components)  # as torch.nn.Linear
            for name, rows in (("embedding", components), ("embedding_bias", 1)):
                shape = (self._single, rows, self._dimension)
                parameters.append(Parameter(name, shape, Start(scale=limit), exact=True))
            self.width += self._single * (self._dimension - 1)
        for group in layout.categories:
            width = _category(group).width
            if width is not None:
                parameters.append(Parameter(_name(group), (group.width, width), Start("normal", 1.0), exact=True))
            self.width += group.width if width is None else width
        self.parameters = tuple(parameters)

    def __call__(self, views: Mapping[str, Tensor], tables: Tables, numbers: Tensor) -> Tensor:
        """Turn numbers into inputs.

        Args:
            views: Parameters by name, ``[M, ...]``.
            tables: Of `models.transforms.stack_transforms`.
            numbers: With absent ones filled, ``[M, B, W]``.

        Returns:
            ``[M, B, E]``.
        """
        if not self.parameters:
            return numbers
        pieces = []
        if self._single:
            pieces.append(self._embedded(views, tables, numbers[..., : self._single]))  # (M, B, n · d)
        pieces.append(numbers[..., self._single : self._layout.measured])  # (M, B, W')
        start = self._layout.measured
        for group in self._layout.categories:
            own = numbers[..., start : start + group.width]  # (M, B, K + 1)
            pieces.append(own if _category(group).width is None else torch.bmm(own, views[_name(group)]))  # (M, B, d)
            start += group.width
        return torch.cat(pieces, dim=-1)  # (M, B, E)

    def _embedded(self, views: Mapping[str, Tensor], tables: Tables, single: Tensor) -> Tensor:
        """Components of each number, a matrix for each, and ReLU: ``[M, B, n · d]`` from ``[M, B, n]``.

        Gorishniy, Rubachev and Babenko, arXiv 2203.05556, sections 3.2 and 3.3: "PLR" and "Q-LR".
        """
        members, events, count = single.shape
        if self._kind == "periodic":
            each = single.repeat_interleave(views["frequencies"].shape[-1] // count, dim=-1)  # (M, B, n · k/2)
            turned = (2 * math.pi) * (each * views["frequencies"])  # (M, B, n · k/2)
            waves = [wave(turned).view(members, events, count, -1) for wave in (torch.sin, torch.cos)]
            parts = torch.cat(waves, dim=-1)  # (M, B, n, k)
        else:
            parts = piecewise_linear(single, tables)  # (M, B, n, k)
        own = parts.transpose(1, 2).reshape(members * count, events, -1)  # (M·n, B, k)
        product = torch.baddbmm(views["embedding_bias"].flatten(0, 1), own, views["embedding"].flatten(0, 1))
        embedded = functional.relu(product).view(members, count, events, -1)  # (M, n, B, d)
        return embedded.transpose(1, 2).reshape(members, events, -1)  # (M, B, n · d)


def piecewise_linear(single: Tensor, tables: Tables) -> Tensor:
    """How far numbers ``[M, B, n]`` are through each of their bins, ``[M, B, n, k]`` (arXiv 2203.05556, eq. 1).

    0 before a bin, 1 behind it; the first one goes on below its start, and the last one above its end.
    """
    start, rise, top = (tables[f"bins.{name}"].transpose(1, 2).unsqueeze(1) for name in ("start", "rise", "top"))
    through = (single.unsqueeze(-1) - start) * rise  # (M, B, n, k)
    first, others = through[..., :1], through[..., 1:].clamp(min=0.0)
    return torch.minimum(torch.cat([first.clamp(min=-LARGEST), others], dim=-1), top)  # (M, B, n, k)


def nearest_categories(
    table: npt.NDArray[np.float32], categories: Iterable[float]
) -> list[tuple[float | None, float | None, float]]:
    """For each category the nearest other one in a learned table.

    Args:
        table: Rows of the categories, then that of unknown ones, ``[K + 1, d]``.
        categories: Their values, NaN for rows that stand for none, ``[K]``.

    Returns:
        Category, nearest other, and the Euclidean distance of their rows; ``None`` stands for unknown ones.
    """
    names = [float(value) for value in categories]
    rows = [(name, table[place]) for place, name in enumerate(names) if not math.isnan(name)]
    known: list[tuple[float | None, npt.NDArray[np.float32]]] = [*rows, (None, table[-1])]
    found = []
    for name, row in known:
        distances = [
            (float(np.linalg.norm(row - other)), other_name) for other_name, other in known if other_name != name
        ]
        distance, nearest = min(distances, key=lambda pair: pair[0])
        found.append((name, nearest, distance))
    return found


def described(names: Sequence[str], settings: ModelSettings, tables: Arrays, parameters: Arrays) -> list[str]:
    """Say for each category with an embedding which values are nearest to each other.

    Args:
        names: The features.
        settings: What the network is.
        tables: Of its transform.
        parameters: Of the network.
    """
    lines = []
    for group in Layout(names, settings).categories:
        if _category(group).width is not None:
            values = tables[f"{group.name}.values"][:, 0].tolist()
            near = nearest_categories(parameters[_name(group)], values)
            said = (f"{_said(value)} to {_said(other)} ({distance:.2f})" for value, other, distance in near)
            lines.append(f"{names[group.features[0]]}, nearest categories: {', '.join(said)}")
    return lines


def _said(category: float | None) -> str:
    return "unknown" if category is None else f"{category:g}"


def _category(group: Group) -> FeatureInput:
    assert group.category is not None
    return group.category


def _name(group: Group) -> str:
    return group.name.replace(".", "_")
