"""Every model and training setting, with its default: standard library only, so that the schema can read it.

Each class checks its own values, so that a wrong one is refused wherever it comes from (a YAML file, a saved
network, a call in Python). Types and unknown keys are checked where the configuration is parsed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

Activation = Literal["relu", "leaky_relu", "elu", "selu", "silu", "gelu", "mish", "tanh", "sigmoid", "linear"]
Initialisation = Literal[
    "auto",
    "glorot_uniform",
    "glorot_normal",
    "he_uniform",
    "he_normal",
    "lecun_uniform",
    "lecun_normal",
    "orthogonal",
    "zeros",
    "constant",
]
Loss = Literal["cross_entropy", "binary_cross_entropy", "focal", "kullback_leibler"]
RegressionLoss = Literal["mean_squared", "mean_absolute", "log_cosh", "quantile"]
Connections = Literal["plain", "residual", "densely_connected"]
Optimiser = Literal["sgd", "adagrad", "rmsprop", "adam", "adamw", "nadam"]
Schedule = Literal["constant", "step", "multi_step", "exponential", "cosine", "warm_restarts", "one_cycle", "plateau"]
Averaging = Literal["none", "ema", "swa"]
Pruning = Literal["none", "magnitude", "structured"]
Precision = Literal["auto", "fp32", "bf16"]
NetworkType = Literal["dense", "tabm"]
Normalisation = Literal["none", "batch", "layer"]
Sampling = Literal["plain", "weighted", "balanced"]
Balance = Literal["classes", "processes", "none"]
NegativeWeights = Literal["signed", "absolute", "ignore", "reweighted"]
NumberInput = Literal["standardise", "z_score", "robust", "quantile_normal", "min_max", "log"]
InputKind = Literal["standardise", "z_score", "robust", "quantile_normal", "min_max", "log", "angle", "category"]
CategoryEncoding = Literal["one_hot", "embedding"]
NumberEmbedding = Literal["none", "periodic", "piecewise_linear"]
Combination = Literal["mean", "logits", "median", "weighted"]
Missing = Literal["learned", "default", "separate", "deep_sets", "attention"]

Sampler = Literal["grid", "random", "tpe", "gaussian_process"]
Pruner = Literal["none", "median", "halving"]

Constant = float | bool | str | tuple[int, ...] | tuple[str, ...] | None
CONSTANTS: dict[str, dict[str, dict[str, Constant]]] = {
    "optimiser": {
        "sgd": {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
        "adagrad": {"epsilon": 1e-10, "weight_decay": 0.0},
        "rmsprop": {"alpha": 0.99, "epsilon": 1e-8, "momentum": 0.0, "weight_decay": 0.0},
        "adam": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
        "adamw": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.1},
        "nadam": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "momentum_decay": 4e-3, "weight_decay": 0.0},
    },
    "schedule": {
        "constant": {},
        "step": {"schedule_every": 10, "schedule_factor": 0.1},
        "multi_step": {"schedule_milestones": (), "schedule_factor": 0.1},
        "exponential": {"schedule_factor": 0.9},
        "cosine": {},
        "warm_restarts": {"schedule_every": 10, "schedule_stretch": 1},
        "one_cycle": {},
        "plateau": {"schedule_factor": 0.1, "schedule_patience": 3, "schedule_reductions": 3},
    },
    "averaging": {"none": {}, "ema": {"averaging_decay": 0.999}, "swa": {"averaging_start": 0.75}},
    "loss": {"cross_entropy": {}, "binary_cross_entropy": {}, "focal": {"focal_gamma": 2.0}, "kullback_leibler": {}},
    "pruning": {
        "none": {},
        "magnitude": {"pruning_share": 0.8, "pruning_rounds": 1, "fine_tuning": 5, "fine_tuning_rate": 1.0},
        "structured": {"pruning_share": 0.5, "pruning_rounds": 1, "fine_tuning": 5, "fine_tuning_rate": 1.0},
    },
    "sampling": {
        "plain": {"down_sampling": None, "redraw": True},
        "weighted": {},
        "balanced": {"shares": None},
    },
    "initialisation": {
        **{name: {} for name in get_args(Initialisation)},
        "constant": {"initial_constant": 0.1},
    },
    "kind": {
        **{name: {} for name in get_args(InputKind)},
        "category": {"categories": 8, "encoding": "one_hot"},
    },
    "encoding": {"one_hot": {}, "embedding": {"dimension": 2}},
    "embedding": {
        "none": {},
        "periodic": {"embedding_dimension": 8, "embedding_frequencies": 16, "embedding_scale": 0.1},
        "piecewise_linear": {"embedding_dimension": 8, "embedding_bins": 16},
    },
    "missing": {
        "learned": {},
        "default": {"missing_value": "mean"},
        "separate": {"pattern_objects": (), "pattern_events": 500, "pattern_class_events": 100},
        "deep_sets": {"like_objects": (), "object_width": 32, "pooling": "sum"},
        "attention": {"like_objects": (), "object_width": 32, "pooling": "sum", "attention_heads": 4},
    },
}
"""The keys that belong to one choice or another, with their defaults there: ``CONSTANTS[key][choice]``."""
PRUNERS: dict[str, dict[str, dict[str, Constant]]] = {
    "pruner": {"none": {}, "median": {"pruner_trials": 5}, "halving": {"pruner_factor": 3}},
}
"""Likewise of a study, which is no part of a network."""


@dataclass(frozen=True)
class FeatureInput:
    """How one feature becomes what the first layer sees; a constant of another kind than its own is refused.

    Attributes:
        kind: Of `models.transforms`.
        categories: Of ``category``: the values, or how many of the heaviest ones in training are told apart; all others
            are one category more, that of unknown values.
        encoding: Of ``category``: ``one_hot``, an input for each; ``embedding``, learned numbers for each.
        dimension: Of ``embedding``: how many numbers.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    kind: InputKind = "standardise"
    categories: int | tuple[float, ...] | None = None
    encoding: CategoryEncoding | None = None
    dimension: int | None = None

    def __post_init__(self) -> None:
        _check_constants(self, "kind")
        if self.kind == "category":
            if self.encoding is None:
                object.__setattr__(self, "encoding", chosen(self, "kind")["encoding"])
            _check_constants(self, "encoding")
        else:
            _require(self.dimension is None, "dimension", self.dimension, "none, as kind is not category")

    @property
    def values(self) -> tuple[float, ...] | None:
        """The categories, if they are declared."""
        found = chosen(self, "kind")["categories"]
        return tuple(sorted(found)) if isinstance(found, (tuple, list)) else None

    @property
    def count(self) -> int:
        """How many categories are told apart, beside that of unknown values."""
        found = chosen(self, "kind")["categories"]
        return len(found) if isinstance(found, (tuple, list)) else int(found)

    @property
    def width(self) -> int | None:
        """How many numbers are learned for each category; None for one-hot."""
        return int(chosen(self, "encoding")["dimension"]) if self.encoding == "embedding" else None


