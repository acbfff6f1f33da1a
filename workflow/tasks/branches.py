"""What branches are made of: input files, or chunks of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import luigi

from analysis.errors import UserError, nearest
from workflow.base import Workflow
from workflow.plan import EntryRange, InputFile

S = TypeVar("S")


class FileWorkflow(Workflow[S]):
    """A step with one branch per input file."""

    exclude_index = True

    def about_branches(self) -> Sequence[InputFile]:
        return self.plan.files

    @property
    def label(self) -> str:
        return str(self.branch_data.dataset)

    @property
    def belonging(self) -> str:
        return self.label

    @property
    def subject(self) -> str:
        return str(self.branch_data.key)


class ChunkWorkflow(Workflow[S]):
    """A step with one branch per input file and range of entries."""

    exclude_index = True

    def about_branches(self) -> Sequence[EntryRange]:
        return self.plan.chunks

    @property
    def label(self) -> str:
        return str(self.branch_data.file.dataset)

    @property
    def belonging(self) -> str:
        # Of events that occur twice, the first in order of the files' names is kept.
        named = self.plan.config.identity.duplicates == "drop"
        return f"{self.label} {self.branch_data.file.key}" if named else self.label

    @property
    def subject(self) -> str:
        return f"{self.branch_data.file.key} from {self.branch_data.start}"

    @property
    def events(self) -> int:
        return int(self.branch_data.stop - self.branch_data.start)


class ShiftedWorkflow(Workflow[S]):
    """A step that can run on events that a function shifts, beside the events as they are."""

    exclude_index = True

    shift = luigi.Parameter(
        default="",
        description="a function of physics.py that outputs.nuisances names under `shift`: run on the events that it "
        "shifts; default: on the events as they are",
    )

    @property
    def title(self) -> str:
        return f"{super().title} ({self.shift})" if self.shift else str(super().title)

    def shift_functions(self) -> tuple[str, ...]:
        """The function that shifts the events, if one does.

        Raises:
            UserError: The configuration names no such function.
        """
        known = self.plan.config.shifts
        if self.shift and self.shift not in known:
            raise UserError(
                f"--shift {self.shift}: key outputs.nuisances names no such function under `shift`. "
                f"{nearest(self.shift, known)}"
            )
        return (self.shift,) if self.shift else ()
