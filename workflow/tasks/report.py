"""Report: one page, one summary, and plain names for everything that was asked for."""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import luigi

from analysis.config import Configuration
from analysis.costs import price
from workflow.base import Given
from workflow.costs import Cost, account
from workflow.identity import canonical
from workflow.plan import SkippedFile
from workflow.provenance import source_version
from workflow.pruning import note_publication
from workflow.store import read_json, results_folder, write_json
from workflow.tasks.evaluate import EvaluateEnsemble, require_varied
from workflow.tasks.export import ExportEnsemble
from workflow.tasks.plots import PlotResults
from workflow.tasks.publishing import PublishedTask, page_sources
from workflow.tasks.score import ScoreEvents
from workflow.tasks.statistics import STATISTICS, WriteStatistics
from workflow.tasks.tables import Sums, load_cutflows, require_events

PUBLISHING_FAILED = 60
"""Exit code of a run that had nothing to do and could not publish."""
NAMED = 5
"""Skipped files of a data set that a warning names; the summary names all."""


@dataclass(frozen=True)
class ReportSlice:
    """The report shows the whole configuration, and says which bad files were left out."""

    config: Configuration
    skipped: tuple[SkippedFile, ...]


class Report(PublishedTask):
    """Write the report and point results/<name> at it and at all that it stands on."""

    exclude_index = False

    def requires(self) -> Any:
        shifted = [f"scores of {shift}" for shift in self.plan.config.shifts]
        return {
            **require_events(self, tuple(self.plan.config.data.datasets), ()),
            "export": ExportEnsemble.req(self),
            "scores": ScoreEvents.req(self, branch=-1),  # those of processes that stand for others among them
            **{name: scores for name, scores in require_varied(self).items() if name in shifted},
            "evaluation": EvaluateEnsemble.req(self),
            "statistics": WriteStatistics.req(self),
            "plots": PlotResults.req(self),
        }

    def slice(self, config: Configuration) -> ReportSlice:
        # A study beside the main job is no part of it: how it is configured changes nothing here.
        return ReportSlice(config.model_copy(update={"tuning": None}), self.plan.skipped)

    def outside(self) -> Any:
        # Files lend their names to links and warnings.
        return {
            "templates": page_sources("report"),
            "files": [(file.dataset, file.key, file.identity) for file in self.plan.files],
        }

    def files(self) -> Sequence[str]:
        linked = ("ensemble.onnx", *STATISTICS, "plots/", "scores/")
        return ("report.html", "summary.json", "table.txt", "run.json", *linked)

    @staticmethod
    def compute(settings: ReportSlice, given: Given, out: Path) -> None:
        from analysis.report import render, table
        from analysis.table import TableSettings

        config = settings.config
        summary, run = summary_of(config, settings.skipped, given), run_of(config, given)
        write_json(out / "summary.json", summary)
        (out / "table.txt").write_text(table(summary) + "\n")
        write_json(out / "run.json", run)
        for name, target in links_of(given.made).items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).symlink_to(os.path.relpath(target, given.own.path(name).parent))
        table_settings = TableSettings.of(config, tuple(config.processes), ())
        cutflows = load_cutflows(given.made, table_settings, Sums.of(config, config.data.datasets))
        content = report_content(config, summary, run, cutflows, given)
        (out / "report.html").write_text(render(content))

    def conclude(self) -> None:
        """`publish` has said it."""

    def publish(self) -> Path:
        """Point results/<name> here, and print the table."""
        link = super().publish()
        note_publication(link)
        with suppress(PermissionError):  # somebody else's run
            os.utime(self.path("run.json"))  # `Prune` shows when results were last used
        said = [f"\n{self.path('table.txt').read_text()}"]
        with suppress(
            ValueError, KeyError
        ):  # an adopted report of an earlier version has none; a broken file stops no table
            said.append(price(read_json(self.path("run.json"))["costs"], training="TrainFolds"))
        said.append(f"report: {link / 'report.html'}")
        sys.stdout.write("\n".join(said) + "\n")
        sys.stdout.flush()
        return link


@Report.event_handler(luigi.Event.DEPENDENCY_PRESENT)
def _publish(task: Report) -> None:
    """A run that has nothing to do publishes too. luigi swallows what a handler raises: the process ends here then."""
    try:
        task.publish()
    except OSError as error:
        sys.stderr.write(f"\nerror: {results_folder()}: the results could not be published there: {error}\n")
        sys.stderr.flush()
        os._exit(PUBLISHING_FAILED)


