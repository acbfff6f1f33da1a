"""Simulation: Pythia 8 events at 13 TeV through a parametrised detector, written as NanoAOD-like ROOT files.

`simulate` makes one part of a sample, `write_part` writes it; both are called by parallel branches. Everything is
determined by (sample, events, seed, part, multiparton): the same call gives the same content, bit for bit.

The detector acts on flat numpy arrays, one row per particle, with the index of its event beside it. Sources:

* D: Delphes 3, card `delphes_card_CMS.tcl` (JHEP 02 (2014) 057, arXiv:1307.6346).
* U: ATLAS, performance assumptions for the upgrade, ATL-PHYS-PUB-2013-004 and ATL-PHYS-PUB-2013-009, as coded in
  ATLAS's `UpgradePerformanceFunctions`.
* J: ATLAS, jet energy scale and resolution at 13 TeV, Eur. Phys. J. C 81 (2021) 689, arXiv:2007.02645.
* M: CMS, muon reconstruction at 13 TeV, JINST 13 (2018) P06015, arXiv:1804.04528.
* B: CMS, identification of b-quark jets, JINST 8 (2013) P04013, arXiv:1211.4462.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from analysis.errors import UserError, nearest

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

ELECTRON_MASS = 0.000511
MUON_MASS = 0.10566

# W branching fractions: Particle Data Group, Phys. Rev. D 110 (2024) 030001.
W_LEPTONIC = 3 * 0.1086
W_HADRONIC = 0.6741

# Generator-level filter, the same for all samples: an electron (with its radiated photons) or a muon from any source.
FILTER_PT = 20.0
FILTER_ETA = 2.5

# One file holds the events of one part: event numbers of different parts never meet.
EVENTS_PER_PART = 10_000_000

# Acceptance of the reconstructed objects, GeV.
LEPTON_PT = 10.0
ELECTRON_ETA = 2.5
MUON_ETA = 2.4
JET_PT = 20.0
JET_ETA = 4.7
JET_RADIUS = 0.4
CALORIMETER_ETA = 5.0
TRACKER_ETA = 2.5
# The gap between barrel and endcap calorimeter of CMS, where electrons are not used (JINST 16 (2021) P05014).
CRACK = (1.4442, 1.566)

# Relative isolation: sum of pT within ΔR < 0.3 over the lepton's pT; 0.15 as for tight muons in M.
ISOLATION_RADIUS = 0.3
ISOLATION = 0.15

# Mean number of collisions per crossing whose energy disturbs the missing momentum. They are not generated.
PILE_UP = 20.0

# What the medium working point of the b-tag discriminant is.
BTAG_MEDIUM = 0.5


@dataclass(frozen=True)
class Channel:
    """One of the disjoint decay channels that a sample is generated in.

    Attributes:
        share: Share of the sample's cross section; the shares of a sample sum to one.
        settings: Pythia settings on top of the sample's.
    """

    share: float
    settings: tuple[str, ...]


@dataclass(frozen=True)
class GeneratorSample:
    """What is generated, and what its cross section is.

    Attributes:
        title: What it is, for people.
        settings: Pythia settings, with the windows of phase space.
        channels: Disjoint decay channels; events of all of them are mixed.
        generated: Cross section of Pythia at leading order in these windows and channels, pb, before the
            generator-level filter. Measured with 200,000 events.
        cited: The best known cross section in the same windows and channels, pb.
        source: Where `cited` comes from.
        fake_share: Among events with one lepton and a jet that may fake another, the share that becomes events with
            a faked lepton. The event weight undoes it, so that this moves effort, not yields.
    """

    title: str
    settings: tuple[str, ...]
    channels: tuple[Channel, ...]
    generated: float
    cited: float
    source: str
    fake_share: float = 0.05

    @property
    def k_factor(self) -> float:
        """cited / generated."""
        return self.cited / self.generated


_LEPTONIC = "24:onIfAny = 11 13 15"
# At least one leptonic W of two: the positive one leptonic, or else the negative one alone.
_ONE_LEPTONIC = (
    Channel(
        W_LEPTONIC / (W_LEPTONIC + W_HADRONIC * W_LEPTONIC),
        # Mode 3: open for the negative W alone.
        ("24:onMode = 3", _LEPTONIC),
    ),
    Channel(
        W_HADRONIC * W_LEPTONIC / (W_LEPTONIC + W_HADRONIC * W_LEPTONIC),
        ("24:onMode = off", "24:onPosIfAny = 1 2 3 4 5", "24:onNegIfAny = 11 13 15"),
    ),
)
# Taus from W bosons are fully polarised. Handing Pythia the polarisation gives the same decays as its full spin
# treatment, lepton spectra included, four times faster.
_W_TAUS = ("TauDecays:mode = 3", "TauDecays:tauPolarization = -1.")
_HIGGS = ("HiggsSM:gg2H = on", "25:m0 = 125.", "25:onMode = off", "25:onIfMatch = 24 -24", *_W_TAUS)
# ggF at N3LO QCD + NLO EW, 125 GeV, and the branching fraction to WW: LHC Higgs Cross Section WG, Yellow Report 4.
_HIGGS_TO_WW = 48.58 * 0.2137
_HIGGS_SOURCE = (
    "48.58 pb (gg→H, 13 TeV, 125 GeV, N3LO QCD + NLO EW) × 0.2137 (H→WW), LHC Higgs Cross Section WG, "
    "CERN-2017-002, arXiv:1610.07922; W branching fractions from the PDG"
)
_DRELL_YAN_SOURCE = "2025.7 pb per flavour, m > 50 GeV, NNLO, FEWZ 3.1 (arXiv:1208.5967)"

SAMPLES: Mapping[str, GeneratorSample] = MappingProxyType(
    {
        "ggh_lvlv": GeneratorSample(
            title="gg→H→WW*→ℓνℓν, ℓ = e, μ, τ",
            settings=_HIGGS,
            channels=(Channel(1.0, ("24:onMode = off", _LEPTONIC)),),
            generated=0.5896,
            cited=_HIGGS_TO_WW * W_LEPTONIC**2,
            source=_HIGGS_SOURCE,
        ),
        "ggh_lvqq": GeneratorSample(
            title="gg→H→WW*→ℓνqq, ℓ = e, μ, τ",
            settings=_HIGGS,
            channels=(
                Channel(0.5, ("24:onMode = off", "24:onPosIfAny = 11 13 15", "24:onNegIfAny = 1 2 3 4 5")),
                Channel(0.5, ("24:onMode = off", "24:onPosIfAny = 1 2 3 4 5", "24:onNegIfAny = 11 13 15")),
            ),
            generated=2.4545,
            cited=_HIGGS_TO_WW * 2 * W_LEPTONIC * W_HADRONIC,
            source=_HIGGS_SOURCE,
        ),
        "ttbar": GeneratorSample(
            title="tt̄, at least one W→ℓν",
            settings=(
                "Top:gg2ttbar = on",
                "Top:qqbar2ttbar = on",
                "6:m0 = 172.5",
                "PhaseSpace:pTHatMin = 0.",
                *_W_TAUS,
            ),
            channels=_ONE_LEPTONIC,
            generated=280.4,
            cited=831.76 * (1 - W_HADRONIC**2),
            source="831.76 pb (NNLO + NNLL, 172.5 GeV), Top++ 2.0, Czakon and Mitov, arXiv:1112.5675; PDG",
        ),
        "ww": GeneratorSample(
            title="WW, at least one W→ℓν",
            settings=("WeakDoubleBoson:ffbar2WW = on", "PhaseSpace:pTHatMin = 0.", *_W_TAUS),
            channels=_ONE_LEPTONIC,
            generated=34.96,
            cited=118.7 * (1 - W_HADRONIC**2),
            source="118.7 pb (NNLO), Gehrmann et al., Phys. Rev. Lett. 113 (2014) 212001, arXiv:1408.5243; PDG",
        ),
        "dy_ll": GeneratorSample(
            title="Z/γ*→ee, μμ, m > 50 GeV",
            settings=("WeakSingleBoson:ffbar2gmZ = on", "PhaseSpace:mHatMin = 50."),
            channels=(Channel(1.0, ("23:onMode = off", "23:onIfAny = 11 13")),),
            generated=3036.0,
            cited=2 * 2025.7,
            source=_DRELL_YAN_SOURCE,
        ),
        "dy_tautau": GeneratorSample(
            title="Z/γ*→ττ, m > 50 GeV",
            # Unpolarised taus: the mean polarisation, -0.14 (LEP, hep-ex/0509008), and the correlation of the two
            # decays are left out, since Pythia's full treatment makes 140 events/s.
            settings=("WeakSingleBoson:ffbar2gmZ = on", "PhaseSpace:mHatMin = 50.", "TauDecays:mode = 0"),
            channels=(Channel(1.0, ("23:onMode = off", "23:onIfAny = 15")),),
            generated=1514.5,
            cited=2025.7,
            source=_DRELL_YAN_SOURCE,
        ),
        "wjets": GeneratorSample(
            title="W→ℓν + jets, ℓ = e, μ, τ",
            settings=("WeakSingleBoson:ffbar2W = on", "PhaseSpace:mHatMin = 20.", *_W_TAUS),
            channels=(Channel(1.0, ("24:onMode = off", _LEPTONIC)),),
            generated=45704.0,
            cited=61526.7,
            source="61526.7 pb (NNLO, three flavours), FEWZ 3.1 (arXiv:1208.5967)",
            # A second lepton is always a fake here (or comes from a heavy quark).
            fake_share=0.3,
        ),
    }
)


@dataclass(frozen=True)
class SimulatedPart:
    """One part of a sample: what a file holds.

    Attributes:
        sample: Key of `SAMPLES`.
        part: Number of the part.
        events: Columns of the tree `Events`. Per event: `run`, `luminosityBlock` (uint32), `event` (uint64),
            `genWeight`, `fakeLeptonWeight`, `MET_pt`, `MET_phi`, `GenMET_pt`, `GenMET_phi` (float32, GeV). Jagged
            records, ordered by falling pT: `Electron`, `Muon`, `Jet`.
        generated: Number of generated events, those that the filter took out included.
        sum_of_weights: Sum of `genWeight` over them.
        cross_section: Pythia's estimate for the generated events, pb, before the filter.
        cross_section_error: Its statistical error, pb.
    """

    sample: str
    part: int
    events: Mapping[str, Any]
    generated: int
    sum_of_weights: float
    cross_section: float
    cross_section_error: float

    @property
    def filter_efficiency(self) -> float:
        """Share of the generated events that passed the generator-level filter."""
        return len(self.events["event"]) / self.generated


def simulate(sample: str, events: int, seed: int, *, part: int = 0, multiparton: bool = False) -> SimulatedPart:
    """Generate events until enough pass the generator-level filter, and reconstruct those.

    Args:
        sample: Key of `SAMPLES`.
        events: Number of events that the part will hold.
        seed: Seed of the analysis; every sample and part derives its own from it.
        part: Number of the part, from 0.
        multiparton: Simulate multiparton interactions too, at a tenth of the rate.

    Raises:
        UserError: There is no such sample, or a number is out of range.
    """
    if sample not in SAMPLES:
        raise UserError(f"There is no generator sample {sample!r}. {nearest(sample, SAMPLES)}")
    if events < 1 or part < 0 or seed < 0 or events >= EVENTS_PER_PART:
        raise UserError(
            f"Sample {sample!r}: found events = {events}, part = {part}, seed = {seed}; expected 1 ≤ events < "
            f"{EVENTS_PER_PART}, part ≥ 0 and seed ≥ 0."
        )
    sequence = np.random.SeedSequence([seed, zlib.crc32(sample.encode()), part])
    rng = np.random.Generator(np.random.PCG64(sequence))
    generators = start_generators(SAMPLES[sample], rng, multiparton)
    shares = np.array([channel.share for channel in SAMPLES[sample].channels])

    batches: list[dict[str, Any]] = []
    kept = generated = 0
    while kept < events:
        # As many as should do, by the share that passed so far; at most 500, since whole records stay in memory.
        wanted = (events - kept) * (generated + 2) / (kept + 1)
        counts = rng.multinomial(min(int(1.1 * wanted) + 20, 500), shares / shares.sum())
        particles = _join([flatten(g.nextBatch(int(n))) for g, n in zip(generators, counts, strict=True) if n])
        leptons = dressed_leptons(particles)
        passed = np.zeros(particles.events, dtype=np.bool_)
        passed[leptons.event[(leptons.pt > FILTER_PT) & (np.abs(leptons.eta) < FILTER_ETA)]] = True
        # Events of all channels were generated in random order, and the part ends with the last that it needs: later
        # ones count neither here nor in Runs.
        order = rng.permutation(particles.events)
        needed = order[passed[order]][: events - kept]
        full = kept + len(needed) == events
        generated += int(np.flatnonzero(order == needed[-1])[0]) + 1 if full else particles.events
        kept += len(needed)
        if len(needed):
            batches.append(reconstruct(particles, leptons, np.sort(needed), SAMPLES[sample].fake_share, rng))

    columns: dict[str, Any] = {
        "run": np.ones(events, dtype=np.uint32),
        "luminosityBlock": np.full(events, part + 1, dtype=np.uint32),
        "event": np.arange(events, dtype=np.uint64) + np.uint64(part * EVENTS_PER_PART),
        "genWeight": np.ones(events, dtype=np.float32),
    }
    for name, first in batches[0].items():
        pieces = [batch[name] for batch in batches]
        columns[name] = (
            np.concatenate(pieces) if isinstance(first, np.ndarray) else ak.to_packed(ak.concatenate(pieces))
        )
    # Pythia gives mb.
    sigma = [(1e9 * g.infoPython().sigmaGen(), 1e9 * g.infoPython().sigmaErr()) for g in generators]
    return SimulatedPart(
        sample=sample,
        part=part,
        events=MappingProxyType(columns),
        generated=generated,
        sum_of_weights=float(generated),
        cross_section=sum(value for value, _ in sigma),
        cross_section_error=float(np.hypot.reduce([error for _, error in sigma])),
    )


def write_part(part: SimulatedPart, path: str | Path) -> None:
    """Write a part as a ROOT file with the TTrees `Events` and `Runs`, laid out as in NanoAOD.

    Args:
        part: What `simulate` gave.
        path: The file; its folder must exist.
    """
    import uproot

    runs = {
        "run": np.ones(1, dtype=np.uint32),
        "genEventCount": np.array([part.generated], dtype=np.int64),
        "genEventSumw": np.array([part.sum_of_weights], dtype=np.float64),
    }
    with uproot.recreate(path, compression=uproot.LZ4(4)) as file:
        for name, columns in (("Events", part.events), ("Runs", runs)):
            tree = file.mktree(name, {key: ak.type(column).content for key, column in columns.items()})
            tree.extend(dict(columns))


# Generation ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Particles:
    """The event records of a batch, flat.

    Attributes:
        events: Number of events.
        event: Index of the particle's event, int64 of shape [particles], ascending.
        id: PDG identity, int64.
        final: Whether the particle is in the final state.
        mother: Row of the first mother, -1 if there is none, int64.
        px, py, pz, e: Four-momentum, GeV, float64.
    """

    events: int
    event: Integers
    id: Integers
    final: Booleans
    mother: Integers
    px: Floats
    py: Floats
    pz: Floats
    e: Floats

    @cached_property
    def pt(self) -> Floats:
        """Transverse momentum, GeV."""
        return np.hypot(self.px, self.py)

    @cached_property
    def direction(self) -> tuple[Floats, Floats]:
        """Pseudorapidity and azimuth."""
        return _direction(self.px, self.py, self.pz)


@dataclass(frozen=True)
class Leptons:
    """Generated electrons and muons, all arrays of shape [leptons].

    Attributes:
        event: Index of the event, ascending.
        row: Row in the particles.
        id: PDG identity.
        pt, eta, phi: Momentum, for electrons with the photons that they radiated, GeV and radians.
        origin: As NanoAOD's genPartFlav: 1 prompt, 15 prompt tau, 5 bottom, 4 charm, 0 other hadrons.
    """

    event: Integers
    row: Integers
    id: Integers
    pt: Floats
    eta: Floats
    phi: Floats
    origin: Integers


def start_generators(sample: GeneratorSample, rng: np.random.Generator, multiparton: bool) -> list[Any]:
    """Initialise one Pythia per decay channel."""
    import pythia8mc

    generators = []
    for channel in sample.channels:
        # No XML folder of one's own, no banner.
        pythia = pythia8mc.Pythia("", False)
        common = (
            "Print:quiet = on",
            "Beams:eCM = 13000.",
            f"PartonLevel:MPI = {'on' if multiparton else 'off'}",
            "Random:setSeed = on",
            f"Random:seed = {int(rng.integers(1, 900_000_000, endpoint=True))}",
        )
        for setting in (*common, *sample.settings, *channel.settings):
            if not pythia.readString(setting):
                raise ValueError(f"Pythia does not accept the setting {setting!r}")
        if not pythia.init():
            raise RuntimeError(f"Pythia could not start with {sample.settings} and {channel.settings}")
        generators.append(pythia)
    return generators


def flatten(batch: Any) -> Particles:
    """Turn the records of `nextBatch` into flat arrays."""
    record = batch.prt
    counts = ak.to_numpy(ak.num(record.id)).astype(np.int64)
    event = np.repeat(np.arange(len(counts)), counts)
    start = np.repeat(np.cumsum(counts) - counts, counts)

    def column(array: Any) -> Any:
        return ak.to_numpy(ak.flatten(array))

    mother = column(record.mother1).astype(np.int64)
    return Particles(
        events=len(counts),
        event=event,
        id=column(record.id).astype(np.int64),
        final=column(record.status) > 0,
        # Line 0 of an event stands for the whole event.
        mother=np.where(mother > 0, mother + start, -1),
        px=column(record.p.px),
        py=column(record.p.py),
        pz=column(record.p.pz),
        e=column(record.p.e),
    )


def _join(pieces: Sequence[Particles]) -> Particles:
    """Put several batches behind one another."""
    events = np.cumsum([0, *(piece.events for piece in pieces)])
    rows = np.cumsum([0, *(len(piece.id) for piece in pieces)])
    columns = {
        name: np.concatenate([getattr(piece, name) for piece in pieces])
        for name in ("id", "final", "px", "py", "pz", "e")
    }
    return Particles(
        events=int(events[-1]),
        event=np.concatenate([piece.event + offset for piece, offset in zip(pieces, events, strict=False)]),
        mother=np.concatenate(
            [np.where(piece.mother >= 0, piece.mother + row, -1) for piece, row in zip(pieces, rows, strict=False)]
        ),
        **columns,
    )


def dressed_leptons(particles: Particles) -> Leptons:
    """Find the final electrons and muons, and give electrons back the photons that they radiated within ΔR < 0.1."""
    absolute = np.abs(particles.id)
    rows = np.flatnonzero(particles.final & ((absolute == 11) | (absolute == 13)))
    px, py, pz = particles.px[rows].copy(), particles.py[rows].copy(), particles.pz[rows].copy()
    photons = np.flatnonzero(_radiated(particles))
    left, right = _pairs(particles.event[photons], particles.event[rows], particles.events)
    eta, phi = _direction(px, py, pz)
    photon_eta, photon_phi = _direction(particles.px[photons], particles.py[photons], particles.pz[photons])
    near = _delta_r(photon_eta[left], photon_phi[left], eta[right], phi[right]) < 0.1
    near &= absolute[rows][right] == 11
    for total, component in ((px, particles.px), (py, particles.py), (pz, particles.pz)):
        np.add.at(total, right[near], component[photons[left[near]]])
    eta, phi = _direction(px, py, pz)
    return Leptons(
        event=particles.event[rows],
        row=rows,
        id=particles.id[rows],
        pt=np.hypot(px, py),
        eta=eta,
        phi=phi,
        origin=_origin(particles, rows),
    )


def _radiated(particles: Particles) -> Booleans:
    """Final photons whose mother is an electron."""
    photons = np.flatnonzero(particles.final & (particles.id == 22) & (particles.mother >= 0))
    radiated = np.zeros(len(particles.id), dtype=np.bool_)
    radiated[photons] = np.abs(particles.id[particles.mother[photons]]) == 11
    return radiated


def _origin(particles: Particles, rows: Integers) -> Integers:
    """Walk from leptons up their mothers until a parton or boson is met: see `Leptons.origin`."""
    origin = np.ones(len(rows), dtype=np.int64)
    cursor = particles.mother[rows]
    active = np.flatnonzero(cursor >= 0)
    while len(active):
        identity = np.abs(particles.id[cursor[active]])
        hadron = identity > 100
        bottom = hadron & _contains(identity, 5)
        charm = hadron & _contains(identity, 4)
        current = origin[active]
        current = np.where((identity == 15) & (current == 1), 15, current)
        # A photon that splits into leptons is as little a source of prompt ones as a light hadron.
        current = np.where((hadron | (identity == 22)) & np.isin(current, (1, 15)), 0, current)
        current = np.where(charm & (current != 5), 4, current)
        current = np.where(bottom, 5, current)
        origin[active] = current
        cursor[active] = particles.mother[cursor[active]]
        onwards = hadron | np.isin(identity, (11, 13, 15, 22))
        active = active[onwards & (cursor[active] >= 0)]
    return origin


def _contains(identity: Integers, quark: int) -> Booleans:
    """Whether hadrons, by their absolute PDG identity, contain a quark as their heaviest."""
    contains: Booleans = ((identity // 100) % 10 == quark) | ((identity // 1000) % 10 == quark)
    return contains


# Detector ------------------------------------------------------------------------------------------------------------


def electron_efficiency(pt: Floats, eta: Floats) -> Floats:
    """Efficiency to reconstruct and identify a prompt electron, before isolation.

    Tight electrons of source U: 0.85 − 0.191 exp(1 − pT/20 GeV); in the endcaps times 0.85/0.95 (source D); none in
    the crack and beyond |η| = 2.5.

    Args:
        pt: Generated pT in GeV, float64.
        eta: Generated η, float64 of the same shape.
    """
    absolute = np.abs(eta)
    efficiency = 0.85 - 0.191 * np.exp(1 - pt / 20)
    efficiency = np.where(absolute < CRACK[0], efficiency, efficiency * 0.85 / 0.95)
    blind = ((absolute > CRACK[0]) & (absolute < CRACK[1])) | (absolute > ELECTRON_ETA)
    return np.clip(efficiency, 0, 1) * ~blind


def muon_efficiency(pt: Floats, eta: Floats) -> Floats:
    """Efficiency to reconstruct and identify a muon, before isolation.

    Source D: tracking 0.99 (|η| ≤ 1.5) or 0.98, identification 0.95 for pT > 10 GeV and |η| ≤ 2.4, falling as
    exp(0.5 − pT/2 TeV) above 1 TeV.
    """
    absolute = np.abs(eta)
    tracking = np.where(absolute <= 1.5, 0.99, 0.98)
    identification = 0.95 * np.exp(np.minimum(0.0, 0.5 - pt * 5e-4))
    return np.where(absolute <= MUON_ETA, tracking * identification, 0.0)


def electron_resolution(pt: Floats, eta: Floats) -> Floats:
    """Relative energy resolution of electrons.

    Source U: σ² = (0.3 GeV)² + S²E + C²E² with S = 0.10 √GeV, C = 0.010 for |η| < 1.4, else 0.15 √GeV and 0.015.
    """
    energy = pt * np.cosh(eta)
    barrel = np.abs(eta) < 1.4
    stochastic = np.where(barrel, 0.10, 0.15)
    constant = np.where(barrel, 0.010, 0.015)
    return np.sqrt(0.3**2 + stochastic**2 * energy + constant**2 * energy**2) / energy


def muon_resolution(pt: Floats, eta: Floats) -> Floats:
    """Relative pT resolution of muons.

    Source D: √(a² + (b pT)²) with a = 1.0%, 1.5%, 2.5% and b = 1.0, 1.5, 3.5 × 10⁻⁴/GeV up to |η| = 0.5, 1.5, 2.5;
    source M measures 1% in the barrel and 3% in the endcaps below 100 GeV.
    """
    region = np.searchsorted([0.5, 1.5], np.abs(eta))
    constant = np.array([0.010, 0.015, 0.025])[region]
    slope = np.array([1.0e-4, 1.5e-4, 3.5e-4])[region]
    resolution: Floats = np.hypot(constant, slope * pt)
    return resolution


def jet_resolution(pt: Floats) -> Floats:
    """Relative pT resolution of jets.

    √((N/pT)² + S²/pT + C²) with N = 3.0 GeV, S = 0.80 √GeV, C = 0.035: 23.6% at 20 GeV and 5.9% at 300 GeV, where
    source J measures (24 ± 1.5)% and (6 ± 0.5)%. Below 20 GeV, where nothing is measured, the value at 20 GeV.
    """
    pt = np.maximum(pt, 20.0)
    return np.sqrt((3.0 / pt) ** 2 + 0.80**2 / pt + 0.035**2)


def btag_efficiency(pt: Floats, flavour: Integers) -> Floats:
    """Efficiency of the medium working point of the b-tag for jets of the flavours 5, 4 and 0 within |η| < 2.5.

    Source D, which fits source B.
    """
    bottom = 0.85 * np.tanh(0.0025 * pt) * 25.0 / (1 + 0.063 * pt)
    charm = 0.25 * np.tanh(0.018 * pt) / (1 + 0.0013 * pt)
    light = 0.01 + 0.000038 * pt
    return np.where(flavour == 5, bottom, np.where(flavour == 4, charm, np.minimum(light, 1.0)))


def btag_discriminant(uniform: Floats, efficiency: Floats) -> Floats:
    """Turn uniform numbers into a b-tag discriminant d in [0, 1] with P(d > 0.5) = efficiency.

    P(d > x) = efficiency^(−log₂(1 − x)): the same power of every flavour's efficiency, as when the cut on a likelihood
    ratio moves. With the efficiencies 0.68, 0.12 and 0.011 of CMS's medium point, the cut that keeps 0.84 of the b
    jets keeps 0.38 of the c and 0.13 of the light ones (DeepCSV, JINST 13 (2018) P05011: 0.41 and 0.11).
    """
    return 1 - np.exp2(-np.log(uniform) / np.log(efficiency))


def soft_resolution(sum_et: Floats) -> Floats:
    """Resolution per component of the soft part of the missing transverse momentum, GeV.

    Source U: (0.40 + 0.09 √μ) √(ΣE_T + 20 GeV · μ) with μ pile-up collisions.
    """
    resolution: Floats = (0.40 + 0.09 * np.sqrt(PILE_UP)) * np.sqrt(np.maximum(sum_et, 0) + 20 * PILE_UP)
    return resolution


def fake_electron_rate(pt: Floats, eta: Floats) -> Floats:
    """Probability that a jet gives an identified electron of pT > 10 GeV.

    Source U, tight electrons: 0.0048 exp(−0.035 pT/GeV); the electron takes the fraction 0.40 ± 0.19 (Gaussian) of
    the jet's energy. Fake muons are those from heavy quarks, which are simulated.
    """
    from scipy.special import ndtr

    inside = (np.abs(eta) < ELECTRON_ETA) & ((np.abs(eta) < CRACK[0]) | (np.abs(eta) > CRACK[1]))
    return np.where(inside, 0.0048 * np.exp(-0.035 * pt) * ndtr((0.40 - LEPTON_PT / pt) / 0.19), 0.0)


def fake_electron_pt(uniform: Floats, pt: Floats) -> Floats:
    """Draw the pT of electrons faked by jets, given that it exceeds 10 GeV: see `fake_electron_rate`."""
    from scipy.special import ndtr, ndtri

    below = ndtr((LEPTON_PT / pt - 0.40) / 0.19)
    fraction: Floats = 0.40 + 0.19 * ndtri(below + uniform * (1 - below))
    return np.clip(fraction, LEPTON_PT / pt, 1.0) * pt


def reconstruct(
    particles: Particles, leptons: Leptons, chosen: Integers, fake_share: float, rng: np.random.Generator
) -> dict[str, Any]:
    """Reconstruct the chosen events of a batch.

    Args:
        particles: All events of the batch.
        leptons: Their generated leptons.
        chosen: Events that passed the filter, int64 of shape [events], ascending.
        fake_share: See `GeneratorSample`.
        rng: Source of all smearing.

    Returns:
        The columns of `SimulatedPart.events` that are not counters.
    """
    particles, leptons = _choose(particles, leptons, chosen)
    count = particles.events
    eta, _ = particles.direction
    absolute = np.abs(particles.id)
    invisible = np.isin(absolute, (12, 14, 16)) | (np.abs(eta) > CALORIMETER_ETA)
    invisible |= (absolute == 13) & (np.abs(eta) > MUON_ETA)
    visible = particles.final & ~invisible
    # Prompt leptons and their photons never enter jets, whether they are identified or not.
    hadronic = visible & ~_prompt(particles, leptons)

    found = _identified(leptons, particles, hadronic, rng)
    jets = _jets(particles, hadronic, rng)
    jets = jets[~_overlaps(jets, found, count)]
    jets["flavour"] = _flavour(particles, jets)

    # Missing momentum: what was invisible, the smearing of the hard objects, and the noise of the soft term.
    true_x: Floats = -np.bincount(particles.event[visible], particles.px[visible], count).astype(np.float64)
    true_y: Floats = -np.bincount(particles.event[visible], particles.py[visible], count).astype(np.float64)
    x, y = true_x.copy(), true_y.copy()
    soft: Floats = np.bincount(particles.event[visible], particles.pt[visible], count).astype(np.float64)
    for objects in (found, jets):
        shift = objects["pt"] - objects["true_pt"]
        x -= np.bincount(objects["event"], shift * np.cos(objects["phi"]), count)
        y -= np.bincount(objects["event"], shift * np.sin(objects["phi"]), count)
        soft -= np.bincount(objects["event"], objects["true_pt"], count)
    sigma = soft_resolution(soft)
    x += sigma * rng.standard_normal(count)
    y += sigma * rng.standard_normal(count)

    central = np.abs(jets["eta"]) < TRACKER_ETA
    # 1 − random() lies in (0, 1], so that its logarithm exists.
    discriminant = btag_discriminant(1 - rng.random(len(jets)), btag_efficiency(jets["pt"], jets["flavour"]))
    jets["btag"] = np.where(central, discriminant, 0.0)

    found, jets, weight = _fakes(found, jets, count, fake_share, rng)
    return {
        "fakeLeptonWeight": weight.astype(np.float32),
        "MET_pt": np.hypot(x, y).astype(np.float32),
        "MET_phi": np.arctan2(y, x).astype(np.float32),
        "GenMET_pt": np.hypot(true_x, true_y).astype(np.float32),
        "GenMET_phi": np.arctan2(true_y, true_x).astype(np.float32),
        "Electron": _lepton_records(found[np.abs(found["id"]) == 11], ELECTRON_MASS, count),
        "Muon": _lepton_records(found[np.abs(found["id"]) == 13], MUON_MASS, count),
        "Jet": _records(
            jets,
            count,
            {name: (name, np.float32) for name in ("pt", "eta", "phi", "mass", "btag")}
            | {"hadronFlavour": ("flavour", np.uint8)},
        ),
    }


_OBJECT = np.dtype(
    [
        ("event", np.int64),
        ("index", np.int64),
        ("id", np.int64),
        *((name, np.float64) for name in ("pt", "true_pt", "eta", "phi", "mass", "isolation", "btag")),
        ("flavour", np.int64),
    ]
)


def _choose(particles: Particles, leptons: Leptons, chosen: Integers) -> tuple[Particles, Leptons]:
    """Keep some events, renumbered."""
    number = np.full(particles.events, -1)
    number[chosen] = np.arange(len(chosen))
    kept = number[particles.event] >= 0
    row = np.where(kept, np.cumsum(kept) - 1, -1)
    mother = particles.mother[kept]
    shrunk = Particles(
        events=len(chosen),
        event=number[particles.event[kept]],
        id=particles.id[kept],
        final=particles.final[kept],
        mother=np.where(mother >= 0, row[mother], -1),
        px=particles.px[kept],
        py=particles.py[kept],
        pz=particles.pz[kept],
        e=particles.e[kept],
    )
    stays = number[leptons.event] >= 0
    return shrunk, Leptons(
        event=number[leptons.event[stays]],
        row=row[leptons.row[stays]],
        id=leptons.id[stays],
        pt=leptons.pt[stays],
        eta=leptons.eta[stays],
        phi=leptons.phi[stays],
        origin=leptons.origin[stays],
    )


def _prompt(particles: Particles, leptons: Leptons) -> Booleans:
    """Rows of prompt leptons and of the photons that electrons radiated."""
    prompt = _radiated(particles)
    prompt[leptons.row[np.isin(leptons.origin, (1, 15))]] = True
    return prompt


def _identified(
    leptons: Leptons, particles: Particles, hadronic: Booleans, rng: np.random.Generator
) -> npt.NDArray[Any]:
    """Throw efficiencies, smear and isolate the leptons; those from light hadrons are left to the fakes."""
    electron = np.abs(leptons.id) == 11
    efficiency = np.where(
        electron, electron_efficiency(leptons.pt, leptons.eta), muon_efficiency(leptons.pt, leptons.eta)
    )
    resolution = np.where(
        electron, electron_resolution(leptons.pt, leptons.eta), muon_resolution(leptons.pt, leptons.eta)
    )
    smeared = leptons.pt * (1 + resolution * rng.standard_normal(len(leptons.pt)))
    passed = rng.random(len(leptons.pt)) < efficiency
    index = np.flatnonzero(passed & (smeared > LEPTON_PT) & (leptons.origin > 0))

    eta, phi = particles.direction
    rows = np.flatnonzero(hadronic & (particles.pt > 0.1))
    left, right = _pairs(leptons.event[index], particles.event[rows], particles.events)
    row = rows[right]
    near = _delta_r(leptons.eta[index][left], leptons.phi[index][left], eta[row], phi[row]) < ISOLATION_RADIUS
    near &= row != leptons.row[index][left]
    isolation = np.bincount(left[near], particles.pt[row[near]], len(index)) / smeared[index]
    isolated = isolation < ISOLATION
    index, isolation = index[isolated], isolation[isolated]

    found = np.zeros(len(index), dtype=_OBJECT)
    found["event"], found["index"], found["id"] = leptons.event[index], index, leptons.id[index]
    found["pt"], found["true_pt"] = smeared[index], leptons.pt[index]
    found["eta"], found["phi"] = leptons.eta[index], leptons.phi[index]
    found["isolation"], found["flavour"] = isolation, leptons.origin[index]
    return found


def _jets(particles: Particles, hadronic: Booleans, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Cluster anti-kT jets (R = 0.4) and smear them."""
    import fastjet
    import vector
    from fastjet._swig import ClusterSequence

    # fastjet would print its banner once per process.
    ClusterSequence.set_fastjet_banner_stream(None)
    vector.register_awkward()
    counts = np.bincount(particles.event[hadronic], minlength=particles.events)
    components = {
        name: ak.unflatten(component[hadronic], counts)
        for name, component in (("px", particles.px), ("py", particles.py), ("pz", particles.pz), ("E", particles.e))
    }
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, JET_RADIUS)
    sequence = fastjet.ClusterSequence(ak.zip(components, with_name="Momentum4D"), definition)
    clustered = sequence.inclusive_jets(min_pt=JET_PT / 2)
    px, py, pz, energy = (ak.to_numpy(ak.flatten(clustered[name])) for name in ("px", "py", "pz", "E"))
    jets = np.zeros(len(px), dtype=_OBJECT)
    jets["event"] = np.repeat(np.arange(particles.events), ak.to_numpy(ak.num(clustered.px)))
    jets["true_pt"] = np.hypot(px, py)
    jets["eta"], jets["phi"] = _direction(px, py, pz)
    scale = 1 + jet_resolution(jets["true_pt"]) * rng.standard_normal(len(px))
    jets["pt"] = jets["true_pt"] * scale
    jets["mass"] = np.sqrt(np.maximum(energy**2 - px**2 - py**2 - pz**2, 0)) * scale
    accepted: npt.NDArray[Any] = jets[(jets["pt"] > JET_PT) & (np.abs(jets["eta"]) < JET_ETA)]
    return accepted


