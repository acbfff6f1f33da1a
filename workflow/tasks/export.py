"""ExportEnsemble: all networks in one ONNX file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.config import Configuration
from models.settings import Combination
from workflow.base import Given, Made, Task
from workflow.tasks.folds import PrepareFolds
from workflow.tasks.train import TrainFolds

ONNX_TOLERANCE = 1e-5
"""Largest difference between the scores of the ONNX file and those of PyTorch."""


@dataclass(frozen=True)
class ExportSlice:
    """What the file says of itself, and how its networks are combined."""

    name: str
    signal: str
    combination: Combination


class ExportEnsemble(Task[ExportSlice]):
    """Write the ensemble as one ONNX file, checked against PyTorch over all events of the pool."""

    exclude_index = False
    libraries = ("torch", "onnx")

    def requires(self) -> Any:
        return {"pool": PrepareFolds.req(self), "networks": TrainFolds.req(self, branches=())}

    def slice(self, config: Configuration) -> ExportSlice:
        return ExportSlice(config.name, config.classes.signal, config.training.combination)

    def files(self) -> Sequence[str]:
        return ("ensemble.onnx",)

    @staticmethod
    def compute(settings: ExportSlice, given: Given, out: Path) -> None:
        import numpy as np

        from analysis.pool import load_pool
        from models.export import check_onnx, export_onnx

        ensemble = load_ensemble(given.made["networks"], settings.combination)
        pool = load_pool(given.made["pool"].path("pool"))
        metadata = {"analysis": settings.name, "signal": settings.signal, "fingerprint": given.fingerprint}
        export_onnx(ensemble, out / "ensemble.onnx", metadata)
        difference = check_onnx(
            out / "ensemble.onnx", ensemble, pool.values, pool.present, np.asarray(pool.folds, dtype=np.int64)
        )
        if not difference < ONNX_TOLERANCE:
            raise RuntimeError(f"ensemble.onnx differs from PyTorch by up to {difference}")


def load_ensemble(networks: Mapping[int, Made], combination: Combination, *, ratios: bool = False) -> Any:
    """Read the networks of all branches of `TrainFolds`, their snapshots included.

    Args:
        networks: What the branches have made.
        combination: How the networks become one.
        ratios: Whether to read what `models.ensemble.load_member` reads on demand.
    """
    from models.ensemble import Ensemble, load_member

    members = [load_member(branch.path("network.safetensors"), ratios=ratios) for branch in networks.values()]
    return Ensemble(tuple(members), combination)
