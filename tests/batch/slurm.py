"""A Slurm of two nodes on this machine: all of its files in one folder, all of its ports on loopback, no systemd."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PACKAGES = "slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins"
"""Debian's packages that hold them."""

NODES = ("node1", "node2")

# Nodes have the processors and the memory that stand here, whatever the machine has (config_overrides). Memory is
# shared out as processors are (CR_Core_Memory), and a job that uses more than it asked for is killed within seconds,
# without cgroups (JobAcctGather). A job starts within a second rather than three (batch_sched_delay); one that is asked
# to end is killed two seconds later (KillWait). squeue --states=all tells for a day of what has ended (MinJobAge), so
# that there need be no accounting.
CONFIGURATION = """
ClusterName=eventfold
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherParams=OverMemoryKill
JobAcctGatherFrequency=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0
DefMemPerCPU=500
GresTypes=gpu
KillWait=2
MinJobAge=86400
"""

NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000 Gres=gpu:1\n"
PARTITIONS = """
PartitionName=cpu Nodes=ALL Default=YES
PartitionName=gpu Nodes=ALL
"""
GPU = "NodeName={name} Name=gpu File={folder}/{name}.gpu Flags=nvidia_gpu_env\n"


@dataclass(frozen=True)
class Slurm:
    """A running Slurm: `slurm("scancel", job)` runs one of its commands.

    Attributes:
        folder: Where all of its files are, and the output of jobs.
    """

    folder: Path

    @property
    def configuration(self) -> Path:
        """What SLURM_CONF names for whoever uses it."""
        return self.folder / "slurm.conf"

    def __call__(self, *command: str, environment: Mapping[str, str] | None = None) -> str:
        """Run a command, and return what it prints.

        Args:
            command: Its name and arguments.
            environment: Its variables, SLURM_CONF apart; by default those of this process.

        Raises:
            RuntimeError: It failed.
        """
        variables = {**(os.environ if environment is None else environment), "SLURM_CONF": str(self.configuration)}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def submit(self, script: str, *options: str, environment: Mapping[str, str] | None = None) -> str:
        """Submit a job of some lines of bash, with options of sbatch. Returns its number."""
        path = self.folder / "job.sh"  # sbatch has read it when it returns
        path.write_text(f"#!/bin/bash\n{script}\n")
        output = f"--output={self.folder}/%j.out"
        return self("sbatch", "--parsable", output, *options, str(path), environment=environment)

    def output(self, job: str) -> str:
        """What a job has printed so far."""
        path = self.folder / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def state(self, job: str) -> str:
        """State of a job, such as `PENDING`, `RUNNING` or `COMPLETED`."""
        return self("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")

    def wait(self, job: str, state: str = "", seconds: float = 30.0) -> str:
        """Wait until a job has a state; by default until it has ended. Returns its state.

        Raises:
            TimeoutError: That takes longer than `seconds`.
        """
        deadline = time.monotonic() + seconds
        while True:
            current = self.state(job)
            if current == state or (not state and current not in {"PENDING", "RUNNING", "COMPLETING"}):
                return current
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is {current} after {seconds} s:\n{self.output(job)}\n{self.logs()}")
            time.sleep(0.05)

    def shorten(self, job: str, seconds: int) -> None:
        """Let the walltime of a running job end in some seconds.

        `--time` counts minutes, rounded up. Whichever way it is set, Slurm looks every thirty seconds.
        """
        self("scontrol", "update", f"JobId={job}", f"EndTime=now+{seconds}")

    def clear(self, seconds: float = 30.0) -> None:
        """Cancel all jobs and wait until they have ended.

        Raises:
            TimeoutError: That takes longer than `seconds`.
        """
        self("scancel", "--user=root")
        deadline = time.monotonic() + seconds
        while jobs := self("squeue", "--noheader", "--format=%i %T"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"jobs don't end when they are cancelled: {jobs}\n{self.logs()}")
            time.sleep(0.05)

    def logs(self) -> str:
        """The last lines that each daemon has logged."""
        tails = {path.name: path.read_text().splitlines()[-20:] for path in sorted(self.folder.glob("*.log"))}
        return "\n".join("\n".join([f"{name}:", *lines]) for name, lines in tails.items())

    def processes(self) -> list[psutil.Process]:
        """The daemons and the processes of jobs, whoever their parent is by now."""
        return [
            process
            for process in psutil.process_iter(["environ", "cwd", "cmdline"])
            if (
                (process.info["environ"] or {}).get("SLURM_CONF") == str(self.configuration)
                # A job's own daemon, slurmstepd, writes over its environment.
                or (process.info["cwd"] or "").startswith(str(self.folder))
            )
            # Python's own, which serves this process beyond the end of Slurm.
            and not any("resource_tracker" in part for part in process.info["cmdline"] or ())
        ]


