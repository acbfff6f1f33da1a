"""law's conversations with batch systems, mended where they are wrong about a state."""

from __future__ import annotations

from typing import Any

import law

law.contrib.load("slurm", "htcondor")

_RESUMED = ("SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "RESV_DEL_HOLD")
"""States of Slurm from which a job goes on; law takes them for failures."""


class SlurmManager(law.slurm.SlurmJobManager):
    """law's conversation with Slurm, which also remembers in which state a job has failed."""

    @classmethod
    def map_status(cls, status: str) -> str:
        """law's word for a state: a job that Slurm will go on with has not failed."""
        return str(cls.PENDING if status in _RESUMED else super().map_status(status))

    @classmethod
    def parse_squeue_output(cls, out: str) -> dict[int, Any]:
        """Read what squeue prints."""
        found: dict[int, Any] = super().parse_squeue_output(out)
        for line in out.splitlines():
            if (match := cls.squeue_cre.match(line.strip())) and found[int(match[1])]["status"] == cls.FAILED:
                found[int(match[1])]["error"] = match[2]
        return found


class HTCondorManager(law.htcondor.HTCondorJobManager):
    """law's conversation with HTCondor."""

    @classmethod
    def map_status(cls, status_flag: str | None) -> str:
        """law's word for a state: a job that brings its outputs back runs, and one that is suspended waits."""
        return str({"6": cls.RUNNING, "7": cls.PENDING}.get(str(status_flag)) or super().map_status(status_flag))


MANAGERS: dict[str, type[Any]] = {"slurm": SlurmManager, "htcondor": HTCondorManager}
"""By kind of cluster."""
