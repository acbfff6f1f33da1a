"""The check that features move as an augmentation says."""

from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from analysis import symmetries
from analysis.config import load_analysis
from analysis.sources import Source
from analysis.symmetries import Branches, asymmetries
from models.settings import Augmentation

ANGLES = ("lepton1_phi", "lepton2_phi", "jet1_phi", "jet2_phi")
ETAS = ("lepton1_eta", "lepton2_eta", "jet1_eta", "jet2_eta")
ALL = Augmentation(rotation=True, reflection_phi=True, reflection_z=True, angles=ANGLES, longitudinal=ETAS)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty events with none to three leptons and jets."""
    random = np.random.default_rng(1)

    def objects(**own: float) -> ak.Array:
        counts = random.integers(0, 4, 40)
        total = int(counts.sum())
        fields = {
            "pt": random.uniform(10, 90, total),
            "eta": random.normal(0, 1.5, total),
            "phi": random.uniform(-np.pi, np.pi, total),
            "mass": random.uniform(0.1, 9, total),
            **{name: np.full(total, value) for name, value in own.items()},
        }
        return ak.unflatten(ak.zip({name: np.float32(column) for name, column in fields.items()}), counts)

    branches = {
        "Electron": objects(charge=1),
        "Muon": objects(charge=-1),
        "Jet": objects(btag=0.5),
        "MET_pt": np.float32(random.uniform(0, 90, 40)),
        "MET_phi": np.float32(random.uniform(-np.pi, np.pi, 40)),
    }
    path = tmp_path_factory.mktemp("symmetries") / "events.root"
    with uproot.recreate(path) as file:
        file["Events"] = branches
    return path


def found(path: Path, name: str, declared: Augmentation) -> dict[str, dict[str, float]]:
    analysis = load_analysis(name)
    source = Source(str(path), "Events", "nanoaod", 0, 40, {})
    return asymmetries(analysis.config.feature_names, vars(analysis.physics), source, declared)


def test_features_of_the_embedded_examples_move_as_declared(path: Path) -> None:
    assert found(path, "hww_vs_tt", ALL) == {"rotation": {}, "reflection_phi": {}, "reflection_z": {}}
    azimuthal = Augmentation(reflection_z=True, longitudinal=ETAS)
    assert found(path, "hww", azimuthal) == {"reflection_z": {}}


def test_what_is_not_declared_is_found(path: Path) -> None:
    some = Augmentation(rotation=True, reflection_z=True, angles=ANGLES[:3], longitudinal=(*ETAS[1:], "dijet_deta"))
    gaps = found(path, "hww_vs_tt", some)
    assert list(gaps["rotation"]) == ["jet2_phi"]
    assert sorted(gaps["reflection_z"]) == ["dijet_deta", "lepton1_eta"]


def test_components_and_signed_angles(tmp_path: Path) -> None:
    """Flat branches; an angle that is no difference of angles is found out."""
    random = np.random.default_rng(2)
    branches = {name: np.float32(random.normal(0, 20, 30)) for name in ("a_px", "a_py", "b_px", "b_py")}
    with uproot.recreate(tmp_path / "flat.root") as file:
        file["events"] = branches
    source = Source(str(tmp_path / "flat.root"), "events", "flat", 0, 30, {})
    functions = {
        "x": lambda events: events.a_px,
        "y": lambda events: events.a_py,
        "pt": lambda events: np.hypot(events.a_px, events.a_py),
        "turn": lambda events: symmetries._wrapped(
            np.arctan2(events.a_py, events.a_px) - np.arctan2(events.b_py, events.b_px)
        ),
        "phi": lambda events: np.arctan2(events.a_py, events.a_px),
    }
    declared = Augmentation(
        rotation=True, reflection_phi=True, vectors=(("x", "y"),), signed_angles=("turn",), angles=("phi",)
    )
    assert asymmetries(list(functions), functions, source, declared) == {"rotation": {}, "reflection_phi": {}}
    wrong = Augmentation(rotation=True, reflection_phi=True, vectors=(("y", "x"),), angles=("phi",))
    gaps = asymmetries(list(functions), functions, source, wrong, Branches())
    assert list(gaps["rotation"]) == ["x", "y"]
    assert "turn" in gaps["reflection_phi"]


def test_command_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moves = "training.augmentation={rotation: true, angles: [lepton1_phi, lepton2_phi, jet1_phi, jet2_phi]}"
    assert symmetries.main(["hww_vs_tt", str(path), "--set", moves]) == 0
    assert capsys.readouterr().out == "rotation: all features as declared\n"
    assert symmetries.main(["hww_vs_tt", str(path), "--set", moves.replace("lepton2_phi, ", "")]) == 1
    assert "not as declared: lepton2_phi" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        symmetries.main(["hww_vs_tt", str(path)])
    assert "no symmetry to check" in capsys.readouterr().err
