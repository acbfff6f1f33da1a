"""Clusters as profiles: the sections `[cluster_NAME]` of law.cfg, what jobs find there, and clusters of dask."""

from __future__ import annotations

import getpass
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlsplit

import law

from analysis.errors import UserError, nearest
from workflow import SINGLE_THREADED
from workflow.identity import ROOT

if TYPE_CHECKING:
    from distributed import Security

    from workflow.execution.shipping import Shipped
    from workflow.execution.submission import Submissions

_log = logging.getLogger(__name__)

PREFIX = "cluster_"
Kind = Literal["local", "slurm", "htcondor", "scheduler"]
LOOPBACK = "127.0.0.1:0"
"""Where schedulers and workers serve HTTP without TLS, at any free port: dask does so without a dashboard too."""
STARTS = 3
"""Times that workers of this machine are started before a run gives up."""
DEVICES = Path("/dev")
DEFAULT_MEMORY = "2GB"
"""Of a worker of a batch system."""
WORKERS: dict[str, Any] = {
    # A group of branches watches its memory itself (workflow/execution/workers.py).
    **{f"distributed.worker.memory.{level}": False for level in ("target", "spill", "pause", "terminate")},
    # Else whoever is on the machine can read over HTTP what runs there.
    "distributed.worker.http.routes": [],
    # dask's own profile of what workers do looks at them a hundred times a second.
    "distributed.worker.profile.enabled": False,
}
"""Configuration of dask for workers."""
PASSED = ("EVENTFOLD_STORE", "EVENTFOLD_DATA", "EVENTFOLD_VENV", "EVENTFOLD_TORCH")
"""Variables of the submitting shell that jobs get; everything else comes from setup.sh."""


@dataclass(frozen=True)
class Profile:
    """Where branches run.

    Attributes:
        name: What `--cluster` calls it.
        kind: ``local`` processes; jobs of ``slurm`` or ``htcondor``; a ``scheduler`` of dask that runs already.
        workers: Most workers; 0 for one on each core of this machine.
        minimum: Workers that are kept while there is work.
        memory: Of a worker, as in ``4GB``; by default an equal share of this machine's, or 2 GB of a batch system's.
        most_memory: Up to which a branch that needs more than that is tried again with twice as much.
        gpus: Of a worker.
        gpu_cluster: The profile whose workers train networks; by default this one.
        queue: Partition of Slurm.
        account: Account that pays.
        walltime: Of a job, as Slurm writes it: ``4:00:00``.
        disk: Of a job of HTCondor, as in ``10GB``.
        interface: Network interface that workers and scheduler share; by default that of the host's name.
        scratch: Folder for workers' own files, on their machine.
        directives: Further lines of the job's description, one a line.
        skip: Directives to leave out, one a line.
        prologue: Shell commands before setup.sh, one a line.
        address: Of a running scheduler.
        scheduler_file: Of a running scheduler.
        death_timeout: Seconds after which a worker without a scheduler ends.
        poll: Seconds between two questions of law's own workflows after their jobs.
        ship_code: Whether jobs run a copy in the store of the submitting tree, which they can't see itself.
        dashboard: Whether dask shows pages about itself; a parameter of the run, no key of law.cfg.
    """

    name: str
    kind: Kind = "local"
    workers: int = 0
    minimum: int = 0
    memory: str = ""
    most_memory: str = ""
    gpus: int = 0
    gpu_cluster: str = ""
    queue: str = ""
    account: str = ""
    walltime: str = ""
    disk: str = "4GB"
    interface: str = ""
    scratch: str = ""
    directives: str = ""
    skip: str = ""
    prologue: str = ""
    address: str = ""
    scheduler_file: str = ""
    death_timeout: int = 60
    poll: int = 10
    ship_code: bool = False
    dashboard: bool = False

    @property
    def most(self) -> int:
        """Most workers."""
        return self.workers or available_cores()

    def kept(self, described: Iterable[str]) -> list[str]:
        """Lines of a job's description but for those to leave out, which hold one of the texts of `skip`."""
        return [line for line in described if not any(text in line for text in lines(self.skip))]


KEYS = {field.name: str(field.type) for field in fields(Profile) if field.name not in ("name", "dashboard")}
"""What a section of law.cfg may hold, and of which type."""


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU that this process may use; asked without importing torch."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and any(DEVICES.glob("nvidia[0-9]*"))


