"""Simulation: reproducible, normalised, and a detector that does what the cited figures say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import pytest
import uproot

from analysis import simulation
from analysis.config import load_analysis
from analysis.errors import UserError
from analysis.events import Events, read
from analysis.simulation import SAMPLES, Particles, SimulatedPart, simulate, write_part
from analysis.sources import Source

SIZES = {"ggh_lvlv": 350, "ggh_lvqq": 350, "ttbar": 400, "ww": 500, "dy_ll": 800, "dy_tautau": 40, "wjets": 800}
SEED = 11

Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def parts() -> dict[str, SimulatedPart]:
    return {sample: simulate(sample, events, SEED) for sample, events in SIZES.items()}


@pytest.fixture(scope="module")
def files(parts: dict[str, SimulatedPart], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("simulated")
    for sample, part in parts.items():
        write_part(part, folder / f"{sample}.root")
    return {sample: folder / f"{sample}.root" for sample in parts}


def gun(particles: list[tuple[int, float, float, float, int]], events: int) -> Particles:
    """The same few particles in many events: (PDG identity, pT, η, φ, mother), with the mother's row in the event.

    A particle is final unless another names it as its mother. Row 0 stands for the event, as in Pythia.
    """
    rows = len(particles)
    identity, pt, eta, phi, mother = (np.tile(np.array(c), events) for c in zip(*particles, strict=True))
    start = np.repeat(np.arange(events) * rows, rows)
    mothers = np.where(mother > 0, mother - 1 + start, -1)
    final = np.ones(rows * events, dtype=np.bool_)
    final[mothers[mothers >= 0]] = False
    return Particles(
        events=events,
        event=np.repeat(np.arange(events), rows),
        id=identity.astype(np.int64),
        final=final,
        mother=mothers,
        px=pt * np.cos(phi),
        py=pt * np.sin(phi),
        pz=pt * np.sinh(eta),
        e=pt * np.cosh(eta),
    )


def detect(particles: list[tuple[int, float, float, float, int]], events: int, share: float = 0.0) -> dict[str, Any]:
    record = gun(particles, events)
    leptons = simulation.dressed_leptons(record)
    rng = np.random.Generator(np.random.PCG64(5))
    return simulation.reconstruct(record, leptons, np.arange(events), share or 0.5, rng)


def assert_rate(found: int, tried: int, expected: float) -> None:
    """A binomial count within five standard deviations."""
    assert abs(found - tried * expected) <= 5 * np.sqrt(tried * expected * (1 - expected)) + 1


class TestReproducibility:
    def test_same_seed_same_content(self) -> None:
        first, second = (simulate("dy_ll", 120, 3, part=1) for _ in range(2))
        assert first.generated == second.generated
        for name, column in first.events.items():
            assert ak.array_equal(column, second.events[name], equal_nan=True), name

    @pytest.mark.parametrize(("seed", "part"), [(4, 1), (3, 2)])
    def test_another_seed_or_part_is_other_content(self, seed: int, part: int) -> None:
        first = simulate("dy_ll", 60, 3, part=1)
        second = simulate("dy_ll", 60, seed, part=part)
        assert not np.array_equal(first.events["MET_pt"], second.events["MET_pt"])

    def test_parts_share_no_event_number(self) -> None:
        first, second = (simulate("dy_ll", 30, 3, part=part) for part in (0, 1))
        assert not set(first.events["event"].tolist()) & set(second.events["event"].tolist())
        assert set(second.events["luminosityBlock"].tolist()) == {2}

    def test_pythia_writes_nothing_to_the_terminal(self, capfd: pytest.CaptureFixture[str]) -> None:
        simulate("dy_ll", 20, 1)
        assert capfd.readouterr() == ("", "")

    def test_multiparton_interactions_add_activity(self) -> None:
        on, off = (simulate("dy_ll", 60, 1, multiparton=switch) for switch in (True, False))
        assert np.mean(ak.num(on.events["Jet"])) > np.mean(ak.num(off.events["Jet"]))

    @pytest.mark.parametrize(("sample", "events", "part"), [("ggh_llll", 10, 0), ("ww", 0, 0), ("ww", 10, -1)])
    def test_mistakes_are_named(self, sample: str, events: int, part: int) -> None:
        with pytest.raises(UserError, match=sample):
            simulate(sample, events, 1, part=part)


class TestNormalisation:
    @pytest.mark.parametrize("sample", SAMPLES)
    def test_counts_and_sums(self, sample: str, parts: dict[str, SimulatedPart], files: dict[str, Path]) -> None:
        with uproot.open(files[sample]) as file:
            assert file["Events"].num_entries == SIZES[sample]
            assert file["Runs"].num_entries == 1
            sums = file["Runs"].arrays(library="np")
            event = file["Events/event"].array(library="np")
        assert sums["genEventCount"][0] == parts[sample].generated > SIZES[sample]
        assert sums["genEventSumw"][0] == parts[sample].sum_of_weights == parts[sample].generated
        assert len(np.unique(event)) == SIZES[sample]

    @pytest.mark.parametrize("sample", SAMPLES)
    def test_cross_sections(self, sample: str) -> None:
        """Pythia's hard processes alone give the cross sections that stand in the code and in analysis.yaml."""
        import pythia8mc

        facts = SAMPLES[sample]
        assert sum(channel.share for channel in facts.channels) == pytest.approx(1)
        values, variance = [], 0.0
        for channel in facts.channels:
            pythia = pythia8mc.Pythia("", False)
            run = ("Print:quiet = on", "Beams:eCM = 13000.", "PartonLevel:all = off", "Random:setSeed = on")
            for setting in (*run, "Random:seed = 9", *facts.settings, *channel.settings):
                assert pythia.readString(setting)
            pythia.init()
            for _ in range(4000):
                pythia.next()
            values.append(1e9 * pythia.infoPython().sigmaGen())
            variance += (1e9 * pythia.infoPython().sigmaErr()) ** 2
        total = sum(values)
        assert [value / total for value in values] == pytest.approx([c.share for c in facts.channels], rel=0.05)
        assert abs(total - facts.generated) < 4 * np.sqrt(variance)
        assert total == pytest.approx(facts.generated, rel=0.05)

    @pytest.mark.parametrize("example", ["hww", "hww_vs_tt", "hww_mass"])
    def test_examples_use_these_cross_sections(self, example: str) -> None:
        config = load_analysis(example).config
        for process in config.processes.values():
            (dataset,) = process.data
            simulated = config.data.datasets[dataset].simulate
            assert simulated is not None
            facts = SAMPLES[simulated.process]
            assert process.picobarn == pytest.approx(facts.cited, rel=1e-3)
            assert process.cross_section.generated == pytest.approx(facts.generated, rel=1e-3)  # type: ignore[union-attr]

    def test_higgs_decays_are_disjoint(self) -> None:
        rng = np.random.Generator(np.random.PCG64(2))
        for sample, leptonic in (("ggh_lvlv", 2), ("ggh_lvqq", 1)):
            charges = set()
            for generator in simulation.start_generators(SAMPLES[sample], rng, multiparton=False):
                record = simulation.flatten(generator.nextBatch(60))
                born = record.mother >= 0
                born[born] = np.abs(record.id[record.mother[born]]) == 24
                lepton = born & np.isin(np.abs(record.id), (11, 13, 15))
                quark = born & (np.abs(record.id) <= 5)
                np.testing.assert_array_equal(np.bincount(record.event[lepton], minlength=60), leptonic)
                np.testing.assert_array_equal(np.bincount(record.event[quark], minlength=60), 2 * (2 - leptonic))
                charges |= set(np.sign(record.id[lepton]).tolist())
            assert charges == {-1, 1}


