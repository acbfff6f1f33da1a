"""A small page of its own for what is asked for beside the main job: a text, tables and plots; and the same as text."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
DENSITY = 2
"""Pixels of an image beside each other in one of the page's: sharp in print, and when enlarged."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


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


@dataclass(frozen=True)
class Image:
    """A PNG image within a page.

    Attributes:
        url: All of it.
        width: In the page's pixels, of which each has `DENSITY` of the image in a row.
        height: Likewise.
    """

    url: str
    width: int
    height: int

    @staticmethod
    def of(png: bytes) -> Image:
        """Take a PNG image.

        Raises:
            ValueError: It is none.
        """
        if not png.startswith(_PNG_SIGNATURE):
            raise ValueError("no PNG image")
        # The first chunk of a PNG, IHDR, begins with width and height.
        width, height = struct.unpack(">II", png[16:24])
        url = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
        return Image(url, -(-width // DENSITY), -(-height // DENSITY))


def environment() -> jinja2.Environment:
    """What pages are made with: all text is escaped, and no script runs but the one that the page has by itself."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = (Markup((TEMPLATES / f"interaction.{kind}").read_text()) for kind in ("js", "css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made.globals |= {"script": script, "script_digest": f"sha256-{digest}", "style": style}
    return made


def as_text(tables: Sequence[Table]) -> str:
    """Tables as they end a run in the terminal."""
    return "\n\n".join("\n".join(line.rstrip() for line in table.lines()) for table in tables) + "\n"


def render(title: str, paragraphs: Sequence[str], tables: Sequence[Table], pictures: Sequence[Picture]) -> str:
    """An HTML page without references to anything outside itself; all text is escaped."""
    shown = [(Image.of(picture.png), picture) for picture in pictures]
    return (
        environment()
        .get_template("page.html.j2")
        .render(title=title, paragraphs=paragraphs, tables=tables, pictures=shown)
    )