@dataclass(frozen=True)
class InputSettings:
    """How features become what the first layer sees.

    Attributes:
        default: Kind of all features that are not named.
        features: Kind of others by name; a mapping where the kind has constants.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    default: NumberInput = "standardise"
    features: dict[str, InputKind | FeatureInput] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _require(self.default in get_args(NumberInput), "default", self.default, ", ".join(get_args(NumberInput)))
        own = {
            name: kind if isinstance(kind, FeatureInput) else FeatureInput(kind) for name, kind in self.features.items()
        }
        object.__setattr__(self, "features", own)

    def of(self, feature: str) -> FeatureInput:
        """How a feature becomes what the first layer sees."""
        found = self.features.get(feature, self.default)
        return found if isinstance(found, FeatureInput) else FeatureInput(found)

    @classmethod
    def restored(cls, written: dict[str, Any]) -> InputSettings:
        """Those that `dataclasses.asdict` has written."""

        def one(own: dict[str, Any]) -> FeatureInput:
            listed = own["categories"]
            return FeatureInput(**own | {"categories": tuple(listed) if isinstance(listed, list) else listed})

        return cls(written["default"], {name: one(own) for name, own in written["features"].items()})


@dataclass(frozen=True)
class ModelSettings:
    """What a network is.

    Attributes:
        type: ``dense``, fully connected layers; ``tabm``, several such networks that share their matrices and differ in
            scales, biases and last layers (Gorishniy, Kotelnikov and Babenko, arXiv 2410.24210).
        hidden: Widths of the hidden layers; an empty tuple gives logistic regression.
        activation: The non-linearity after each hidden layer.
        initialisation: What the weight matrices start from; ``auto`` chooses by the activation that follows
            (`models.initialisation`).
        initial_constant: Where all weights start with ``constant``.
        connections: Between layers: ``plain``; ``residual``, what a hidden layer but the first sees is added to what it
            gives; ``densely_connected``, each layer sees the inputs and what all layers before it give.
        normalisation: Before each of them: ``none``; ``batch`` (Ioffe and Szegedy, arXiv 1502.03167), by the mean and
            variance of each unit over the events of a batch, in evaluation by their running means; ``layer`` (Ba, Kiros
            and Hinton, arXiv 1607.06450), by those over the units of each event.
        dropout: Share of hidden units that are set to zero in each training step (Srivastava et al. 2014).
        submodels: Of ``tabm``, how many networks share the matrices.
        inputs: How features become what the first layer sees, by a default and by feature (`models.transforms`).
        embedding: What is made of each number before the first layer: ``none``, it stays as it is; ``periodic``, sines
            and cosines of learned frequencies; ``piecewise_linear``, how far it is through each of several bins; then a
            matrix and ReLU for each feature (Gorishniy, Rubachev and Babenko, arXiv 2203.05556).
        embedding_dimension: Numbers that come of each.
        embedding_frequencies: Of ``periodic``, how many.
        embedding_scale: Of ``periodic``, the standard deviation of the first ones, in periods per unit of the number.
        embedding_bins: Of ``piecewise_linear``, how many; their edges are quantiles of the training events.
        logit_bound: Largest size b of a logit: z becomes b tanh(z / b), also in scores and in ONNX; ``None`` for none.
        missing: What becomes of objects and values that an event does not have: ``learned``, a value that is learned
            for each feature; ``default``, a fixed one; ``separate``, a network for each pattern of present objects,
            each with learned values (`models.patterns`); ``deep_sets``, like objects share parameters and are summed
            over those that are there; ``attention``, so are all objects, which first attend to each other
            (`models.objects`).
        indicator: Whether an input for each object tells the network if it is there.
        missing_value: Of ``default``: ``mean`` or ``median`` of a network's training events, weighted as the
            standardisation is, or a number in the unit of each feature.
        pattern_objects: Of ``separate``: the objects whose presence makes a pattern; none for all.
        pattern_events: Of ``separate``: patterns with fewer training events than this are merged with others.
        pattern_class_events: Likewise, of each class.
        like_objects: Of ``deep_sets`` and ``attention``: groups of objects that share parameters; none for those whose
            names differ in a number at the end.
        object_width: Likewise, how many numbers stand for an object.
        pooling: Likewise, ``sum`` or ``mean`` over the like objects that are there.
        attention_heads: Of ``attention``.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    type: NetworkType = "dense"
    hidden: tuple[int, ...] = (128, 128, 128)
    activation: Activation = "silu"
    initialisation: Initialisation = "auto"
    initial_constant: float | None = None
    connections: Connections = "plain"
    normalisation: Normalisation = "none"
    dropout: float = 0.2
    submodels: int = 32
    inputs: InputSettings = field(default_factory=InputSettings)
    embedding: NumberEmbedding = "none"
    embedding_dimension: int | None = None
    embedding_frequencies: int | None = None
    embedding_scale: float | None = None
    embedding_bins: int | None = None
    logit_bound: float | None = None
    missing: Missing = "learned"
    indicator: bool = True
    missing_value: float | Literal["mean", "median"] | None = None
    pattern_objects: tuple[str, ...] | None = None
    pattern_events: int | None = None
    pattern_class_events: int | None = None
    like_objects: tuple[tuple[str, ...], ...] | None = None
    object_width: int | None = None
    pooling: Literal["sum", "mean"] | None = None
    attention_heads: int | None = None

    def __post_init__(self) -> None:
        # Width 1 would turn matrix products into matrix-vector products, whose rounding depends on the stack.
        _require(all(width >= 2 for width in self.hidden), "hidden", self.hidden, "widths of at least 2")
        _require(0 <= self.dropout <= 0.99, "dropout", self.dropout, "a share between 0 and 0.99")
        _require(self.submodels >= 1, "submodels", self.submodels, "at least 1")
        bound = self.logit_bound
        _require(bound is None or 0 < bound < math.inf, "logit_bound", bound, "a number above 0, or null")
        _check_constants(self, "initialisation")
        _check_constants(self, "embedding")
        _check_constants(self, "missing")
        self._check_missing()
        if self.connections == "residual":
            same = len(self.hidden) >= 2 and len(set(self.hidden)) == 1
            _require(same, "hidden", self.hidden, "two or more layers of one width, as connections is 'residual'")
        if self.connections == "densely_connected":
            some = "at least one layer, as connections is 'densely_connected'"
            _require(len(self.hidden) > 0, "hidden", self.hidden, some)

    def _check_missing(self) -> None:
        """Refuse inputs that the treatment of what is missing cannot take."""
        if self.missing == "attention":
            width, heads = (self.absence[name] for name in ("object_width", "attention_heads"))
            expected = f"a multiple of the attention_heads, {heads}"
            _require(width % heads == 0, "object_width", width, expected)
        if self.missing in ("deep_sets", "attention"):
            # Like features share a fit and a row of a matrix: there is one number for each, by its mean and deviation.
            why = f"as missing is {self.missing!r}"
            default, others = self.inputs.default, sorted(self.inputs.features)
            _require(default in ("standardise", "z_score"), "inputs.default", default, f"standardise or z_score, {why}")
            _require(not others, "inputs.features", others, f"none, {why}")
            _require(self.embedding == "none", "embedding", self.embedding, f"none, {why}")
        if self.missing == "default" and self.absence["missing_value"] == "mean":
            for name in self.inputs.features:
                expected = f"median or a number, as {name} is a category, of which there is no mean"
                _require(self.inputs.of(name).kind != "category", "missing_value", "mean", expected)

    @property
    def absence(self) -> dict[str, Any]:
        """The constants of the treatment of what is missing."""
        return chosen(self, "missing")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know of a choice that is allowed, but hardly wanted."""
        if self.initialisation not in ("zeros", "constant"):
            return ()
        return (
            f"model.initialisation is {self.initialisation}: all units of a layer start alike, get the same "
            "gradients and stay alike, so that a layer learns no more than one unit (the symmetry problem). Choose "
            "auto, or one that is random.",
        )


@dataclass(frozen=True)
class Resolution:
    """How far a feature is smeared: normal, with variance absolute² + (relative x)².

    Attributes:
        absolute: In the unit of the feature.
        relative: As a share of its value.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    absolute: float = 0.0
    relative: float = 0.0

    def __post_init__(self) -> None:
        for name in ("absolute", "relative"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, name, value, "a number of at least 0")
        _require(self.absolute + self.relative > 0, "absolute", self.absolute, "a number above 0, or a relative one")


