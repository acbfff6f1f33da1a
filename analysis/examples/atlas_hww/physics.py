"""Features of H→WW*→ℓνℓν: two leptons, missing momentum and up to two jets.

The Higgs boson has no spin, so that the charged leptons of its decay tend to fly side by side: small m_ℓℓ and Δφ_ℓℓ
(M. Dittmar and H. Dreiner, Phys. Rev. D 55 (1997) 167). Momenta and masses are in GeV, angles in radians; the files
keep transverse momenta in GeV and energies in MeV.
"""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np
import vector

from analysis.events import Events
from analysis.features import branch, feature

met = branch("met_et", label=r"$E_\mathrm{T}^\mathrm{miss}$", unit="GeV")
number_of_leptons = branch("lep_n", label="number of leptons")
number_of_jets = branch("jet_n", label="number of jets")
lepton1_pt = branch("lep_pt_0", label=r"$p_\mathrm{T}^{\ell_1}$", unit="GeV")
lepton2_pt = branch("lep_pt_1", label=r"$p_\mathrm{T}^{\ell_2}$", unit="GeV")
jet1_pt = branch("jet_pt_0", label=r"$p_\mathrm{T}^{j_1}$", unit="GeV")
jet2_pt = branch("jet_pt_1", label=r"$p_\mathrm{T}^{j_2}$", unit="GeV")


@feature(label=r"$H_\mathrm{T}$", unit="GeV")
def ht(events: Events) -> Any:
    """Scalar sum of the transverse momenta of both leptons and the jets that are there."""
    jets = ak.fill_none(events.jet_pt_0, 0) + ak.fill_none(events.jet_pt_1, 0)
    return events.lep_pt_0 + events.lep_pt_1 + jets


@feature(label=r"$|\Sigma\,\vec{p}_\mathrm{T}(\ell_1, \ell_2, E_\mathrm{T}^\mathrm{miss}, j_1, j_2)|$", unit="GeV")
def total_pt(events: Events) -> Any:
    """Transverse momentum of all that is measured: what lies beyond the two leading jets."""
    total = _dilepton(events) + _missing(events)
    px = total.px + sum(ak.fill_none(_jet(events, i).px, 0) for i in (0, 1))
    py = total.py + sum(ak.fill_none(_jet(events, i).py, 0) for i in (0, 1))
    return np.hypot(px, py)


@feature(label=r"$m_\mathrm{T}(\ell\ell, E_\mathrm{T}^\mathrm{miss})$", unit="GeV")
def higgs_transverse_mass(events: Events) -> Any:
    """Transverse mass of dilepton and missing momentum, as ATLAS defines it (arXiv 1412.2641)."""
    leptons = _dilepton(events)
    energy = np.sqrt(leptons.pt**2 + leptons.mass**2) + events.met_et
    return np.sqrt(np.maximum(energy**2 - (leptons + _missing(events)).pt ** 2, 0))


@feature(label=r"$|\eta^{\ell_1}|$")
def lepton1_eta(events: Events) -> Any:
    """Absolute pseudorapidity of the leading lepton."""
    return abs(events.lep_eta_0)


@feature(label=r"$\ell_1$ is a muon")
def lepton1_is_muon(events: Events) -> Any:
    """1 for a muon, 0 for an electron."""
    return events.lep_type_0 == _MUON


@feature(label=r"$|\eta^{\ell_2}|$")
def lepton2_eta(events: Events) -> Any:
    """Absolute pseudorapidity of the subleading lepton."""
    return abs(events.lep_eta_1)


@feature(label=r"$\ell_2$ is a muon")
def lepton2_is_muon(events: Events) -> Any:
    """1 for a muon, 0 for an electron."""
    return events.lep_type_1 == _MUON


@feature(label=r"$|\Delta\varphi(\ell_1, E_\mathrm{T}^\mathrm{miss})|$")
def lepton1_met_delta_phi(events: Events) -> Any:
    """Azimuth between leading lepton and missing momentum."""
    return _distance(events.lep_phi_0, events.met_phi)


@feature(label=r"$|\Delta\varphi(\ell_2, E_\mathrm{T}^\mathrm{miss})|$")
def lepton2_met_delta_phi(events: Events) -> Any:
    """Azimuth between subleading lepton and missing momentum."""
    return _distance(events.lep_phi_1, events.met_phi)


@feature(label=r"$m_\mathrm{T}(\ell_1, E_\mathrm{T}^\mathrm{miss})$", unit="GeV")
def lepton1_transverse_mass(events: Events) -> Any:
    """Transverse mass of leading lepton and missing momentum."""
    return _transverse_mass(events.lep_pt_0, events.met_et, lepton1_met_delta_phi(events))


@feature(label=r"$m_\mathrm{T}(\ell_2, E_\mathrm{T}^\mathrm{miss})$", unit="GeV")
def lepton2_transverse_mass(events: Events) -> Any:
    """Transverse mass of subleading lepton and missing momentum."""
    return _transverse_mass(events.lep_pt_1, events.met_et, lepton2_met_delta_phi(events))


@feature(label=r"$m_{\ell\ell}$", unit="GeV")
def dilepton_mass(events: Events) -> Any:
    """Invariant mass of the two leptons."""
    return _dilepton(events).mass