def profile(name: str) -> Profile:
    """Read a profile from law.cfg.

    Raises:
        UserError: There is none of that name, or it has an unknown key or a value of a wrong kind.
    """
    config, known = law.config.Config.instance(), names()
    if name not in known:
        raise UserError(f"--cluster {name}: law.cfg has no section [{PREFIX}{name}]. {nearest(name, known)}")
    section = f"{PREFIX}{name}"
    values: dict[str, Any] = {}
    for key in config.options(section):
        if key not in KEYS:
            raise UserError(f"law.cfg, [{section}]: {key} is no key of a cluster. {nearest(key, KEYS)}")
        text = str(config.get_expanded(section, key, default="") or "").strip()
        if KEYS[key] == "int" and not text.isdigit():
            raise UserError(f"law.cfg, [{section}]: {key} is {text!r}; expected a whole number.")
        if KEYS[key] == "bool" and text not in ("true", "false"):
            raise UserError(f"law.cfg, [{section}]: {key} is {text!r}; expected true or false.")
        values[key] = int(text) if KEYS[key] == "int" else text == "true" if KEYS[key] == "bool" else text
    chosen = Profile(name, **values)
    if chosen.kind not in get_args(Kind):
        raise UserError(f"law.cfg, [{section}]: kind is {chosen.kind!r}; expected one of {', '.join(get_args(Kind))}.")
    if chosen.kind == "scheduler" and not (chosen.address or chosen.scheduler_file):
        raise UserError(f"law.cfg, [{section}]: a cluster of kind scheduler needs address or scheduler_file.")
    for key in ("memory", "most_memory", "disk"):
        _check_size(section, key, getattr(chosen, key))
    for line in lines(chosen.directives) if chosen.kind == "htcondor" else ():
        if "=" not in line:
            raise UserError(f"law.cfg, [{section}]: directives has {line!r}; expected NAME = VALUE.")
    if chosen.ship_code and chosen.kind not in ("slurm", "htcondor"):
        raise UserError(f"law.cfg, [{section}]: ship_code is for kind slurm or htcondor, not {chosen.kind}.")
    return chosen


def _check_size(section: str, key: str, text: str) -> None:
    from dask.utils import parse_bytes

    try:
        parse_bytes(text or 0)
    except ValueError as error:
        raise UserError(f"law.cfg, [{section}]: {key} is {text!r}; expected a size, such as 4GB.") from error


def names() -> list[str]:
    """All profiles of law.cfg."""
    sections = law.config.Config.instance().sections()
    return sorted(section.removeprefix(PREFIX) for section in sections if section.startswith(PREFIX))


def profile_of(task: Any) -> Profile:
    """The profile that a step asks for; training may have one of its own."""
    chosen = profile(task.cluster)
    if task.wants_gpu and chosen.gpu_cluster:
        chosen = profile(chosen.gpu_cluster)
    return replace(chosen, dashboard=task.dashboard)


