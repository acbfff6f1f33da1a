"""One main job by every workflow type, each in a store of its own: all outputs must be the same, byte by byte.

Jobs run on a Slurm of two nodes, which this script starts on loopback (tests/batch/slurm.py). See
benchmarks/README.md.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.undisturbed import Reference, check_end, check_events
from tests.batch.slurm import obstacle, started
from tests.toy import Law, linked_environment

HERE = {
    "local": (),
    "dask": ("--workflow", "dask", "--cluster", "local"),
}
ON_SLURM = {
    "dask on Slurm": ("--workflow", "dask", "--cluster", "slurm_gpu"),
    "jobs of Slurm": ("--workflow", "slurm", "--cluster", "slurm_gpu"),
}


def main() -> None:
    """Run the job by each, and compare it with the first; a ViolationError ends the script where one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--analysis", default="hww")
    options = parser.parse_args()
    why_not = obstacle()
    if why_not:
        print(f"without Slurm: {why_not}")
    reference = None
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not why_not:
            os.environ["SLURM_CONF"] = str(stack.enter_context(started()).configuration)
            os.environ["EVENTFOLD_VENV"] = str(linked_environment(home / "venv"))
        for number, (name, asked) in enumerate((HERE if why_not else HERE | ON_SLURM).items()):
            law = Law(home, Path(str(number)))
            begin = time.perf_counter()
            law("Report", "--analysis", options.analysis, *asked)
            seconds = time.perf_counter() - begin
            reference = reference or Reference.of(law, seconds)
            check_end(law, reference)
            check_events(law, reference)
            ((_, summary),) = reference.summaries.items()
            digest = hashlib.sha256(summary).hexdigest()[:16]
            print(f"{name:13} {seconds:4.0f} s  {len(reference.outputs)} outputs, summary.json {digest}", flush=True)
    print("The same outputs and events, byte by byte.")


if __name__ == "__main__":
    main()