class TestLeptons:
    # Tight electrons, ATL-PHYS-PUB-2013-009; muons, Delphes CMS card.
    @pytest.mark.parametrize(
        ("identity", "pt", "eta", "expected"),
        [
            (11, 20.0, 0.5, 0.85 - 0.191),
            (-11, 60.0, -1.0, 0.85 - 0.191 * np.exp(-2)),
            (11, 60.0, 2.0, (0.85 - 0.191 * np.exp(-2)) * 0.85 / 0.95),
            (11, 60.0, 1.5, 0.0),
            (11, 60.0, 2.6, 0.0),
            (13, 40.0, 0.3, 0.99 * 0.95),
            (-13, 40.0, -2.2, 0.98 * 0.95),
            (13, 40.0, 2.45, 0.0),
        ],
    )
    def test_efficiency(self, identity: int, pt: float, eta: float, expected: float) -> None:
        found = detect([(23, pt, eta, 0.0, 0), (identity, pt, eta, 0.0, 1)], 3000)
        objects = found["Electron" if abs(identity) == 11 else "Muon"]
        assert_rate(int(ak.sum(ak.num(objects))), 3000, expected)
        assert set(ak.flatten(objects.charge)) <= {-int(np.sign(identity))}

    @pytest.mark.parametrize(
        ("identity", "pt", "eta", "expected"),
        [
            (11, 40.0, 0.5, None),
            (11, 40.0, 2.0, None),
            # CMS, arXiv:1804.04528: 1% in the barrel, 3% in the endcap.
            (13, 40.0, 0.3, 0.0108),
            (13, 40.0, 2.0, 0.0286),
        ],
    )
    def test_resolution(self, identity: int, pt: float, eta: float, expected: float | None) -> None:
        if expected is None:
            energy = pt * np.cosh(eta)
            a, b = (0.10, 0.010) if eta < 1.4 else (0.15, 0.015)
            expected = np.sqrt(0.09 / energy**2 + a**2 / energy + b**2)
        found = detect([(23, pt, eta, 0.0, 0), (identity, pt, eta, 0.0, 1)], 4000)
        measured = ak.to_numpy(ak.flatten(found["Electron" if abs(identity) == 11 else "Muon"].pt)) / pt
        assert np.std(measured) == pytest.approx(expected, rel=5 / np.sqrt(2 * len(measured)))
        assert np.mean(measured) == pytest.approx(1, abs=5 * expected / np.sqrt(len(measured)))

    def test_photons_return_to_electrons_and_not_to_muons(self) -> None:
        for identity, name, pt in ((11, "Electron", 50.0), (13, "Muon", 45.0)):
            born = [(23, 50.0, 0.0, 0.0, 0), (identity, 50.0, 0.0, 0.0, 1)]
            shower = [*born, (identity, 45.0, 0.0, 0.0, 2), (22, 5.0, 0.02, 0.0, 2)]
            assert np.median(ak.flatten(detect(shower, 400)[name].pt)) == pytest.approx(pt, rel=0.01)

    def test_isolation_tells_prompt_from_bottom(self) -> None:
        """In tt̄ bottom hadrons give nearly half as many leptons as W bosons do; few of them are isolated."""
        rng = np.random.Generator(np.random.PCG64(4))
        made, found = np.zeros(2), np.zeros(2)
        for generator in simulation.start_generators(SAMPLES["ttbar"], rng, multiparton=False):
            record = simulation.flatten(generator.nextBatch(150))
            leptons = simulation.dressed_leptons(record)
            hard = (leptons.pt > 12) & (np.abs(leptons.eta) < 2.4)
            events = simulation.reconstruct(record, leptons, np.arange(150), 0.5, rng)
            flavour = ak.flatten(ak.concatenate([events[name].genPartFlav for name in ("Electron", "Muon")], axis=1))
            for i, origins in enumerate([(1, 15), (5,)]):
                made[i] += np.sum(hard & np.isin(leptons.origin, origins))
                found[i] += np.sum(np.isin(ak.to_numpy(flavour), origins))
        assert made[1] > 0.2 * made[0]
        # Identification (0.66 to 0.94) times an isolation of 0.9 or so.
        assert 0.6 < found[0] / made[0] < 0.9
        assert found[1] / made[1] < 0.1

    def test_an_isolated_lepton_from_bottom_is_kept_and_takes_its_jet(self) -> None:
        decay = [(511, 40.0, 0.5, 1.0, 0), (13, 38.0, 0.5, 1.0, 1), (211, 2.0, 0.6, 1.0, 1)]
        found = detect(decay, 2000)
        kept = ak.num(found["Muon"]) == 1
        assert_rate(int(ak.sum(kept)), 2000, 0.99 * 0.95)
        assert set(ak.flatten(found["Muon"].genPartFlav)) == {5}
        assert ak.all(ak.num(found["Jet"])[kept] == 0)
        assert ak.mean(ak.num(found["Jet"])[~kept]) > 0.9

    def test_a_lepton_in_a_jet_is_not_isolated(self) -> None:
        decay = [(511, 40.0, 0.5, 1.0, 0), (13, 20.0, 0.5, 1.0, 1), (211, 20.0, 0.6, 1.0, 1)]
        assert ak.sum(ak.num(detect(decay, 300)["Muon"])) == 0

    def test_z_peak(self, parts: dict[str, SimulatedPart]) -> None:
        """Position and width of the peak: the Z's own 2.4952 GeV (PDG) and the two leptons' resolutions."""
        rng = np.random.default_rng(1)
        for name, resolution in (("Electron", simulation.electron_resolution), ("Muon", simulation.muon_resolution)):
            pairs = parts["dy_ll"].events[name]
            pairs = pairs[ak.num(pairs) == 2]
            first, second = (
                {f: ak.to_numpy(pairs[:, i][f]).astype(np.float64) for f in ("pt", "eta", "phi")} for i in (0, 1)
            )
            angle = np.cosh(first["eta"] - second["eta"]) - np.cos(first["phi"] - second["phi"])
            mass = np.sqrt(2 * first["pt"] * second["pt"] * angle)
            relative = np.hypot(*(resolution(lepton["pt"], lepton["eta"]) for lepton in (first, second))) / 2
            true = 91.188 + 2.4952 / 2 * rng.standard_cauchy((400, len(mass)))
            expected = true * (1 + relative * rng.standard_normal(true.shape))
            widths = []
            for masses in (mass, expected.ravel()):
                low, middle, high = np.percentile(masses[np.abs(masses - 91.188) < 12], [25, 50, 75])
                widths.append((high - low) / 2)
                # Photons that muons radiate pull the middle down.
                assert middle == pytest.approx(91.188, abs=0.4 + 4 * 1.25 * 2.2 / np.sqrt(len(mass)))
            # An interquartile range of n events is known to 1.57 / √n (Gaussian).
            assert len(mass) > 100
            assert widths[0] == pytest.approx(widths[1], rel=4 * 1.57 / np.sqrt(len(mass)) / 1.35)


