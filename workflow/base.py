"""The task base class: configuration, identity, store and provenance of every step of the graph.

A step declares a frozen slice of the configuration (`slice`), the user's functions that it calls (`functions`) and what
it requires; its fingerprint follows, and with it the folder of its outputs. Its `compute` is a static method that
receives just these: there is no `self` to read anything undeclared from.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import law
import luigi

from analysis.config import EXAMPLES, Configuration
from analysis.errors import UserError
from workflow import claims, lineage
from workflow.adoption import adopt, adopted, resolve
from workflow.building import BuiltOnce
from workflow.costs import Cost, Meter
from workflow.detached import detach, reattach
from workflow.execution.batch import HTCondorJobs, SlurmJobs
from workflow.execution.clusters import profile
from workflow.execution.dask import DaskWorkflow
from workflow.execution.executor import say
from workflow.execution.local import LocalWorkflow
from workflow.identity import FORMAT, canonical, fingerprint, library_versions
from workflow.messages import show_user_errors
from workflow.parameters import ChoiceParameter, OverridesParameter, ReasonParameter
from workflow.plan import Plan, open_plan
from workflow.provenance import circumstances, processor, read_record
from workflow.reasons import earlier_runs, explain, source_file, why
from workflow.store import atomic_write, staged, store_folder
from workflow.tracing import function_source, sources_changed, step_code, step_source, user_function, user_label

show_user_errors()

S = TypeVar("S")
"""The slice of a step."""

_known: dict[Path, bool] = {}
"""What was complete when this run first asked, by the record of the outputs (contract 6: asked once per run)."""

_wanted: set[Path] = set()
"""What was released and has to be made again, since a step that will run requires it."""


def _say_where(task: Any) -> None:
    """The step that was asked for says where its outputs are, also if there was nothing to do."""
    if isinstance(task, Task) and task == law.parser.root_task():
        task.conclude()


@dataclass(frozen=True)
class Made:
    """What a step or a branch makes, as `compute` sees it.

    Attributes:
        folder: Where its outputs are.
        about: What a branch is about, such as a file or a range of its entries; None for a step of one output.
    """

    folder: Path
    about: Any = None

    def path(self, name: str) -> Path:
        """Path of one output."""
        return self.folder / name


@dataclass(frozen=True)
class Given:
    """What `compute` receives beside its settings.

    Attributes:
        own: What the step is to make; its folder is where the outputs will be.
        fingerprint: The identity of the outputs.
        made: What the step requires, by the names of `requires`; of a workflow, what its branches made, by number.
        functions: The user's functions that the step declares: to be called, or (`labels`) to show label and unit.
        request: What was asked for: the folder of the analysis and the overrides.
        lineage: Reads the provenance of all that the step stands on: for records, as it is no part of any identity.
            `this_run` says whether it was made since the run began.
        tree: The same as a tree, by lines.
    """

    own: Made
    fingerprint: str
    made: Mapping[str, Any]
    functions: Mapping[str, Callable[..., Any]]
    request: Mapping[str, Any]
    lineage: Callable[[], list[dict[str, Any]]]
    tree: Callable[[], list[str]]


class Task(BuiltOnce, Generic[S]):
    """A step of the graph, with the type of its slice."""

    analysis = luigi.Parameter(
        default="hww",
        description="an example of analysis/examples/ or the path of an analysis folder; default: hww",
    )
    set = OverridesParameter(
        default=(),  # type: ignore[arg-type]
        description="override one key of the configuration with a YAML value, as in --set training.epochs=5; any "
        "number of times",
    )
    workflow = ChoiceParameter(
        default="local",
        choices=("local", "dask", "slurm", "htcondor"),
        option="--workflow",
        significant=False,
        description="where branches run: local processes, dask workers, or jobs that law submits to slurm or htcondor; "
        "changes no result; default: local",
    )
    cluster = luigi.Parameter(
        default="local",
        significant=False,
        description="whose workers or jobs, unless local: the section [cluster_NAME] of law.cfg; changes no result; "
        "default: local",
    )
    dashboard = luigi.BoolParameter(
        default=False,
        significant=False,
        description="with --workflow dask: open dask's pages about workers, for this machine only, and print how to "
        "reach them from elsewhere; default: False",
    )
    debug = luigi.BoolParameter(
        default=False,
        significant=False,
        description="show the traceback of a user's mistake too; default: False",
    )
    why = luigi.BoolParameter(
        default=False,
        significant=False,
        description="print every step that would run, each with its reason, and run nothing; default: False",
    )
    print_provenance = luigi.BoolParameter(
        default=False,
        significant=False,
        description="print what the outputs stand on and how each step was made, and run nothing; default: False",
    )
    adopt = ReasonParameter(
        default="",
        significant=False,
        description="a reason: print every output of which nothing but code differs, with --yes declare them valid for "
        "the code as it is now, and run nothing",
    )
    yes = luigi.BoolParameter(
        default=False,
        significant=False,
        description="do what --adopt only lists otherwise; default: False",
    )

    detach = luigi.BoolParameter(
        default=False,
        significant=False,
        description="run in the background, also after logging out; the same command without it reattaches; default: "
        "False",
    )

    interactive_params = [*law.Task.interactive_params, "why", "print_provenance", "adopt", "detach"]
    exclude_index = True
    libraries: tuple[str, ...] = ()
    analyses: tuple[str, ...] = ("analysis",)
    """Parameters that name an analysis."""

    @classmethod
    def modify_param_values(cls, params: dict[str, Any]) -> dict[str, Any]:
        """Make folders absolute, so that every process finds them."""
        params = super().modify_param_values(params)
        return {**params, **{name: analysis_path(str(params.get(name) or "")) for name in cls.analyses}}

    # What a step declares

    @property
    def label(self) -> str:
        """A readable part of the output's folder; not part of the identity."""
        return str(self.plan.config.name)

    def requires(self) -> Any:
        """The steps and branches whose outputs `compute` reads, by name."""
        return {}

    @abstractmethod
    def slice(self, config: Configuration) -> S:
        """The frozen part of the configuration that this step receives; all of it is part of the identity."""

    @property
    def belonging(self) -> str:
        """What a step that requires many branches has to know of each beside what it holds, such as its data set."""
        return ""

    def functions(self) -> Iterable[str]:
        """Names of the user's functions that this step calls."""
        return ()

    def labels(self) -> Iterable[str]:
        """Names of the user's functions of which this step shows label and unit."""
        return ()

    def outside(self) -> Any:
        """Identity of an input that no task made."""
        return None

    @abstractmethod
    def files(self) -> Sequence[str]:
        """Names of the outputs within this step's folder; a name that ends with a slash is a folder."""

    @staticmethod
    @abstractmethod
    def compute(settings: S, given: Given, out: Path) -> None:
        """Make the outputs in the folder `out`, from the slice and what is given, and from nothing else."""

    def made(self) -> Made:
        """What this step makes, as the steps that require it see it."""
        return Made(self.folder, self.branch_data if is_branch(self) else None)

    @property
    def title(self) -> str:
        """What lines of progress call this step."""
        return str(self.task_family)

    @property
    def subject(self) -> str:
        """Which of the things under one label this is about; compared with earlier runs of the same subject."""
        return ""

    def conclude(self) -> None:
        """Tell the user where the outputs are, when this is what was asked for and it is complete."""
        if is_branch(self):
            said = f"Branch {self.branch} of {self.task_family} is complete: {self.folder}"
        elif lineage.is_workflow(self) and self.branches:
            said = f"{len(lineage.members(self))} branches of {self.task_family} are complete: {self.label_folders()}"
        elif lineage.is_workflow(self):
            said = f"{self.task_family} is complete: {self.label_folders()}"
        else:
            said = f"{self.task_family} is complete: {self.folder}"
        sys.stdout.write(f"{said}\n")
        sys.stdout.flush()

    # What follows from that

    @property
    def plan(self) -> Plan:
        """The analysis as this run sees it."""
        return open_plan(self.analysis, self.set)

    @cached_property
    def settings(self) -> S:
        """The slice of this step."""
        return self.slice(self.plan.config)

    def given(self) -> Given:
        """What `compute` receives beside the slice."""
        names = sorted({*self.functions(), *self.labels()})
        return Given(
            own=self.made(),
            fingerprint=str(self.fingerprint),
            made={name: _made(required) for name, required in self.requires().items()},
            functions={name: getattr(self.plan.analysis.physics, name) for name in names},
            request={"folder": str(self.plan.analysis.folder), "overrides": list(self.set)},
            lineage=self._lineage,
            tree=self._tree,
        )

    def _tree(self) -> list[str]:
        _, *below = lineage.tree(self)  # of the step itself there is no record yet
        return [self.title, *below]

    def _lineage(self) -> list[dict[str, Any]]:
        """Provenance of all that this step stands on."""
        found = [record for task, record in lineage.recorded(self) if task is not self]
        return [{**record, "this_run": claims.changed(store_folder() / record["record"])} for record in found]

    @cached_property
    def parts(self) -> dict[str, Any]:
        """All that determines the outputs."""
        return {
            "step": self.task_family,
            "format": FORMAT,
            "settings": canonical(self.settings),
            **self._code(_pinned_code, self.plan.function_code, self.plan.label_code),
            "outside": canonical(self.outside()),
            "libraries": library_versions(self.libraries),
            "requires": {name: _fingerprints(required) for name, required in self.requires().items()},
        }

    @cached_property
    def fingerprint(self) -> str:
        """The identity of the outputs; where earlier ones were adopted, theirs."""
        return resolve(self.identity_of(self.parts))

    @staticmethod
    def identity_of(parts: Mapping[str, Any]) -> str:
        """The identity that follows from its parts."""
        return fingerprint(parts)

    def pieces(self, parts: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Outputs that have an identity of their own, with its parts; by default all outputs have one together."""
        return {"": parts}

    def paths_of(self, piece: str, address: str) -> list[Path]:
        """Where the outputs of one piece are under some identity."""
        del piece
        return [self.label_folder / address / name for name in self.files()]

    @property
    def label_folder(self) -> Path:
        """Where the outputs of all identities under one label are."""
        return store_folder() / self.task_family / self.label

    def label_folders(self) -> str:
        """Where the outputs of all branches of a workflow are, label by label."""
        return " ".join(sorted({str(branch.label_folder) for branch in lineage.members(self)}))

    @cached_property
    def folder(self) -> Path:
        """Where the outputs are."""
        return self.label_folder / str(self.fingerprint)

    def path(self, name: str) -> Path:
        """Path of one output."""
        return self.folder / name

    def output(self) -> dict[str, Any]:
        """The outputs as law's targets."""
        return {
            name: law.LocalDirectoryTarget(str(self.path(name)))
            if name.endswith("/")
            else law.LocalFileTarget(str(self.path(name)))
            for name in self.files()
        }

    def complete(self) -> bool:
        """Deeply complete: the outputs exist, and all that is required is complete.

        Outputs that `Prune` has released count as there, unless something that is not complete requires them.
        """
        if self.standing():
            return self.record not in _wanted
        self.want_requirements()
        return False

    def deps(self) -> Any:
        """What luigi schedules before this; it asks the step that was asked for first, once it is not complete."""
        if self == law.parser.root_task():
            reattach(self)
        return super().deps()

    def standing(self) -> bool:
        """Whether the outputs, and all that they stand on, were there or released when this run first asked."""
        if lineage.is_workflow(self):
            # Every branch is asked, even after the first that is not: what they answer now, before anything has run,
            # decides which of them run.
            answers = [branch.standing() for branch in lineage.members(self)]
            return all(answers)
        if self.record not in _known:
            self.stamp()
            there = self.present() or self.released()
            _known[self.record] = there and all(task.standing() for task in luigi.task.flatten(self.requires()))
        return _known[self.record]

    def want_requirements(self) -> None:
        """Note that what this step requires has to be there, since it will run."""
        for required in luigi.task.flatten(self.requires()):
            for task in lineage.members(required):
                task.stamp()  # what another run makes from now on is not made again
                if task.record not in _wanted and not task.present():
                    _wanted.add(task.record)
                    task.want_requirements()

    def present(self) -> bool:
        """Whether the outputs are there."""
        folder = str(self.folder)
        return all(os.path.exists(f"{folder}/{name}") for name in self.files())

    def released(self) -> bool:
        """Whether the outputs were made and `Prune` has released them."""
        return bool((read_record(self.record) or {}).get("released"))

    def stamp(self) -> claims.Stamp:
        """The state of the record of the outputs when this run first asked."""
        return claims.remember(self.record, claims.stamp(self.record))

    def mark_complete(self) -> None:
        """Remember that the outputs were made in this run."""
        _known[self.record] = True
        _wanted.discard(self.record)

    @cached_property
    def record(self) -> Path:
        """Where it is recorded how the outputs were made."""
        return self.folder / "provenance.json"

    def run(self) -> None:
        """Make the outputs and record how, unless another run has made them since this one asked."""
        started = time.monotonic()
        if multiprocessing.parent_process() is None:
            claims.announce()
        with self.claimed() as free:
            if free:
                self.make()
            else:
                self.mark_complete()
        if multiprocessing.parent_process() is None:
            say(f"{self.title}: done in {time.monotonic() - started:.1f} s")

    @contextmanager
    def claimed(self) -> Iterator[bool]:
        """Keep other runs from making these outputs; False if one has made them since this run first asked."""

        def wait(text: str) -> None:
            say(f"{self.title} ({self.label}): {text}\n")

        with claims.claim(self.folder / ".lease", wait):
            yield not (claims.changed(self.record) and self.present())

    def make(self) -> None:
        """Make all outputs."""
        self.write([name.rstrip("/") for name in self.files()])

    def write(
        self, names: Sequence[str], compute: Callable[[Path], None] | None = None, before: Cost | None = None
    ) -> None:
        """Compute aside, make sure that the code is still the one of the identity, then move the outputs into place.

        Args:
            names: Outputs that are made.
            compute: Makes them in a folder; by default `compute` of the step.
            before: What they have cost already.

        Raises:
            UserError: The code has changed since the run began.
        """
        meter = Meter()
        with staged(self.folder, names) as out:
            if compute is None:
                self.compute(self.settings, self.given(), out)
            else:
                compute(out)
            self._check_unchanged()
            atomic_write(self.record, json.dumps(self._provenance(meter, before), indent=1))
        self.mark_complete()

    def _check_unchanged(self) -> None:
        """Code is imported when it is needed: had it changed by then, the outputs would belong to another identity."""
        if not sources_changed():
            return
        physics = self.plan.analysis.physics_path
        now = self._code(_step_code, partial(user_function, physics), partial(user_label, physics))
        if any(self.parts[part] != code for part, code in now.items()):
            raise UserError(
                f"{self.task_family} ({self.label}): its code changed while the run was going on, so that its "
                "outputs were not kept. Start the run again; what is complete stays."
            )

    def _code(
        self, step: Callable[[str, str], str], function: Callable[[str], str], label: Callable[[str], str]
    ) -> dict[str, Any]:
        """Hashes of all code that counts, by those who know it."""
        return {
            "code": step(type(self).__module__, type(self).__name__),
            "functions": {name: function(name) for name in sorted(self.functions())},
            "labels": {name: label(name) for name in sorted(self.labels())},
        }

    def _provenance(self, meter: Meter, before: Cost | None) -> dict[str, Any]:
        self.keep_sources()
        notes = [adopted(self.identity_of(parts)) for parts in self.pieces(self.parts).values()]
        return {
            "fingerprint": self.fingerprint,
            "step": self.task_family,
            "label": self.label,
            "record": str(self.record.relative_to(store_folder())),
            "title": self.title,
            "subject": self.subject,
            "parts": self.parts,
            "adopted": [note for note in notes if note],
            "files": list(self.files()),
            **circumstances(meter, before),
            "device": self.device(),
        }

    def device(self) -> str:
        """The model of what computes the outputs."""
        return processor()

    def keep_sources(self) -> None:
        """Keep the code behind the hashes, so that `--why` can show later what has changed in it."""
        step = partial(step_source, Path(str(sys.modules[type(self).__module__].__file__)), type(self).__name__)
        sources: dict[str, Callable[[], list[str]]] = {self.parts["code"]: step}
        for name, code in self.parts["functions"].items():
            sources[code] = partial(function_source, self.plan.analysis.physics_path, name)
        for code, texts in sources.items():
            path = source_file(store_folder(), code)
            if not path.exists():
                atomic_write(path, "\n\n\n".join(texts()) + "\n")

    def _why(self, _asked: bool) -> None:
        """Print every step that would run, each with its reason: law calls this for `--why`."""
        lines = list(why(self)) or [f"{self.task_family} is complete: nothing would run."]
        sys.stdout.write("\n".join(lines) + "\n")

    def _print_provenance(self, _asked: bool) -> None:
        """Print the lineage of the outputs: law calls this for `--print-provenance`."""
        sys.stdout.write("\n".join(lineage.tree(self)) + "\n")

    def _adopt(self, why: str) -> None:
        """Adopt outputs of earlier code: law calls this for `--adopt`."""
        sys.stdout.write("\n".join(adopt(self, why, declare=self.yes)) + "\n")

    def _detach(self, _asked: bool) -> bool:
        """Start a detached run: law calls this for `--detach`, and goes on where there is nothing to run.

        What is wrong with the command, the configuration or `physics.py` shows here rather than in a log.
        """
        if self.workflow != "local":
            profile(self.cluster)
        self.plan.analysis.physics  # noqa: B018
        if self.complete():
            return True
        detach(self)
        return False

    def reasons(self) -> list[str]:
        """Why this step would run, apart from what it stands on."""
        if self.record.exists():
            gone = [name for name in self.files() if not self.path(name).exists()]
            if gone and self.released():
                return ["its output was released and is needed again"]
            return [f"its output {', '.join(gone)} was removed"] if gone else []
        self.keep_sources()
        earlier = earlier_runs(self.label_folder, self.title, self.subject)
        return explain(self.parts, [record for _, record in earlier], store_folder())


Task.event_handler(luigi.Event.SUCCESS)(_say_where)
Task.event_handler(luigi.Event.DEPENDENCY_PRESENT)(_say_where)


class Workflow(Task[S], LocalWorkflow, DaskWorkflow, SlurmJobs, HTCondorJobs):
    """A step of many branches.

    Attributes:
        wants_gpu: Whether branches run on workers with a GPU, where the cluster has any.
    """

    exclude_index = True
    prefer_params_cli = {"workflow", "cluster", "dashboard"}
    wants_gpu = False

    def req_branch(self, branch: int, **kwargs: Any) -> Any:
        """One branch of this workflow, the same object as for those that require it."""
        if kwargs:
            return super().req_branch(branch, **kwargs)
        own = {name: getattr(self, name) for name, _ in type(self).get_params() if name not in _shared_parameters()}
        return branch_of(type(self), self, branch, **own)

    @cached_property
    def fingerprint(self) -> str:
        """The identity of a branch, or of all of a workflow's branches."""
        if self.is_branch():
            return self.branch_fingerprint()
        return fingerprint({"branches": sorted(f"{b.fingerprint} {b.belonging}" for b in lineage.members(self))})

    def branch_fingerprint(self) -> str:
        """The identity of a branch; where earlier outputs were adopted, theirs."""
        return resolve(self.identity_of(self.parts))

    @abstractmethod
    def about_branches(self) -> Sequence[Any]:
        """What each branch is about, in order of their numbers."""

    def create_branch_map(self) -> list[Any]:
        """What each branch is about, as law asks for it.

        Raises:
            UserError: Branches were asked for that do not exist.
        """
        branches = list(self.about_branches())
        for chosen in self.branches or ():
            first = chosen[0] if isinstance(chosen, tuple) else chosen
            if first is not None and not 0 <= first < len(branches):
                raise UserError(self._no_branch(first, len(branches)))
        return branches

    @property
    def branch_data(self) -> Any:
        """What this branch is about.

        Raises:
            UserError: There is no such branch.
        """
        branches = self.about_branches()
        if not 0 <= self.branch < len(branches):
            raise UserError(self._no_branch(self.branch, len(branches)))
        return branches[self.branch]

    def _no_branch(self, number: int, total: int) -> str:
        return f"{self.task_family} has no branch {number}: it has {total}, from 0 to {total - 1}."

    @property
    def events(self) -> int:
        """How many events this branch reads or makes, for the progress that is shown; 0 where they are no measure."""
        return 0

    def group_branches(self, branches: Sequence[int], slots: int) -> list[list[int]]:
        """Cut the work of this step into groups that run side by side; by default each branch alone."""
        del slots
        return [[branch] for branch in branches]

    def run_branches(self, branches: Sequence[int]) -> None:
        """Run a group of branches in this process."""
        for branch in branches:
            self.as_branch(branch).run()


@cache
def _shared_parameters() -> frozenset[str]:
    """Parameters of every workflow; others tell workflows of one step apart."""
    return frozenset(name for name, _ in Workflow.get_params())


def analysis_path(name: str) -> str:
    """The name of an example as it stands, the path of a folder made absolute."""
    if os.sep not in name.rstrip(os.sep) and (EXAMPLES / name / "analysis.yaml").is_file():
        return name
    folder = os.path.expanduser(name)
    return os.path.abspath(folder) if os.path.isdir(folder) else name.rstrip(os.sep)


def is_branch(task: Any) -> bool:
    """Whether a task is one branch of a workflow."""
    return isinstance(task, Workflow) and bool(task.is_branch())


def branch_of(step: type[Workflow[Any]], task: Task[Any], number: int, **parameters: Any) -> Any:
    """One branch of a workflow that another task requires (-1: all), with the parameters that both have; built once."""
    key = (step, number, *parameters.items())
    if key not in task.plan.branches:
        task.plan.branches[key] = step.req_different_branching(task, branch=number, **parameters)
    return task.plan.branches[key]


def _fingerprints(required: Any) -> list[str]:
    """Identities of a requirement, or of several."""
    if isinstance(required, (list, tuple)):
        return sorted(each for one in required for each in _fingerprints(one))
    return [str(required.fingerprint)]


def _made(required: Any) -> Any:
    """What a requirement has made: of a workflow by branch number, of several by their positions."""
    if isinstance(required, (list, tuple)):
        return [_made(each) for each in required]
    if lineage.is_workflow(required):
        return {number: task.made() for number, task in required.get_branch_tasks().items()}
    return required.made()


def branches_of(numbers: Iterable[int], total: int) -> dict[str, Any]:
    """Arguments for `req` that choose some branches of a workflow; none if they are all of them."""
    chosen = sorted(numbers)
    if len(chosen) == total:
        return {}
    return {"branches": tuple(law.util.range_join(chosen))}


def _step_code(module: str, name: str) -> str:
    """Hash of a step's code as it is on disk now."""
    return step_code(Path(str(sys.modules[module].__file__)), name)


_pinned_code = cache(_step_code)
"""The same as it was when this process first asked."""
