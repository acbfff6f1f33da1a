"""ExportEnsemble: all networks in one ONNX file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.config import Configuration
from models.settings import Combination
from workflow.base import Given, Made, Task
from workflow.tasks.folds import PrepareFolds
from workflow.tasks.train import TrainFolds

if TYPE_CHECKING:
    from models.buckets import Buckets

ONNX_TOLERANCE = 1e-5
"""Largest difference between the scores of the ONNX file and those of PyTorch."""
WITHOUT_NUMBERS = ("file", "entry")
"""What makes an event unique within its sample where the analysis has no identity columns."""


@dataclass(frozen=True)
class ExportSlice:
    """What the file says of itself, how its networks are combined, and how events are given to their folds."""

    name: str
    signal: str
    combination: Combination
    identity: tuple[str, ...]
    samples: tuple[str, ...]
    folds: int
    salt: str


class ExportEnsemble(Task[ExportSlice]):
    """Write the ensemble as one ONNX file, checked against PyTorch over all events of the pool."""

    exclude_index = False
    libraries = ("torch", "onnx")

    def requires(self) -> Any:
        return {"pool": PrepareFolds.req(self), "networks": TrainFolds.req(self, branches=())}

    def slice(self, config: Configuration) -> ExportSlice:
        return ExportSlice(
            name=config.name,
            signal=config.classes.signal,
            combination=config.training.combination,
            identity=tuple(config.identity.columns) or WITHOUT_NUMBERS,
            samples=tuple(dict.fromkeys(config.sample_of(name) for name in config.training_datasets())),
            folds=config.folds.count,
            salt=str(config.folds.salt),
        )

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
        export_onnx(ensemble, out / "ensemble.onnx", metadata, buckets_of(settings))
        check_folds(out / "ensemble.onnx", settings)
        difference = check_onnx(
            out / "ensemble.onnx", ensemble, pool.values, pool.present, np.asarray(pool.folds, dtype=np.int64)
        )
        if not difference < ONNX_TOLERANCE:
            raise RuntimeError(f"ensemble.onnx differs from PyTorch by up to {difference}")


def buckets_of(settings: ExportSlice) -> Buckets:
    """How the file gives events to folds."""
    from analysis.splitting import key_of, purpose_key
    from models.buckets import Buckets

    keys = {sample: key_of(sample) for sample in settings.samples}
    return Buckets(settings.identity, keys, purpose_key("fold", settings.salt), settings.folds)


def check_folds(path: Path, settings: ExportSlice, events: int = 10_000) -> None:
    """Compare the folds that the file gives to events of any identity with those of the workflow.

    Raises:
        RuntimeError: One differs.
    """
    import numpy as np

    from analysis.splitting import event_identity, fold_of, key_of
    from models.export import fold_onnx

    random, limits, samples = np.random.default_rng(1), np.iinfo(np.int64), settings.samples
    shape = (len(samples), events)
    columns = {name: random.integers(limits.min, limits.max, shape) for name in settings.identity}
    keys = np.repeat([key_of(sample) for sample in samples], events)
    found = fold_onnx(path, keys, {name: column.ravel() for name, column in columns.items()})
    for number, (sample, folds) in enumerate(zip(samples, found.reshape(shape), strict=True)):
        identity = event_identity(sample, [column[number] for column in columns.values()])
        if not np.array_equal(folds, fold_of(identity, settings.folds, settings.salt)):
            raise RuntimeError(f"{path} gives events of {sample} to other folds than the workflow does")


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
