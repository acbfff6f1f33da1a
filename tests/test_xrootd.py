"""Files over XRootD, from a server of this machine: known by what they are, and read like local ones."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_bad_files import DAMAGES
from tests.toy import Law, replace

CONFIGURATION = """
all.export {folder}
all.adminpath {folder}/admin
all.pidpath {folder}/admin
oss.localroot /
xrd.port {port}
"""


@pytest.fixture
def url(law: Law) -> Iterator[str]:
    """Serve copies of the toy analysis's files, and bad ones named after what is wrong with them."""
    if shutil.which("xrootd") is None:
        pytest.skip("xrootd is not installed (Debian: apt-get install xrootd-server): no server to read from")
    folder = Path(tempfile.mkdtemp(prefix="eventfold-xrootd-"))  # where another user can read
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        shutil.copytree(law.home / "toy" / "data", folder / "data")
        for kind, (damage, _) in DAMAGES.items():
            damage(Path(shutil.copy(folder / "data" / "signal_0.root", folder / "data" / f"{kind}.root")))
        (folder / "admin").mkdir()
        (folder / "server.cfg").write_text(CONFIGURATION.format(folder=folder, port=port))
        folder.chmod(0o755)
        command = ["xrootd", "-c", str(folder / "server.cfg"), "-l", str(folder / "admin" / "log")]
        if os.geteuid() == 0:  # it refuses to serve as root
            shutil.chown(folder / "admin", "nobody")
            command += ["-R", "nobody"]
        server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            await_port(port, server)
            yield f"root://localhost:{port}/{folder}/data"
        finally:
            server.terminate()
            server.wait()
    finally:
        shutil.rmtree(folder)


def await_port(port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server listens."""
    for _ in range(300):
        assert server.poll() is None, f"xrootd ended with {server.returncode}"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"xrootd does not listen on port {port}")


def test_a_file_is_the_same_over_xrootd(law: Law, url: str) -> None:
    """Where a file is decides nothing; but for the report, which shows the configuration, nothing is made anew."""
    configuration = law.home / "toy" / "analysis.yaml"
    for name in ("signal", "background"):
        replace(configuration, f"files: [{name}_*.root]", f"files: ['{url}/{name}_0.root', '{url}/{name}_1.root']")
    lines = law("Report", "--analysis", law.analysis, "--why").stdout.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["Report"]

    selected = {path: path.read_bytes() for path in law.store.glob("SelectEvents/*/*/cutflow.json")}
    assert len(selected) == 8
    for where in ("local", "dask"):
        shutil.rmtree(law.store / "SelectEvents")
        law("SelectEvents", "--analysis", law.analysis, "--workflow", where)
        assert {path: path.read_bytes() for path in selected} == selected


def test_a_file_that_is_not_there_is_said(law: Law, url: str) -> None:
    replace(law.home / "toy" / "analysis.yaml", "files: [signal_*.root]", f"files: ['{url}/signal_7.root']")
    done = law("ListInputs", "--analysis", law.analysis, ok=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.count("signal_7.root could not be opened") == 1, done.stderr


def test_bad_files_are_skipped_and_a_server_that_is_gone_is_not(
    law: Law, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can't be reached may be whole: it stays an error."""
    configuration = law.home / "toy" / "analysis.yaml"
    bad = ", ".join(f"'{url}/{kind}.root'" for kind in DAMAGES)
    replace(configuration, "files: [signal_*.root]", f"files: ['{url}/signal_0.root', {bad}]")
    replace(configuration, "  format: flat\n", "  format: flat\n  on_bad_file: skip\n")
    done = law("ListInputs", "--analysis", law.analysis)
    for kind, (_, said) in DAMAGES.items():
        expected = f"skipped (5 of 6 files of data set signal): {url}/{kind}.root {said}"
        assert done.stderr.count(expected) == 1, done.stderr

    monkeypatch.setenv("XRD_CONNECTIONWINDOW", "1")
    monkeypatch.setenv("XRD_CONNECTIONRETRY", "1")
    replace(configuration, f"'{url}/corrupt.root'", "'root://localhost:1//signal_0.root'")
    gone = law("ListInputs", "--analysis", law.analysis, ok=False)
    assert gone.returncode != 0
    assert gone.stderr.count("error: root://localhost:1//signal_0.root could not be opened") == 1, gone.stderr
