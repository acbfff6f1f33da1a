"""Which code a step or a user's function uses, found without running it, and normalised.

Comments, docstrings, annotations and formatting do not count. What is imported of the project counts with it; of
`physics.py` and of the tasks' files only what is used, name by name.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from analysis.errors import UserError
from workflow.identity import ROOT
from workflow.store import atomic_write, read_json, store_folder

_ROOMS = ("analysis", "models")
_EXAMPLES = "analysis.examples."
_STEPS = "workflow.tasks."
_WHOLE = "*"
_DYNAMIC = {"globals", "locals", "vars", "eval", "exec", "__import__", "importlib"}
_UNCOUNTED = {"analysis.config", "analysis.errors", "models.settings"}
"""Modules that only say what may be configured and how mistakes are worded: slices hold the values themselves."""

_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
"""Fields of a syntax tree that hold statements, or what holds them."""

_MAKING = ("compute", "make", "run_branches")
"""Methods of a task that make its outputs."""


def step_code(path: Path, name: str) -> str:
    """Hash the code of a step: the methods that make its outputs, the helpers that these use of tasks' files, and the
    modules that they import.

    Args:
        path: File of the task class.
        name: Name of the task class.

    Returns:
        Hash over normalised source. Modules of `analysis` and `models` count whole, with all that they import. The rest
        of the class says what is made of what and when, and other task classes make what it requires: both are in the
        identity by what they say, not by how.
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
        imported = symbols.imported_by(place[1], nodes)
        if place[1] == _WHOLE or any(_is_dynamic(node) for node in nodes):
            nodes, imported = [symbols.tree], [pair for pairs in symbols.imports.values() for pair in pairs]
        for node in nodes:
            shown = () if labels else tuple(pair for pair in symbols.labelling.items() if pair[0] in _names(node))
            texts.append(_text(node, shown))
            modules |= _imports(node)
            if followed == _EXAMPLES:
                texts += _files_named(node, place[0].parent)
        for module, original in imported:
            file = _module_path(module)
            if module.startswith(followed) and file is not None:
                waiting.append((file, original))
            else:
                modules.add(module)
    counted = {m for m in modules if m.startswith(followed) or m.split(".")[0] in _ROOMS}
    return [*texts, *module_closure(counted)]


def _files_named(node: ast.AST, folder: Path) -> list[str]:
    """Names and digests of the files of an analysis folder that stand in its code as strings, such as scale factors."""
    found = []
    for name in _file_names(node):
        path = folder / name
        if path.is_file() and path.is_relative_to(folder):
            _states.setdefault(path, _state(path))
            found.append(f"{name}\n{hashlib.sha256(path.read_bytes()).hexdigest()}")
    return found


@cache
def _file_names(node: ast.AST) -> tuple[str, ...]:
    """Strings of a tree that may name a file."""
    names = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str) and c.value}
    return tuple(sorted(name for name in names if "." in name and len(name) < 256 and name.isprintable()))


@cache
def _text(node: ast.AST, labelling: tuple[tuple[str, str], ...]) -> str:
    """Normalised source of a statement, without what `_Unlabelled` takes away."""
    return ast.unparse(_Unlabelled(dict(labelling)).visit(copy.deepcopy(node)) if labelling else node)


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
    """Normalised source of a module and the project modules that it imports.

    Parsing all modules takes longer than all else that a run does when everything is complete, so that the store keeps
    what was found, under a digest of all that it follows from.
    """
    _states.setdefault(path, _state(path))
    content = path.read_bytes()
    digest = hashlib.sha256(_parser() + str(path.relative_to(ROOT)).encode() + content).hexdigest()
    kept = store_folder() / "code" / f"{digest[:32]}.json"
    with suppress(OSError, ValueError):  # not there yet
        text, imported = read_json(kept)
        return text, tuple(imported)
    tree = _parse(path, content)
    text, imported = ast.unparse(tree), tuple(sorted(m for m in _imports(tree) if m.split(".")[0] in _ROOMS))
    with suppress(OSError):  # somebody else's store, that one may only read: the next run parses again
        atomic_write(kept, json.dumps([text, imported]))
    return text, imported