def with_more_memory(chosen: Profile) -> Profile | None:
    """The same with twice the memory of a worker, and fewer workers on this machine; None where that is too much."""
    from dask.utils import parse_bytes

    if not chosen.most_memory or chosen.kind == "scheduler":
        return None
    if chosen.kind == "local" and not chosen.memory:
        from distributed.system import MEMORY_LIMIT

        before = MEMORY_LIMIT // available_cores()  # dask's share for one thread
    else:
        before = parse_bytes(chosen.memory or DEFAULT_MEMORY)
    more = min(2 * before, parse_bytes(chosen.most_memory))
    if more <= before:
        return None
    workers = max(1, chosen.most // 2) if chosen.kind == "local" else chosen.workers
    return replace(chosen, memory=f"{more // 10**6}MB", workers=workers)


def start(
    chosen: Profile,
    folder: Path,
    variables: Sequence[str],
    shipped: Shipped | None = None,
    give_up: Callable[[str], object] = _log.error,
) -> Any:
    """Start a dask cluster whose scheduler and workers speak TLS, with certificates of its own.

    Args:
        chosen: The profile; not of kind ``scheduler``.
        folder: Where the logs of jobs and the certificates of this run are kept; every worker must see it.
        variables: Names of variables of the environment that the analysis reads.
        shipped: The copy of the code that jobs run; by default they run the tree itself.
        give_up: Called with the reason where the batch system refuses jobs, or they end at once, and none is left.

    Raises:
        UserError: The batch system's programs are not there.
    """
    import dask
    from distributed import Security
    from distributed.deploy.spec import SpecCluster

    from workflow.execution.managers import MANAGERS
    from workflow.execution.submission import Submissions

    dask.config.set(WORKERS)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    security = Security.temporary()
    with dask.config.set({} if chosen.dashboard else {"distributed.scheduler.http.routes": []}):
        if chosen.kind == "local":
            return _local_cluster(chosen, folder, security)
        prologue = bootstrap(chosen, variables, shipped)
        submissions = Submissions(MANAGERS[chosen.kind](), folder, chosen.poll, give_up)
        cluster: SpecCluster = _batch_cluster(chosen, folder, security, prologue, submissions)
        cluster.sync(_plug, cluster, submissions)
    # Jobs that are lost are replaced; those that have had nothing to do for a minute end.
    cluster.adapt(
        minimum_jobs=chosen.minimum, maximum_jobs=chosen.most, interval="1s", wait_count=60, target_duration="5s"
    )
    return cluster


def _local_cluster(chosen: Profile, folder: Path, security: Security, starts: int = STARTS) -> Any:
    """Start workers on this machine; anew if one is lost before all are there, for which dask has no remedy."""
    from distributed import LocalCluster, SpecCluster

    class Patient(LocalCluster):
        """One whose workers may take as long as they need to come back."""

        def _update_worker_status(self, op: str, msg: Any) -> None:
            # That of SpecCluster ends a lost worker which its nanny has not brought back within 15 s, and forgets it.
            super(SpecCluster, self)._update_worker_status(op, msg)

    try:
        return Patient(
            n_workers=chosen.most,
            threads_per_worker=1,
            processes=True,
            protocol="tls://",
            host="127.0.0.1",
            security=security,
            dashboard_address=LOOPBACK,
            scheduler_kwargs={"dashboard": chosen.dashboard},
            memory_limit=chosen.memory or "auto",
            resources={"GPU": 1} if chosen.gpus else None,
            local_directory=chosen.scratch or str(folder),
            death_timeout=chosen.death_timeout,
            silence_logs=40,
        )
    except RuntimeError as error:
        if starts == 1:
            raise UserError(
                f"--cluster {chosen.name}: {STARTS} times a worker was lost while it started ({error}). Memory may be "
                "short: fewer workers in its section of law.cfg need less."
            ) from error
        return _local_cluster(chosen, folder, security, starts - 1)


def replace_lost(cluster: Any, count: int) -> None:
    """Start workers of this machine anew whose nannies have given up: without any, groups would wait for ever."""
    from distributed.core import Status

    async def work() -> None:
        for name, nanny in list(cluster.workers.items()):
            if nanny.status in (Status.closed, Status.failed):
                del cluster.workers[name]
        cluster.scale(count)

    cluster.sync(work)


def _batch_cluster(
    chosen: Profile, folder: Path, security: Security, prologue: Sequence[str], submissions: Submissions
) -> Any:
    with _own_interrupt():
        from dask_jobqueue.htcondor import HTCondorCluster, HTCondorJob
        from dask_jobqueue.slurm import SLURMCluster, SLURMJob

    require_submission(chosen)
    if shlex.quote(str(folder)) != str(folder):
        raise UserError(
            f"--cluster {chosen.name}: jobs of dask can't write to {folder}: choose a store (EVENTFOLD_STORE) whose "
            "path has no spaces or quotes, or --workflow slurm or htcondor."
        )
    common: dict[str, Any] = {
        "cores": 1,
        "processes": 1,
        "memory": chosen.memory or DEFAULT_MEMORY,
        "protocol": "tls://",
        "security": security,
        "shared_temp_directory": str(folder),
        "log_directory": str(folder),
        "interface": chosen.interface or None,
        "local_directory": chosen.scratch or None,
        "death_timeout": chosen.death_timeout,
        "job_name": "eventfold",
        "python": "python",
        "shebang": "#!/bin/bash",
        "worker_extra_args": [
            "--no-dashboard",
            "--dashboard-address",
            LOOPBACK,
            *(["--resources", f"GPU={chosen.gpus}"] if chosen.gpus else []),
        ],
        "job_script_prologue": prologue,
        "scheduler_options": {
            "dashboard": chosen.dashboard,
            "dashboard_address": LOOPBACK,
            **({} if chosen.interface else {"host": socket.getfqdn()}),
        },
        "silence_logs": "error",
    }
    if chosen.kind == "slurm":
        gpus = [f"--gres=gpu:{chosen.gpus}"] if chosen.gpus else []
        return SLURMCluster(
            # Without a walltime dask-jobqueue would ask for half an hour.
            job_directives_skip=[*lines(chosen.skip), *([] if chosen.walltime else ["-t "])],
            job_cls=submissions.watched(SLURMJob),
            queue=chosen.queue or None,
            account=chosen.account or None,
            walltime=chosen.walltime or None,
            job_extra_directives=chosen.kept(["--export=NONE", *gpus, *lines(chosen.directives)]),
            **common,
        )

    class BashJob(HTCondorJob):
        executable = "/bin/bash"  # /bin/sh may be a shell that can't source setup.sh

        def job_script(self) -> str:
            header = self.job_header_dict.items()
            self.job_header_dict = {name: value for name, value in header if chosen.kept([f"{name} = {value}"])}
            return str(super().job_script())

    pairs = dict(line.split("=", 1) for line in lines(chosen.directives))
    gpus_wanted = {"request_gpus": str(chosen.gpus)} if chosen.gpus else {}
    return HTCondorCluster(
        job_cls=submissions.watched(BashJob),
        disk=chosen.disk,
        job_extra_directives={**gpus_wanted, **{key.strip(): value.strip() for key, value in pairs.items()}},
        **common,
    )


def say_dashboard(link: str) -> None:
    """Say where dask's pages are, and how they are reached from another machine."""
    found = urlsplit(link)
    tunnel = f"ssh -N -L {found.port}:{found.netloc} {getpass.getuser()}@{socket.getfqdn()}"
    there = found._replace(netloc=f"127.0.0.1:{found.port}").geturl()
    print(  # noqa: T201
        f"dashboard: {link}\nfrom another machine: {tunnel}, then {there}", file=sys.stderr, flush=True
    )


async def _plug(cluster: Any, plugin: Submissions) -> None:
    cluster.scheduler.add_plugin(plugin)


def require_submission(chosen: Profile) -> None:
    """Make sure that jobs can be submitted from here.

    Raises:
        UserError: The batch system's programs are not there.
    """
    program = {"slurm": "sbatch", "htcondor": "condor_submit"}[chosen.kind]
    if shutil.which(program) is None:
        raise UserError(
            f"--cluster {chosen.name}: {program} is not on this machine; start the run where jobs are submitted."
        )


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Keep this process's handler of Ctrl-C: importing dask_jobqueue 0.9 replaces it."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def bootstrap(chosen: Profile, variables: Sequence[str], shipped: Shipped | None = None) -> list[str]:
    """Shell commands that make the environment of a job: nothing but setup.sh, and the variables that are read."""
    root, own = (ROOT, {}) if shipped is None else (shipped.project, dict(shipped.variables))
    values = {name: os.environ[name] for name in (*PASSED, *variables) if name in os.environ} | own
    passed = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
    settings = {f"DASK_{key.upper().replace('.', '__')}": value for key, value in WORKERS.items()}
    pinned = [f"export {name}={value}" for name, value in (SINGLE_THREADED | settings).items()]
    return [*lines(chosen.prologue), *passed, *pinned, f"source {shlex.quote(str(root / 'setup.sh'))} || exit 1"]


def variables_of(folder: Path) -> tuple[str, ...]:
    """Names of the variables of the environment that the analysis in a folder reads."""
    text = re.sub(r"(?m)(^|\s)#.*$", "", (folder / "analysis.yaml").read_text())  # without comments
    return tuple(sorted(set(re.findall(r"\$\{?(\w+)", text))))


def prove_gpu(who: str) -> None:
    """Say in the log which GPU the batch system has assigned.

    Raises:
        RuntimeError: It has assigned none.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not given:
        raise RuntimeError(f"{who}: CUDA_VISIBLE_DEVICES is empty: the batch system gave it no GPU")
    found = ""
    if shutil.which("nvidia-smi"):
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout.strip()
    print(f"{who}: GPU {given}: {found or 'no nvidia-smi'}", file=sys.stderr, flush=True)  # noqa: T201


def lines(text: str) -> list[str]:
    """The lines of a key of several lines."""
    return [line.strip() for line in text.splitlines() if line.strip()]
