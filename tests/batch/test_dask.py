"""dask on a real Slurm: the same results, and no job left behind."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.batch.slurm import Slurm
from tests.toy import ROOT, Law, linked_environment, ran, replace
from workflow.identity import fingerprint

pytestmark = pytest.mark.batch
CLUSTER = ("--workflow", "dask", "--cluster", "test")
SECTIONS = """
[cluster_small]
kind: slurm
workers: 1
memory: 600MB
most_memory: 800MB
interface: lo

[cluster_broken]
kind: slurm
workers: 2
interface: lo
poll: 1
prologue: echo out of order >&2; exit 3

[cluster_test]
kind: slurm
queue: gpu
workers: 2
gpus: 1
memory: 3GB
walltime: 4:00:00
interface: lo
prologue: echo variables: $(compgen -e)
"""
ONE = ("ComputeFeatures", "--group", "features", "--branches", "0")
"""One branch, which calls `mass` of physics.py."""
OTHERS = ("--set", "seed=9")
"""Other networks than those that are there."""


@pytest.fixture
def batch(slurm: Slurm, law: Law, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Law:
    """The finished toy analysis, for jobs that find their environment by setup.sh."""
    assert slurm.configuration.exists()
    settings = tmp_path / "law.cfg"
    settings.write_text((ROOT / "law.cfg").read_text() + SECTIONS)
    monkeypatch.setenv("LAW_CONFIG_FILE", str(settings))
    monkeypatch.setenv("LUIGI_CONFIG_PATH", str(settings))
    monkeypatch.setenv("FROM_THE_SHELL", "1")
    # dask waits for so long whether a lost worker comes back; by default 15 s.
    monkeypatch.setenv("DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT", "1s")
    monkeypatch.setenv("EVENTFOLD_VENV", str(linked_environment(tmp_path / "venv")))
    return law


def jobs(slurm: Slurm) -> str:
    """The jobs that wait or run."""
    return slurm("squeue", "--noheader", "--states=PENDING,RUNNING")


def numbers(place: Law) -> dict[str, bytes]:
    """The networks, and histograms of the scores of all events, by where they are in the store."""
    names = ("TrainFolds/*/*/network.safetensors", "WriteStatistics/*/*/histograms.json")
    found = {str(path.relative_to(place.store)): path.read_bytes() for name in names for path in place.store.glob(name)}
    assert len(found) == 4
    return found


def test_an_interrupted_run_leaves_no_job(batch: Law, slurm: Slurm) -> None:
    head = batch.start("TrainFolds", "--analysis", batch.analysis, *OTHERS, *CLUSTER)
    while "RUNNING" not in slurm("squeue", "--noheader", "--format=%T"):
        assert head.poll() is None, head.communicate()
    head.send_signal(signal.SIGINT)
    _, said = head.communicate()
    assert "interrupted: what is complete stays" in said
    assert jobs(slurm) == ""


def test_a_fold_whose_job_is_cancelled_goes_on_elsewhere(batch: Law, slurm: Slurm) -> None:
    longer = ("--set", "training.epochs=400", "--set", "training.patience=null")
    local = Law(batch.home, Path("local"))
    shutil.copytree(batch.store, local.store, symlinks=True)
    local("TrainFolds", "--analysis", batch.analysis, *longer)
    head = batch.start("TrainFolds", "--analysis", batch.analysis, *longer, "--checkpoint", "0.5", *CLUSTER)
    while not list(batch.store.glob("TrainFolds/*/*/.checkpoint")):
        assert head.poll() is None, head.communicate()
        time.sleep(0.05)
    cancelled = slurm("squeue", "--noheader", "--states=RUNNING", "--format=%A").split()
    slurm("scancel", *cancelled)
    _, said = head.communicate()
    assert head.returncode == 0, said
    assert "goes on in epoch" in said
    ours, theirs = (
        {path.parent.name: path.read_bytes() for path in place.store.glob("TrainFolds/*/*/network.safetensors")}
        for place in (batch, local)
    )
    assert len(ours) == 6
    assert ours == theirs


def test_a_branch_whose_job_has_no_walltime_left_runs_elsewhere(batch: Law, slurm: Slurm) -> None:
    begun = batch.home / "begun"
    waits = f"""import time, pathlib
    begun = pathlib.Path({str(begun)!r})
    if not begun.exists():
        begun.touch()
        time.sleep(300)
    return 2 * values"""
    replace(batch.home / "toy" / "physics.py", "return 2 * values", waits)
    head = batch.start(*ONE, "--analysis", batch.analysis, *CLUSTER)
    while not begun.exists():
        assert head.poll() is None, head.communicate()
        time.sleep(0.05)
    (job,) = slurm("squeue", "--noheader", "--states=RUNNING", "--format=%A").split()
    slurm.shorten(job, 1)
    _, said = head.communicate()
    assert head.returncode == 0, said
    assert slurm.state(job) == "TIMEOUT"
    assert "its worker is lost, it goes on elsewhere" in said


def test_a_mistake_is_told_once(batch: Law, slurm: Slurm) -> None:
    replace(batch.home / "toy" / "physics.py", "return 2 * values", 'raise ValueError("bad weather")')
    done = batch(*ONE, "--analysis", batch.analysis, *CLUSTER, ok=False)
    assert done.stderr.count("error: ") == 2  # of the branch, and of the step
    assert done.stderr.count("ValueError: bad weather") == 1
    assert jobs(slurm) == ""


def test_want_of_memory_is_met_up_to_a_limit(batch: Law, slurm: Slurm) -> None:
    hungry = "held = bytearray(700_000_000)\n    import time\n    time.sleep(3)\n    return 2 * values"
    replace(batch.home / "toy" / "physics.py", "return 2 * values", hungry)
    done = batch(*ONE, "--analysis", batch.analysis, "--workflow", "dask", "--cluster", "small", ok=False)
    assert "1 groups need more memory: 800MB" in done.stderr
    assert "it needs more memory than its worker has (800MB). Raise memory in [cluster_small]" in done.stderr
    assert jobs(slurm) == ""
    assert "distributed" not in done.stderr
    assert "30:00" not in slurm("squeue", "--noheader", "--states=all", "--format=%l").split()  # of dask-jobqueue


def test_jobs_that_end_before_their_worker_is_there_end_the_run(batch: Law, slurm: Slurm) -> None:
    done = batch("TrainFolds", "--analysis", batch.analysis, *OTHERS, *CLUSTER[:3], "broken", ok=False)
    assert done.stderr.count("error: ") == 1
    assert "error: --cluster broken: job " in done.stderr
    assert "ended before its worker had reached this run. Its log, " in done.stderr
    assert ".err, ends with:\n    out of order\nCorrect [cluster_broken] of law.cfg" in done.stderr
    assert jobs(slurm) == ""


def test_two_runs_at_once_keep_apart_and_make_what_local_processes_make(batch: Law, slurm: Slurm) -> None:
    """As of two users: each has a store, a scheduler, certificates and jobs of its own."""
    places = [Law(batch.home, Path(name)) for name in ("one", "other")]
    asked = ("--analysis", batch.analysis, *CLUSTER)
    heads = [place.start(step, *asked) for step, place in zip(("Report", "WriteStatistics"), places, strict=True)]
    for head in heads:
        out, said = head.communicate()
        assert head.returncode == 0, said
        assert ran(subprocess.CompletedProcess([], 0, out, said))["TrainFolds"] == 3
    ours, theirs = (place.results / "toy" / "summary.json" for place in (places[0], batch))
    assert ours.read_bytes() == theirs.read_bytes()
    assert numbers(places[0]) == numbers(places[1]) == numbers(batch)
    assert jobs(slurm) == ""
    # No variable of the shell got there: all of the environment is that of setup.sh.
    for place in places:
        logs = [log.read_text() for log in (place.store / "clusters" / "test").glob("*.out")]
        assert logs
        for log in logs:
            (variables,) = re.findall("^variables: (.*)$", log, re.MULTILINE)
            assert "HOME" in variables.split()
            assert not {"FROM_THE_SHELL", "LAW_CONFIG_FILE", "EVENTFOLD_VENV"} & set(variables.split())


TRAVELLER = """
    with open({path!r}, "a") as trace:
        print(__file__, *(m.__file__ for n, m in sys.modules.items() if n.startswith(ROOMS)), file=trace)
    return FACTOR * _scale"""


@pytest.fixture
def tree(law: Law, slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of the project with an uncommitted module, which a feature reads that says whose code runs."""
    assert slurm.configuration.exists()
    project = tmp_path / "tree"
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True)
    for name in listed.splitlines():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, project / name)
    author = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
    for command in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "all")):
        subprocess.run(["git", *author, *command], cwd=project, check=True)
    with (project / "law.cfg").open("a") as settings:
        settings.write(f"{SECTIONS}ship_code: true\npoll: 1\n")
    (project / "analysis" / "factor.py").write_text("FACTOR = 5.0\n")
    physics = law.home / "toy" / "physics.py"
    replace(physics, "\n    return _scale", TRAVELLER.format(path=str(law.home / "trace.txt")))
    rooms = "import sys\nfrom analysis.factor import FACTOR\nROOMS = ('analysis.', 'models.', 'workflow.')\n"
    physics.write_text(rooms + physics.read_text())
    # Jobs start in the folder of the command: what lies there is not the project.
    (law.home / "workflow").mkdir()
    (law.home / "workflow" / "__init__.py").write_text("raise ImportError('not from here')\n")
    for variable in ("LAW_CONFIG_FILE", "LUIGI_CONFIG_PATH"):
        monkeypatch.setenv(variable, str(project / "law.cfg"))
    monkeypatch.delenv("EVENTFOLD_VENV", raising=False)
    return project