@dataclass(frozen=True)
class Augmentation:
    """Symmetries of the events (`models.augmentation`); features that are not named are taken to be invariant.

    Attributes:
        rotation: Whether events are turned about the beam.
        reflection_phi: Whether they are mirrored along it, φ → -φ.
        reflection_z: Whether they are mirrored across it, z → -z.
        angles: Azimuths in radians: a rotation shifts them, into [-π, π), a reflection in φ changes their sign.
        vectors: Pairs of an x and a y component: a rotation turns them, a reflection in φ changes the sign of y.
        signed_angles: Differences of azimuths with a sign, which a reflection in φ changes.
        longitudinal: Pseudorapidities, rapidities, z components: a reflection in z changes their sign.
        copies: How many copies of an event are averaged at evaluation, the event itself among them.
        smearing: Features that are smeared in training, each within its resolution.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    rotation: bool = False
    reflection_phi: bool = False
    reflection_z: bool = False
    angles: tuple[str, ...] = ()
    vectors: tuple[tuple[str, str], ...] = ()
    signed_angles: tuple[str, ...] = ()
    longitudinal: tuple[str, ...] = ()
    copies: int = 1
    smearing: dict[str, Resolution] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        names = (
            *self.angles,
            *(name for pair in self.vectors for name in pair),
            *self.signed_angles,
            *self.longitudinal,
        )
        for name in names:
            _require(names.count(name) == 1, "augmentation", name, "each feature in one of its lists, and once")
        _require(self.moves or bool(self.smearing), "augmentation", "without effect", "a symmetry or a smearing")
        if self.rotation:
            expected = "some angles or vectors that turn"
            _require(bool(self.angles or self.vectors), "rotation", True, expected)
        if self.reflection_phi:
            expected = "some angles, vectors or signed_angles that it changes"
            _require(bool(self.angles or self.vectors or self.signed_angles), "reflection_phi", True, expected)
        if self.reflection_z:
            _require(bool(self.longitudinal), "reflection_z", True, "some longitudinal features that it changes")
        most = math.inf if self.rotation else 2 ** (self.reflection_phi + self.reflection_z)
        _require(1 <= self.copies <= most, "copies", self.copies, f"from 1 to the {most} that differ")

    @property
    def moves(self) -> bool:
        """Whether events are turned or mirrored."""
        return self.rotation or self.reflection_phi or self.reflection_z

    @property
    def features(self) -> tuple[str, ...]:
        """All features that are named."""
        pairs = (name for pair in self.vectors for name in pair)
        return (*self.angles, *pairs, *self.signed_angles, *self.longitudinal, *self.smearing)

    @classmethod
    def restored(cls, written: dict[str, Any]) -> Augmentation:
        """That which `dataclasses.asdict` has written, as JSON has it."""
        lists = {name: tuple(own) for name, own in written.items() if isinstance(own, (list, tuple))}
        lists["vectors"] = tuple(tuple(pair) for pair in lists["vectors"])
        smearing = {name: Resolution(**own) for name, own in written["smearing"].items()}
        return cls(**written | lists | {"smearing": smearing})


@dataclass(frozen=True)
class TrainingSettings:
    """How the networks are trained.

    A constant that belongs to a choice (of optimiser, schedule, averaging, loss or pruning) is ``None`` for its
    default there, which `CONSTANTS` lists; one that the choice does not have is refused.

    Attributes:
        epochs: Largest number of passes over the training events.
        batch_size: Events per step; ``all`` for all training events of a network.
        learning_rate: Peak learning rate.
        optimiser: ``sgd``, also with momentum (Polyak 1964; Sutskever et al. 2013); ``adagrad`` (Duchi, Hazan and
            Singer 2011); ``rmsprop`` (Tieleman and Hinton 2012); ``adam`` (Kingma and Ba, arXiv 1412.6980); ``adamw``
            (Loshchilov and Hutter, arXiv 1711.05101); ``nadam`` (Dozat 2016).
        weight_decay: Decoupled decay of the weight matrices; biases and learned absent values are left alone.
        momentum: Of ``sgd`` and ``rmsprop``, the share of the last step in this one.
        nesterov: Of ``sgd``, whether the momentum looks ahead.
        alpha: Of ``rmsprop``, the share that the mean of squared gradients keeps in a step.
        beta1: Of ``adam``, ``adamw`` and ``nadam``, the share that the mean of gradients keeps in a step.
        beta2: Likewise, of their squares.
        epsilon: Added to the root of the squares.
        momentum_decay: Of ``nadam``, how fast its momentum reaches ``beta1``.
        schedule: Course of the learning rate: ``constant``; ``step``, times a factor every so many epochs;
            ``multi_step``, times a factor at chosen epochs; ``exponential``, times a factor every epoch; ``cosine``
            (half a period, down to zero); ``warm_restarts`` (arXiv 1608.03983: such halves, one after the other);
            ``one_cycle`` (arXiv 1708.07120: up over the first 30% of the steps, then down); ``plateau``, times a factor
            whenever the validation loss has stopped to fall.
        schedule_every: Of ``step``, epochs from one factor to the next; of ``warm_restarts``, epochs of the first half
            period.
        schedule_factor: Of ``step``, ``multi_step``, ``exponential`` and ``plateau``.
        schedule_milestones: Of ``multi_step``, the numbers of epochs after which the rate falls.
        schedule_stretch: Of ``warm_restarts``, how many times as long as the one before a half period is.
        schedule_patience: Of ``plateau``, epochs without a better validation loss before the rate falls.
        schedule_reductions: Of ``plateau``, how often it falls; where it would once more, the training ends.
        warm_up: Epochs over which the learning rate first rises in a straight line to where the schedule begins.
        averaging: What is validated and kept: ``none``, the weights themselves; ``ema``, their exponential moving
            average over the steps; ``swa``, their mean over the last epochs (Izmailov et al., arXiv 1803.05407).
        averaging_decay: Of ``ema``, the share that the average keeps in a step.
        averaging_start: Of ``swa``, the share of the epochs after which the average begins; until then the weights
            themselves are validated, and ``patience`` does not count.
        patience: Stop after this many epochs without a better validation loss; ``None`` never stops. Either
            way the network of the best epoch is kept.
        clip_norm: Largest Euclidean norm of a network's gradient; ``None`` does not clip.
        loss: ``cross_entropy``; ``binary_cross_entropy``, with one logit for each class that tells it from the others;
            ``focal`` (Lin et al., arXiv 1708.02002), which counts events less the better they are learned;
            ``kullback_leibler``, the divergence from soft labels, of hard ones the cross-entropy.
        focal_gamma: Of ``focal``: the power of 1 - p that multiplies the loss; 0 gives ``cross_entropy``.
        loss_weight: Of that loss beside those of the regression targets; 0 trains these alone.
        decorrelation: For spectators by name, the strength λ of the penalty λ dCorr²(signal score, spectator) over the
            background events of a batch (Kasieczka and Shih, arXiv 2001.05310); 0 only reports the correlation.
        label_smoothing: Share of each label that is spread over all classes (Szegedy et al., arXiv 1512.00567).
        label_noise: Share of the labels that each step draws anew from all classes.
        input_noise: Standard deviation of Gaussian noise on the standardised inputs of each step.
        weight_noise: Standard deviation of Gaussian noise on the weight matrices of each step.
        l1: Strength λ of the penalty λ Σ|w| on the weight matrices, in the loss.
        l2: Strength λ of the penalty λ/2 Σw² on the weight matrices, in the loss; ``weight_decay`` is none.
        max_norm: Largest Euclidean norm of the weights into a unit, after each step; ``None`` for none.
        stop_gap: Stop after the first epoch whose validation loss is more than so many nats above its training loss;
            ``None`` never stops.
        stop_generalisation: Stop after the first epoch whose validation loss is more than so many per cent above the
            best one (Prechelt 1998, criterion GL); ``None`` never stops.
        pruning: What is taken away from a network that has been trained: ``none``; ``magnitude``, the smallest of all
            its weights, which stay zero (Han et al., arXiv 1506.02626); ``structured``, in each hidden layer the units
            with the smallest norm of the weights into them (after Li et al., arXiv 1608.08710), so that the network is
            smaller.
        pruning_share: Of the weights, or of the units of each layer, that are gone in the end.
        pruning_rounds: In how many rounds, each followed by fine-tuning; after round i of n the share is that in the
            end times 1 - (1 - i/n)³ (Zhu and Gupta, arXiv 1710.01878, equation 1).
        fine_tuning: Epochs of training after each round; 0 for none.
        fine_tuning_rate: Largest learning rate there, as a share of ``learning_rate``; it falls along half a cosine.
        precision: Of matrix products and hidden layers in training and validation: ``fp32``; ``bf16``, with parameters,
            optimiser and losses in fp32; ``auto``, bf16 on a GPU and fp32 on a processor. Scores are always computed
            in fp32.
        sampling: Which events make an epoch: ``plain``, each training event once, its weight in the loss; ``weighted``,
            as many as there are training events, drawn with probabilities proportional to the sizes of their balanced
            weights, which then count alike, with their sign; ``balanced``, as many, with an equal number of each class
            in every batch, so that those of a rare class come again, and weights in the loss.
        shares: Of ``balanced``, the share of each class in a batch, by its name; ``None`` for equal ones. What the
            classes count in the loss is not changed.
        down_sampling: Of ``plain``, the share of the events of some classes that an epoch holds, by the names of the
            classes; each of them counts for those that are left out.
        redraw: Of ``plain`` with ``down_sampling``, whether each epoch draws them anew; else the others never train.
        balance: Which sums of training weights are equal: ``classes``; ``processes``, those of the classes, and those
            of the processes of each class; ``none``, physics weights times one number for all.
        flatten: One or two features or spectators in whose values the training weights of each class (with ``balance:
            processes`` of each process) are made flat.
        flatten_bins: Bins of each of them.
        negative_weights: What events of negative weight do: ``signed``, they count negatively in the loss;
            ``absolute``, with the size of their weight; ``ignore``, they neither train nor stop; ``reweighted``, all
            events count with what networks, nested in the training events, have learned that their weights are on
            average (Nachman and Noll, arXiv 2505.03724), and as they are where no weight is negative.
        window: Events in memory at a time; ``None`` for all. With more events than that, each epoch reads them in
            windows, which join parts of the data at random, the next one while the network trains on the one before.
        members: Networks per fold; they differ in initial weights, batch order and dropout.
        augmentation: Symmetries by which events are moved in training, and copies averaged at evaluation.
        snapshots: Further networks of each training (Huang et al., arXiv 1704.00109): those at the ends of its last so
            many periods of ``warm_restarts``, with another schedule of its last so many epochs. The one of the best
            epoch is not counted twice.
        combination: How networks become one score (`models.combination`): ``mean`` of their probabilities; mean of
            ``logits``; ``median``; mean ``weighted`` by validation losses. It does not change how they are trained.
        diagnostics: Whether gradient norms, dead units and saturation are recorded for each layer and epoch
            (`models.diagnostics`); changes no network.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    epochs: int = 30
    batch_size: int | Literal["all"] = 256
    learning_rate: float = 2e-3
    optimiser: Optimiser = "adamw"
    weight_decay: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    alpha: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None
    momentum_decay: float | None = None
    schedule: Schedule = "one_cycle"
    schedule_every: int | None = None
    schedule_factor: float | None = None
    schedule_milestones: tuple[int, ...] | None = None
    schedule_stretch: int | None = None
    schedule_patience: int | None = None
    schedule_reductions: int | None = None
    warm_up: float = 0.0
    averaging: Averaging = "none"
    averaging_decay: float | None = None
    averaging_start: float | None = None
    patience: int | None = 10
    clip_norm: float | None = 1.0
    loss: Loss = "cross_entropy"
    focal_gamma: float | None = None
    loss_weight: float = 1.0
    decorrelation: Mapping[str, float] = field(default_factory=dict)
    label_smoothing: float = 0.0
    label_noise: float = 0.0
    input_noise: float = 0.0
    weight_noise: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    max_norm: float | None = None
    stop_gap: float | None = None
    stop_generalisation: float | None = None
    pruning: Pruning = "none"
    pruning_share: float | None = None
    pruning_rounds: int | None = None
    fine_tuning: int | None = None
    fine_tuning_rate: float | None = None
    precision: Precision = "auto"
    sampling: Sampling = "plain"
    shares: dict[str, float] | None = None
    down_sampling: dict[str, float] | None = None
    redraw: bool | None = None
    balance: Balance = "classes"
    flatten: tuple[str, ...] = ()
    flatten_bins: int = 10
    negative_weights: NegativeWeights = "reweighted"
    window: int | None = None
    members: int = 1
    augmentation: Augmentation | None = None
    snapshots: int = 0
    combination: Combination = "mean"
    diagnostics: bool = True

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        size = self.batch_size
        _require(size == "all" or (isinstance(size, int) and size >= 1), "batch_size", size, "at least 1, or all")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number above 0")
        _require(self.patience is None or self.patience >= 1, "patience", self.patience, "at least 1, or null")
        _require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", self.clip_norm, "above 0, or null")
        for name in ("label_smoothing", "label_noise"):
            share = getattr(self, name)
            _require(0 <= share < 1, name, share, "a share of at least 0 and below 1")
        for name in ("loss_weight", "input_noise", "weight_noise", "l1", "l2"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, name, value, "a number of at least 0")
        for name, value in self.decorrelation.items():
            _require(0 <= value < math.inf, f"decorrelation.{name}", value, "a number of at least 0")
        for name in ("max_norm", "stop_gap", "stop_generalisation"):
            limit = getattr(self, name)
            _require(limit is None or 0 < limit < math.inf, name, limit, "a number above 0, or null")
        _require(self.window is None or self.window >= 1000, "window", self.window, "at least 1000 events, or null")
        _require(self.members >= 1, "members", self.members, "at least 1")
        self._check_batches()
        for key in ("optimiser", "schedule", "averaging", "loss", "pruning", "sampling"):
            _check_constants(self, key)
        self._check_schedule()
        most, restarts = len(self.snapshot_epochs), self.schedule == "warm_restarts"
        expected = f"from 0 to {most}, the number of {'periods of warm restarts' if restarts else 'epochs'}"
        _require(0 <= self.snapshots <= most, "snapshots", self.snapshots, expected)
        _require(self.snapshots == 0 or self.pruning == "none", "snapshots", self.snapshots, "0, with a pruning")
        if self.pruned.get("pruning_rounds", 1) > 1:
            epochs = self.pruned["fine_tuning"]
            _require(epochs > 0, "fine_tuning", epochs, "at least one epoch after each of several rounds of pruning")
        self._check_weights()

    @property
    def constants(self) -> dict[str, float]:
        """The constants of the optimiser."""
        return {name: float(value) for name, value in chosen(self, "optimiser").items()}

    @property
    def course(self) -> dict[str, Any]:
        """The constants of the schedule."""
        return chosen(self, "schedule")

    @property
    def average(self) -> dict[str, float]:
        """The constants of the averaging."""
        return chosen(self, "averaging")

    @property
    def decorrelated(self) -> tuple[str, ...]:
        """The spectators from which the score is decorrelated, in order of their names."""
        return tuple(sorted(name for name, strength in self.decorrelation.items() if strength > 0))

    @property
    def snapshot_epochs(self) -> tuple[int, ...]:
        """After which epochs, counted from 1, a snapshot is taken; the last ones stay.

        Where a period of warm restarts ends within an epoch, it is the epoch before.
        """
        if self.schedule != "warm_restarts":
            return tuple(range(1, self.epochs + 1))
        ends, end, length = [], self.warm_up, self.course["schedule_every"]
        while (end := end + length) <= self.epochs:
            ends.append(int(end))
            length *= self.course["schedule_stretch"]
        return tuple(ends)

    @property
    def pruned(self) -> dict[str, Any]:
        """The constants of the pruning."""
        return chosen(self, "pruning")

    @property
    def prior(self) -> str:
        """What the outputs are posteriors under, in words: the prior that the training weights make."""
        sizes = {
            "signed": "physics weights",
            "absolute": "sizes of the physics weights",
            "ignore": "physics weights above zero",
            "reweighted": "physics weights",
        }[self.negative_weights]
        text = {
            "classes": "equal for all classes",
            "processes": "equal for all classes, and for all processes of a class",
            "none": f"shares of the {sizes} of the training events",
        }[self.balance]
        if self.flatten:
            groups = "process" if self.balance == "processes" else "class"
            text += f"; each {groups} flat in {' and '.join(self.flatten)}"
        if self.balance != "none" and self.negative_weights in ("absolute", "ignore"):
            text += f"; within a class, {sizes}"
        return text

    def _check_batches(self) -> None:
        """Refuse what cannot be done with all events in one batch."""
        if self.batch_size == "all":
            _require(self.sampling != "balanced", "batch_size", "all", "a number, with sampling: balanced")
            _require(self.window is None, "batch_size", "all", "a number, with a window")
            expected = "a number, with decorrelation, whose memory grows with its square"
            _require(not self.decorrelated, "batch_size", "all", expected)

    def _check_weights(self) -> None:
        """Refuse weights and choices of events that can't be."""
        for key, choices in (("balance", Balance), ("negative_weights", NegativeWeights)):
            found = getattr(self, key)
            _require(found in get_args(choices), key, found, f"one of {', '.join(get_args(choices))}")
        distinct = len(self.flatten) == len(set(self.flatten)) <= 2
        _require(distinct, "flatten", self.flatten, "one or two different features or spectators, or none")
        _require(2 <= self.flatten_bins <= 1000, "flatten_bins", self.flatten_bins, "from 2 to 1000")
        if self.redraw is not None:
            _require(self.down_sampling is not None, "redraw", self.redraw, "a down_sampling with it")

    def check_classes(self, classes: Sequence[str]) -> None:
        """Check the keys that name classes.

        Raises:
            ValueError: One names a class that there is not, or ``shares`` lacks one.
        """
        for key in ("shares", "down_sampling"):
            for name in getattr(self, key) or {}:
                _require(name in classes, key, name, f"names of classes: {', '.join(classes)}")
        if self.shares is not None:
            every = set(self.shares) == set(classes)
            _require(every, "shares", self.shares, f"a share of each class: {', '.join(classes)}")

    def _check_schedule(self) -> None:
        """Refuse combinations that make no sense."""
        if self.nesterov:
            _require(bool(self.momentum), "nesterov", True, "false, or a momentum above 0")
        if self.schedule == "multi_step":
            found = self.course["schedule_milestones"]
            _require(bool(found), "schedule_milestones", found, "at least one number of epochs, with multi_step")
        if self.schedule == "plateau" and self.patience is not None:
            patience = self.course["schedule_patience"]
            expected = f"fewer epochs than patience, {self.patience}, which ends the training"
            _require(patience < self.patience, "schedule_patience", patience, expected)
        _require(0 <= self.warm_up < self.epochs, "warm_up", self.warm_up, f"from 0 to below epochs, {self.epochs}")


