"""PruneNetworks: what it costs to keep fewer weights or units. (`Prune` is about the store.)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import law
import luigi

from analysis.config import Configuration
from analysis.errors import UserError
from models.settings import Pruning
from workflow.base import Given
from workflow.execution.executor import say
from workflow.parameters import ChoiceParameter
from workflow.store import write_json
from workflow.tasks.beside import PAGE, Judged, JudgedSlice, JudgingTask, load_judged, write_page
from workflow.tasks.train import TrainSlice, plan_of, slices_of, training_events

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


class PruneNetworks(JudgingTask):
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
    def published(self) -> str:
        return f"network_pruning-{self.kind}"

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
        return super().requires()

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

    @staticmethod
    def compute(settings: PruneNetworksSlice, given: Given, out: Path) -> None:
        from analysis.importance import text
        from analysis.importance_plots import curve
        from analysis.page import Table

        events = load_judged(given.made, settings.events)
        (out / "onnx").mkdir()
        found, speeds = prune_networks(settings, events, out / "onnx")
        write_json(out / "pruning.json", found)
        write_json(out / "speeds.json", speeds)
        names = ("parameters", "non_zero", "onnx_bytes")
        headings = ["share", "AUC out of fold", "AUC lost", "parameters", "not zero", "ONNX, bytes", "events/s"]
        cells = [
            [f"{p['share']:g}", text(p["auc"]), text(p["auc_lost"]), *(f"{p[n]:,}" for n in names), f"{speed:,.0f}"]
            for p, speed in zip(found["points"], speeds["events_per_second"], strict=True)
        ]
        unit = "weights" if found["kind"] == "magnitude" else "units of each hidden layer"
        points = [{"x": 1 - p["share"], "auc": p["auc"], "auc_lost": p["auc_lost"]} for p in found["points"]]
        write_page(
            out,
            settings.events,
            f"smaller networks, {found['kind']} pruning",
            NOTE,
            [Table("Networks before (share 0) and after", headings, cells)],
            [curve("share_kept", "Cost of pruning", f"share of the {unit} that is kept", NOTE, points)],
        )


def prune_networks(settings: PruneNetworksSlice, events: Judged, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `pruning.json` and `speeds.json` hold; writes an ONNX file for each share.

    Raises:
        UserError: A share that leaves no network.
    """
    from models.export import events_per_second, export_onnx
    from models.pruning import sizes
    from models.training import best_device, prune

    plans = [plan_of(each, events.pool) for each in settings.networks]
    try:
        every = [
            replace(plan, settings=replace(plan.settings, pruning_share=share))
            for share in settings.shares
            for plan in plans
        ]
        members = list(events.ensemble.members) * len(settings.shares)
        training = training_events(events.pool, settings.networks[0])
        pruned = prune(training, every, members, progress=say, device=best_device())
    except ValueError as error:
        raise UserError(f"--shares: {error}") from error
    shares, points, speeds = (0.0, *settings.shares), [], []
    for share, own in zip(shares, (events.ensemble, *events.ensembles(pruned, len(plans))), strict=True):
        path = folder / f"share_{share:g}.onnx"
        export_onnx(own, path, {"analysis": settings.events.name, "signal": settings.events.signal})
        points.append({
            "share": share,
            "hidden": list(own.members[0].model.hidden),
            **events.merit(own),
            **sizes(own.members),
            "onnx_bytes": path.stat().st_size,
        })  # fmt: skip
        speeds.append(events_per_second(path, *events.inputs))
    first = settings.networks[0].training
    found = {
        **events.about,
        "kind": first.pruning,
        "rounds": first.pruned["pruning_rounds"],
        "fine_tuning": first.pruned["fine_tuning"],
        "points": points,
    }
    return found, {"events_per_second": speeds, "shares": list(shares)}
