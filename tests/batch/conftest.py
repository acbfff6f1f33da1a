"""A Slurm for the tests of batch systems, started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.batch.slurm import Slurm, obstacle, started


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