class TestJets:
    def test_resolution_as_measured(self) -> None:
        """ATLAS, arXiv:2007.02645: (24 ± 1.5)% at 20 GeV, (6 ± 0.5)% at 300 GeV."""
        low, high = simulation.jet_resolution(np.array([20.0, 300.0]))
        assert abs(low - 0.24) < 0.015
        assert abs(high - 0.06) < 0.005
        found = ak.flatten(detect([(211, 300.0, 1.0, 0.0, 0)], 4000)["Jet"].pt)
        assert np.std(found) / 300 == pytest.approx(high, rel=5 / np.sqrt(8000))

    # Delphes CMS card after CMS, arXiv:1211.4462.
    @pytest.mark.parametrize(("hadron", "flavour", "expected"), [(511, 5, 0.713), (421, 4, 0.2095), (211, 0, 0.0138)])
    def test_btag_efficiency(self, hadron: int, flavour: int, expected: float) -> None:
        jets = ak.flatten(detect([(hadron, 100.0, 1.0, 0.0, 0)], 4000)["Jet"])
        assert set(jets.hadronFlavour) == {flavour}
        efficiency = simulation.btag_efficiency(np.array([100.0]), np.array([flavour]))[0]
        assert efficiency == pytest.approx(expected, rel=0.01)
        assert_rate(int(ak.sum(jets.btag > 0.5)), len(jets), expected)

    def test_no_btag_without_tracker(self) -> None:
        assert ak.all(ak.flatten(detect([(511, 100.0, 3.0, 0.0, 0)], 100)["Jet"].btag) == 0)

    def test_other_working_points_follow(self) -> None:
        """CMS DeepCSV, JINST 13 (2018) P05011: medium point 0.68, 0.12, 0.011; loose point 0.84, 0.41, 0.11."""
        uniform = (np.arange(200_000) + 0.5) / 200_000
        tagged = {e: simulation.btag_discriminant(uniform, np.full_like(uniform, e)) for e in (0.68, 0.12, 0.011)}
        cut = np.quantile(tagged[0.68], 1 - 0.84)
        assert np.mean(tagged[0.12] > cut) == pytest.approx(0.41, abs=0.05)
        assert np.mean(tagged[0.011] > cut) == pytest.approx(0.11, abs=0.03)

    @pytest.mark.parametrize("sample", SAMPLES)
    def test_overlap_removed(self, sample: str, parts: dict[str, SimulatedPart]) -> None:
        jets = parts[sample].events["Jet"]
        for name in ("Electron", "Muon"):
            leptons = parts[sample].events[name]
            leptons = leptons[leptons.genPartFlav > 0]
            pairs = ak.cartesian({"jet": jets, "lepton": leptons})
            turn = abs(pairs.jet.phi - pairs.lepton.phi)
            distance = np.hypot(pairs.jet.eta - pairs.lepton.eta, np.minimum(turn, 2 * np.pi - turn))
            assert ak.all(distance > 0.3999)

    @pytest.mark.parametrize("sample", SAMPLES)
    def test_acceptance_and_order(self, sample: str, parts: dict[str, SimulatedPart]) -> None:
        for name, pt, eta in (("Jet", 20, 4.7), ("Electron", 10, 2.5), ("Muon", 10, 2.4)):
            objects = parts[sample].events[name]
            assert ak.all(objects.pt >= pt * (1 - 1e-6))
            assert ak.all(abs(objects.eta) < eta)
            assert ak.all(objects.pt[:, :-1] >= objects.pt[:, 1:])

    def test_top_has_b_jets(self, parts: dict[str, SimulatedPart]) -> None:
        jets = {s: parts[s].events["Jet"] for s in ("ttbar", "ww")}
        share = {s: ak.mean(ak.any(j.hadronFlavour == 5, axis=1)) for s, j in jets.items()}
        assert share["ttbar"] > 0.9
        assert share["ww"] < 0.1


