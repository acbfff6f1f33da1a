"""What branches are made of: input files, or chunks of them."""

from __future__ import annotations

from typing import TypeVar

from workflow.base import Workflow
from workflow.plan import EntryRange, InputFile

S = TypeVar("S")


class FileWorkflow(Workflow[S]):
    """A step with one branch per input file."""

    exclude_index = True

    def create_branch_map(self) -> list[InputFile]:
        return list(self.plan.files)

    @property
    def branch_data(self) -> InputFile:
        assert self.branch >= 0, "a workflow is about no single file"
        return self.plan.files[self.branch]

    @property
    def label(self) -> str:
        return str(self.branch_data.dataset)

    @property
    def subject(self) -> str:
        return str(self.branch_data.key)


class ChunkWorkflow(Workflow[S]):
    """A step with one branch per input file and range of entries."""

    exclude_index = True

    def create_branch_map(self) -> list[EntryRange]:
        return list(self.plan.chunks)

    @property
    def branch_data(self) -> EntryRange:
        assert self.branch >= 0, "a workflow is about no single range of entries"
        return self.plan.chunks[self.branch]

    @property
    def label(self) -> str:
        return str(self.branch_data.file.dataset)

    @property
    def subject(self) -> str:
        return f"{self.branch_data.file.key} from {self.branch_data.start}"
