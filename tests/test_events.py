"""Reading: bad files, sentinels, chunks, and that only what is touched is read."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot

from analysis.config import GeneratedSum
from analysis.errors import UserError
from analysis.events import Events, inspect_file, read, read_generated
from analysis.sources import Source

WriteRoot = Callable[..., str]
COUNT = 1000


@pytest.fixture
def path(write_root: WriteRoot) -> str:
    """A flat file; -7 is a legal value of `eta` and means "not there" in `jet_pt` and `jets`."""
    rng = np.random.default_rng(1)
    number = np.arange(COUNT)
    return write_root(
        {
            "event": number.astype(np.int64),
            "met": rng.exponential(30, COUNT).astype(np.float32),
            "jet_pt": np.where(number % 3 == 0, -7, 30 + number).astype(np.float32),
            "eta": np.where(number % 5 == 0, -7, 1).astype(np.float32),
            "charge": np.where(number % 2 == 0, -1, 1).astype(np.int32),
            "jets": ak.Array([[-7.0, 25.0], [], [30.0], [-7.0]] * (COUNT // 4)),
        },
        histogram=np.histogram(rng.normal(size=50)),
    )


def open_all(path: str, start: int = 0, stop: int = COUNT, **sentinels: float) -> Events:
    return read(Source(path, "events", "flat", start, stop, sentinels))


def test_inspect_a_good_file(path: str) -> None:
    record = inspect_file(path, "events")
    size = Path(path).stat().st_size
    assert (record.tree, record.entries, record.size, record.end) == ("events;1", COUNT, size, size)
    with uproot.open(path) as file:
        assert record.uuid == str(file.file.uuid)


def test_inspect_takes_the_last_cycle(tmp_path: Path) -> None:
    with uproot.recreate(tmp_path / "a.root") as file:
        for count in (5, 3):
            file.mktree("events", {"x": "float32"})
            file["events"].extend({"x": np.zeros(count, np.float32)})
    record = inspect_file(str(tmp_path / "a.root"), "events")
    assert (record.tree, record.entries) == ("events;2", 3)


def test_a_tree_without_entries_is_allowed(write_root: WriteRoot) -> None:
    assert inspect_file(write_root({"x": np.zeros(0, np.float32)}), "events").entries == 0


@pytest.mark.parametrize("keep", [0.01, 0.5, 0.9, 1 - 1e-9])  # the last cuts one byte; the first, all objects
@pytest.mark.parametrize("kind", ["tree", "ntuple"])
def test_truncated_file(path: str, tmp_path: Path, kind: str, keep: float) -> None:
    whole = Path(path)
    if kind == "ntuple":
        whole = tmp_path / "ntuple.root"
        with uproot.recreate(whole) as file:
            file.mkrntuple("events", {"x": np.arange(10_000, dtype=np.float32)})
    content = whole.read_bytes()
    cut = tmp_path / "cut.root"
    cut.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError) as raised:
        inspect_file(str(cut), "events")
    there, end = cut.stat().st_size, len(content)
    damage = f"is truncated: {there} bytes are there, but its header says that it ends at {end}"
    assert raised.value.damage == damage
    mend = "Copy it again. To go on without such files, set data.on_bad_file to skip."
    assert str(raised.value) == f"{cut} {damage}. {mend}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty (0 bytes)"),
        (b"<html>404 Not Found</html>", "is not a ROOT file: it begins with b'<htm', but b'root' was expected"),
        (b"root\x00\x00", "is truncated: 6 bytes are there"),
        (b"root" + bytes(500), "holds no tree 'events'. There is no tree in it at all."),
    ],
)
def test_files_that_are_no_root_files(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "bad.root"
    file.write_bytes(content)
    with pytest.raises(UserError) as raised:
        inspect_file(str(file), "events")
    assert str(raised.value).startswith(str(file))
    assert said in str(raised.value)


def test_overwritten_file(path: str, tmp_path: Path) -> None:
    """A header alone is no file."""
    content = Path(path).read_bytes()
    bad = tmp_path / "bad.root"
    bad.write_bytes(content[:64] + b"\xff" * (len(content) - 64))
    with pytest.raises(UserError) as raised:
        inspect_file(str(bad), "events")
    assert str(raised.value).startswith(f"{bad} could not be opened as a ROOT file: ")
    assert "\n" not in str(raised.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.root does not exist\. Check data\.folder"):
        inspect_file(str(tmp_path / "no.root"), "events")
    with pytest.raises(UserError, match="is a folder; a ROOT file was expected"):
        inspect_file(str(tmp_path), "events")


@pytest.mark.parametrize("ask", [inspect_file, lambda path, tree: read(Source(path, tree, "flat", 0, 1, {}))])
def test_missing_tree(path: str, ask: Callable[[str, str], object]) -> None:
    with pytest.raises(UserError) as raised:
        ask(path, "event")
    assert f"{path} holds no tree 'event'. Did you mean 'events'? Correct the key data.tree" in str(raised.value)
    with pytest.raises(UserError, match=r"holds no tree 'histogram'\. Valid names: events\."):
        ask(path, "histogram")


def test_missing_branch(path: str) -> None:
    with pytest.raises(UserError) as raised:
        _ = open_all(path).jet_ptt
    assert str(raised.value) == f"{path}, tree 'events': there is no branch 'jet_ptt'. Did you mean 'jet_pt'?"


def test_sentinel_becomes_none_and_only_there(path: str) -> None:
    events = open_all(path, jet_pt=-7, jets=-7)
    absent = np.arange(COUNT) % 3 == 0
    assert ak.to_list(ak.is_none(events.jet_pt)) == absent.tolist()
    np.testing.assert_array_equal(ak.to_numpy(events.jet_pt[~absent]), 30 + np.flatnonzero(~absent))
    # The same number is a value in a branch that declares no sentinel.
    assert not ak.any(ak.is_none(events.eta))
    assert int(ak.sum(events.eta == -7)) == COUNT // 5
    # In a list the object stays, its value is absent.
    assert events.jets[:4].to_list() == [[None, 25.0], [], [30.0], [None]]


def test_a_file_that_was_rewritten_since_the_run_began(path: str) -> None:
    uuid = inspect_file(path, "events").uuid
    source = Source(path, "events", "flat", 0, COUNT, {}, uuid)
    assert len(read(source)) == COUNT
    with pytest.raises(UserError, match="was rewritten while the run was going on"):
        read(replace(source, uuid="another"))


def test_a_sentinel_of_no_branch_is_an_error(path: str) -> None:
    with pytest.raises(
        UserError, match=r"no branch 'mett', for which data\.sentinels declares a value\. Did you mean 'met'"
    ):
        open_all(path, mett=-999.0)


def test_branches_of_a_collection_may_be_called_as_in_the_file(write_root: WriteRoot) -> None:
    values = np.arange(4, dtype=np.float32)
    path = write_root({"MET_pt": values, "MET_phi": values, "event": np.arange(4, dtype=np.int64)}, tree="Events")
    events = read(Source(path, "Events", "nanoaod", 1, 4, {}))
    assert events["MET_pt"].tolist() == events.MET.pt.tolist() == [1, 2, 3]
    assert events.at(np.array([2])).entries.tolist() == [3]
    with pytest.raises(UserError, match=r"no branch 'MET_phii'\. .*MET\.pt"):
        events["MET_phii"]


def test_sentinel_has_the_precision_of_its_branch(write_root: WriteRoot) -> None:
    """A sentinel that no float32 holds exactly is still found in a float32 branch; in an integer branch, too."""
    path = write_root({"x": np.array([-0.1, 0.1], np.float32), "n": np.array([-99, 99], np.int32)})
    events = open_all(path, 0, 2, x=-0.1, n=-99.0)
    assert ak.is_none(events.x).to_list() == [True, False]
    assert events.n.to_list() == [None, 99]


def test_chunks_add_up(path: str) -> None:
    whole = open_all(path, jet_pt=-7)
    chunks = [open_all(path, start, min(start + 300, COUNT), jet_pt=-7) for start in range(0, COUNT, 300)]
    assert [len(chunk) for chunk in chunks] == [300, 300, 300, 100]
    for name in ("event", "met", "jet_pt", "jets"):
        assert ak.concatenate([chunk[name] for chunk in chunks]).to_list() == whole[name].to_list()


def test_at_keeps_some_events_of_a_chunk(path: str) -> None:
    chunk = open_all(path, 100, 200, jet_pt=-7)
    some = chunk.at(np.array([2, 5, 7, 90]))
    assert len(some) == 4
    assert some.event.to_list() == [102, 105, 107, 190]
    assert some.jet_pt.to_list() == [None, None, 137, 220]
    assert some.at(np.array([1, 3])).event.to_list() == [105, 190]
    assert len(some.at(np.zeros(0, np.int64)).jets) == 0


def test_only_what_is_touched_is_read(path: str) -> None:
    log: list[object] = []
    events = read(Source(path, "events", "flat", 0, COUNT, {"jet_pt": -7, "eta": -7}), log)
    assert log == []
    assert len(events) == COUNT
    assert "met" in events.fields
    assert log == []
    ak.sum(events.met)
    ak.sum(events.met)
    assert [item.branch for item in log] == ["met"]  # type: ignore[attr-defined]
    ak.sum(events.at(np.arange(10)).jet_pt)
    assert [item.branch for item in log] == ["met", "jet_pt"]  # type: ignore[attr-defined]


def test_nanoaod_collections(write_root: WriteRoot) -> None:
    pt, quality = ak.Array([[40.0, 10.0], [], [25.0]]), ak.Array([[1.0, -9.0], [], [-9.0]])
    others = dict.fromkeys(("eta", "phi", "mass", "charge"), ak.ones_like(pt))  # without them coffea sees no muons
    muons = ak.zip({"pt": pt, "quality": quality, **others})
    met = {"MET_pt": np.array([5, -1, 7], np.float32), "MET_phi": np.zeros(3, np.float32)}
    path = write_root({"Muon": muons, **met}, tree="Events")
    events = read(Source(path, "Events", "nanoaod", 0, 3, {"Muon_quality": -9, "MET_pt": -1}))
    assert events.Muon.pt.to_list() == [[40.0, 10.0], [], [25.0]]
    assert events.Muon.quality.to_list() == [[1.0, None], [], [None]]
    assert events.MET.pt.to_list() == [5.0, None, 7.0]
    with pytest.raises(UserError, match=r"tree 'Events': there is no branch 'Mun'\. Did you mean 'Muon'\?"):
        _ = events.Mun


def test_events_stay_where_they_are_read(path: str) -> None:
    with pytest.raises(TypeError, match="pass their Source on"):
        pickle.dumps(open_all(path))


def test_generated_sum_of_a_branch_and_of_a_histogram(tmp_path: Path) -> None:
    path = tmp_path / "skim.root"
    edges = np.array([0.0, 1.0, 2.0])
    with uproot.recreate(path) as file:
        file.mktree("Runs", {"genEventSumw": "float64", "bad": "float64", "scales": "var * float64"})
        scales = ak.Array([[1.0], [1.0, 2.0]])
        file["Runs"].extend({"genEventSumw": [1e6, 5e5], "bad": [1.0, np.nan], "scales": scales})
        file["sums"] = uproot.writing.identify.to_TH1x(
            fName="sums",
            fTitle="",
            data=np.array([1.0, 10.0, 20.0, 100.0]),  # underflow, two bins, overflow
            fEntries=4,
            fTsumw=30,
            fTsumw2=30,
            fTsumwx=0,
            fTsumwx2=0,
            fSumw2=None,
            fXaxis=uproot.writing.identify.to_TAxis(
                fName="xaxis", fTitle="", fNbins=2, fXmin=edges[0], fXmax=edges[-1]
            ),
        )
    name = str(path)
    assert read_generated(name, None) is None
    assert read_generated(name, GeneratedSum(tree="Runs", branch="genEventSumw")) == 1.5e6
    assert read_generated(name, GeneratedSum(histogram="sums")) == 131
    for place, said in [
        (
            GeneratedSum(tree="Runs", branch="genEventSum"),
            "there is no branch 'genEventSum'. Did you mean 'genEventSumw'",
        ),
        (GeneratedSum(tree="Run", branch="genEventSumw"), "holds no tree 'Run'. Did you mean 'Runs'?"),
        (GeneratedSum(tree="sums", branch="genEventSumw"), "holds no tree 'sums'."),
        (GeneratedSum(histogram="sum"), "holds no histogram 'sum'. Did you mean 'sums'?"),
        (GeneratedSum(histogram="Runs"), "holds no histogram 'Runs'."),
        (GeneratedSum(tree="Runs", branch="scales"), "Runs.scales holds object, but one number per entry"),
        (GeneratedSum(tree="Runs", branch="genEventSumw", index=0), "genEventSumw: an entry is no list"),
        (GeneratedSum(tree="Runs", branch="bad"), "Runs.bad: the sum of generated weights is nan"),
    ]:
        with pytest.raises(UserError) as raised:
            read_generated(name, place)
        assert str(raised.value).startswith(name)
        assert said in str(raised.value)


def test_sums_of_varied_weights_stand_in_lists(write_root: Callable[..., str]) -> None:
    """As in NanoAOD: relative to the nominal sums, and missing where a run has generated no event."""
    scales = ak.Array([[0.9, 1.1, 1.3], [0.8, 1.2, 1.4], []])
    name = write_root({"sumw": np.array([1e6, 2e6, 0.0]), "scales": scales}, tree="Runs")

    def of(**keys: Any) -> float | None:
        return read_generated(name, GeneratedSum(tree="Runs", **keys), "outputs.nuisances.NAME.generated")

    assert of(branch="scales", index=2, times="sumw") == pytest.approx(1.3e6 + 2.8e6)
    assert of(branch="sumw", times="sumw") == pytest.approx(5e12)
    for keys, said in [
        (
            {"branch": "scales", "index": 3, "times": "sumw"},
            "entry 0 has 3 elements, and none of index 3. Correct outputs",
        ),
        ({"branch": "scales", "index": 0}, "entry 2 has 0 elements, and none of index 0"),
        ({"branch": "scales", "index": 0, "times": "sum"}, "there is no branch 'sum'. Did you mean 'sumw'"),
    ]:
        with pytest.raises(UserError, match=re.escape(said)):
            of(**keys)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("Run2012BC_DoubleMuParked_Muons_1000evts_rntuple_v1-0-0-0.root", 1000),
        ("cmsopendata2015_ttbar_19980_NANOAOD_RNTupleImporter_rntuple_v1-0-0-1.root", 10),
        ("missing_luminosityBlock.root", 2),
        ("nanoAOD_2015_CMS_Open_Data_ttbar.root", 200),
        ("nano_dimuon.root", 40),
        ("nano_dy.root", 40),
    ],
)
def test_real_nanoaod(data_folder: Path, name: str, entries: int) -> None:
    """TTrees and RNTuples give what uproot alone reads from the same file."""
    path = str(data_folder / "nanoaod" / name)
    record = inspect_file(path, "Events")
    assert record.entries == entries
    events = read(Source(path, "Events", "nanoaod", 0, entries, {}))
    with uproot.open(path) as file:
        expected = file["Events"].arrays(["nMuon", "Muon_pt", "Muon_charge"])
    assert ak.num(events.Muon).to_list() == expected.nMuon.to_list()
    np.testing.assert_array_equal(ak.to_numpy(ak.flatten(events.Muon.pt)), ak.to_numpy(ak.flatten(expected.Muon_pt)))
    assert ak.sum(events.Muon.charge) == ak.sum(expected.Muon_charge)


@pytest.mark.data
def test_real_file_without_luminosity_block(data_folder: Path) -> None:
    path = str(data_folder / "nanoaod" / "missing_luminosityBlock.root")
    events = read(Source(path, "Events", "nanoaod", 0, 2, {}))
    assert len(events.event) == 2
    with pytest.raises(UserError, match="there is no branch 'luminosityBlock'"):
        _ = events.luminosityBlock


@pytest.mark.data
def test_real_sum_of_generated_weights(data_folder: Path) -> None:
    place = GeneratedSum(tree="Runs", branch="genEventSumw_")
    path = str(data_folder / "nanoaod" / "nano_dy.root")
    assert read_generated(path, place) == pytest.approx(1.52e10, rel=0.01)
    with uproot.open(path) as file:
        runs = file["Runs"].arrays(["genEventSumw_", "LHEScaleSumw_"])
    place = GeneratedSum(tree="Runs", branch="LHEScaleSumw_", index=8, times="genEventSumw_")
    assert read_generated(path, place) == pytest.approx(float(ak.sum(runs.genEventSumw_ * runs.LHEScaleSumw_[:, 8])))


@pytest.mark.data
def test_real_tree_named_with_a_semicolon(data_folder: Path) -> None:
    path = str(data_folder / "atlas_hww" / "dataWW.root")
    record = inspect_file(path, "tree_event;1")
    assert (record.tree, record.entries) == ("tree_event;1;1", 10_000)
    with pytest.raises(UserError, match=r"Did you mean 'tree_event;1'\?"):
        inspect_file(path, "tree_event")
    sentinels = {"jet_pt_0": -7.0, "jet_pt_1": -7.0}
    events = read(Source(path, "tree_event;1", "flat", 2000, 8000, sentinels))
    jets = ak.fill_none(ak.is_none(events.jet_pt_0), True)
    assert float(ak.mean(jets)) == pytest.approx(0.28, abs=0.02)
    assert float(ak.mean(ak.is_none(events.jet_pt_1))) == pytest.approx(0.63, abs=0.02)
    assert not ak.any(ak.is_none(events.jet_pt_0) & (events.jet_n > 0))


@pytest.mark.data
def test_real_empty_tree(data_folder: Path) -> None:
    assert inspect_file(str(data_folder / "nanoaod" / "uproot-empty.root"), "tree").entries == 0
