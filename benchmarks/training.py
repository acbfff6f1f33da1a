"""Training time and rate of the stacked engine, against a plain PyTorch loop and Lightning.

All train the same networks on the same synthetic events with the same arithmetic in float32 (the stack in bf16 too):
standardisation, learned absent values, presence inputs, class-balanced loss, AdamW, one-cycle schedule; no dropout, no
clipping, no early end.
Every measurement is a process of its own (or two), all in turn. See benchmarks/README.md.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from models import hashing
from models.events import TrainingEvents
from models.fitting import fit_transforms
from models.losses import class_factors, cross_entropy
from models.members import MemberPlan
from models.networks import Classifier
from models.preprocessing import Signature, filled, presence
from models.settings import ModelSettings, Precision, TrainingSettings
from models.stack import _INITIAL, VALIDATION_ROWS
from models.training import train
from models.transforms import smooth_clip

FEATURES, OBJECTS, SEED = 30, ("event", "jet1", "jet2"), 1
COLUMNS = ("values", "present", "labels", "weights", "identity")
ABSENT = (0.0, 0.1, 0.3)
"""Share of the events without the object."""
NETWORKS = {"3 x 256": (256,) * 3, "6 x 33": (33,) * 6}
PRODUCTS = {f"{name}, {rows} x 256 x 256": (name, rows) for name in ("float32", "bfloat16") for rows in (256, 1024)}


@dataclass(frozen=True)
class Job:
    """What one process does: train some folds, or time matrix products."""

    engine: str
    folder: str  # of the events
    hidden: tuple[int, ...] = ()
    folds: tuple[int, ...] = ()  # those to train
    of: int = 0  # number of all folds
    epochs: int = 0
    batch_size: int = 0
    threads: int = 1

    @property
    def model(self) -> ModelSettings:
        """What a network is."""
        return ModelSettings(hidden=self.hidden, dropout=0)

    @property
    def training(self) -> TrainingSettings:
        """How it is trained."""
        return TrainingSettings(epochs=self.epochs, batch_size=self.batch_size, patience=None, clip_norm=None)


def all_events(training: int, folds: int) -> int:
    """The number of all events of which a network trains on so many: two folds are left out."""
    return training * folds // (folds - 2) // folds * folds


def write_events(folder: str, count: int) -> None:
    """Draw two classes from Gaussians whose means differ a little, with objects that some events lack."""
    random = np.random.default_rng(SEED)
    labels = random.integers(0, 2, count)
    shift = np.linspace(0, 0.3, FEATURES)
    values = (random.standard_normal((count, FEATURES)) + labels[:, np.newaxis] * shift).astype(np.float32)
    lacks = random.random((count, len(OBJECTS))) < ABSENT
    present = ~np.repeat(lacks, FEATURES // len(OBJECTS), axis=1)
    weights = random.uniform(0.5, 1.5, count)
    identity = np.sort(random.integers(0, 2**64, count, dtype=np.uint64))
    for name, column in zip(COLUMNS, (values, present, labels, weights, identity), strict=True):
        np.save(f"{folder}/{name}.npy", column)


def read_events(folder: str) -> TrainingEvents:
    """Read what `write_events` wrote."""
    objects = tuple(np.repeat(OBJECTS, FEATURES // len(OBJECTS)).tolist())
    signature = Signature(tuple(f"x{i}" for i in range(FEATURES)), objects, ("signal", "background"))
    return TrainingEvents(signature, *(np.load(f"{folder}/{name}.npy") for name in COLUMNS))


def plan(job: Job, fold: int, events: int) -> MemberPlan:
    """Leave one fold out, stop on the next one, train on all others: the scheme `rotating`."""
    folds = np.arange(events) % job.of
    validation = (fold + 1) % job.of
    chosen = (folds != fold) & (folds != validation)
    return MemberPlan(fold, 0, chosen, folds == validation, job.model, job.training, SEED)


def stacked(job: Job, events: TrainingEvents, precision: Precision) -> list[float]:
    """The engine of this project."""
    training = replace(job.training, precision=precision)
    plans = [replace(plan(job, fold, len(events.labels)), settings=training) for fold in job.folds]
    members = train(events, plans)
    return [member.history.validation_loss[-1] for member in members]


class Network(nn.Module):
    """The network of one fold as a module, with the initial weights that the stack gives it."""

    mean: Tensor
    scale: Tensor
    membership: Tensor

    def __init__(self, job: Job, events: TrainingEvents, chosen: MemberPlan) -> None:
        super().__init__()
        classifier = Classifier(job.model, events.signature)
        fit = fit_transforms(classifier.layout, events, [chosen.training])[0]
        self.register_buffer("mean", torch.from_numpy(fit.tables["standardise.shift"][0]))
        self.register_buffer("scale", torch.from_numpy(fit.tables["standardise.scale"][0]))
        self.register_buffer("membership", torch.from_numpy(events.signature.membership().astype(np.float32)))
        self.absent = nn.Parameter(torch.zeros(FEATURES))
        widths = (FEATURES + len(OBJECTS), *job.hidden, len(events.signature.classes))
        stream = hashing.key(SEED, chosen.fold, chosen.index)
        initial = classifier.views(classifier.initial([hashing.key(stream, _INITIAL)]))
        layers: list[nn.Module] = []
        for position, (before, after) in enumerate(pairwise(widths)):
            linear = nn.Linear(before, after)
            with torch.no_grad():
                linear.weight.copy_(initial[f"weight{position}"][0].T)
                linear.bias.copy_(initial[f"bias{position}"][0, 0])
            layers += [linear, nn.SiLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, values: Tensor, present: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """The sum of the losses of a batch."""
        numbers = filled(smooth_clip((values - self.mean) / self.scale), present, self.absent)
        logits = self.layers(torch.cat([numbers, presence(present, self.membership)], dim=-1))
        return cross_entropy(logits[None, None], labels.unsqueeze(0), weights.unsqueeze(0))[0]

    def optimiser(self, job: Job, steps: int) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.OneCycleLR]:
        """AdamW, which decays matrices only, and its schedule."""
        settings = job.training
        decay = settings.constants["weight_decay"]
        groups = [
            {"params": [p for p in self.parameters() if p.ndim == 2], "weight_decay": decay},
            {"params": [p for p in self.parameters() if p.ndim != 2], "weight_decay": 0.0},
        ]
        adam = torch.optim.AdamW(groups, lr=settings.learning_rate)
        rates = torch.optim.lr_scheduler.OneCycleLR(
            adam, settings.learning_rate, total_steps=steps, cycle_momentum=False
        )
        return adam, rates


def tensors(events: TrainingEvents, rows: Any) -> TensorDataset:
    """A member's events as tensors, with weights that balance the classes."""
    labels, weights = events.labels[rows], events.weights[rows]
    balanced = weights * class_factors(weights, labels, len(events.signature.classes))[labels]
    columns = (events.values[rows], events.present[rows], labels, balanced.astype(np.float32))
    return TensorDataset(*(torch.from_numpy(column) for column in columns))