@feature(label=r"$p_\mathrm{T}^{\ell\ell}$", unit="GeV")
def dilepton_pt(events: Events) -> Any:
    """Transverse momentum of the two leptons together."""
    return _dilepton(events).pt


@feature(label=r"$|\Delta\varphi_{\ell\ell}|$")
def dilepton_delta_phi(events: Events) -> Any:
    """Azimuth between the two leptons."""
    return _distance(events.lep_phi_0, events.lep_phi_1)


@feature(label=r"$|\Delta\eta_{\ell\ell}|$")
def dilepton_delta_eta(events: Events) -> Any:
    """Pseudorapidity between the two leptons."""
    return abs(events.lep_eta_0 - events.lep_eta_1)


@feature(label=r"$|\Delta\varphi(\ell\ell, E_\mathrm{T}^\mathrm{miss})|$")
def dilepton_met_delta_phi(events: Events) -> Any:
    """Azimuth between the dilepton system and the missing momentum."""
    return _distance(_dilepton(events).phi, events.met_phi)


@feature(label="sum of the lepton charges")
def dilepton_charge(events: Events) -> Any:
    """Total charge of the two leptons."""
    return events.lep_charge_0 + events.lep_charge_1


@feature(label=r"$|\eta^{j_1}|$")
def jet1_eta(events: Events) -> Any:
    """Absolute pseudorapidity of the leading jet."""
    return abs(events.jet_eta_0)


@feature(label=r"$|\Delta\varphi(j_1, E_\mathrm{T}^\mathrm{miss})|$")
def jet1_met_delta_phi(events: Events) -> Any:
    """Azimuth between leading jet and missing momentum."""
    return _distance(events.jet_phi_0, events.met_phi)


@feature(label=r"$|\eta^{j_2}|$")
def jet2_eta(events: Events) -> Any:
    """Absolute pseudorapidity of the subleading jet."""
    return abs(events.jet_eta_1)


@feature(label=r"$|\Delta\varphi(j_2, E_\mathrm{T}^\mathrm{miss})|$")
def jet2_met_delta_phi(events: Events) -> Any:
    """Azimuth between subleading jet and missing momentum."""
    return _distance(events.jet_phi_1, events.met_phi)


@feature(label=r"$\Delta R(j_1, \ell\ell)$")
def jet1_dilepton_delta_r(events: Events) -> Any:
    """Distance between leading jet and dilepton system."""
    return _jet(events, 0).deltaR(_dilepton(events))


@feature(label=r"$\Delta R(j_2, \ell\ell)$")
def jet2_dilepton_delta_r(events: Events) -> Any:
    """Distance between subleading jet and dilepton system."""
    return _jet(events, 1).deltaR(_dilepton(events))


@feature(label=r"$m_{j_1}$", unit="GeV")
def jet1_mass(events: Events) -> Any:
    """Mass of the leading jet."""
    return np.maximum(_jet(events, 0).mass, 0)  # rounded energies: m² of light jets has either sign


@feature(label=r"$m_{j_2}$", unit="GeV")
def jet2_mass(events: Events) -> Any:
    """Mass of the subleading jet."""
    return np.maximum(_jet(events, 1).mass, 0)  # rounded energies: m² of light jets has either sign


@feature(label=r"$m_{jj}$", unit="GeV")
def dijet_mass(events: Events) -> Any:
    """Invariant mass of the two leading jets."""
    return (_jet(events, 0) + _jet(events, 1)).mass


@feature(label=r"$|\Delta\eta_{jj}|$")
def dijet_delta_eta(events: Events) -> Any:
    """Pseudorapidity between the two leading jets."""
    return abs(events.jet_eta_0 - events.jet_eta_1)


@feature(label=r"$|\Delta\varphi_{jj}|$")
def dijet_delta_phi(events: Events) -> Any:
    """Azimuth between the two leading jets."""
    return _distance(events.jet_phi_0, events.jet_phi_1)


_MUON = 13  # PDG identity in lep_type


def _lepton(events: Events, i: int) -> Any:
    """A lepton, massless: its energy, in single precision, would make masses of either sign."""
    pt = events[f"lep_pt_{i}"]
    return vector.zip({"pt": pt, "eta": events[f"lep_eta_{i}"], "phi": events[f"lep_phi_{i}"], "mass": 0 * pt})


def _dilepton(events: Events) -> Any:
    return _lepton(events, 0) + _lepton(events, 1)


def _missing(events: Events) -> Any:
    """The missing transverse momentum as a massless transverse four-momentum."""
    zero = 0 * events.met_et
    return vector.zip({"pt": events.met_et, "eta": zero, "phi": events.met_phi, "mass": zero})


def _jet(events: Events, i: int) -> Any:
    """A jet, None where there is none."""
    pt, eta, phi = (events[f"jet_{x}_{i}"] for x in ("pt", "eta", "phi"))
    return vector.zip({"pt": pt, "eta": eta, "phi": phi, "E": events[f"jet_E_{i}"] / 1000})


def _distance(phi1: Any, phi2: Any) -> Any:
    """Azimuth between two directions, in [0, π]."""
    return np.pi - abs(np.pi - abs(phi1 - phi2) % (2 * np.pi))


def _transverse_mass(pt1: Any, pt2: Any, delta_phi: Any) -> Any:
    return np.sqrt(2 * pt1 * pt2 * (1 - np.cos(delta_phi)))
