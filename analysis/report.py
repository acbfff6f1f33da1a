"""The report: one self-contained HTML page, and the short table that ends a run in the terminal.

Both are made from plain data: what `summary.json` holds (its schema is docs/summary.schema.json), what `run.json`
holds, the cutflows, the pictures and the configuration. The page loads nothing from outside, which its content security
policy enforces, and everything in it is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any

from analysis.costs import amount, energy
from analysis.evaluation import PATTERN_EVENTS
from analysis.likelihood import WHOLE
from analysis.page import Image, environment
from analysis.selection import Cutflow

WIDTH = 100
"""Columns of the terminal table."""

CLOSURE = 4.0
"""Standard deviations from which on test events that do not stand for their process are warned of."""

SECTIONS = {
    "performance": "Performance",
    "scores": "Scores and spectators",
    "training": "Training",
    "features": "Features",
}
"""Headings of the sections of plots, in the report's order."""


@dataclass(frozen=True)
class Picture:
    """A plot as the report shows it.

    Attributes:
        name: File name without suffix, also the anchor in the page.
        title: A few words.
        caption: What is shown; pictures in a row with one caption share it.
        png: The PNG image, or the path of its file.
        section: One of `SECTIONS`.
    """

    name: str
    title: str
    caption: str
    png: bytes | Path
    section: str = "performance"


@dataclass(frozen=True)
class ReportContent:
    """Everything that the page shows.

    Attributes:
        title: Title of the analysis; its name stands in if empty.
        name: Name of the analysis.
        summary: Content of `summary.json`.
        run: Content of `run.json`: `costs`, times, hosts, versions; any nesting of mappings and lists.
        cutflows: Per process.
        pictures: In the order of the report.
        configuration: The YAML text.
        tree: What the result stands on, as lines of a tree.
        warnings: Further warnings, beside those of the summary and those that follow from it.
    """

    title: str
    name: str
    summary: Mapping[str, Any]
    run: Mapping[str, Any]
    cutflows: Mapping[str, Cutflow]
    pictures: Sequence[Picture]
    configuration: str
    tree: Sequence[str] = field(default=())
    warnings: Sequence[str] = field(default=())


def render(content: ReportContent) -> str:
    """Write the report.

    Returns:
        An HTML page without references to anything outside itself.

    Raises:
        ValueError: A picture is no PNG image or belongs to no section.
    """
    summary = content.summary
    metrics = summary["metrics"]
    pages = environment()
    pages.filters |= {
        "amount": amount,
        "energy": energy,
        "number": _number,
        "count": _count,
        "percent": _percent,
        "effective": _effective,
        "estimate": _estimate,
        "significant": _significant,
        "digits": _digits,
        "tail": _tail,
    }
    cutflows = {name: content.cutflows[name] for name in summary["yields"] if name in content.cutflows}
    cutflows |= content.cutflows  # in the order of the configuration, then any others
    shown = {"costs"} | ({"fingerprint"} if content.run.get("fingerprint") == summary["fingerprint"] else set())
    run = {key: value for key, value in content.run.items() if key not in shown}
    systematics = list(_systematics(summary["systematics"]))
    return pages.get_template("report.html.j2").render(
        title=content.title or content.name,
        name=content.name,
        summary={"targets": {}, "spectators": {}} | dict(summary),
        systematics=systematics,
        channels=bool({line.channel for line in systematics} - {"–", WHOLE}),
        samples=_samples(summary),
        test=metrics["test"],
        limit=_limit(summary["expectation"]),
        pattern_events=PATTERN_EVENTS,
        backgrounds=[c for c in summary["classes"] if c != summary["signal"]],
        warnings=list(dict.fromkeys([*content.warnings, *summary["warnings"], *notes(summary)])),
        yields=[_Yield.of(name, entry) for name, entry in summary["yields"].items()],
        cutflows=cutflows,
        steps=list(dict.fromkeys(step for flow in cutflows.values() for step in flow.entries)),
        sections=_sections(content.pictures),
        configuration=content.configuration,
        tree="\n".join(content.tree),
        costs=content.run["costs"],
        provenance=list(_flat({key: value for key, value in run.items() if not _is_records(value)})),
        records=[_Records.of(key, value) for key, value in run.items() if _is_records(value)],
    )


