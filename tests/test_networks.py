"""Networks as stacks: each member and submodel against a network of torch's own layers, in double precision."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor, nn
from torch.nn import functional

from models.dropout import Dropout
from models.initialisation import matrix_start
from models.losses import cross_entropy
from models.networks import Classifier, Dense, Step
from models.preprocessing import Signature
from models.settings import (
    Activation,
    Connections,
    Initialisation,
    ModelSettings,
    NetworkType,
    Normalisation,
    TrainingSettings,
)
from models.training import train
from tests.test_training import make_events, make_plans

SIGNATURE = Signature(("met", "pt1", "eta1", "pt2", "eta2"), ("event", "l1", "l1", "l2", "l2"), ("s", "b", "t"))
OWN = {"input", "output", "gain", "shift", "mean", "variance"}  # a row for each submodel
MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "elu": nn.ELU,
    "selu": nn.SELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "linear": nn.Identity,
}
NORMALISATIONS = [(kind, 1e-10) for kind in get_args(Normalisation)]


class Scale(nn.Module):
    """Multiply each unit by a number of its own."""

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.factors = nn.Parameter(factors)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors


class Shift(nn.Module):
    """Add a number of its own to each unit."""

    def __init__(self, terms: Tensor) -> None:
        super().__init__()
        self.terms = nn.Parameter(terms)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.terms


class Plain(nn.Module):
    """One submodel of one member, with copies of its parameters: `named` gives them under the stack's names."""

    def __init__(self, settings: ModelSettings, views: dict[str, Tensor], member: int, number: int) -> None:
        super().__init__()
        self.named: dict[str, nn.Parameter] = {}
        self.norms: dict[int, nn.BatchNorm1d] = {}
        tabm = settings.type == "tabm"

        def own(name: str) -> Tensor:
            view = views[name][member].detach()
            kind, layer = name.rstrip("0123456789"), int(name[len(name.rstrip("0123456789")) :])
            if kind in OWN or (tabm and (kind == "bias" or layer == len(settings.hidden))):
                view = view[number]
            return view.clone().squeeze(0) if kind == "bias" else view.clone()

        def matrix(layer: int) -> nn.Module:
            weight = own(f"weight{layer}")
            linear = nn.Linear(weight.shape[0], weight.shape[1], bias=False).double()
            linear.weight = nn.Parameter(weight.T.clone())
            self.named[f"weight{layer}"] = linear.weight
            return linear

        def scale(name: str) -> nn.Module:
            module = Scale(own(name))
            self.named[name] = module.factors
            return module

        def shift(name: str) -> nn.Module:
            module = Shift(own(name))
            self.named[name] = module.terms
            return module

        blocks: list[nn.Module] = []
        for layer, width in enumerate(settings.hidden):
            layers: list[nn.Module] = []
            layers += [scale(f"input{layer}")] if tabm else []
            layers += [matrix(layer)]
            layers += [scale(f"output{layer}")] if tabm else []
            layers += [shift(f"bias{layer}")]
            if settings.normalisation != "none":
                norm = nn.BatchNorm1d(width) if settings.normalisation == "batch" else nn.LayerNorm(width)
                norm.weight, norm.bias = (nn.Parameter(own(f"{name}{layer}")) for name in ("gain", "shift"))
                self.named |= {f"gain{layer}": norm.weight, f"shift{layer}": norm.bias}
                if isinstance(norm, nn.BatchNorm1d):
                    self.norms[layer] = norm.double()
                    norm.running_mean, norm.running_var = own(f"mean{layer}"), own(f"variance{layer}")
                layers.append(norm)
            layers.append(MODULES[settings.activation]())
            blocks.append(nn.Sequential(*layers))
        depth, self.connections = len(settings.hidden), settings.connections
        self.layers = nn.ModuleList([*blocks, nn.Sequential(matrix(depth), shift(f"bias{depth}"))])

    def forward(self, inputs: Tensor) -> Tensor:
        """By the lists of what each layer gives."""
        found = [inputs]
        for layer in self.layers:
            if self.connections == "densely_connected":
                found.append(layer(torch.cat(found, dim=1)))
            elif self.connections == "residual" and 1 < len(found) < len(self.layers):
                found.append(found[-1] + layer(found[-1]))
            else:
                found.append(layer(found[-1]))
        return found[-1]

    def gradient(self, name: str) -> Tensor:
        """The gradient of one parameter, shaped as the stack has it for one submodel."""
        gradient = self.named[name].grad
        assert gradient is not None
        return gradient.T if name.startswith("weight") else gradient


