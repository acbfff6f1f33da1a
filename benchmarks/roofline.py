"""The engine on one device, a GPU above all: how fast it trains, and how far that is from what the device can do.

For each network, batch size and precision: ten folds as one stack against one fold, rates, the share of the time that
a GPU computes, and the roofline of a step. Torch and numpy are all it needs. See benchmarks/README.md.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training import (
    FEATURES,
    OBJECTS,
    Job,
    all_events,
    plan,
    processor,
    read_events,
    seconds,
    spread,
    write_events,
)
from models.checkpoint import Place
from models.events import TrainingEvents
from models.members import MemberPlan
from models.memory import reused_memory
from models.networks import Classifier
from models.replay import Replay
from models.settings import ModelSettings, Precision
from models.stack import Stack, precision_on
from models.threads import single_threaded
from models.training import _take_step, best_device, train

NETWORKS = {
    "3 x 256": ModelSettings(hidden=(256,) * 3, dropout=0),
    "6 x 33": ModelSettings(hidden=(33,) * 6, dropout=0),
    "TabM 32 x 3 x 256": ModelSettings(type="tabm", submodels=32, hidden=(256,) * 3, dropout=0),
}
TYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
COPIED = 2**28
"""Bytes that are copied to measure the memory: more than caches hold."""

aten = torch.ops.aten
_NOTHING_MOVED = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided}
_READ_IN_PLACES = {aten.index_select, aten.gather}
_ONLY_WRITTEN = {aten.copy_, aten.fill_, aten.zero_, aten.zeros_like, aten.ones_like, aten.new_zeros}


@dataclass(frozen=True)
class Case:
    """What is measured."""

    network: str
    batch_size: int
    precision: Precision
    epochs: int
    folds: int
    device: str

    @property
    def name(self) -> str:
        """How it is called in the tables."""
        return f"{self.network}, batch {self.batch_size}, {self.precision}"

    def plans(self, events: TrainingEvents, folds: int, epochs: int) -> list[MemberPlan]:
        """Some of the folds."""
        model = NETWORKS[self.network]
        job = Job("", "", of=self.folds, epochs=epochs, batch_size=self.batch_size)
        plans = [plan(job, fold, len(events.labels)) for fold in range(folds)]
        return [replace(p, model=model, settings=replace(p.settings, precision=self.precision)) for p in plans]

    def products(self, events: int) -> int:
        """FLOP of the matrix products for so many events: 6 for each number in a matrix."""
        model = NETWORKS[self.network]
        inputs, submodels = FEATURES + len(OBJECTS), model.submodels if model.type == "tabm" else 1
        return 6 * events * submodels * sum(a * b for a, b in pairwise((inputs, *model.hidden, 2)))


class Traffic(TorchDispatchMode):
    """Counts the operations that run under it, and the bytes that they read and write.

    Each operation reads its inputs and writes its outputs once; views do neither. Where caches keep what one operation
    wrote until the next one reads it, the memory moves less.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.bytes = 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        arguments, inputs = function._schema.arguments, _tensors((args, kwargs))
        changed = [a.alias_info is not None and a.alias_info.is_write for a in arguments]
        named = {a.name: c for a, c in zip(arguments, changed, strict=True)}
        written = _tensors([value for value, c in zip(args, changed, strict=False) if c])
        written += _tensors([value for name, value in (kwargs or {}).items() if named[name]])
        outputs, kind = written or _tensors(result), function.overloadpacket
        places = {tensor.untyped_storage()._cdata for tensor in inputs}
        shared = not written and any(output.untyped_storage()._cdata in places for output in outputs)
        if kind in _NOTHING_MOVED or shared:
            return result
        if kind in _READ_IN_PLACES:
            inputs = [*inputs[1:], *outputs]
        elif kind in _ONLY_WRITTEN:
            inputs = inputs[1:]
        self.operations += 1
        self.bytes += sum(_bytes(tensor) for tensor in (*inputs, *outputs))
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """What a tensor holds in memory; an axis along which it repeats counts once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return prod(sizes) * tensor.element_size()


def synchronize(device: str) -> None:
    """Wait until the device has done what it was asked."""
    if device != "cpu":
        torch.cuda.synchronize(device)


def repeated(step: Callable[[], object], count: int, device: str) -> Callable[[], None]:
    """So many steps, run as the training runs its own, to their end on the device."""
    replay = Replay(step, device)  # type: ignore[arg-type]

    def run() -> None:
        taken = 0
        while taken < count:
            taken += replay.advance(count - taken)
        synchronize(device)

    return run


def timed(run: Callable[[], None], repetitions: int, before: Callable[[], object] = lambda: None) -> list[float]:
    """Seconds of each call, after two that allocate and record what is new to them."""
    return seconds(run, repetitions + 2, before)[2:]


def kernels(profiler: torch.profiler.profile) -> npt.NDArray[np.float64]:
    """Start and end of each kernel, µs, ``[n, 2]``."""
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        trace = json.loads(Path(f"{folder}/trace.json").read_text())
    found = [(e["ts"], e["ts"] + e["dur"]) for e in trace["traceEvents"] if e.get("cat") == "kernel"]
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def covered(intervals: npt.NDArray[np.float64]) -> float:
    """Length of the union of intervals ``[n, 2]``."""
    starts, ends = intervals[intervals[:, 0].argsort()].T
    before = np.concatenate([starts[:1], np.maximum.accumulate(ends)[:-1]])
    return float(np.maximum(ends - np.maximum(starts, before), 0).sum())


@dataclass
class Training:
    """Calls of `train`."""

    call: list[float]  # s, of each call
    epoch: list[float]  # s, mean over the epochs of a call after the first one; none if there is one only

    def add(self, events: TrainingEvents, plans: Sequence[MemberPlan], device: str) -> None:
        """Train, as a user does."""
        stamps = []
        start = time.perf_counter()
        train(events, plans, progress=lambda _: stamps.append(time.perf_counter()), device=device)
        synchronize(device)
        self.call.append(time.perf_counter() - start)
        if len(stamps) > 1:
            self.epoch.append((stamps[-1] - stamps[0]) / (len(stamps) - 1))


def measure_training(case: Case, events: TrainingEvents, repetitions: int) -> None:
    """Print how long all folds and one fold take, in turn, and what follows."""
    one, all_ = Training([], []), Training([], [])
    cuda, samples = case.device != "cpu", case.folds * int(case.plans(events, 1, 1)[0].training.sum())
    train(events, case.plans(events, case.folds, 1), device=case.device)  # what is imported and allocated at first use
    if cuda:
        torch.cuda.reset_peak_memory_stats(case.device)
    for _ in range(repetitions):
        all_.add(events, case.plans(events, case.folds, case.epochs), case.device)
        one.add(events, case.plans(events, 1, case.epochs), case.device)
    print(f"\n{case.name}\n{'':46}{'median':>10}{'min':>10}{'max':>10}")
    for what, own, single in (("call", all_.call, one.call), ("epoch", all_.epoch, one.epoch)):
        if own:
            line(f"{what}, {case.folds} folds, s", own, 3)
            line(f"{what}, 1 fold, s", single, 3)
            line(f"{what}, {case.folds} folds / 1 fold, paired", np.divide(own, single), 2)
            epochs = case.epochs if what == "call" else 1
            line(f"{what}, million samples/s", samples * epochs / np.array(own) / 1e6, 3)
    if not cuda:
        print(f"  {'share of the time that the GPU computes':44}{'does not apply':>30}")
        return
    print(f"  {'memory, GiB':44}{torch.cuda.max_memory_reserved(case.device) / 2**30:10.1f}")
    line("an epoch: share that the GPU computes", [busy_in_epoch(case, events) for _ in range(repetitions)], 3)


def line(name: str, values: Any, digits: int) -> None:
    """Print one line of a case."""
    print(f"  {name:44}{spread(values, 10, digits)}", flush=True)


def busy_in_epoch(case: Case, events: TrainingEvents) -> float:
    """The share of the second epoch of a call of `train` in which any kernel runs."""
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
    stamps = []

    def progress(_: str) -> None:
        stamps.append(time.perf_counter())
        if len(stamps) == 1:
            profiler.start()
            stamps[0] = time.perf_counter()
        elif len(stamps) == 2:
            profiler.stop()

    train(events, case.plans(events, case.folds, 2), progress=progress, device=case.device)
    return covered(kernels(profiler)) / 1e6 / (stamps[1] - stamps[0])


def measure_steps(case: Case, events: TrainingEvents, repetitions: int, copied: float) -> str:
    """Print how long the steps of an epoch take, and return the case's line of the table of rooflines."""
    plans = dict(enumerate(case.plans(events, case.folds, 2)))
    model = plans[0].model
    stack = Stack(Classifier(model, events.signature, case.device), events, plans, case.device)
    window = next(iter(stack.windows.training(0)))
    step = partial(_take_step, stack, window.table)

    def begin() -> None:
        stack.begin(Place(0, 0, 0), window)
        synchronize(case.device)

    count = stack.begin(Place(0, 0, 0), window)
    with FlopCounterMode(display=False) as products:
        step()
    begin()
    with Traffic() as traffic:
        step()
    run = repeated(step, count, case.device)
    times = timed(run, repetitions, begin)
    steps = np.array(times) / count
    line(f"its {count} steps alone, s", times, 3)
    samples = case.folds * int(plans[0].training.sum())
    line("steps alone, million samples/s", samples / np.array(times) / 1e6, 3)
    launches = float(traffic.operations)
    if case.device != "cpu":
        shares = []
        for _ in range(repetitions):
            begin()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
                took = seconds(run, 1)[0]
            found = kernels(profiler)
            shares.append(covered(found) / 1e6 / took)
            launches = len(found) / count
        line("steps alone: share that the GPU computes", shares, 3)

    rows = stack.batches.shape[2] * (model.submodels if model.type == "tabm" else 1)
    peaks = {name: peak(case, rows, kind, repetitions) for name, kind in TYPES.items()}
    flop, took = products.get_total_flops(), float(np.median(steps))
    limits = {"products": flop / peaks[case.precision], "memory": traffic.bytes / copied}
    bound = max(limits, key=lambda name: limits[name])
    expected = case.products(case.folds * stack.batches.shape[2])
    return (
        f"{case.name:36}{flop / 1e9:9.3f}{flop / expected:7.3f}{traffic.bytes / 1e6:11.1f}{launches:7.0f}"
        f"{spread(steps * 1e3, 10, 3)}{flop / took / 1e12:9.3f}{traffic.bytes / took / 1e9:8.1f}"
        f"{peaks['fp32'] / 1e12:8.3f}{peaks['bf16'] / 1e12:8.3f}{copied / 1e9:8.1f}{limits[bound] * 1e3:10.3f}"
        f"{limits[bound] / took:7.0%} {bound}"
    )


