"""docs/batch.md and docs/execution.md say what the code does: keys, options, messages, sources and links."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import distributed
import luigi
import pytest

from workflow.execution.clusters import KEYS

ROOT = Path(__file__).resolve().parent.parent
PAGE, REFERENCE, SETTINGS = ((ROOT / name).read_text() for name in ("docs/batch.md", "docs/execution.md", "law.cfg"))
SLURM = {
    "Invalid partition name specified",
    "Invalid account or account/partition combination specified",
    "Invalid generic resource (gres) specification",
    "Requested node configuration is not available",
    "Memory specification can not be satisfied",
    "Requested time limit is invalid (missing or exceeds some limit)",
    "Exceeded job memory limit",
    "DUE TO TIME LIMIT",
    "Invalid feature specification",
}
FOREIGN = {
    "Can't find address of local schedd",  # condor_submit
    "memory usage exceeded request_memory",  # HTCondor, where it holds a job
    "No such file or directory",  # bash
    "python: not found",  # bash, of what replaces it
    "python: command not found",  # bash
}


def messages() -> list[str]:
    """What the table of errors quotes."""
    rows = re.findall(r"^\| (.+?) \|", PAGE.partition("## What goes wrong")[2], re.MULTILINE)
    quoted = [text for row in rows for text in re.findall("`(.+?)`", row)]
    return [text for text in quoted if " " in text]


def test_the_messages_that_people_meet_are_quoted_as_they_are() -> None:
    code = "".join(path.read_text() for path in [*(ROOT / "workflow").rglob("*.py"), ROOT / "setup.sh"])
    whole = re.sub(r'"\n\s+f?"', "", code)  # messages of several lines
    whole = whole.replace("{LOSSES}", "5").replace("{PREFIX}", "cluster_")
    packages = Path(distributed.__file__).parents[1]  # importing dask_jobqueue would replace the handler of Ctrl-C
    whole += (packages / "distributed" / "worker.py").read_text() + (packages / "dask_jobqueue" / "core.py").read_text()
    others = SLURM | FOREIGN
    assert [text for text in messages() if text not in whole and text not in others] == []
    assert others <= set(messages())


def test_the_messages_of_slurm_are_those_of_its_programs() -> None:
    programs = [path for name in ("sbatch", "slurmctld", "slurmstepd") if (path := shutil.which(name))]
    if not programs:
        pytest.skip("no Slurm here")
    linked = subprocess.run(["ldd", programs[0]], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"=> (\S*slurm\S*)", linked)
    content = b"".join(Path(path).read_bytes() for path in [*programs, *libraries])
    assert [text for text in SLURM if text.encode() not in content] == []


def test_every_key_of_a_cluster_is_documented() -> None:
    table = REFERENCE.partition("## Keys")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    found = [key for row in rows for key in re.findall(r"`(\w+)`", row)]
    assert sorted(found) == sorted(KEYS)


def test_every_command_has_options_that_exist() -> None:
    import workflow.tasks  # noqa: F401 -- registers them

    found = re.findall(r"law run (\w+)([^`#\n]*)", PAGE + REFERENCE)
    assert len(found) > 8
    for family, rest in found:
        for option in re.findall(r"--([\w-]+)", rest):
            other, _, name = option.rpartition("-") if option[0].isupper() else (family, "", option)
            task = luigi.task_register.Register.get_task_cls(other)
            assert name.replace("-", "_") in dict(task.get_params()), f"law run {family} --{option}"


def test_every_site_that_ships_is_documented_with_its_source() -> None:
    sites = set(re.findall(r"^\[cluster_(\w+)\]", SETTINGS, re.MULTILINE)) - {"local"}
    rows = re.findall(r"^\| (`.+) \|$", PAGE.partition("## Sites that ship")[2].partition("\n## ")[0], re.MULTILINE)
    named = {name: row for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[0])}
    assert {name.removesuffix("_gpu") for name in sites} == set(named)
    assert all("](http" in row for row in named.values())
    sources = re.findall(r"https?://\S+", SETTINGS)
    assert len(sources) == 3
    assert [url for url in sources if f"]({url})" not in PAGE] == []


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", (ROOT / page).read_text()):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{target}#{anchor}"
