"""The house rules: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "uproot", "awkward", "pyarrow", "matplotlib"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(node: ast.AST, at_import: bool = False) -> Iterator[str]:
    """Names of the modules that a file imports; with `at_import` only those that run when it is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative imports hide which package a module needs"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif at_import and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        elif at_import and isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            yield from imports(ast.Module(child.orelse, []), at_import)
        else:
            yield from imports(child, at_import)


def packages(path: Path, at_import: bool = False) -> set[str]:
    return {name.split(".")[0] for name in imports(ast.parse(path.read_text(encoding="utf-8")), at_import)}


@pytest.mark.parametrize("path", modules("analysis"), ids=lambda p: str(p.relative_to(ROOT)))
def test_analysis_imports_no_other_room(path: Path) -> None:
    """`config.py` alone reads `models.settings`, so that a model's settings are written once."""
    found = packages(path)
    assert not found & {"law", "luigi", "dask", "distributed", "torch", "workflow"}
    names = {n for n in imports(ast.parse(path.read_text(encoding="utf-8"))) if n.split(".")[0] == "models"}
    if path == ROOT / "analysis" / "config.py":
        assert {".".join(n.split(".")[:2]) for n in names} == {"models.settings"}
    else:
        assert not names


@pytest.mark.parametrize("path", modules("models"), ids=lambda p: str(p.relative_to(ROOT)))
def test_models_import_no_other_room(path: Path) -> None:
    rooms = {"analysis", "workflow", "law", "luigi", "dask", "distributed"}
    assert not packages(path) & (rooms | {"uproot", "awkward", "coffea", "pydantic"})
    if path.name == "settings.py":
        assert packages(path) <= sys.stdlib_module_names


@pytest.mark.parametrize("path", modules("workflow"), ids=lambda p: str(p.relative_to(ROOT)))
def test_workflow_imports_nothing_heavy(path: Path) -> None:
    assert not packages(path, at_import=True) & HEAVY


def test_workflow_starts_without_anything_heavy() -> None:
    """Nor by way of `analysis` or `models`: the command line has to start fast."""
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in modules("workflow") if p.stem != "__init__"]
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
    code += f"print(*sorted(set(sys.modules) & {HEAVY}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_reader_of_imports_can_tell() -> None:
    code = "import a\nif TYPE_CHECKING:\n    import b\nelse:\n    import c\ndef f():\n    from d.e import g\n"
    tree = ast.parse(code + "class C:\n    import h\ntry:\n    import i\nexcept ImportError:\n    pass\n")
    assert list(imports(tree)) == ["a", "b", "c", "d.e.g", "h", "i"]
    assert list(imports(tree, at_import=True)) == ["a", "c", "h", "i"]
