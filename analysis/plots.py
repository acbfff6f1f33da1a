"""Plots of an analysis: each a matplotlib figure together with the numbers that it shows.

`make_plots` draws all of them; the functions below it draw one kind each, from plain arrays. Figures belong to nobody
but their `Plot`: pyplot keeps none of them. Histograms take signed weights as they are, with Σw² as variance, and put
what lies beyond the axis into the first and the last bin, so that the bins add up to the yield. Colours are those of
Petroff (arXiv:2107.02270), chosen to be told apart by people with a colour vision deficiency.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import matplotlib as mpl
import mplhep
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from scipy import stats

from analysis.errors import UserError
from analysis.metrics import ks_weighted, roc_curve
from analysis.splitting import roles
from analysis.style import parameters, put_label
from analysis.table import EventTable

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
Masked = np.ma.MaskedArray[Any, Any]

Margins = tuple[float, float, float, float]
Section = Literal["performance", "scores", "training", "features"]

DPI = 200  # of PNG images; a page shows two of their pixels in each of its own
DATA_COLOR = "#000000"
_SMALL = (4.3, 3.5)
_MARGINS: Margins = (0.62, 0.47, 0.12, 0.3)
_STACK_MARGINS: Margins = (0.75, 0.47, 0.12, 0.3)
_TIGHT: Margins = (0.62, 0.47, 0.12, 0.1)
_CURVE_POINTS = 500
_SYMBOLS = {
    "ell": "ℓ",
    "lambda": "λ",
    "Lambda": "Λ",
    "to": "→",
    "rightarrow": "→",
    "pm": "±",
    "cdot": "·",
    "times": "×",
}


@dataclass(frozen=True)
class Plot:
    """A figure and the numbers in it.

    Attributes:
        name: File name without suffix; unique among the plots of an analysis.
        section: Part of the report that it belongs to.
        title: A few words.
        caption: What is shown, as a sentence or two.
        figure: The figure, unknown to pyplot.
        numbers: What is drawn, JSON-ready; ``None`` for what is not defined or hidden.
    """

    name: str
    section: Section
    title: str
    caption: str
    figure: Figure
    numbers: dict[str, Any]

    def png(self) -> bytes:
        """The figure as a PNG image; the same figure gives the same bytes."""
        return self._saved("png", {"Software": None})

    def pdf(self) -> bytes:
        """The figure as a page of PDF; the same figure gives the same bytes."""
        return self._saved("pdf", {"Creator": None, "Producer": None, "CreationDate": None})

    def _saved(self, form: str, metadata: Mapping[str, None]) -> bytes:
        buffer = io.BytesIO()
        with mpl.rc_context(parameters()):
            self.figure.savefig(buffer, format=form, dpi=DPI, metadata=dict(metadata))
        return buffer.getvalue()


@dataclass(frozen=True)
class Group:
    """How a process or a class is drawn.

    Attributes:
        name: Its name in the configuration.
        title: Plain text or ``$math$``.
        color: Any colour that matplotlib knows.
        signal: It is the signal, or part of it.
        collision: It is collision data.
    """

    name: str
    title: str
    color: str
    signal: bool = False
    collision: bool = False


@dataclass(frozen=True)
class Variable:
    """A feature or spectator: its name, axis label (plain or ``$math$``) and unit (empty for none)."""

    name: str
    label: str
    unit: str = ""

    @property
    def axis(self) -> str:
        """Label with unit."""
        return _text(self.label) + (f" [{_text(self.unit)}]" if self.unit else "")

    @property
    def heading(self) -> str:
        """Label as plain text, with the name that the code knows it by."""
        label = _plain(self.label)
        return self.name if label in ("", self.name) else f"{label} ({self.name})"


@dataclass(frozen=True)
class ScoredSample:
    """Events ranked by their signal score, and the AUC that the evaluation found for them.

    Attributes:
        score: float [N], probability of the signal class.
        is_signal: bool [N].
        weight: float64 [N], signed physics weights.
        auc: ``{"value", "low", "high"}``, weighted.
    """

    score: Floats
    is_signal: BoolArray
    weight: FloatArray
    auc: Mapping[str, Any]


@dataclass(frozen=True)
class Scores:
    """Scores of the events of a table, row by row.

    Attributes:
        ensemble: float [N, C], mean probabilities of all networks.
        networks: float [K, N], the signal probability of the network of each fold (mean over its members).
        fold: int [N], the fold of each event, whether it trains or not.
    """

    ensemble: Floats
    networks: Floats
    fold: Integers


@dataclass(frozen=True)
class PlotSettings:
    """What the plots need to know of the analysis.

    Attributes:
        processes: All processes, in the order of the table's.
        classes: The classes, in the order of the network's outputs.
        features: The features that the network sees.
        spectators: Further variables, drawn stacked.
        scheme: Of the folds.
        bins: Number of bins of the score.
        blind_above: Signal score above which collision data stay hidden; ``None`` shows all.
        luminosity: In fb⁻¹, where it is known.
    """

    processes: tuple[Group, ...]
    classes: tuple[Group, ...]
    features: tuple[Variable, ...]
    spectators: tuple[Variable, ...] = ()
    scheme: Literal["rotating", "standard"] = "rotating"
    bins: int = 20
    blind_above: float | None = None
    luminosity: float | None = None

    @property
    def signal(self) -> int:
        """Index of the signal class."""
        return [group.signal for group in self.classes].index(True)


@dataclass(frozen=True)
class Appearance:
    """What the configuration says of the plots; light enough to be part of an identity.

    Attributes:
        titles: Title of each process, in the order of the table's; empty for its name.
        colors: Colour of each process; None for one of the palette.
        collision: Processes of collision data.
        classes: The processes of each class, in the order of the network's outputs.
        signal: Name of the signal class.
    """

    titles: Mapping[str, str]
    colors: Mapping[str, str | None]
    collision: Sequence[str]
    classes: Mapping[str, Sequence[str]]
    signal: str


def groups(appearance: Appearance) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Processes and classes as they are drawn.

    Raises:
        UserError: A process has a colour that matplotlib does not know.
    """
    for name, color in appearance.colors.items():
        if color is not None and not mpl.colors.is_color_like(color):
            raise UserError(
                f"analysis.yaml, key processes.{name}.color: {color!r} is no colour. Write one like "
                '"#e42536" or a name like "crimson", or leave it out.'
            )
    members = appearance.classes[appearance.signal]
    simulated = [name for name in appearance.titles if name not in appearance.collision]
    colors = dict.fromkeys(appearance.collision, DATA_COLOR)
    colors |= dict(zip(simulated, _colors([name in members for name in simulated]), strict=True))
    processes = tuple(
        Group(
            name,
            title or _words(name),
            appearance.colors[name] or colors[name],
            name in members,
            name in appearance.collision,
        )
        for name, title in appearance.titles.items()
    )
    is_signal = [name == appearance.signal for name in appearance.classes]
    classes = tuple(
        Group(name, _words(name), color, signal)
        for name, color, signal in zip(appearance.classes, _colors(is_signal), is_signal, strict=True)
    )
    return processes, classes