def peak(case: Case, rows: int, kind: torch.dtype, repetitions: int) -> float:
    """FLOP per second of the products of a case's hidden layers, one for each fold at once."""
    width = NETWORKS[case.network].hidden[0]
    left = torch.randn(case.folds, rows, width, device=case.device).to(kind)  # (M, K·B, H)
    right = torch.randn(case.folds, width, width, device=case.device).to(kind)  # (M, H, H)
    product = torch.bmm(left, right)  # (M, K·B, H)
    run = repeated(lambda: torch.bmm(left, right, out=product), 64, case.device)
    return 64 * 2 * left.numel() * width / float(np.median(timed(run, repetitions)))


def copying(repetitions: int, device: str) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    run = repeated(lambda: target.copy_(source), 16, device)
    return 16 * 2 * COPIED / float(np.median(timed(run, repetitions)))


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description="the engine on one device: rates, and the roofline of a step")
    parser.add_argument("--device", default=best_device(), help="default: cuda where torch finds a GPU, else cpu")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, help="default: all")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[4096, 1024], help="default: 4096 1024")
    parser.add_argument("--precisions", nargs="+", default=["auto"], choices=["auto", *TYPES], help="default: auto")
    parser.add_argument("--folds", type=int, default=10, help="folds, one network for each; default: 10")
    parser.add_argument("--events", type=int, default=250_000, help="training events of a network; default: 250000")
    parser.add_argument("--epochs", type=int, default=50, help="default: 50")
    parser.add_argument("--repetitions", type=int, default=3, help="measurements of each; default: 3")
    chosen = parser.parse_args()
    if chosen.folds < 3:
        parser.error("at least 3 folds: one left out, one for validation, one to train on")
    device, repetitions = chosen.device, chosen.repetitions
    cuda = device != "cpu"
    count = all_events(chosen.events, chosen.folds)
    print(f"python {shlex.join(sys.argv)}")
    print(f"{torch.cuda.get_device_name(device) if cuda else processor() + ', one thread'}, ", end="")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda},")
    print(f"{chosen.folds} folds, of each {count * (chosen.folds - 2) // chosen.folds:,} training and ", end="")
    print(f"{count // chosen.folds:,} validation events, {FEATURES} features,")
    print(f"{chosen.epochs} epochs, {repetitions} repetitions", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        write_events(folder, count)
        events = read_events(folder)
    meant = {precision_on(device, precision) for precision in chosen.precisions}
    precisions = [precision for precision in TYPES if precision in meant]
    lines = []
    with single_threaded(), torch.no_grad():
        for network in chosen.networks:
            for batch_size in chosen.batch_sizes:
                for precision in precisions:
                    case = Case(network, batch_size, precision, chosen.epochs, chosen.folds, device)
                    measure_training(case, events, repetitions)
                    with reused_memory():
                        lines.append(measure_steps(case, events, repetitions, copying(repetitions, device)))
    print(f"\n{'a step':36}{'GFLOP':>9}{'/ 6':>7}{'MB':>11}{'laun-':>7}{'ms':>10}{'':20}{'reached':^17}", end="")
    print(f"{'peak, TFLOP/s':>16}{'copy':>8}{'at best':>10}")
    print(f"{'':63}{'ches':>7}{'median':>10}{'min':>10}{'max':>10}{'TFLOP/s':>9}{'GB/s':>8}", end="")
    print(f"{'fp32':>8}{'bf16':>8}{'GB/s':>8}{'ms':>10}{'share':>7} bound by")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
