"""Networks as stacks: every parameter has a leading member axis, and one batched product serves all members.

A network type is a class that names its parameters and computes its logits; `NETWORKS` lists them by their name in
the configuration. `Classifier` puts the preprocessing in front and keeps all parameters of a member in one flat row,
so that clipping, optimiser, best snapshots and stopping act on one ``[M, P]`` tensor.

In the shape comments M is the number of members, K that of the submodels of each (1, unless the type is ``tabm``), B
that of the events, F that of the features, W that of the numbers that come of them, E that of the inputs that come of
these, O that of the objects, H a width and C the number of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models import hashing
from models.activations import ACTIVATIONS
from models.augmentation import Augmenter
from models.dropout import Dropout
from models.embeddings import Embeddings
from models.initialisation import Parameter, Start, matrix_start
from models.layers import Layer
from models.linear import linear
from models.losses import probabilities
from models.objects import FRONTS
from models.patterns import Routing
from models.preprocessing import Signature, filled, presence
from models.regression import MEAN, SCALE, in_units
from models.regularisation import Regularisers
from models.settings import Augmentation, Loss, ModelSettings
from models.transforms import Layout, Tables

INPUTS = "inputs"
"""What the layer is called that turns features into what the network sees."""
_ONES = Start(centre=1.0)
_EPSILON = 1e-5  # of normalisations, as in torch
_MOMENTUM = 0.1  # share of a batch in the running statistics, as in torch


@dataclass(frozen=True)
class Step:
    """What a step of training brings to the networks beside its events; without one they evaluate.

    Attributes:
        keys: Of the step's random numbers, int64 ``[M]``.
        dropping: Drops units; ``None`` if no member drops any.
        real: Which rows of a batch are events, not padding: bool ``[M, B]``.
        moved: What becomes of parameters that are not trained, by name; filled by the network.
        regularisers: Add noise to the inputs; ``None`` for none.
    """

    keys: Tensor
    dropping: Dropout | None
    real: Tensor
    moved: dict[str, Tensor] = field(default_factory=dict)
    regularisers: Regularisers | None = None

    def dropout(self, hidden: Tensor, layer: int) -> Tensor:
        """Drop units of one layer's output ``[M, K·B, H]``."""
        if self.dropping is None:
            return hidden
        return self.dropping(hidden, hashing.splitmix64(self.keys + layer))  # (M, K·B, H)


class Network(Protocol):
    """What a network type must offer."""

    watch: Callable[[str, Tensor], None] | None
    """Is told what the units of a layer see before their activation, ``[M, K·B, H]`` (`models.diagnostics`)."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters of one member."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Its layers, from the first behind the inputs (which are called `INPUTS`) to the output."""

    def logits(self, parameters: Mapping[str, Tensor], inputs: Tensor, step: Step | None) -> Tensor:
        """Return ``[M, K, B, outputs]`` from parameters ``[M, ...]`` and inputs ``[M, B, inputs]``."""