def notes(summary: Mapping[str, Any]) -> list[str]:
    """Warnings that follow from a summary: an optimistic scheme, dropped features, no significance."""
    result = []
    if summary["scheme"] == "standard":
        result.append(
            "Folds follow the standard scheme: each network stopped early on the fold on which its out-of-fold scores "
            "are taken, so that these are slightly optimistic. The ensemble on test events is not."
        )
    dropped = summary["dropped_features"]
    if dropped:
        names = ", ".join(dropped)
        result.append(f"Features that no selected event has, dropped before training: {names}.")
    for name, entry in summary["yields"].items():
        if abs(entry["test_closure"] or 0.0) > CLOSURE:
            result.append(
                f"Selected test events of {name}, scaled to all, are {abs(entry['test_closure']):.1f} standard "
                "deviations away from all selected events: they may not stand for the process."
            )
    if summary["expectation"]["reason"]:
        result.append(f"No expected limit is given: {summary['expectation']['reason'].rstrip('.')}.")
    if summary["significance"]["value"] is None:
        result.append(f"No significance is given: {summary['significance']['reason'].rstrip('.')}.")
    return result


def table(summary: Mapping[str, Any]) -> str:
    """Write the short table that ends a run: yields, then the weighted AUC per class, of two classes the signal's.

    Args:
        summary: Content of `summary.json`.

    Returns:
        Lines of at most `WIDTH` characters. Classes that do not fit side by side follow in further blocks.
    """
    lines = [_Yield.of(name, entry) for name, entry in summary["yields"].items()]
    numbers = [("selected", "yield", "effective", "test events")]
    numbers += [(line.entries, line.value, line.effective, line.test_entries) for line in lines]
    room = WIDTH - sum(2 + max(len(row[i]) for row in numbers) for i in range(4))
    group = min(16, room // 3)
    names = [("process", "class"), *((_cut(x.process, min(28, room - group - 2)), _cut(x.group, group)) for x in lines)]
    blocks = [_aligned([(*left, *right) for left, right in zip(names, numbers, strict=True)], left=2)]

    samples = _samples(summary)
    names_auc = summary["classes"] if len(summary["classes"]) > 2 else [summary["signal"]]
    classes = [_cut(c, 20) for c in names_auc]
    values = [[_short(m["auc_per_class"][c]["weighted"]) for c in names_auc] for _, m in samples]
    widths = [max(len(name), *(len(row[c]) for row in values)) + 2 for c, name in enumerate(classes)]
    first = max(len(label) for label, _ in samples)
    for columns in _fitting(widths, WIDTH - first):
        rows_auc = [("AUC against the rest", *(classes[c] for c in columns))]
        for (label, _), row in zip(samples, values, strict=True):
            rows_auc.append((label, *(row[c] for c in columns)))
        blocks.append(_aligned(rows_auc, left=1))

    if summary.get("targets"):
        figures = ("bias", "resolution", "spread")
        rows_targets: list[tuple[str, ...]] = [("ensemble on test events", "bias", "resolution", "spread of truth")]
        for name, target in summary["targets"].items():
            rows_targets.append((_cut(name, 26), *(_significant(target["test"][key]) for key in figures)))
        blocks.append(_aligned(rows_targets, left=1))

    significance = summary["significance"]
    if significance["value"] is None:
        last = f"Expected significance: {significance['reason']}"
    else:
        known = _significant(significance)
        limited = _significant(significance["with_simulation_uncertainty"])
        last = f"Expected significance: {known} in {_plural(significance['bins'], 'bin')};"
        last += f" {limited} with MC statistics"
    limit = _limit(summary["expectation"])
    if limit["value"] is not None:
        last += f"\nExpected upper limit on mu (95% CL): {_significant(limit)}"
    blocks.append("\n".join(_cut(line, WIDTH) for line in last.split("\n")))
    return "\n\n".join(blocks)


@dataclass(frozen=True)
class _Yield:
    """One line of the table of yields, as text."""

    process: str
    group: str
    entries: str
    value: str
    effective: str
    test_entries: str
    test_scale: str
    closure: str

    @staticmethod
    def of(name: str, entry: Mapping[str, Any]) -> _Yield:
        # Collision data have no class, count one each, and are never scaled: their number is exact, and all of them
        # are shown, whatever their bucket.
        counted = entry["class"] is None and entry["yield"] == entry["effective"] == entry["entries"]
        collision = counted and entry["test_scale"] in (None, 1.0)
        return _Yield(
            process=name,
            group=entry["class"] or "–",
            entries=_count(entry["entries"]),
            value=_count(entry["yield"]) if collision else _with_error(entry["yield"], entry["uncertainty"]),
            effective=_effective(entry["effective"]),
            test_entries="–" if collision else _count(entry["test_entries"]),
            test_scale="–" if collision else _number(entry["test_scale"]),
            closure="–" if entry["test_closure"] is None else f"{entry['test_closure']:+.1f}".replace("-", "−"),
        )


@dataclass(frozen=True)
class _Systematic:
    """One line of the table of systematic uncertainties, as text."""

    parameter: str
    kind: str
    channel: str
    processes: str
    down: str
    up: str
    shape: str
    pruned: str


KINDS = {"norm": "yields", "weight": "other weights", "shift": "shifted events", "sample": "another simulation"}
"""What kinds of systematic uncertainties are called."""


def _systematics(parameters: Mapping[str, Any]) -> Iterator[_Systematic]:
    """A line for each parameter and effect; processes, and channels, on which it has the same effect share one."""
    for name, parameter in parameters.items():
        lines: dict[tuple[str, ...], list[str]] = {}
        for channel, effects in parameter["effects"].items():
            groups: dict[tuple[str, ...], list[str]] = {}
            for process, effect in effects.items():
                sizes = (_signed_percent(effect["down"]), _signed_percent(effect["up"]))
                shape = "–" if effect["shape"] is None else _percent(effect["shape"])
                groups.setdefault((*sizes, shape, effect["pruned"] or ""), []).append(process)
            for group, processes in groups.items():
                lines.setdefault((", ".join(processes), *group), []).append(channel)
        kind = KINDS[parameter["kind"]]
        for line, channels in lines.items():
            yield _Systematic(name, kind, ", ".join(channels), *line)
        if not lines:
            yield _Systematic(name, kind, "–", "none: no effect is left", "–", "–", "–", "")


def _signed_percent(value: float) -> str:
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0%" if text in ("+0.0", "−0.0") else f"{text}%"


def _samples(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The samples on which the AUC is given: single folds, out-of-fold, ensemble on test events."""
    metrics = summary["metrics"]
    folds = [(f"network {f} on fold {f}", fold) for f, fold in enumerate(metrics["folds"])]
    return [
        *folds,
        (f"out-of-fold ({summary['scheme']})", metrics["out_of_fold"]),
        ("ensemble on test events", metrics["test"]),
    ]


@dataclass(frozen=True)
class _Shown:
    """A picture as the template needs it."""

    name: str
    title: str
    caption: str
    image: Image


@dataclass(frozen=True)
class _Block:
    """Pictures side by side, with the caption that all of them share, if they do."""

    intro: str
    pictures: list[_Shown]


def _sections(pictures: Sequence[Picture]) -> list[tuple[str, str, list[_Block]]]:
    """Anchor, heading and blocks of each section that has pictures."""
    for picture in pictures:
        if picture.section not in SECTIONS:
            raise ValueError(f"picture {picture.name!r}: section {picture.section!r} is none of {', '.join(SECTIONS)}")
    result = []
    for key, heading in SECTIONS.items():
        blocks: list[_Block] = []
        for caption, group in groupby((p for p in pictures if p.section == key), lambda p: p.caption):
            same = list(group)
            if len(same) > 1:
                blocks.append(_Block(caption, [_shown(p, "") for p in same]))
            elif blocks and not blocks[-1].intro:
                blocks[-1].pictures.append(_shown(same[0], caption))
            else:
                blocks.append(_Block("", [_shown(same[0], caption)]))
        if blocks:
            result.append((key, heading, blocks))
    return result


def _shown(picture: Picture, caption: str) -> _Shown:
    try:
        image = Image.of(picture.png.read_bytes() if isinstance(picture.png, Path) else picture.png)
    except ValueError as error:
        raise ValueError(f"picture {picture.name!r} is {error}") from None
    return _Shown(picture.name, picture.title, caption, image)


def _is_records(value: Any) -> bool:
    """Whether a value is a list of mappings, which is shown as a table."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


@dataclass(frozen=True)
class _Records:
    """A list of mappings as a table: its key, the headings, and a row of text for each."""

    key: str
    headings: list[str]
    rows: list[list[str]]

    @staticmethod
    def of(key: str, records: Sequence[Mapping[str, Any]]) -> _Records:
        flat = [dict(_flat(record)) for record in records]
        names = list(dict.fromkeys(name for record in flat for name in record))
        return _Records(
            key, [name.replace("_", " ") for name in names], [[r.get(name, "–") for name in names] for r in flat]
        )


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Key paths and values of nested mappings and lists."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        for i, item in enumerate(value):
            yield from _flat(item, f"{key}[{i}]")
    elif isinstance(value, list | tuple):
        yield key, ", ".join(map(str, value))
    else:
        yield key, "–" if value is None else str(value)


def _number(value: float | None) -> str:
    """Three significant digits or more; a power of ten from a million on and for small fractions."""
    if value is None:
        return "–"
    size = abs(value)
    if size >= 1e6:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{mantissa}·10{_superscript(int(exponent))}"
    if size >= 1000 or float(value).is_integer():
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.1f}"
    return f"{value:.3g}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _percent(fraction: float | None, digits: int = 1) -> str:
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}%"


