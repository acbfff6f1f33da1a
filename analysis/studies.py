"""The page of a study of hyper-parameters: its trials, what matters, and what it has gained. Made from plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from matplotlib.axes import Axes

from analysis.page import Image, environment
from analysis.plots import Plot, figure_of

COLORS = {"finished": "#3f90da", "stopped": "#94a4a2", "best": "#bd1f01", "configured": "#ffa90e"}
"""Petroff's (arXiv 2107.02270)."""
_SIZE = (4.6, 3.5)
MEASURES = {
    "log_loss": "class-balanced log loss",
    "auc_weighted": "AUC, weighted",
    "auc_unweighted": "AUC, unweighted",
}


def pasted(values: Mapping[str, Any]) -> dict[str, str]:
    """Values of some keys to be pasted: as options of the command line, and as a part of `analysis.yaml`."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    options = [f"--set {key}={_flow(value).replace(' ', '')}" for key, value in values.items()]
    lines = [f"{section}: {_flow(own)}" for section, own in sections.items()]
    return {"command": " ".join(options), "yaml": "\n".join(lines)}


def study_table(result: Mapping[str, Any]) -> str:
    """What came of a study, for the terminal."""
    trials, best, test = result["trials"], result["best"], result["test"]
    configured = trials[0]["loss"]
    lines = [f"{len(trials) - 1} trials: {_counted(trials)}"]
    lines.append(f"mean best validation loss: {best['loss']:.4f} in trial {best['number']}")
    if configured is not None:
        lines[-1] += f", {configured:.4f} as configured"
    if not best["number"]:
        return "\n".join([*lines, "No trial is better than what is configured."])
    if test is not None:
        lines.append(f"on {test['events']:,} held-out test events, tuned less configured:")
        width = max(len(title) for title in MEASURES.values())
        lines += [f"  {title.ljust(width)}  {_gain(test[name]['gain'])}" for name, title in MEASURES.items()]
    return "\n".join([*lines, "", "best settings:", f"  {best['command']}", "", best["yaml"]])


def study_plots(result: Mapping[str, Any]) -> list[Plot]:
    """All plots of a study."""
    plots = [_trials(result), _curves(result)]
    if result["importance"]:
        plots.append(_importance(result["importance"]))
    return plots + [_values(result, key) for key in result["space"]]


def render_study(title: str, result: Mapping[str, Any], plots: Sequence[Plot]) -> str:
    """Write the page, which refers to nothing outside itself."""
    pages = environment()
    pages.filters |= {"gain": _gain, "json": json.dumps}
    keys = list(result["space"])
    ranked = sorted(
        result["trials"],
        key=lambda t: (t["state"] != "finished", t["loss"] is None if "loss" in t else True, t.get("loss") or 0),
    )
    return pages.get_template("tuning.html.j2").render(
        title=title,
        result=result,
        keys=keys,
        counted=_counted(result["trials"]),
        configured=result["trials"][0],
        trials=ranked,
        measures=MEASURES,
        pictures=[(plot, Image.of(plot.png())) for plot in plots],
    )


def _flow(value: Any) -> str:
    """A value as YAML in one line; 1e-05 would be a text there."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def _counted(trials: Sequence[Mapping[str, Any]]) -> str:
    """How many trials ended in which way, without the one as configured."""
    states = [trial["state"] for trial in trials[1:]]
    names = {
        "finished": "trained to their end",
        "stopped": "stopped early",
        "diverged": "diverged",
        "refused": "refused",
    }
    return ", ".join(f"{states.count(state)} {words}" for state, words in names.items() if state in states)


def _gain(estimate: Mapping[str, Any]) -> str:
    """A difference with its interval; positive is better."""
    if estimate["value"] is None:
        return "–"
    if estimate["low"] is None:
        return f"{estimate['value']:+.4f}"
    return f"{estimate['value']:+.4f} [{estimate['low']:+.4f}, {estimate['high']:+.4f}]"


def _trials(result: Mapping[str, Any]) -> Plot:
    """Loss against number, and the best so far."""
    known = [trial for trial in result["trials"] if trial.get("loss") is not None]
    numbers, losses = [trial["number"] for trial in known], [trial["loss"] for trial in known]
    best: list[float] = []
    for trial in known:
        own = [trial["loss"]] if trial["state"] == "finished" else []
        best.append(min([*best[-1:], *own], default=float("nan")))
    with figure_of(_SIZE) as (drawing, ax):
        _scatter(ax, numbers, losses, known, result)
        ax.step(numbers, best, where="post", color=COLORS["best"], linewidth=1, label="best so far")
        ax.set_xlabel("trial")
        _finish(ax, losses)
    return Plot(
        "trials",
        "training",
        "Trials",
        "Mean best validation loss of the networks of each trial, at its end or where it was stopped.",
        drawing,
        {"number": numbers, "loss": losses, "state": [trial["state"] for trial in known]},
    )