@dataclass(frozen=True)
class TargetSettings:
    """A regression target: a number of each event that the network learns beside its class.

    Attributes:
        function: Of `physics.py`: the true value, or ``None`` where there is none.
        loss: On the standardised target: ``mean_squared``; ``mean_absolute``; ``log_cosh``, the first for small
            differences and the second for large ones; ``quantile``, the pinball loss (Koenker and Bassett 1978).
        quantiles: Of ``quantile``, those that are learned, growing.
        weight: Of its loss beside those of the classes and of other targets.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    function: str
    loss: RegressionLoss = "mean_squared"
    quantiles: tuple[float, ...] | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.loss not in get_args(RegressionLoss):
            raise ValueError(f"loss is {self.loss!r}; expected one of {', '.join(get_args(RegressionLoss))}.")
        if self.loss != "quantile":
            _require(self.quantiles is None, "quantiles", self.quantiles, f"none, as loss is {self.loss!r}")
        growing = all(before < after for before, after in pairwise((0.0, *self.levels, 1.0)))
        expected = "growing numbers between 0 and 1, at least one"
        _require(growing and (self.quantiles is None or bool(self.quantiles)), "quantiles", self.quantiles, expected)
        _require(0 < self.weight < math.inf, "weight", self.weight, "a number above 0")

    @property
    def levels(self) -> tuple[float, ...]:
        """The quantiles that are learned; none with another loss."""
        return () if self.loss != "quantile" else (0.16, 0.5, 0.84) if self.quantiles is None else self.quantiles

    def outputs(self, name: str) -> tuple[str, ...]:
        """What the outputs of a target are called: by its name, and of several the quantile in per cent."""
        if not self.levels:
            return (name,)
        return tuple(f"{name}_q{100 * level:.10g}".replace(".", "p") for level in self.levels)


@dataclass(frozen=True)
class Parameter:
    """The values that a study may give to one key: a range of numbers, or a list.

    Attributes:
        low: Smallest value.
        high: Largest value.
        log: Whether the range is even in the logarithm.
        points: Values of a range on a grid and in a scan, evenly spaced, both ends among them.
        choices: The values, in place of a range.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    low: float | None = None
    high: float | None = None
    log: bool = False
    points: int = 5
    choices: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        _require(self.points >= 2, "points", self.points, "at least 2")
        if self.choices is not None:
            object.__setattr__(self, "choices", tuple(_tuples(choice) for choice in self.choices))
            _require(len(self.choices) >= 2, "choices", list(self.choices), "at least two values")
            _require(self.low is None and self.high is None, "low, high", (self.low, self.high), "none beside choices")
            return
        if self.low is None or self.high is None or not self.low < self.high < math.inf:
            _require(False, "low, high", (self.low, self.high), "two numbers, the first one smaller, or choices")
        _require(not self.log or (self.low or 0) > 0, "low", self.low, "a number above 0, as log is true")