@cache
def _parser() -> bytes:
    """What the parsing of a module follows from beside its own file: Python, this file, and which modules there are."""
    folders = [found for room in _ROOMS for found in os.walk(ROOT / room, followlinks=True)]
    modules = sorted(os.path.join(folder, name) for folder, _, names in folders for name in names if name[-3:] == ".py")
    return "\n".join([sys.version, *(os.path.relpath(module, ROOT) for module in modules)]).encode() + _OWN_SOURCE


_OWN_SOURCE = Path(__file__).read_bytes()


class _Symbols:
    """The module-level definitions and imports of one file."""

    def __init__(self, path: Path) -> None:
        self.tree = _parse(path)
        self.nodes: dict[str, list[ast.stmt]] = {}
        # Bound name to where it comes from: module and name there, or the whole of a module.
        self.imports: dict[str, list[tuple[str, str]]] = {}
        for node in self.tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._note_import(node)
                continue
            for name in _bound(node):
                self.nodes.setdefault(name, []).append(node)
            if isinstance(node, (ast.If, ast.Try)) and not _is_for_types(node):
                for inner in ast.walk(node):
                    if isinstance(inner, (ast.Import, ast.ImportFrom)):
                        for name in self._note_import(inner):
                            self.nodes.setdefault(name, []).append(node)
        self._note_fillers()
        # Bound name to `feature` or `branch`, which give functions their labels.
        self.labelling = {
            name: original
            for name, pairs in self.imports.items()
            for module, original in pairs
            if module == "analysis.features" and original in ("feature", "branch")
        }

    def _note_fillers(self) -> None:
        """Where a function changes a name of the file when the file is imported, both stand behind that name.

        So does a registry: `@register` fills it, and what is registered is part of it.
        """
        functions = {node.name: node for node in self.tree.body if isinstance(node, ast.FunctionDef)}
        changes = {name: _changed_in(node) & self.nodes.keys() for name, node in functions.items()}
        for node in self.tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                called = set().union(*(_names(decorator) for decorator in node.decorator_list))
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            else:
                called = set(_names(node))
            for function in sorted(called & functions.keys()):
                for changed in sorted(changes[function]):
                    self.nodes[changed] += [node, functions[function]]

    def _note_import(self, node: ast.Import | ast.ImportFrom) -> list[str]:
        """Note where the names that a statement imports come from; returns these names."""
        names = []
        for alias in node.names:
            if isinstance(node, ast.Import):
                name, origin = alias.asname or alias.name.split(".")[0], (alias.name, _WHOLE)
            else:
                submodule = f"{node.module}.{alias.name}"
                name = alias.asname or alias.name
                origin = (submodule, _WHOLE) if _module_path(submodule) else (str(node.module), alias.name)
            self.imports.setdefault(name, []).append(origin)
            names.append(name)
        return names

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
        first = self._beginning(name)
        chosen = {name}
        waiting = [used for node in first for used in sorted(_names(node))]
        while waiting:
            current = waiting.pop()
            if current in chosen or current not in self.nodes:
                continue
            chosen.add(current)
            for node in self.nodes[current]:
                waiting += sorted(_names(node))
        statements = {id(node) for n in chosen - {name} for node in self.nodes[n]} | {id(node) for node in first}
        methods = [node for node in first if node not in self.tree.body]
        return methods + [node for node in self.tree.body if id(node) in statements]

    def _beginning(self, name: str) -> list[ast.stmt]:
        """What defines a name; of a task, the methods that make its outputs."""
        nodes = self.nodes.get(name, [])
        if not self.is_task(name):
            return nodes
        body = [inner for node in nodes if isinstance(node, ast.ClassDef) for inner in node.body]
        return [inner for inner in body if isinstance(inner, ast.FunctionDef) and inner.name in _MAKING]

    def imported_by(self, name: str, closure: Sequence[ast.AST]) -> list[tuple[str, str]]:
        """What a name uses, itself or through helpers, of module-level imports."""
        used = set().union({name}, *(_names(node) for node in closure))
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


