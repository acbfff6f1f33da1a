"""PlotResults: the pictures of the report, and their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.config import Configuration
from workflow.base import Task, write_json
from workflow.store import read_json
from workflow.tasks.evaluate import EvaluateEnsemble, EvaluateSlice, load_scored, require_scored
from workflow.tasks.export import load_ensemble
from workflow.tasks.train import TrainFolds


@dataclass(frozen=True)
class PlotSlice:
    """What is drawn, and how."""

    scored: EvaluateSlice
    titles: dict[str, str]
    colors: dict[str, str | None]
    classes: dict[str, tuple[str, ...]]
    spectators: tuple[str, ...]
    blind_above: float | None
    luminosity: float | None


class PlotResults(Task):
    """Draw features, learning curves, ROC, scores and yields; each plot's numbers stand beside it as JSON."""

    exclude_index = False
    libraries = ("numpy",)

    def requires(self) -> Any:
        return {
            **require_scored(self, ("features", "factors", "spectators")),
            "networks": TrainFolds.req(self),
            "evaluation": EvaluateEnsemble.req(self),
        }

    def slice(self, config: Configuration) -> PlotSlice:
        return PlotSlice(
            scored=EvaluateSlice.of(config, (*config.feature_names, *config.spectators)),
            titles={name: process.title for name, process in config.processes.items()},
            colors={name: process.color for name, process in config.processes.items()},
            classes=dict(config.classes.processes),
            spectators=config.spectators,
            blind_above=config.outputs.blind_above,
            luminosity=config.weights.luminosity,
        )

    def outside(self) -> Any:
        # Labels and units stand in physics.py; the columns' own identities leave them out.
        return {name: self.plan.label_code(name) for name in self.settings.scored.table.columns}

    def files(self) -> Sequence[str]:
        return ("plots/",)

    def compute(self, out: Path) -> None:
        from analysis.plots import Appearance, PlotSettings, Scores, Variable, groups, make_plots

        s: PlotSlice = self.settings
        e = s.scored.evaluation
        requirements = self.requires()
        evaluation = read_json(requirements["evaluation"].path("evaluation.json"))
        ensemble = load_ensemble(requirements["networks"])
        events, scales = load_scored(requirements, s.scored)
        processes, classes = groups(Appearance(s.titles, s.colors, e.collision, s.classes, e.signal))

        def variables(names: Sequence[str]) -> tuple[Variable, ...]:
            functions = [getattr(self.plan.analysis.physics, name) for name in names]
            return tuple(
                Variable(n, getattr(f, "label", n), getattr(f, "unit", ""))
                for n, f in zip(names, functions, strict=True)
            )

        settings = PlotSettings(
            processes=processes,
            classes=classes,
            features=variables(evaluation["features"]),
            spectators=variables(s.spectators),
            scheme=e.scheme,
            bins=e.bins,
            blind_above=s.blind_above,
            luminosity=s.luminosity,
        )
        plots = make_plots(
            settings,
            events.table,
            Scores(events.ensemble, network_scores(ensemble, events, e.signal), events.fold),
            test_scale={name: scale or 0.0 for name, scale in scales.test.items()},
            metrics=evaluation["metrics"],
            histories=[history(member) for member in ensemble.members],
            categories={name: c["auc"]["weighted"] for name, c in evaluation["categories"].items()},
        )
        folder = out / "plots"
        folder.mkdir()
        for plot in plots:
            (folder / f"{plot.name}.png").write_bytes(plot.png())
            write_json(folder / f"{plot.name}.json", plot.numbers)
        write_json(
            folder / "index.json",
            [{"name": p.name, "section": p.section, "title": p.title, "caption": p.caption} for p in plots],
        )


def network_scores(ensemble: Any, events: Any, signal: str) -> Any:
    """The signal score of the network of each fold (mean over its members) for all events: float32 [K, N]."""
    import numpy as np

    from models.ensemble import predict

    values, present = events.table.matrix(ensemble.signature.features)
    scores = predict(ensemble, values, present)[:, :, ensemble.signature.classes.index(signal)]
    return np.stack([scores[ensemble.folds == fold].mean(axis=0) for fold in np.unique(ensemble.folds)])


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
    }