class Stacked:
    """Three members with parameters away from their first values, and a batch for each."""

    def __init__(self, settings: ModelSettings, events: int = 64, seed: int = 5) -> None:
        random = np.random.default_rng(seed)
        self.settings, self.classifier = settings, Classifier(settings, SIGNATURE)
        self.rows = self.classifier.initial([11, 12, 13]).double()  # (M, P)
        self.rows += torch.from_numpy(random.normal(0, 0.1, self.rows.shape))
        self.views = self.classifier.views(self.rows)
        for name, view in self.views.items():
            if name.startswith("variance"):
                view.abs_()
        moments = random.uniform(1, 2, (3, 2, 1, 5)).astype(np.float32).astype(np.float64)
        self.mean, self.scale = torch.from_numpy(moments).unbind(1)  # (M, 1, F) each
        seen = torch.ones_like(self.mean)
        self.statistics = {"standardise.shift": self.mean, "standardise.scale": self.scale, "seen": seen}
        self.draw(events, random)

    def draw(self, events: int, random: np.random.Generator) -> None:
        """Draw batches, with absent values and weights of both signs."""
        there = np.ones((3, events, 5), dtype=np.bool_)
        there[..., 1:3] = random.random((3, events, 1)) < 0.9
        there[..., 3:] = random.random((3, events, 1)) < 0.5
        self.values = torch.from_numpy(random.normal(3, 2, there.shape))
        self.present = torch.from_numpy(there)
        self.labels = torch.from_numpy(random.integers(0, 3, there.shape[:2]))
        self.weights = torch.from_numpy(random.normal(1, 1, there.shape[:2]))

    @property
    def submodels(self) -> int:
        return self.settings.submodels if self.settings.type == "tabm" else 1

    def logits(self, step: Step | None) -> Tensor:
        return self.classifier.logits(self.views, self.statistics, self.values, self.present, step)

    def inputs(self, member: int, absent: Tensor) -> Tensor:
        """What the first layer sees of a member's batch, by the formulas of the documentation."""
        there = self.present[member]
        scaled = (self.values[member] - self.mean[member]) / self.scale[member]
        filled = torch.where(there, scaled / (1 + scaled.square() / 9).sqrt(), absent)
        objects = torch.stack([there[:, 0], there[:, 1], there[:, 3]], dim=1).double()
        return torch.cat([filled, objects], dim=1)


def training_step(real: Tensor) -> Step:
    """A step without dropout."""
    return Step(torch.zeros(len(real), dtype=torch.int64), None, real)


def assert_as_plain(settings: ModelSettings, real: Tensor | None, tolerance: float) -> None:
    """Logits, losses and gradients of a stack are those of plain networks, with `real` rows in training."""
    stack = Stacked(settings)
    rows = torch.ones(3, 64, dtype=torch.bool) if real is None else real
    trained = {p.name: stack.views[p.name].requires_grad_() for p in stack.classifier.parameters if p.trained}
    logits = stack.logits(None if real is None else training_step(real))
    assert logits.shape == (3, stack.submodels, 64, 3)
    losses = cross_entropy(logits, stack.labels, stack.weights * rows)
    gradients = dict(zip(trained, torch.autograd.grad(losses.sum(), list(trained.values())), strict=True))

    for member in range(3):
        own = rows[member]
        absent = stack.views["absent"][member].detach().clone().requires_grad_()
        plains = [Plain(settings, stack.views, member, number) for number in range(stack.submodels)]
        loss = torch.zeros((), dtype=torch.float64)
        for number, plain in enumerate(plains):
            found = plain.train(real is not None)(stack.inputs(member, absent)[own])
            assert (logits[member, number][own] - found).abs().max() < tolerance
            each = functional.cross_entropy(found, stack.labels[member][own], reduction="none")
            loss = loss + (each * stack.weights[member][own]).sum() / stack.submodels
        assert abs(losses[member].item() - loss.item()) < 100 * tolerance
        loss.backward()  # type: ignore[no-untyped-call]
        assert absent.grad is not None
        expected = {"absent": absent.grad}
        for name in plains[0].named:
            parts = [plain.gradient(name) for plain in plains]
            shape = gradients[name][member].shape
            shared = parts[0].numel() == math.prod(shape)
            expected[name] = (torch.stack(parts).sum(dim=0) if shared else torch.stack(parts)).reshape(shape)
        assert expected.keys() == gradients.keys()
        for name, gradient in expected.items():
            assert gradient.abs().max() > 1e-3 or not name.startswith("weight"), name  # there is something to compare
            assert (gradients[name][member] - gradient).abs().max() < tolerance * max(
                1.0, gradient.abs().max().item()
            ), name


