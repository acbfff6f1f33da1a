"""A Slurm for the tests of batch systems, started once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.batch.slurm import Slurm, obstacle, started

CONDOR = shutil.which("condor_submit") is not None
# Debian 12 has no HTCondor: these tests are left out, not skipped, as everything else can be run there.
collect_ignore = [] if CONDOR else ["test_htcondor.py"]


def pytest_report_header() -> str:
    """Say whether the tests of HTCondor run."""
    return "HTCondor: condor_submit is here" if CONDOR else "HTCondor: no condor_submit, test_htcondor.py is left out"


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A Slurm of two nodes, which SLURM_CONF names from here on."""
    if obstacle():
        pytest.skip(obstacle())
    with started() as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(running.configuration))
        yield running


@pytest.fixture(autouse=True)
def _no_jobs_stay(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test begins with an empty queue, however the one before it ended."""
    running = request.getfixturevalue("slurm") if "slurm" in request.fixturenames else None
    yield
    if running is not None:
        running.clear()
