"""What preprocessing, missing objects, routing and spread cost in `ensemble.onnx`, beside its bare networks.

The bare file has the same weights and nothing else: products of matrices of all networks, stacked, with activation,
softmax and mean. Both run on one thread, on the same block of events, in turn. See benchmarks/README.md.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def main() -> None:
    """Time both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "file", type=Path, help="an ensemble.onnx of plain silu networks, such as results/hww/ensemble.onnx"
    )
    parser.add_argument("--events", type=int, default=4096, help="events of a block")
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    model = onnx.load(str(options.file))
    weights = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    layers = sum(name.startswith("views.weight") for name in weights)
    matrices = [weights[f"views.weight{layer}"] for layer in range(layers)]  # [M, in, out] each
    biases = [weights[f"views.bias{layer}"] for layer in range(layers - 1)]  # [M, 1, out] each
    files = {"ensemble.onnx": _session(model), "bare networks": _session(bare(matrices, biases))}

    random = np.random.default_rng(1)
    width = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    features = random.normal(size=(options.events, width)).astype(np.float32)
    features[random.random(features.shape) < 0.2] = np.nan
    others = {i.name: random.integers(0, 100, options.events) for i in model.graph.input if i.name != "features"}
    inputs = {
        "ensemble.onnx": {"features": features, **others},
        "bare networks": {"x": random.normal(size=(options.events, matrices[0].shape[1])).astype(np.float32)},
    }
    seconds: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(options.rounds):
        for name, session in files.items():
            started = time.perf_counter()
            session.run(None, inputs[name])
            seconds[name].append(time.perf_counter() - started)
    print(f"{len(matrices[0])} networks, {' × '.join(str(m.shape[1]) for m in matrices)}, blocks of {options.events}")
    for name, found in seconds.items():
        print(f"{name:14} {options.events / statistics.median(found):10,.0f} events/s")
    ratios = sorted(a / b for a, b in zip(*seconds.values(), strict=True))
    quarter = len(ratios) // 4
    middle = f"{statistics.median(ratios):.2f} [{ratios[quarter]:.2f}, {ratios[-1 - quarter]:.2f}]"
    print(f"time, {' over '.join(files)}: {middle}")


def bare(matrices: Sequence[npt.NDArray[np.float32]], biases: Sequence[npt.NDArray[np.float32]]) -> Any:
    """A file of stacked networks with silu between layers, their probabilities' mean, and nothing else."""
    nodes, last = [], "x"
    constants = [numpy_helper.from_array(np.zeros(1, dtype=np.int64), "members")]
    for layer, matrix in enumerate(matrices):
        constants.append(numpy_helper.from_array(np.ascontiguousarray(matrix), f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [last := f"product{layer}"]))
        if layer < len(biases):
            constants.append(numpy_helper.from_array(np.ascontiguousarray(biases[layer]), f"b{layer}"))
            nodes += [
                helper.make_node("Add", [last, f"b{layer}"], [f"sum{layer}"]),
                helper.make_node("Sigmoid", [f"sum{layer}"], [f"gate{layer}"]),
                helper.make_node("Mul", [f"sum{layer}", f"gate{layer}"], [last := f"silu{layer}"]),
            ]
    nodes += [
        helper.make_node("Softmax", [last], ["probability"], axis=-1),
        helper.make_node("ReduceMean", ["probability", "members"], ["mean"], keepdims=0),
    ]
    shape = matrices[0].shape[1], matrices[-1].shape[2]
    graph = helper.make_graph(
        nodes,
        "bare",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["events", shape[0]])],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["events", shape[1]])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _session(model: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
