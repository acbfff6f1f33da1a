"""`docs/models.md`: every name that a network and its training may be built of.

Names and defaults come from the schema (`models.settings`), what is said of them from here.
``python -m models.reference > docs/models.md`` writes the page; a name that nothing is said of is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, NamedTuple, get_args

from models.settings import (
    CONSTANTS,
    NOT_TUNED,
    Activation,
    Augmentation,
    Averaging,
    Balance,
    CategoryEncoding,
    Combination,
    Connections,
    FeatureInput,
    Initialisation,
    InputKind,
    Loss,
    Missing,
    ModelSettings,
    NegativeWeights,
    NetworkType,
    Normalisation,
    NumberEmbedding,
    Optimiser,
    Pruning,
    RegressionLoss,
    Sampling,
    Schedule,
    TargetSettings,
    TrainingSettings,
    tunable,
)

Settings = type[ModelSettings] | type[TrainingSettings] | type[FeatureInput] | type[Augmentation] | type[TargetSettings]
SECTIONS: dict[Settings, str] = {
    ModelSettings: "model",
    TrainingSettings: "training",
    FeatureInput: "model.inputs.features.<name>",
    Augmentation: "training.augmentation",
    TargetSettings: "targets.<name>",
}

INTRODUCTION = """\
# Building blocks

All names that `model` and `training` of an `analysis.yaml` know, with formula, source and when to use them. How they
work together says [training](training.md); what each key means and takes says [analysis](analysis.md). Made from the
schema by `python -m models.reference > docs/models.md`.

All blocks can be combined, but where a text says otherwise; what makes no sense is refused with the name of the key.
Networks of one stack may differ in every number. A strength of zero changes no bit of a result.

