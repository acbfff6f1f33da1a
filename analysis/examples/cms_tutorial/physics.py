"""Features of the CMS HEP tutorial: jagged lists of muons, electrons, jets and photons in px, py, pz and E.

Muons and electrons are leptons alike, ordered by pT; 5% of the events have none and most lack a second one. A top
quark decays to b, lepton and neutrino, W pairs have no b quark: the jets with a secondary vertex tell most. Momenta
and masses are in GeV, angles in radians.
"""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import vector

from analysis.events import Events
from analysis.features import branch, feature

# A spectator: pile-up says nothing of the process.
number_of_vertices = branch("NPrimaryVertices", label="number of primary vertices")


def has_no_lepton(events: Events) -> Any:
    """No muon and no electron."""
    return _count(events) == 0


def has_one_lepton(events: Events) -> Any:
    """Exactly one muon or electron."""
    return _count(events) == 1


def has_two_leptons(events: Events) -> Any:
    """At least two leptons."""
    return _count(events) >= 2


@feature(label=r"$E_\mathrm{T}^\mathrm{miss}$", unit="GeV")
def met(events: Events) -> Any:
    """Missing transverse momentum."""
    return np.hypot(events.MET_px, events.MET_py)


@feature(label="number of leptons")
def number_of_leptons(events: Events) -> Any:
    """Muons and electrons."""
    return _count(events)


@feature(label="number of jets")
def number_of_jets(events: Events) -> Any:
    """Jets above 30 GeV, as the files hold them."""
    return ak.num(events.Jet_E)


@feature(label="number of jets with a secondary vertex")
def number_of_tagged_jets(events: Events) -> Any:
    """Jets with a b-tag discriminant."""
    return ak.sum(~ak.is_none(events.Jet_btag, axis=1), axis=1)


@feature(label=r"$H_\mathrm{T}$", unit="GeV")
def ht(events: Events) -> Any:
    """Scalar sum of the jets' transverse momenta."""
    return ak.sum(_jets(events).pt, axis=1)


@feature(label=r"$|\Sigma\,\vec{p}_\mathrm{T}|$", unit="GeV")
def total_pt(events: Events) -> Any:
    """Transverse momentum of leptons, jets and missing momentum together."""
    px = ak.sum(events.Muon_Px, axis=1) + ak.sum(events.Electron_Px, axis=1) + ak.sum(events.Jet_Px, axis=1)
    py = ak.sum(events.Muon_Py, axis=1) + ak.sum(events.Electron_Py, axis=1) + ak.sum(events.Jet_Py, axis=1)
    return np.hypot(px + events.MET_px, py + events.MET_py)


@feature(label=r"$p_\mathrm{T}^{\ell_1}$", unit="GeV")
def lepton1_pt(events: Events) -> Any:
    """Transverse momentum of the leading lepton."""
    return _lepton(events, 0).pt


@feature(label=r"$|\eta^{\ell_1}|$")
def lepton1_eta(events: Events) -> Any:
    """Absolute pseudorapidity of the leading lepton."""
    return abs(_lepton(events, 0).eta)


@feature(label=r"charge of $\ell_1$")
def lepton1_charge(events: Events) -> Any:
    """Charge of the leading lepton: single top quarks outnumber their antiquarks in proton collisions."""
    return _lepton(events, 0).charge


@feature(label=r"relative isolation of $\ell_1$")
def lepton1_isolation(events: Events) -> Any:
    """Transverse momentum around the leading lepton over its own."""
    lepton = _lepton(events, 0)
    return lepton.isolation / lepton.pt


@feature(label=r"$\ell_1$ is a muon")
def lepton1_is_muon(events: Events) -> Any:
    """1 for a muon, 0 for an electron."""
    return _lepton(events, 0).is_muon


@feature(label=r"$|\Delta\varphi(\ell_1, E_\mathrm{T}^\mathrm{miss})|$")
def lepton1_met_delta_phi(events: Events) -> Any:
    """Azimuth between leading lepton and missing momentum."""
    return abs(_lepton(events, 0).deltaphi(_missing(events)))


@feature(label=r"$m_\mathrm{T}(\ell_1, E_\mathrm{T}^\mathrm{miss})$", unit="GeV")
def lepton1_transverse_mass(events: Events) -> Any:
    """Transverse mass of leading lepton and missing momentum."""
    lepton, missing = _lepton(events, 0), _missing(events)
    return np.sqrt(2 * lepton.pt * missing.pt * (1 - np.cos(lepton.deltaphi(missing))))


@feature(label=r"$p_\mathrm{T}^{\ell_2}$", unit="GeV")
def lepton2_pt(events: Events) -> Any:
    """Transverse momentum of the subleading lepton."""
    return _lepton(events, 1).pt


@feature(label=r"$|\eta^{\ell_2}|$")
def lepton2_eta(events: Events) -> Any:
    """Absolute pseudorapidity of the subleading lepton."""
    return abs(_lepton(events, 1).eta)