def make_plots(
    settings: PlotSettings,
    table: EventTable,
    scores: Scores,
    *,
    test_scale: Mapping[str, float],
    metrics: Mapping[str, Any],
    histories: Sequence[Mapping[str, Any]],
    categories: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Plot]:
    """Draw everything that the report shows.

    Args:
        settings: What to draw and how.
        table: All selected events, of simulation and collision data.
        scores: Their scores.
        test_scale: Σw_all / Σw_test of each process, before selection; 1 for processes that are not named.
        metrics: ``test``, ``out_of_fold`` and ``folds`` as in `summary.json`.
        histories: Of each network, as `learning_curves` takes them.
        categories: Weighted AUC of the ensemble on the test events of each category, ``{"value", "low", "high"}``.
    """
    signal = settings.signal
    labelled = table.label >= 0
    judged = labelled & ~table.is_test
    learned = judged & table.training  # what one network or another may train on
    test = labelled & table.is_test
    is_signal = table.label == signal
    rows = np.arange(len(table))

    def sample(score: Floats, chosen: BoolArray, metric: Mapping[str, Any]) -> ScoredSample:
        return ScoredSample(score[chosen], is_signal[chosen], table.weight[chosen], metric["auc"]["weighted"])

    folds = range(len(scores.networks))
    routed = scores.networks[scores.fold, rows]
    plots = [
        roc(
            sample(scores.ensemble[:, signal], test, metrics["test"]),
            sample(routed, judged, metrics["out_of_fold"]),
            [sample(scores.networks[f], judged & (scores.fold == f), metrics["folds"][f]) for f in folds],
            settings.scheme,
        ),
        confusion(metrics["test"]["confusion"], settings.classes),
    ]
    if categories:
        plots.append(category_auc(categories))

    collision = np.array([group.collision for group in settings.processes], dtype=np.bool_)
    shown = table.is_test | collision[table.process]
    scale = np.array([1.0 if g.collision else test_scale.get(g.name, 1.0) for g in settings.processes])
    stack = Stack(
        process=table.process[shown],
        weight=(table.weight * scale[table.process])[shown],
        score=scores.ensemble[shown, signal],
        groups=settings.processes,
        blind_above=settings.blind_above,
        luminosity=settings.luminosity,
    )
    plots.append(stacked_score(stack, settings.bins))
    trained = np.stack([learned & np.isin(scores.fold, roles(f, len(folds), settings.scheme).training) for f in folds])
    held_out = np.stack([learned & (scores.fold == f) for f in folds])
    plots += overtraining(
        scores.networks, trained, held_out, label=table.label, weight=table.weight, classes=settings.classes
    )
    plots.append(learning_curves(histories))
    plots += [stacked_variable(stack, v, table.columns[v.name][shown]) for v in settings.spectators]
    plots += feature_distributions(
        settings.features, table.columns, label=table.label, weight=table.weight, classes=settings.classes
    )
    for name, title, part in (
        ("signal", settings.classes[signal].title, is_signal),
        ("background", "background", labelled & ~is_signal),
    ):
        columns = {v.name: table.columns[v.name][part] for v in settings.features}
        plots.append(correlation(name, title, settings.features, columns, table.weight[part]))
    return plots


def feature_distributions(
    variables: Sequence[Variable],
    columns: Mapping[str, Masked],
    *,
    label: Integers,
    weight: FloatArray,
    classes: Sequence[Group],
    bins: int = 40,
) -> list[Plot]:
    """Draw how each feature is distributed in each class, one figure per feature.

    Args:
        variables: The features.
        columns: Masked float [N] per feature; masked where the object is absent.
        label: int [N], index of the class; -1 for events that are left out.
        weight: float64 [N], signed.
        classes: The classes.
        bins: Number of bins of a continuous feature.

    Returns:
        Plots whose ``numbers`` hold ``edges`` and, per class, ``density`` and ``uncertainty`` (area one; ``None``
        without a positive sum of weights), ``absent`` (fraction by absolute weight) and ``events``.
    """
    return [
        _distribution(v, np.ma.asarray(columns[v.name]), label=label, weight=weight, classes=classes, bins=bins)
        for v in variables
    ]