class TestAgainstTorch:
    @pytest.mark.parametrize("kind", get_args(NetworkType))
    @pytest.mark.parametrize("activation", get_args(Activation))
    @pytest.mark.parametrize("hidden", [(), (7,), (16, 3, 5)])
    def test_gradients_of_a_stack_are_those_of_single_networks(
        self, kind: NetworkType, activation: Activation, hidden: tuple[int, ...]
    ) -> None:
        """Those of what submodels share are the sums of theirs."""
        assert_as_plain(ModelSettings(type=kind, hidden=hidden, activation=activation, submodels=4), None, 1e-10)

    @pytest.mark.parametrize("kind", get_args(NetworkType))
    @pytest.mark.parametrize("normalisation", get_args(Normalisation))
    @pytest.mark.parametrize("connections", get_args(Connections))
    def test_connections(self, kind: NetworkType, normalisation: Normalisation, connections: Connections) -> None:
        settings = ModelSettings(
            type=kind, hidden=(6, 6, 6), submodels=3, normalisation=normalisation, connections=connections
        )
        assert_as_plain(settings, torch.ones(3, 64, dtype=torch.bool), 1e-9)
        plain = dataclasses.replace(settings, connections="plain")
        shapes = [[(p.name, p.shape) for p in Classifier(own, SIGNATURE).parameters] for own in (settings, plain)]
        assert (shapes[0] == shapes[1]) == (connections != "densely_connected")

    @pytest.mark.parametrize("kind", get_args(NetworkType))
    @pytest.mark.parametrize(("normalisation", "tolerance"), NORMALISATIONS)
    @pytest.mark.parametrize("training", [True, False])
    def test_normalisations(
        self, kind: NetworkType, normalisation: Normalisation, tolerance: float, training: bool
    ) -> None:
        """In training the rows that pad a batch count for nothing; in evaluation the running moments do."""
        settings = ModelSettings(type=kind, hidden=(8, 6), normalisation=normalisation, submodels=3)
        real = torch.arange(64) < torch.tensor([[64], [50], [17]])  # (M, B)
        assert_as_plain(settings, real if training else None, tolerance)

    @pytest.mark.parametrize("kind", get_args(NetworkType))
    @pytest.mark.parametrize("tolerance", [1e-10])
    def test_running_moments_of_several_steps(self, kind: NetworkType, tolerance: float) -> None:
        """A member whose batch is all padding keeps them to the last bit, as torch's does that sees no batch."""
        settings = ModelSettings(type=kind, hidden=(8, 6), normalisation="batch", submodels=3)
        stack, random = Stacked(settings), np.random.default_rng(8)
        plains = [[Plain(settings, stack.views, m, k).train() for k in range(stack.submodels)] for m in range(3)]
        absent = stack.views["absent"]
        for counts in ([64, 50, 2], [64, 0, 33], [3, 64, 0], [0, 64, 64]):
            stack.draw(64, random)
            real = torch.arange(64) < torch.tensor(counts)[:, None]
            step = training_step(real)
            before = stack.rows.clone()
            stack.logits(step)
            assert torch.equal(stack.rows, before)  # only what reads `moved` changes parameters
            assert step.moved.keys() == {f"{name}{layer}" for name in ("mean", "variance") for layer in range(2)}
            for name, moved in step.moved.items():
                stack.views[name].copy_(moved)
            for member, count in enumerate(counts):
                if count == 0:
                    assert torch.equal(stack.rows[member], before[member])
                    continue
                for plain in plains[member]:
                    plain(stack.inputs(member, absent[member])[real[member]])
        stack.draw(64, random)
        logits = stack.logits(None)
        for member in range(3):
            for number, plain in enumerate(plains[member]):
                for layer, norm in plain.norms.items():
                    mean, variance = (stack.views[f"{name}{layer}"][member, number] for name in ("mean", "variance"))
                    assert norm.running_mean is not None
                    assert norm.running_var is not None
                    assert (mean - norm.running_mean).abs().max() < tolerance
                    assert (variance - norm.running_var).abs().max() < tolerance
                expected = plain.eval()(stack.inputs(member, absent[member]))
                assert (logits[member, number] - expected).abs().max() < tolerance