def test_code_that_nodes_do_not_see_travels(tree: Path, law: Law) -> None:
    """With dask and in law's own jobs."""
    here = Law(law.home, Path("here"), tree)
    here("WriteStatistics", "--analysis", law.analysis)
    trace = law.home / "trace.txt"
    found = set(trace.read_text().split())
    assert {f"{law.analysis}/physics.py", f"{tree}/workflow/base.py", f"{tree}/analysis/factor.py"} <= found
    assert set(numbers(here).values()).isdisjoint(numbers(law).values())

    for workflow in ("dask", "slurm"):
        trace.unlink()
        there = Law(law.home, Path(workflow), tree)
        run_without_the_tree(there, workflow)
        (copy,) = (path for path in (there.store / "clusters" / "code").iterdir() if path.name[0] != ".")
        found = set(trace.read_text().split())
        assert {f"{copy}/analysis/toy/physics.py", f"{copy}/project/workflow/base.py"} <= found
        assert [path for path in found if not path.startswith(f"{copy}/")] == []
        assert numbers(here) == numbers(there)
        records = [json.loads(path.read_text()) for path in there.store.glob("*/*/*/provenance*.json")]
        assert len({json.dumps(record["code"]) for record in records}) == 1
        assert records[0]["code"]["dirty"]
        assert json.loads((there.store / "names" / "toy.json").read_text()) == {"folder": law.analysis}


def run_without_the_tree(there: Law, workflow: str) -> None:
    """Run where jobs make their environment in the store too; it is put there beforehand."""
    tree = there.project
    assert tree is not None
    packages = (tree / "requirements.lock").read_text(), ""
    environments = there.store / "clusters" / "environments"
    environments.mkdir(parents=True)
    linked_environment(environments / fingerprint({"packages": packages}))
    head = there.start("WriteStatistics", "--analysis", there.analysis, "--workflow", workflow, "--cluster", "test")
    try:
        out, said = head.communicate(timeout=240)
    except subprocess.TimeoutExpired:  # jobs that can't import what they run are replaced for ever
        head.terminate()
        raise
    assert head.returncode == 0, said
    assert ran(subprocess.CompletedProcess([], 0, out, said))["TrainFolds"] == 3