def _overlaps(jets: npt.NDArray[Any], found: npt.NDArray[Any], events: int) -> Booleans:
    """Whether jets lie within ΔR < 0.4 of a reconstructed lepton."""
    left, right = _pairs(jets["event"], found["event"], events)
    near = _delta_r(jets["eta"][left], jets["phi"][left], found["eta"][right], found["phi"][right]) < JET_RADIUS
    return np.bincount(left[near], minlength=len(jets)) > 0


def _flavour(particles: Particles, jets: npt.NDArray[Any]) -> Integers:
    """Flavour of jets: 5 with a bottom hadron of pT > 5 GeV within ΔR < 0.4, else 4 with a charm hadron, else 0."""
    identity = np.abs(particles.id)
    eta, phi = particles.direction
    hard = (identity > 100) & (particles.pt > 5)
    flavour = np.zeros(len(jets), dtype=np.int64)
    for quark in (4, 5):
        rows = np.flatnonzero(hard & _contains(identity, quark))
        left, right = _pairs(jets["event"], particles.event[rows], particles.events)
        row = rows[right]
        near = _delta_r(jets["eta"][left], jets["phi"][left], eta[row], phi[row]) < JET_RADIUS
        flavour[left[near]] = quark
    return flavour


def _fakes(
    found: npt.NDArray[Any], jets: npt.NDArray[Any], events: int, share: float, rng: np.random.Generator
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Floats]:
    """Turn one jet into an electron in some of the events with one lepton, and weight events so that yields are right.

    An event whose jets fake an electron with probability P (to first order the sum over its jets) becomes an event
    with a fake with probability `share` and then weighs P / share; otherwise it weighs (1 − P) / (1 − share). Which
    jet: in proportion to its probability. The expected sum of weights of every event is one.

    Returns:
        Leptons, jets, and weights of shape [events].
    """
    single = np.bincount(found["event"], minlength=events) == 1
    rate = np.where(single[jets["event"]], fake_electron_rate(jets["true_pt"], jets["eta"]), 0.0)
    total = np.bincount(jets["event"], rate, events)
    becomes = (total > 0) & (rng.random(events) < share)
    weight = np.where(total > 0, np.where(becomes, total / share, (1 - total) / (1 - share)), 1.0)

    # One jet per event: the one whose stretch of the running sum holds the drawn number.
    upper = np.cumsum(rate)
    before = np.concatenate([[0.0], upper])[np.searchsorted(jets["event"], np.arange(events))]
    drawn = before + rng.random(events) * total
    chosen = becomes[jets["event"]] & (upper - rate <= drawn[jets["event"]]) & (drawn[jets["event"]] < upper)
    # Rounding could leave an event without its jet, or with none drawn: it then keeps its weight and its jets.
    fake = jets[chosen].copy()
    charge = rng.integers(0, 2, len(fake))
    fake["pt"] = fake_electron_pt(rng.random(len(fake)), fake["true_pt"])
    fake["id"] = np.where(charge == 1, -11, 11)
    fake["flavour"] = 0
    return np.concatenate([found, fake]), jets[~chosen], weight