class TestMissingMomentum:
    def test_soft_term(self) -> None:
        """ATL-PHYS-PUB-2013-004: (0.40 + 0.09 √μ) √(ΣE_T + 20 μ)."""
        found = detect([(12, 30.0, 0.0, 0.0, 0)], 4000)
        expected = (0.40 + 0.09 * np.sqrt(20)) * np.sqrt(400)
        x, y = found["MET_pt"] * np.cos(found["MET_phi"]), found["MET_pt"] * np.sin(found["MET_phi"])
        assert np.std(x) == pytest.approx(expected, rel=5 / np.sqrt(8000))
        assert np.std(y) == pytest.approx(expected, rel=5 / np.sqrt(8000))
        # Momentum is balanced by construction of real events, not by this gun: nothing visible, nothing missing.
        assert np.mean(x) == pytest.approx(0, abs=5 * expected / np.sqrt(4000))

    def test_a_lost_jet_energy_is_missing(self) -> None:
        """What the jet measures too little appears along the jet."""
        found = detect([(211, 300.0, 1.0, 0.0, 0)], 3000)
        x = found["MET_pt"] * np.cos(found["MET_phi"])
        shift = ak.to_numpy(ak.flatten(found["Jet"].pt)) - 300
        assert np.corrcoef(x, shift)[0, 1] < -0.5
        assert np.std(x + shift + 300) == pytest.approx(simulation.soft_resolution(np.zeros(1))[0], rel=0.1)

    def test_drell_yan_has_fake_missing_momentum(self, parts: dict[str, SimulatedPart]) -> None:
        events = parts["dy_ll"].events
        two = np.asarray(ak.num(events["Muon"]) == 2)
        assert np.median(events["GenMET_pt"][two]) < 10
        assert 15 < np.median(events["MET_pt"][two]) < 30
        assert np.median(parts["ggh_lvlv"].events["MET_pt"]) > 1.5 * np.median(events["MET_pt"][two])


