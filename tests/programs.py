"""Programs that open what the project writes and share no code with it: ROOT, rabbit, poppler, Chromium, and
C++ with onnxruntime.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

HEADERS = ("/usr/include/onnxruntime", "/usr/local/include/onnxruntime")
"""Where packages put onnxruntime_cxx_api.h; elsewhere $CPATH says it."""


def run_root(code: str, folder: Path) -> str:
    """What statements of C++ print in ROOT, run in a folder; the test is skipped where there is no ROOT."""
    program = shutil.which("root")
    if program is None:
        pytest.skip("no ROOT on the PATH (`root`)")
    headers = "\n".join(f"#include <{name}.hxx>" for name in ("ROOT/RDataFrame", "ROOT/RNTupleProcessor"))
    (folder / "macro.C").write_text(f"{headers}\nvoid macro() {{\n{code}\n}}\n")
    done = subprocess.run(
        [program, "-l", "-b", "-q", "macro.C"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.partition("Processing macro.C...")[2].strip()


READ_CARD = """
import json, sys, types

calls = []


class Recorder:
    '''In place of what writes tensors for fits, and needs tensorflow.'''

    def __init__(self, **options):
        pass

    def __getattr__(self, name):
        return lambda *given, **options: calls.append([name, *map(plain, given)])


def plain(given):
    if isinstance(given, (list, tuple)):
        return [plain(each) for each in given]
    if hasattr(given, "variances"):
        return {"values": given.values().tolist(), "variances": given.variances().tolist()}
    return given if isinstance(given, (str, float)) else str(given)


sys.modules["rabbit.tensorwriter"] = types.SimpleNamespace(TensorWriter=Recorder)
import rabbit
rabbit.tensorwriter = sys.modules["rabbit.tensorwriter"]
from rabbit.datacard_converter import DatacardConverter

DatacardConverter("datacard.txt").convert_to_hdf5()
print(json.dumps(calls))
"""


def read_datacard(folder: Path) -> list[list[Any]]:
    """What rabbit finds in `datacard.txt` of a folder and in its histograms: the calls by which it makes its own model.

    The test is skipped where there is no rabbit.
    """
    program = shutil.which("text2hdf5")
    if program is None:
        pytest.skip("no rabbit on the PATH (`text2hdf5`)")
    python = Path(program).with_name("python")
    done = subprocess.run([python, "-c", READ_CARD], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[list[Any]] = json.loads(done.stdout)
    return found


def read_pdf(path: Path) -> str:
    """The text of a PDF as poppler finds it; the test is skipped where there is no poppler."""
    program = shutil.which("pdftotext")
    if program is None:
        pytest.skip("no poppler on the PATH (`pdftotext`)")
    done = subprocess.run([program, str(path), "-"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def run_cpp(code: str, folder: Path, *arguments: str) -> str:
    """What a program of C++ prints that is linked with the onnxruntime of Python, run in a folder.

    The test is skipped where there is no compiler, or no header of onnxruntime.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler (`g++`)")
    places = [*HEADERS, *os.environ.get("CPATH", "").split(":")]
    if not any((Path(place) / "onnxruntime_cxx_api.h").exists() for place in places if place):
        pytest.skip("no onnxruntime_cxx_api.h, neither in /usr/include/onnxruntime nor in $CPATH")
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (folder / "libonnxruntime.so.1").symlink_to(library)  # the name that it calls itself
    (folder / "program.cpp").write_text(code)
    include = [option for place in HEADERS for option in ("-I", place)]
    link = ["libonnxruntime.so.1", f"-Wl,-rpath,{folder}"]
    command = [compiler, "-std=c++17", "-O1", "-Wall", "-Werror", *include, "program.cpp", "-o", "program", *link]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([folder / "program", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_browser(page: Path, *arguments: str) -> tuple[str, list[str]]:
    """The document of a page after its scripts have run in Chromium, and what its console says.

    The test is skipped where there is no Chromium.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on the PATH (`chromium`)")
    options = ("headless", "no-sandbox", "disable-gpu", "allow-file-access-from-files", "enable-logging=stderr")
    profile, patience = f"user-data-dir={page.parent / 'profile'}", "virtual-time-budget=10000"
    flags = [f"--{option}" for option in (*options, profile, patience, "dump-dom")]
    command = [program, *flags, *arguments, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE:" in line]
