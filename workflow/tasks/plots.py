"""PlotResults: the pictures of the report, and their numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import luigi

from analysis.config import Configuration
from models.settings import Combination
from workflow.base import Given, Task
from workflow.store import read_json, write_json
from workflow.tasks.evaluate import EvaluateEnsemble, ScoredSlice, load_scored, regressed, require_scored
from workflow.tasks.export import load_ensemble
from workflow.tasks.train import TrainFolds

if TYPE_CHECKING:
    from analysis.plots import Plot
    from analysis.regression import Regressed
    from analysis.splitting import Scheme
    from analysis.style import Style


@dataclass(frozen=True)
class PlotSlice:
    """What is drawn, and how."""

    scored: ScoredSlice
    combination: Combination
    scheme: Scheme
    bins: int
    titles: dict[str, str]
    colors: dict[str, str | None]
    classes: dict[str, tuple[str, ...]]
    spectators: tuple[str, ...]
    targets: dict[str, Regressed]
    blind_above: float | None
    luminosity: float | None
    style: Style


class PlotResults(Task[PlotSlice]):
    """Draw features, learning curves, ROC, scores and yields; each plot's numbers stand beside it as JSON."""

    exclude_index = False
    libraries = ("numpy",)

    show = luigi.BoolParameter(
        default=False,
        significant=False,
        description="print the path of every plot; default: False",
    )

    def conclude(self) -> None:
        """Say where the plots are, one by one if asked."""
        if not self.show:
            super().conclude()
            return
        folder = self.path("plots")
        for plot in read_json(folder / "index.json"):
            sys.stdout.write(f"{folder / plot['name']}.pdf  {plot['title']}\n")
        sys.stdout.flush()

    def requires(self) -> Any:
        return {
            **require_scored(self, ("features", "factors", "spectators", "truth")),
            "networks": TrainFolds.req(self, branches=()),
            "evaluation": EvaluateEnsemble.req(self),
        }

    def slice(self, config: Configuration) -> PlotSlice:
        from analysis.style import Style

        return PlotSlice(
            scored=ScoredSlice.of(
                config,
                (*config.feature_names, *config.spectators),
                config.target_functions,
            ),
            targets=regressed(config),
            combination=config.training.combination,
            scheme=config.folds.scheme,
            bins=config.outputs.histogram.bins,
            titles={name: config.processes[name].title for name in config.nominal},
            colors={name: config.processes[name].color for name in config.nominal},
            classes=dict(config.classes.processes),
            spectators=config.spectators,
            blind_above=config.outputs.blind_above,
            luminosity=config.weights.luminosity,
            style=Style(config.outputs.style, config.outputs.label),
        )

    def labels(self) -> Iterable[str]:
        # Labels and units stand in physics.py; the columns' own identities leave them out.
        return (*self.settings.scored.table.columns, *self.settings.scored.table.truth)

    def files(self) -> Sequence[str]:
        return ("plots/",)

    @staticmethod
    def compute(settings: PlotSlice, given: Given, out: Path) -> None:
        from analysis.style import styled

        with styled(settings.style):
            write_plots(drawn(settings, given), out / "plots")