@dataclass(frozen=True)
class TuningSettings:
    """A study of hyper-parameters: what is tried, and how. None of it enters anything but the study.

    Attributes:
        space: The values of each key that is tuned; empty for those of `default_space`.
        sampler: Who proposes: ``grid``, all combinations of values, in random order; ``random``; ``tpe``,
            tree-structured Parzen estimators (Bergstra et al., NeurIPS 2011); ``gaussian_process``, with expected
            improvement.
        trials: How many are tried; more of them go on from where fewer have ended.
        batch: Trials that are proposed together, from what came of those before them.
        pruner: Which trials are stopped early: ``none``; ``median``, those that are worse than the median of the
            finished ones at the same epoch (Golovin et al., KDD 2017); ``halving``, at a few epochs all but the best
            share of those that came so far (Li et al., arXiv 1810.05934).
        pruner_trials: Of ``median``, finished trials before the first is stopped.
        pruner_factor: Of ``halving``: one of so many goes on, at 1/factor² and at 1/factor of its epochs.
        seed: Of the proposals; that of the networks is the analysis's own.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    space: dict[str, Parameter] = field(default_factory=dict)
    sampler: Sampler = "tpe"
    trials: int = 40
    batch: int = 8
    pruner: Pruner = "halving"
    pruner_trials: int | None = None
    pruner_factor: int | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        for key in self.space:
            check_tunable(key)
        for name in ("trials", "batch"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.seed >= 0, "seed", self.seed, "at least 0")
        _check_constants(self, "pruner", PRUNERS)

    @property
    def constants(self) -> dict[str, Any]:
        """The constants of the pruner."""
        own = PRUNERS["pruner"][self.pruner]
        return {name: default if getattr(self, name) is None else getattr(self, name) for name, default in own.items()}


NOT_TUNED = {
    "training.loss": "trials are compared by it, and losses of two kinds are not comparable",
    "training.focal_gamma": "it changes the loss by which trials are compared",
    "training.loss_weight": "it changes the loss by which trials are compared",
    "training.decorrelation": "it gives up some of the loss by which trials are compared, for another end",
    "training.balance": "it changes the weights of the loss by which trials are compared",
    "training.flatten": "it changes the weights of the loss by which trials are compared",
    "training.flatten_bins": "it changes the weights of the loss by which trials are compared",
    "training.negative_weights": "it changes the weights of the loss by which trials are compared",
    "training.shares": "a study varies single values, and this has several",
    "training.down_sampling": "a study varies single values, and this has several",
    "model.pattern_objects": "a study compares one network with another, and missing: separate has several",
    "model.pattern_events": "a study compares one network with another, and missing: separate has several",
    "model.pattern_class_events": "a study compares one network with another, and missing: separate has several",
    "model.like_objects": "a study varies single values, and this has several",
    "training.augmentation": "a study varies single values, and this has several",
    "model.inputs": "a study varies single values, and this has several",
    "training.members": "it says how many networks there are, not what one is; more are never worse",
    "training.precision": "it follows from the machine",
    "training.window": "it follows from the memory of the machine",
    "seed": "it is chance: the best of many seeds is best on these validation events alone. To see how much chance "
    "there is, set training.members",
    "folds.salt": "it moves the split: trials would be compared on other validation events. Set it, and tune anew",
    "folds.count": "it moves the split: trials would be compared on other validation events. Set it, and tune anew",
    "folds.scheme": "it moves the split: trials would be compared on other validation events. Set it, and tune anew",
    "folds.minimum": "it is no setting of the networks",
    "folds.test_fraction": "test events are held out from all choices",
    "folds.test_salt": "test events are held out from all choices; their salt is never tuned",
}
"""Keys that no study may vary, and why. Those of other sections say which events there are."""


def tunable() -> tuple[str, ...]:
    """The keys that a study may vary."""
    keys = [f"model.{f.name}" for f in fields(ModelSettings)] + [f"training.{f.name}" for f in fields(TrainingSettings)]
    return tuple(key for key in keys if key not in NOT_TUNED)


def check_tunable(key: str) -> None:
    """Refuse a key that no study may vary.

    Raises:
        ValueError: It is one; why, or which key may have been meant.
    """
    if key in NOT_TUNED:
        raise ValueError(f"{key} can't be tuned: {NOT_TUNED[key]}.")
    if key not in tunable():
        nearest = get_close_matches(key, tunable(), 1)
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"{key} can't be tuned; keys of model and training can, docs/models.md lists them.{hint}")


def default_space(training: TrainingSettings) -> dict[str, Parameter]:
    """What is tuned unless the configuration says so: around its learning rate, which fits its optimiser."""
    rate = training.learning_rate
    return {
        "training.learning_rate": Parameter(low=rate / 5, high=rate * 5, log=True),
        "training.weight_decay": Parameter(low=1e-3, high=1.0, log=True),
        "training.batch_size": Parameter(choices=(256, 512, 1024)),
        "model.hidden": Parameter(choices=((64, 64), (128, 128, 128), (256, 256))),
        "model.dropout": Parameter(low=0.0, high=0.5),
    }


def applies(key: str, model: ModelSettings, training: TrainingSettings) -> bool:
    """Whether a key means anything beside the choices that are made: constants belong to some of them."""
    section, _, name = key.partition(".")
    settings: Any = model if section == "model" else training
    if key == "model.submodels":
        return model.type == "tabm"
    owners = [
        choice
        for choice, options in CONSTANTS.items()
        if hasattr(settings, choice) and any(name in o for o in options.values())
    ]
    return all(name in CONSTANTS[choice][getattr(settings, choice)] for choice in owners)


def with_values(
    model: ModelSettings, training: TrainingSettings, values: Mapping[str, Any]
) -> tuple[ModelSettings, TrainingSettings]:
    """The settings with other values of some keys; constants that a changed choice does not have fall away.

    Raises:
        ValueError: The combination makes no sense.
    """
    own: dict[str, dict[str, Any]] = {"model": {}, "training": {}}
    for key, value in values.items():
        section, _, name = key.partition(".")
        own[section][name] = _tuples(value)
    for given in own.values():
        for choice in CONSTANTS.keys() & given.keys():
            options = CONSTANTS[choice]
            for name in {name for option in options.values() for name in option} - options[given[choice]].keys():
                given.setdefault(name, None)
    model = replace(model, **own["model"])
    several = "another value: its members are several networks, each with a loss of its own"
    _require(model.missing != "separate", "missing", model.missing, several)
    return model, replace(training, **own["training"])


def _tuples(value: Any) -> Any:
    """Lists of YAML as the tuples that settings hold."""
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def alike(objects: Sequence[str], declared: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Group objects that share parameters.

    Args:
        objects: All of them, in their order.
        declared: Groups of them; without any, objects are alike whose names differ in a number at the end.

    Returns:
        The groups, in the order of their first objects; an object that is like no other is one by itself.
    """
    owner = {name: number for number, group in enumerate(declared) for name in group}
    groups: dict[int | str, list[str]] = {}
    for name in objects:
        groups.setdefault(owner.get(name, name) if declared else name.rstrip("0123456789"), []).append(name)
    return tuple(tuple(group) for group in groups.values())