_states: dict[Path, tuple[int, int]] = {}
"""Time and size of every source file when this process first read it."""


def sources_changed() -> bool:
    """Whether a source file is not as it was when this process first read it."""
    return any(not path.exists() or _state(path) != state for path, state in _states.items())


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _parse(path: Path, content: bytes | None = None) -> ast.Module:
    """Parse a file without docstrings and annotations; comments and formatting are gone with the text.

    Args:
        path: The file.
        content: What it holds, if it has been read.
    """
    _states.setdefault(path, _state(path))
    try:
        tree = ast.parse(path.read_bytes() if content is None else content, filename=str(path))
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}. Correct the Python code there.") from error
    for node in _statements(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            node.body = [s for s in node.body if not _is_text(s)] or [ast.Pass()]
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
            given = node.args
            for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
                if argument is not None:
                    argument.annotation = None
        elif isinstance(node, ast.ImportFrom) and node.level and path.is_relative_to(ROOT):
            package = path.relative_to(ROOT).with_suffix("").parts[: -node.level]
            node.module, node.level = ".".join((*package, *([node.module] if node.module else []))), 0
    return tree


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all statements within it, without what is in expressions: these are most of a tree."""
    yield node
    for inner in _inner(node):
        yield from _statements(inner)


def _inner(node: ast.AST) -> list[ast.AST]:
    """The statements right within one, and the handlers and cases that hold statements."""
    blocks = (getattr(node, name, None) for name in _BLOCKS)
    return [inner for block in blocks if isinstance(block, list) for inner in block]


class _Unlabelled(ast.NodeTransformer):
    """Takes away what only plots show: the arguments of `@feature(...)`, label and unit of `branch(...)`.

    Args:
        labelling: By which names these two are called.
    """

    def __init__(self, labelling: Mapping[str, str]) -> None:
        self._labelling = labelling

    def visit_Call(self, node: ast.Call) -> ast.Call:
        kind = self._labelling.get(node.func.id) if isinstance(node.func, ast.Name) else None
        if kind == "feature":
            node.args, node.keywords = [], []
        elif kind == "branch":
            node.args, node.keywords = node.args[:1], [k for k in node.keywords if k.arg == "name"]
        self.generic_visit(node)
        return node


@cache
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


def _is_for_types(node: ast.AST) -> bool:
    """Whether a statement is `if TYPE_CHECKING`."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in _names(node.test)


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
        elif isinstance(inner, ast.Expr):
            yield from _names(inner)  # a call, as in `table.update(...)`, may change what it names
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            yield inner.id
        elif isinstance(inner, (ast.Attribute, ast.Subscript)) and isinstance(inner.ctx, ast.Store):
            yield from _names(inner.value)  # table["top"] = 1


def _changed_in(function: ast.FunctionDef) -> set[str]:
    """Names from outside that a function changes: by `global`, by storing in them, by calling a method of them."""
    found: set[str] = set()
    for inner in ast.walk(function):
        if isinstance(inner, ast.Global):
            found |= set(inner.names)
        elif isinstance(inner, (ast.Attribute, ast.Subscript)) and isinstance(inner.ctx, ast.Store):
            found |= _names(inner.value)
        elif isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Call):
            found |= _names(inner.value.func)
    return found


def _imports(node: ast.AST) -> set[str]:
    """Modules that a tree imports anywhere but under `if TYPE_CHECKING`."""
    found: set[str] = set()
    for child in _inner(node):
        if _is_for_types(child):
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