def summary_of(config: Configuration, skipped: Sequence[SkippedFile], given: Given) -> dict[str, Any]:
    """`summary.json`: all that is deterministic."""
    evaluation = read_json(given.made["evaluation"].path("evaluation.json"))
    inputs = [inputs.about for inputs in given.made["inputs"].values()]
    warnings = warnings_of(config, evaluation, [file.key for file in inputs if file.entries == 0])
    return {
        "analysis": config.name,
        "title": config.title or config.name,
        "fingerprint": given.fingerprint,
        **evaluation,
        "expectation": read_json(given.made["statistics"].path("expectation.json")),
        "systematics": read_json(given.made["statistics"].path("systematics.json")),
        "prior": config.training.prior,
        "skipped": [{"dataset": file.dataset, "file": file.key, "reason": file.reason} for file in skipped],
        "warnings": [*warnings_of_skipped(config, skipped, Counter(file.dataset for file in inputs)), *warnings],
    }


def run_of(config: Configuration, given: Given) -> dict[str, Any]:
    """`run.json`: when, where and at what cost."""
    shown = ("step", "label", "record", "fingerprint", "started", "host")
    records = given.lineage()
    return {
        "analysis": config.name,
        **given.request,
        "fingerprint": given.fingerprint,
        "host": socket.gethostname(),
        "code": source_version(),
        "costs": account(records),
        "steps": [{**{key: record[key] for key in shown}, **Cost.of(record).record()} for record in records],
    }


def links_of(made: Mapping[str, Any]) -> dict[str, Path]:
    """What stands in results/<name>/ by a plain name, and where it is."""
    links = {
        "ensemble.onnx": made["export"].path("ensemble.onnx"),
        **{name: made["statistics"].path(name) for name in STATISTICS},
        "plots": made["plots"].path("plots"),
    }
    keys = Counter(scores.about.key for scores in made["scores"].values())
    for scores in made["scores"].values():
        file = scores.about
        name = file.key if keys[file.key] == 1 else f"{file.dataset}-{file.key}"
        links[f"scores/{name}"] = scores.path("friend.root")
        links |= {
            f"scores/{key.removeprefix('scores of ')}/{name}": own.path("friend.root")
            for key, branches in made.items()
            if key.startswith("scores of ")
            for own in branches.values()
            if own.about == file
        }
    return links


def report_content(
    config: Configuration, summary: dict[str, Any], run: dict[str, Any], cutflows: dict[str, Any], given: Given
) -> Any:
    """Gather what the page shows."""
    import yaml

    from analysis.report import Picture, ReportContent

    plots = given.made["plots"].path("plots")
    shown = {key: value for key, value in canonical(config).items() if value is not None or key != "tuning"}
    return ReportContent(
        title=config.title or config.name,
        name=config.name,
        summary=summary,
        run=run,
        cutflows=cutflows,
        pictures=[
            Picture(
                plot["name"],
                plot["title"],
                plot["caption"],
                plots / f"{plot['name']}.png",
                plot["section"],
            )
            for plot in read_json(plots / "index.json")
        ],
        configuration=yaml.safe_dump(shown, sort_keys=False, allow_unicode=True),
        tree=given.tree(),
    )


def warnings_of_skipped(
    config: Configuration, skipped: Sequence[SkippedFile], good: Mapping[str, int]
) -> Iterator[str]:
    """What a reader of the report has to know of bad files that were left out.

    Args:
        config: The configuration.
        skipped: These files.
        good: Number of files of each data set that were read.
    """
    for dataset in dict.fromkeys(file.dataset for file in skipped):
        bad = [f"{file.key} {file.reason}" for file in skipped if file.dataset == dataset]
        more = f"; and {len(bad) - NAMED} more, which summary.json names" if len(bad) > NAMED else ""
        yield (
            f"{len(bad)} of {len(bad) + good[dataset]} files of data set {dataset} are bad and were skipped: "
            f"{'; '.join(bad[:NAMED])}{more}."
        )
        lacking = [p for p in config.processes_of(dataset) if config.processes[p].normalisation == "as_is"]
        if lacking and config.data.datasets[dataset].collision:
            yield f"The luminosity of {', '.join(lacking)} is lower by that of the skipped files."
        elif lacking:
            yield (
                f"Weights of {', '.join(lacking)} are used as they are (`normalisation: as_is`): the events of the "
                "skipped files are missing in the yield."
            )


def warnings_of(config: Configuration, evaluation: dict[str, Any], empty: Sequence[str]) -> list[str]:
    """What a reader of the report has to know, beside what the report itself finds in the summary."""
    found = [f"{name} has no entries." for name in empty]
    for name, process in evaluation["yields"].items():
        if process["entries"] == 0:
            found.append(f"No event of process {name} passes the selection.")
        if process["test_scale"] is None and process["entries"]:
            found.append(
                f"Process {name} has no test events whose weights sum to more than 0: it is missing in "
                "templates, plots and significance."
            )
    if not config.identity.columns:
        found.append(
            "The events have no event numbers: each is known by its file's base name and its entry, so that renaming a "
            "file moves its events to other folds."
        )
    return [*found, *config.model.warnings]