def obstacle() -> str:
    """What keeps a Slurm from being started here, or nothing."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        names = ", ".join(absent)
        return f"not installed: {names} (Debian: apt-get install --no-install-recommends {PACKAGES}): no Slurm to start"
    return "" if os.geteuid() == 0 else "this user isn't root: no Slurm to start"


@contextmanager
def started(seconds: float = 30.0) -> Iterator[Slurm]:
    """Start a Slurm; at the end stop it, with all of its jobs, and remove its files.

    Raises:
        RuntimeError: One of its daemons has ended.
        TimeoutError: It isn't ready after `seconds`.
    """
    with ExitStack() as stack:
        slurm = Slurm(Path(tempfile.mkdtemp(prefix="eventfold-slurm-")))  # short: a socket's path has 107 characters
        stack.callback(shutil.rmtree, slurm.folder)
        port = configure(slurm)
        daemons: dict[str, subprocess.Popen[bytes]] = {}
        stack.callback(stop, slurm, daemons)
        deadline = time.monotonic() + seconds

        def until(ready: Callable[[], bool]) -> None:
            while not ready():
                for name, daemon in daemons.items():
                    if daemon.poll() is not None:
                        raise RuntimeError(f"{name} has ended with {daemon.returncode}\n{slurm.logs()}")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"Slurm isn't ready after {seconds} s\n{slurm.logs()}")
                time.sleep(0.02)

        files = [f"--{kind}-file={slurm.folder}/munge.{kind}" for kind in ("key", "pid", "seed")]
        # --force: its socket is in a folder that root alone can enter, which will do.
        munged = ["munged", "--foreground", "--force", f"--socket={slurm.folder}/munge.socket", *files]
        daemons["munged"] = start(slurm, "munged", munged)
        until((slurm.folder / "munge.socket").exists)
        daemons["slurmctld"] = start(slurm, "slurmctld", ["slurmctld", "-D"])
        until(lambda: listens(port))  # without it commands wait for ten seconds
        for node in NODES:
            daemons[node] = start(slurm, node, ["slurmd", "-D", "-N", node])
        idle = ("sinfo", "--noheader", "--Node", "--partition=cpu", "--states=idle", "--format=%N")
        until(lambda: slurm(*idle).split() == list(NODES))
        yield slurm


def configure(slurm: Slurm) -> int:
    """Write the configuration, munge's key and devices that stand for GPUs. Returns the controller's port."""
    folder, host = slurm.folder, socket.gethostname().split(".")[0]
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    (folder / "state").mkdir()
    port, *ports = free_ports(1 + len(NODES))
    lines, devices = CONFIGURATION.format(host=host, port=port, folder=folder), ""
    for name, node_port in zip(NODES, ports, strict=True):
        (folder / name).mkdir()
        lines += NODE.format(name=name, host=host, port=node_port)
        # With a plain file Slurm would set no CUDA_VISIBLE_DEVICES: this one is another /dev/null.
        os.mknod(folder / f"{name}.gpu", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        devices += GPU.format(name=name, folder=folder)
    slurm.configuration.write_text(lines + PARTITIONS)
    (folder / "gres.conf").write_text(devices)
    return port


def start(slurm: Slurm, name: str, command: list[str]) -> subprocess.Popen[bytes]:
    """Start a daemon that ends with this process, even if that is killed."""
    tied = ["setpriv", "--pdeathsig", "KILL", *command]
    environment = {**os.environ, "SLURM_CONF": str(slurm.configuration)}
    with (slurm.folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(tied, env=environment, cwd=slurm.folder, stdout=log, stderr=log)


def stop(slurm: Slurm, daemons: Mapping[str, subprocess.Popen[bytes]]) -> None:
    """End the jobs, then the daemons, the last one first; kill what is still there."""
    if "slurmctld" in daemons and daemons["slurmctld"].poll() is None:
        with suppress(RuntimeError, TimeoutError):
            slurm.clear()
    for daemon in reversed(daemons.values()):
        daemon.terminate()
        try:
            daemon.wait(5)
        except subprocess.TimeoutExpired:  # as a slurmd may that has lost its controller
            daemon.kill()
            daemon.wait()
    for _ in range(100):
        processes = slurm.processes()
        if not processes:
            break
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Ports of loopback on which nobody listens."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def listens(port: int) -> bool:
    """Whether somebody listens on a port of loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
