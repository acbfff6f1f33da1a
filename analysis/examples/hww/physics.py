"""H→WW*→ℓνℓν and ℓνqq against top, diboson and V + jets.

Leptons are electrons and muons together, ordered by pT. In events with one lepton everything that needs the second
is absent, as are jets that are not there. Momenta, energies and masses are in GeV, angles in radians.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import awkward as ak
import numpy as np
from coffea.nanoevents.methods import vector

from analysis.events import Events
from analysis.features import feature

FAKE_RATE, JET_SCALE = 0.3, 0.02
"""Relative uncertainties of the rate at which jets fake leptons, and of the jets' energy scale."""

# Several features need the same objects: they are built once per chunk and go when the chunk goes.
_objects: WeakKeyDictionary[Events, dict[str, Any]] = WeakKeyDictionary()


# Selection


def at_least_one_lepton(events: Events) -> Any:
    """An identified and isolated electron or muon."""
    return ak.num(events.Electron.pt) + ak.num(events.Muon.pt) >= 1


def leading_lepton_pt(events: Events) -> Any:
    """The leading lepton exceeds 25 GeV."""
    return _lepton(events, 0).pt > 25


def in_a_category(events: Events) -> Any:
    """One lepton with jets, or two of opposite charge."""
    return is_one_lepton(events) | is_two_leptons(events)


def is_one_lepton(events: Events) -> Any:
    """Exactly one lepton, and at least one jet."""
    leptons = ak.num(events.Electron.pt) + ak.num(events.Muon.pt)
    return (leptons == 1) & (ak.num(events.Jet.pt) >= 1)


def is_two_leptons(events: Events) -> Any:
    """Exactly two leptons, of opposite charge, the second above 10 GeV, m(ℓℓ) > 12 GeV."""
    leptons = ak.num(events.Electron.pt) + ak.num(events.Muon.pt)
    first, second = _lepton(events, 0), _lepton(events, 1)
    pair = (first.charge * second.charge < 0) & (second.pt > 10) & (dilepton_mass(events) > 12)
    return (leptons == 2) & ak.fill_none(pair, False)


# Weights


def fake_lepton_weight(events: Events) -> Any:
    """What makes the yield of leptons faked by jets right: see `analysis.simulation`."""
    return events.fakeLeptonWeight


# Systematic variations


def fake_rate_up(events: Events) -> Any:
    """More leptons faked by jets."""
    return ak.where(events.fakeLeptonWeight != 1, 1 + FAKE_RATE, 1.0)


def fake_rate_down(events: Events) -> Any:
    """Fewer of them."""
    return ak.where(events.fakeLeptonWeight != 1, 1 - FAKE_RATE, 1.0)


def jet_scale_up(events: Events) -> dict[str, Any]:
    """Jets of higher energy."""
    return _with_jets_scaled(events, 1 + JET_SCALE)


def jet_scale_down(events: Events) -> dict[str, Any]:
    """Jets of lower energy."""
    return _with_jets_scaled(events, 1 - JET_SCALE)


def _with_jets_scaled(events: Events, factor: float) -> dict[str, Any]:
    """Jets with scaled momenta; the missing transverse momentum takes up what they gain or lose."""
    jets, missing = events.Jet, events.MET
    gained = (factor - 1) * jets.pt
    x = missing.pt * np.cos(missing.phi) - ak.sum(gained * np.cos(jets.phi), axis=1)
    y = missing.pt * np.sin(missing.phi) - ak.sum(gained * np.sin(jets.phi), axis=1)
    return {
        "Jet": ak.with_field(ak.with_field(jets, factor * jets.pt, "pt"), factor * jets.mass, "mass"),
        "MET": ak.with_field(ak.with_field(missing, np.hypot(x, y), "pt"), np.arctan2(y, x), "phi"),
    }


# The event


@feature(label=r"$E_\mathrm{T}^\mathrm{miss}$", unit="GeV")
def met(events: Events) -> Any:
    """Missing transverse momentum."""
    return events.MET.pt


@feature(label=r"$H_\mathrm{T}$", unit="GeV")
def ht(events: Events) -> Any:
    """Scalar sum of the jets' pT; 0 without jets."""
    return ak.sum(events.Jet.pt, axis=1)


@feature(label="number of jets")
def number_of_jets(events: Events) -> Any:
    """Jets of pT > 20 GeV, |η| < 4.7."""
    return ak.num(events.Jet.pt)