def loaded(dataset: TensorDataset, size: int, shuffle: bool) -> Iterable[Any]:
    """Batches by torch's DataLoader, in this process."""
    return DataLoader(dataset, batch_size=size, shuffle=shuffle)


def gathered(dataset: TensorDataset, size: int, shuffle: bool) -> Iterable[Any]:
    """Batches by one index into the tensors."""
    rows = torch.randperm(len(dataset)) if shuffle else torch.arange(len(dataset))
    return (tuple(column[chosen] for column in dataset.tensors) for chosen in torch.split(rows, size))


def loop(job: Job, events: TrainingEvents, batches: Callable[..., Iterable[Any]]) -> list[float]:
    """One network after the other in a loop of PyTorch."""
    losses = []
    for fold in job.folds:
        chosen = plan(job, fold, len(events.labels))
        network = Network(job, events, chosen)
        training, validation = tensors(events, chosen.training), tensors(events, chosen.validation)
        divisor = min(job.batch_size, len(training))
        adam, rates = network.optimiser(job, job.epochs * math.ceil(len(training) / job.batch_size))
        best, parameters = math.inf, {}
        for _ in range(job.epochs):
            for batch in batches(training, job.batch_size, True):
                adam.zero_grad()
                (network(*batch) / divisor).backward()
                adam.step()
                rates.step()
            with torch.no_grad():
                total = sum(network(*batch).item() for batch in batches(validation, VALIDATION_ROWS["cpu"], False))
            if total < best:
                best, parameters = total, {name: value.clone() for name, value in network.state_dict().items()}
        losses.append(total / len(validation))
        network.load_state_dict(parameters)
    return losses


def lightning(job: Job, events: TrainingEvents) -> list[float]:
    """One network after the other in Lightning, with all that it can leave out left out."""
    import lightning as peer

    class Module(peer.LightningModule):  # type: ignore[misc]
        def __init__(self, network: Network, divisor: int, steps: int) -> None:
            super().__init__()
            self.network, self.divisor, self.steps, self.total = network, divisor, steps, 0.0

        def training_step(self, batch: list[Tensor]) -> Tensor:
            loss: Tensor = self.network(*batch) / self.divisor
            return loss

        def on_validation_epoch_start(self) -> None:
            self.total = 0.0

        def validation_step(self, batch: list[Tensor]) -> None:
            self.total += self.network(*batch).item()

        def configure_optimizers(self) -> Any:
            adam, rates = self.network.optimiser(job, self.steps)
            return {"optimizer": adam, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    losses = []
    for fold in job.folds:
        chosen = plan(job, fold, len(events.labels))
        training, validation = tensors(events, chosen.training), tensors(events, chosen.validation)
        steps = job.epochs * math.ceil(len(training) / job.batch_size)
        module = Module(Network(job, events, chosen), min(job.batch_size, len(training)), steps)
        trainer = peer.Trainer(
            max_epochs=job.epochs,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, loaded(training, job.batch_size, True), loaded(validation, VALIDATION_ROWS["cpu"], False))
        losses.append(module.total / len(validation))
    return losses


def alone(job: Job, events: TrainingEvents) -> list[float]:
    """The engine of this project, in bf16, one fold after the other instead of stacked."""
    return [loss for fold in job.folds for loss in stacked(replace(job, folds=(fold,)), events, "bf16")]


ENGINES: dict[str, Callable[[Job, TrainingEvents], list[float]]] = {
    "stacked": lambda job, events: stacked(job, events, "fp32"),
    "bf16": lambda job, events: stacked(job, events, "bf16"),
    "alone": alone,
    "loop": lambda job, events: loop(job, events, loaded),
    "gather": lambda job, events: loop(job, events, gathered),
    "lightning": lightning,
}
ROWS = {
    "stacked": ("stacked", 1, 1),
    "stacked, 2 processes": ("stacked", 2, 1),
    "stacked, bf16": ("bf16", 1, 1),
    "stacked, bf16, 2 processes": ("bf16", 2, 1),
    "alone, bf16, 2 processes": ("alone", 2, 1),
    "plain loop, 2 threads": ("loop", 1, 2),
    "plain loop, 2 processes": ("loop", 2, 1),
    "gathering loop, 2 processes": ("gather", 2, 1),
    "lightning, 2 threads": ("lightning", 1, 2),
    "lightning, 2 processes": ("lightning", 2, 1),
}
"""Engine, processes and threads of each process; 2 processes share the folds."""
OWN = ("stacked", "bf16", "alone")
PLAIN = [name for name, (engine, _, _) in ROWS.items() if engine == "loop"]


def seconds(work: Callable[[], object], repetitions: int, before: Callable[[], object] = lambda: None) -> list[float]:
    """Seconds of each of several calls; `before` is called before each of them, and not counted."""
    found = []
    for _ in range(repetitions):
        before()
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return found


def products() -> dict[str, float]:
    """FLOP per second of matrix products."""
    rates = {}
    for name, (kind, rows) in PRODUCTS.items():
        left, right = (torch.ones(size, 256, dtype=getattr(torch, kind)) for size in (rows, 256))

        def ten(left: Tensor = left, right: Tensor = right) -> None:
            for _ in range(10):
                left @ right

        rates[name] = 10 * 2 * left.numel() * 256 / float(np.median(seconds(ten, 20)[5:]))
    return rates


def work(job: Job) -> dict[str, Any]:
    """Do a job in this process."""
    warnings.simplefilter("ignore")  # Lightning's advice on DataLoader workers
    torch.set_num_threads(job.threads)
    torch.manual_seed(SEED)
    if job.engine == "products":
        return products()
    engine, events = ENGINES[job.engine], read_events(job.folder)
    few = {name: getattr(events, name)[: 64 * job.of] for name in COLUMNS}
    engine(replace(job, folds=job.folds[:1], epochs=1), replace(events, **few))  # what is imported at first use
    start = time.monotonic()  # one clock for all processes
    losses = engine(job, events)
    return {"start": start, "stop": time.monotonic(), "losses": losses}


def run(jobs: list[Job]) -> tuple[float, list[dict[str, Any]]]:
    """Do each job in a process of its own, at the same time; returns seconds from start to end, and what they say."""
    start = time.monotonic()
    children = []
    for job in jobs:
        command = [sys.executable, __file__, "--job", json.dumps(asdict(job))]
        # Threads that wait in a busy loop would slow two of them down several times where other work runs beside.
        environment = os.environ | {"OMP_NUM_THREADS": str(job.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        children.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
    outputs = [child.communicate()[0] for child in children]
    seconds = time.monotonic() - start
    if any(child.returncode for child in children):
        raise SystemExit(f"A process of {jobs[0].engine} failed.")
    return seconds, [json.loads(output.splitlines()[-1]) for output in outputs]


@dataclass
class Measured:
    """The repetitions of one row."""

    process: list[float]  # s, from the start of the processes to their end
    training: list[float]  # s, without start, imports and reading, with validation
    losses: list[float]  # final validation loss of each fold

    def add(self, seconds: float, results: list[dict[str, Any]]) -> None:
        """Note one repetition."""
        self.process.append(seconds)
        self.training.append(max(r["stop"] for r in results) - min(r["start"] for r in results))
        self.losses = [loss for result in results for loss in result["losses"]]


def spread(values: Any, width: int, digits: int) -> str:
    """Median, minimum and maximum."""
    return "".join(f"{x:{width},.{digits}f}" for x in (np.median(values), np.min(values), np.max(values)))


def report(name: str, rows: dict[str, Measured], samples: int, peaks: list[float], hidden: tuple[int, ...]) -> None:
    """Print the table of one network."""
    widths = (FEATURES + len(OBJECTS), *hidden, 2)
    flops = 6 * sum(before * after for before, after in pairwise(widths))
    print(f"\n{name}: {flops:,} FLOP for an event (6 for each number in a matrix)")
    print(f"{'':28}{'process, s':^21}{'1000 samples/s':^24}{'share of':^14}{'loss':>9}")
    print(f"{'':28}{'median':>7}{'min':>7}{'max':>7}{'median':>8}{'min':>8}{'max':>8}{'fp32':>7}{'bf16':>7}")
    for row, measured in rows.items():
        rates = samples / np.array(measured.training)
        _, processes, threads = ROWS[row]
        shares = [flops * float(np.median(rates)) / (processes * threads * peak) for peak in peaks]
        print(f"{row:28}{spread(measured.process, 7, 1)}{spread(rates / 1e3, 8, 1)}", end="")
        print("".join(f"{share:7.0%}" for share in shares) + f"{np.mean(measured.losses):9.5f}")
    losses = [float(np.mean(measured.losses)) for measured in rows.values()]
    if len(losses) > 1:
        print(f"losses differ by {max(losses) / min(losses) - 1:.2%} at most")
    plain = sorted((row for row in PLAIN if row in rows), key=lambda row: np.median(rows[row].process))[:1]
    for peer in (*plain, *(row for row in rows if ROWS[row][0] == "lightning")):
        print(f"times faster than {peer}, paired:")
        for row, measured in rows.items():
            if ROWS[row][0] in OWN:
                ratios = [np.divide(getattr(rows[peer], t), getattr(measured, t)) for t in ("process", "training")]
                print(f"{'  ' + row:28}{spread(ratios[0], 7, 2)}{spread(ratios[1], 8, 2)}")


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description="training of all folds: stacked, in a plain loop, in Lightning")
    parser.add_argument("--folds", type=int, default=10, help="folds, one network for each; default: 10")
    parser.add_argument("--events", type=int, default=25_000, help="training events of a network; default: 25000")
    parser.add_argument("--epochs", type=int, default=2, help="default: 2")
    parser.add_argument("--batch-size", type=int, default=1024, help="default: 1024")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, help="default: all")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, help="default: all")
    parser.add_argument("--repetitions", type=int, default=3, help="measurements of each, in turn; default: 3")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job:
        given = json.loads(chosen.job)
        print(json.dumps(work(Job(**given | {name: tuple(given[name]) for name in ("hidden", "folds")}))))
        return
    if chosen.folds < 3:
        parser.error("at least 3 folds: one left out, one for validation, one to train on")

    names, count = chosen.rows, all_events(chosen.events, chosen.folds)
    each, samples = count // chosen.folds, count * (chosen.folds - 2) * chosen.epochs
    versions = {"numpy": version("numpy"), "torch": torch.__version__}
    if any(ROWS[name][0] == "lightning" for name in names):
        if find_spec("lightning"):
            versions["lightning"] = version("lightning")
        else:
            versions["lightning"] = "is not installed (group peers of pyproject.toml)"
            names = [name for name in names if ROWS[name][0] != "lightning"]
    print(f"{chosen.folds} folds, of each {count - 2 * each:,} training and {each:,} validation events, ", end="")
    print(f"{FEATURES} features, {chosen.epochs} epochs of batches of {chosen.batch_size},")
    print(f"{chosen.repetitions} repetitions in turn; {processor()}, {os.cpu_count()} cores, one thread unless said,")
    print(f"Python {platform.python_version()}, {', '.join(f'{n} {v}' for n, v in versions.items())}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        write_events(folder, count)
        base = Job("products", folder, (), (), chosen.folds, chosen.epochs, chosen.batch_size)
        peaks: list[dict[str, float]] = []
        tables = {network: {row: Measured([], [], []) for row in names} for network in chosen.networks}
        for _ in range(chosen.repetitions):
            peaks.append(run([base])[1][0])
            for network, rows in tables.items():
                for row, measured in rows.items():
                    engine, processes, threads = ROWS[row]
                    shares = [tuple(range(first, chosen.folds, processes)) for first in range(processes)]
                    job = replace(base, engine=engine, hidden=NETWORKS[network], threads=threads)
                    measured.add(*run([replace(job, folds=share) for share in shares]))
    print(f"\n{'matrix products, GFLOP/s':28}{'median':>9}{'min':>9}{'max':>9}")
    for product in PRODUCTS:
        print(f"{product:28}{spread([peak[product] / 1e9 for peak in peaks], 9, 0)}")
    best = [float(np.median([peak[f"{kind}, 1024 x 256 x 256"] for peak in peaks])) for kind in ("float32", "bfloat16")]
    for network, rows in tables.items():
        report(network, rows, samples, best, NETWORKS[network])


if __name__ == "__main__":
    main()