class TestFakes:
    event = ((24, 40.0, 0.3, 0.0, 0), (13, 40.0, 0.3, 0.0, 1), (211, 60.0, -0.5, 2.5, 0))

    def test_yields(self) -> None:
        """The weighted yield of fakes is the cited rate, times the share of them above 10 GeV."""
        events, share = 8000, 0.3
        found = detect(list(self.event), events, share)
        weight = found["fakeLeptonWeight"].astype(np.float64)
        fake = np.asarray(ak.num(found["Electron"]) == 1)
        one_lepton = 0.99 * 0.95
        z = (0.40 - 10 / 60) / 0.19
        from scipy.stats import norm

        rate = 0.0048 * np.exp(-0.035 * 60) * norm.cdf(z)
        assert_rate(int(fake.sum()), events, one_lepton * share)
        assert weight[fake].sum() == pytest.approx(events * one_lepton * rate, rel=5 / np.sqrt(fake.sum()))
        assert weight.sum() == pytest.approx(events, rel=0.05)

    def test_the_fake_replaces_its_jet(self) -> None:
        found = detect(list(self.event), 2000, 0.3)
        fake = ak.num(found["Electron"]) == 1
        assert ak.all(ak.num(found["Jet"])[fake] == 0)
        assert set(ak.flatten(found["Electron"].genPartFlav)) == {0}
        assert set(ak.flatten(found["Electron"].charge)) == {-1, 1}
        assert ak.all(found["Electron"].pt[fake] < 60.001)

    def test_no_fake_without_a_real_lepton_beside_it(self) -> None:
        found = detect([(211, 60.0, -0.5, 2.5, 0)], 500, 0.3)
        assert ak.sum(ak.num(found["Electron"])) == 0
        assert np.all(found["fakeLeptonWeight"] == 1)

    @pytest.mark.parametrize("sample", SAMPLES)
    def test_weights_keep_the_yield(self, sample: str, parts: dict[str, SimulatedPart]) -> None:
        weight = parts[sample].events["fakeLeptonWeight"].astype(np.float64)
        assert np.all(weight > 0)
        assert weight.mean() == pytest.approx(1, abs=5 * weight.std() / np.sqrt(len(weight)) + 1e-3)