def _distribution(
    variable: Variable, column: Masked, *, label: Integers, weight: FloatArray, classes: Sequence[Group], bins: int
) -> Plot:
    present = ~np.ma.getmaskarray(column)
    values = np.asarray(np.ma.getdata(column), dtype=np.float64)
    edges = _edges([values[present & (label == c)] for c in range(len(classes))], bins)
    numbers: dict[str, Any] = {"edges": edges.tolist(), "classes": {}}
    width = np.diff(edges)
    with figure_of(_SMALL, margins=(0.7, 0.47, 0.12, 0.25 + 0.16 * ((len(classes) + 1) // 2))) as (figure, ax):
        for c, group in enumerate(classes):
            mine = label == c
            magnitude = np.abs(weight[mine])
            absent = _fraction(magnitude[~present[mine]].sum(), magnitude.sum())
            total, variance = _histogram(values[mine & present], weight[mine & present], edges)
            area = float(total.sum())
            entry: dict[str, Any] = {"absent": absent, "events": int(mine.sum()), "density": None, "uncertainty": None}
            text = _text(group.title) + ("" if not absent else f", absent: {_percent(absent)}")
            if area > 0:
                fraction, error = total / area, np.sqrt(variance) / area
                entry |= {"density": (fraction / width).tolist(), "uncertainty": (error / width).tolist()}
                _step(ax, fraction, edges, group, text)
                _error_band(ax, fraction, error, edges, group)
            else:
                ax.plot([], [], color=group.color, label=text if absent == 1 else f"{text} (Σw ≤ 0: not drawn)")
            numbers["classes"][group.name] = entry
        ax.set_xlim(edges[0], edges[-1])
        drawn = any(entry["density"] for entry in numbers["classes"].values())
        ax.set_ylim((min(0.0, ax.get_ylim()[0]), None) if drawn else (0.0, 1.0))
        ax.minorticks_off()
        # Fractions per bin are never far from one: no power of ten has to stand above the axis.
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        _whole_ticks(ax, edges)
        ax.set_xlabel(variable.axis)
        ax.set_ylabel(_per_bin("fraction of events", edges, variable.unit))
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, fontsize=7.5, columnspacing=1.0)
    return Plot(
        name=f"feature_{variable.name}",
        section="features",
        title=variable.heading,
        caption="Weighted, the bins of each class adding up to one; entries beyond the axis are in the first and last "
        "bin.",
        figure=figure,
        numbers=numbers,
    )


def correlation(
    name: str, title: str, variables: Sequence[Variable], columns: Mapping[str, Masked], weight: FloatArray
) -> Plot:
    """Draw the linear correlation of each pair of features.

    Args:
        name: Name of the sample, for the file name.
        title: Title of the sample.
        variables: The features.
        columns: Masked float [N] per feature.
        weight: float64 [N]; absolute values are used, since a covariance needs weights of one sign.

    Returns:
        A plot whose ``numbers`` hold ``features`` and ``matrix``, with ``None`` where a pair is never present
        together or does not vary.
    """
    matrix = correlation_matrix([np.ma.asarray(columns[v.name]) for v in variables], weight)
    count = len(variables)
    side = float(np.clip(0.27 * count + 2.2, 4.3, 11.0))
    with figure_of((side, side * 0.92)) as (figure, ax):
        colors = mpl.colormaps["RdBu_r"].with_extremes(bad="#dddddd")
        image = ax.imshow(np.ma.masked_invalid(matrix), cmap=colors, vmin=-1, vmax=1)
        ticks = [_text(v.label) for v in variables]
        ax.set_xticks(range(count), ticks, rotation=90)
        ax.set_yticks(range(count), ticks)
        _matrix_axes(ax)
        for i, j in np.argwhere(np.abs(np.nan_to_num(matrix)) >= 0.1):
            if i != j:
                color = "white" if abs(matrix[i, j]) > 0.65 else "black"
                ax.text(j, i, f"{100 * matrix[i, j]:.0f}", ha="center", va="center", fontsize=6.5, color=color)
        figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02, label="correlation coefficient")
    cells = [[float(x) if np.isfinite(x) else None for x in row] for row in matrix]
    return Plot(
        name=f"correlation_{name}",
        section="features",
        title=f"Correlation of the features, {title}",
        caption="Linear correlation in percent (from 10% on), of each pair over the events in which both are "
        "present, weighted by |w|. Grey: never present together, or constant.",
        figure=figure,
        numbers={"features": [v.name for v in variables], "matrix": cells},
    )


def correlation_matrix(columns: Sequence[Masked], weight: FloatArray) -> FloatArray:
    """Compute Pearson's coefficient of each pair of columns over the events in which both are present.

    Args:
        columns: Masked float [N], F of them.
        weight: float64 [N]; absolute values are used.

    Returns:
        float64 [F, F]; NaN where a pair is never present together or one of it does not vary.
    """
    magnitude = np.abs(weight)
    present = np.column_stack([~np.ma.getmaskarray(c) for c in columns]).astype(np.float64)  # [N, F]
    values = np.column_stack([np.ma.filled(c.astype(np.float64), 0.0) for c in columns])  # [N, F]
    # Centred and scaled first: sums of squares of large numbers would cancel.
    mass = np.maximum(magnitude @ present, np.finfo(np.float64).tiny)
    values = (values - (magnitude @ values) / mass) * present
    scale = np.sqrt((magnitude @ values**2) / mass)
    values = values / np.where(scale > 0, scale, 1.0)

    weighted = magnitude[:, np.newaxis] * values
    pair = present.T @ (magnitude[:, np.newaxis] * present)  # Σ|w| where both are present
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (weighted.T @ present) / pair  # [i, j]: mean of i where j is present too
        square = (weighted * values).T @ present / pair - mean**2
        covariance = (weighted.T @ values) / pair - mean * mean.T
        spread = np.sqrt(np.where(square > 1e-9, square, np.nan))
        result: FloatArray = np.clip(covariance / (spread * spread.T), -1.0, 1.0)
    return result


def learning_curves(histories: Sequence[Mapping[str, Any]]) -> Plot:
    """Draw the losses of all networks against the epoch, with the epoch whose parameters were kept.

    Args:
        histories: For each network ``fold``, ``member``, ``epoch`` (list, from 1), ``training_loss``,
            ``validation_loss`` and ``learning_rate`` per epoch (lists; losses in nats), and ``best_epoch``.
    """
    folds = sorted({int(h["fold"]) for h in histories})
    colors = dict(zip(folds, _hues(len(folds)), strict=True))
    several = len(histories) > len(folds)
    with figure_of((7.2, 4.6), rows=(4, 1), margins=_TIGHT) as (figure, (ax, below)):
        for history in histories:
            color, epochs = colors[int(history["fold"])], history["epoch"]
            alpha = 0.6 if several else 1.0
            ax.plot(epochs, history["training_loss"], color=color, linestyle=(0, (4, 2)), linewidth=1.0, alpha=alpha)
            ax.plot(epochs, history["validation_loss"], color=color, linewidth=1.4, alpha=alpha)
            best = int(history["best_epoch"])
            ax.plot(best, history["validation_loss"][list(epochs).index(best)], "o", color=color, markersize=5)
            for epoch in history.get("snapshots", ()):
                loss = history["validation_loss"][list(epochs).index(epoch)]
                ax.plot(epoch, loss, "o", color=color, markersize=5, markerfacecolor="white")
            below.plot(epochs, history["learning_rate"], color=color, linewidth=1.0, alpha=alpha)
        for fold in folds:
            ax.plot([], [], color=colors[fold], linewidth=3, label=f"network {fold}")
        ax.plot([], [], color="#555555", linestyle=(0, (4, 2)), linewidth=1.0, label="training")
        ax.plot([], [], color="#555555", linewidth=1.4, label="validation")
        ax.plot([], [], "o", color="#555555", markersize=5, label="kept epoch")
        if any(history.get("snapshots") for history in histories):
            ax.plot([], [], "o", color="#555555", markersize=5, markerfacecolor="white", label="snapshot")
        ax.set_ylabel("loss [nats]")
        ax.legend(loc="upper right", ncols=2)
        ax.tick_params(labelbottom=False)
        below.set_ylabel("learning rate", fontsize=7, loc="center")
        below.set_xlabel("epoch")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        peak = max(max(history["learning_rate"]) for history in histories)
        below.set_ylim(0, 1.15 * peak)
        below.set_yticks([0, peak], ["0", f"{peak:.2g}"])
        below.minorticks_off()
    keys = ("fold", "member", "epoch", "training_loss", "validation_loss", "learning_rate", "best_epoch")
    return Plot(
        name="learning_curves",
        section="training",
        title="Learning curves",
        caption="Class-balanced loss of every network per epoch; dots mark the epoch of the least validation "
        "loss, whose parameters were kept. The training loss is taken with dropout, while the parameters move.",
        figure=figure,
        numbers={
            "networks": [
                {key: history[key] for key in keys} | {"snapshots": list(history.get("snapshots", ()))}
                for history in histories
            ]
        },
    )


def roc(
    test: ScoredSample,
    out_of_fold: ScoredSample,
    folds: Sequence[ScoredSample],
    scheme: str = "rotating",
) -> Plot:
    """Draw 1 − background efficiency against signal efficiency: signal against all other classes, weighted.

    Args:
        test: Held-out test events with the ensemble's score.
        out_of_fold: All training events, each with the score of the network that left its fold out.
        folds: The same by fold.
        scheme: Of the folds, for the legend.

    Returns:
        A plot whose ``numbers`` hold per curve its ``auc`` and its points: ``signal_efficiency`` and
        ``background_rejection`` (1 − background efficiency), thinned out, or ``None`` where weights that sum to zero
        or below leave it undefined.
    """
    numbers: dict[str, Any] = {"folds": []}
    with figure_of((5.0, 5.0), margins=_MARGINS) as (figure, ax):
        ax.plot([0, 1], [1, 0], color="#999999", linewidth=0.8, linestyle=":")
        for f, sample in enumerate(folds):
            label = "single folds" if f == 0 else None
            numbers["folds"].append(_curve(ax, sample, label, color="#9c9ca1", linewidth=0.7))
        text = f"out-of-fold, {scheme}: AUC {_interval(out_of_fold.auc)}"
        numbers["out_of_fold"] = _curve(ax, out_of_fold, text, color="#f89c20", linewidth=1.6, linestyle=(0, (5, 1.5)))
        text = f"ensemble, test events: AUC {_interval(test.auc)}"
        numbers["test"] = _curve(ax, test, text, color="#5790fc", linewidth=1.8)
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.005)
        ax.set_xlabel("signal efficiency")
        ax.set_ylabel("1 − background efficiency")
        ax.legend(loc="lower left")
        put_label(ax, simulation=True)
    return Plot(
        name="roc",
        section="performance",
        title="Signal against the rest",
        caption="ROC curves with physics weights; the area below a curve is its AUC, with its 68% interval. With "
        "negative weights a curve may run backwards; it is shown as it is.",
        figure=figure,
        numbers=numbers,
    )


