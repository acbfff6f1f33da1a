"""Fingerprints: what an output is made of, as one hash (contract 5 of the design).

A fingerprint covers the settings slice that a step receives, the code of the step and of the user's functions that it
calls, the identity of its inputs, the fingerprints of what it requires, the format version, and the major.minor
versions of the libraries that make numbers. Code is normalised: comments, docstrings and formatting do not count.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

FORMAT = 1
"""Version of the layout of all outputs; raising it makes everything anew."""

ROOT = Path(__file__).resolve().parent.parent
_ROOMS = ("analysis", "models")
_EXAMPLES = "analysis.examples."
_DYNAMIC = {"globals", "locals", "vars", "eval", "exec", "__import__"}


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Hash anything made of JSON types, dataclasses and pydantic models: 16 hexadecimal digits."""
    text = json.dumps(canonical(parts), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def canonical(value: Any) -> Any:
    """Reduce a value to JSON types whose text is the same for equal values.

    Raises:
        TypeError: A type whose identity is not defined.
    """
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
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)  # 1 and 1.0 are the same setting
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"no identity is defined for {type(value).__name__}: {value!r}")


def library_versions(names: Sequence[str]) -> dict[str, str]:
    """The major.minor versions of libraries that make numbers."""
    return {name: ".".join(version(name).split("+")[0].split(".")[:2]) for name in names}


def step_code(path: Path, name: str) -> str:
    """Hash the code of a step: its class, the helpers of its file that it uses, and the modules that these import.

    Args:
        path: File of the task class.
        name: Name of the task class.

    Returns:
        Hash over normalised source. Modules of `analysis` and `models` count whole, with all that they import.
    """
    symbols = _Symbols.of(path)
    texts, modules = [], set()
    for node in symbols.closure(name):
        texts.append(ast.unparse(node))
        modules |= {m for m in _imports(node) if m.split(".")[0] in _ROOMS}
    modules |= {m for m in symbols.imported_by(name).values() if m.split(".")[0] in _ROOMS}
    return _digest([*texts, *module_closure(modules)])


def user_function(path: Path, name: str) -> str:
    """Hash a user's function with the helpers and constants of its file that it uses.

    Names that it imports from another analysis of `analysis/examples` are followed there. Where a name is looked up
    dynamically (`globals()`, `eval`, …) the whole file counts.

    Args:
        path: The `physics.py`.
        name: Name of the function.
    """
    return _digest(_user_texts(path, name, set()))


def _user_texts(path: Path, name: str, seen: set[tuple[Path, str]]) -> list[str]:
    if (path, name) in seen:
        return []
    seen.add((path, name))
    symbols = _Symbols.of(path)
    nodes = symbols.closure(name)
    if any(_names(node) & _DYNAMIC for node in nodes):
        return [ast.unparse(symbols.tree)]
    texts = [ast.unparse(node) for node in nodes]
    for imported, module in symbols.imported_by(name).items():
        if module.startswith(_EXAMPLES):
            other = _module_path(module)
            if other is not None:
                texts += _user_texts(other, symbols.original[imported], seen)
    return texts


def defined_names(path: Path) -> tuple[str, ...]:
    """Names that a file defines at module level or imports from another analysis, found without running it."""
    symbols = _Symbols.of(path)
    shared = [name for name, module in symbols.imports.items() if module.startswith(_EXAMPLES)]
    return (*symbols.nodes, *shared)


def module_closure(modules: Iterable[str]) -> list[str]:
    """Normalised source of modules and of all project modules that they import, each once, in order of name."""
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module], imported = _module(module)
            waiting += imported
    return [f"{name}\n{found[name]}" for name in sorted(found)]


@cache
def _module(name: str) -> tuple[str, tuple[str, ...]]:
    """Normalised source of a module and the project modules that it imports; empty for what is no module."""
    path = _module_path(name)
    if path is None:
        return "", ()
    tree = _parse(path)
    return ast.unparse(tree), tuple(sorted(m for m in _imports(tree) if m.split(".")[0] in _ROOMS))


class _Symbols:
    """The module-level definitions and imports of one file."""

    def __init__(self, path: Path) -> None:
        self.tree = _parse(path)
        self.nodes: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, str] = {}
        self.original: dict[str, str] = {}
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    bound = alias.asname or alias.name
                    submodule = f"{node.module}.{alias.name}"
                    self.imports[bound] = submodule if _module_path(submodule) else node.module
                    self.original[bound] = alias.name
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    bound = alias.asname or alias.name.split(".")[0]
                    self.imports[bound] = alias.name
                    self.original[bound] = alias.name
            else:
                for name in _bound(node):
                    self.nodes.setdefault(name, []).append(node)

    @staticmethod
    def of(path: Path) -> _Symbols:
        stat = path.stat()
        return _symbols(path, stat.st_mtime_ns, stat.st_size)

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

    def imported_by(self, name: str) -> dict[str, str]:
        """Module-level imports that a name uses, itself or through helpers: bound name to module."""
        used = set().union({name}, *(_names(node) for node in self.closure(name)))
        return {bound: module for bound, module in self.imports.items() if bound in used}


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
    """Parse a file without its docstrings; comments and formatting are gone with the text."""
    tree = ast.parse(path.read_text(), filename=str(path))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            node.body = [s for s in node.body if not _is_text(s)] or [ast.Pass()]
    return tree


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _names(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _bound(node: ast.stmt) -> Iterator[str]:
    """Names that a module-level statement binds."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    else:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                yield inner.id


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