@pytest.fixture(scope="module")
def features(files: dict[str, Path]) -> dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]]:
    """Per class of hww: features [N, F] with NaN for None, weights [N], whether the second lepton is there [N]."""
    analysis = load_analysis("hww")
    config, physics = analysis.config, analysis.physics
    found = {}
    for name, members in config.classes.processes.items():
        rows, weights, second = [], [], []
        for process in members:
            (sample,) = config.processes[process].data
            events = selected(files[sample], config.selection.cuts, physics)
            columns = [masked(getattr(physics, feature)(events)) for feature in config.feature_names]
            rows.append(np.stack([np.ma.filled(column, np.nan) for column in columns], axis=1))
            generated = simulate_sum(files[sample])
            weights.append(masked(physics.fake_lepton_weight(events)) * config.processes[process].picobarn / generated)
            second.append(~np.ma.getmaskarray(masked(physics.lepton2_pt(events))))
        found[name] = np.concatenate(rows), np.ma.filled(np.concatenate(weights)), np.concatenate(second)
    return found


def simulate_sum(path: Path) -> float:
    with uproot.open(path) as file:
        return float(file["Runs/genEventSumw"].array()[0])


def chunk(path: Path) -> Events:
    with uproot.open(path) as file:
        entries = file["Events"].num_entries
    return read(Source(str(path), "Events", "nanoaod", 0, entries, {}))


def selected(path: Path, cuts: tuple[str, ...], physics: Any) -> Events:
    events = chunk(path)
    passed = np.ones(len(events), dtype=np.bool_)
    for cut in cuts:
        passed &= ak.to_numpy(ak.fill_none(getattr(physics, cut)(events), False))
    return events.at(np.flatnonzero(passed))


def masked(column: Any) -> np.ma.MaskedArray[Any, Any]:
    return np.ma.asarray(ak.to_numpy(ak.values_astype(column, np.float64), allow_missing=True))