@feature(label=r"relative isolation of $\ell_2$")
def lepton2_isolation(events: Events) -> Any:
    """Transverse momentum around the subleading lepton over its own."""
    lepton = _lepton(events, 1)
    return lepton.isolation / lepton.pt


@feature(label=r"$\ell_2$ is a muon")
def lepton2_is_muon(events: Events) -> Any:
    """1 for a muon, 0 for an electron."""
    return _lepton(events, 1).is_muon


@feature(label=r"$|\Delta\varphi(\ell_2, E_\mathrm{T}^\mathrm{miss})|$")
def lepton2_met_delta_phi(events: Events) -> Any:
    """Azimuth between subleading lepton and missing momentum."""
    return abs(_lepton(events, 1).deltaphi(_missing(events)))


@feature(label=r"$m_{\ell\ell}$", unit="GeV")
def dilepton_mass(events: Events) -> Any:
    """Invariant mass of the two leading leptons."""
    return (_lepton(events, 0) + _lepton(events, 1)).mass


@feature(label=r"$p_\mathrm{T}^{\ell\ell}$", unit="GeV")
def dilepton_pt(events: Events) -> Any:
    """Transverse momentum of the two leading leptons together."""
    return (_lepton(events, 0) + _lepton(events, 1)).pt


@feature(label=r"$|\Delta\varphi_{\ell\ell}|$")
def dilepton_delta_phi(events: Events) -> Any:
    """Azimuth between the two leading leptons."""
    return abs(_lepton(events, 0).deltaphi(_lepton(events, 1)))


@feature(label="sum of the lepton charges")
def dilepton_charge(events: Events) -> Any:
    """Total charge of the two leading leptons."""
    return _lepton(events, 0).charge + _lepton(events, 1).charge


@feature(label=r"$p_\mathrm{T}^{j_1}$", unit="GeV")
def jet1_pt(events: Events) -> Any:
    """Transverse momentum of the leading jet."""
    return _jet(events, 0).pt


@feature(label=r"$|\eta^{j_1}|$")
def jet1_eta(events: Events) -> Any:
    """Absolute pseudorapidity of the leading jet."""
    return abs(_jet(events, 0).eta)


@feature(label=r"$m_{j_1}$", unit="GeV")
def jet1_mass(events: Events) -> Any:
    """Mass of the leading jet."""
    return _jet(events, 0).mass


@feature(label=r"$\Delta R(j_1, \ell_1)$")
def jet1_lepton_delta_r(events: Events) -> Any:
    """Distance between leading jet and leading lepton."""
    return _jet(events, 0).deltaR(_lepton(events, 0))


@feature(label=r"$|\Delta\varphi(j_1, E_\mathrm{T}^\mathrm{miss})|$")
def jet1_met_delta_phi(events: Events) -> Any:
    """Azimuth between leading jet and missing momentum."""
    return abs(_jet(events, 0).deltaphi(_missing(events)))


@feature(label=r"$p_\mathrm{T}^{j_2}$", unit="GeV")
def jet2_pt(events: Events) -> Any:
    """Transverse momentum of the subleading jet."""
    return _jet(events, 1).pt


@feature(label=r"$|\eta^{j_2}|$")
def jet2_eta(events: Events) -> Any:
    """Absolute pseudorapidity of the subleading jet."""
    return abs(_jet(events, 1).eta)


@feature(label=r"$m_{j_2}$", unit="GeV")
def jet2_mass(events: Events) -> Any:
    """Mass of the subleading jet."""
    return _jet(events, 1).mass


@feature(label=r"$\Delta R(j_2, \ell_1)$")
def jet2_lepton_delta_r(events: Events) -> Any:
    """Distance between subleading jet and leading lepton."""
    return _jet(events, 1).deltaR(_lepton(events, 0))


@feature(label=r"$|\Delta\varphi(j_2, E_\mathrm{T}^\mathrm{miss})|$")
def jet2_met_delta_phi(events: Events) -> Any:
    """Azimuth between subleading jet and missing momentum."""
    return abs(_jet(events, 1).deltaphi(_missing(events)))


@feature(label=r"$p_\mathrm{T}^{j_3}$", unit="GeV")
def jet3_pt(events: Events) -> Any:
    """Transverse momentum of the third jet."""
    return _jet(events, 2).pt


@feature(label=r"$|\eta^{j_3}|$")
def jet3_eta(events: Events) -> Any:
    """Absolute pseudorapidity of the third jet."""
    return abs(_jet(events, 2).eta)


@feature(label=r"$m_{jj}$", unit="GeV")
def dijet_mass(events: Events) -> Any:
    """Invariant mass of the two leading jets."""
    return (_jet(events, 0) + _jet(events, 1)).mass


@feature(label=r"$\Delta R_{jj}$")
def dijet_delta_r(events: Events) -> Any:
    """Distance between the two leading jets."""
    return _jet(events, 0).deltaR(_jet(events, 1))


