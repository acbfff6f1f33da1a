"""Prune: what in the store nobody needs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import law
import luigi

from analysis.errors import UserError, nearest
from workflow import claims, pruning
from workflow.provenance import utc
from workflow.store import store_folder
from workflow.tasks.features import ComputeFeatures
from workflow.tasks.folds import PrepareFolds
from workflow.tasks.report import Report
from workflow.tasks.select import SelectEvents
from workflow.tasks.simulate import SimulateEvents

RELEASABLE = {step.__name__: step for step in (SimulateEvents, SelectEvents, ComputeFeatures, PrepareFolds)}
"""Steps whose outputs matter only to the steps that stand on them."""


class Prune(law.Task):
    """List outputs that no current analysis reaches, or that may be released, and delete them with --yes."""

    exclude_index = False

    yes = luigi.BoolParameter(default=False, description="delete what is listed; default: False")
    keep_last = luigi.IntParameter(
        default=0,
        description="leave so many outputs of each step and subject that are not reached, those used last; default: 0",
    )
    release = law.CSVParameter(
        default=(),
        description="steps, separated by commas, of which to release the outputs instead: nothing needs them while all "
        "that stands on them is complete; default: none",
    )
    debug = luigi.BoolParameter(default=False, description="show the traceback of a user's mistake too; default: False")

    def complete(self) -> bool:
        """Never before it has run."""
        return getattr(self, "_done", False)

    def run(self) -> None:
        """Print the list, and delete what is on it if asked."""
        unknown = [name for name in self.release if name not in RELEASABLE]
        if unknown:
            raise UserError(f"--release {unknown[0]}: no such step can be released. {nearest(unknown[0], RELEASABLE)}")
        if self.yes and (others := claims.at_work()):
            raise UserError(
                f"Nothing was deleted: a run is at work in {store_folder()} ({', '.join(others)}). "
                "Prune when it has ended."
            )
        reached = pruning.reach(Report)
        lines = self._release(reached) if self.release else self._prune(reached)
        try:
            for line in lines:
                sys.stdout.write(f"{line}\n")
        except OSError as error:
            raise UserError(f"Not all could be deleted: {error}. Start again when this is mended.") from error
        self._done = True

    def _prune(self, reached: pruning.Reach) -> Iterator[str]:
        outputs = pruning.unreached(reached, self.keep_last)
        groups: dict[tuple[str, str], list[pruning.Output]] = {}
        for output in outputs:
            groups.setdefault((output.step, output.label), []).append(output)
        yield from _table(
            (step, label, len(members), pruning.size(members), max(output.used for output in members))
            for (step, label), members in groups.items()
        )
        left = pruning.leftovers()
        total = f"{_count(len(outputs))}, {_bytes(pruning.size(outputs))}"
        if left:
            total += f"; logs, copies of code and environments of jobs, {_bytes(sum(map(pruning.size_of, left)))}"
        yield "Reached: " + "; ".join(reached.sources or ["nothing"])
        if unknown := pruning.unknown():
            yield (
                f"Left alone, as provenance can't be read or is of an earlier version: {_count(len(unknown))}, such as "
                f"{unknown[0].parent}. Remove by hand what nobody needs."
            )
        for name, folder in reached.gone.items():
            yield f"The analysis {name} is gone ({folder}): nothing of it is reached but published results."
        if not outputs:
            yield "All outputs are reached: there is nothing to prune."
        if not outputs and not left:
            return
        if self.yes:
            pruning.delete(outputs)
            yield f"Deleted: {total}."
        else:
            yield f"Not reached: {total}. Add --yes to delete them."

    def _release(self, reached: pruning.Reach) -> Iterator[str]:
        tasks, incomplete = pruning.releasable(reached, self.release)
        groups: dict[tuple[str, str], list[Any]] = {}
        for task in tasks:
            groups.setdefault((task.task_family, task.label), []).append(task)
        sizes = {task: sum(pruning.size_of(Path(task.path(n.rstrip("/")))) for n in task.files()) for task in tasks}
        yield from _table(
            (step, label, len(members), sum(sizes[m] for m in members), max(m.record.stat().st_mtime for m in members))
            for (step, label), members in groups.items()
        )
        total = f"{_count(len(tasks))}, {_bytes(sum(sizes.values()))}"
        for name in incomplete:
            yield f"The analysis {name} is not complete: what it reaches is left alone."
        if not tasks:
            yield "There is nothing to release."
        elif self.yes:
            for task in tasks:
                pruning.release(task)
            yield f"Released: {total}. They are made again when something needs them."
        else:
            yield f"To be released: {total}. Add --yes to delete them; they are made again when something needs them."


def _table(rows: Iterable[tuple[str, str, int, int, float]]) -> Iterator[str]:
    """Steps with their labels, number and size of outputs, and when they were last used."""
    lines = [(step, label, _count(number), _bytes(size), utc(used)) for step, label, number, size, used in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(4)] if lines else []
    for step, label, number, size, used in lines:
        name, place = step.ljust(widths[0]), label.ljust(widths[1])
        yield f"{name}  {place}  {number.rjust(widths[2])}  {size.rjust(widths[3])}  last used {used}"


def _count(number: int) -> str:
    return f"{number} output{'' if number == 1 else 's'}"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