x is what a layer sees and z = x W + b what comes of it, n its number of inputs and m that of its outputs, C the number
of classes, w a weight of the network, and q and p what the probability of a class should be and what it is.
"""


class Entry(NamedTuple):
    """What is said of a name."""

    formula: str
    source: str
    when: str


@dataclass(frozen=True)
class Choice:
    """The names that one key may have."""

    title: str
    text: str
    settings: Settings
    key: str
    names: Any
    entries: Mapping[str, Entry]

    def lines(self) -> list[str]:
        """The section of the page."""
        default = _default(self.settings, self.key)
        lines = [f"## {self.title}", "", f"`{SECTIONS[self.settings]}.{self.key}`, by default `{default}`. {self.text}"]
        lines += ["", f"| `{self.key}` | formula | source | use it |", "|---|---|---|---|"]
        return [*lines, *(_row(name, self.entries[name]) for name in get_args(self.names))]


@dataclass(frozen=True)
class Strengths:
    """Keys that have a number each."""

    title: str
    text: str
    settings: Settings
    entries: Mapping[str, Entry]

    def lines(self) -> list[str]:
        """The section of the page."""
        lines = [f"## {self.title}", "", self.text, ""]
        lines += ["| key | default | formula | source | use it |", "|---|---|---|---|---|"]
        for key, (formula, *rest) in self.entries.items():
            default = _default(self.settings, key)
            lines.append(_row(f"{SECTIONS[self.settings]}.{key}", (default, formula, *rest)))
        return lines


PAGE: tuple[Choice | Strengths, ...] = (
    Choice(
        "Inputs",
        "`model.inputs` says what is made of features: `default` of all, one number of each; a feature's own kind, as "
        "`lepton1_phi: angle` or as a mapping with constants, stands under `features`. x is the feature, and all "
        "is fitted to the present values of a network's own training events, weighted by |w| with equal sums over "
        "the classes; clip(z) = z / √(1 + (z/3)²). Numbers far beyond those of training stay finite; those that "
        "are not clipped end at ±10⁶.",
        FeatureInput,
        "kind",
        InputKind,
        {
            "standardise": Entry(
                "clip((x - mean) / standard deviation)",
                "clip: Holzmüller, Grinsztajn and Steinwart (RealMLP), arXiv 2407.04491",
                "the default",
            ),
            "z_score": Entry("(x - mean) / standard deviation", "", "to compare with others; tails are not bounded"),
            "robust": Entry(
                "clip((x - median) / (q₇₅ - q₂₅)); where quartiles are equal, half the range stands below",
                "RealMLP, arXiv 2407.04491",
                "few events far out that would widen the standard deviation",
            ),
            "quantile_normal": Entry(
                "Φ⁻¹ of the share of weight below x, in straight lines between 255 quantiles, within ±5.2; equal "
                "values stand in the middle of their share, which is what noise in the fit comes to",
                "scikit-learn's `QuantileTransformer`; TabM, arXiv 2410.24210; Wichura, AS 241",
                "long tails and odd shapes; distances in the bulk grow, those in the tails shrink",
            ),
            "min_max": Entry(
                "(x - min) / (max - min)", "", "numbers with hard bounds, as a b-tag; values beyond go on"
            ),
            "log": Entry(
                "y = sign(x) ln(1 + |x| / m), m the median of |x|; then as `standardise`. 0 stays 0, and what is "
                "below mirrors what is above, so that nothing is infinite",
                "",
                "momenta and masses over several powers of ten",
            ),
            "angle": Entry("sin x and cos x: two inputs; x in radians, in any turn", "", "azimuths, which wrap around"),
            "category": Entry(
                "which of the values x is",
                "",
                "flags and whole numbers without an order, such as flavours, charges, eras",
            ),
        },
    ),
    Choice(
        "Encoding of categories",
        "Values are told apart exactly, and those that are none of the categories are one more, unknown. It learns if "
        "training has such; else it has no inputs at all, as if neither weights nor rows were there. Whole numbers "
        "from 2²⁴ on are an error in training, as float32 does not tell them apart. Nearest categories are printed "
        "when a network is trained.",
        FeatureInput,
        "encoding",
        CategoryEncoding,
        {
            "one_hot": Entry("an input for each, 1 where x is it, else 0", "", "few categories"),
            "embedding": Entry(
                "a row of `dimension` learned numbers for each, first normal",
                "Guo and Berkhahn, arXiv 1604.06737",
                "many categories, or to see which are alike",
            ),
        },
    ),
    Strengths(
        "Constants of categories",
        "Each is refused where it has no meaning.",
        FeatureInput,
        {
            "categories": Entry(
                "the values, as [0, 1]; or how many of the heaviest ones in training are told apart, up to 256",
                "",
                "a list where they are known",
            ),
            "dimension": Entry("learned numbers of `embedding`, at least 2", "", "2 to 8"),
        },
    ),
    Choice(
        "Embeddings of numbers",
        "What the first layer sees in place of each number, angles and categories left out; absent values have been "
        "filled before. It is computed in float32 and knows no weight decay, penalty or noise on weights.",
        ModelSettings,
        "embedding",
        NumberEmbedding,
        {
            "none": Entry("z", "", "the default"),
            "periodic": Entry(
                "ReLU([sin 2πcz, cos 2πcz] W + b), with c, W and b of each feature its own, all learned",
                "Gorishniy, Rubachev and Babenko, arXiv 2203.05556, section 3.3 (PLR)",
                "narrow structures in a feature, such as a resonance",
            ),
            "piecewise_linear": Entry(
                "ReLU(e W + b), e how far z is through each bin: 0 before it, 1 behind it, a straight line within; the "
                "first and the last one go on outside. Bins have equal weight in training; equal edges make fewer",
                "the same, eq. 1 and section 3.2 (Q-LR)",
                "likewise, with less freedom",
            ),
        },
    ),
    Strengths(
        "Constants of embeddings",
        "Each is refused with an embedding that has none of that name.",
        ModelSettings,
        {
            "embedding_dimension": Entry("numbers that come of each, at least 2", "", "4 to 16"),
            "embedding_frequencies": Entry("how many c there are of each feature", "", "8 to 64"),
            "embedding_scale": Entry(
                "standard deviation of the first c, in periods per unit of z", "arXiv 2203.05556", "0.01 to 1; tune it"
            ),
            "embedding_bins": Entry("how many bins there are of each feature", "", "8 to 64"),
        },
    ),
    Strengths(
        "Augmentation",
        "Symmetries of collisions: [training](training.md#augmentation). In each step every event is moved anew; at "
        "evaluation the probabilities of fixed copies are averaged, also inside `ensemble.onnx`. What is not named is "
        "taken to be invariant.",
        Augmentation,
        {
            "rotation": Entry(
                "by an angle α about the beam, uniform in [0, 2π)",
                "Strong, arXiv 2002.01427",
                "features that hold azimuths or x and y components",
            ),
            "reflection_phi": Entry("φ → -φ, with probability ½", "the same", "likewise, or signed angles"),
            "reflection_z": Entry("z → -z, with probability ½", "the same", "beams that are alike"),
            "angles": Entry("φ → ±φ + α, in [-π, π)", "", "azimuths in radians; best with the kind `angle`"),
            "vectors": Entry(
                "(x, ±y), turned by α: pairs, as [[met_px, met_py]]",
                "",
                "components; an event that has one alone keeps it",
            ),
            "signed_angles": Entry("Δφ → ±Δφ", "", "differences of azimuths with a sign"),
            "longitudinal": Entry("η → ±η, p_z → ±p_z", "", "likewise rapidities"),
            "copies": Entry(
                "how many are averaged: all mirrorings, at ⌈copies / mirrorings⌉ equal steps of angle",
                "the same",
                "8 or 16; evaluation takes so many times as long",
            ),
            "smearing": Entry(
                "x + N(0, a² + (r x)²) in training alone, as {jet1_pt: {absolute: 1, relative: 0.1}}",
                "",
                "resolutions that simulation has too good; what is derived from x does not follow",
            ),
        },
    ),
    Choice(
        "Activations",
        "Behind each hidden layer; the output has none. All of them are torch's.",
        ModelSettings,
        "activation",
        Activation,
        {
            "relu": Entry("max(0, z)", "Nair and Hinton, ICML 2010", "fast; units may die, with no slope left"),
            "leaky_relu": Entry(
                "z for z > 0, else 0.01 z", "Maas, Hannun and Ng, ICML 2013", "where units of ReLU die"
            ),
            "elu": Entry(
                "z for z > 0, else exp(z) - 1",
                "Clevert, Unterthiner and Hochreiter, arXiv 1511.07289",
                "means of units near zero without a normalisation",
            ),
            "selu": Entry(
                "1.0507 z for z > 0, else 1.0507 · 1.6733 (exp(z) - 1)",
                "Klambauer et al., arXiv 1706.02515",
                "deep plain networks: with `initialisation: auto`, units keep mean 0 and variance 1",
            ),
            "silu": Entry(
                "z σ(z), with σ(z) = 1 / (1 + exp(-z)); also called swish",
                "Elfwing, Uchibe and Doya, arXiv 1702.03118; Ramachandran, Zoph and Le, arXiv 1710.05941",
                "the default: smooth, with a slope nearly everywhere",
            ),
            "gelu": Entry(
                "z Φ(z), with Φ the normal distribution's integral",
                "Hendrycks and Gimpel, arXiv 1606.08415",
                "like SiLU; that of transformers",
            ),
            "mish": Entry("z tanh(ln(1 + exp(z)))", "Misra, arXiv 1908.08681", "like SiLU, a little slower"),
            "tanh": Entry(
                "(exp(z) - exp(-z)) / (exp(z) + exp(-z))",
                "LeCun et al., Efficient BackProp, 1998",
                "shallow networks; its slope vanishes for large z",
            ),
            "sigmoid": Entry(
                "1 / (1 + exp(-z))",
                "Rumelhart, Hinton and Williams, Nature 323 (1986) 533",
                "to compare with old networks: its slope is 1/4 at most, so that deep layers learn slowly",
            ),
            "linear": Entry(
                "z",
                "",
                "to see what the non-linearity brings: layers without one collapse to a single matrix, as "
                "(x W₁ + b₁) W₂ + b₂ = x (W₁W₂) + (b₁W₂ + b₂), however many there are",
            ),
        },
    ),
    Choice(
        "Initialisation",
        "Of the weight matrices, the last one included. Biases start from 0, scales from 1 (the first ones of "
        "TabM as "
        "random signs). Numbers are hashes of seed, fold and member. Glorot's and He's are two papers, though "
        "some lecture notes cite the latter for both; He's is for ReLU.",
        ModelSettings,
        "initialisation",
        Initialisation,
        {
            "auto": Entry(
                "`he_uniform` before rectifiers and their smooth relatives (ReLU, leaky ReLU, ELU, SiLU, "
                "GELU, Mish), "
                "`lecun_uniform` before SELU, `glorot_uniform` before sigmoid, tanh, linear and the output",
                "",
                "always, unless there is a reason",
            ),
            "glorot_uniform": Entry(
                "uniform in ±√(6 / (n + m))",
                "Glorot and Bengio, PMLR 9:249 (AISTATS 2010), eq. 16; also called Xavier",
                "before sigmoid, tanh, linear",
            ),
            "glorot_normal": Entry("normal, variance 2 / (n + m)", "Glorot and Bengio, eq. 12", "likewise"),
            "he_uniform": Entry(
                "uniform in ±√(6 / n)", "He et al., arXiv 1502.01852, eq. 10; also called Kaiming", "before rectifiers"
            ),
            "he_normal": Entry("normal, variance 2 / n", "He et al., eq. 10", "likewise"),
            "lecun_uniform": Entry(
                "uniform in ±√(3 / n)", "LeCun et al., Efficient BackProp, 1998, eq. 16", "before SELU"
            ),
            "lecun_normal": Entry("normal, variance 1 / n", "LeCun et al., eq. 16", "likewise"),
            "orthogonal": Entry(
                "W Wᵀ or WᵀW, whichever is smaller, is g² times the unit matrix; g = √2 where `auto` is He's, else 1",
                "Saxe, McClelland and Ganguli, arXiv 1312.6120",
                "deep plain networks",
            ),
            "zeros": Entry(
                "0",
                "",
                "to show why not: all units of a layer get the same gradient and stay alike (the symmetry "
                "problem); a "
                "run warns of it",
            ),
            "constant": Entry("`model.initial_constant`", "", "likewise; a run warns of it"),
        },
    ),
    Strengths(
        "Constants of the initialisation",
        "Refused with another initialisation than its own.",
        ModelSettings,
        {"initial_constant": Entry("where all weights start with `constant`", "", "see `constant`")},
    ),
    Choice(
        "Losses",
        "Of an event, to be multiplied by its training weight, with its sign, and averaged over a batch. "
        "`history` and learning curves show it without penalties, label smoothing and label noise, but with regression "
        "targets and decorrelation. The softmax p has exponentials in its denominator too: without them, as some "
        "lecture notes have it, probabilities do not sum to one.",
        TrainingSettings,
        "loss",
        Loss,
        {
            "cross_entropy": Entry(
                "-Σ q ln p over classes, p = exp(z_c) / Σ exp(z_k)",
                "Bridle, NATO ASI F68 (1990) 227",
                "the default: p are posteriors under the prior that `balance` says",
            ),
            "binary_cross_entropy": Entry(
                "-Σ [q ln σ(z_c) + (1 - q) ln(1 - σ(z_c))] over classes: one logit for each class, against the rest. "
                "Probabilities are σ(z_c) / Σ σ(z_k)",
                "Rifkin and Klautau, JMLR 5 (2004) 101",
                "classes that overlap much, or that a network should be able to tell from the others one by one",
            ),
            "focal": Entry(
                "-Σ q (1 - p)^γ ln p over classes",
                "Lin et al., arXiv 1708.02002, eq. 4",
                "many easy events that drown the hard ones; p are no posteriors any more, but too modest",
            ),
            "kullback_leibler": Entry(
                "Σ q ln(q / p) over classes; of hard labels it is the cross-entropy, of soft ones it is less by their "
                "entropy, which no network can change",
                "Kullback and Leibler, Ann. Math. Stat. 22 (1951) 79; Hinton, Vinyals and Dean, arXiv 1503.02531",
                "soft labels, `classes.soft_labels`: a loss of zero then is a network that says what they say",
            ),
        },
    ),
    Strengths(
        "Constants of the loss",
        "`focal_gamma` is refused with another loss than its own.",
        TrainingSettings,
        {
            "focal_gamma": Entry(
                "γ of `focal`; 0 gives `cross_entropy`", "Lin et al., eq. 4", "2 is what its authors found best"
            ),
            "label_smoothing": Entry(
                "q = (1 - ε) + ε/C for the label, ε/C for the others",
                "Szegedy et al., arXiv 1512.00567, section 7",
                "labels that may be wrong, or networks that are too sure",
            ),
            "loss_weight": Entry(
                "of the loss of the classes, beside `targets.<name>.weight`",
                "",
                "regression targets that matter more than the classes; 0 trains them alone: scores then mean nothing",
            ),
            "decorrelation": Entry(
                "for spectators by name, λ of the penalty λ dCorr²(p of the signal, spectator) over the background "
                "events of a batch; dCorr² = dCov²(s, m) / √(dCov²(s, s) dCov²(m, m)), dCov²(s, m) = Σ v_i v_j A_ij "
                "B_ij, A and B the doubly centred distances and v ∝ |w|",
                "Kasieczka and Shih, arXiv 2001.05310; Székely, Rizzo and Bakirov, arXiv 0803.4101",
                "a cut on the score that must not shape a mass; 0 only reports the correlation",
            ),
        },
    ),
    Choice(
        "Regression targets",
        "Of d = predicted - true, both less the mean of the target and over its standard deviation. The loss is the "
        "mean over the events that have the target, by training weight, times `weight`, and joins that of the classes.",
        TargetSettings,
        "loss",
        RegressionLoss,
        {
            "mean_squared": Entry("d²", "Legendre 1805; Gauss 1809", "the mean of the target, given what is measured"),
            "mean_absolute": Entry("|d|", "Laplace 1774", "the median, which outliers move less"),
            "log_cosh": Entry(
                "ln cosh d",
                "Green, IEEE Trans. Med. Imaging 9 (1990) 84",
                "between both: d²/2 for small d, |d| for large",
            ),
            "quantile": Entry(
                "the mean over `quantiles` τ of max(-τ d, (1 - τ) d), the pinball loss; what is predicted is sorted",
                "Koenker and Bassett, Econometrica 46 (1978) 33; Chernozhukov et al., arXiv 0704.3649",
                "an interval for each event; by default the median and the central 68%",
            ),
        },
    ),
    Choice(
        "Balance",
        "Which sums of training weights are equal; their mean is one. Each network's own training events say how, and "
        "its stopping events by themselves. The prior stands in `summary.json` and `ensemble.onnx`.",
        TrainingSettings,
        "balance",
        Balance,
        {
            "classes": Entry("Σw of each class is N / C", "", "the default"),
            "processes": Entry(
                "and Σw of each process of a class is N / (C P), P the number of its processes",
                "",
                "a class with a process that drowns the others",
            ),
            "none": Entry(
                "w times one factor",
                "",
                "scores that should be posteriors under the physics weights; a rare class vanishes",
            ),
        },
    ),
    Choice(
        "Negative weights",
        "Of training and stopping events alike; figures of merit count all signed weights as they are. Sampling and "
        "losses see the weights that come of it: `sampling: weighted` draws by |w| and counts the sign, and `focal` "
        "and `binary_cross_entropy` multiply it.",
        TrainingSettings,
        "negative_weights",
        NegativeWeights,
        {
            "signed": Entry(
                "w", "", "to compare with; without bias, but the loss has no lower bound, which `logit_bound` gives it"
            ),
            "absolute": Entry("|w|", "", "few negative weights, or such as are alike in all classes; it is biased"),
            "ignore": Entry("max(0, w)", "", "to compare with what does so; it is biased"),
            "reweighted": Entry(
                "|w| max(0, 2p - 1), p the probability of a positive weight at x in the event's class, by five "
                "networks with the model and training of the network itself, nested in its training events: each "
                "trains on three fifths, stops on one and gives p to the last; stopping events get the mean over all. "
                "2p - 1 = Σw / Σ|w| in a class with fewer than 30 negative weights",
                "Nachman and Noll, arXiv 2505.03724; arXiv 2510.16217",
                "the default; costs up to three more trainings where there are negative weights, nothing where there "
                "are none. See the closure test in the report",
            ),
        },
    ),
    Choice(
        "Sampling",
        "Which events make an epoch ([training](training.md#sampling)); none of them changes the prior.",
        TrainingSettings,
        "sampling",
        Sampling,
        {
            "plain": Entry("each training event once, in a new order", "", "the default"),
            "weighted": Entry(
                "N draws with probabilities proportional to |w|, which then count sign(w)",
                "",
                "a few events that carry most of the weight",
            ),
            "balanced": Entry(
                "batches with a set number of each class, whose events count for all of it",
                "",
                "a class so rare that many batches have none of it",
            ),
        },
    ),
    Strengths(
        "Constants of weights and sampling",
        "Those of a sampling are refused with another one. Shares are mappings of class names.",
        TrainingSettings,
        {
            "flatten": Entry(
                "one or two features or spectators, in equal bins of which between their 1% and 99% quantiles (all in "
                "the network's training events) Σw of a class is the same; with `balance: processes` of a process",
                "",
                "scores that should not tell the mass from its distribution",
            ),
            "flatten_bins": Entry("bins of each variable", "", "as many as hold ten effective events each"),
            "shares": Entry(
                "of `balanced`: share of each class in a batch; null for equal ones", "", "more of a class that is hard"
            ),
            "down_sampling": Entry(
                "of `plain`: share of the events of some classes in an epoch, whose weights count for the others",
                "",
                "a class with far more events than it takes",
            ),
            "redraw": Entry(
                "whether each epoch draws them anew; else the others never train",
                "",
                "false to compare with a smaller sample",
            ),
        },
    ),
    Choice(
        "Networks",
        "Behind each layer but the last come normalisation, activation and dropout.",
        ModelSettings,
        "type",
        NetworkType,
        {
            "dense": Entry("layers z = x W + b", "", "the default"),
            "tabm": Entry(
                "K networks that share W: z_k = ((x ∘ r_k) W ∘ s_k) + b_k, with last layers of their own; their "
                "probabilities are averaged",
                "Gorishniy, Kotelnikov and Babenko, arXiv 2410.24210",
                "an ensemble at less than its price; slower than `dense`",
            ),
        },
    ),
    Choice(
        "Missing objects",
        "What the layers see of objects and values that an event does not have. Values that are there are transformed "
        "first (see Inputs); an object is there if any of its features is.",
        ModelSettings,
        "missing",
        Missing,
        {
            "learned": Entry(
                "x = value if it is there, else a_f, which is learned for each number f that is made of a feature and "
                "starts from 0",
                "",
                "the default",
            ),
            "default": Entry(
                "likewise, with what is made of `missing_value` in place of a_f", "", "to compare with what others do"
            ),
            "separate": Entry(
                "p = softmax(z_g / T_g), g the network of the event's pattern of present objects; each has the layers, "
                "trains on its patterns alone, and T_g minimises the cross-entropy of its stopping events",
                "temperature: Guo et al., arXiv 1706.04599",
                "many events of each pattern, and patterns that differ in kind",
            ),
            "deep_sets": Entry(
                "Σ_i f(x_i W + b) over the like objects i that are there, with W and b of their kind; values of other "
                "objects as with `learned`",
                "Zaheer et al., arXiv 1703.06114, theorem 2",
                "like objects whose order means little, or whose number varies; with `inputs.default: standardise` or "
                "`z_score` alone",
            ),
            "attention": Entry(
                "Σ_i f(t_i + A(t)_i) over the like objects i that are there, with t_i = x_i W + b of all objects and "
                "A = softmax(Q Kᵀ / √d) V over those that are there",
                "Vaswani et al., arXiv 1706.03762, eq. 1 and section 3.2.2",
                "many objects, and many events to learn from; inputs as with `deep_sets`; several times slower on a "
                "processor",
            ),
        },
    ),
    Strengths(
        "Constants of missing objects",
        "Each but `indicator` is refused with a treatment that has none of that name.",
        ModelSettings,
        {
            "indicator": Entry(
                "an input for each object: 1 if it is there, else 0", "", "always, but to see what it brings"
            ),
            "missing_value": Entry(
                "of `default`: `mean`, `median` or a number in the unit of each feature; mean and median of the "
                "present values of the network's own training events, weighted as the standardisation is",
                "",
                "see `default`",
            ),
            "pattern_objects": Entry(
                "of `separate`: the objects that make a pattern; an empty list for all",
                "",
                "`[lepton1, lepton2]` for networks of 0, 1 and 2 leptons",
            ),
            "pattern_events": Entry(
                "of `separate`: patterns with fewer training events are merged with the nearest ones",
                "",
                "larger where networks learn by heart",
            ),
            "pattern_class_events": Entry("likewise, of each class", "", "likewise"),
            "like_objects": Entry(
                "of `deep_sets` and `attention`: groups of objects that share W and b; without any, those whose names "
                "differ in a number at the end",
                "",
                "objects with other names, such as `[[electron, muon]]`",
            ),
            "object_width": Entry("likewise, width of a token t_i", "", "wider with more events"),
            "pooling": Entry("likewise, `sum` or `mean` over those that are there", "", "`mean` where counts mislead"),
            "attention_heads": Entry(
                "of `attention`: Q, K and V are cut into so many parts", "Vaswani et al., section 3.2.2", "1 to 8"
            ),
        },
    ),
    Choice(
        "Connections",
        "Between layers, also those of TabM's networks.",
        ModelSettings,
        "connections",
        Connections,
        {
            "plain": Entry("h_l = f_l(h_{l-1})", "", "up to some five layers"),
            "residual": Entry(
                "h_l = h_{l-1} + f_l(h_{l-1}), but for the first layer; widths must be equal",
                "He et al., arXiv 1512.03385, eq. 1",
                "deep networks: gradients pass the sums unchanged",
            ),
            "densely_connected": Entry(
                "h_l = f_l([x, h_1, …, h_{l-1}]), and the output sees them all",
                "Huang et al., arXiv 1608.06993, eq. 2",
                "narrow layers, inputs that are good as they are",
            ),
        },
    ),
    Choice(
        "Normalisation",
        "Between a hidden layer and its activation; each unit has a scale and a shift that are learned.",
        ModelSettings,
        "normalisation",
        Normalisation,
        {
            "none": Entry("z", "", "inputs are standardised already, and the networks are not deep"),
            "batch": Entry(
                "(z - mean) / √(variance + 10⁻⁵) of a unit over the events of a batch, in evaluation by running means",
                "Ioffe and Szegedy, arXiv 1502.03167",
                "deep networks with large batches",
            ),
            "layer": Entry(
                "the same over the units of an event",
                "Ba, Kiros and Hinton, arXiv 1607.06450",
                "deep networks with small batches",
            ),
        },
    ),
    Strengths(
        "Sizes",
        "Of the network.",
        ModelSettings,
        {
            "hidden": Entry(
                "widths of the hidden layers", "", "wider with more events; an empty list is logistic regression"
            ),
            "submodels": Entry("K of `tabm`", "", "more cost more and help less and less"),
            "logit_bound": Entry(
                "b: a logit z becomes b tanh(z / b), also in scores and ONNX; null for none",
                "",
                "negative weights whose loss falls without end; 10 leaves probabilities from 2·10⁻⁹ to 1 less that",
            ),
        },
    ),
    Strengths(
        "Dropout",
        "In training alone.",
        ModelSettings,
        {
            "dropout": Entry(
                "each hidden unit is 0 with this probability r in a step, else divided by 1 - r",
                "Srivastava et al., JMLR 15 (2014) 1929",
                "the first thing to turn when training and validation part",
            )
        },
    ),
    Choice(
        "Optimisers",
        "g is the clipped gradient, η the learning rate of the step, p a weight, t counts the steps, and all "
        "else begins "
        "with 0. All of them are torch's. A step goes against the gradient; without the minus sign, as some lecture "
        "notes have it, the loss would rise.",
        TrainingSettings,
        "optimiser",
        Optimiser,
        {
            "sgd": Entry(
                "v ← μ v + g, p ← p - η v; with `nesterov` p ← p - η (g + μ v)",
                "Polyak 1964; Sutskever et al., ICML 2013",
                "a reference; with μ = 0.9 and a schedule often the best for large data",
            ),
            "adagrad": Entry(
                "s ← s + g², p ← p - η g / (√s + ε)",
                "Duchi, Hazan and Singer, JMLR 12 (2011) 2121",
                "features that are rarely there; its steps only shrink",
            ),
            "rmsprop": Entry(
                "s ← α s + (1 - α) g², v ← μ v + g / (√s + ε), p ← p - η v",
                "Tieleman and Hinton, Coursera lecture 6.5 (2012)",
                "losses whose scale drifts",
            ),
            "adam": Entry(
                "m ← β₁ m + (1 - β₁) g, s ← β₂ s + (1 - β₂) g², p ← p - η m̂ / (√ŝ + ε) with m̂ = m / (1 - "
                "β₁ᵗ), ŝ = s / (1 - β₂ᵗ)",
                "Kingma and Ba, arXiv 1412.6980",
                "to compare with others' results",
            ),
            "adamw": Entry(
                "that of `adam`, and the weights decay", "Loshchilov and Hutter, arXiv 1711.05101", "the default"
            ),
            "nadam": Entry(
                "p ← p - η (μₜ₊₁ m / (1 - ∏ᵗ⁺¹ μ) + (1 - μₜ) g / (1 - ∏ᵗ μ)) / (√ŝ + ε) with μₜ = β₁ (1 - ½ "
                "0.96^(t ψ))",
                "Dozat, ICLR workshop 2016",
                "where Adam is slow at the beginning",
            ),
        },
    ),
    Strengths(
        "Constants of the optimiser",
        "Each is refused with an optimiser that has none of that name.",
        TrainingSettings,
        {
            "learning_rate": Entry(
                "the largest η",
                "",
                "the first thing to tune; `sgd` and `adagrad` want some ten times as much as `adam`",
            ),
            "batch_size": Entry("events of a step", "", "1 to `all`; larger ones want larger learning rates"),
            "momentum": Entry("μ of `sgd` and `rmsprop`", "Polyak 1964", "0.9 with `sgd`"),
            "nesterov": Entry("the momentum of `sgd` looks ahead", "Sutskever et al., ICML 2013", "with a momentum"),
            "alpha": Entry("α of `rmsprop`", "Tieleman and Hinton 2012", "nearer to 1 for noisier gradients"),
            "beta1": Entry("β₁ of `adam`, `adamw`, `nadam`", "arXiv 1412.6980", "seldom changed"),
            "beta2": Entry("β₂ of `adam`, `adamw`, `nadam`", "arXiv 1412.6980", "0.99 for short trainings"),
            "epsilon": Entry("ε, added to the root of the squares", "", "larger for tiny gradients"),
            "momentum_decay": Entry("ψ of `nadam`", "Dozat 2016", "seldom changed"),
        },
    ),
    Choice(
        "Schedules",
        "The learning rate of a step is `training.learning_rate` times a factor. e counts the epochs done, s "
        "the steps done "
        "and S those of the training.",
        TrainingSettings,
        "schedule",
        Schedule,
        {
            "constant": Entry("1", "", "tests, and together with an average"),
            "step": Entry("f^⌊e / n⌋, n = `schedule_every`, f = `schedule_factor`", "", "the textbook's"),
            "multi_step": Entry(
                "f to the number of `schedule_milestones` that are not above e", "", "recipes that say so"
            ),
            "exponential": Entry("f^⌊e⌋", "", "a smooth fall without an end"),
            "cosine": Entry(
                "½ (1 + cos(π s / S))",
                "Loshchilov and Hutter, arXiv 1608.03983",
                "a good fall where a warm-up goes before",
            ),
            "warm_restarts": Entry(
                "½ (1 + cos(π u)), u the share done of the present period; the first has `schedule_every` "
                "epochs, each further one `schedule_stretch` times as many as the one before",
                "Loshchilov and Hutter, arXiv 1608.03983, eq. 5",
                "several good minima on the way, step by step",
            ),
            "one_cycle": Entry(
                "from 1/25 to 1 over 30% of the steps, then down to 4·10⁻⁶, both along half a cosine",
                "Smith and Topin, arXiv 1708.07120",
                "the default",
            ),
            "plateau": Entry(
                "f^n, n the number of times that `schedule_patience` epochs have passed without a better "
                "validation loss, counted anew each time",
                "",
                "the length of the training is not known",
            ),
        },
    ),
    Strengths(
        "Constants of the schedule",
        "Each but the warm-up is refused with a schedule that has none of that name.",
        TrainingSettings,
        {
            "warm_up": Entry(
                "in the first w epochs of W steps the factor is (s + 1) / (W + 1) times the first one of the schedule",
                "Goyal et al., arXiv 1706.02677",
                "large learning rates, and Adam, whose first steps rest on few gradients",
            ),
            "schedule_every": Entry(
                "n of `step`; epochs of the first period of `warm_restarts`", "", "a third of the epochs, or fewer"
            ),
            "schedule_factor": Entry(
                "f of `step`, `multi_step`, `exponential` and `plateau`", "", "nearer to 1 the more often it counts"
            ),
            "schedule_milestones": Entry(
                "numbers of epochs after which the rate of `multi_step` falls", "", "where losses have flattened before"
            ),
            "schedule_stretch": Entry(
                "of `warm_restarts`: how much longer each period is", "arXiv 1608.03983", "1 or 2"
            ),
            "schedule_patience": Entry("epochs of `plateau` without a better validation loss", "", "below `patience`"),
            "schedule_reductions": Entry(
                "how often the rate of `plateau` falls; where it would once more, the training stops", "", "2 to 5"
            ),
        },
    ),
    Choice(
        "Averages of weights",
        "a is validated, kept and stopped on in place of the weights p; the training is not changed.",
        TrainingSettings,
        "averaging",
        Averaging,
        {
            "none": Entry("a = p", "", "the default"),
            "ema": Entry(
                "a ← d a + (1 - d) p after each step, d = `averaging_decay`; the first step sets a = p",
                "Polyak and Juditsky 1992",
                "smoother validation losses under any schedule; 1 / (1 - d) steps should be well below those "
                "of the training",
            ),
            "swa": Entry(
                "mean over the ends of the epochs after `averaging_start` of them",
                "Izmailov et al., arXiv 1803.05407",
                "with a constant or restarted learning rate, whose end would otherwise be noise",
            ),
        },
    ),
    Strengths(
        "Constants of the average",
        "Each is refused with an average that has none of that name.",
        TrainingSettings,
        {
            "averaging_decay": Entry("d of `ema`", "", "see `ema`"),
            "averaging_start": Entry("of `swa`: share of the epochs before the average begins", "", "see `swa`"),
        },
    ),
    Strengths(
        "Regularisation",
        "Penalties and norms act on the weight matrices, not on biases and scales; noise is there in training "
        "alone, and new in every step.",
        TrainingSettings,
        {
            "weight_decay": Entry(
                "w ← w - η λ w in each step of rate η, beside the gradient's",
                "Loshchilov and Hutter, arXiv 1711.05101",
                "the default; what AdamW is made for",
            ),
            "l1": Entry(
                "λ Σ|w| in the loss, so that λ sign(w) joins the gradient",
                "Tibshirani, J. R. Stat. Soc. B 58 (1996) 267",
                "to make many weights small enough to leave them out; without the absolute values, as some lecture "
                "notes have it, it would reward large negative weights",
            ),
            "l2": Entry(
                "λ/2 Σ w² in the loss, so that λ w joins the gradient",
                "Krogh and Hertz, NIPS 1991",
                "with plain gradient descent; an adaptive optimiser rescales it, where `weight_decay` is better",
            ),
            "max_norm": Entry(
                "the weights into a unit are scaled down to a norm of at most c after each step",
                "Srebro and Shraibman, COLT 2005; Srivastava et al. 2014",
                "with dropout and large learning rates; 3 to 4",
            ),
            "input_noise": Entry(
                "normal noise of this standard deviation on standardised values that are there",
                "Bishop, Neural Computation 7 (1995) 108",
                "few events; about 0.1",
            ),
            "label_noise": Entry(
                "each label is drawn anew from all classes with this probability",
                "Xie et al. (DisturbLabel), arXiv 1605.00055",
                "in the mean it is `label_smoothing`, which is steadier",
            ),
            "weight_noise": Entry(
                "gradients are taken at w + noise, normal with this standard deviation",
                "Graves, NIPS 2011",
                "to look for flat minima; some hundredths",
            ),
            "clip_norm": Entry(
                "a network's gradient, penalties included, is scaled down to a norm of at most c",
                "Pascanu, Mikolov and Bengio, arXiv 1211.5063",
                "always; heavy weights make large gradients",
            ),
        },
    ),
    Strengths(
        "Stops",
        "Each ends a network's training after an epoch, whichever comes first; the network of the best epoch is kept "
        "either way. E is the loss of the validation events.",
        TrainingSettings,
        {
            "epochs": Entry("so many epochs are done", "", "with `one_cycle` and `cosine`, which plan for it"),
            "patience": Entry("so many epochs without a smaller E", "", "the default"),
            "stop_gap": Entry(
                "E minus the training loss is more than so many nats",
                "",
                "to stop before training events are learned by heart; dropout and noise raise the training loss",
            ),
            "stop_generalisation": Entry(
                "GL = 100 (E / E_best - 1) is more than so many per cent",
                "Prechelt, Early Stopping - But When?, LNCS 1524 (1998) 55, section 2.1",
                "learning rates that hardly change; E must be above 0, which negative weights don't promise",
            ),
        },
    ),
    Choice(
        "Pruning",
        "Of a network that has been trained: its best epoch loses weights or units, and what is left is fine-tuned. "
        "All that is scored and exported is the pruned network. `law run PruneNetworks` compares shares.",
        TrainingSettings,
        "pruning",
        Pruning,
        {
            "none": Entry("nothing is taken away", "", "the default"),
            "magnitude": Entry(
                "the smallest |w| of all matrices of a network are set to zero, and stay zero",
                "Han et al., arXiv 1506.02626; as `torch.nn.utils.prune.global_unstructured`",
                "to see how few weights do the work; files that are packed get smaller, but nothing gets faster",
            ),
            "structured": Entry(
                "of each hidden layer the units j with the smallest √Σ_i W_ij² are taken out of the network; with "
                "`residual` connections those with the smallest sum of it over all layers",
                "after Li et al., arXiv 1608.08710, who take Σ|W|; as `torch.nn.utils.prune.ln_structured` with n = 2",
                "networks that must be small and fast",
            ),
        },
    ),
    Strengths(
        "Constants of the pruning",
        "Refused without a pruning.",
        TrainingSettings,
        {
            "pruning_share": Entry(
                "s: of the weights, or of the units of each layer, that are gone in the end",
                "",
                "as much as `law run PruneNetworks` finds to cost nothing",
            ),
            "pruning_rounds": Entry(
                "n: after round i the share s (1 - (1 - i/n)³) is gone",
                "Zhu and Gupta, arXiv 1710.01878, eq. 1",
                "large shares; each round is fine-tuned",
            ),
            "fine_tuning": Entry(
                "epochs after each round, from the pruned weights, whose best epoch is kept; with a new optimiser and "
                "average, and all else as in the training",
                "Han et al.",
                "0 only to see what it brings",
            ),
            "fine_tuning_rate": Entry(
                "f: η falls from f times `learning_rate` along half a cosine to 0",
                "Renda, Frankle and Carbin, arXiv 2003.02389",
                "1, as rates that are small recover less",
            ),
        },
    ),
    Strengths(
        "Ensembles",
        "Networks of each fold beside the one that there always is.",
        TrainingSettings,
        {
            "members": Entry(
                "so many trainings of each fold, which differ in random numbers alone",
                "Lakshminarayanan, Pritzel and Blundell, arXiv 1612.01474",
                "the surest gain, at its full price",
            ),
            "snapshots": Entry(
                "the network at the end of each of the last so many periods of `warm_restarts`, with another schedule "
                "of the last so many epochs; that of the best epoch is there anyway and counts once",
                "Huang et al., arXiv 1704.00109",
                "several networks for the price of one training: with `warm_restarts`, whose networks differ more than "
                "those of neighbouring epochs, and a `patience` longer than a period",
            ),
        },
    ),
    Choice(
        "Combinations",
        "How N networks, p_m of each, become one score p, for `routed` (those of the event's fold) and `ensemble` "
        "(all) alike, in friend trees, plots and `ensemble.onnx`. It changes no training.",
        TrainingSettings,
        "combination",
        Combination,
        {
            "mean": Entry("p = Σ p_m / N", "", "the default: the mean of posteriors is one"),
            "logits": Entry(
                "p ∝ exp(Σ ln p_m / N), to a sum of one over the classes: the softmax of the mean of logits",
                "Hinton, Training Products of Experts, Neural Computation 14 (2002) 1771",
                "one network that is sure of a class weighs more; tails of the score that have to be sharp",
            ),
            "median": Entry(
                "the median of each class by itself (of an even N the mean of the two in the middle), to a sum of one",
                "",
                "single networks that went astray; the loss is a little more noise",
            ),
            "weighted": Entry(
                "p = Σ a_m p_m, a_m ∝ exp(-L_m), L_m the validation loss in nats of the epoch that was kept, on the "
                "network's own stopping fold",
                "",
                "networks of unlike quality, such as early snapshots; among equals it is the mean. Losses of different "
                "folds differ by their events too",
            ),
        },
    ),
    Strengths(
        "Diagnostics",
        "What the report shows of the trainings.",
        TrainingSettings,
        {
            "diagnostics": Entry(
                "for each layer and epoch: root mean square of the gradient's norm over the steps; share of dead "
                "units, whose slope is at most 0.01 for every validation event; saturation, the share of all pairs of "
                "unit and event with such a slope",
                "Glorot and Bengio, PMLR 9:249 (AISTATS 2010)",
                "always; it changes no bit of a network",
            ),
        },
    ),
)


def page() -> str:
    """The text of `docs/models.md`."""
    return "\n".join([INTRODUCTION, *("\n".join([*section.lines(), ""]) for section in PAGE), *_tuned(), ""])


def _tuned() -> Iterator[str]:
    """Which keys a study may vary, and which it may not."""
    yield from ("## What can be tuned", "")
    yield "[TuneHyperparameters](tuning.md) may vary these keys, in `tuning.space` of an `analysis.yaml`:"
    for section in (SECTIONS[ModelSettings], SECTIONS[TrainingSettings]):
        yield from ("", ", ".join(f"`{key}`" for key in tunable() if key.startswith(f"{section}.")) + ".")
    yield from ("", "And it refuses these, as all keys of other sections:", "", "| key | why |", "|---|---|")
    yield from (_row(key, (why,)) for key, why in NOT_TUNED.items())


def _default(settings: Settings, key: str) -> str:
    """The default of a key, as YAML has it."""
    found = next(field for field in fields(settings) if field.name == key)
    value = found.default_factory() if found.default_factory is not MISSING else found.default
    if value is None:
        own: dict[Any, list[str]] = {}
        for choice, names in (pair for choices in CONSTANTS.values() for pair in choices.items()):
            if key in names:
                own.setdefault(names[key], []).append(choice)
        if len(own) > 1:
            return "; ".join(f"{', '.join(choices)}: {_yaml(default)}" for default, choices in own.items())
        return _yaml(next(iter(own), None))
    return _yaml(value)


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else f"{value}"


def _row(name: str, cells: Sequence[str]) -> str:
    return "| " + " | ".join([f"`{name}`", *(cell.replace("|", "\\|") for cell in cells)]) + " |"


if __name__ == "__main__":
    sys.stdout.write(page())