def _curves(result: Mapping[str, Any]) -> Plot:
    """Best loss so far against epochs."""
    known = [trial for trial in result["trials"] if trial.get("curve")]
    with figure_of(_SIZE) as (drawing, ax):
        for trial in known:
            epochs = list(range(1, len(trial["curve"]) + 1))
            special = _special(trial, result)
            ax.plot(
                epochs,
                trial["curve"],
                color=COLORS[special or trial["state"]],
                linewidth=1.6 if special else 0.8,
                zorder=3 if special else 2,
                label=special,
            )
        ax.set_xlabel("epoch")
        _finish(ax, [trial["loss"] for trial in known])
    return Plot(
        "curves",
        "training",
        "Courses",
        "Best validation loss so far, in the mean over the folds; grey ends where a trial was stopped.",
        drawing,
        {"number": [trial["number"] for trial in known], "curve": [trial["curve"] for trial in known]},
    )


def _importance(importance: Mapping[str, float]) -> Plot:
    """How much each parameter decides."""
    with figure_of(_SIZE) as (drawing, ax):
        ax.barh(list(importance)[::-1], list(importance.values())[::-1], color=COLORS["finished"])
        ax.set_xlabel("importance")
        ax.tick_params(axis="y", which="both", length=0)
    return Plot(
        "importance",
        "training",
        "Importance",
        "Share of each parameter in whether a trial is among the best quarter (PED-ANOVA, Watanabe et al. 2023).",
        drawing,
        {"importance": dict(importance)},
    )


def _values(result: Mapping[str, Any], key: str) -> Plot:
    """Loss against the values of one key."""
    parameter = result["space"][key]
    known = [t for t in result["trials"] if t.get("loss") is not None and (key in t["values"] or not t["number"])]
    values = [trial["values"].get(key, result["configured"][key]) for trial in known]
    losses = [trial["loss"] for trial in known]
    with figure_of(_SIZE) as (drawing, ax):
        if parameter["choices"] is None:
            _scatter(ax, values, losses, known, result)
            ax.set_xscale("log" if parameter["log"] else "linear")
        else:
            texts = [json.dumps(choice) for choice in parameter["choices"]]
            labels = list(dict.fromkeys([*texts, *(json.dumps(value) for value in values)]))
            _scatter(ax, [labels.index(json.dumps(value)) for value in values], losses, known, result)
            ax.set_xticks(range(len(labels)), labels)
            ax.tick_params(axis="x", which="minor", length=0)
        ax.set_xlabel(key)
        _finish(ax, losses)
    return Plot(
        f"loss_{key.replace('.', '_')}",
        "training",
        key,
        "Mean best validation loss against the value; grey: stopped early.",
        drawing,
        {"value": values, "loss": losses, "state": [trial["state"] for trial in known]},
    )


def _scatter(
    ax: Axes, x: Sequence[Any], losses: Sequence[float], trials: Sequence[Mapping[str, Any]], result: Mapping[str, Any]
) -> None:
    """Points of trials, the best and the configured one apart."""
    kinds = [_special(trial, result) or trial["state"] for trial in trials]
    for kind in (kind for kind in ("stopped", "finished", "configured", "best") if kind in kinds):
        rows = [i for i, own in enumerate(kinds) if own == kind]
        size = 45 if kind in ("best", "configured") else 14
        ax.scatter([x[i] for i in rows], [losses[i] for i in rows], s=size, color=COLORS[kind], label=kind, zorder=3)


def _special(trial: Mapping[str, Any], result: Mapping[str, Any]) -> str | None:
    """Whether a trial is shown apart: the best one, or the one as configured."""
    if trial["number"] == result["best"]["number"]:
        return "best"
    return None if trial["number"] else "configured"


def _finish(ax: Axes, losses: Sequence[float]) -> None:
    """The axis of losses, without the few worst: what matters is among the better ones."""
    low, high = min(losses), sorted(losses)[max(0, int(0.9 * len(losses)) - 1)]
    room = max(high - low, 1e-4)
    ax.set_ylim(low - 0.08 * room, high + 0.35 * room)
    ax.set_ylabel("validation loss [nats]")
    ax.legend(loc="upper right", ncols=2)