class TestInitial:
    def test_parameters_follow_from_the_key_alone(self) -> None:
        classifier = Classifier(ModelSettings(hidden=(30, 20)), SIGNATURE)
        stack = classifier.initial([5, 6, 7])
        assert torch.equal(classifier.initial([7])[0], stack[2])
        assert not torch.equal(stack[0], stack[1])
        views = classifier.views(stack)
        for name in ("absent", "bias0", "bias1", "bias2"):
            assert not views[name].any()
        for name, activation in (("weight0", "silu"), ("weight1", "silu"), ("weight2", "linear")):
            weight = views[name]
            bound = matrix_start(classifier.settings, activation, weight.shape[1], weight.shape[2]).scale
            assert weight.abs().max() <= bound
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)

    def test_submodels_differ_in_random_signs_and_last_layers(self) -> None:
        settings = ModelSettings(type="tabm", hidden=(30, 20), submodels=16, normalisation="batch")
        classifier = Classifier(settings, SIGNATURE)
        views = classifier.views(classifier.initial([5, 6]))
        signs = views["input0"]  # (M, K, inputs)
        assert signs.shape == (2, 16, 8)
        assert set(signs.flatten().tolist()) == {-1.0, 1.0}
        assert len({tuple(row.tolist()) for member in signs for row in member}) > 24  # 32 rows of 8 signs
        assert abs(signs.mean().item()) < 5 / 16  # 5 σ of 256 signs
        for name in ("input1", "output0", "output1", "gain0", "gain1", "variance0", "variance1"):
            assert (views[name] == 1).all(), name
        for name in ("bias0", "bias1", "bias2", "shift0", "shift1", "mean0", "mean1", "absent"):
            assert not views[name].any(), name
        heads = views["weight2"]  # (M, K, H, C)
        assert len({tuple(head.flatten().tolist()) for member in heads for head in member}) == 32
        assert heads.abs().max() <= matrix_start(settings, "linear", 20, 3).scale


TORCH: dict[str, Callable[..., Tensor]] = {
    "glorot_uniform": nn.init.xavier_uniform_,
    "glorot_normal": nn.init.xavier_normal_,
    "he_uniform": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),
    "he_normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "lecun_uniform": partial(nn.init.kaiming_uniform_, nonlinearity="linear"),
    "lecun_normal": partial(nn.init.kaiming_normal_, nonlinearity="linear"),
    "orthogonal": nn.init.orthogonal_,
}


def first_weights(settings: ModelSettings, inputs: int, outputs: int, stream: int = 5) -> Tensor:
    """First values of a matrix before the activation of some settings, ``[inputs, outputs]``."""
    start = matrix_start(settings, settings.activation, inputs, outputs)
    return start.draw((inputs, outputs), stream).view(inputs, outputs)


