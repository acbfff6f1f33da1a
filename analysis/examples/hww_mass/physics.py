"""H→WW* against WW, with what the generator knows of the missing momentum as regression targets.

Selection, objects and features are those of the example `hww`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.events import Events
from analysis.examples.hww.physics import (
    _dilepton,
    at_least_one_lepton,
    dilepton_deta,
    dilepton_dphi,
    dilepton_mass,
    dilepton_mt,
    dilepton_pt,
    fake_lepton_weight,
    ht,
    in_a_category,
    is_one_lepton,
    is_two_leptons,
    jet1_eta,
    jet1_met_dphi,
    jet1_pt,
    leading_lepton_pt,
    lepton1_eta,
    lepton1_met_dphi,
    lepton1_mt,
    lepton1_phi,
    lepton1_pt,
    lepton2_eta,
    lepton2_met_dphi,
    lepton2_mt,
    lepton2_pt,
    met,
    number_of_jets,
)
from analysis.features import feature

__all__ = [
    "at_least_one_lepton",
    "dilepton_deta",
    "dilepton_dphi",
    "dilepton_mass",
    "dilepton_mt",
    "dilepton_pt",
    "fake_lepton_weight",
    "ht",
    "in_a_category",
    "is_one_lepton",
    "is_two_leptons",
    "jet1_eta",
    "jet1_met_dphi",
    "jet1_pt",
    "leading_lepton_pt",
    "lepton1_eta",
    "lepton1_met_dphi",
    "lepton1_mt",
    "lepton1_phi",
    "lepton1_pt",
    "lepton2_eta",
    "lepton2_met_dphi",
    "lepton2_mt",
    "lepton2_pt",
    "met",
    "number_of_jets",
    "true_dilepton_mt",
    "true_met",
]


@feature(label=r"true $E_\mathrm{T}^\mathrm{miss}$", unit="GeV")
def true_met(events: Events) -> Any:
    """Transverse momentum of the generated neutrinos."""
    return events.GenMET.pt


@feature(label=r"true $m_\mathrm{T}(\ell\ell, E_\mathrm{T}^\mathrm{miss})$", unit="GeV")
def true_dilepton_mt(events: Events) -> Any:
    """Transverse mass of the two leptons and the generated neutrinos."""
    leptons, missing = _dilepton(events), events.GenMET
    return np.sqrt(2 * leptons.pt * missing.pt * (1 - np.cos(leptons.phi - missing.phi)))