def drawn(settings: PlotSlice, given: Given) -> list[Plot]:
    """All plots of the report."""
    from analysis.drawing import network
    from analysis.plots import Appearance, PlotSettings, Scores, Variable, groups, make_plots
    from analysis.reliability_plots import reliability_plot
    from analysis.training_plots import layers_over_epochs, spread_plot

    s = settings
    scores = s.scored.scores
    evaluation = read_json(given.made["evaluation"].path("evaluation.json"))
    ensemble = load_ensemble(given.made["networks"], s.combination)
    events, scales = load_scored(given.made, s.scored)
    processes, classes = groups(Appearance(s.titles, s.colors, scores.collision, s.classes, scores.signal))

    def variables(names: Sequence[str]) -> tuple[Variable, ...]:
        shown = [(name, given.functions[name]) for name in names]
        return tuple(Variable(name, getattr(f, "label", name), getattr(f, "unit", "")) for name, f in shown)

    plot_settings = PlotSettings(
        processes=processes,
        classes=classes,
        features=variables(evaluation["features"]),
        spectators=variables(s.spectators),
        scheme=s.scheme,
        bins=s.bins,
        blind_above=s.blind_above,
        luminosity=s.luminosity,
    )
    histories = [
        history(network) | {"snapshots": snapshots_of(network, ensemble.members)}
        for member in ensemble.members
        if not member.snapshot
        for network in member.parts
    ]
    plots = make_plots(
        plot_settings,
        events.table,
        Scores(events.ensemble, network_scores(ensemble, events, scores.signal), events.fold),
        test_scale={name: scale or 0.0 for name, scale in scales.test.items()},
        metrics=evaluation["metrics"],
        histories=histories,
        categories={name: c["auc"]["weighted"] for name, c in evaluation["categories"].items()},
    )
    plots += [
        regression_plot(name, s.targets, variables([target.function])[0], events, scales)
        for name, target in s.targets.items()
    ]
    layers = layers_of(ensemble.members[0])
    test, signal = (events.table.label >= 0) & events.table.is_test, plot_settings.signal
    over_epochs = layers_over_epochs(histories, [layer["name"] for layer in layers])
    plots += [] if over_epochs is None else [over_epochs]
    plots += [
        reliability_plot(evaluation["reliability"], classes[plot_settings.signal]),
        network(layers),
        spread_plot(
            events.ensemble[test, signal],
            events.spread[test, signal],
            events.table.label[test] == signal,
            events.table.weight[test],
            networks=len(ensemble.members),
        ),
    ]
    return plots


def write_plots(plots: Sequence[Plot], folder: Path) -> None:
    """Write plots as pictures and numbers, with an index."""
    folder.mkdir()
    for plot in plots:
        (folder / f"{plot.name}.png").write_bytes(plot.png())
        (folder / f"{plot.name}.pdf").write_bytes(plot.pdf())
        write_json(folder / f"{plot.name}.json", plot.numbers)
    write_json(
        folder / "index.json",
        [{"name": p.name, "section": p.section, "title": p.title, "caption": p.caption} for p in plots],
    )


def regression_plot(name: str, targets: Mapping[str, Regressed], variable: Any, events: Any, scales: Any) -> Any:
    """What the ensemble makes of one target on test events."""
    import numpy as np

    from analysis.plots import regression
    from analysis.regression import places

    table, target, place = events.table, targets[name], places(targets)[name]
    truth = table.columns[target.function]
    rows = (table.label >= 0) & table.is_test & ~np.ma.getmaskarray(truth)
    return regression(
        name,
        variable,
        events.predicted["ensemble"][rows, place][:, target.central],
        np.ma.getdata(truth)[rows],
        (table.weight * scales.per_event(table))[rows],
    )


def network_scores(ensemble: Any, events: Any, signal: str) -> Any:
    """The signal score of the networks of each fold together for all events: float32 [K, N]."""
    import numpy as np

    from models.ensemble import predict, routed

    values, present = events.table.matrix(ensemble.signature.features)
    probabilities = predict(ensemble, values, present)[:, :, : len(ensemble.signature.classes)]
    chosen = ensemble.signature.classes.index(signal)
    ways = (ensemble.combination, ensemble.shares)
    return np.stack(
        [
            routed(probabilities, ensemble.folds, np.full(len(values), fold), *ways)[:, chosen]
            for fold in np.unique(ensemble.folds)
        ]
    )


def layers_of(member: Any) -> list[dict[str, Any]]:
    """The layers of a network as they are drawn, each with the number of its trained parameters."""
    from models.networks import Classifier

    classifier = Classifier(member.model, member.signature)
    sizes = {parameter.name: parameter.size for parameter in classifier.parameters if parameter.trained}
    return [
        {**asdict(layer), "count": sum(sizes.get(name, 0) for name in layer.parameters)} for layer in classifier.layers
    ]


def snapshots_of(member: Any, networks: Sequence[Any]) -> list[int]:
    """The epochs of the snapshots of a member's training among all networks."""
    return [n.best_epoch for n in networks if n.snapshot and (n.fold, n.index) == (member.fold, member.index)]


def history(member: Any) -> dict[str, Any]:
    """The learning curve of one network."""
    return {
        "fold": member.fold,
        "member": member.index,
        "epoch": list(range(1, len(member.history.training_loss) + 1)),
        "training_loss": list(member.history.training_loss),
        "validation_loss": list(member.history.validation_loss),
        "learning_rate": list(member.history.learning_rate),
        "best_epoch": member.best_epoch,
        "diagnostics": member.history.diagnostics,
    }