def _curve(ax: Axes, sample: ScoredSample, label: str | None, **style: Any) -> dict[str, Any]:
    """Draw one ROC curve; one that is not defined leaves its line in the legend only."""
    numbers: dict[str, Any] = {"auc": dict(sample.auc), "signal_efficiency": None, "background_rejection": None}
    if sample.weight[sample.is_signal].sum() > 0 and sample.weight[~sample.is_signal].sum() > 0:
        curve = roc_curve(sample.score, sample.is_signal, sample.weight)
        points = len(curve.thresholds)
        kept = np.unique(np.linspace(0, points - 1, min(points, _CURVE_POINTS)).round().astype(np.int64))
        numbers["signal_efficiency"] = curve.signal_efficiency[kept].tolist()
        numbers["background_rejection"] = (1 - curve.background_efficiency[kept]).tolist()
    ax.plot(numbers["signal_efficiency"] or [], numbers["background_rejection"] or [], label=label, **style)
    return numbers


def overtraining(
    scores: Floats,
    trained: BoolArray,
    held_out: BoolArray,
    *,
    label: Integers,
    weight: FloatArray,
    classes: Sequence[Group],
    bins: int = 20,
) -> list[Plot]:
    """Compare the signal score of the events that networks trained on with that of events that they never met.

    The histograms pool all networks. An event that several networks trained on enters once for each, and its entries
    in a bin count as one in the variance. The Kolmogorov-Smirnov test is made for each network by itself, since two
    networks' scores of one event can't be compared by it; p-values are Holm-corrected over networks and classes.

    Args:
        scores: float [K, N], the signal score by each network.
        trained: bool [K, N], the network trained on the event.
        held_out: bool [K, N], the event is out-of-fold for the network.
        label: int [N].
        weight: float64 [N], signed.
        classes: The classes.
        bins: Number of bins in [0, 1].

    Returns:
        One plot per class; its ``numbers`` hold ``edges``, ``training`` and ``out_of_fold`` (each ``density`` and
        ``uncertainty``, ``None`` without a positive sum of weights) and ``ks_p_values``, corrected, one per network
        (``None`` where it is not defined).
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    tests = [
        _ks(scores[k], trained[k] & (label == c), held_out[k] & (label == c), weight)
        for c in range(len(classes))
        for k in range(len(scores))
    ]
    corrected = np.reshape(np.array(_holm(tests), dtype=object), (len(classes), len(scores)))
    plots = []
    for c, group in enumerate(classes):
        numbers: dict[str, Any] = {"edges": edges.tolist()}
        numbers["ks_p_values"] = corrected[c].tolist()
        with figure_of(_SMALL, margins=_MARGINS) as (figure, ax):
            for name, rows in (("training", trained), ("out_of_fold", held_out)):
                total, variance = _pooled(scores, rows & (label == c), weight, edges)
                area = float(total.sum())
                text = name.replace("_", "-")
                if not area > 0:
                    numbers[name] = {"density": None, "uncertainty": None}
                    ax.plot([], [], color=group.color, label=f"{text} (Σw ≤ 0: not drawn)")
                    continue
                density, error = total / area * bins, np.sqrt(variance) / area * bins
                numbers[name] = {"density": density.tolist(), "uncertainty": error.tolist()}
                if name == "training":
                    mplhep.histplot(
                        density, edges, histtype="fill", ax=ax, color=group.color, alpha=0.35, label=text, flow="none"
                    )
                    _error_band(ax, density, error, edges, group)
                else:
                    centres = (edges[1:] + edges[:-1]) / 2
                    ax.errorbar(centres, density, yerr=error, fmt="o", markersize=3, color="black", label=text)
            known = [p for p in corrected[c] if p is not None]
            smallest = f"smallest KS p-value: {_p_value(min(known))}" if known else "KS test not defined"
            ax.set_title(_text(group.title), loc="left")
            ax.set_title(smallest, loc="right", fontsize=8)
            ax.set_xlim(0, 1)
            heights = np.array([x for part in ("training", "out_of_fold") for x in numbers[part]["density"] or []])
            _log_limits(ax, heights, _lowest(heights), room=0.12)
            ax.set_xlabel("signal score")
            ax.set_ylabel("fraction of events / bin width")
            ax.legend(loc="upper right" if not group.signal else "upper left")
        plots.append(
            Plot(
                name=f"overtraining_{group.name}",
                section="training",
                title=f"Training against out-of-fold, {group.title}",
                caption="Signal score of the events that a network trained on (filled) and that it never met (points), "
                "all networks pooled, each with unit area. The p-value is the smallest of the weighted KS tests of the "
                "single networks, Holm-corrected over networks and classes.",
                figure=figure,
                numbers=numbers,
            )
        )
    return plots


def _ks(score: Floats, first: BoolArray, second: BoolArray, weight: FloatArray) -> float | None:
    if not (weight[first].sum() > 0 and weight[second].sum() > 0):
        return None
    return ks_weighted(score[first], weight[first], score[second], weight[second]).p_value


def _holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for the number of tests (Holm 1979, Scand. J. Statist. 6, 65); undefined ones stay out."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    result: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, i) in enumerate(known):
        running = max(running, min(1.0, p * (len(known) - rank)))
        result[i] = running
    return result


def _pooled(scores: Floats, rows: BoolArray, weight: FloatArray, edges: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Histogram of several networks' scores; entries of one event in one bin are fully correlated."""
    bins = len(edges) - 1
    network, event = np.nonzero(rows)
    place = np.clip(np.searchsorted(edges, scores[network, event], side="right") - 1, 0, bins - 1)
    cells, entries = np.unique(event * bins + place, return_counts=True)
    filled = entries * weight[cells // bins]
    return _sums(cells % bins, filled, bins)


@dataclass(frozen=True)
class Stack:
    """The events of stacked plots: simulation, scaled to the expected yield, and collision data.

    Attributes:
        process: int [N], index in `groups`.
        weight: float64 [N], signed; simulated test events already scaled to their whole process.
        score: float [N], signal score by the ensemble.
        groups: The processes.
        blind_above: Signal score above which collision data stay hidden; ``None`` shows all.
        luminosity: In fb⁻¹, where it is known.
    """

    process: Integers
    weight: FloatArray
    score: Floats
    groups: Sequence[Group]
    blind_above: float | None = None
    luminosity: float | None = None

    @property
    def has_data(self) -> bool:
        """Whether one of the processes is collision data."""
        return any(group.collision for group in self.groups)


def stacked_score(stack: Stack, bins: int) -> Plot:
    """Draw the signal score of all processes, stacked, with collision data as points.

    Bins that reach above the blinding score show no collision data, neither in the figure nor in the numbers.

    Args:
        stack: The events.
        bins: Number of bins in [0, 1].

    Returns:
        A plot whose ``numbers`` hold ``edges``, ``processes`` (``sum``, ``variance`` and ``absent`` of each),
        ``total`` (``sum``, ``variance``), ``blind_above`` and ``data`` (``count``, ``low``, ``high``, with ``None``
        in hidden bins), which is ``None`` without collision data.
    """
    edges = np.linspace(0.0, 1.0, bins + 1)
    blind = stack.blind_above if stack.has_data else None
    hidden = np.zeros(bins, dtype=np.bool_) if blind is None else edges[1:] > blind + 1e-9
    caption = "Test events with the ensemble's score, scaled to the expected yield of each process."
    if hidden.any():
        caption += f" Collision data above a score of {blind:g} are hidden."
    return _stacked(
        stack,
        Variable("score", "signal score"),
        np.ma.asarray(stack.score),
        edges=edges,
        hidden=hidden,
        caption=caption,
        selection="",
    )


def stacked_variable(stack: Stack, variable: Variable, values: Masked, bins: int = 25) -> Plot:
    """Draw a feature or spectator of all processes, stacked, with collision data as points.

    Where collision data are blinded, all events above the blinding score are left out, simulated ones too, so that
    data and expectation stay comparable.

    Args:
        stack: The events.
        variable: The variable.
        values: Masked float [N].
        bins: Number of bins of a continuous variable.

    Returns:
        A plot with ``numbers`` as `stacked_score`; ``absent`` is Σw of the events without the object.
    """
    caption = (
        "Test events, scaled to the expected yield of each process; the outer bins hold what lies beyond the axis."
    )
    selection = ""
    if stack.has_data and stack.blind_above is not None:
        selection = f"signal score ≤ {stack.blind_above:g}"
        kept = stack.score <= stack.blind_above
        rows = {name: getattr(stack, name)[kept] for name in ("process", "weight", "score")}
        stack = replace(stack, **rows)
        values = values[kept]
        caption += f" Only events with a signal score of at most {stack.blind_above:g}, so that data stay blinded."
    values = np.ma.asarray(values)
    edges = _edges([np.asarray(np.ma.compressed(values), dtype=np.float64)], bins)
    hidden = np.zeros(len(edges) - 1, dtype=np.bool_)
    return _stacked(stack, variable, values, edges=edges, hidden=hidden, caption=caption, selection=selection)


def _stacked(
    stack: Stack,
    variable: Variable,
    column: Masked,
    *,
    edges: FloatArray,
    hidden: BoolArray,
    caption: str,
    selection: str,
) -> Plot:
    present = ~np.ma.getmaskarray(column)
    values = np.asarray(np.ma.getdata(column), dtype=np.float64)
    simulated = [g for g in stack.groups if not g.collision]
    sums, variances = {}, {}
    numbers: dict[str, Any] = {"edges": edges.tolist(), "processes": {}, "data": None, "blind_above": None}
    for i, group in enumerate(stack.groups):
        if not group.collision:
            mine = stack.process == i
            sums[group.name], variances[group.name] = _histogram(
                values[mine & present], stack.weight[mine & present], edges
            )
            numbers["processes"][group.name] = {
                "sum": sums[group.name].tolist(),
                "variance": variances[group.name].tolist(),
                "absent": float(stack.weight[mine & ~present].sum()),
            }
    bins = len(edges) - 1
    total = np.sum(list(sums.values()), axis=0) if sums else np.zeros(bins)
    error = np.sqrt(np.sum(list(variances.values()), axis=0)) if sums else np.zeros(bins)
    numbers["total"] = {"sum": total.tolist(), "variance": (error**2).tolist()}
    data = None
    if stack.has_data:
        collision = np.array([g.collision for g in stack.groups], dtype=np.bool_)[stack.process]
        counts, _ = _histogram(values[collision & present], np.ones(int(np.sum(collision & present))), edges)
        data = _Counts(counts, *poisson_interval(counts), hidden)
        numbers["data"] = data.to_json()
        numbers["blind_above"] = stack.blind_above

    size, rows = ((6.2, 5.6), (3, 1)) if data else ((6.2, 4.6), (1,))
    with figure_of(size, rows, _STACK_MARGINS) as (figure, axes):
        ax = axes[0] if data else axes
        _draw_stack(ax, simulated, sums, edges)
        mplhep.histplot(
            total,
            edges,
            yerr=error,
            histtype="band",
            ax=ax,
            flow="none",
            label="stat. uncertainty",
            facecolor="none",
            edgecolor="#333333",
            hatch="/////",
            linewidth=0,
        )
        if data:
            data.draw(ax, edges, "collision data")
            _ratio(axes[1], data, total, error, edges)
            ax.tick_params(labelbottom=False)
        if hidden.any():
            start = float(edges[:-1][hidden][0])
            for panel in axes if data else [axes]:
                panel.axvspan(start, edges[-1], color="#888888", alpha=0.15, linewidth=0)
            ax.text(
                (start + edges[-1]) / 2,
                0.03,
                "blinded",
                transform=ax.get_xaxis_transform(),
                ha="center",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2},
            )
        seen = total if data is None else np.append(total, data.count[~data.hidden])
        signal = np.sum([sums[g.name] for g in simulated if g.signal] or [np.zeros(bins)], axis=0)
        peaks = np.array([heights.max() for heights in sums.values()])
        # The smallest process shows a third of a decade of its peak, or more.
        _log_limits(ax, seen, min(_lowest(seen), _lowest(signal, 1e-3), _lowest(peaks, 0.0) * 5 / 3), room=0.3)
        ax.set_xlim(edges[0], edges[-1])
        (axes[1] if data else ax).set_xlabel(variable.axis)
        ax.set_ylabel(_per_bin("events", edges, variable.unit))
        _whole_ticks(axes[1] if data else ax, edges)
        labelled = put_label(ax, simulation=not data)
        if selection:
            ax.set_title(_text(selection), loc="center" if labelled else "left")
        elif not data and not labelled:
            ax.set_title("Simulation", loc="left", fontweight="bold")
        if stack.luminosity is not None:
            ax.set_title(f"{stack.luminosity:g} fb$^{{-1}}$", loc="right")
        ax.legend(loc="upper right", ncols=2, fontsize=7.5)
    return Plot(
        name=f"stacked_{variable.name}",
        section="scores",
        title="Signal score" if variable.name == "score" else variable.heading,
        caption=caption,
        figure=figure,
        numbers=numbers,
    )