class TestInitialisation:
    @pytest.mark.parametrize("name", TORCH)
    @pytest.mark.parametrize(("inputs", "outputs"), [(300, 400), (400, 300)])
    def test_distributions_are_torch_s(self, name: Initialisation, inputs: int, outputs: int) -> None:
        found = first_weights(ModelSettings(initialisation=name, activation="tanh"), inputs, outputs)
        expected = torch.empty(outputs, inputs)  # torch: (outputs, inputs)
        TORCH[name](expected)
        assert found.std().item() == pytest.approx(expected.std().item(), rel=0.01)
        assert abs(found.mean().item()) < 4 * found.std().item() / math.sqrt(found.numel())
        assert ks_2samp(found.flatten(), expected.flatten()).pvalue > 1e-3
        if name.endswith("uniform"):
            assert found.abs().max().item() == pytest.approx(expected.abs().max().item(), rel=1e-3)

    @pytest.mark.parametrize(("activation", "gain"), [("tanh", 1.0), ("selu", 1.0), ("relu", 2.0), ("silu", 2.0)])
    @pytest.mark.parametrize(("inputs", "outputs"), [(30, 20), (20, 30), (25, 25)])
    def test_orthogonal_matrices_are(self, activation: Activation, gain: float, inputs: int, outputs: int) -> None:
        weight = first_weights(ModelSettings(initialisation="orthogonal", activation=activation), inputs, outputs)
        product = weight @ weight.T if inputs < outputs else weight.T @ weight
        assert (product - gain * torch.eye(min(inputs, outputs))).abs().max() < 1e-12

    @pytest.mark.parametrize(
        ("activation", "name"),
        [("relu", "he_uniform"), ("gelu", "he_uniform"), ("selu", "lecun_uniform"), ("tanh", "glorot_uniform")],
    )
    def test_auto_chooses_by_the_activation(self, activation: Activation, name: Initialisation) -> None:
        chosen = ModelSettings(activation=activation)
        named = dataclasses.replace(chosen, initialisation=name)
        assert torch.equal(first_weights(chosen, 30, 20), first_weights(named, 30, 20))
        others = set(get_args(Initialisation)) - {"auto", name}
        for other in others:
            different = dataclasses.replace(chosen, initialisation=other)
            assert not torch.equal(first_weights(chosen, 30, 20), first_weights(different, 30, 20))

    @pytest.mark.parametrize("kind", get_args(NetworkType))
    @pytest.mark.parametrize("name", get_args(Initialisation))
    def test_every_matrix_starts_so_and_nothing_else(self, kind: NetworkType, name: Initialisation) -> None:
        model = ModelSettings(type=kind, hidden=(30, 20), submodels=4, normalisation="batch")
        changed = dataclasses.replace(model, initialisation=name)
        if name == "constant":
            changed = dataclasses.replace(changed, initial_constant=-0.25)
        one, other = (Classifier(own, SIGNATURE).initial([5, 6]) for own in (model, changed))
        for key, view in Classifier(model, SIGNATURE).views(other).items():
            before = Classifier(model, SIGNATURE).views(one)[key]
            auto = {"weight0": "he_uniform", "weight1": "he_uniform", "weight2": "glorot_uniform"}
            assert torch.equal(view, before) == (key not in auto or name in ("auto", auto[key])), key
            if key.startswith("weight") and name in ("zeros", "constant"):
                assert (view == (0 if name == "zeros" else -0.25)).all()

    def test_what_does_not_break_the_symmetry_is_told(self) -> None:
        """Units of a layer stay alike however long they learn, and whoever trains them is told before."""
        events, lines = make_events(600), list[str]()
        model = ModelSettings(hidden=(5, 4), initialisation="constant", dropout=0.0, activation="tanh")
        plans = make_plans(
            600, model=model, training=TrainingSettings(epochs=3, batch_size=50, negative_weights="signed")
        )[:2]
        trained = train(events, plans, progress=lines.append)
        assert lines[0].startswith("model.initialisation is constant: all units of a layer start alike")
        assert [line for line in lines if "symmetry" in line] == lines[:1]
        for member in trained:
            weight = member.parameters["weight0"]
            assert np.ptp(weight, axis=1).max() < 1e-6  # from unit to unit
            assert np.ptp(weight, axis=0).min() > 1e-3  # it has learned
        for name in get_args(Initialisation):
            assert bool(ModelSettings(initialisation=name).warnings) == (name in ("zeros", "constant"))