def _increasing(milestones: tuple[int, ...]) -> bool:
    return all(before < after for before, after in pairwise((0, *milestones)))


def _are_categories(found: int | tuple[float, ...]) -> bool:
    if isinstance(found, (tuple, list)):
        return 1 <= len(found) <= 256 and len(set(found)) == len(found) and all(abs(v) < 2**24 for v in found)
    return 1 <= found <= 256


def _parts_of_one(shares: Mapping[str, float]) -> bool:
    return all(share > 0 for share in shares.values()) and abs(sum(shares.values()) - 1) < 1e-6


def _is_stand_in(value: float | str) -> bool:
    return value in ("mean", "median") if isinstance(value, str) else math.isfinite(value)


def _are_groups(groups: tuple[tuple[str, ...], ...]) -> bool:
    names = [name for group in groups for name in group]
    return len(set(names)) == len(names) and all(len(group) >= 2 for group in groups)


_KEEPS = (lambda value: 0 <= value < 1, "a share from 0 to below 1")
_COUNT = (lambda value: value >= 1, "at least 1")
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "weight_decay": (lambda value: value >= 0, "a number of at least 0"),
    "momentum": _KEEPS,
    "nesterov": (lambda value: isinstance(value, bool), "true or false"),
    "alpha": _KEEPS,
    "beta1": _KEEPS,
    "beta2": _KEEPS,
    "epsilon": (lambda value: 0 < value < math.inf, "a number above 0"),
    "momentum_decay": (lambda value: value >= 0, "a number of at least 0"),
    "schedule_every": _COUNT,
    "schedule_factor": (lambda value: 0 < value < 1, "a number above 0 and below 1"),
    "schedule_milestones": (_increasing, "growing numbers of epochs, each at least 1"),
    "schedule_stretch": _COUNT,
    "schedule_patience": _COUNT,
    "schedule_reductions": (lambda value: value >= 0, "at least 0"),
    "focal_gamma": (lambda value: 0 <= value < math.inf, "a number of at least 0"),
    "initial_constant": (math.isfinite, "a finite number"),
    "pruning_share": (lambda value: 0 < value < 1, "a share above 0 and below 1"),
    "pruning_rounds": _COUNT,
    "fine_tuning": (lambda value: value >= 0, "at least 0 epochs"),
    "fine_tuning_rate": (lambda value: 0 < value < math.inf, "a number above 0"),
    "shares": (_parts_of_one, "shares above 0 that sum to 1"),
    "down_sampling": (lambda value: value and all(0 < v <= 1 for v in value.values()), "shares above 0, at most 1"),
    "redraw": (lambda value: isinstance(value, bool), "true or false"),
    "averaging_decay": _KEEPS,
    "averaging_start": _KEEPS,
    "pruner_trials": _COUNT,
    "pruner_factor": (lambda value: value >= 2, "at least 2"),
    "categories": (_are_categories, "from 1 to 256, or a list of so many different numbers"),
    "encoding": (lambda value: value in get_args(CategoryEncoding), "one_hot or embedding"),
    # Width 1 would turn matrix products into matrix-vector products, whose rounding depends on the stack.
    "dimension": (lambda value: value >= 2, "at least 2"),
    "embedding_dimension": (lambda value: value >= 2, "at least 2"),
    "embedding_frequencies": _COUNT,
    "embedding_scale": (lambda value: 0 < value < math.inf, "a number above 0"),
    "embedding_bins": (lambda value: value >= 2, "at least 2"),
    "missing_value": (_is_stand_in, "mean, median or a finite number"),
    "pattern_objects": (lambda value: len(set(value)) == len(value), "different objects"),
    "pattern_events": _COUNT,
    "pattern_class_events": _COUNT,
    "like_objects": (_are_groups, "groups of two or more objects, such as [[electron, muon]], none of them twice"),
    "object_width": (lambda value: value >= 2, "at least 2"),
    "pooling": (lambda value: value in ("sum", "mean"), "sum or mean"),
    "attention_heads": _COUNT,
}
"""For each constant, whether a value is one, and what is expected."""