def _draw_stack(ax: Axes, groups: Sequence[Group], sums: Mapping[str, FloatArray], edges: FloatArray) -> None:
    """Background at the bottom, the last of the configuration lowest; signal on top, and once more as a line."""
    order = [g for g in reversed(groups) if not g.signal] + [g for g in reversed(groups) if g.signal]
    if not order:
        return
    mplhep.histplot(
        [sums[g.name] for g in order],
        edges,
        stack=True,
        histtype="fill",
        ax=ax,
        flow="none",
        color=[g.color for g in order],
        label=[_text(g.title) for g in order],
    )
    signal = [sums[g.name] for g in groups if g.signal]
    if signal:
        ax.stairs(np.sum(signal, axis=0), edges, color="black", linewidth=1.2, linestyle="--", label="signal alone")


@dataclass(frozen=True)
class _Counts:
    """Collision data per bin, with Poisson intervals; hidden bins are never drawn nor written."""

    count: FloatArray
    low: FloatArray
    high: FloatArray
    hidden: BoolArray

    def to_json(self) -> dict[str, Any]:
        return {
            name: [None if hide else float(x) for x, hide in zip(getattr(self, name), self.hidden, strict=True)]
            for name in ("count", "low", "high")
        }

    def draw(self, ax: Axes, edges: FloatArray, label: str | None, scale: FloatArray | None = None) -> None:
        """Draw the shown bins as points, divided by `scale` where it is positive."""
        divisor = np.ones_like(self.count) if scale is None else scale
        shown = ~self.hidden & (divisor > 0)
        centres = ((edges[1:] + edges[:-1]) / 2)[shown]
        count, low, high = (x[shown] / divisor[shown] for x in (self.count, self.low, self.high))
        ax.errorbar(
            centres, count, yerr=[count - low, high - count], fmt="o", markersize=3.5, color=DATA_COLOR, label=label
        )


