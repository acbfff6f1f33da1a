"""Features of the HiggsML challenge: the published quantities, with angles freed of what carries no physics.

The branches are described in appendix B of C. Adam-Bourdarios et al., "Learning to discover: the Higgs boson machine
learning challenge" (CERN open data record 328). Momenta, energies and masses are in GeV, angles in radians.

Collisions of equal beams look the same when they are turned about the beam, mirrored along it, or mirrored across it.
So azimuths are measured from the τ towards the lepton, and pseudorapidities towards the τ's side of the detector
(G. C. Strong, Mach. Learn.: Sci. Technol. 1 (2020) 045006, arXiv 2002.01427, uses the same symmetries).
"""

from __future__ import annotations

from typing import Any

import awkward as ak
import numpy as np

from analysis.events import Events
from analysis.features import branch, feature

sum_pt = branch("DER_sum_pt", label=r"$\Sigma\,p_\mathrm{T}(\tau, \ell, \mathrm{jets})$", unit="GeV")
total_pt = branch(
    "DER_pt_tot", label=r"$|\Sigma\,\vec{p}_\mathrm{T}(\tau, \ell, E_\mathrm{T}^\mathrm{miss}, j_1, j_2)|$", unit="GeV"
)
number_of_jets = branch("PRI_jet_num", label="number of jets (at most 3)")
jets_sum_pt = branch("PRI_jet_all_pt", label=r"$\Sigma\,p_\mathrm{T}$ of jets", unit="GeV")

visible_mass = branch("DER_mass_vis", label=r"$m(\tau, \ell)$", unit="GeV")
higgs_pt = branch("DER_pt_h", label=r"$p_\mathrm{T}(\tau, \ell, E_\mathrm{T}^\mathrm{miss})$", unit="GeV")
tau_lepton_delta_r = branch("DER_deltar_tau_lep", label=r"$\Delta R(\tau, \ell)$")
lepton_tau_pt_ratio = branch("DER_pt_ratio_lep_tau", label=r"$p_\mathrm{T}^{\ell} / p_\mathrm{T}^{\tau}$")
# The missing-mass calculator finds no solution for some events.
mmc_mass = branch("DER_mass_MMC", label=r"$m_\mathrm{MMC}(\tau\tau)$", unit="GeV")

tau_pt = branch("PRI_tau_pt", label=r"$p_\mathrm{T}^{\tau}$", unit="GeV")
# A spectator, whose flatness checks the sample, and no feature.
tau_phi = branch("PRI_tau_phi", label=r"$\varphi^{\tau}$")

lepton_pt = branch("PRI_lep_pt", label=r"$p_\mathrm{T}^{\ell}$", unit="GeV")

met = branch("PRI_met", label=r"$E_\mathrm{T}^\mathrm{miss}$", unit="GeV")
met_sum_et = branch("PRI_met_sumet", label=r"$\Sigma\,E_\mathrm{T}$", unit="GeV")
met_phi_centrality = branch("DER_met_phi_centrality", label=r"$\varphi$ centrality of $E_\mathrm{T}^\mathrm{miss}$")
transverse_mass = branch(
    "DER_mass_transverse_met_lep", label=r"$m_\mathrm{T}(\ell, E_\mathrm{T}^\mathrm{miss})$", unit="GeV"
)

jet1_pt = branch("PRI_jet_leading_pt", label=r"$p_\mathrm{T}^{j_1}$", unit="GeV")
jet2_pt = branch("PRI_jet_subleading_pt", label=r"$p_\mathrm{T}^{j_2}$", unit="GeV")

dijet_mass = branch("DER_mass_jet_jet", label=r"$m(j_1, j_2)$", unit="GeV")
dijet_delta_eta = branch("DER_deltaeta_jet_jet", label=r"$|\Delta\eta(j_1, j_2)|$")
dijet_eta_product = branch("DER_prodeta_jet_jet", label=r"$\eta^{j_1} \eta^{j_2}$")
lepton_eta_centrality = branch("DER_lep_eta_centrality", label=r"$\eta$ centrality of the lepton between the jets")


@feature(label=r"$|\eta^{\tau}|$")
def tau_eta(events: Events) -> Any:
    """Absolute pseudorapidity of the τ."""
    return abs(events.PRI_tau_eta)


@feature(label=r"$\eta^{\ell}$ towards the $\tau$")
def lepton_eta(events: Events) -> Any:
    """Pseudorapidity of the lepton, positive on the τ's side."""
    return _eta(events, "PRI_lep_eta")


@feature(label=r"$|\Delta\varphi(\tau, \ell)|$")
def lepton_delta_phi(events: Events) -> Any:
    """Azimuth between τ and lepton, in [0, π]."""
    return abs(_turn(events.PRI_lep_phi - events.PRI_tau_phi))


@feature(label=r"$\Delta\varphi(\tau, E_\mathrm{T}^\mathrm{miss})$ towards the lepton")
def met_delta_phi(events: Events) -> Any:
    """Azimuth of the missing momentum."""
    return _phi(events, "PRI_met_phi")


@feature(label=r"$\eta^{j_1}$ towards the $\tau$")
def jet1_eta(events: Events) -> Any:
    """Pseudorapidity of the leading jet, positive on the τ's side."""
    return _eta(events, "PRI_jet_leading_eta")


@feature(label=r"$\Delta\varphi(\tau, j_1)$ towards the lepton")
def jet1_delta_phi(events: Events) -> Any:
    """Azimuth of the leading jet."""
    return _phi(events, "PRI_jet_leading_phi")


@feature(label=r"$\eta^{j_2}$ towards the $\tau$")
def jet2_eta(events: Events) -> Any:
    """Pseudorapidity of the subleading jet, positive on the τ's side."""
    return _eta(events, "PRI_jet_subleading_eta")


@feature(label=r"$\Delta\varphi(\tau, j_2)$ towards the lepton")
def jet2_delta_phi(events: Events) -> Any:
    """Azimuth of the subleading jet."""
    return _phi(events, "PRI_jet_subleading_phi")


def _eta(events: Events, name: str) -> Any:
    """A pseudorapidity, mirrored along the beam so that the τ's is positive."""
    return ak.where(events.PRI_tau_eta < 0, -1, 1) * events[name]


def _phi(events: Events, name: str) -> Any:
    """An azimuth from the τ, in [-π, π], mirrored so that the lepton's is positive."""
    side = ak.where(_turn(events.PRI_lep_phi - events.PRI_tau_phi) < 0, -1, 1)
    return side * _turn(events[name] - events.PRI_tau_phi)


def _turn(angle: Any) -> Any:
    """The same angle in [-π, π)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi
