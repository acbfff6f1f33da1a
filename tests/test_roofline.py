"""What benchmarks/roofline.py counts, and that it runs on a processor."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import roofline
from benchmarks.roofline import Traffic, covered, kernels


def select(x: Tensor) -> Tensor:
    return x.index_select(0, torch.tensor([1, 3]))


@pytest.mark.parametrize(
    ("work", "operations", "moved"),
    [
        (lambda x: x + x[:1], 1, 3 * 80 - 64),  # rows of the second input repeat
        (lambda x: x.T.reshape(2, 10).unsqueeze(1), 1, 2 * 80),  # one copy, and views
        (lambda x: x.view(20)[3:].expand(2, 17), 0, 0),
        (lambda x: x.add_(1), 1, 2 * 80),
        (lambda x: x[:2].copy_(x[3:4]), 1, 16 + 32),
        (lambda x: x.zero_(), 1, 80),
        (torch.empty_like, 0, 0),
        (select, 1, 2 * 8 + 2 * 32),
        (lambda x: torch.mm(x.T, x), 1, 2 * 80 + 64),
        (lambda x: x.to(torch.bfloat16), 1, 80 + 40),
    ],
)
def test_traffic_of_one_operation(work: Callable[[Tensor], Any], operations: int, moved: int) -> None:
    with torch.no_grad(), Traffic() as traffic:
        work(torch.ones(5, 4))
    first = 80  # of the tensor of ones
    assert (traffic.operations - 1, traffic.bytes - first) == (operations, moved)


def test_intervals_are_covered_once() -> None:
    assert covered(np.array([[5.0, 6.0], [0.0, 2.0], [1.0, 3.0], [5.2, 5.4], [0.5, 1.0]])) == 4.0


def test_kernels_are_read_from_a_trace() -> None:
    class Profiler:
        def export_chrome_trace(self, path: str) -> None:
            events = [
                {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 10.5, "dur": 2.0},
                {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy", "ts": 13.0, "dur": 9.0},
                {"ph": "M", "name": "process_name"},
            ]
            Path(path).write_text(json.dumps({"traceEvents": events}))

    assert kernels(Profiler()).tolist() == [[10.5, 12.5]]  # type: ignore[arg-type]


def test_torch_and_numpy_are_all_that_it_needs() -> None:
    others = "{'scipy', 'sklearn', 'lightning', 'safetensors', 'pydantic', 'law', 'awkward'}"
    program = f"import sys, benchmarks.roofline; print(sorted({others} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_it_runs_on_a_processor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(roofline, "COPIED", 2**20)
    options = "--device cpu --folds 3 --events 200 --epochs 2 --batch-sizes 64 --precisions auto bf16 --repetitions 1"
    monkeypatch.setattr(sys, "argv", ["roofline.py", *options.split(), "--networks", "6 x 33"])
    roofline.main()
    lines = capsys.readouterr().out.splitlines()
    found = [line.split() for line in lines[-2:]]
    assert [(" ".join(words[:6]), words[7]) for words in found] == [
        ("6 x 33, batch 64, fp32", "1.005"),
        ("6 x 33, batch 64, bf16", "1.005"),
    ]
