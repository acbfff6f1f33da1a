"""PruneNetworks: what it costs to keep fewer weights or units. (`Prune` is about the store.)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import law
import luigi

from analysis.config import Configuration
from analysis.errors import UserError
from models.settings import Pruning
from workflow.base import Given, Task
from workflow.execution.executor import say
from workflow.parameters import ChoiceParameter
from workflow.store import write_json
from workflow.tasks.export import load_ensemble
from workflow.tasks.folds import PrepareFolds
from workflow.tasks.judging import (
    PAGE,
    Judged,
    JudgedSlice,
    load_judged,
    require_judged,
    scheme_note,
    show_page,
    write_page,
)
from workflow.tasks.train import TrainFolds, TrainSlice, plan_of, slices_of, training_events

if TYPE_CHECKING:
    from analysis.pool import Pool

NOTE = (
    "The networks of the analysis are pruned as training.pruning says, and fine-tuned: a network of this table is, to "
    "the last bit, what training has with that share. The speed is that of all networks in one ONNX file, by "
    "onnxruntime on one thread of this machine."
)


@dataclass(frozen=True)
class PruneNetworksSlice:
    """How networks are pruned."""

    events: JudgedSlice
    shares: tuple[float, ...]
    networks: tuple[TrainSlice, ...]


class PruneNetworks(Task[PruneNetworksSlice]):
    """Prune the networks more and more: cost in AUC, sizes and speeds, as a page of its own."""

    exclude_index = False
    libraries = ("numpy", "torch", "onnx")

    kind = ChoiceParameter(
        default="magnitude",
        choices=("magnitude", "structured"),
        option="--kind",
        description="magnitude (single weights) or structured (whole units); default: magnitude",
    )
    shares = law.CSVParameter(
        cls=luigi.FloatParameter,
        default=(0.5, 0.8, 0.9),
        description="of the weights or units that are taken away, separated by commas; default: 0.5,0.8,0.9",
    )
    rounds = luigi.IntParameter(default=1, description="of pruning, each with fine-tuning after it; default: 1")
    fine_tuning = luigi.IntParameter(default=5, description="epochs after each round; default: 5")

    @property
    def subject(self) -> str:
        return str(self.kind)

    def requires(self) -> Any:
        if self.plan.config.training.pruning != "none":
            raise UserError(
                f"training.pruning is {self.plan.config.training.pruning}: PruneNetworks begins with networks that are "
                "not pruned. Run it with training.pruning: none, and then choose a share."
            )
        if self.plan.config.model.missing == "separate":
            raise UserError(
                "model.missing is separate: each network is calibrated, which pruning would spoil. Run PruneNetworks "
                "with another value, such as learned."
            )
        if self.plan.config.training.snapshots:
            raise UserError(
                f"training.snapshots is {self.plan.config.training.snapshots}: snapshots are not pruned. Run "
                "PruneNetworks with training.snapshots: 0."
            )
        return {
            **require_judged(self),
            "pool": PrepareFolds.req(self),
            "networks": TrainFolds.req(self, branches=()),
        }

    def slice(self, config: Configuration) -> PruneNetworksSlice:
        kind: Pruning = "structured" if self.kind == "structured" else "magnitude"
        try:
            own = tuple(
                replace(
                    each,
                    training=replace(
                        each.training,
                        pruning=kind,
                        pruning_share=min(self.shares),
                        pruning_rounds=self.rounds,
                        fine_tuning=self.fine_tuning,
                    ),
                )
                for each in slices_of(config)
            )
        except ValueError as error:
            raise UserError(f"--shares, --rounds or --fine-tuning: {error}") from error
        return PruneNetworksSlice(JudgedSlice.of(config), tuple(self.shares), own)

    def files(self) -> Sequence[str]:
        return ("pruning.json", "speeds.json", "onnx/", *PAGE)

    def conclude(self) -> None:
        show_page(self)

    @staticmethod
    def compute(settings: PruneNetworksSlice, given: Given, out: Path) -> None:
        from analysis.importance import text
        from analysis.importance_plots import curve
        from analysis.page import Table
        from analysis.pool import load_pool

        events = load_judged(given.made, settings.events)
        pool = load_pool(given.made["pool"].path("pool"))
        (out / "onnx").mkdir()
        ensemble = load_ensemble(given.made["networks"], settings.events.combination, ratios=True)
        found, speeds = prune_networks(settings, events, ensemble, pool, out / "onnx")
        write_json(out / "pruning.json", found)
        write_json(out / "speeds.json", speeds)
        names = ("parameters", "non_zero", "onnx_bytes")
        headings = ["share", "AUC out of fold", "AUC lost", "parameters", "not zero", "ONNX, bytes", "events/s"]
        cells = [
            [f"{p['share']:g}", text(p["auc"]), text(p["auc_lost"]), *(f"{p[n]:,}" for n in names), f"{speed:,.0f}"]
            for p, speed in zip(found["points"], speeds["events_per_second"], strict=True)
        ]
        unit = "weights" if found["kind"] == "magnitude" else "units of each hidden layer"
        points = [{"left": 1 - point["share"], "auc": point["auc"]} for point in found["points"]]
        write_page(
            out,
            f"{settings.events.name}: smaller networks, {found['kind']} pruning",
            [NOTE, scheme_note(settings.events)],
            [Table("Networks before (share 0) and after", headings, cells)],
            [curve("share_kept", f"share of the {unit} that is kept", NOTE, points)],
        )


def prune_networks(
    settings: PruneNetworksSlice, events: Judged, ensemble: Any, pool: Pool, folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `pruning.json` and `speeds.json` hold; writes an ONNX file for each share.

    Raises:
        UserError: A share that leaves no network.
    """
    from models.ensemble import Ensemble
    from models.export import events_per_second, export_onnx
    from models.importance import out_of_fold
    from models.pruning import sizes
    from models.training import best_device, prune

    plans = [plan_of(each, pool) for each in settings.networks]
    try:
        every = [
            replace(plan, settings=replace(plan.settings, pruning_share=share))
            for share in settings.shares
            for plan in plans
        ]
        members = list(ensemble.members) * len(settings.shares)
        pruned = prune(training_events(pool, settings.networks[0]), every, members, progress=say, device=best_device())
    except ValueError as error:
        raise UserError(f"--shares: {error}") from error
    values, present = events.matrix(pool.features)
    judge = events.judge(out_of_fold(ensemble, values, present, events.folds))
    points, speeds = [], []
    for place, share in enumerate((0.0, *settings.shares)):
        own = ensemble
        if place:
            own = Ensemble(tuple(pruned[(place - 1) * len(plans) : place * len(plans)]), ensemble.combination)
        scores = out_of_fold(own, values, present, events.folds)
        path = folder / f"share_{share:g}.onnx"
        export_onnx(own, path, {"analysis": settings.events.name, "signal": settings.events.signal})
        lost = judge.drop([scores])
        points.append({
            "share": share,
            "hidden": list(own.members[0].model.hidden),
            **judge.merit(scores),
            "auc_lost": lost["auc"],
            "log_loss_added": lost["log_loss"],
            **sizes(own.members),
            "onnx_bytes": path.stat().st_size,
        })  # fmt: skip
        speeds.append(events_per_second(path, values, present))
    first = settings.networks[0].training
    found = {
        "analysis": settings.events.name,
        "kind": first.pruning,
        "rounds": first.pruned["pruning_rounds"],
        "fine_tuning": first.pruned["fine_tuning"],
        "signal": settings.events.signal,
        "scheme": settings.events.scheme,
        "events": len(events.table),
        "points": points,
    }
    return found, {"events_per_second": speeds, "shares": [0.0, *settings.shares]}
