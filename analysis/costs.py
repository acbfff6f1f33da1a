"""What a result has cost, in words: the line that ends a run, and the numbers of the report's table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def price(costs: Mapping[str, Any], training: str) -> str:
    """Say in one line what a result has cost.

    Args:
        costs: `costs` of `run.json`.
        training: The step that trains.
    """
    total = costs["total"]
    trained = next((step for step in costs["steps"] if step["step"] == training), None)
    text = f"cost: {amount(total['cpu_hours'])} CPU-hours"
    if trained is not None:
        text += f" (training {amount(trained['cpu_hours'])})"
    if total["gpu_hours"]:
        text += f", {amount(total['gpu_hours'])} GPU-hours"
    return f"{text}, energy {energy(total)}"


def energy(total: Mapping[str, Any]) -> str:
    """Energy of a sum over branches, with how it was found where that is no measurement."""
    unknown = total["energy_unknown"]
    if unknown and unknown == total["branches"]:
        return "not recorded"
    kilowatt_hours, estimated = total["energy_kwh"], total["estimated_kwh"]
    text = f"{amount(kilowatt_hours)} kWh" if kilowatt_hours >= 1 else f"{amount(1000 * kilowatt_hours)} Wh"
    notes = []
    if estimated:
        text = f"about {text}"
        share = estimated / kilowatt_hours
        part = "less than 1% " if share < 0.01 else f"{share:.0%} "
        notes.append(("" if share > 0.99 else part) + "estimated")
    if unknown:
        notes.append(f"not recorded for {unknown} of {total['branches']} branches")
    return f"{text} ({', '.join(notes)})" if notes else text


def amount(value: float) -> str:
    """Two significant digits or all before the decimal point, without a power of ten; at most five decimals."""
    if value == 0:
        return "0"
    if value < 1e-5:
        return "<0.00001"
    decimals = max(0, 1 - int(f"{value:.1e}".partition("e")[2]))
    return f"{value:,.{min(decimals, 5)}f}"
