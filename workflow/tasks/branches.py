"""What branches are made of: input files, or chunks of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

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