# The leptons


@feature(label=r"$p_\mathrm{T}^{\ell_1}$", unit="GeV")
def lepton1_pt(events: Events) -> Any:
    """Leading lepton."""
    return _lepton(events, 0).pt


@feature(label=r"$\eta^{\ell_1}$")
def lepton1_eta(events: Events) -> Any:
    """Leading lepton."""
    return _lepton(events, 0).eta


@feature(label=r"$m_\mathrm{T}(\ell_1, E_\mathrm{T}^\mathrm{miss})$", unit="GeV")
def lepton1_mt(events: Events) -> Any:
    """Transverse mass of the leading lepton and the missing momentum."""
    return _transverse_mass(_lepton(events, 0), events)


@feature(label=r"$|\Delta\varphi(\ell_1, E_\mathrm{T}^\mathrm{miss})|$")
def lepton1_met_dphi(events: Events) -> Any:
    """Angle between the leading lepton and the missing momentum."""
    return _delta_phi(_lepton(events, 0), events.MET)


@feature(label=r"$p_\mathrm{T}^{\ell_2}$", unit="GeV")
def lepton2_pt(events: Events) -> Any:
    """Second lepton."""
    return _lepton(events, 1).pt


@feature(label=r"$\eta^{\ell_2}$")
def lepton2_eta(events: Events) -> Any:
    """Second lepton."""
    return _lepton(events, 1).eta


@feature(label=r"$m_\mathrm{T}(\ell_2, E_\mathrm{T}^\mathrm{miss})$", unit="GeV")
def lepton2_mt(events: Events) -> Any:
    """Transverse mass of the second lepton and the missing momentum."""
    return _transverse_mass(_lepton(events, 1), events)


@feature(label=r"$|\Delta\varphi(\ell_2, E_\mathrm{T}^\mathrm{miss})|$")
def lepton2_met_dphi(events: Events) -> Any:
    """Angle between the second lepton and the missing momentum."""
    return _delta_phi(_lepton(events, 1), events.MET)


@feature(label=r"$m_{\ell\ell}$", unit="GeV")
def dilepton_mass(events: Events) -> Any:
    """Mass of the two leptons."""
    return _dilepton(events).mass


@feature(label=r"$p_\mathrm{T}^{\ell\ell}$", unit="GeV")
def dilepton_pt(events: Events) -> Any:
    """Transverse momentum of the two leptons together."""
    return _dilepton(events).pt


@feature(label=r"$|\Delta\varphi_{\ell\ell}|$")
def dilepton_dphi(events: Events) -> Any:
    """Azimuth between the leptons: small for a scalar that decays to WW."""
    return _delta_phi(_lepton(events, 0), _lepton(events, 1))


@feature(label=r"$|\Delta\eta_{\ell\ell}|$")
def dilepton_deta(events: Events) -> Any:
    """Pseudorapidity between the leptons."""
    return abs(_lepton(events, 0).eta - _lepton(events, 1).eta)


@feature(label=r"$m_\mathrm{T}(\ell\ell, E_\mathrm{T}^\mathrm{miss})$", unit="GeV")
def dilepton_mt(events: Events) -> Any:
    """Transverse mass of the leptons and the missing momentum, √(2 pT(ℓℓ) MET (1 − cos Δφ))."""
    return _transverse_mass(_dilepton(events), events)


@feature(label="same flavour")
def dilepton_same_flavour(events: Events) -> Any:
    """1 for ee and μμ, 0 for eμ."""
    return _number(_lepton(events, 0).muon == _lepton(events, 1).muon)


# The jets


@feature(label=r"$p_\mathrm{T}^{j_1}$", unit="GeV")
def jet1_pt(events: Events) -> Any:
    """Leading jet."""
    return _jet(events, 0).pt


@feature(label=r"$\eta^{j_1}$")
def jet1_eta(events: Events) -> Any:
    """Leading jet."""
    return _jet(events, 0).eta


@feature(label=r"b-tag of $j_1$")
def jet1_btag(events: Events) -> Any:
    """Discriminant of the leading jet."""
    return _jet(events, 0).btag


@feature(label=r"$|\Delta\varphi(j_1, E_\mathrm{T}^\mathrm{miss})|$")
def jet1_met_dphi(events: Events) -> Any:
    """Angle between the leading jet and the missing momentum."""
    return _delta_phi(_jet(events, 0), events.MET)


