"""The main job on HTCondor, by law's own jobs and by dask; collected where jobs can be submitted (conftest.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toy import ROOT, Law, linked_environment, ran

pytestmark = pytest.mark.batch
SECTION = """
[cluster_test]
kind: htcondor
workers: 2
memory: 1GB
disk: 100MB
poll: 1
"""


@pytest.mark.parametrize("workflow", ["htcondor", "dask"])
def test_the_summary_is_that_of_local_processes(
    workflow: str, law: Law, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "law.cfg"
    settings.write_text((ROOT / "law.cfg").read_text() + SECTION)
    monkeypatch.setenv("LAW_CONFIG_FILE", str(settings))
    monkeypatch.setenv("LUIGI_CONFIG_PATH", str(settings))
    monkeypatch.setenv("EVENTFOLD_VENV", str(linked_environment(tmp_path / "venv")))
    batch = Law(law.home, Path("batch"))
    done = batch("Report", "--analysis", batch.analysis, "--workflow", workflow, "--cluster", "test")
    assert ran(done)["TrainFolds"] == 3
    ours, theirs = (place.results / "toy" / "summary.json" for place in (batch, law))
    assert ours.read_bytes() == theirs.read_bytes()
