"""Features of the HiggsML challenge: the published quantities, with azimuthal angles measured from the τ.

The branches are described in appendix B of C. Adam-Bourdarios et al., "Learning to discover: the Higgs boson machine
learning challenge" (CERN open data record 328). Momenta, energies and masses are in GeV, angles in radians.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.events import Events
from analysis.features import branch, feature

sum_pt = branch("DER_sum_pt", label=r"$\Sigma\,p_\mathrm{T}(\tau, \ell, \mathrm{jets})$", unit="GeV")
total_pt = branch("DER_pt_tot", label=r"$|\Sigma\,\vec{p}_\mathrm{T}(\tau, \ell, E_\mathrm{T}^\mathrm{miss}, j_1, j_2)|$", unit="GeV")
number_of_jets = branch("PRI_jet_num", label="number of jets (at most 3)")
jets_sum_pt = branch("PRI_jet_all_pt", label=r"$\Sigma\,p_\mathrm{T}$ of jets", unit="GeV")

visible_mass = branch("DER_mass_vis", label=r"$m(\tau, \ell)$", unit="GeV")
higgs_pt = branch("DER_pt_h", label=r"$p_\mathrm{T}(\tau, \ell, E_\mathrm{T}^\mathrm{miss})$", unit="GeV")
tau_lepton_delta_r = branch("DER_deltar_tau_lep", label=r"$\Delta R(\tau, \ell)$")
lepton_tau_pt_ratio = branch("DER_pt_ratio_lep_tau", label=r"$p_\mathrm{T}^{\ell} / p_\mathrm{T}^{\tau}$")
# The missing-mass calculator finds no solution for some events.
mmc_mass = branch("DER_mass_MMC", label=r"$m_\mathrm{MMC}(\tau\tau)$", unit="GeV")

tau_pt = branch("PRI_tau_pt", label=r"$p_\mathrm{T}^{\tau}$", unit="GeV")
tau_eta = branch("PRI_tau_eta", label=r"$\eta^{\tau}$")
# Collisions know no preferred azimuth: a spectator, whose flatness checks the sample, and no feature.
tau_phi = branch("PRI_tau_phi", label=r"$\varphi^{\tau}$")

lepton_pt = branch("PRI_lep_pt", label=r"$p_\mathrm{T}^{\ell}$", unit="GeV")
lepton_eta = branch("PRI_lep_eta", label=r"$\eta^{\ell}$")

met = branch("PRI_met", label=r"$E_\mathrm{T}^\mathrm{miss}$", unit="GeV")
met_sum_et = branch("PRI_met_sumet", label=r"$\Sigma\,E_\mathrm{T}$", unit="GeV")
met_phi_centrality = branch("DER_met_phi_centrality", label=r"$\varphi$ centrality of $E_\mathrm{T}^\mathrm{miss}$")
transverse_mass = branch(
    "DER_mass_transverse_met_lep", label=r"$m_\mathrm{T}(\ell, E_\mathrm{T}^\mathrm{miss})$", unit="GeV"
)

jet1_pt = branch("PRI_jet_leading_pt", label=r"$p_\mathrm{T}^{j_1}$", unit="GeV")
jet1_eta = branch("PRI_jet_leading_eta", label=r"$\eta^{j_1}$")
jet2_pt = branch("PRI_jet_subleading_pt", label=r"$p_\mathrm{T}^{j_2}$", unit="GeV")
jet2_eta = branch("PRI_jet_subleading_eta", label=r"$\eta^{j_2}$")

dijet_mass = branch("DER_mass_jet_jet", label=r"$m(j_1, j_2)$", unit="GeV")
dijet_delta_eta = branch("DER_deltaeta_jet_jet", label=r"$|\Delta\eta(j_1, j_2)|$")
dijet_eta_product = branch("DER_prodeta_jet_jet", label=r"$\eta^{j_1} \eta^{j_2}$")
lepton_eta_centrality = branch("DER_lep_eta_centrality", label=r"$\eta$ centrality of the lepton between the jets")


@feature(label=r"$\Delta\varphi(\ell, \tau)$")
def lepton_delta_phi(events: Events) -> Any:
    """Azimuth of the lepton seen from the τ."""
    return _from_tau(events, "PRI_lep_phi")


@feature(label=r"$\Delta\varphi(E_\mathrm{T}^\mathrm{miss}, \tau)$")
def met_delta_phi(events: Events) -> Any:
    """Azimuth of the missing momentum seen from the τ."""
    return _from_tau(events, "PRI_met_phi")


@feature(label=r"$\Delta\varphi(j_1, \tau)$")
def jet1_delta_phi(events: Events) -> Any:
    """Azimuth of the leading jet seen from the τ."""
    return _from_tau(events, "PRI_jet_leading_phi")


@feature(label=r"$\Delta\varphi(j_2, \tau)$")
def jet2_delta_phi(events: Events) -> Any:
    """Azimuth of the subleading jet seen from the τ."""
    return _from_tau(events, "PRI_jet_subleading_phi")


def _from_tau(events: Events, name: str) -> Any:
    """Azimuthal distance to the τ in [-π, π)."""
    difference = events[name] - events.PRI_tau_phi
    return (difference + np.pi) % (2 * np.pi) - np.pi