@feature(label=r"$\Delta R(\ell_1, j_1)$")
def jet1_lepton1_dr(events: Events) -> Any:
    """Distance of the leading jet from the leading lepton."""
    return _jet(events, 0).delta_r(_lepton(events, 0))


@feature(label=r"$p_\mathrm{T}^{j_2}$", unit="GeV")
def jet2_pt(events: Events) -> Any:
    """Second jet."""
    return _jet(events, 1).pt


@feature(label=r"$\eta^{j_2}$")
def jet2_eta(events: Events) -> Any:
    """Second jet."""
    return _jet(events, 1).eta


@feature(label=r"$m_{jj}$", unit="GeV")
def dijet_mass(events: Events) -> Any:
    """Mass of the two leading jets: a W, where one decays to quarks."""
    return _dijet(events).mass


@feature(label=r"$|\Delta\eta_{jj}|$")
def dijet_deta(events: Events) -> Any:
    """Pseudorapidity between the two leading jets."""
    return abs(_jet(events, 0).eta - _jet(events, 1).eta)


@feature(label=r"$m_{\ell jj}$", unit="GeV")
def dijet_lepton1_mass(events: Events) -> Any:
    """Mass of the two leading jets and the leading lepton."""
    return (_dijet(events) + _lepton(events, 0)).mass


# Spectators


@feature(label=r"$\varphi^{\ell_1}$")
def lepton1_phi(events: Events) -> Any:
    """Collisions know no preferred azimuth: its flatness checks the sample."""
    return _lepton(events, 0).phi


@feature(label=r"$m(\ell_1, j_1)$", unit="GeV")
def lepton1_jet1_mass(events: Events) -> Any:
    """Mass of the leading lepton and the leading jet."""
    return (_lepton(events, 0) + _jet(events, 0)).mass


# Objects


def _once(events: Events, name: str, build: Any) -> Any:
    kept = _objects.setdefault(events, {})
    if name not in kept:
        kept[name] = build()
    return kept[name]


def _lepton(events: Events, index: int) -> Any:
    """The leading (0) or second (1) of all electrons and muons; None where there are fewer."""

    def build() -> Any:
        # Electrons and muons are records of different names and fields: only what both have can be put together.
        both = [_momenta(events.Electron, muon=False), _momenta(events.Muon, muon=True)]
        return _leading(ak.concatenate(both, axis=1), 2)

    return _once(events, "leptons", build)[index]


def _jet(events: Events, index: int) -> Any:
    """The leading (0) or second (1) jet; None where there are fewer. Jets are stored in order of pT."""

    def build() -> Any:
        jets = events.Jet
        fields = {name: jets[name] for name in ("pt", "eta", "phi", "mass", "btag")}
        return _padded(ak.zip(fields, with_name="PtEtaPhiMLorentzVector", behavior=vector.behavior), 2)

    return _once(events, "jets", build)[index]


def _dilepton(events: Events) -> Any:
    return _once(events, "dilepton", lambda: _lepton(events, 0) + _lepton(events, 1))


def _dijet(events: Events) -> Any:
    return _once(events, "dijet", lambda: _jet(events, 0) + _jet(events, 1))


def _momenta(leptons: Any, muon: bool) -> Any:
    fields = {name: leptons[name] for name in ("pt", "eta", "phi", "mass", "charge")}
    fields["muon"] = ak.full_like(leptons.charge, int(muon))
    return ak.zip(fields, with_name="PtEtaPhiMLorentzVector", behavior=vector.behavior)


def _leading(objects: Any, count: int) -> list[Any]:
    return _padded(objects[ak.argsort(objects.pt, axis=1, ascending=False)], count)


def _padded(objects: Any, count: int) -> list[Any]:
    padded = ak.pad_none(objects, count, axis=1, clip=True)
    return [padded[:, index] for index in range(count)]


def _delta_phi(first: Any, second: Any) -> Any:
    turn = abs(first.phi - second.phi)
    return ak.where(turn > np.pi, 2 * np.pi - turn, turn)


def _transverse_mass(visible: Any, events: Events) -> Any:
    missing = events.MET
    return np.sqrt(2 * visible.pt * missing.pt * (1 - np.cos(visible.phi - missing.phi)))


def _number(condition: Any) -> Any:
    return ak.values_astype(condition, np.float32)
