"""Fingerprints: what an output is made of, as one hash (contract 5 of the design).

A fingerprint covers the settings slice that a step receives, the code of the step and of the user's functions that it
calls, the identity of its inputs, the fingerprints of what it requires, the format version, and the major.minor
versions of the libraries that make numbers. Code is normalised: comments, docstrings and formatting do not count.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from analysis.errors import UserError

FORMAT = 1
"""Version of the layout of all outputs; raising it makes everything anew.

What holds up every step (`workflow.base`, `workflow.store`) is in no identity: raise this where it changes an output.
"""

ROOT = Path(__file__).resolve().parent.parent
_ROOMS = ("analysis", "models")
_EXAMPLES = "analysis.examples."
_STEPS = "workflow.tasks."
_WHOLE = "*"
_DYNAMIC = {"globals", "locals", "vars", "eval", "exec", "__import__", "importlib"}
_UNCOUNTED = {"analysis.config", "analysis.errors", "models.settings"}
"""Modules that only say what may be configured and how mistakes are worded: slices hold the values themselves."""


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Hash anything made of JSON types, dataclasses and pydantic models: 16 hexadecimal digits."""
    text = json.dumps(canonical(parts), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def canonical(value: Any) -> Any:
    """Reduce a value to JSON types whose text is the same for equal values.

    Raises:
        TypeError: A type whose identity is not defined.
    """
    if value is None or type(value) in (str, int, bool):  # most of what there is
        return value
    if isinstance(value, BaseModel):
        return {name: canonical(getattr(value, name)) for name in type(value).model_fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, (frozenset, set)):
        return sorted(canonical(v) for v in value)
    if isinstance(value, (list, tuple)):
        return [canonical(v) for v in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 1 and 1.0 are the same setting
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"no identity is defined for {type(value).__name__}: {value!r}")


def library_versions(names: Sequence[str]) -> dict[str, str]:
    """The major.minor versions of libraries that make numbers."""
    return {name: ".".join(_version(name).split("+")[0].split(".")[:2]) for name in names}


_version = cache(version)
"""importlib.metadata reads a file at every call."""


def step_code(path: Path, name: str) -> str:
    """Hash the code of a step: its class, the helpers that it uses of tasks' files, and the modules that these import.

    Args:
        path: File of the task class.
        name: Name of the task class.

    Returns:
        Hash over normalised source. Modules of `analysis` and `models` count whole, with all that they import. Other
        task classes don't count: what a step requires is in its identity by fingerprint.
    """
    return _digest(step_source(path, name))


def step_source(path: Path, name: str) -> list[str]:
    """The normalised source that `step_code` hashes."""
    return _trace(path, name, _STEPS)


def user_function(path: Path, name: str) -> str:
    """Hash a user's function with the helpers and constants of its file that it uses.

    Names that it imports from another analysis of `analysis/examples` are followed there; other modules of `analysis`
    and `models` count whole, with all that they import. Where a name is looked up dynamically (`globals()`, `eval`, …)
    the whole file counts.

    Args:
        path: The `physics.py`.
        name: Name of the function.
    """
    return _digest(function_source(path, name))


def function_source(path: Path, name: str) -> list[str]:
    """The normalised source that `user_function` hashes."""
    return _trace(path, name, _EXAMPLES, labels=False)


def user_label(path: Path, name: str) -> str:
    """Hash what plots show of a user's function: its decorators, or the call that makes it, with what they use."""
    symbols = _Symbols.of(path)
    texts: list[str] = []
    for module, original in symbols.imports.get(name, ()):
        file = _module_path(module)
        if module.startswith(_EXAMPLES) and file is not None and original != _WHOLE:
            texts.append(user_label(file, original))
    for node in symbols.nodes.get(name, ()):
        shown: list[ast.AST] = [*node.decorator_list] if isinstance(node, ast.FunctionDef) else [node]
        texts += [ast.unparse(each) for each in shown]
        for used in sorted(set().union(*(_names(each) for each in shown)) - {name}):
            texts += _trace(path, used, _EXAMPLES)
    return _digest(texts)


def _trace(path: Path, name: str, followed: str, *, labels: bool = True) -> list[str]:
    """Normalised source of a name and of all that it uses; `followed` begins the modules in which names are traced."""
    texts: list[str] = []
    modules: set[str] = set()
    seen: set[tuple[Path, str]] = set()
    waiting = [(path, name)]
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        symbols = _Symbols.of(place[0])
        if place != (path, name) and symbols.is_task(place[1]):
            continue
        nodes: Sequence[ast.AST] = symbols.closure(place[1])
        imported = symbols.imported_by(place[1])
        if place[1] == _WHOLE or any(_is_dynamic(node) for node in nodes):
            nodes, imported = [symbols.tree], [pair for pairs in symbols.imports.values() for pair in pairs]
        for node in nodes:
            labelled = not labels and _names(node) & {"feature", "branch"}
            texts.append(ast.unparse(_Unlabelled().visit(copy.deepcopy(node)) if labelled else node))
            modules |= _imports(node)
        for module, original in imported:
            file = _module_path(module)
            if module.startswith(followed) and file is not None:
                waiting.append((file, original))
            else:
                modules.add(module)
    counted = {m for m in modules if m.startswith(followed) or m.split(".")[0] in _ROOMS}
    return [*texts, *module_closure(counted)]


def defined_names(path: Path) -> tuple[str, ...]:
    """Names that a file defines at module level or imports from another analysis, found without running it."""
    symbols = _Symbols.of(path)
    shared = [name for name, pairs in symbols.imports.items() if any(m.startswith(_EXAMPLES) for m, _ in pairs)]
    return (*symbols.nodes, *shared)


def module_closure(modules: Iterable[str]) -> list[str]:
    """Normalised source of modules and of all project modules that they import, each once, in order of name."""
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        path = _module_path(module)
        if module not in found and module not in _UNCOUNTED and path is not None:
            found[module], imported = _module(path, path.stat().st_mtime_ns)
            waiting += imported
    return [f"{name}\n{found[name]}" for name in sorted(found)]


@cache
def _module(path: Path, _mtime: int) -> tuple[str, tuple[str, ...]]:
    """Normalised source of a module and the project modules that it imports."""
    tree = _parse(path)
    return ast.unparse(tree), tuple(sorted(m for m in _imports(tree) if m.split(".")[0] in _ROOMS))


class _Symbols:
    """The module-level definitions and imports of one file."""

    def __init__(self, path: Path) -> None:
        self.tree = _parse(path)
        self.nodes: dict[str, list[ast.stmt]] = {}
        # Bound name to where it comes from: module and name there, or the whole of a module.
        self.imports: dict[str, list[tuple[str, str]]] = {}
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    submodule = f"{node.module}.{alias.name}"
                    origin = (submodule, _WHOLE) if _module_path(submodule) else (node.module, alias.name)
                    self.imports.setdefault(alias.asname or alias.name, []).append(origin)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    bound = alias.asname or alias.name.split(".")[0]
                    self.imports.setdefault(bound, []).append((alias.name, _WHOLE))
            else:
                for name in _bound(node):
                    self.nodes.setdefault(name, []).append(node)

    @staticmethod
    def of(path: Path) -> _Symbols:
        if not path.is_file():
            raise UserError(f"{path} is missing: an analysis folder holds analysis.yaml and physics.py.")
        stat = path.stat()
        return _symbols(path, stat.st_mtime_ns, stat.st_size)

    def is_task(self, name: str) -> bool:
        """Whether a name is a task class of the graph."""
        return any(
            isinstance(node, ast.ClassDef)
            and any(name.endswith(("Task", "Workflow")) for base in node.bases for name in _names(base))
            for node in self.nodes.get(name, ())
        )

    def closure(self, name: str) -> list[ast.stmt]:
        """The statements that define a name and all names of this file that it uses, in order of the file."""
        chosen: set[str] = set()
        waiting = [name]
        while waiting:
            current = waiting.pop()
            if current in chosen or current not in self.nodes:
                continue
            chosen.add(current)
            for node in self.nodes[current]:
                waiting += sorted(_names(node))
        statements = {id(node): node for n in chosen for node in self.nodes[n]}
        return [node for node in self.tree.body if id(node) in statements]

    def imported_by(self, name: str) -> list[tuple[str, str]]:
        """What a name uses, itself or through helpers, of module-level imports."""
        used = set().union({name}, *(_names(node) for node in self.closure(name)))
        return [pair for bound, pairs in self.imports.items() if bound in {*used, "*"} for pair in pairs]


@cache
def _symbols(path: Path, _mtime: int, _size: int) -> _Symbols:
    return _Symbols(path)


@cache
def _module_path(module: str) -> Path | None:
    """File of a project module, without importing it."""
    base = ROOT.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _parse(path: Path) -> ast.Module:
    """Parse a file without docstrings and annotations; comments and formatting are gone with the text."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}. Correct the Python code there.") from error
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            node.body = [s for s in node.body if not _is_text(s)] or [ast.Pass()]
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.ImportFrom) and node.level and path.is_relative_to(ROOT):
            package = path.relative_to(ROOT).with_suffix("").parts[: -node.level]
            node.module, node.level = ".".join((*package, *([node.module] if node.module else []))), 0
    return tree


class _Unlabelled(ast.NodeTransformer):
    """Takes away what only plots show: the arguments of `@feature(...)`, label and unit of `branch(...)`."""

    def visit_Call(self, node: ast.Call) -> ast.Call:
        if isinstance(node.func, ast.Name) and node.func.id == "feature":
            node.args, node.keywords = [], []
        elif isinstance(node.func, ast.Name) and node.func.id == "branch":
            node.args, node.keywords = node.args[:1], [k for k in node.keywords if k.arg == "name"]
        self.generic_visit(node)
        return node


def _is_dynamic(node: ast.AST) -> bool:
    """Whether names are looked up in a way that reading the code can't follow."""
    return bool(_names(node) & _DYNAMIC) or any(
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "getattr"
        and len(call.args) > 1
        and not isinstance(call.args[1], ast.Constant)
        for call in ast.walk(node)
    )


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


@cache
def _names(node: ast.AST) -> frozenset[str]:
    return frozenset(inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name))


def _bound(node: ast.stmt) -> Iterator[str]:
    """Names that a module-level statement binds or may change."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
        return
    for inner in ast.walk(node):
        if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield inner.name
        elif isinstance(inner, ast.Name) and (isinstance(inner.ctx, ast.Store) or isinstance(node, ast.Expr)):
            yield inner.id  # a call, as in `table.update(...)`, may change what it names
        elif isinstance(inner, (ast.Attribute, ast.Subscript)) and isinstance(inner.ctx, ast.Store):
            yield from _names(inner.value)  # table["top"] = 1


def _imports(node: ast.AST) -> set[str]:
    """Modules that a tree imports anywhere but under `if TYPE_CHECKING`."""
    found: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in _names(child.test):
            continue
        if isinstance(child, ast.Import):
            found |= {alias.name for alias in child.names}
        elif isinstance(child, ast.ImportFrom) and child.module:
            for alias in child.names:
                submodule = f"{child.module}.{alias.name}"
                found.add(submodule if _module_path(submodule) else child.module)
        found |= _imports(child)
    return found


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
