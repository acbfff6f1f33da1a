"""docs/models.md is what the schema makes, and speaks of every block."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from models import reference
from models.reference import Choice, page
from models.settings import CONSTANTS, ModelSettings, TrainingSettings

ROOT = Path(__file__).resolve().parent.parent


def test_the_committed_page_is_what_the_schema_makes() -> None:
    """Otherwise: python -m models.reference > docs/models.md."""
    assert (ROOT / "docs" / "models.md").read_text() == page()


def test_every_name_is_on_it() -> None:
    text = page()
    hints, trained = get_type_hints(ModelSettings), get_type_hints(TrainingSettings)
    names = {
        name
        for hint in [*hints.values(), *(trained[key] for key in ("loss", "optimiser", "schedule", "averaging"))]
        for name in get_args(hint)
    }
    names = {name for name in names if isinstance(name, str)}
    assert {"mish", "orthogonal", "focal", "residual", "batch", "tabm", "attention", "nadam", "plateau", "swa"} <= names
    assert [name for name in sorted(names) if f"| `{name}` |" not in text] == []
    assert [field.name for field in fields(ModelSettings) if f"`model.{field.name}`" not in text] == []
    assert [
        name for names in CONSTANTS.values() for own in names.values() for name in own if f".{name}`" not in text
    ] == []


@pytest.mark.parametrize("section", [part for part in reference.PAGE if isinstance(part, Choice)], ids=lambda s: s.key)
def test_nothing_is_said_of_names_that_are_gone(section: Choice) -> None:
    assert set(section.entries) == set(get_args(section.names))
    assert get_type_hints(section.settings)[section.key] in (section.names, section.names | None)
    assert all(entry.formula and entry.when for entry in section.entries.values())


def test_the_slips_of_lecture_notes_are_not_copied() -> None:
    """A softmax divides by exponentials, L1 takes sizes, decay goes down, and Glorot's is not He's."""
    rows = {line.split("`")[1]: line for line in page().splitlines() if line.startswith("| `")}
    assert "exp(z_c) / Σ exp(z_k)" in rows["cross_entropy"]
    assert "λ Σ\\|w\\|" in rows["training.l1"]
    assert "w ← w - η λ w" in rows["training.weight_decay"]
    assert "1502.01852" in rows["he_uniform"]
    assert "Glorot and Bengio" in rows["glorot_uniform"]
    assert "1502.01852" not in rows["glorot_uniform"]
    assert page().count("lecture notes") == 4