def _ratio(ax: Axes, data: _Counts, total: FloatArray, error: FloatArray, edges: FloatArray) -> None:
    positive = total > 0
    relative = np.divide(error, total, out=np.zeros_like(total), where=positive)
    ax.axhline(1.0, color="#555555", linewidth=0.8)
    ax.fill_between(
        edges,
        np.append(1 - relative, 1 - relative[-1]),
        np.append(1 + relative, 1 + relative[-1]),
        step="post",
        color="#999999",
        alpha=0.4,
        linewidth=0,
    )
    data.draw(ax, edges, None, total)
    ax.set_ylim(0.0, 2.0)
    ax.set_ylabel("data / sim.", loc="center")


def _lowest(heights: FloatArray, least: float = 1e-6) -> float:
    """The smallest positive height, or the given share of the largest one if that is more; infinity without any."""
    positive = heights[heights > 0]
    return max(float(positive.min()), least * float(positive.max())) if len(positive) else np.inf


def _log_limits(ax: Axes, heights: FloatArray, lowest: float, room: float) -> None:
    """Logarithmic y axis of a decade and a half or more; linear where nothing is positive.

    Args:
        ax: The axes.
        heights: What is drawn.
        lowest: The smallest height that has to be seen.
        room: Share of the axis that is kept free for the legend.
    """
    top = float(heights.max(initial=0.0))
    if not top > 0:
        ax.set_ylim(0, 1)
        return
    bottom = float(np.clip(lowest * 0.2, top * 1e-9, top * 0.03))
    ax.set_yscale("log")
    ax.yaxis.set_minor_formatter(NullFormatter())  # 2 × 10² would push the axis label out of the figure
    ax.set_ylim(bottom, top * (top / bottom) ** (room / (1 - room)))


