"""One ONNX file for the whole ensemble: raw features in, class probabilities out.

Preprocessing, learned absent values, presence inputs, all networks, their means and the routing by fold are inside,
so that what reads the file needs no knowledge of the training.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.ensemble import Ensemble, combine, predict

OPSET = 20
BLOCK = 4096


class _Routed(nn.Module):
    """The ensemble as a torch module with the inputs and outputs of the file."""

    folds: Tensor

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.classifier, views, tables = ensemble.stacked()
        self.views = nn.ParameterDict({name: nn.Parameter(view, False) for name, view in views.items()})
        self.register_buffer("folds", torch.from_numpy(ensemble.folds))
        self.names = list(tables)
        for number, table in enumerate(tables.values()):
            self.register_buffer(f"table{number}", table)

    def forward(self, features: Tensor, fold: Tensor) -> tuple[Tensor, Tensor]:
        present = ~torch.isnan(features).unsqueeze(0)  # (1, N, F)
        views = {parameter.name: self.views[parameter.name] for parameter in self.classifier.parameters}
        statistics = {name: getattr(self, f"table{number}") for number, name in enumerate(self.names)}
        probabilities = self.classifier.probabilities(views, statistics, features.unsqueeze(0), present)  # (M, N, C)
        chosen = (fold.unsqueeze(0) == self.folds.unsqueeze(1)).to(probabilities.dtype)  # (M, N)
        # Without a network of that fold 0 / 0 makes the routed score NaN: no score is better than a wrong one.
        routed = (probabilities * chosen.unsqueeze(-1)).sum(dim=0) / chosen.sum(dim=0).unsqueeze(-1)  # (N, C)
        return routed, probabilities.mean(dim=0)  # (N, C) each


def export_onnx(ensemble: Ensemble, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write the ensemble as one self-contained ONNX file.

    Inputs are ``features``, float32 ``[N, F]`` in the units of training with NaN where a value is absent, and
    ``fold``, int64 ``[N]``, the fold of each event. Outputs are ``routed`` and ``ensemble``, float32 ``[N, C]``, as
    `models.ensemble.combine` defines them; ``routed`` is NaN for a fold that no network left out. The file's metadata
    hold ``features``, ``feature_objects``, ``classes`` and ``folds`` as JSON lists, ``prior``, and what
    the caller adds.

    Args:
        ensemble: The networks.
        path: The file, overwritten if it exists.
        metadata: Further entries, e.g. the fingerprint.
    """
    import onnx

    module = _Routed(ensemble).eval()
    example = (torch.zeros(2, len(ensemble.signature.features)), torch.zeros(2, dtype=torch.int64))
    batch = torch.export.Dim("events")
    with _quiet():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["features", "fold"],
            output_names=["routed", "ensemble"],
            dynamic_shapes={"features": {0: batch}, "fold": {0: batch}},
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    properties = {
        "features": json.dumps(ensemble.signature.features),
        "feature_objects": json.dumps(ensemble.signature.feature_objects),
        "classes": json.dumps(ensemble.signature.classes),
        "folds": json.dumps(ensemble.folds.tolist()),
        "prior": "equal for all classes",
        "training_precision": " ".join(sorted({member.precision for member in ensemble.members})),
        **metadata,
    }
    onnx.helper.set_model_props(model, properties)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def run_onnx(
    path: str | Path,
    values: npt.NDArray[np.float32],
    present: npt.NDArray[np.bool_],
    folds: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Evaluate an exported file with onnxruntime, on one thread and in bounded blocks.

    Args:
        path: The ONNX file.
        values: Features ``[N, F]``; absent entries may hold anything.
        present: Which values are there, ``[N, F]``.
        folds: The fold of each event, ``[N]``.

    Returns:
        ``routed`` and ``ensemble``, float32 ``[N, C]`` each.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    blocks = []
    for start in range(0, max(1, len(values)), BLOCK):
        part = slice(start, start + BLOCK)
        features = np.where(present[part], values[part], np.float32(np.nan)).astype(np.float32)
        blocks.append(session.run(["routed", "ensemble"], {"features": features, "fold": folds[part]}))
    routed, ensemble = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return routed, ensemble


def check_onnx(
    path: str | Path,
    ensemble: Ensemble,
    values: npt.NDArray[np.float32],
    present: npt.NDArray[np.bool_],
    folds: npt.NDArray[np.int64],
) -> float:
    """Compare an exported file with PyTorch; arguments as `run_onnx`, and what the file was made from.

    Returns:
        The largest absolute difference over all events, classes and both outputs; infinite if the file gives NaN.
    """
    expected = combine(predict(ensemble, values, present), ensemble.folds, folds)  # (N, C) each
    found = run_onnx(path, values, present, folds)
    gaps = [np.abs(theirs - ours).max(initial=0) for theirs, ours in zip(found, expected, strict=True)]
    return float(max(gap if np.isfinite(gap) else np.inf for gap in gaps))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch's exporter says about itself; it is nothing that a user could mend."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", message=".*axis name.*", category=UserWarning)
            yield
    finally:
        logger.setLevel(level)