@feature(label=r"$|\Delta\eta_{jj}|$")
def dijet_delta_eta(events: Events) -> Any:
    """Pseudorapidity between the two leading jets."""
    return abs(_jet(events, 0).eta - _jet(events, 1).eta)


@feature(label="largest b-tag discriminant")
def tagged_jet1_discriminant(events: Events) -> Any:
    """Discriminant of the jet most like a b jet."""
    return _tagged(events, 0).btag


@feature(label=r"$p_\mathrm{T}^{b_1}$", unit="GeV")
def tagged_jet1_pt(events: Events) -> Any:
    """Transverse momentum of the jet most like a b jet."""
    return _tagged(events, 0).pt


@feature(label=r"$|\eta^{b_1}|$")
def tagged_jet1_eta(events: Events) -> Any:
    """Absolute pseudorapidity of the jet most like a b jet."""
    return abs(_tagged(events, 0).eta)


@feature(label=r"$m(b_1, \ell_1)$", unit="GeV")
def tagged_jet1_lepton_mass(events: Events) -> Any:
    """Invariant mass of b jet and lepton, at most 153 GeV for those of a top quark."""
    return (_tagged(events, 0) + _lepton(events, 0)).mass


@feature(label=r"$m(b_1, \ell_1, \nu)$", unit="GeV")
def top_mass(events: Events) -> Any:
    """Invariant mass of b jet, lepton and the neutrino."""
    return (_tagged(events, 0) + _lepton(events, 0) + _neutrino(events)).mass


@feature(label="second largest b-tag discriminant")
def tagged_jet2_discriminant(events: Events) -> Any:
    """Discriminant of the jet second most like a b jet."""
    return _tagged(events, 1).btag


@feature(label=r"$p_\mathrm{T}^{\gamma}$", unit="GeV")
def photon_pt(events: Events) -> Any:
    """Transverse momentum of the leading photon."""
    return ak.max(np.hypot(events.Photon_Px, events.Photon_Py), axis=1)


_W_MASS = 80.4  # GeV


def _count(events: Events) -> Any:
    return ak.num(events.Muon_E) + ak.num(events.Electron_E)


def _momenta(events: Events, name: str, **more: Any) -> Any:
    """Four-momenta of a collection as jagged vectors, with further fields."""
    px, py, pz, energy = (events[f"{name}_{x}"] for x in ("Px", "Py", "Pz", "E"))
    return vector.zip({"px": px, "py": py, "pz": pz, "E": energy, **more})


def _by_pt(particles: Any) -> Any:
    return particles[ak.argsort(particles.pt, axis=1, ascending=False)]


def _leptons(events: Events) -> Any:
    """Muons and electrons together, by falling pT."""
    both = []
    for name, is_muon in (("Muon", 1), ("Electron", 0)):
        charge, isolation = events[f"{name}_Charge"], events[f"{name}_Iso"]
        both.append(_momenta(events, name, charge=charge, isolation=isolation, is_muon=0 * charge + is_muon))
    return _by_pt(ak.concatenate(both, axis=1))


def _lepton(events: Events, i: int) -> Any:
    return ak.pad_none(_leptons(events), i + 1, clip=True)[:, i]


def _jets(events: Events) -> Any:
    return _by_pt(_momenta(events, "Jet", btag=events.Jet_btag))


def _jet(events: Events, i: int) -> Any:
    return ak.pad_none(_jets(events), i + 1, clip=True)[:, i]


def _tagged(events: Events, i: int) -> Any:
    """The jets with a secondary vertex, by falling discriminant."""
    jets = _jets(events)
    jets = jets[~ak.is_none(jets.btag, axis=1)]
    jets = jets[ak.argsort(jets.btag, axis=1, ascending=False)]
    return ak.pad_none(jets, i + 1, clip=True)[:, i]


def _missing(events: Events) -> Any:
    return vector.zip({"px": events.MET_px, "py": events.MET_py})


def _neutrino(events: Events) -> Any:
    """The neutrino that makes a W of the leading lepton: missing momentum, and pz from the W's mass.

    With a = m_W²/2 + pT_ℓ·pT_ν, p_z = (a p_z^ℓ ± |p_ℓ| √(a² − pT_ℓ² pT_ν²)) / pT_ℓ². Of two real solutions the one
    with smaller |p_z|, of two complex ones their real part.
    """
    lepton, px, py = _lepton(events, 0), events.MET_px, events.MET_py
    a = _W_MASS**2 / 2 + lepton.px * px + lepton.py * py
    root = lepton.p * np.sqrt(np.maximum(a**2 - lepton.pt**2 * (px**2 + py**2), 0))
    pz = (a * lepton.pz + ak.where(a * lepton.pz < 0, root, -root)) / lepton.pt**2
    there = 0 * lepton.pz  # 0 with a lepton, None without
    return vector.zip({"px": px + there, "py": py + there, "pz": pz, "E": np.sqrt(px**2 + py**2 + pz**2)})