def _require(condition: bool, name: str, found: object, expected: str) -> None:
    """Raise a ``ValueError`` that names the setting, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name} is {found!r}; expected {expected}.")


def pruned_widths(hidden: tuple[int, ...], share: float) -> tuple[int, ...]:
    """What a structured pruning leaves of the widths of hidden layers, rounded as torch does."""
    return tuple(width - round(share * width) for width in hidden)


def check_pruning(model: ModelSettings, training: TrainingSettings) -> None:
    """Refuse a pruning that can't be.

    Raises:
        ValueError: One of networks for each pattern, whose temperatures it would spoil; a structured one of a network
            without hidden layers, or one that leaves fewer than 2 units.
    """
    if training.pruning == "none":
        return
    _require(model.missing != "separate", "missing", model.missing, "another value, as networks are pruned")
    if training.pruning != "structured":
        return
    _require(bool(model.hidden), "hidden", model.hidden, "at least one layer, as pruning is 'structured'")
    share = training.pruned["pruning_share"]
    widths = pruned_widths(model.hidden, share)
    left = f"a share that leaves at least 2 units of each layer, not {list(widths)} of {list(model.hidden)}"
    _require(min(widths) >= 2, "pruning_share", share, left)


def chosen(settings: ModelSettings | TrainingSettings | FeatureInput, key: str) -> dict[str, Any]:
    """The constants of the choice under a key of `CONSTANTS`, with its defaults."""
    own = CONSTANTS[key][getattr(settings, key)]
    given = {name: getattr(settings, name) for name in own}
    return {name: default if given[name] is None else given[name] for name, default in own.items()}


def _check_constants(
    settings: ModelSettings | TrainingSettings | FeatureInput | TuningSettings,
    key: str,
    constants: Mapping[str, Mapping[str, Mapping[str, Constant]]] = CONSTANTS,
) -> None:
    """Refuse constants that the choice under a key does not have, and values that make no sense."""
    choice = getattr(settings, key)
    if choice not in constants[key]:
        raise ValueError(f"{key} is {choice!r}; expected one of {', '.join(constants[key])}.")
    own = constants[key][choice]
    for name in dict.fromkeys(name for names in constants[key].values() for name in names):
        value = getattr(settings, name)
        if value is None:
            continue
        if name not in own:
            owners = ", ".join(other for other, names in constants[key].items() if name in names)
            nearest = get_close_matches(name, own, 1)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            raise ValueError(
                f"{name} is {value!r}, but {key} {choice} has no such constant; it has {', '.join(own) or 'none'}, "
                f"and {name} is one of {owners}.{hint}"
            )
        holds, expected = _RANGES[name]
        _require(holds(value), name, value, expected)
