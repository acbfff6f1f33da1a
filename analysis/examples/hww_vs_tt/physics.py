"""H→WW* against tt̄: the four-momenta of two leptons and two jets, and what is made of them.

The selection and the objects are those of the example `hww`. Azimuths stand as they are, as the textbook has them,
although no physics depends on their absolute value.
"""

from __future__ import annotations

from typing import Any

from analysis.events import Events
from analysis.examples.hww.physics import (
    _delta_phi,
    _jet,
    _lepton,
    at_least_one_lepton,
    dijet_deta,
    dijet_mass,
    dilepton_deta,
    dilepton_dphi,
    dilepton_mass,
    dilepton_mt,
    fake_lepton_weight,
    ht,
    in_a_category,
    is_one_lepton,
    is_two_leptons,
    jet1_eta,
    jet1_pt,
    jet2_eta,
    jet2_pt,
    leading_lepton_pt,
    lepton1_eta,
    lepton1_jet1_mass,
    lepton1_phi,
    lepton1_pt,
    lepton2_eta,
    lepton2_pt,
    met,
    number_of_jets,
)
from analysis.features import feature

__all__ = [
    "at_least_one_lepton",
    "dijet_deta",
    "dijet_dphi",
    "dijet_mass",
    "dilepton_deta",
    "dilepton_dphi",
    "dilepton_mass",
    "dilepton_mt",
    "fake_lepton_weight",
    "ht",
    "in_a_category",
    "is_one_lepton",
    "is_two_leptons",
    "jet1_energy",
    "jet1_eta",
    "jet1_phi",
    "jet1_pt",
    "jet2_energy",
    "jet2_eta",
    "jet2_phi",
    "jet2_pt",
    "leading_lepton_pt",
    "lepton1_energy",
    "lepton1_eta",
    "lepton1_jet1_mass",
    "lepton1_phi",
    "lepton1_pt",
    "lepton2_energy",
    "lepton2_eta",
    "lepton2_phi",
    "lepton2_pt",
    "met",
    "number_of_jets",
]


@feature(label=r"$E^{\ell_1}$", unit="GeV")
def lepton1_energy(events: Events) -> Any:
    """Leading lepton."""
    return _lepton(events, 0).energy


@feature(label=r"$\varphi^{\ell_2}$")
def lepton2_phi(events: Events) -> Any:
    """Second lepton."""
    return _lepton(events, 1).phi


@feature(label=r"$E^{\ell_2}$", unit="GeV")
def lepton2_energy(events: Events) -> Any:
    """Second lepton."""
    return _lepton(events, 1).energy


@feature(label=r"$\varphi^{j_1}$")
def jet1_phi(events: Events) -> Any:
    """Leading jet."""
    return _jet(events, 0).phi


@feature(label=r"$E^{j_1}$", unit="GeV")
def jet1_energy(events: Events) -> Any:
    """Leading jet."""
    return _jet(events, 0).energy


@feature(label=r"$\varphi^{j_2}$")
def jet2_phi(events: Events) -> Any:
    """Second jet."""
    return _jet(events, 1).phi


@feature(label=r"$E^{j_2}$", unit="GeV")
def jet2_energy(events: Events) -> Any:
    """Second jet."""
    return _jet(events, 1).energy


@feature(label=r"$|\Delta\varphi_{jj}|$")
def dijet_dphi(events: Events) -> Any:
    """Azimuth between the two leading jets."""
    return _delta_phi(_jet(events, 0), _jet(events, 1))