class TestRows:
    def test_views_share_memory_and_cover_the_row(self) -> None:
        classifier = Classifier(ModelSettings(hidden=(4, 3)), SIGNATURE)
        rows = torch.zeros(2, classifier.size)
        for view in classifier.views(rows).values():
            view.add_(1)
        assert torch.equal(rows, torch.ones_like(rows))
        matrices = 8 * 4 + 4 * 3 + 3 * 3
        assert classifier.decaying == matrices
        assert classifier.size == matrices + 4 + 3 + 3 + 5

    @pytest.mark.parametrize("kind", get_args(NetworkType))
    @pytest.mark.parametrize("normalisation", get_args(Normalisation))
    def test_matrices_come_first_and_what_is_not_trained_last(
        self, kind: NetworkType, normalisation: Normalisation
    ) -> None:
        settings = ModelSettings(type=kind, hidden=(4, 3), normalisation=normalisation, submodels=2)
        classifier = Classifier(settings, SIGNATURE)
        numbers = classifier.views(torch.arange(classifier.size)[None, :])
        ranges = {name: (view.min().item(), view.max().item() + 1) for name, view in numbers.items()}
        decaying = {name for name, (_, end) in ranges.items() if end <= classifier.decaying}
        assert decaying == {"weight0", "weight1", "weight2"}
        assert all(start >= classifier.decaying for name, (start, _) in ranges.items() if name not in decaying)
        moments = {"mean0", "mean1", "variance0", "variance1"} if normalisation == "batch" else set()
        assert {name for name, (start, _) in ranges.items() if start >= classifier.trained} == moments
        assert all(end <= classifier.trained for name, (_, end) in ranges.items() if name not in moments)

    @pytest.mark.parametrize("kind", get_args(NetworkType))
    def test_what_is_not_trained_gets_no_gradient(self, kind: NetworkType) -> None:
        """A batch's own moments stand in for the running ones."""
        stack = Stacked(ModelSettings(type=kind, hidden=(8, 6), normalisation="batch", submodels=3))
        moments = {"mean0", "mean1", "variance0", "variance1"}
        for name, view in stack.views.items():
            view.requires_grad_(name not in moments)
        step = training_step(torch.ones(3, 64, dtype=torch.bool))
        stack.logits(step)
        assert step.moved.keys() == moments
        assert not any(moved.requires_grad for moved in step.moved.values())  # nor do they keep a graph alive
        for name in moments:
            stack.views[name].requires_grad_()
        loss = stack.logits(step).square().sum()
        slopes = torch.autograd.grad(loss, list(stack.views.values()), allow_unused=True)
        assert {name for name, slope in zip(stack.views, slopes, strict=True) if slope is None} == moments

    @pytest.mark.parametrize("kind", get_args(NetworkType))
    def test_decay_shrinks_matrices_alone(self, kind: NetworkType) -> None:
        """With gradients that are clipped to nothing, nothing else moves but the running moments."""
        model = ModelSettings(type=kind, hidden=(8, 6), normalisation="batch", submodels=3, dropout=0.0)
        training = TrainingSettings(
            negative_weights="signed",
            epochs=1,
            batch_size=100,
            learning_rate=0.01,
            weight_decay=0.5,
            schedule="constant",
            clip_norm=1e-30,
        )
        events, plans = make_events(), make_plans(model=model, training=training)[:2]
        for plan, trained in zip(plans, train(events, plans), strict=True):
            still = dataclasses.replace(training, learning_rate=1e-30)
            start = train(events, [dataclasses.replace(plan, settings=still)])[0].parameters
            shrunk = (1 - 0.01 * 0.5) ** -(-trained.events[0] // 100)
            assert shrunk < 0.97
            for name, value in trained.parameters.items():
                if name.startswith("weight"):
                    assert value == pytest.approx(shrunk * start[name], rel=1e-5), name
                elif name.startswith(("mean", "variance")):
                    assert np.abs(value - name.startswith("variance")).max() > 1e-2, name  # where they began
                else:
                    assert np.abs(value - start[name]).max() < 1e-15, name


class TestDropout:
    @pytest.mark.parametrize("kind", get_args(NetworkType))
    def test_a_network_drops_behind_each_hidden_layer_and_only_in_training(self, kind: NetworkType) -> None:
        """Masks by hand, on a network of torch's layers."""
        settings = ModelSettings(type=kind, hidden=(8, 6), submodels=3)
        stack = Stacked(settings)
        dropout = Dropout([0.5, 0.0, 0.3], settings.hidden, torch.float64, "cpu")
        step = Step(torch.tensor([5, 6, 7]), dropout, torch.ones(3, 64) > 0)
        logits, quiet = stack.logits(step), stack.logits(None)
        count = stack.submodels * 64
        masks = [
            step.dropout(torch.ones(3, count, width, dtype=torch.float64), layer)
            for layer, width in enumerate(settings.hidden)
        ]
        assert torch.equal(logits[1], quiet[1])
        for member in (0, 2):
            assert not torch.equal(logits[member], quiet[member])
            for number in range(stack.submodels):
                hidden = stack.inputs(member, stack.views["absent"][member])
                layer = 0
                plain = Plain(settings, stack.views, member, number)
                for module in (module for block in plain.layers for module in block.children()):
                    hidden = module(hidden)
                    if isinstance(module, nn.SiLU):
                        hidden = hidden * masks[layer][member].view(stack.submodels, 64, -1)[number]
                        layer += 1
                assert (logits[member, number] - hidden).abs().max() < 1e-10


def test_a_product_in_bfloat16_is_the_same_alone_and_in_a_stack() -> None:
    """torch's batched product of one matrix differs from that of two in one of some thousand batches."""
    network = Dense(ModelSettings(hidden=(2,)), 9, 2)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(torch.bfloat16)

    for _ in range(3000):
        hidden, parameters = draw(2, 128, 9), {"weight0": draw(2, 9, 2), "bias0": draw(2, 1, 2)}
        alone = network.linear({name: value[:1] for name, value in parameters.items()}, 0, hidden[:1])
        assert torch.equal(network.linear(parameters, 0, hidden)[:1], alone)