class TestExamples:
    def test_hww_vs_tt_has_the_textbooks_26_features(self) -> None:
        assert len(load_analysis("hww_vs_tt").config.feature_names) == 26

    @pytest.mark.parametrize("example", ["hww", "hww_vs_tt", "hww_mass"])
    def test_functions_give_finite_numbers_or_none(self, example: str, files: dict[str, Path]) -> None:
        analysis = load_analysis(example)
        config, physics = analysis.config, analysis.physics
        events = selected(files["ggh_lvlv"], config.selection.cuts, physics)
        for name in (*config.feature_names, *config.spectators, *config.truth):
            column = masked(getattr(physics, name)(events))
            assert column.shape == (len(events),)
            assert np.all(np.isfinite(column.compressed())), name
            assert getattr(physics, name).label

    def test_targets_of_hww_mass_are_what_a_perfect_detector_would_measure(self, files: dict[str, Path]) -> None:
        """The true transverse mass is there where two leptons are, and differs by the missing momentum alone."""
        analysis = load_analysis("hww_mass")
        physics = analysis.physics
        events = selected(files["ggh_lvlv"], analysis.config.selection.cuts, physics)
        true, found = (masked(function(events)) for function in (physics.true_dilepton_mt, physics.dilepton_mt))
        absent = np.ma.getmaskarray(true)
        assert np.array_equal(absent, np.ma.getmaskarray(found))
        assert 0 < absent.mean() < 1
        gen, met = (masked(function(events)) for function in (physics.true_met, physics.met))
        dphi = ak.to_numpy(events.GenMET.phi - events.MET.phi)
        same = ~absent & (abs(gen / met - 1) < 0.1) & (np.cos(dphi) > 0.99)
        assert same.sum() > 3
        assert abs(true[same] - found[same]).max() < 0.1 * met[same].max()
        assert np.corrcoef(true[~absent], found[~absent])[0, 1] > 0.5

    def test_absent_objects(self, files: dict[str, Path]) -> None:
        """What belongs to the second lepton is None exactly where there is one lepton, for all features alike."""
        analysis = load_analysis("hww")
        config, physics = analysis.config, analysis.physics
        events = selected(files["ggh_lvlv"], config.selection.cuts, physics)
        one, two = (masked(getattr(physics, f)(events)) == 1 for f in config.selection.categories.values())
        assert np.all(one ^ two)
        jets = ak.to_numpy(ak.num(events.Jet.pt))
        present = {"event": np.ones_like(one), "lepton1": one | two, "lepton2": two, "dilepton": two}
        present |= {"jet1": jets >= 1, "jet2": jets >= 2, "dijet": jets >= 2}
        for owner, names in config.features.items():
            for name in names:
                column = masked(getattr(physics, name)(events))
                np.testing.assert_array_equal(~np.ma.getmaskarray(column), present[owner], err_msg=name)

    def test_masses_and_angles_against_a_plain_loop(self, files: dict[str, Path]) -> None:
        import vector

        physics = load_analysis("hww").physics
        events = chunk(files["dy_ll"])
        mass, dphi = masked(physics.dilepton_mass(events)), masked(physics.dilepton_dphi(events))
        with uproot.open(files["dy_ll"]) as file:
            columns = file["Events"].arrays(filter_name="/(Electron|Muon)_(pt|eta|phi|mass)/", entry_stop=200)
        for entry, record in enumerate(columns):
            leptons: list[Any] = [
                vector.obj(pt=pt, eta=eta, phi=phi, mass=m)
                for name in ("Electron", "Muon")
                for pt, eta, phi, m in zip(*(record[f"{name}_{f}"] for f in ("pt", "eta", "phi", "mass")), strict=True)
            ]
            leptons.sort(key=lambda lepton: -lepton.pt)
            assert bool(np.ma.getmaskarray(mass)[entry]) == (len(leptons) < 2)
            if len(leptons) >= 2:
                assert mass[entry] == pytest.approx((leptons[0] + leptons[1]).mass, rel=1e-3)
                assert dphi[entry] == pytest.approx(abs(leptons[0].deltaphi(leptons[1])), abs=1e-5)

    def test_the_second_lepton_is_often_absent(self, features: dict[str, Any]) -> None:
        second = np.concatenate([second for _, _, second in features.values()])
        assert 0.2 < np.mean(~second) < 0.9

    def test_the_task_is_neither_trivial_nor_hopeless(self, features: dict[str, Any]) -> None:
        """The AUC of the signal against each background lies between 0.6 and 0.98, for trees, with physics weights."""
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.metrics import roc_auc_score

        signal, signal_weight, _ = features["higgs"]
        for name, (background, background_weight, _) in features.items():
            if name == "higgs":
                continue
            values = np.concatenate([signal, background])
            truth = np.repeat([1, 0], [len(signal), len(background)])
            weight = np.concatenate(
                [signal_weight / signal_weight.mean(), background_weight / background_weight.mean()]
            )
            train = np.arange(len(truth)) % 2 == 0
            trees = HistGradientBoostingClassifier(max_iter=40, max_leaf_nodes=7, random_state=1)
            trees.fit(values[train], truth[train], sample_weight=weight[train])
            score = trees.predict_proba(values[~train])[:, 1]
            auc = roc_auc_score(truth[~train], score, sample_weight=weight[~train])
            assert 0.6 < auc < 0.98, name
