"""One ONNX file for the whole ensemble: raw features in, class probabilities and regression targets out.

Preprocessing, learned absent values, presence inputs, all networks, their combination and the routing by fold are
inside, so that what reads the file needs no knowledge of the training.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.buckets import Buckets
from models.combination import predicted, spread
from models.ensemble import Ensemble, score
from models.networks import Classifier
from models.transforms import Tables

OPSET = 20
KINDS = ("routed", "ensemble", "spread")
KNOWN = ("features", "fold")
"""What the networks need of an event; its fold is an input, or follows from inputs (`Buckets`)."""
BLOCK = 4096


class _Routed(nn.Module):
    """The ensemble as a torch module with the inputs and outputs of the file."""

    shares: Tensor

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.classifier, views, tables, self.routing = ensemble.stacked()
        if _finite(self.classifier, tables):
            self.classifier.fill = _blended
        if (tables["seen"] == tables["seen"][:1]).all():
            tables["seen"] = tables["seen"][:1]  # (1, 1, F)
        self.views = nn.ParameterDict({name: nn.Parameter(view, False) for name, view in views.items()})
        self.register_buffer("shares", torch.from_numpy(ensemble.shares).to(torch.float32))
        self.how, self.folds = ensemble.combination, ensemble.folds.tolist()
        self.names = list(tables)
        for number, table in enumerate(tables.values()):
            self.register_buffer(f"table{number}", table)

    def forward(self, features: Tensor, fold: Tensor) -> tuple[Tensor, ...]:
        present = ~torch.isnan(features).unsqueeze(0)  # (1, N, F)
        features = torch.where(present[0], features, 0.0)  # (N, F)
        views = {parameter.name: self.views[parameter.name] for parameter in self.classifier.parameters}
        statistics = {name: getattr(self, f"table{number}") for number, name in enumerate(self.names)}
        values = features.unsqueeze(0)  # (1, N, F)
        found = self.classifier.predictions(views, statistics, values, present, self.routing)  # (M, N, C + R)
        # Without a network of that fold the routed score is NaN: no score is better than a wrong one.
        routed = torch.full_like(found[0], torch.nan)  # (N, C + R)
        for left_out in sorted(set(self.folds)):
            own = [position for position, each in enumerate(self.folds) if each == left_out]
            of_fold = self.combined(found[own[0] : own[-1] + 1], self.shares[own[0] : own[-1] + 1])  # (N, C + R)
            routed = torch.where((fold == left_out).unsqueeze(-1), of_fold, routed)  # (N, C + R)
        kinds = (routed, self.combined(found, self.shares), spread(found, found.dtype))  # (N, C + R) each
        if not self.classifier.targets:
            return kinds
        sizes = [self.classifier.classes, *(target.size for target in self.classifier.targets)]
        parts = [torch.split(kind, sizes, dim=1) for kind in kinds]  # (N, C), (N, Q) ... each
        return tuple(part for own in zip(*parts, strict=True) for part in own)

    def combined(self, predictions: Tensor, shares: Tensor) -> Tensor:
        """Combine networks ``[M', N, C + R]``, which stand in the order of their folds: ``[N, C + R]``."""
        return predicted(predictions, self.classifier.classes, self.how, shares, predictions.dtype)


def _finite(classifier: Classifier, tables: Tables) -> bool:
    """Whether the numbers that come of absent values, which are zeros in the file, are finite."""
    zeros = torch.zeros(1, 1, len(classifier.layout.names))
    return bool(classifier.layout.numbers(zeros, tables).isfinite().all())


def _blended(numbers: Tensor, known: Tensor, absent: Tensor) -> Tensor:
    """As `filled`, to the last bit, for finite numbers: onnxruntime spreads products three times as fast as choices."""
    share = known.to(numbers.dtype)  # (M or 1, N, W)
    return numbers * share + absent * (1 - share)  # (M, N, W)


def export_onnx(
    ensemble: Ensemble, path: str | Path, metadata: Mapping[str, str], buckets: Buckets | None = None
) -> None:
    """Write the ensemble as one self-contained ONNX file.

    Inputs are ``features``, float32 ``[N, F]`` in the units of training with NaN where a value is absent, and
    ``sample`` and the identity columns, int64 ``[N]`` each. They give the output ``fold``, int64 ``[N]``, which is an
    input where there are no buckets. Further outputs are ``routed``, ``ensemble`` and ``spread``, float32 ``[N, C]``,
    as `models.ensemble.score` defines them, and for each regression target ``NAME_routed``, ``NAME_ensemble`` and
    ``NAME_spread``, float32 ``[N, Q]``, in its unit; what is routed is NaN for a fold that no network left out. The
    file's metadata hold ``features``, ``feature_objects``, ``classes`` and ``folds`` as JSON lists, ``targets``, the
    names of each target's columns, ``prior``, ``combination``, ``identity``, the names of the identity columns,
    ``samples``, the key of each sample, and what the caller adds.

    Args:
        ensemble: The networks.
        path: The file, overwritten if it exists.
        metadata: Further entries, e.g. the fingerprint.
        buckets: How events are given to folds; ``None`` if that is the caller's business.
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
            output_names=_outputs([target.name for target in ensemble.signature.targets]),
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
        **_described(ensemble),
        "prior": ensemble.members[0].training.prior,
        "combination": ensemble.combination,
        "training_precision": " ".join(sorted({member.precision for member in ensemble.members})),
        **metadata,
    }
    if buckets is not None:
        buckets.put_before(model)
        properties |= buckets.metadata
    onnx.helper.set_model_props(model, properties)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def run_onnx(
    path: str | Path,
    values: npt.NDArray[np.float32],
    present: npt.NDArray[np.bool_],
    folds: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float32], ...]:
    """Evaluate an exported file with onnxruntime, of events in known folds, on one thread and in bounded blocks.

    Args:
        path: The ONNX file.
        values: Features ``[N, F]``; absent entries may hold anything.
        present: Which values are there, ``[N, F]``.
        folds: The fold of each event, ``[N]``.

    Returns:
        ``routed``, ``ensemble`` and ``spread``, float32 ``[N, C + R]`` each: of the probabilities, then of the outputs
        of the targets.
    """
    session = _session(path, KNOWN)
    names, blocks = [output.name for output in session.get_outputs()], []
    for start in range(0, max(1, len(values)), BLOCK):
        part = slice(start, start + BLOCK)
        features = np.where(present[part], values[part], np.float32(np.nan)).astype(np.float32)
        found = session.run(names, {"features": features, "fold": folds[part]})
        blocks.append([np.concatenate(found[kind :: len(KINDS)], axis=1) for kind in range(len(KINDS))])
    return tuple(np.concatenate(parts) for parts in zip(*blocks, strict=True))


def difference(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """The largest difference of predictions ``[N, C + R]``; infinite where one is not finite.

    In a column with sizes above one it is a share of the largest: float32 keeps seven digits, whatever a target's unit.
    """
    sizes = np.maximum(1, np.abs(expected).max(axis=0, initial=0))  # (C + R,)
    gap = (np.abs(found - expected) / sizes).max(initial=0)
    return float(gap) if np.isfinite(gap) else np.inf


def check_onnx(
    path: str | Path,
    ensemble: Ensemble,
    values: npt.NDArray[np.float32],
    present: npt.NDArray[np.bool_],
    folds: npt.NDArray[np.int64],
) -> float:
    """Compare an exported file with PyTorch; arguments as `run_onnx`, and what the file was made from.

    Returns:
        The largest `difference` over all events and outputs; infinite if the file gives NaN.
    """
    expected = score(ensemble, values, present, folds)  # (N, C + R) each
    found = run_onnx(path, values, present, folds)
    return max(difference(theirs, ours) for theirs, ours in zip(found, expected, strict=True))


def _outputs(targets: Sequence[str]) -> list[str]:
    """Names of the outputs of the file."""
    return [kind if name is None else f"{name}_{kind}" for name in (None, *targets) for kind in KINDS]


def _described(ensemble: Ensemble) -> dict[str, str]:
    """What the metadata say of regression targets; nothing without any."""
    targets = ensemble.signature.targets
    return {"targets": json.dumps({target.name: target.outputs for target in targets})} if targets else {}


def events_per_second(
    path: str | Path, values: npt.NDArray[np.float32], present: npt.NDArray[np.bool_], rounds: int = 5
) -> float:
    """How fast onnxruntime evaluates a file on one thread: the best of some rounds over the same block of events.

    Args:
        path: The ONNX file.
        values: Features ``[N, F]``; absent entries may hold anything. They are repeated to fill a block.
        present: Which values are there, ``[N, F]``.
        rounds: How often.
    """
    session = _session(path, KNOWN)
    features = np.resize(np.where(present, values, np.float32(np.nan)).astype(np.float32), (BLOCK, values.shape[1]))
    inputs = {"features": features, "fold": np.zeros(BLOCK, dtype=np.int64)}
    seconds = []
    for _ in range(rounds + 1):  # the first one warms up
        started = time.perf_counter()
        session.run(["routed", "ensemble"], inputs)
        seconds.append(time.perf_counter() - started)
    return BLOCK / min(seconds[1:])


def fold_onnx(
    path: str | Path, sample: npt.NDArray[np.int64], columns: Mapping[str, npt.NDArray[np.int64]]
) -> npt.NDArray[np.int64]:
    """The folds that an exported file with `Buckets` gives to events.

    Args:
        path: The ONNX file.
        sample: The key of each event's sample, ``[N]``.
        columns: Its identity columns, ``[N]`` each.

    Returns:
        int64 ``[N]``.
    """
    inputs = {"sample": sample, **columns}
    folds: npt.NDArray[np.int64] = _session(path, tuple(inputs), ("fold",)).run(["fold"], inputs)[0]
    return folds


def _session(path: str | Path, inputs: Sequence[str], outputs: Sequence[str] = ()) -> Any:
    """The part of a file between some of its tensors, by default up to its scores, in onnxruntime on one thread."""
    import onnx
    import onnxruntime
    from onnx.utils import Extractor

    model = onnx.load(str(path))
    names = list(outputs) or [output.name for output in model.graph.output if output.name != "fold"]
    part = Extractor(model).extract_model(list(inputs), names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])


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