def _effective(value: float | None) -> str:
    """An effective number of events, whole from ten on."""
    return _count(value) if value is not None and abs(value) >= 10 else _number(value)


def _exponent(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def _with_error(value: float, error: float) -> str:
    """Value ± error, both to the second significant digit of the error; with a power of ten if large or small."""
    if not error > 0:
        return _number(value)
    last = _exponent(float(f"{error:.1e}")) - 1  # place of the error's second digit, after rounding
    first = max(_exponent(round(value, -last)), last + 1) if value else last + 1
    if first - last > 9:
        return f"{value:.8g} ± {error:.2g}"
    if first >= 6 or first < -4:
        digits = first - last
        # As decimals, since 10**first is no float for the smallest numbers.
        mantissas = (float(Decimal(x).scaleb(-first)) for x in (value, error))
        return f"({' ± '.join(f'{m:.{digits}f}' for m in mantissas)})·10{_superscript(first)}"
    return f"{round(value, -last):,.{max(0, -last)}f} ± {round(error, -last):,.{max(0, -last)}f}"


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _digits(value: float | None) -> int:
    """Decimals that show two significant digits of a value, at least two."""
    return max(2, 1 - _exponent(value)) if value else 2


def _significant(estimate: Mapping[str, Any]) -> str:
    """Value with its interval, to two significant digits of a value below 0.1, else to two decimals."""
    return _estimate(estimate, _digits(estimate["value"]))


def _limit(expectation: Mapping[str, Any]) -> dict[str, Any]:
    """The median of the expected limit, with its 68% band."""
    limit = expectation["limit"] or {}
    return {key: limit.get(name) for key, name in (("value", "median"), ("low", "low_68"), ("high", "high_68"))}


def _estimate(estimate: Mapping[str, Any], digits: int = 4) -> str:
    """Value with its 68% interval in brackets."""
    if estimate["value"] is None:
        return "not defined"
    style = f".{digits}f" if digits <= 6 else ".1e"
    text = f"{estimate['value']:{style}}"
    if estimate["low"] is None or estimate["high"] is None:
        return text
    return f"{text} [{estimate['low']:{style}}, {estimate['high']:{style}}]"


def _tail(estimate: Mapping[str, Any], digits: int = 4) -> str:
    """The interval as distances from the value: +0.0021 −0.0023."""
    if None in (estimate["value"], estimate["low"], estimate["high"]):
        return ""
    up, down = estimate["high"] - estimate["value"], estimate["value"] - estimate["low"]
    style = f"+.{digits}f" if digits <= 6 else "+.1e"
    return f"{up:{style}} {-down:{style}}".replace("-", "−")


def _short(estimate: Mapping[str, Any]) -> str:
    """Value ± half the interval."""
    if estimate["value"] is None:
        return "–"
    if estimate["low"] is None or estimate["high"] is None:
        return f"{estimate['value']:.4f}"
    return f"{estimate['value']:.4f} ± {(estimate['high'] - estimate['low']) / 2:.4f}"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _fitting(widths: Sequence[int], available: int) -> list[list[int]]:
    """Divide columns into blocks of at most the available width, at least one each."""
    blocks: list[list[int]] = [[]]
    used = 0
    for column, width in enumerate(widths):
        if blocks[-1] and used + width > available:
            blocks.append([])
            used = 0
        blocks[-1].append(column)
        used += width
    return blocks


def _aligned(rows: Sequence[tuple[str, ...]], left: int) -> str:
    """Rows as text, the first `left` columns flush left, the others flush right; a rule below the first row."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0].rstrip(), "─" * len(lines[0]), *(line.rstrip() for line in lines[1:])])