def poisson_interval(counts: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Central 68.27% intervals of Poisson means (Garwood 1936, Biometrika 28, 437), as PDG reviews give them.

    Args:
        counts: float64 [B], non-negative whole numbers.

    Returns:
        Lower and upper ends, float64 [B] each; the lower end at zero counts is zero.
    """
    tail = float(stats.norm.sf(1.0))
    low = np.where(counts > 0, stats.chi2.ppf(tail, 2 * np.maximum(counts, 0.5)) / 2, 0.0)
    high = stats.chi2.isf(tail, 2 * (counts + 1)) / 2
    return np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)


def confusion(matrix: Sequence[Sequence[float | None]], classes: Sequence[Group]) -> Plot:
    """Draw the confusion matrix of the ensemble on test events.

    Args:
        matrix: [C][C], share of each true class (row) by most probable class (column); ``None`` where undefined.
        classes: The classes.
    """
    cells = np.array([[np.nan if x is None else x for x in row] for row in matrix], dtype=np.float64)
    count = len(classes)
    side = float(np.clip(0.9 * count + 1.6, 4.3, 9.0))
    with figure_of((side, side * 0.85)) as (figure, ax):
        colors = mpl.colormaps["Blues"].with_extremes(bad="#dddddd")
        image = ax.imshow(np.ma.masked_invalid(cells), cmap=colors, vmin=0, vmax=1)
        titles = [_text(g.title) for g in classes]
        ax.set_xticks(range(count), titles)
        ax.set_yticks(range(count), titles)
        _matrix_axes(ax)
        for i, j in np.ndindex(count, count):
            text = "–" if np.isnan(cells[i, j]) else f"{100 * cells[i, j]:.1f}%"
            ax.text(j, i, text, ha="center", va="center", color="white" if cells[i, j] > 0.55 else "black")
        ax.set_xlabel("most probable class", loc="center")
        ax.set_ylabel("true class", loc="center")
        figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02, label="share of the true class")
    return Plot(
        name="confusion",
        section="performance",
        title="Confusion matrix",
        caption="Ensemble on test events: where the events of each true class go; rows add up to 100%.",
        figure=figure,
        numbers={"classes": [g.name for g in classes], "matrix": [list(row) for row in matrix]},
    )


def category_auc(categories: Mapping[str, Mapping[str, Any]]) -> Plot:
    """Draw the AUC of each category with its 68% interval.

    Args:
        categories: ``{"value", "low", "high"}`` by category, with ``None`` where it is not defined.
    """
    with figure_of((5.0, 1.3 + 0.4 * len(categories))) as (figure, ax):
        for row, estimate in enumerate(categories.values()):
            value, low, high = (estimate[key] for key in ("value", "low", "high"))
            if value is None:
                ax.text(0.5, row, "not defined", transform=ax.get_yaxis_transform(), ha="center", va="center")
                continue
            error = None if low is None or high is None else [[max(0.0, value - low)], [max(0.0, high - value)]]
            ax.errorbar(value, row, xerr=error, fmt="o", color="#5790fc", markersize=5, capsize=2, clip_on=False)
        ax.set_yticks(range(len(categories)), [_words(name) for name in categories])
        ax.tick_params(axis="y", which="minor", left=False, right=False)
        ax.set_ylim(len(categories) - 0.4, -0.6)
        ax.margins(x=0.25)
        known = [e["value"] for e in categories.values() if e["value"] is not None]
        left, right = ax.get_xlim()
        right = min(right, max([1.0, *known]))  # negative weights can lift an AUC above one
        ax.set_xlim(left, right)
        for row, value in enumerate(e["value"] for e in categories.values()):
            if value is not None:
                side = "right" if right - value < 0.06 * (right - left) else "center"
                ax.annotate(f"{value:.3f}", (value, row), (0, 6), textcoords="offset points", ha=side, fontsize=7.5)
        ax.set_xlabel("AUC, signal against the rest")
    return Plot(
        name="category_auc",
        section="performance",
        title="AUC by category",
        caption="Weighted AUC of the ensemble on the test events of each category, with 68% intervals.",
        figure=figure,
        numbers={name: dict(estimate) for name, estimate in categories.items()},
    )


def regression(name: str, variable: Variable, predicted: Floats, truth: Floats, weight: FloatArray) -> Plot:
    """Draw the mean and the spread of predicted less true values, in bins of the true one.

    Args:
        name: Name of the target.
        variable: The true value.
        predicted: float [N].
        truth: float [N].
        weight: float64 [N], signed.

    Returns:
        A plot whose ``numbers`` hold ``edges``, and per bin ``bias`` and ``resolution``, with ``None`` where they are
        not defined.
    """
    values = truth.astype(np.float64)
    edges = _edges([values], 12)
    rest = predicted.astype(np.float64) - values
    sums = [_histogram(values, weight * rest**power, edges)[0] for power in range(3)]
    total = np.where(sums[0] > 0, sums[0], np.nan)
    bias = sums[1] / total
    squares = sums[2] / total - bias**2
    resolution = np.sqrt(np.where(squares >= 0, squares, np.nan))
    middle = (edges[1:] + edges[:-1]) / 2
    with figure_of(_SMALL, margins=_STACK_MARGINS) as (figure, ax):
        ax.axhline(0, color="#94a4a2", linewidth=0.8)
        ax.errorbar(
            middle, bias, xerr=np.diff(edges) / 2, yerr=resolution, fmt="o", color="#5790fc", markersize=4, capsize=2
        )
        ax.set_xlabel(variable.axis)
        ax.set_ylabel("predicted - true" + (f" [{_text(variable.unit)}]" if variable.unit else ""))

    def listed(column: FloatArray) -> list[float | None]:
        return [float(x) if np.isfinite(x) else None for x in column]

    return Plot(
        name=f"regression_{name}",
        section="performance",
        title=f"Bias and resolution of {variable.heading}",
        caption="Mean (points) and standard deviation (bars) of predicted less true values of the ensemble on test "
        "events, in bins of the true value; the outer bins hold what lies beyond the axis.",
        figure=figure,
        numbers={"edges": edges.tolist(), "bias": listed(bias), "resolution": listed(resolution)},
    )


@contextmanager
def figure_of(
    size: tuple[float, float], rows: tuple[int, ...] = (1,), margins: Margins | None = None, columns: int = 1
) -> Iterator[tuple[Figure, Any]]:
    """A figure in the style of this module; its axes, or one per row with a common x axis, or several side by side.

    Fixed margins take half the time of a layout that matplotlib works out, which figures with long tick labels need.

    Args:
        size: Width and height in inches.
        rows: Relative heights of the axes.
        margins: Inches left, below, right and above; by default they follow from the labels.
        columns: Axes side by side, with the left margin before each.
    """
    with mpl.rc_context(parameters()):
        figure = Figure(figsize=size, layout=None if margins else "compressed")
        if margins:
            (width, height), (left, bottom, right, top) = size, margins
            figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height, hspace=0.06)
            if columns > 1:
                own = (width - right - left * columns) / columns  # of each, in inches
                figure.subplots_adjust(wspace=left / own)
        yield figure, figure.subplots(len(rows), columns, sharex=len(rows) > 1, gridspec_kw={"height_ratios": rows})
        if not margins:
            # Laid out once and for all: every further pass would move the axes a little.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")


@contextmanager
def blank_figure(size: tuple[float, float]) -> Iterator[tuple[Figure, Axes]]:
    """A figure in the style of this module with axes that nobody sees, in inches from its lower left corner.

    Args:
        size: Width and height in inches.
    """
    with mpl.rc_context(parameters()):
        figure = Figure(figsize=size)
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set_xlim(0, size[0])
        ax.set_ylim(0, size[1])
        ax.set_axis_off()
        yield figure, ax


def _matrix_axes(ax: Axes) -> None:
    ax.minorticks_off()
    ax.tick_params(which="both", length=0)


def _step(ax: Axes, heights: FloatArray, edges: FloatArray, group: Group, text: str) -> None:
    """A histogram as a step; the signal with a light fill, so that it is found first."""
    if group.signal:
        ax.stairs(heights, edges, fill=True, color=group.color, alpha=0.15)
    mplhep.histplot(
        heights, edges, yerr=False, histtype="step", ax=ax, color=group.color, linewidth=1.3, label=text, flow="none"
    )


def _error_band(ax: Axes, heights: FloatArray, error: FloatArray, edges: FloatArray, group: Group) -> None:
    ax.stairs(heights + error, edges, baseline=heights - error, fill=True, color=group.color, alpha=0.3, linewidth=0)


def _histogram(values: FloatArray, weight: FloatArray, edges: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Sums of weights and of their squares per bin; what lies beyond the edges goes to the outer bins."""
    bins = len(edges) - 1
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)
    return _sums(place, weight, bins)