class Dense:
    """Fully connected layers, each with a normalisation, an activation and dropout behind it.

    With ``residual`` connections, what a hidden layer but the first sees is added to what it gives (He et al., arXiv
    1512.03385, eq. 1, with one layer in a block). ``densely_connected``, each layer and the last one see the inputs
    and what all hidden layers before them give (Huang et al., arXiv 1608.06993, eq. 2).
    """

    watch: Callable[[str, Tensor], None] | None = None

    def __init__(self, settings: ModelSettings, inputs: int, outputs: int) -> None:
        self.settings = settings
        self.activation = ACTIVATIONS[settings.activation]
        self.submodels = settings.submodels if settings.type == "tabm" else 1
        self.depth, self.outputs = len(settings.hidden), outputs
        own: list[list[Parameter]] = []  # of each layer
        for layer, after in enumerate(settings.hidden):
            before = self.width(inputs, layer)
            start = matrix_start(settings, settings.activation, before, after)
            own.append([*self.layer(layer, before, after, start), *self.normalisation(layer, after)])
        before = self.width(inputs, self.depth)
        own.append(self.head(before, matrix_start(settings, "linear", before, outputs)))
        self.parameters = tuple(parameter for each in own for parameter in each)
        self.layers = tuple(self.description(layer, each) for layer, each in enumerate(own))

    def description(self, layer: int, parameters: Sequence[Parameter]) -> Layer:
        """One layer, the last one included, as it is drawn."""
        settings, last = self.settings, layer == self.depth
        names = (INPUTS, *(f"layer {number + 1}" for number in range(self.depth)), "output")
        normalisation = () if settings.normalisation == "none" else (f"{settings.normalisation} norm",)
        dropout = (f"dropout {settings.dropout:g}",) if settings.dropout else ()
        return Layer(
            name=names[layer + 1],
            width=self.outputs if last else settings.hidden[layer],
            parameters=tuple(parameter.name for parameter in parameters),
            steps=("linear",) if last else ("linear", *normalisation, settings.activation, *dropout),
            sees=names[: layer + 1] if settings.connections == "densely_connected" else names[layer : layer + 1],
            adds=names[layer] if settings.connections == "residual" and 0 < layer < self.depth else "",
            copies=self.submodels,
        )

    def width(self, inputs: int, layer: int) -> int:
        """How many numbers a layer sees of each event."""
        widths = (inputs, *self.settings.hidden)[: layer + 1]
        return sum(widths) if self.settings.connections == "densely_connected" else widths[-1]

    def layer(self, layer: int, before: int, after: int, start: Start) -> list[Parameter]:
        """The parameters of one hidden layer."""
        return [
            Parameter(f"weight{layer}", (before, after), start=start, decays=True),
            Parameter(f"bias{layer}", (1, after)),
        ]

    def normalisation(self, layer: int, width: int) -> list[Parameter]:
        """The parameters of the normalisation behind it."""
        kind, shape = self.settings.normalisation, (self.submodels, width)
        if kind == "none":
            return []
        affine = [Parameter(f"gain{layer}", shape, _ONES), Parameter(f"shift{layer}", shape)]
        if kind == "layer":
            return affine
        running = Parameter(f"mean{layer}", shape, trained=False)
        return [*affine, running, Parameter(f"variance{layer}", shape, _ONES, trained=False)]

    def head(self, before: int, start: Start) -> list[Parameter]:
        """The parameters of the last layer."""
        return self.layer(self.depth, before, self.outputs, start)

    def logits(self, parameters: Mapping[str, Tensor], inputs: Tensor, step: Step | None) -> Tensor:
        """Return the logits ``[M, K, B, outputs]``."""
        hidden = inputs.repeat(1, self.submodels, 1) if self.submodels > 1 else inputs  # (M, K·B, inputs)
        connections = self.settings.connections
        for layer in range(self.depth):
            before = hidden
            hidden = self.linear(parameters, layer, hidden)  # (M, K·B, H)
            hidden = self.normalised(parameters, layer, hidden, step)  # (M, K·B, H)
            if self.watch is not None:
                self.watch(self.layers[layer].name, hidden)
            hidden = self.activation(hidden)  # (M, K·B, H)
            if step is not None:
                hidden = step.dropout(hidden, layer)  # (M, K·B, H)
            if connections == "residual" and layer > 0:
                hidden = before + hidden  # (M, K·B, H)
            elif connections == "densely_connected":
                hidden = torch.cat([before, _whole(hidden)], dim=-1)  # (M, K·B, H + H')
        last = self.last(parameters, hidden)  # (M, K·B, outputs)
        return last.view(len(last), self.submodels, -1, self.outputs)  # (M, K, B, outputs)

    def linear(self, parameters: Mapping[str, Tensor], layer: int, hidden: Tensor) -> Tensor:
        """One matrix product: ``[M, K·B, H']`` from ``[M, K·B, H]``."""
        return linear(parameters[f"bias{layer}"], hidden, parameters[f"weight{layer}"])  # (M, K·B, H')

    def last(self, parameters: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        """The last layer: ``[M, K·B, outputs]`` from ``[M, K·B, H]``."""
        return self.linear(parameters, self.depth, hidden)

    def normalised(self, parameters: Mapping[str, Tensor], layer: int, hidden: Tensor, step: Step | None) -> Tensor:
        """Shift and scale units ``[M, K·B, H]`` by moments over the batch or over the units of an event."""
        kind = self.settings.normalisation
        if kind == "none":
            return hidden
        units = hidden.view(len(hidden), self.submodels, -1, hidden.shape[-1])  # (M, K, B, H)
        units = units.to(torch.promote_types(units.dtype, torch.float32))  # (M, K, B, H)
        if kind == "layer":
            variance, mean = torch.var_mean(units, dim=-1, correction=0, keepdim=True)  # (M, K, B, 1) each
        elif step is None:
            mean, variance = (parameters[f"{name}{layer}"].unsqueeze(2) for name in ("mean", "variance"))
        else:
            mean, variance = self.batch_moments(parameters, layer, units, step)  # (M, K, 1, H) each
        gain, shift = (parameters[f"{name}{layer}"].unsqueeze(2) for name in ("gain", "shift"))  # (M, K, 1, H) each
        normal = (units - mean) * torch.rsqrt(variance + _EPSILON)  # (M, K, B, H)
        return (normal * gain + shift).to(hidden.dtype).view(hidden.shape)  # (M, K·B, H)

    def batch_moments(
        self, parameters: Mapping[str, Tensor], layer: int, units: Tensor, step: Step
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of each unit over the events of a batch; moves the running ones."""
        real = step.real[:, None, :, None].to(units.dtype)  # (M, 1, B, 1)
        count = real.sum(dim=2, keepdim=True)  # (M, 1, 1, 1)
        mean = (units * real).sum(dim=2, keepdim=True) / count.clamp(min=1)  # (M, K, 1, H)
        squares = ((units - mean) * real).square().sum(dim=2, keepdim=True)  # (M, K, 1, H)
        unbiased = squares.detach() / (count - 1).clamp(min=1)  # (M, K, 1, H)
        share = _MOMENTUM * (count > 0).to(units.dtype).squeeze(2)  # (M, 1, 1); 0 where a member stands still
        for name, found in ((f"mean{layer}", mean.detach()), (f"variance{layer}", unbiased)):
            running = parameters[name]  # (M, K, H)
            step.moved[name] = running + share * (found.squeeze(2) - running)  # (M, K, H)
        return mean, squares / count.clamp(min=1)


class TabM(Dense):
    """Submodels that share matrices, each with its own scales of inputs and outputs, biases and last layer.

    Layer l of submodel k is ((x ∘ r_k) W ∘ s_k) + b_k (arXiv 2410.24210, section 3, "TabM"): the first r start as
    random signs, which makes the submodels differ, all other scales as 1. All submodels of a member see the same
    batches; its loss and its probabilities are the means of theirs.
    """

    def layer(self, layer: int, before: int, after: int, start: Start) -> list[Parameter]:
        """One matrix, and scales and biases for each submodel."""
        count = self.submodels
        first = Start("signs") if layer == 0 else _ONES
        return [
            Parameter(f"weight{layer}", (before, after), start=start, decays=True),
            Parameter(f"input{layer}", (count, before), first),
            Parameter(f"output{layer}", (count, after), _ONES),
            Parameter(f"bias{layer}", (count, after)),
        ]

    def head(self, before: int, start: Start) -> list[Parameter]:
        """A last layer for each submodel."""
        return [
            Parameter(f"weight{self.depth}", (self.submodels, before, self.outputs), start=start, decays=True),
            Parameter(f"bias{self.depth}", (self.submodels, 1, self.outputs)),
        ]

    def linear(self, parameters: Mapping[str, Tensor], layer: int, hidden: Tensor) -> Tensor:
        """One product for each submodel; scaling the matrix costs less than scaling what all events have there."""
        before, after, bias = (parameters[f"{name}{layer}"] for name in ("input", "output", "bias"))  # (M, K, H or H')
        scales = before.unsqueeze(3) * after.unsqueeze(2)  # (M, K, H, H')
        return self.products(bias.unsqueeze(2), hidden, parameters[f"weight{layer}"].unsqueeze(1) * scales)

    def last(self, parameters: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
        """One product for each submodel."""
        return self.products(parameters[f"bias{self.depth}"], hidden, parameters[f"weight{self.depth}"])

    @staticmethod
    def products(bias: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
        """``[M, K·B, H']`` from biases ``[M, K, 1, H']``, units ``[M, K·B, H]`` and matrices ``[M, K, H, H']``."""
        own = hidden.view(bias.shape[0] * bias.shape[1], -1, hidden.shape[-1])  # (M·K, B, H)
        product = torch.baddbmm(bias.flatten(0, 1), own, weight.flatten(0, 1))  # (M·K, B, H')
        return product.view(len(hidden), -1, product.shape[-1])  # (M, K·B, H')


def _whole(hidden: Tensor) -> Tensor:
    """Units whose gradient is in one piece, however it is cut out of that of others.

    Else it would depend on who is in the stack: kernels round differently for rows with gaps between them, and dropout,
    which some members have, would close the gaps.
    """
    if hidden.requires_grad:
        hidden.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
    return hidden


NETWORKS: dict[str, Callable[[ModelSettings, int, int], Network]] = {"dense": Dense, "tabm": TabM}


class Classifier:
    """Preprocessing and network of a stack of members, as functions of one parameter row per member.

    Attributes:
        settings: What the network is.
        loss: What it was trained on.
        front: What its layers see of the objects.
        parameters: In the order of a row: those that decay, the others that are trained, those that are not.
        decaying: How many numbers of a row decay.
        trained: How many are trained, those that decay among them.
        size: How many there are.
        layers: From the inputs to the output.
        fill: How absent numbers are filled (`models.preprocessing.filled`).
    """

    fill = staticmethod(filled)

    def __init__(
        self,
        settings: ModelSettings,
        signature: Signature,
        device: str = "cpu",
        loss: Loss = "cross_entropy",
        augmentation: Augmentation | None = None,
    ) -> None:
        """Lay out the parameters.

        Args:
            settings: What the network is.
            signature: Features, objects and classes.
            device: torch's name of the device on which the logits will be computed.
            loss: What it was trained on, which says what its logits mean.
            augmentation: By which symmetries events are moved in training and averaged at evaluation.
        """
        self.settings, self.loss = settings, loss
        self.augmenter = None if augmentation is None else Augmenter(augmentation, signature.features, device)
        self.layout = Layout(signature.features, settings, device)
        self.embeddings = Embeddings(settings, self.layout)
        self.front = FRONTS[settings.missing](settings, signature, self.embeddings.width, device)
        self.classes, self.targets, more = len(signature.classes), signature.targets, len(signature.predicted)
        self.network = NETWORKS[settings.type](settings, self.front.width, self.classes + more)
        # Absent values start from 0, the mean of the present ones where these are standardised; `models.absent` writes
        # fixed ones.
        absent = Parameter("absent", (1, self.layout.width), trained=settings.missing != "default", exact=True)
        parameters = (absent, *self.embeddings.parameters, *self.front.parameters, *self.network.parameters)
        if self.targets:
            kept = (Parameter(MEAN, (1, more), trained=False), Parameter(SCALE, (1, more), _ONES, trained=False))
            parameters = (*parameters, *kept)
        self.parameters = tuple(sorted(parameters, key=lambda p: (not p.decays, not p.trained)))
        self.decaying = sum(parameter.size for parameter in parameters if parameter.decays)
        self.trained = sum(parameter.size for parameter in parameters if parameter.trained)
        self.size = sum(parameter.size for parameter in parameters)
        shown = (f"{len(signature.features)} features, {len(signature.objects)} objects", "transform, fill in")
        before = (absent, *self.embeddings.parameters, *self.front.parameters)
        own = tuple(parameter.name for parameter in before)
        self.layers = (Layer(INPUTS, self.front.width, own, shown), *self.network.layers)
        self.membership = torch.from_numpy(signature.membership().astype(np.float32)).to(device)  # (F, O)

    def initial(self, streams: Sequence[int]) -> Tensor:
        """Draw initial parameters.

        Args:
            streams: One key per member; its parameters follow from it alone.

        Returns:
            float32 ``[M, P]`` on the CPU.
        """
        rows = []
        for stream in streams:
            parts = [p.start.draw(p.shape, hashing.key(stream, position)) for position, p in enumerate(self.parameters)]
            rows.append(torch.cat(parts).to(torch.float32))
        return torch.stack(rows)  # (M, P)

    def row(self, named: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Join one member's parameters by name to a row, float32 ``[P]``."""
        return np.concatenate([named[parameter.name].ravel() for parameter in self.parameters])

    def views(self, rows: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Cut parameter rows ``[M, P]`` into named views ``[M, ...]`` that share their memory.

        Args:
            rows: The parameters.
            dtype: Type of the network's trained parameters, which are then copies.
        """
        views, start = {}, 0
        for parameter in self.parameters:
            view = rows[:, start : start + parameter.size].view(-1, *parameter.shape)  # (M, ...)
            rounds = dtype is not None and parameter.trained and not parameter.exact
            views[parameter.name] = view.to(dtype) if rounds else view
            start += parameter.size
        return views

    def logits(
        self,
        views: Mapping[str, Tensor],
        statistics: Tables,
        values: Tensor,
        present: Tensor,
        step: Step | None = None,
    ) -> Tensor:
        """Compute what the networks of all members tell: logits of the classes, then standardised targets.

        The network behind the preprocessing computes in its parameters' type.

        Args:
            views: Parameters by name, ``[M, ...]``.
            statistics: The tables of the transforms (`models.transforms.stack_transforms`).
            values: Features ``[M, B, F]``, or ``[1, B, F]`` for the same events in all networks.
            present: bool, like ``values``.
            step: The step of training; ``None`` to evaluate.

        Returns:
            ``[M, K, B, classes + outputs of targets]``, in the type of the statistics.
        """
        numbers, there = self.encoded(views, statistics, values, present, step)  # (M, B, W), (M, B, O)
        return self.outputs(views, statistics, numbers, there, step)  # (M, K, B, outputs)

    def encoded(
        self,
        views: Mapping[str, Tensor],
        statistics: Tables,
        values: Tensor,
        present: Tensor,
        step: Step | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What an event says before the embeddings; arguments as `logits`.

        Returns:
            The numbers that come of its features, with absent ones filled, ``[M, B, W]``, and which objects are there,
            ``[M, B, O]``.
        """
        if step is not None and self.augmenter is not None:
            values = self.augmenter.draw(values, present, step.keys)  # (M, B, F)
        numbers = self.layout.numbers(values, statistics)  # (M, B, W)
        known, own = self.layout.known(present, statistics)  # (M, B, F), (M, B, W)
        if step is not None and step.regularisers is not None:
            measured = own[..., : self.layout.measured]  # (M, B, W')
            numbers = step.regularisers.noisy_inputs(numbers, measured, step.keys)  # (M, B, W)
        numbers = self.fill(numbers, own, views["absent"])  # (M, B, W)
        there = presence(known, self.membership.to(numbers.dtype))  # (M or 1, B, O)
        return numbers, there.expand(len(numbers), -1, -1)  # (M, B, W), (M, B, O)

    def outputs(
        self,
        views: Mapping[str, Tensor],
        statistics: Tables,
        numbers: Tensor,
        there: Tensor,
        step: Step | None = None,
    ) -> Tensor:
        """What the networks tell of what `encoded` returns; otherwise as `logits`."""
        inputs = self.embeddings(views, statistics, numbers)  # (M, B, E)
        inputs = torch.cat([inputs, there], dim=-1)  # (M, B, E + O)
        kind = next(iter(views.values())).dtype
        seen = self.front(views, inputs.to(kind))  # (M, B, width)
        outputs = self.network.logits(views, seen, step).to(inputs.dtype)  # (M, K, B, outputs)
        return self._bounded(outputs)

    def _bounded(self, outputs: Tensor) -> Tensor:
        """Bound the logits of the classes, and nothing else, where `logit_bound` says so."""
        bound = self.settings.logit_bound
        if bound is None:
            return outputs
        logits = bound * torch.tanh(self.of_classes(outputs) / bound)  # (M, K, B, classes)
        return torch.cat([logits, outputs[..., self.classes :]], dim=-1) if self.targets else logits

    def of_classes(self, outputs: Tensor) -> Tensor:
        """The logits of the classes ``[..., classes]`` among the outputs of a network."""
        return outputs[..., : self.classes].contiguous() if self.targets else outputs

    def meant(self, outputs: Tensor, routing: Routing | None = None) -> Tensor:
        """The probabilities that outputs ``[M, K, B, …]`` mean, averaged over submodels: ``[M, B, classes]``."""
        logits = self.of_classes(outputs)  # (M, K, B, classes)
        if routing is not None:
            logits = logits / routing.temperatures  # (M, K, B, classes)
        return probabilities(logits, self.loss).mean(dim=1)  # (M, B, classes)

    def probabilities(self, views: Mapping[str, Tensor], statistics: Tables, values: Tensor, present: Tensor) -> Tensor:
        """Compute the probabilities of all members: ``[M, B, classes]``; arguments as `logits`."""
        return self.predictions(views, statistics, values, present)[..., : self.classes]

    def predictions(
        self,
        views: Mapping[str, Tensor],
        statistics: Tables,
        values: Tensor,
        present: Tensor,
        routing: Routing | None = None,
    ) -> Tensor:
        """Compute probabilities, and targets in their units, means over submodels and the copies of an event.

        Args:
            views: As for `logits`.
            statistics: Likewise.
            values: Likewise.
            present: Likewise.
            routing: Which of a member's networks an event takes, for ``missing: separate``: views and statistics then
                are those of all networks, and values those of the same events for all of them, ``[1, B, F]``.

        Returns:
            ``[M, B, classes + outputs of targets]``.
        """
        of_events = present  # (1, B, F)
        events, copies = values.shape[1], 1 if self.augmenter is None else self.augmenter.copies
        if self.augmenter is not None and copies > 1:
            moved = [self.augmenter.copy(values, present, number) for number in range(copies)]
            values, present = torch.cat(moved, dim=1), present.repeat(1, copies, 1)  # (M, copies · B, F) each
        outputs = self.logits(views, statistics, values, present)  # (M, K, …, outputs)
        found = self.meant(outputs, routing)  # (M, …, classes)
        if self.targets:
            found = torch.cat([found, in_units(outputs[..., self.classes :], self.targets, views)], dim=-1)
        if copies > 1:
            found = found.view(len(found), copies, events, -1).mean(dim=1)  # (M, B, classes + outputs of targets)
        return found if routing is None else routing(found, presence(of_events, self.membership)[0])  # (M, B, classes)
