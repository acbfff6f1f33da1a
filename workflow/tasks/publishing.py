"""What is published: folders of the store under plain names in the folder of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.errors import UserError
from workflow.base import Task
from workflow.identity import ROOT
from workflow.store import link_results, results_folder


def page_sources(page: str) -> dict[str, str]:
    """What a page is made from that is no Python, by file name: its template, and what all pages share."""
    templates = ROOT / "analysis" / "templates"
    return {name: (templates / name).read_text() for name in (f"{page}.html.j2", "interaction.css", "interaction.js")}


class PublishedTask(Task[Any]):
    """A step at whose outputs results/<name>, or results/<name>-<published>, points."""

    exclude_index = True

    @property
    def published(self) -> str:
        """What it is about, in a word or two; nothing for the results themselves."""
        return ""

    @property
    def departs(self) -> bool:
        """Whether what was asked for must not replace what is published of the analysis as configured."""
        return bool(self.set)

    def run(self) -> None:
        super().run()
        try:
            self.publish()
        except OSError as error:
            raise UserError(f"{results_folder()}: the results could not be published there: {error}") from error

    def publish(self) -> Path:
        """Point the link here by one atomic swap; with departures that of <name>@<fingerprint>."""
        name = "-".join(filter(None, (self.plan.config.name, self.published)))
        return link_results(f"{name}@{self.fingerprint}" if self.departs else name, self.folder)
