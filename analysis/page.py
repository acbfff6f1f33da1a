"""A small page of its own for what is asked for beside the main job: a text, tables and plots; and the same as text."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: A few words.
        headings: Of the columns.
        rows: Cells as text.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def lines(self) -> list[str]:
        """The table as text, the first column flush left."""
        every = [self.headings, *self.rows]
        widths = [max(len(row[i]) for row in every) for i in range(len(self.headings))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in every
        ]
        return [self.title, lines[0], "─" * len(lines[0]), *lines[1:]]


@dataclass(frozen=True)
class Picture:
    """A plot: its PNG image, a title and a caption."""

    png: bytes
    title: str
    caption: str


def as_text(tables: Sequence[Table]) -> str:
    """Tables as they end a run in the terminal."""
    return "\n\n".join("\n".join(line.rstrip() for line in table.lines()) for table in tables) + "\n"


def render(title: str, paragraphs: Sequence[str], tables: Sequence[Table], pictures: Sequence[Picture]) -> str:
    """An HTML page without references to anything outside itself; all text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [(base64.b64encode(picture.png).decode("ascii"), picture) for picture in pictures]
    return environment.get_template("page.html.j2").render(
        title=title, paragraphs=paragraphs, tables=tables, pictures=shown
    )
