"""What is read, and what is asked of it: descriptions that a step can hold without loading any library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Format = Literal["nanoaod", "flat"]


@dataclass(frozen=True)
class FileRecord:
    """What identifies a file from outside: found once, before the graph is built.

    Attributes:
        uuid: The file's ROOT UUID.
        size: Size in bytes.
        end: ``fEND`` of the header: where ROOT thinks the file ends.
        tree: Key of the tree that was looked at.
        entries: Entries of that tree.
    """

    uuid: str
    size: int
    end: int
    tree: str
    entries: int


@dataclass(frozen=True)
class Source:
    """One bounded range of entries of one tree, and how to read it.

    Attributes:
        path: File or root:// URL.
        tree: Name of the tree, without cycle.
        layout: `nanoaod` groups branches to collections, `flat` leaves them as they stand.
        start: First entry.
        stop: One past the last entry.
        sentinels: Value per branch that stands for "not there".
        uuid: The file's ROOT UUID when the run began; empty for files that are known otherwise.
    """

    path: str
    tree: str
    layout: Format
    start: int
    stop: int
    sentinels: Mapping[str, float]
    uuid: str = ""


@dataclass(frozen=True)
class SelectionSettings:
    """All that decides which entries are kept and what is recorded of them.

    Attributes:
        sample: Sample key of the data set.
        file_key: Key of the file, used in place of event numbers where there are none.
        identity: Names of the identity columns; empty if file and entry identify an event.
        processes: For each process in this data set, the values that branches must have; empty for all entries.
        generator: Branch of the generator weight; None for weight 1, as for collision data.
        test_fraction: Share of test events.
        test_salt: Salt of the test bucket.
        cuts: Names of the cut functions, in order.
        training_cuts: Names of the further cuts on training events.
        categories: Category name to function name.
        shift: Name of a function that shifts the events before the cuts; empty for events as they are.
    """

    sample: str
    file_key: str
    identity: tuple[str, ...]
    processes: Mapping[str, Mapping[str, float]]
    generator: str | None
    test_fraction: float
    test_salt: str
    cuts: tuple[str, ...] = ()
    training_cuts: tuple[str, ...] = ()
    categories: Mapping[str, str] = field(default_factory=dict)
    shift: str = ""