def _sums(place: npt.NDArray[np.intp], weight: FloatArray, bins: int) -> tuple[FloatArray, FloatArray]:
    total: FloatArray = np.bincount(place, weight, bins).astype(np.float64)
    variance: FloatArray = np.bincount(place, weight**2, bins).astype(np.float64)
    return total, variance


def _edges(samples: Sequence[FloatArray], bins: int) -> FloatArray:
    """Bins that show the bulk of all samples, each of which counts the same.

    Whole numbers get a bin each where their range allows it; else bins reach from the 0.5% to the 99.5% quantile.
    """
    filled = [s for s in samples if len(s)]
    if not filled:
        return np.array([0.0, 1.0])
    values = np.concatenate(filled)
    low, high = float(values.min()), float(values.max())
    if high - low <= 40 and np.array_equal(values, np.rint(values)):
        return np.arange(low - 0.5, high + 1.0)
    share = np.concatenate([np.full(len(s), 1 / len(s)) for s in filled])
    low, high = map(float, np.quantile(values, [0.005, 0.995], weights=share, method="inverted_cdf"))
    if not high - low > 1e-6 * max(abs(low), abs(high)):
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


def _whole(edges: FloatArray) -> bool:
    """Whether each bin holds one whole number."""
    return bool(np.all(np.diff(edges) == 1) and edges[0] % 1 == 0.5)


def _whole_ticks(ax: Axes, edges: FloatArray) -> None:
    """Ticks at whole numbers only, at each of them if they are few, where bins hold one whole number each."""
    if not _whole(edges):
        return
    ax.tick_params(axis="x", which="minor", bottom=False, top=False)
    if len(edges) <= 16:
        ax.set_xticks((edges[:-1] + 0.5).tolist())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _per_bin(quantity: str, edges: FloatArray, unit: str) -> str:
    """Axis label of a histogram: the quantity per bin width, or alone where bins hold whole numbers."""
    if _whole(edges) and not unit:
        return quantity
    return f"{quantity} / {edges[1] - edges[0]:.3g}" + (f" {_text(unit)}" if unit else "")


def _plain(text: str) -> str:
    r"""Text without mathematics, for headings: ``$p_\mathrm{T}^{\ell_1}$`` becomes p_T^ℓ₁."""
    parts = text.split("$")
    if len(parts) % 2 == 0:
        return text
    for i in range(1, len(parts), 2):
        math = re.sub(r"\\([A-Za-z]+)", lambda match: _symbol(match[1]), parts[i])
        bare = re.sub(r"[{}]|\\[^A-Za-z]", "", math)
        parts[i] = re.sub(r"_(\d)", lambda match: chr(ord("₀") + int(match[1])), bare)
    return " ".join("".join(parts).split())


def _symbol(command: str) -> str:
    """Character of a command of mathematics, nothing for those that change the font or the spacing."""
    if command in _SYMBOLS:
        return _SYMBOLS[command]
    case = "CAPITAL" if command[0].isupper() else "SMALL"
    try:
        return unicodedata.lookup(f"GREEK {case} LETTER {command.removeprefix('var').upper()}")
    except KeyError:
        return ""


def _text(text: str) -> str:
    """Text that matplotlib can draw: math that it does not understand is shown as it was written."""
    if "$" in text:
        try:
            MathTextParser("path").parse(text)
        except ValueError:
            return text.replace("$", r"\$")
    return text


def _words(name: str) -> str:
    return name.replace("_", " ")


def _percent(fraction: float) -> str:
    if 0 < fraction < 0.01:
        return "< 1%"
    return f"{100 * min(fraction, 0.99 if fraction < 1 else 1.0):.0f}%"


def _fraction(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None


def _p_value(p: float) -> str:
    return f"{p:.2f}" if p >= 0.005 else f"{p:.0e}" if p > 1e-99 else "< 1e-99"


def _interval(auc: Mapping[str, Any]) -> str:
    if auc["value"] is None:
        return "not defined"
    if auc["low"] is None or auc["high"] is None:
        return f"{auc['value']:.3f}"
    return f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]"


def _palette(count: int) -> list[str]:
    """Petroff's sequence of 6, 8 or 10 colours, from the start again after the tenth."""
    sequence = mpl.color_sequences[f"petroff{next((n for n in (6, 8, 10) if count <= n), 10)}"]
    return [mpl.colors.to_hex(sequence[i % len(sequence)]) for i in range(count)]


def _hues(count: int) -> list[str]:
    """Colours that can't be taken for grey: Petroff's without his greys, or the rainbow where these do not suffice."""
    for n in (6, 8, 10):
        sequence = [mpl.colors.to_hex(color) for color in mpl.color_sequences[f"petroff{n}"]]
        hues = [c for c in sequence if mpl.colors.rgb_to_hsv(mpl.colors.to_rgb(c))[1] > 0.2]
        if count <= len(hues):
            return hues[:count]
    return [mpl.colors.to_hex(color) for color in mpl.colormaps["turbo"](np.linspace(0.02, 0.98, count))]


def _colors(signal: Sequence[bool]) -> list[str]:
    """A colour for each group: the third of the palette, a red, for the first signal, the others in their order."""
    palette = _palette(max(len(signal), 3))
    red = palette.pop(2)
    first = signal.index(True) if True in signal else -1
    others = iter(palette)
    return [red if i == first else next(others) for i in range(len(signal))]