# Columns -------------------------------------------------------------------------------------------------------------


def _lepton_records(objects: npt.NDArray[Any], mass: float, events: int) -> Any:
    objects = objects.copy()
    objects["mass"] = mass
    # PDG: the positive numbers are the negative leptons.
    objects["id"] = -np.sign(objects["id"])
    fields = {name: (name, np.float32) for name in ("pt", "eta", "phi", "mass")}
    return _records(
        objects,
        events,
        fields
        | {
            "charge": ("id", np.int32),
            "pfRelIso03_all": ("isolation", np.float32),
            "genPartFlav": ("flavour", np.uint8),
        },
    )


def _records(objects: npt.NDArray[Any], events: int, fields: Mapping[str, tuple[str, Any]]) -> Any:
    """Group flat objects by event, hardest first, as jagged records."""
    objects = objects[np.lexsort((-objects["pt"], objects["event"]))]
    counts = np.bincount(objects["event"], minlength=events)
    return ak.unflatten(
        ak.zip({name: objects[source].astype(dtype) for name, (source, dtype) in fields.items()}), counts
    )


# Geometry ------------------------------------------------------------------------------------------------------------


def _direction(px: Floats, py: Floats, pz: Floats) -> tuple[Floats, Floats]:
    """Pseudorapidity and azimuth; particles along the beam get |η| of about 20."""
    pt = np.maximum(np.hypot(px, py), 1e-9 * np.abs(pz) + 1e-12)
    return np.arcsinh(pz / pt), np.arctan2(py, px)


def _delta_r(eta1: Floats, phi1: Floats, eta2: Floats, phi2: Floats) -> Floats:
    turn = np.abs(phi1 - phi2)
    return np.hypot(eta1 - eta2, np.minimum(turn, 2 * np.pi - turn))


def _pairs(left: Integers, right: Integers, events: int) -> tuple[Integers, Integers]:
    """All pairs of rows that belong to the same event.

    Args:
        left: Events of the left rows, int64.
        right: Events of the right rows, int64, ascending.
        events: Number of events.

    Returns:
        Rows of `left` and rows of `right`, both int64 of shape [pairs].
    """
    counts = np.bincount(right, minlength=events)
    start = np.cumsum(counts) - counts
    repeats = counts[left]
    first = np.repeat(np.arange(len(left)), repeats)
    within = np.arange(len(first)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    return first, within + start[left][first]
