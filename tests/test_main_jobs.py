"""The examples as a user runs them: whole main jobs, what the README shows of one, and how well they separate."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.toy import ROOT, Law, replace
from workflow.tasks.statistics import STATISTICS


def summary_of(law: Law, analysis: str, *arguments: str) -> dict[str, Any]:
    """Run an example and read its summary."""
    folder = law.home / analysis
    law("Report", "--analysis", str(folder) if folder.exists() else analysis, *arguments)
    (link,) = law.results.glob(f"{analysis}*")
    for name in (
        *STATISTICS,
        "ensemble.onnx",
        "report.html",
        "run.json",
        "scores/*.root",
        "plots/*.pdf",
        "plots/*.png",
    ):
        assert [path for path in link.glob(name) if path.stat().st_size], f"{link}: {name}"
    content: dict[str, Any] = json.loads((link / "summary.json").read_text())
    jsonschema.validate(content, json.loads((ROOT / "docs" / "summary.schema.json").read_text()))
    return content


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Law:
    """The embedded example with a fifth of its events, in a folder where it can be edited."""
    law = Law(tmp_path_factory.mktemp("example"))
    shutil.copytree(ROOT / "analysis" / "examples" / "hww", law.home / "hww")
    replace(law.home / "hww" / "analysis.yaml", "simulation: {scale: 1.0,", "simulation: {scale: 0.2,")
    return law


@pytest.mark.slow
def test_the_embedded_example_separates_its_backgrounds(example: Law) -> None:
    summary = summary_of(example, "hww")
    for background, auc in summary["metrics"]["out_of_fold"]["auc_against"].items():
        assert 0.6 < auc["weighted"]["value"] < 0.98, background
    assert 0.2 < summary["missing"]["lepton2"] < 0.9
    assert summary["onnx"]["largest_difference"] < 1e-5


def plain(text: str) -> list[str]:
    """Lines of output without what differs from run to run and from machine to machine."""
    for pattern, sign in {
        r"\b[0-9a-f]{16}\b": "FINGERPRINT",
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ": "TIME",
        r"[\d.]+ CPU-s, \d+ MB, \S+, (?:\w{10}|no commit)(?: \+ changes)?": "COST",
        r"adopted by \S+ at": "adopted by SOMEBODY at",
        r"[\d.]+ [kM]B\b": "SIZE",
        r"(?<=[ (])/\S*/": "/",
    }.items():
        text = re.sub(pattern, sign, text)
    return [re.sub(r" +", " ", line).rstrip() for line in text.splitlines()]


@pytest.mark.slow
def test_the_readme_shows_what_is_printed(example: Law) -> None:
    """Every console block of the README, in its order, with the edits of which it speaks in between."""
    law, folder = example, example.home / "hww"
    edits = {
        "--adopt": (
            "physics.py",
            "    return _delta_phi(_lepton(events, 0), _lepton(events, 1))\n",
            "    first, second = _lepton(events, 0), _lepton(events, 1)\n    return _delta_phi(first, second)\n",
        ),
        "Prune": ("analysis.yaml", "#ff7f00", "#ff8c00"),
    }
    law("Report", "--analysis", str(folder))
    blocks = re.findall(r"^```console\n\$ law run (.*?)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert [command.split()[-1] for command, _ in blocks] == [
        "training.learning_rate=0.003",
        "--yes",
        "--print-provenance",
        "Prune",
    ]
    for command, expected in blocks:
        arguments = shlex.split(command)
        for word in {*arguments} & edits.keys():
            name, *change = edits[word]
            replace(folder / name, *change)
        if arguments[0] == "Prune":
            law("Report", "--analysis", str(folder))
            printed = plain(law("Prune").stdout)
        else:
            printed = plain(law(*arguments, "--analysis", str(folder)).stdout)
        if "…" not in expected.splitlines():
            assert printed == plain(expected)
        for part in plain(expected):
            assert part == "…" or part in printed


# Floors of the first release; docs/performance.md has what was reached.
FLOORS = {"higgsml": (0.920, 0.875), "atlas_hww": (0.850, 0.840), "cms_tutorial": (0.885, 0.885)}


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("analysis", FLOORS)
def test_public_events_reach_the_floor_out_of_fold(analysis: str, data_folder: Path, tmp_path: Path) -> None:
    assert data_folder.is_dir()
    summary = summary_of(Law(tmp_path), analysis)
    auc = summary["metrics"]["out_of_fold"]["auc"]
    assert summary["scheme"] == "rotating"
    assert summary["folds"] == 5
    weighted, unweighted = FLOORS[analysis]
    assert auc["weighted"]["value"] >= weighted
    assert auc["unweighted"]["value"] >= unweighted
